"""Show a run to people: a panel, then a bar and a live table, then a comparison; plain lines without a terminal."""

import contextlib
import io
import json
import shlex
import time
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import IO

from rich.box import ROUNDED, SIMPLE_HEAD
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

from orpo_cli.quoting import harmless
from orpo_cli.reporting.evaluation import numbers_table
from orpo_cli.reporting.metrics_file import EVALUATED
from orpo_cli.statistics.reading import Sentence
from orpo_cli.training.events import (
    CheckpointFailed,
    CheckpointSaved,
    Evaluated,
    EvaluationProgress,
    Event,
    LossSpiked,
    MemoryRanOut,
    PartEvaluated,
    RunClaimed,
    RunFinished,
    RunStarted,
    Sampled,
    StepDone,
    StepSkipped,
    StoppedEarly,
    TimeIsUp,
    Warned,
    WorkProgress,
)

SHOWN = ("loss", "nll", "or_loss", "log_odds_ratio", "accuracy", "margin", "grad_norm", "lr")
SPARK_WIDTH = 30
ANSWERS_SHOWN = 3
SUMMARIZED = ("accuracy", "balanced_accuracy", "longer_wins", "nll", "margin", "logps_chosen", "logps_rejected")
"""What the end of a run shows of its evaluation; run.json and `orpo evaluate` have all."""
_BLOCKS = "▁▂▃▄▅▆▇█"


def sparkline(values: Sequence[float]) -> str:
    """Return values as a row of blocks, from the lowest to the highest; a constant row is at the bottom."""
    finite = [value for value in values if value - value == 0]
    if not finite:
        return ""
    low, high = min(finite), max(finite)
    scale = (len(_BLOCKS) - 1) / (high - low) if high > low else 0.0
    return "".join(_BLOCKS[round((value - low) * scale)] if value - value == 0 else "!" for value in values)


def number(value: float) -> str:
    """Return a number with four significant digits, without a needless exponent."""
    if value == 0:
        return "0"
    return f"{value:.3e}" if abs(value) < 1e-3 or abs(value) >= 1e5 else f"{value:.4g}"


