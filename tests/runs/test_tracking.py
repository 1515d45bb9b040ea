"""Trackers beside a run: what they are told, and that one that fails or hangs changes nothing but a line."""

import importlib.util
import json
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml
from tiny_runs import Arguments, records, same_end

import orpo_cli as orpo
from orpo_cli.cli.main import main
from orpo_cli.errors import ConfigError
from orpo_cli.reporting.trackers import thread
from orpo_cli.reporting.trackers.tracker import TrackedRun, Tracker, markdown
from orpo_cli.runs import tracking, train
from orpo_cli.runs.folder import RunFolder
from orpo_cli.statistics.answers import Answer
from orpo_cli.training.events import StepDone, Warned


class Noting:
    """A tracker that keeps what it is told."""

    def __init__(self, run: TrackedRun) -> None:
        self.run = run
        self.told: list[tuple[Any, ...]] = []

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        self.told.append(("metrics", step, dict(values)))

    def samples(self, step: int, answers: Sequence[Answer]) -> None:
        self.told.append(("samples", step, [answer.answer for answer in answers]))

    def reading(self, step: int, text: str) -> None:
        self.told.append(("reading", step, text))

    def close(self, finished: bool) -> None:
        self.told.append(("close", finished))


class Raising(Noting):
    def metrics(self, step: int, _values: Mapping[str, float]) -> None:
        if step == 3:
            raise OSError("the server\nis gone")


class Leaving(Noting):
    def metrics(self, _step: int, _values: Mapping[str, float]) -> None:
        sys.exit("wandb leaves")


class Hanging(Noting):
    def metrics(self, _step: int, _values: Mapping[str, float]) -> None:
        threading.Event().wait(60)


class HangingAtTheEnd(Noting):
    def close(self, _finished: bool) -> None:
        threading.Event().wait(60)


def never_opens(_run: TrackedRun) -> Tracker:
    raise ValueError("no such project")


class Warnings:
    """A consumer that keeps the warnings."""

    def __init__(self) -> None:
        self.texts: list[str] = []

    def show(self, event: Any) -> None:
        if isinstance(event, Warned):
            self.texts.append(event.text)


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[Any]]:
    """`opened(Raising)`: every tracker is this one from here on; those that were opened are in the list."""

    def opens(kind: Callable[[TrackedRun], Tracker]) -> list[Any]:
        trackers: list[Any] = []

        def open_tracker(_name: str, run: TrackedRun) -> Tracker:
            trackers.append(kind(run))
            return trackers[-1]  # type: ignore[no-any-return]

        monkeypatch.setattr(tracking, "open_tracker", open_tracker)
        monkeypatch.setattr(train, "check_installed", lambda _names: None)
        return trackers

    return opens


def trained_steps(tracker: Noting) -> list[int]:
    return [part[1] for part in tracker.told if part[0] == "metrics" and "train/loss" in part[2]]


def line(folder: Path, name: str) -> list[dict[str, Any]]:
    return [json.loads(text) for text in (folder / name).read_text(encoding="utf-8").splitlines()]


def told_of(folder: Path) -> list[tuple[Any, ...]]:
    """What a tracker of the run is to be told by its files, without the samples."""
    kinds = {"step": "train", "eval": "eval", "eval_part": "eval_part"}
    metrics = [
        ("metrics", record["step"], {
            f"{kinds[record['kind']]}/{key}": value
            for key, value in record.items() if key not in ("kind", "step", "pairs", "time")
        })
        for record in line(folder, "metrics.jsonl")
    ]  # fmt: skip
    reading = json.loads((folder / "run.json").read_text(encoding="utf-8"))["reading"]
    text = "\n".join(("! " if sentence["warns"] else "") + sentence["text"] for sentence in reading)
    return [*metrics, ("reading", metrics[-1][1], text), ("close", True)]


