"""Nobody reads what a run says, or it cannot write it: the run goes on, says so once, and ends with its own code."""

import io
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
from rich.console import Console
from tiny_runs import Arguments, Orpo, Running, at, digests, fails, same_end

from orpo_cli.files.writing import write_json
from orpo_cli.reporting.terminal import Terminal
from orpo_cli.training.events import RunClaimed, RunFinished


@dataclass(frozen=True)
class Shell:
    """A command line around a run (`{run}`), and how the run ends."""

    id: str
    line: str
    code: int = 0
    finishes: bool = True


SHELL = [
    Shell("50: head", "{run} 2>&1 | head -1; exit ${{PIPESTATUS[0]}}"),
    Shell("50: both closed", "{run} >&- 2>&-"),
    Shell("50: stdout full", "{run} >/dev/full", code=74),
    Shell("50: terminal of ASCII", "LC_ALL=C PYTHONUTF8=0 PYTHONIOENCODING=ascii {run}"),
    Shell("50: error without a reader", "{run} lambda=-1 2>&-", code=2, finishes=False),
]


@pytest.mark.slow
@pytest.mark.parametrize("shell", [pytest.param(shell, id=shell.id) for shell in SHELL])
def test_nobody_reads(shell: Shell, arguments: Arguments, tmp_path: Path) -> None:
    run = " ".join([f"'{sys.executable}' -P -m orpo_cli", *arguments(tmp_path / "run", "trainer.max_steps=2")])
    done = subprocess.run(
        ["bash", "-c", shell.line.format(run=run)], capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    assert done.returncode == shell.code, done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    assert "Exception ignored" not in done.stdout + done.stderr
    assert (tmp_path / "run" / "model" / "model.safetensors").exists() == shell.finishes


def test_51_metrics_that_cannot_be_written_for_a_while(
    orpo: Orpo, arguments: Arguments, reference: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    done = orpo.run(*arguments(folder), injections=[fails("pathlib.Path.open", 3, "ENOSPC", of="metrics.jsonl")])
    assert done.code == 0, done.output
    assert done.output.count("No space left on device; its lines wait until it can be written") == 1
    assert same_end(folder, reference)


@pytest.fixture
def immutable() -> Iterator[Callable[[Path], None]]:
    """Makes a file unwritable, for root too, until the end of the test."""
    made: list[Path] = []

    def make(path: Path) -> None:
        if shutil.which("chattr") is None or subprocess.run(["chattr", "+i", path], check=False).returncode:
            pytest.skip("needs chattr and the privilege to use it")
        made.append(path)

    yield make
    for path in made:
        subprocess.run(["chattr", "-i", path], check=False)


def stopped_after_a_step(orpo: Orpo, argv: list[str]) -> Running:
    """A run that waits for SIGCONT in its second step."""
    running = orpo.start(*argv, injections=[at("orpo_cli.training.loop._update", 2, "SIGSTOP")])
    running.wait_for(lambda: psutil.Process(running.pid).status() == psutil.STATUS_STOPPED)
    return running


def test_51_metrics_that_are_never_writable_again_cost_no_weight(
    orpo: Orpo, arguments: Arguments, reference: Path, tmp_path: Path,
    immutable: Callable[[Path], None],
) -> None:  # fmt: skip
    folder = tmp_path / "run"
    running = stopped_after_a_step(orpo, arguments(folder))
    try:
        immutable(folder / "metrics.jsonl")
    finally:
        running.signal(signal.SIGCONT)
        done = running.wait()
    assert done.code == 74
    assert "Traceback" not in done.output
    assert done.output.count("its lines wait until it can be written") == 1
    assert "metrics.jsonl: its last 7 lines could not be written" in done.output
    assert digests(folder / "model") == digests(reference / "model")


def test_51_run_folder_that_vanishes(orpo: Orpo, arguments: Arguments, reference: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    running = stopped_after_a_step(orpo, arguments(folder))
    shutil.rmtree(folder)
    running.signal(signal.SIGCONT)
    done = running.wait()
    assert done.code == 0, done.output
    assert done.output.count("No such file or directory; its lines wait until it can be written") == 1
    ours, theirs = digests(folder / "model"), digests(reference / "model")
    assert ours.pop("README.md") != theirs.pop("README.md")  # what the base gave to the held-out pairs has vanished too
    assert ours == theirs


def test_51_log_that_cannot_be_written_is_said_once() -> None:
    said = io.StringIO()
    with Terminal(Console(file=said, width=200)) as screen:
        screen.show(RunClaimed(Path("/dev/full")))
        for number in range(3):
            screen.warn(f"line {number}")
    assert said.getvalue().count("/dev/full cannot be written any more: No space left on device") == 1
    assert "line 2" in said.getvalue()


def test_5_a_file_that_cannot_be_written_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error of a flush names none."""

    def full(_handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space") as raised:
        write_json(tmp_path / "run.json", {})
    assert raised.value.filename == str(tmp_path / "run.json")


def test_51_log_that_cannot_be_written_when_all_is_done() -> None:
    said = io.StringIO()
    with Terminal(Console(file=said, width=200)) as screen:
        screen.show(RunClaimed(Path("/dev/full")))
        screen.show(RunFinished(None, None, None, None, Path("run/model"), chat=False, plain=True))
    assert "/dev/full cannot be written any more: No space left on device" in said.getvalue()
    assert "model: run/model" in said.getvalue()


@dataclass(frozen=True)
class Auto:
    """What is in output_dir, and what `resume=auto` makes of it."""

    id: str
    prepares: Callable[[Path, Path], object]
    overrides: tuple[str, ...]
    code: int
    said: str
    is_slow: bool = False


def nothing(_folder: Path, _reference: Path) -> None:
    """Nothing is there."""


def finished(folder: Path, reference: Path) -> None:
    shutil.copytree(reference, folder)


def something_else(folder: Path, _: Path) -> None:
    folder.mkdir()
    (folder / "thesis.tex").write_text("my own", encoding="utf-8")


AUTOS = [
    Auto("no folder", nothing, (), 0, "checkpoint of step 6"),
    Auto("empty folder", lambda folder, _: folder.mkdir(), (), 0, "checkpoint of step 6", is_slow=True),
    Auto("folder of something else", something_else, (), 73, "is not empty (it holds thesis.tex)"),
    Auto("finished", finished, (), 0, "finished already"),
    Auto("finished with other settings", finished, ("lambda=0.7",), 2, "lambda=0.7 (was 0.1): cannot change on resume"),
    Auto("finished, another log interval", finished, ("trainer.log_every=2",), 0, "finished already"),
]


@pytest.mark.parametrize(
    "case",
    [pytest.param(case, id=f"17: {case.id}", marks=pytest.mark.slow if case.is_slow else ()) for case in AUTOS],
)
def test_resume_auto(case: Auto, orpo: Orpo, arguments: Arguments, reference: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    case.prepares(folder, reference)
    before = digests(folder) if folder.exists() else {}
    done = orpo.run(*arguments(folder, "resume=auto", *case.overrides))
    assert done.code == case.code, done.output
    assert case.said in done.output
    if before:
        assert digests(folder) == before
    else:
        assert same_end(folder, reference)


def test_resume_auto_needs_a_folder(orpo: Orpo) -> None:
    done = orpo.run("train", "model=tiny", "resume=auto")
    assert done.code == 2
    assert "give it: output_dir=FOLDER" in done.output