class Terminal:
    """Shows a run on a console, and writes the same as plain lines to the run's log.

    Use as a context manager: the live part is taken down before a message of any kind is left on the screen.
    """

    def __init__(self, console: Console, log_every: int = 1) -> None:
        self._console = console
        self._log: IO[str] | None = None
        self._log_path = Path()
        self._log_every = log_every
        self._live: Live | None = None
        self._preparing = Progress(
            TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[count]}"), TimeElapsedColumn(),
            TextColumn("left"), TimeRemainingColumn(), console=console,
        )  # fmt: skip
        self._training = Progress(
            TextColumn("{task.description}"), BarColumn(bar_width=None), MofNCompleteColumn(), TimeElapsedColumn(),
            TextColumn("left"), TimeRemainingColumn(), TextColumn("{task.fields[speed]}"),
            console=console, expand=True,
        )  # fmt: skip
        self._current: tuple[str, TaskID] | None = None
        self._steps: TaskID | None = None
        self._history: dict[str, deque[float]] = {name: deque(maxlen=SPARK_WIDTH) for name in SHOWN}
        self._last: StepDone | None = None
        self._skipped = 0
        self._first_step_at = time.monotonic()
        self._first_step = 0

    def __enter__(self) -> "Terminal":
        if self._console.is_terminal:
            self._live = Live(get_renderable=self._screen, console=self._console, refresh_per_second=4, transient=True)
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()
        if self._log is not None:
            with contextlib.suppress(OSError):
                self._log.close()

    def progress(self, what: str, done: int, total: int) -> None:
        """Show how far a piece of work beside the steps is; a `total` of 0 means that it is not known."""
        if self._current is None or self._current[0] != what:
            self._end_current()
            self._current = what, self._preparing.add_task(what, total=total or None, count="")
            if total == 0 or done < total:
                self._line(f"{what} ...")
        count = f"{done:,}/{total:,}" if total else f"{done:,}" if done else ""
        self._preparing.update(self._current[1], completed=done, total=total or None, count=count)

    def _start(self, started: RunStarted) -> None:
        """Show the panel before training: one row a fact, then the notes; and the bar of the steps."""
        self._end_current()
        self._steps = self._training.add_task(
            "training", total=started.total_steps, completed=started.steps_done, speed="", start=False
        )
        table = Table.grid(padding=(0, 2))
        for name, value in started.facts.items():
            table.add_row(Text(name, style="bold"), Text(value))
        warnings = [Text(f"! {note}", style="yellow") for note in started.notes]
        self._show(Panel(Group(table, *warnings), title="orpo train", box=ROUNDED, title_align="left"))
        for name, value in started.facts.items():
            self._line(f"{name}: {value}")
        for note in started.notes:
            self._line(f"note: {note}")

    def show(self, event: Event) -> None:
        """Show one event of a run."""
        match event:
            case RunClaimed(log=log):
                self._log, self._log_path = log.open("a", encoding="utf-8"), log
            case WorkProgress(what=what, done=done, total=total):
                self.progress(what, done, total)
            case RunStarted():
                self._start(event)
            case Warned(text=text):
                self.warn(text)
            case StepDone():
                self._show_step(event)
            case EvaluationProgress(pairs=pairs, total_pairs=total):
                self.progress("evaluating", pairs, total)
            case Evaluated(step=step, metrics=metrics):
                self._end_current()
                values = "  ".join(f"{name} {number(metrics[name])}" for name in EVALUATED)
                self._line(f"evaluated at step {step}: {values}")
            case PartEvaluated(step=step, metrics=metrics, pairs=pairs):
                self._end_current()
                values = "  ".join(f"{name} {number(metrics[name])}" for name in EVALUATED)
                self._line(f"evaluated at step {step}, {pairs} of the held-out pairs: {values}")
            case Sampled(step=step, answers=answers):
                self._end_current()
                for item in answers:
                    self._line(f"sample at step {step}: {item.prompt!r} -> {item.answer!r}")
            case MemoryRanOut(step=step, max_tokens=max_tokens):
                self._end_current()
                self._line(
                    f"out of memory at step {step}: done again, the same, in micro-batches of {max_tokens} tokens"
                )
            case CheckpointSaved(step=step, path=path):
                self._line(f"checkpoint of step {step}: {path}")
            case StepSkipped(step=step, report=report):
                self._skipped += 1
                self._training.update(self._bar_of_steps(), completed=step)
                self.warn(f"skipped, the {_ordinal(self._skipped)} such step: {report}")
            case LossSpiked(step=step, loss=loss, deviations=deviations):
                self.warn(
                    f"loss {number(loss)} at step {step} is {deviations:.1f} standard deviations above the steps before"
                )
            case CheckpointFailed(step=step, reason=reason):
                self.warn(f"no checkpoint of step {step}, the run continues: {reason}")
            case TimeIsUp(step=step, total_steps=total, resume_command=command):
                self.warn(
                    f"trainer.max_time: saved after step {step} of {total}{_overrun(event)}; resume with: {command}"
                )
            case StoppedEarly(step=step, total_steps=total, metric=metric, evaluations=count):
                self.warn(
                    f"trainer.early_stop: ends after step {step} of {total}, since {metric} has not become better in "
                    f"{count} evaluation{'s' * (count > 1)}"
                )
            case RunFinished():
                self._finish(event)

    def _finish(self, outcome: RunFinished) -> None:
        """Leave the comparison after training on the screen."""
        if self._live is not None:
            self._live.stop()
            self._live = None
        parts: list[RenderableType] = []
        if outcome.evaluation is not None:
            parts.append(numbers_table(outcome.evaluation, SUMMARIZED))
        if outcome.before and outcome.after:
            parts.append(_answers(outcome.before, outcome.after))
        parts.append(_reading(outcome.reading))
        best = "" if outcome.best_step is None else f" (the best, after step {outcome.best_step})"
        parts.append(Text(f"model: {outcome.model}{best}", style="bold"))
        parts.append(Text(usage(outcome.model, outcome.chat, outcome.plain)))
        for part in parts:
            self._console.print(part, soft_wrap=not isinstance(part, Table | Panel))
            plain = io.StringIO()
            Console(file=plain, width=120).print(part)
            self._to_log(plain.getvalue())

    def warn(self, text: str) -> None:
        """Leave a line on the screen, above the live part, and in the log."""
        self._show(Text(f"! {harmless(text)}", style="yellow"))
        self._line(f"! {harmless(text)}")

    def _screen(self) -> RenderableType:
        parts: list[RenderableType] = [] if self._last is None else [self._metrics_table()]
        parts += [self._training] if self._steps is not None else []
        return Group(*parts, self._preparing)

    def _metrics_table(self) -> Table:
        table = Table(box=SIMPLE_HEAD, pad_edge=False)
        table.add_column("metric")
        table.add_column("now", justify="right", min_width=10)
        table.add_column(f"last {SPARK_WIDTH} steps", min_width=SPARK_WIDTH)
        for name, values in self._history.items():
            table.add_row(name, number(values[-1]) if values else "", Text(sparkline(list(values)), style="cyan"))
        return table

    def _show_step(self, event: StepDone) -> None:
        if self._last is None:
            self._first_step_at, self._first_step = time.monotonic(), event.step
            self._training.start_task(self._bar_of_steps())
        self._last = event
        for name, values in self._history.items():
            values.append(event.metrics[name])
        metrics = event.metrics
        speed = f"{metrics['pairs_per_second']:.2f} pairs/s  {metrics['tokens_per_second']:.0f} tokens/s"
        self._training.update(self._bar_of_steps(), completed=event.step, speed=speed)
        if event.step % self._log_every == 0 or event.step in (1, event.total_steps):
            values_now = "  ".join(f"{name} {number(metrics[name])}" for name in SHOWN)
            self._line(f"step {event.step}/{event.total_steps}  {values_now}  {speed}  {self._time_left(event)} left")

    def _time_left(self, event: StepDone) -> str:
        done = event.step - self._first_step
        if done == 0:
            return "?"
        seconds = (time.monotonic() - self._first_step_at) / done * (event.total_steps - event.step)
        return f"{int(seconds) // 3600}:{int(seconds) // 60 % 60:02d}:{int(seconds) % 60:02d}"

    def _bar_of_steps(self) -> TaskID:
        assert self._steps is not None
        return self._steps

    def _end_current(self) -> None:
        if self._current is not None:
            self._preparing.remove_task(self._current[1])
            self._current = None

    def _show(self, renderable: RenderableType) -> None:
        if self._console.is_terminal:
            self._console.print(renderable)

    def _line(self, text: str) -> None:
        """Write a plain line to the log, and to a console that is not a terminal."""
        if not self._console.is_terminal:
            self._console.print(text, soft_wrap=True, markup=False, highlight=False)
        self._to_log(text + "\n")

    def _to_log(self, text: str) -> None:
        if self._log is None:
            return
        try:
            self._log.write(text)
            self._log.flush()
        except OSError as error:
            self._log = None
            self.warn(f"{self._log_path} cannot be written any more: {error.strerror}")


