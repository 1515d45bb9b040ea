"""A search: its trials, what is resumed after an end, a trial that is stopped, and those that fail."""

import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from made_runs import made_trial
from test_sweeps import Sweep, how, sweeping
from tiny_runs import Arguments, Orpo, at, records

import orpo_cli
from orpo_cli.cli import sweep_jobs
from orpo_cli.cli.main import main
from orpo_cli.machine import processes
from orpo_cli.reporting.metrics_file import EVALUATED
from orpo_cli.runs.compare import compare
from orpo_cli.runs.folder import SWEEP, RunFolder
from orpo_cli.runs.listing import runs_below

SPACE = ["lambda=interval(0.05,1)", "optimizer.lr=tag(log,interval(1e-6,1e-4))", "optimizer=sgd,adamw"]
WAITS = (
    "import signal, sys, time; signal.signal(signal.SIGTERM, lambda *_: sys.exit(143)); "
    "signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGTERM]); time.sleep(60); sys.exit(9)"
)
"""What a job does, as Python, that saves and ends when it is told to."""


@dataclass
class Scripted:
    """Types searches whose jobs leave the results of a formula, or what else is said of a job by its number."""

    capfd: pytest.CaptureFixture[str]
    instead: dict[int, Callable[[Path], str]] = field(default_factory=dict)
    begun: list[int] = field(default_factory=list)

    def command(self, arguments: Sequence[str]) -> list[str]:
        given = {key: value.strip("'") for key, _, value in (word.partition("=") for word in arguments)}
        folder = Path(given["hydra.run.dir"])
        self.begun.append(int(folder.name))
        folder.mkdir(parents=True, exist_ok=True)
        code = self.instead.get(self.begun[-1], finish(given))(folder)
        return [sys.executable, "-S", "-c", code]

    def type(self, *argv: str) -> tuple[int, str]:
        self.begun = []
        return main(argv), self.capfd.readouterr().err


def finish(given: dict[str, str]) -> Callable[[Path], str]:
    """A trial that is the better, the smaller its lambda."""

    def leave(folder: Path) -> str:
        nll = 1 + float(given["lambda"]) ** 2
        record = {"kind": "eval", "step": 6, **dict.fromkeys(EVALUATED, 1.0), "accuracy": 1 / nll, "nll": nll}
        (folder / "metrics.jsonl").write_text(json.dumps(record) + "\n")
        (folder / "run.json").write_text(json.dumps({"finished": True, "end": {"model_step": 6}}))
        return "pass"

    return leave


CONFIG = orpo_cli.configure("model=tiny", "data=made.jsonl", "data.eval_fraction=0.25")


def good(path: Path) -> str:
    made_trial(path, CONFIG, 40, 1.0, range(10, 70, 10), finished=True)
    return "pass"


def poor(path: Path) -> str:
    made_trial(path, CONFIG, 16, 2.0, range(10, 40, 10))
    return WAITS


def exits(code: int) -> Callable[[Path], str]:
    return lambda _: f"import sys; sys.exit({code})"


def interrupted(code: int) -> Callable[[Path], str]:
    """As where a signal comes to the sweep, which passes it on."""
    return lambda _: f"import os, sys; os.kill(os.getppid(), {code - 128}); sys.exit({code})"


