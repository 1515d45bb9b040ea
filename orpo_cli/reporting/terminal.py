"""Show a run to people: a panel, then a live part, then a summary; plain lines without a terminal, and in train.log."""

import contextlib
import io
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from types import TracebackType
from typing import IO

from rich.box import ROUNDED
from rich.console import Console, Group, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from orpo_cli.quoting import harmless
from orpo_cli.reporting.history import History
from orpo_cli.reporting.lines import lines, ordinal, speeds, step_line, warning
from orpo_cli.reporting.live import LivePart
from orpo_cli.reporting.metrics_file import is_recorded
from orpo_cli.reporting.screen import Work, figures, live_part, numbers
from orpo_cli.reporting.summary import summary
from orpo_cli.reporting.times import utc
from orpo_cli.training.events import (
    Evaluated,
    EvaluationProgress,
    Event,
    MemoryRanOut,
    PartEvaluated,
    RunClaimed,
    RunFinished,
    RunStarted,
    Sampled,
    StepDone,
    StepSkipped,
    Warned,
    WorkProgress,
)

_LOG_WIDTH = 120
_TALL = 7


class Terminal:
    """Shows a run on a console, and writes the same as plain lines to the run's log.

    Use as a context manager: the live part is taken down before a message of any kind is left on the screen.

    Args:
        log_every: the number of steps from one that has a line to the next.
        clock: the seconds since the epoch.
    """

    def __init__(self, console: Console, log_every: int = 1, clock: Callable[[], float] = time.time) -> None:
        self._console = console
        self._log_every = log_every
        self._clock = clock
        self._log: IO[str] | None = None
        self._log_path = Path()
        self._live: LivePart | None = None
        self._history = History(began=clock())
        self._work: Work | None = None
        self._speeds: list[str] = []
        self._has_stepped = False
        self._skipped = 0

    def __enter__(self) -> "Terminal":
        if self._console.is_terminal:
            self._live = LivePart(self._console, self._screen)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._take_down()
        if self._log is not None:
            with contextlib.suppress(OSError):
                self._log.close()

    def progress(self, what: str, done: int, total: int) -> None:
        """Show how far a piece of work beside the steps is; a `total` of 0 means that it is not known."""
        is_new = self._work is None or self._work.what != what
        began = self._clock() if self._work is None or is_new else self._work.began
        self._work = Work(what, done, total, began)
        if is_new and (total == 0 or done < total):
            self._line(f"{what} ...")

    def show(self, event: Event) -> None:
        """Show one event of a run."""
        match event:
            case RunClaimed(log=log):
                self._log, self._log_path = log.open("a", encoding="utf-8"), log
            case WorkProgress(what=what, done=done, total=total):
                self.progress(what, done, total)
            case EvaluationProgress(pairs=pairs, total_pairs=total):
                self.progress("evaluating", pairs, total)
            case RunStarted():
                self._start(event)
            case Warned(text=text):
                self.warn(text)
            case StepDone():
                self._show_step(event)
            case StepSkipped(step=step, report=report):
                self._skipped += 1
                self._history.step = step
                self._end_work()
                self.warn(f"skipped, the {ordinal(self._skipped)} such step: {report}")
            case Evaluated(step=step, metrics=metrics):
                self._history.add_evaluation(step, metrics)
            case PartEvaluated(step=step, metrics=metrics, pairs=pairs):
                self._history.add_part(step, metrics, pairs)
            case RunFinished():
                self._finish(event)
        if isinstance(event, Evaluated | PartEvaluated | Sampled | MemoryRanOut):
            self._end_work()
        for line in lines(event):
            self._line(line)
        if (warned := warning(event)) is not None:
            self.warn(warned)

    def warn(self, text: str) -> None:
        """Leave a line on the screen, above the live part, and in the log."""
        self._show(Text(f"! {harmless(text)}", style="yellow"))
        self._line(f"! {harmless(text)}")

    def leave_numbers(self) -> None:
        """Leave the last numbers and the figures on the screen, where the run has not finished and left its summary."""
        if self._live is not None:
            self._take_down()
            self._console.print(self._numbers())

    def _start(self, started: RunStarted) -> None:
        """Show the panel before training: one row a fact, then the notes; take over what the run has done before."""
        now = self._clock()
        self._history = History(
            step=started.steps_done,
            total_steps=started.total_steps,
            held_out=started.held_out,
            began=now if started.began is None else started.began,
        )
        for record in started.earlier:
            self._history.add_record(record)
        self._end_work()
        table = Table.grid(padding=(0, 2, 0, 0))
        for name, value in started.facts.items():
            table.add_row(Text(name, style="bold"), Text(value))
        warnings = [Text(f"! {note}", style="yellow") for note in started.notes]
        self._show(Panel(Group(table, *warnings), title="orpo train", box=ROUNDED, title_align="left"))
        for name, value in started.facts.items():
            self._line(f"{name}: {value}")
        for note in started.notes:
            self._line(f"note: {note}")

    def _show_step(self, event: StepDone) -> None:
        self._has_stepped = True
        self._end_work()
        now = self._clock()
        self._history.add_step(event.step, event.metrics, now)
        self._speeds = speeds(event)
        if is_recorded(event, self._log_every):
            self._line(step_line(event, self._history, now))

    def _end_work(self) -> None:
        """End what is done beside the steps; before the first step, it is what comes next."""
        self._work = None if self._has_stepped else Work(f"taking step {self._history.step + 1}", 0, 0, self._clock())

    def _finish(self, outcome: RunFinished) -> None:
        """Leave the summary on the screen, the figures above it."""
        self._take_down()
        if self._console.is_terminal:
            self._console.print(self._numbers())
        width = self._console.width if self._console.is_terminal else None
        _print(summary(outcome, self._history, width), self._console)
        plain = io.StringIO()
        _print(summary(outcome, self._history, None), Console(file=plain, width=_LOG_WIDTH))
        self._to_log(f"the run has finished\n{plain.getvalue()}")

    def _screen(self) -> RenderableType:
        width, height = self._console.size
        return live_part(self._history, self._work, self._speeds, width, height, self._clock())

    def _numbers(self) -> RenderableType:
        width = self._console.width
        parts: list[RenderableType] = [numbers(self._history, width), Text("")]
        if (drawn := figures(self._history, width, _TALL)) is not None:
            parts += [drawn, Text("")]
        return Group(*parts)

    def _take_down(self) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None

    def _show(self, renderable: RenderableType) -> None:
        if self._live is not None:
            self._live.print(renderable)
        elif self._console.is_terminal:
            self._console.print(renderable)

    def _line(self, text: str) -> None:
        """Write a plain line to the log, and to a console that is not a terminal."""
        if not self._console.is_terminal:
            self._console.print(text, soft_wrap=True, markup=False, highlight=False)
        self._to_log(text + "\n")

    def _to_log(self, text: str) -> None:
        """Write a text to the log, and before it when that was."""
        if self._log is None:
            return
        try:
            self._log.write(f"{utc(self._clock())} {text}")
            self._log.flush()
        except OSError as error:
            self._log = None
            self.warn(f"{self._log_path} cannot be written any more: {error.strerror}")


def _print(parts: Iterable[RenderableType], console: Console) -> None:
    for part in parts:
        console.print(part, soft_wrap=isinstance(part, Text))
