"""The live part of a sweep: a line for each job, in the width and height of the terminal."""

import io

import pytest
from rich.console import Console

from orpo_cli.reporting.metrics_file import EVALUATED
from orpo_cli.reporting.sweep_screen import SweepScreen
from orpo_cli.training.events import PartEvaluated, RunStarted, StepDone, Warned, WorkProgress


class Clock:
    now = 1_000_000.0

    def __call__(self) -> float:
        return self.now


def screen_of(names: list[str], width: int, height: int = 30) -> tuple[SweepScreen, Console, Clock]:
    console, clock = Console(file=io.StringIO(), width=width, height=height, force_terminal=True), Clock()
    screen = SweepScreen(console, clock)
    screen.plan(names)
    return screen, console, clock


def drawn(screen: SweepScreen, width: int, height: int = 30) -> list[str]:
    """Return the lines of the live part, as they stand on a terminal of this size."""
    console = Console(file=io.StringIO(), width=width, height=height, record=True)
    console.print(screen._table())  # what its thread draws
    return [line.rstrip() for line in console.export_text().splitlines()]


def metrics(value: float) -> dict[str, float]:
    return dict.fromkeys(EVALUATED, value)


def test_each_job_has_a_line_with_its_last_numbers() -> None:
    screen, _, clock = screen_of(["lambda=0", "lambda=0.1", "lambda=0.5", "lambda=1"], 110)
    screen.begin(0)
    screen.show(0, WorkProgress("loading torch and transformers"))
    screen.show(0, RunStarted({}, [], 40, 0, 16))
    clock.now += 10
    screen.show(0, StepDone(10, 40, 0, metrics(2.5) | {"pairs_per_second": 4.0}))
    clock.now += 20
    screen.show(0, StepDone(20, 40, 0, metrics(1.25) | {"pairs_per_second": 4.0}))
    screen.show(0, PartEvaluated(20, metrics(0.75), 8))
    screen.end(0, "done")
    screen.begin(1)
    screen.show(1, RunStarted({}, [], 40, 10, 16))
    screen.show(1, StepDone(20, 40, 0, metrics(3.5) | {"pairs_per_second": 4.0}))
    clock.now += 30
    screen.show(1, StepDone(30, 40, 0, metrics(2.0) | {"pairs_per_second": 4.0}))
    screen.begin(2)
    screen.show(2, WorkProgress("loading the model"))
    lines = drawn(screen, 110)
    assert lines[0].split() == ["job", "state", "step", "loss", "accuracy", "nll", "elapsed", "left"]
    assert lines[1].split() == ["0", "lambda=0", "done", "20", "of", "40", "1.250", "0.750", "0.750", "0:00:30"]
    assert lines[2].split() == [  # 10 steps took 30 s, and 10 are left
        "1", "lambda=0.1", "running", "30", "of", "40", "2.000", "0:00:30", "0:00:30",
    ]  # fmt: skip
    assert lines[3].split() == ["2", "lambda=0.5", "loading", "the", "model", "0:00:00"]
    assert lines[4].split() == ["3", "lambda=1", "waiting"]


@pytest.mark.parametrize("width", [60, 80, 100, 120, 160, 200])
def test_no_line_is_wider_than_the_terminal(width: int) -> None:
    names = [f"lambda={value} optimizer.lr=0.000{value} adapter.rank=16 data.path=some/long/place" for value in (1, 2)]
    screen, _, _ = screen_of(names, width)
    screen.begin(0)
    screen.show(0, RunStarted({}, [], 100000, 12345, 16))
    screen.show(0, StepDone(12346, 100000, 0, metrics(2.5) | {"pairs_per_second": 4.0}))
    screen.show(0, WorkProgress("answering prompts, which takes a while, and says so at length"))
    lines = drawn(screen, width)
    assert len(lines) == 3
    assert all(len(line) <= width for line in lines)
    assert "12346 of 100000" in lines[1]
    assert "lambda=1" in lines[1]


def test_of_many_jobs_those_around_the_one_at_work_are_shown() -> None:
    screen, _, _ = screen_of([f"seed={seed}" for seed in range(50)], 100, 16)
    for index in range(20):
        screen.begin(index)
        screen.end(index, "done")
    screen.begin(20)
    lines = drawn(screen, 100, 16)
    assert len(lines) <= 16
    assert any("seed=20" in line and "running" in line for line in lines)
    assert lines[-1] == "and 15 above, 25 below"


def test_a_search_says_how_many_trials_are_to_come() -> None:
    screen, _, _ = screen_of(["lambda=0.1"], 100)
    screen.begin(0)
    screen.plan(["lambda=0.1", "lambda=0.7"], 18)
    lines = drawn(screen, 100)
    assert lines[1].split()[:3] == ["0", "lambda=0.1", "running"]
    assert lines[2].split() == ["1", "lambda=0.7", "waiting"]
    assert lines[3] == "and 18 to come"


def test_a_warning_stays_and_names_the_first_job_that_has_it() -> None:
    screen, console, _ = screen_of(["lambda=0", "lambda=1"], 80)
    with screen:
        screen.show(0, Warned("memory ran out"))
        screen.show(1, Warned("memory ran out"))
        screen.show(1, Warned("careful"))
    assert isinstance(console.file, io.StringIO)
    said = console.file.getvalue()
    assert said.count("memory ran out") == 1
    assert "0: ! memory ran out" in said
    assert "1: ! careful" in said