def _ordinal(count: int) -> str:
    ending = "th" if 10 <= count % 100 <= 20 else {1: "st", 2: "nd", 3: "rd"}.get(count % 10, "th")
    return f"{count}{ending}"


def _overrun(event: TimeIsUp) -> str:
    """Return by how much a run exceeded its time and why; an empty text if it did not."""
    if event.over == 0:
        return ""
    start = f", {_seconds(event.over_at_start)} of them before the first step" if event.over_at_start > 0 else ""
    return f"; {_seconds(event.over)} over{start}, the save took {_seconds(event.save)}"


def _seconds(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds >= 10 else f"{max(seconds, 0.1):.1f} s"


def usage(model: Path, chat: bool, plain: bool) -> str:
    """Return a command that makes the trained model answer; of an adapter whose base orpo finds, with its help."""
    question = '[{"role": "user", "content": "Why is the sky blue?"}]' if chat else '"Why is the sky blue?"'
    answer = '[-1]["content"]' if chat else ""
    path = json.dumps(str(model if plain else model.parent), ensure_ascii=False)
    opened = "" if plain else f"from orpo_cli import open_run; run = open_run({path}); "
    parts = path if plain else "run.model(), tokenizer=run.tokenizer()"
    call = f'pipeline("text-generation", {parts})({question})[0]["generated_text"]{answer}'
    return f"use it: python -c {shlex.quote(f'from transformers import pipeline; {opened}print({call})')}"


def _reading(sentences: Sequence[Sentence]) -> Text:
    """Return the reading, a line for each sentence; what may be wrong stands out."""
    styles = {True: ("!", "yellow"), False: ("-", "")}
    lines = (Text(f"{styles[line.warns][0]} {line.text}", style=styles[line.warns][1]) for line in sentences)
    return Text("\n").join(lines)


def _answers(before: Sampled, after: Sampled) -> Panel:
    table = Table(box=None, pad_edge=False, expand=True, show_header=True, padding=(0, 2, 1, 0))
    for heading, style in (("prompt", "bold"), ("before", "red"), ("after", "green")):
        table.add_column(heading, header_style=style, ratio=2 if heading == "prompt" else 3, overflow="fold")
    for then, now in list(zip(before.answers, after.answers, strict=False))[:ANSWERS_SHOWN]:
        table.add_row(*(Text(harmless(text)) for text in (then.prompt, then.answer, now.answer)))
    return Panel(table, title="answers to held-out prompts", title_align="left", box=ROUNDED)
