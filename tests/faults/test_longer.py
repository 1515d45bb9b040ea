"""A run that is resumed for longer: what was done stays, the rest follows the longer schedule, kills leave it whole."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from matrix import rows
from tiny_runs import Arguments, Orpo, at, change_json, digests, fails, kill, records, same_end, sign

from orpo_cli.cli.main import main
from orpo_cli.config.optimization import SchedulerConfig
from orpo_cli.runs.stretches import Stretch, stretches
from orpo_cli.training.schedules import lr_factor

slow = pytest.mark.slow
CONSTANT = ("scheduler=constant", "scheduler.warmup_steps=0")


def steps_of(folder: Path) -> list[dict[str, Any]]:
    return [record for record in records(folder) if record["kind"] == "step"]


def rates(folder: Path) -> list[float]:
    return [record["lr"] for record in steps_of(folder)]


def run_json(folder: Path) -> dict[str, Any]:
    return dict(json.loads((folder / "run.json").read_text(encoding="utf-8")))


def same_weights_and_steps(folder: Path, whole: Path) -> bool:
    """The model and optimizer to the byte, and every step's numbers; a run that ended in between was measured then."""
    return same_end_of(folder, whole) and steps_of(folder) == steps_of(whole)


def same_end_of(folder: Path, whole: Path) -> bool:
    last = "checkpoints/step-000006/optimizer.safetensors"
    return digests(folder / "model") == digests(whole / "model") and (
        (folder / last).read_bytes() == (whole / last).read_bytes()
    )


@pytest.fixture(scope="module")
def constant(orpo: Orpo, arguments: Arguments, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An uninterrupted run of six steps with one learning rate."""
    folder = tmp_path_factory.mktemp("constant") / "run"
    assert orpo.run(*arguments(folder, *CONSTANT)).code == 0
    return folder


@pytest.fixture(scope="module")
def short(orpo: Orpo, arguments: Arguments, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same, ended after four."""
    folder = tmp_path_factory.mktemp("short") / "run"
    assert orpo.run(*arguments(folder, *CONSTANT, "trainer.max_steps=4")).code == 0
    return folder


def verified(orpo: Orpo, folder: Path, *options: str) -> str:
    done = orpo.run("verify", str(folder), *options)
    assert done.code == 0, done.output
    return done.output


@pytest.mark.slow
def test_with_one_learning_rate_it_is_the_longer_run(orpo: Orpo, short: Path, constant: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(short, tmp_path / "run"))
    before = (folder / "metrics.jsonl").read_text(encoding="utf-8")
    done = orpo.run("resume", str(folder), "trainer.max_steps=6")
    assert done.code == 0, done.output
    said = " ".join(done.output.split())
    assert "the run has 6 steps instead of 4; step 5 and later ones have the schedule of 6" in said
    assert same_weights_and_steps(folder, constant)
    assert (folder / "metrics.jsonl").read_text(encoding="utf-8").startswith(before)
    (entry,) = run_json(folder)["resumes"]
    assert (entry["after_step"], entry["changed"]) == (4, {"trainer.max_steps": 6})
    assert (entry["total_steps_before"], entry["total_steps"]) == (4, 6)
    assert run_json(folder)["end"] == {
        "step": 6, "total_steps": 6, "early_stop": None, "result": "last", "model_step": 6
    }  # fmt: skip
    assert yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))["trainer"]["max_steps"] == 6
    verified(orpo, folder)
    again = orpo.run("resume", str(folder))
    assert again.code == 0
    assert "finished already" in again.output


@pytest.mark.slow
def test_epochs_and_adapters_too(orpo: Orpo, arguments: Arguments, tmp_path: Path) -> None:
    """18 pairs to train on in steps of 4: 5 steps an epoch. In two goes equal to two epochs in one."""
    whole, folder = tmp_path / "whole", tmp_path / "run"
    lora = (*CONSTANT, "adapter=lora", "adapter.dropout=0.2", "trainer.max_steps=null", "trainer.save_every=null")
    assert orpo.run(*arguments(whole, *lora, "trainer.epochs=2")).code == 0
    assert orpo.run(*arguments(folder, *lora)).code == 0
    assert len(steps_of(folder)) == 5
    done = orpo.run("resume", str(folder), "trainer.epochs=2")
    assert done.code == 0, done.output
    assert digests(folder / "model") == digests(whole / "model")
    assert steps_of(folder) == steps_of(whole)
    verified(orpo, folder)