@pytest.fixture
def scripted(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Scripted:
    jobs = Scripted(capfd)
    monkeypatch.setattr(processes, "command", jobs.command)
    monkeypatch.setattr(sweep_jobs, "LOOK_SECONDS", 0.05)
    monkeypatch.setenv("COLUMNS", "300")
    return jobs


def searching(argv: list[str], trials: int, *overrides: str) -> list[str]:
    return sweeping(argv, *SPACE, f"sweep.trials={trials}", *overrides)


def trials(folder: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads((folder / SWEEP).read_text(encoding="utf-8"))["trials"]
    return found


@pytest.mark.slow
def test_a_search_that_was_ended_asks_for_the_same_trials(
    scripted: Scripted, arguments: Arguments, tmp_path: Path
) -> None:
    """Four trials in one go; three, the second of which is interrupted; and then one more than at first."""
    code, said = scripted.type(*searching(arguments(tmp_path / "once"), 4))
    assert (code, how(said)) == (0, ["done"] * 4)
    whole = trials(tmp_path / "once")
    assert [(trial["job"], trial["exit_code"]) for trial in whole] == [(str(number), 0) for number in range(4)]
    folder, scripted.instead = tmp_path / "twice", {1: interrupted(143)}
    code, said = scripted.type(*searching(arguments(folder), 3))
    assert (code, scripted.begun) == (143, [0, 1])
    assert f"resume with: orpo resume {folder}" in said
    assert trials(folder) == [whole[0], whole[1] | {"exit_code": None}]
    scripted.instead = {}
    code, said = scripted.type("resume", str(folder), "sweep.trials=4")
    assert (code, trials(folder), how(said)) == (0, whole, ["done"] * 4)
    assert "resume with" not in said


@pytest.mark.slow
def test_typed_again_it_goes_on_too(scripted: Scripted, arguments: Arguments, tmp_path: Path) -> None:
    """As a job that is started again does it, with `resume=auto`; without that, the folder is taken."""
    folder = tmp_path / "search"
    scripted.instead = {1: interrupted(130)}
    assert scripted.type(*searching(arguments(folder), 3))[0] == 130
    before, scripted.instead = trials(folder), {}
    code, said = scripted.type(*searching(arguments(folder), 3))
    assert (code, scripted.begun) == (73, [])
    assert "holds a sweep; choose another output_dir, or resume=auto" in said
    assert scripted.type(*searching(arguments(folder), 3), "resume=auto")[0] == 0
    assert [trial["values"] for trial in trials(folder)][:2] == [trial["values"] for trial in before]
    assert len(trials(folder)) == 3


@pytest.mark.slow
def test_trials_that_fail_are_counted_and_those_that_would_fail_again_are_left(
    scripted: Scripted, arguments: Arguments, tmp_path: Path
) -> None:
    folder = tmp_path / "search"
    scripted.instead = {0: exits(71), 1: exits(74)}
    code, said = scripted.type(*searching(arguments(folder), 2))
    assert code == 1
    assert how(said) == ["out of memory (exit 71)", "write failed (exit 74)"]
    assert f"resume with: orpo resume {folder}" in said
    scripted.instead = {}
    code, said = scripted.type("resume", str(folder))
    assert (code, scripted.begun) == (1, [1])
    assert how(said) == ["out of memory (exit 71)", "done"]
    assert "resume with" not in said


@pytest.mark.slow
def test_a_dominated_trial_is_stopped_and_named(scripted: Scripted, arguments: Arguments, tmp_path: Path) -> None:
    """The second of three is behind the first at each step; it is not resumed, and told as such everywhere."""
    folder = tmp_path / "search"

    scripted.instead = {0: good, 1: poor}
    code, said = scripted.type(*searching(arguments(folder), 3))
    stopped = "stopped at step 30: job 0 is better in accuracy and nll"
    assert code == 0, said
    assert stopped in said
    assert "resume with" not in said
    assert trials(folder)[1]["exit_code"] is None
    assert RunFolder(folder / "1").stopped == stopped
    assert [run.state for run in compare([folder]).unranked if Path(run.folder).name == "1"] == [stopped]
    for job in "01":  # whose settings are not those of the trial
        (folder / job / "config.yaml").unlink()
    assert scripted.type("resume", str(folder))[0] == 0
    assert scripted.begun == [0, 2]


@pytest.mark.slow
def test_a_signal_beside_a_stop_is_what_counts(scripted: Scripted, arguments: Arguments, tmp_path: Path) -> None:
    passes_it_on = (
        "(signal.signal(signal.SIGTERM, signal.SIG_IGN), __import__('os').kill(__import__('os').getppid(), "
        "signal.SIGTERM), time.sleep(0.5), sys.exit(143))"
    )
    scripted.instead = {0: good, 1: lambda path: poor(path).replace("sys.exit(143)", passes_it_on)}
    code, said = scripted.type(*searching(arguments(tmp_path / "search"), 3))
    assert (code, scripted.begun) == (143, [0, 1])
    assert "resume with" in said
    assert RunFolder(tmp_path / "search" / "1").stopped is None


@pytest.mark.slow
def test_a_search_ends_where_nothing_is_left_to_try(scripted: Scripted, arguments: Arguments, tmp_path: Path) -> None:
    typed = sweeping(arguments(tmp_path / "search"), "lambda=0.1,0.2", "sweep.trials=9")
    code, said = scripted.type(*typed)
    assert (code, scripted.begun) == (0, [0, 1])
    assert "nothing is left to try: the search ends with 2 trials" in said


@pytest.mark.slow
def test_more_trials_of_a_sweep_that_is_no_search(scripted: Scripted, arguments: Arguments, tmp_path: Path) -> None:
    folder = tmp_path / "sweep"
    assert scripted.type(*sweeping(arguments(folder), "lambda=0.1,0.2"))[0] == 0
    code, said = scripted.type("resume", str(folder), "sweep.trials=4")
    assert code == 2
    assert "holds a sweep over all combinations, and no search" in said


@pytest.mark.slow
def test_a_search_of_real_runs_that_was_interrupted(
    orpo: Orpo,
    arguments: Arguments,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """The second of four is told to end at its second step. All numbers are those of the uninterrupted search."""
    sweep, folder = Sweep(orpo, capfd), tmp_path / "twice"
    monkeypatch.setattr(processes, "start_alone", sweep.job)
    assert sweep.type(*searching(arguments(tmp_path / "once"), 4)).code == 0
    done = sweep.type(*searching(arguments(folder), 4), hurt={1: at("orpo_cli.training.loop._take_step", 2, "SIGTERM")})
    assert (done.code, len(sweep.jobs)) == (143, 2)
    done = sweep.type("resume", str(folder))
    assert (done.code, len(sweep.jobs)) == (0, 4), done.output
    assert trials(folder) == trials(tmp_path / "once")
    for job in "0123":
        assert records(folder / job) == records(tmp_path / "once" / job)
    assert {run.state for run in runs_below(folder)} == {"finished"}
