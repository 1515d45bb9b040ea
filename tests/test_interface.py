"""The Python interface: what the commands do, without their screen, their exit codes and their signal handlers."""

import json
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tiny_runs import Arguments, records, same_end, write_pairs

import orpo_cli as orpo
from orpo_cli.config.keys import builtin_configs
from orpo_cli.errors import ConfigError, InputNotFoundError, InterruptedRunError, OutputError
from orpo_cli.runs.folder import RunFolder
from orpo_cli.runs.verify import verify
from orpo_cli.training.events import CheckpointSaved, RunFinished, RunStarted, StepDone

PAGE = (Path(__file__).resolve().parent.parent / "docs" / "python.md").read_text(encoding="utf-8")


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    write_pairs(tmp_path / "prefs.jsonl")
    return tmp_path


def in_a_thread(work: Callable[[], Any]) -> Any:
    done: list[Any] = []
    thread = threading.Thread(target=lambda: done.append(work()))
    thread.start()
    thread.join()
    assert done, "it raised"
    return done[0]


@pytest.mark.parametrize("where", [lambda work: work(), in_a_thread], ids=["here", "in a thread"])
def test_the_script_of_the_page(where: Callable[..., Any], here: Path, capfd: pytest.CaptureFixture[str]) -> None:
    script = PAGE.split("```python\n")[1].split("```")[0].replace('"trainer.max_steps=4"', '"trainer.save_every=2"')
    script = script.replace('"output_dir=run"', '"trainer.max_steps=4", "data.eval_fraction=0.25", "output_dir=run"')
    names: dict[str, Any] = {}
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    where(lambda: exec(script, names) or True)
    lines = [json.loads(line) for line in (here / "run/metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    assert names["run"].metrics == lines
    assert names["losses"] == [line["loss"] for line in lines if line["kind"] == "step"]
    assert [line["step"] for line in lines if line["kind"] == "step"] == [1, 2, 3, 4]
    assert names["run"].is_finished
    assert [path.name for path in names["run"].checkpoints] == ["step-000002", "step-000004"]
    assert names["model"].config.vocab_size == len(names["tokenizer"])
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before
    out, err = capfd.readouterr()
    assert (out, err) == ("", "")


def test_a_run_in_python_is_the_run_of_the_command(reference: Path, arguments: Arguments, tmp_path: Path) -> None:
    run = orpo.train(orpo.configure(*arguments(tmp_path / "run")[1:]))
    assert same_end(run.folder, reference)
    assert [record["step"] for record in records(run.folder)] == [line["step"] for line in run.metrics]
    assert run.metrics_table().shape[0] == len(run.metrics)
    assert all(inspected.problem is None for inspected in verify(RunFolder(run.folder)))  # nobody listened to the run


class Noting:
    """A consumer that notes what it is told of, and how much of it the files of the run had by then."""

    def __init__(self, folder: Path) -> None:
        self.told: list[Any] = []
        self.in_the_files: list[int] = []
        self._metrics = folder / "metrics.jsonl"

    def show(self, event: Any) -> None:
        self.told.append(event)
        if isinstance(event, StepDone):
            self.in_the_files.append(self._metrics.read_text(encoding="utf-8").count('"kind": "step"'))


def test_consumers_get_every_event_in_their_order_after_the_files(here: Path) -> None:
    config = orpo.configure("model=tiny", "data=prefs.jsonl", "trainer.max_steps=3", "output_dir=run")
    first, second = Noting(here / "run"), Noting(here / "run")
    yielded = []
    for event in orpo.training_events(config, [first, second]):
        yielded.append(event)
        assert first.told[-1] == second.told[-1] == event
    assert first.told == second.told
    assert first.in_the_files == [1, 2, 3]
    assert [type(event) for event in yielded if isinstance(event, RunStarted | RunFinished)] == [
        RunStarted,
        RunFinished,
    ]
    assert any(isinstance(event, CheckpointSaved) for event in yielded)


def test_an_interrupt_saves_where_that_is_asked_for(here: Path) -> None:
    class Interrupts:
        def show(self, event: Any) -> None:
            if isinstance(event, StepDone) and event.step == 2:
                signal.raise_signal(signal.SIGINT)

    words = ("model=tiny", f"data={here}/prefs.jsonl", "trainer.max_steps=3", f"output_dir={here}/run")
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(InterruptedRunError, match="after step 2 of 3"):
        orpo.train(orpo.configure(*words), [Interrupts()], save_on_interrupt=True)
    assert signal.getsignal(signal.SIGINT) == before
    run = orpo.open_run(here / "run")
    assert [path.name for path in run.checkpoints] == ["step-000002"]
    assert [line["step"] for line in orpo.resume(run).metrics if line["kind"] == "step"] == [1, 2, 3]


def test_it_raises_what_the_command_says(here: Path) -> None:
    with pytest.raises(ConfigError, match="unknown key `lamda`: did you mean `lambda`"):
        orpo.configure("lamda=1")
    for flags in (["-m", "seed=1,2"], ["--config-dir", "own"]):
        with pytest.raises(ConfigError, match="expected overrides only"):
            orpo.configure(*flags)
    with pytest.raises(ConfigError, match="give it: output_dir=FOLDER"):
        orpo.configure("resume=auto")
    with pytest.raises(ConfigError, match="a run is resumed in its own folder"):
        orpo.resume("run", "output_dir=elsewhere")
    with pytest.raises(InputNotFoundError, match="expected the folder of a run"):
        orpo.open_run(here)
    (here / "full").mkdir()
    (here / "full" / "mine.txt").touch()
    with pytest.raises(OutputError, match="is not empty"):
        orpo.train(orpo.configure("model=tiny", "data=prefs.jsonl", "output_dir=full"))
    with pytest.raises(ConfigError, match="torchrun"):
        orpo.train(orpo.configure("model=tiny", "data=prefs.jsonl", "trainer.processes=2", "output_dir=two"))


def test_relative_paths_are_those_of_the_configuration(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = orpo.configure("model=tiny", "data=prefs.jsonl", "trainer.max_steps=1", "output_dir=run")
    (here / "elsewhere").mkdir()
    monkeypatch.chdir(here / "elsewhere")
    assert orpo.train(config).folder == here / "run"


def test_findings_are_data(here: Path) -> None:
    pair = {"prompt": "Why?", "chosen": "Because.", "rejected": "No."}
    (here / "twice.jsonl").write_text(2 * (json.dumps(pair) + "\n"), encoding="utf-8")
    report = orpo.check("model=tiny", "data=twice.jsonl")
    found = {finding.name: finding.count for finding in report.findings}
    assert found["duplicates"] == 1
    assert report.classes == {("train", "kept"): 2}


def test_configuring_leaves_hydra_and_omegaconf_as_they_were(monkeypatch: pytest.MonkeyPatch) -> None:
    from hydra import initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra
    from omegaconf import OmegaConf

    monkeypatch.setenv("SOMETHING", "mine")
    orpo.configure("model=tiny")
    assert OmegaConf.create({"mine": "${oc.env:SOMETHING}"}).mine == "mine"
    assert not GlobalHydra.instance().is_initialized()
    with initialize_config_dir(str(builtin_configs()), version_base="1.3"):  # as in a program that Hydra started
        theirs = GlobalHydra.instance().hydra
        orpo.configure("model=tiny")
        assert GlobalHydra.instance().hydra is theirs


def test_importing_the_package_imports_nothing_heavy() -> None:
    code = "import sys, orpo_cli; print([name for name in ('torch', 'hydra', 'omegaconf') if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout == b"[]\n"