def test_a_tracker_is_told_what_the_files_say(
    opened: Callable[..., list[Any]], reference: Path, arguments: Arguments, tmp_path: Path
) -> None:
    """trackers: to the last digit, in their order; also which steps are kept, and every setting by its dotted key."""
    trackers = opened(Noting)
    words = arguments(tmp_path / "run", "tracker=[wandb,mlflow]", "tracker.run_name=mine", "trainer.log_every=4")
    run = orpo.train(orpo.configure(*words[1:]))
    first, second = trackers
    without_samples = [part for part in first.told if part[0] != "samples"]
    assert without_samples == told_of(run.folder)
    assert trained_steps(first) == [1, 4, 6]
    assert second.told == first.told
    samples = line(run.folder, "samples.jsonl")
    assert [part[1:] for part in first.told if part[0] == "samples"] == [
        (step, [sample["answer"] for sample in samples if sample["step"] == step]) for step in (0, 6)
    ]
    told = first.run
    assert (told.name, told.project, told.steps_done) == ("mine", "orpo", 0)
    assert told.id == json.loads((run.folder / "run.json").read_text(encoding="utf-8"))["run_id"]
    saved = yaml.safe_load((run.folder / "config.yaml").read_text(encoding="utf-8"))
    assert told.settings["lambda"] == saved["lambda"]
    assert told.settings["optimizer.lr"] == 1e-3
    assert told.settings["data.columns.prompt"] == saved["data"]["columns"]["prompt"]
    assert not any(key.startswith("tracker") for key in told.settings)
    assert all(not isinstance(value, dict) for value in told.settings.values())
    kept = [record for record in records(reference) if record["kind"] == "eval" or record["step"] in (1, 4, 6)]
    assert records(run.folder) == kept


