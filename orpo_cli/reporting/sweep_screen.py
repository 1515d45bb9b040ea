"""What is on the screen while a sweep works: a line for each job."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from types import TracebackType

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from orpo_cli.quoting import harmless
from orpo_cli.reporting.evaluation import number
from orpo_cli.reporting.history import History
from orpo_cli.reporting.live import LivePart
from orpo_cli.reporting.times import duration
from orpo_cli.training.events import (
    Evaluated,
    Event,
    PartEvaluated,
    RunStarted,
    StepDone,
    StepSkipped,
    Warned,
    WorkProgress,
)

_WAITING, _QUEUED, _RUNNING = _NOT_ENDED = "waiting", "in the queue", "running"
_STYLES = {_WAITING: "dim", _QUEUED: "dim", _RUNNING: "bold"}
_NUMBERS = {"step": 15, "loss": 7, "accuracy": 8, "nll": 7, "elapsed": 8, "left": 8}
"""The columns behind a job's name and state, each with its width."""

_GIVEN_UP = ("nll", "loss", "left", "elapsed", "accuracy")
"""The columns that a narrow terminal does not have, the first one first."""

_NAME, _STATE, _LONGEST_STATE, _JOB, _GAP = 16, 16, 40, 3, 2
_OTHER_LINES = 6
"""The lines of the terminal that are left to headings, to what is left out, and above the table."""


@dataclass
class _Job:
    name: str
    state: str = _WAITING
    work: str = ""
    began: float | None = None
    ended: float | None = None
    history: History = field(default_factory=History)


class SweepScreen:
    """Shows the jobs of a sweep, a line each, where the console is a terminal.

    Use as a context manager.

    Args:
        clock: the seconds since the epoch.
    """

    def __init__(self, console: Console, clock: Callable[[], float] = time.time) -> None:
        self._console = console
        self._clock = clock
        self._jobs: list[_Job] = []
        self._to_come = 0
        self._warnings: set[str] = set()
        self._live: LivePart | None = None

    def __enter__(self) -> "SweepScreen":
        if self.is_live:
            self._live = LivePart(self._console, self._table)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()

    @property
    def is_live(self) -> bool:
        """Return whether the jobs are shown here, and not each by itself."""
        return self._console.is_terminal

    def plan(self, names: Sequence[str], to_come: int = 0) -> None:
        """Say which jobs there are.

        Args:
            names: what tells them apart, in their order; those that are known already come first.
            to_come: how many follow of which nothing is known yet.
        """
        for job, name in zip(self._jobs, names, strict=False):
            job.name = name
        self._jobs += [_Job(name) for name in names[len(self._jobs) :]]
        self._to_come = to_come

    def begin(self, index: int, state: str = _RUNNING) -> None:
        """Show that a job begins, or is in a queue until it says something."""
        job = self._jobs[index]
        job.state, job.began = state, self._clock()

    def end(self, index: int, outcome: str) -> None:
        """Show how a job ended."""
        job = self._jobs[index]
        job.state, job.work, job.ended = outcome, "", self._clock()

    def show(self, index: int, event: Event) -> None:
        """Show an event of a job; a warning stays on the screen, of the first job that has it."""
        job = self._jobs[index]
        job.state = _RUNNING
        match event:
            case RunStarted():
                job.work = ""
                job.history = History(event.steps_done, event.total_steps, event.held_out, self._clock())
                for record in event.earlier:
                    job.history.add_record(record)
            case WorkProgress(what=what):
                job.work = what
            case StepDone(step=step, metrics=metrics):
                job.work = ""
                job.history.add_step(step, metrics, self._clock())
            case StepSkipped(step=step):
                job.history.step = step
            case Evaluated(step=step, metrics=metrics):
                job.history.add_evaluation(step, metrics)
            case PartEvaluated(step=step, metrics=metrics, pairs=pairs):
                job.history.add_part(step, metrics, pairs)
            case Warned(text=text) if text not in self._warnings:
                self._warnings.add(text)
                self.say(f"{index}: ! {text}")

    def say(self, text: str) -> None:
        """Leave a line on the screen, above the table."""
        if self._live is not None:
            self._live.print(Text(harmless(text), style="yellow"))

    def _table(self) -> RenderableType:
        width, height = self._console.size
        columns = _fitting(width)
        table = Table(box=None, pad_edge=False, padding=(0, _GAP, 0, 0), header_style="bold underline")
        table.add_column("job", justify="right", no_wrap=True, width=_JOB)
        name, state = _widths(self._jobs, width - _needed(columns))
        table.add_column("", no_wrap=True, overflow="ellipsis", width=name)
        table.add_column("state", no_wrap=True, overflow="ellipsis", width=state)
        for column in columns:
            table.add_column(column, justify="right", no_wrap=True, width=_NUMBERS[column])
        first, last = _window([job.state for job in self._jobs], max(1, height - _OTHER_LINES))
        for index, job in enumerate(self._jobs[first:last], first):
            cells = _cells(job, self._clock())
            style = _STYLES.get(job.state, "")
            table.add_row(
                str(index), Text(job.name), Text(job.work or job.state), *map(cells.get, columns), style=style
            )
        others = ((first, "above"), (len(self._jobs) - last, "below"), (self._to_come, "to come"))
        left_out = [f"{count} {where}" for count, where in others if count]
        return Group(table, Text(f"and {', '.join(left_out)}", style="dim")) if left_out else table


def _fitting(width: int) -> list[str]:
    """Return the columns that there is room for."""
    columns = list(_NUMBERS)
    for column in _GIVEN_UP:
        if _needed(columns) + _NAME + _STATE > width:
            columns.remove(column)
    return columns


def _needed(columns: Sequence[str]) -> int:
    """Return the width of a line without a job's name and state."""
    return _JOB + 3 * _GAP + sum(_NUMBERS[name] + _GAP for name in columns)


def _widths(jobs: Sequence[_Job], room: int) -> tuple[int, int]:
    """Return the widths of name and state, where there is so much room for both."""
    name = min(max((len(job.name) for job in jobs), default=0), room - _STATE)
    return name, min(room - name, _LONGEST_STATE)


def _window(states: Sequence[str], lines: int) -> tuple[int, int]:
    """Return the first of the jobs that are shown and the one behind the last, where there is no room for all."""
    if len(states) <= lines:
        return 0, len(states)
    at_work = next((index for index, state in enumerate(states) if state in _NOT_ENDED), len(states))
    first = min(max(0, at_work - lines // 2), len(states) - lines)
    return first, first + lines


def _cells(job: _Job, now: float) -> dict[str, str]:
    """Return the numbers of a job by their columns."""
    history, step = job.history, job.history.training.last
    held_out = history.last_evaluation
    cells = {"step": f"{history.step} of {history.total_steps}" if history.total_steps else ""}
    if step is not None:
        cells["loss"] = number(step.metrics["loss"])
    if held_out is not None:
        cells |= {name: number(held_out.metrics[name]) for name in ("accuracy", "nll")}
    if job.began is not None:
        cells["elapsed"] = duration((job.ended or now) - job.began)
    if job.ended is None and (left := history.seconds_left(now)) is not None:
        cells["left"] = duration(left)
    return cells