def test_the_rest_has_the_longer_schedule(orpo: Orpo, reference: Path, tmp_path: Path) -> None:
    """A line from 1e-3 that would reach 0 one step after the last, with a tenth of the steps to warm up."""
    folder = Path(shutil.copytree(reference, tmp_path / "run"))
    assert orpo.run("resume", str(folder), "trainer.max_steps=9", "trainer.keep_last=9").code == 0
    linear = SchedulerConfig("linear", None, 0.1, 0.0)
    expected = [1e-3 * lr_factor(linear, step, 6 if step <= 6 else 9) for step in range(1, 10)]
    assert rates(folder) == expected
    assert expected[6:] == pytest.approx([3e-3 / 8, 2e-3 / 8, 1e-3 / 8])  # of the 8 steps after one of warm-up
    replayed = verified(orpo, folder, "--replay", "5")
    assert len(re.findall(r"step \d, taken again after step 4: identical", replayed)) == 5


@pytest.mark.parametrize("count", [5, pytest.param(3, marks=slow)])
def test_an_unfinished_run_is_resumed_for_longer(
    count: int, orpo: Orpo, arguments: Arguments, constant: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    typed = arguments(folder, *CONSTANT, f"trainer.max_steps={count}")
    assert orpo.run(*typed, injections=[at("orpo_cli.training.loop._update", 2, "SIGTERM")]).code == 143
    done = orpo.run("resume", str(folder), "trainer.max_steps=6")
    assert done.code == 0, done.output
    assert same_end(folder, constant)
    verified(orpo, folder, "--replay", "6")


def test_as_short_as_it_is(orpo: Orpo, arguments: Arguments, tmp_path: Path) -> None:
    """A run that is stopped can be ended there: it is measured, and its model written."""
    folder = tmp_path / "run"
    typed = arguments(folder, "trainer.max_steps=9", "trainer.log_every=3")
    assert orpo.run(*typed, injections=[at("orpo_cli.training.loop._update", 4, "SIGTERM")]).code == 143
    done = orpo.run("resume", str(folder), "trainer.max_steps=4")
    assert done.code == 0, done.output
    assert [record["step"] for record in records(folder) if record["kind"] == "eval"] == [0, 3, 4]
    verified(orpo, folder)


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("trainer.max_steps=4", "trainer.max_steps=4: 4 steps, and 6 have been taken"),
        ("trainer.epochs=3", "trainer.epochs=3: has no effect beside trainer.max_steps=6; give that, or trainer.max"),
    ],
)
def test_what_cannot_be_is_refused_and_nothing_touched(
    override: str, says: str, reference: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = Path(shutil.copytree(reference, tmp_path / "run"))
    assert main(["resume", str(folder), override]) == 2
    assert says in " ".join(capfd.readouterr().err.split())
    for name in ("train.log", "run.lock"):
        (folder / name).write_bytes((reference / name).read_bytes())
    assert digests(folder) == digests(reference)


KILLS: dict[str, dict[str, Any]] = {
    "before run.json says it": kill("orpo_cli.runs.folder.write_json", 1),
    "between run.json and config.yaml": kill("orpo_cli.runs.beginning.write_text", 1, of="config.yaml"),
    "in the first step": kill("orpo_cli.training.loop._update", 1),
    "before the model": kill("orpo_cli.runs.execution.stage_model", 1),
    "once run.json lists the new model": kill("orpo_cli.runs.folder.write_json", 3, after=True),
    "before run.json says that it is finished": kill("orpo_cli.runs.folder.RunFolder.note_end", 1),
}


@pytest.mark.parametrize(
    "name", rows({name: name for name in KILLS}, "between run.json and config.yaml", "before the model")
)
def test_killed_on_the_way(name: str, orpo: Orpo, short: Path, constant: Path, tmp_path: Path) -> None:
    """What is left is whole, with the model of the first end until the second; resumed, it ends as it would have."""
    folder = Path(shutil.copytree(short, tmp_path / "run"))
    longer = "resume", str(folder), "trainer.max_steps=6"
    assert orpo.run(*longer, injections=[KILLS[name]]).code == -9
    of_model = digests(folder / "model")
    assert of_model in (digests(short / "model"), digests(constant / "model"))
    assert (of_model == digests(short / "model")) == (name != "before run.json says that it is finished")
    verified(orpo, folder)
    early = name in list(KILLS)[:2]
    done = orpo.run(*(longer if early else longer[:2]))
    assert done.code == 0, done.output
    assert same_weights_and_steps(folder, constant)
    assert not list(folder.rglob(".tmp-*"))
    assert isinstance(run_json(folder)["model_files"], dict)
    verified(orpo, folder)


def test_killed_before_config_yaml_says_it_the_shorter_run_can_be_finished(
    orpo: Orpo, short: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(short, tmp_path / "run"))
    died = orpo.run("resume", str(folder), "trainer.max_steps=6", injections=[list(KILLS.values())[1]])
    assert died.code == -9
    done = orpo.run("resume", str(folder))
    assert done.code == 0, done.output
    assert digests(folder / "model") == digests(short / "model")
    assert records(folder) == records(short)
    verified(orpo, folder, "--replay", "4")


@slow
def test_a_write_that_fails_leaves_the_first_model(orpo: Orpo, short: Path, constant: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(short, tmp_path / "run"))
    full = fails("orpo_cli.runs.execution.stage_model", 1, "ENOSPC")
    assert orpo.run("resume", str(folder), "trainer.max_steps=6", injections=[full]).code != 0
    assert digests(folder / "model") == digests(short / "model")
    assert orpo.run("resume", str(folder)).code == 0
    assert same_weights_and_steps(folder, constant)


def test_a_model_that_is_not_the_runs_is_not_replaced(orpo: Orpo, short: Path, tmp_path: Path) -> None:
    """Refused before a step: what somebody made of it would be lost."""
    folder = Path(shutil.copytree(short, tmp_path / "run"))
    (folder / "model/config.json").write_text("{}", encoding="utf-8")
    done = orpo.run("resume", str(folder), "trainer.max_steps=6")
    assert done.code == 65, done.output
    assert "is not replaced; move it away" in " ".join(done.output.split())


def old_identity(folder: Path) -> None:
    """Checkpoints of earlier versions keep the length of the run among what cannot change."""
    for checkpoint in (folder / "checkpoints").glob("step-*"):
        state = json.loads((checkpoint / "state.json").read_text(encoding="utf-8"))
        change_json(checkpoint / "state.json", identity=state["identity"] | {"trainer.max_steps": 4})
        sign(checkpoint)


def test_a_run_of_an_earlier_version_goes_on_too(orpo: Orpo, short: Path, constant: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(short, tmp_path / "run"))
    old_identity(folder)
    done = orpo.run("resume", str(folder), "trainer.max_steps=6")
    assert done.code == 0, done.output
    assert same_weights_and_steps(folder, constant)


@slow
@pytest.mark.usefixtures("warm_jobs")
def test_the_jobs_of_a_sweep(orpo: Orpo, arguments: Arguments, constant: Path, tmp_path: Path) -> None:
    folder = tmp_path / "sweep"
    typed = arguments(folder, *CONSTANT, "trainer.max_steps=4", "seed=0,1", "-m")
    assert orpo.run(*typed).code == 0
    done = orpo.run("resume", str(folder), "trainer.max_steps=6")
    assert done.code == 0, done.output
    assert same_weights_and_steps(folder / "0", constant)
    assert [len(steps_of(folder / job)) for job in "01"] == [6, 6]


def entry(after: int, before: int | None = None, now: int | None = None) -> dict[str, Any]:
    return {"after_step": after} | ({} if now is None else {"total_steps_before": before, "total_steps": now})


STRETCHES: list[tuple[list[dict[str, Any]], list[tuple[int, int]]]] = [
    ([], [(0, 9)]),
    ([entry(3), entry(5)], [(0, 9)]),
    ([entry(6, 6, 9)], [(0, 6), (6, 9)]),
    ([entry(6, 6, 9), entry(8)], [(0, 6), (6, 9)]),
    ([entry(6, 6, 9), entry(4)], [(0, 6), (4, 9)]),  # the steps after 4 are done again, as part of the longer run
    ([entry(6, 6, 12), entry(6, 12, 9)], [(0, 6), (6, 9)]),
    ([entry(4, 6, 12), entry(9, 12, 9)], [(0, 6), (4, 12), (9, 9)]),
    ([entry(0, 6, 9)], [(0, 9)]),
    ([entry(6, 6, 9), entry(6, 9, 6)], [(0, 6)]),
]


@pytest.mark.parametrize(("resumes", "expected"), STRETCHES)
def test_stretches(resumes: list[dict[str, Any]], expected: list[tuple[int, int]]) -> None:
    assert stretches(resumes, 9) == [Stretch(*pair) for pair in expected]