@pytest.mark.parametrize(
    ("kind", "says"),
    [
        (Raising, "takes nothing more, the run does not need it: the server is gone"),
        (Hanging, "not done 0.3 seconds after the end of the run; what it shows may be incomplete"),
        pytest.param(Leaving, "the run does not need it: wandb leaves", marks=pytest.mark.slow),
        pytest.param(HangingAtTheEnd, "not done 0.3 seconds after the end of the run", marks=pytest.mark.slow),
        pytest.param(never_opens, "the run does not need it: no such project", marks=pytest.mark.slow),
    ],
)
def test_one_that_fails_changes_no_byte_and_is_named_once(
    kind: Callable[[TrackedRun], Tracker],
    says: str,
    opened: Callable[..., list[Any]],
    reference: Path,
    arguments: Arguments,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    opened(kind)
    monkeypatch.setattr(thread, "DEADLINE", 0.3)
    warnings = Warnings()
    run = orpo.train(orpo.configure(*arguments(tmp_path / "run", "tracker=wandb")[1:]), [warnings])
    assert same_end(run.folder, reference)
    assert run.is_finished
    [warning] = warnings.texts
    assert warning.startswith("tracker.name=wandb: ")
    assert says in warning


def test_the_end_waits_for_all_of_them_together(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two that hang take the time of one."""
    monkeypatch.setattr(thread, "DEADLINE", 0.5)
    hanging = [thread.TrackerThread("wandb", never) for _ in range(2)]
    began = time.monotonic()
    ends = began + thread.DEADLINE
    for one in hanging:
        one.close(True)
        one.wait(ends)
    assert 0.5 <= time.monotonic() - began < 0.9
    assert [one.new_problem() is None for one in hanging] == [False, False]
    assert [one.new_problem() for one in hanging] == [None, None]


def never() -> Tracker:
    threading.Event().wait(60)
    raise AssertionError


def test_a_run_that_is_left_is_the_same_one_when_it_is_resumed(
    opened: Callable[..., list[Any]], arguments: Arguments, tmp_path: Path
) -> None:
    """The tracker is closed as unfinished, and the resumed run has its id and begins after its last checkpoint."""
    trackers = opened(Noting)
    for event in orpo.training_events(orpo.configure(*arguments(tmp_path / "run", "tracker=wandb")[1:])):
        if isinstance(event, StepDone) and event.step == 3:
            break
    left = trackers[0]
    del event
    deadline = time.monotonic() + 10
    while ("close", False) not in left.told and time.monotonic() < deadline:
        time.sleep(0.01)
    assert left.told[-1] == ("close", False)
    orpo.resume(tmp_path / "run", "tracker=[tensorboard,mlflow]")
    assert [tracker.run.id for tracker in trackers] == [left.run.id] * 3
    assert [tracker.run.steps_done for tracker in trackers] == [0, 2, 2]
    assert trackers[1].told[-1] == ("close", True)
    (resume,) = RunFolder(tmp_path / "run").resumes
    assert resume["changed"] == {"tracker.name": ["tensorboard", "mlflow"]}


def test_a_finished_run_opens_no_tracker(opened: Callable[..., list[Any]], reference: Path) -> None:
    trackers = opened(Noting)
    orpo.resume(reference, "tracker=wandb")
    assert trackers == []


def test_a_missing_package_is_named_before_anything_else(
    arguments: Arguments, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Exit code 2 and the command; no folder is left, no model is looked for. A folder called wandb is no package."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "wandb").mkdir()
    real = importlib.util.find_spec
    monkeypatch.setattr(
        "orpo_cli.reporting.trackers.opening.find_spec",
        lambda name: importlib.machinery.PathFinder.find_spec(name, [str(tmp_path)]) if name == "wandb" else real(name),
    )
    assert main([*arguments(tmp_path / "run", "tracker=wandb", "model=./no-such-model")]) == 2
    expected = "tracker.name=wandb: the package wandb is not installed; pip install 'orpo-cli[wandb]'"
    assert expected in " ".join(capfd.readouterr().err.split())
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("words", "names"),
    [
        ([], ()),
        (["tracker=none"], ()),
        (["tracker=wandb"], ("wandb",)),
        (["tracker=[tensorboard,wandb]"], ("tensorboard", "wandb")),
        (["tracker.name=[mlflow,trackio]"], ("mlflow", "trackio")),
        (["tracker=trackio", "tracker.project=mine"], ("trackio",)),
    ],
)
def test_which_trackers_a_run_has(words: list[str], names: tuple[str, ...]) -> None:
    assert orpo.configure(*words).tracker.names == names


@pytest.mark.parametrize("value", ["wandb,wandb", "wandb,none", "wandb,nonesuch", "1"])
def test_trackers_that_are_refused(value: str) -> None:
    with pytest.raises(ConfigError, match=r"tracker\.name=.*expected none, tensorboard, wandb, mlflow, trackio, or a"):
        orpo.configure(f"tracker=[{value}]")


def test_a_tracker_that_does_not_exist_is_told_the_nearest() -> None:
    with pytest.raises(ConfigError, match="tracker=wand: no such option; did you mean `wandb`"):
        orpo.configure("tracker=wand")


def test_a_sweep_over_trackers(tmp_path: Path) -> None:
    """Lists and names are the values of one key."""
    from orpo_cli.cli.arguments import parse
    from orpo_cli.cli.compose import compose_jobs

    jobs = compose_jobs(parse(["-m", "tracker=none,[wandb,mlflow]", f"output_dir={tmp_path / 'sweep'}"])).jobs
    assert [job.config.tracker.name for job in jobs] == ["none", ["wandb", "mlflow"]]


def test_a_run_of_an_earlier_version_has_no_tracker_and_can_get_one(
    opened: Callable[..., list[Any]], arguments: Arguments, tmp_path: Path
) -> None:
    """Its config.yaml lacks the whole section."""
    trackers, folder = opened(Noting), tmp_path / "run"
    orpo.train(orpo.configure(*arguments(folder)[1:]))
    saved = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
    assert saved.pop("tracker") == {"name": "none", "project": "orpo", "run_name": None, "entity": None, "uri": None}
    (folder / "config.yaml").write_text(yaml.safe_dump(saved), encoding="utf-8")
    assert orpo.open_run(folder).config.tracker.names == ()
    assert main([*arguments(folder, "resume=auto", "trainer.max_steps=8", "tracker=wandb")]) == 0
    (tracker,) = trackers
    assert tracker.run.steps_done == 6
    assert trained_steps(tracker) == [7, 8]


def test_what_a_model_says_stays_as_it_is_in_a_table() -> None:
    """One row a record; nothing in a text ends a cell or a row, or is taken for HTML or emphasis."""
    rows = [{"prompt": "a|b\n<b>c</b>", "answer": "*x* `y` \\ #1"}]
    assert markdown(rows).splitlines() == [
        "| prompt | answer |",
        "| --- | --- |",
        r"| a\|b<br>&lt;b&gt;c&lt;/b&gt; | \*x\* \`y\` \\ \#1 |",
    ]
