"""`orpo init` makes a folder that runs as it is, and whose comments tell the truth."""

import json
import re
from pathlib import Path

import pytest
from tiny_runs import Orpo

import orpo_cli
from orpo_cli.cli.arguments import parse
from orpo_cli.cli.compose import compose_jobs
from orpo_cli.cli.main import main
from orpo_cli.config.keys import dotted, values_of
from orpo_cli.config.load import load_config


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    assert main(["init", str(tmp_path / "mine")]) == 0
    monkeypatch.chdir(tmp_path / "mine")
    return tmp_path / "mine"


def test_it_runs_as_it_is(folder: Path, orpo: Orpo) -> None:
    """With another model, which tests have at hand; the folder of a run is named for `resume`."""
    done = orpo.run(
        "train", str(folder / "run.yaml"), "model=tiny", f"data.path={folder}/prefs.json", f"output_dir={folder}/out"
    )
    assert done.code == 0, done.output
    run = json.loads((folder / "out" / "run.json").read_text())
    assert run["pairs"] == {"train": 2, "eval": 0}
    assert orpo_cli.open_run(folder / "out").config.trainer.epochs == 3


@pytest.mark.usefixtures("folder")
def test_each_comment_shows_the_default() -> None:
    """Taking the marks away changes nothing but the folder of the run."""
    path = Path("run.yaml")
    plain = load_config(compose_jobs(parse(["run.yaml"])).jobs[0].config)
    text, marks = re.subn(r"(?m)^#(?=(  )?[a-z_]+:( |$))", "", path.read_text())
    path.write_text(text)
    everything = load_config(compose_jobs(parse(["run.yaml"])).jobs[0].config)
    assert marks >= 39
    there, before = dict(dotted(values_of(everything))), dict(dotted(values_of(plain)))
    assert {key: value for key, value in there.items() if before[key] != value} == {"output_dir": "outputs/mine"}
    assert (before["lambda"], before["trainer.epochs"], before["data.path"]) == (0.5, 3, "prefs.json")


@pytest.mark.usefixtures("folder")
def test_the_experiment_changes_what_it_says() -> None:
    job = compose_jobs(parse(["run.yaml", "--config-dir", "conf", "+experiment=mine"])).jobs[0]
    config = load_config(job.config)
    assert (config.scheduler.name, config.optimizer.weight_decay, config.trainer.epochs) == ("cosine", 0.01, 3)


@pytest.mark.usefixtures("folder")
def test_every_command_of_its_readme_is_one() -> None:
    for line in re.findall(r"(?m)^    orpo (.*?)(?:  +#.*)?$", Path("README.md").read_text()):
        name, *words = line.split()
        if name in ("train", "check"):
            assert compose_jobs(parse(words), root=name).jobs
        else:
            assert main([name, "--help"]) == 0


def test_it_writes_over_nothing(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "run.yaml").unlink()
    (folder / "prefs.json").write_text("mine")
    assert main(["init", str(folder)]) == 73
    assert f"{folder}/prefs.json: is there already" in capsys.readouterr().err
    assert (folder / "prefs.json").read_text() == "mine"
    assert not (folder / "run.yaml").exists()
