"""A run seen from its files: what its own screen said, new records as they come, and the end."""

import fcntl
import io
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console

from orpo_cli.cli.main import main
from orpo_cli.reporting.terminal import Terminal
from orpo_cli.runs import watch as watching
from orpo_cli.runs.folder import RunFolder
from orpo_cli.runs.watch import watch
from orpo_cli.training.events import Evaluated, Event, RunFinished, RunStarted, StepDone, Warned, WorkProgress


def test_a_finished_run_has_the_summary_of_its_own_screen(reference: Path) -> None:
    stream = io.StringIO()
    with Terminal(Console(file=stream, width=120)) as screen:
        events = list(watch(reference))
        for event in events:
            screen.show(event)
    assert [type(event) for event in events] == [RunStarted, RunFinished]
    started = events[0]
    assert isinstance(started, RunStarted)
    assert started.earlier == RunFolder(reference).records
    assert (started.total_steps, started.steps_done, started.held_out) == (6, 6, 6)
    own = (reference / "train.log").read_text(encoding="utf-8").partition("the run has finished\n")[2]
    assert own.startswith("run: 6 steps in 0:00:")
    assert stream.getvalue().endswith(own)
    assert f"device: {started.facts['device']}" in stream.getvalue()


def test_a_run_at_work_is_followed_to_its_end(reference: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its metrics come in pieces, one line in two halves; it ends between two looks."""
    folder = RunFolder(Path(shutil.copytree(reference, tmp_path / "run")))
    lines = folder.metrics.read_text(encoding="utf-8").splitlines(keepends=True)
    folder.metrics.write_text("".join(lines[:2]), encoding="utf-8")
    folder.log.write_text("", encoding="utf-8")
    folder.note(finished=False)
    lock = (folder.path / "run.lock").open("a+")
    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)

    def adds(path: Path, text: str) -> Callable[[], object]:
        def act() -> None:
            with path.open("a", encoding="utf-8") as stream:
                stream.write(text)

        return act

    happens = [
        adds(folder.metrics, lines[2] + lines[3][:40]),
        adds(folder.metrics, lines[3][40:]),
        adds(folder.log, "2026-01-31T10:00:00Z ! careful\n2026-01-31T10:00:00Z step 3/6\n"),
        adds(folder.log, "2026-01-31T10:00:01Z evaluating ...\n"),
        adds(folder.metrics, lines[4]),
        lock.close,
    ]
    monkeypatch.setattr(watching.time, "sleep", lambda _seconds: happens.pop(0)())
    events = list(watch(folder.path))
    started = events.pop(0)
    assert isinstance(started, RunStarted)
    assert [record["kind"] for record in started.earlier] == ["eval", "step"]
    assert [seen(event) for event in events] == [
        ("step", 2), ("step", 3), "careful", "evaluating", ("eval", 3),
        "the run is not at work and has not taken all its steps; resume with: orpo resume " + str(folder.path),
    ]  # fmt: skip
    recorded = json.loads(lines[2])
    assert isinstance(events[0], StepDone)
    assert events[0].metrics == {name: recorded[name] for name in recorded if name not in ("kind", "step", "time")}


def seen(event: Event) -> object:
    match event:
        case StepDone(step=step):
            return "step", step
        case Evaluated(step=step):
            return "eval", step
        case Warned(text=text):
            return text
        case WorkProgress(what=what):
            return what
        case _:
            return event


def test_metrics_that_are_written_anew_are_read_from_their_beginning(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    growing = watching._Growing(path)
    assert growing.new_lines() == []
    path.write_bytes(b"1\n2\n3")
    assert growing.new_lines() == [b"1", b"2"]
    (tmp_path / "new").write_bytes(b"1\n4\n5\n6\n")
    (tmp_path / "new").replace(path)
    assert growing.new_lines() == [b"1", b"4", b"5", b"6"]


def test_watch_needs_a_run_and_no_torch(reference: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["watch", str(tmp_path)]) == 66
    assert "is not the folder of a run" in capfd.readouterr().err
    code = (
        "import sys; from orpo_cli.cli.main import main; "
        f"assert main(['watch', {str(reference)!r}]) == 0; assert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "score it: orpo evaluate" in done.stdout
