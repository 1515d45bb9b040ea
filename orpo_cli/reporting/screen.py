"""What is on the screen while a run works: its numbers, two figures, how far it is, and what it does just now."""

from collections.abc import Sequence
from dataclasses import dataclass

from rich.console import Group, RenderableType
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from orpo_cli.reporting.curves import Curve, four_digits, plot
from orpo_cli.reporting.history import CHOSEN, LOSS, REJECTED, History, Measured
from orpo_cli.reporting.times import duration
from orpo_cli.training.events import BALANCE

_COLUMNS = (
    "loss", "nll", "or_loss", BALANCE, "log_odds_ratio", "accuracy", "margin", CHOSEN, REJECTED, "grad_norm", "lr",
)  # fmt: skip
_FIRST = (
    "loss",
    "accuracy",
    "nll",
    "margin",
    "or_loss",
    BALANCE,
    "log_odds_ratio",
    CHOSEN,
    REJECTED,
    "lr",
    "grad_norm",
)
"""The same columns, in the order in which they are given up where the screen is narrow, the last one first."""

_GAP, _DIGITS = 2, 8
_WIDE, _TALLEST = 80, 7
_OTHER_LINES = 13
"""The lines that figures leave to the rest of the live part and to a few lines above it."""


@dataclass(frozen=True)
class Work:
    """A piece of work beside the steps: what it is, how far it has come, and since when it goes on.

    Args:
        total: 0 where it is not known.
    """

    what: str
    done: int
    total: int
    began: float


def live_part(
    history: History, work: Work | None, speeds: Sequence[str], width: int, height: int, now: float
) -> RenderableType:
    """Return all of the live part.

    Args:
        speeds: those of the last step, in words.
        width, height: those of the terminal, in characters.
    """
    parts: list[RenderableType] = []
    if history.training.last or history.last_evaluation:
        parts += [numbers(history, width), Text("")]
    if (tall := min(_TALLEST, height - _OTHER_LINES)) >= 3 and (drawn := figures(history, width, tall)) is not None:
        parts += [drawn, Text("")]
    if history.total_steps:
        parts += [_steps_bar(history), _clock(history, speeds, width, now)]
    parts += [] if work is None else [_work_line(work, width, now)]
    return Group(*parts)


def numbers(history: History, width: int) -> Table:
    """Return the last numbers of training, and below them those of the held-out pairs."""
    rows = [("training", history.training.last)]
    if history.held_out:
        rows.append(("held out", history.last_evaluation))
    names = [_row_name(*row, with_step=width >= _WIDE) for row in rows]
    has_experts = any(measured is not None and BALANCE in measured.metrics for _, measured in rows)
    columns = _fitting(width - max(map(len, names)), has_experts)
    table = Table(box=None, pad_edge=False, padding=(0, _GAP, 0, 0))
    table.add_column("", no_wrap=True)
    for column in columns:
        table.add_column(column, justify="right", min_width=max(_DIGITS, len(column)), no_wrap=True)
    for name, (_, measured) in zip(names, rows, strict=True):
        values = {} if measured is None else measured.metrics
        table.add_row(name, *(four_digits(values[column]) if column in values else "" for column in columns))
    return table


def _row_name(name: str, measured: Measured | None, with_step: bool) -> str:
    if measured is None:
        return name
    pairs = f", {measured.pairs} pairs" if measured.pairs else ""
    return f"{name}{pairs}, step {measured.step}" if with_step else f"{name}{pairs}"


def _fitting(width: int, has_experts: bool) -> list[str]:
    """Return as many columns as fit, in their order."""
    chosen = []
    for column in _FIRST if has_experts else [column for column in _FIRST if column != BALANCE]:
        needed = _GAP + max(_DIGITS, len(column))
        if needed <= width:
            chosen.append(column)
            width -= needed
    return [column for column in _COLUMNS if column in chosen]


def figures(history: History, width: int, height: int) -> Table | None:
    """Return the curve of the loss beside those of chosen and rejected; None before there is anything to draw.

    Points may be added meanwhile in another thread, so it draws copies.
    """
    training, held_out = history.training.traces, history.held_out_curves
    loss = [
        Curve("training", [*training[LOSS].points], "cyan"),
        Curve("held out", [*held_out[LOSS].points], "yellow", is_dashed=True),
    ]
    of_pairs, traces = ("held-out logps", held_out) if held_out[CHOSEN].points else ("logps", training)
    logps = [
        Curve("chosen", [*traces[CHOSEN].points], "green"),
        Curve("rejected", [*traces[REJECTED].points], "red", is_dashed=True),
    ]
    one = (width - _GAP) // 2
    drawn = [plot(title, curves, one, height) for title, curves in (("loss", loss), (of_pairs, logps))]
    if not any(drawn):
        return None
    table = Table.grid(padding=(0, _GAP, 0, 0))
    for _ in drawn:
        table.add_column(width=one)
    table.add_row(*(Group(*lines) for lines in drawn))
    return table


def _steps_bar(history: History) -> Table:
    share = history.step / history.total_steps
    bar = ProgressBar(total=history.total_steps, completed=history.step)
    table = Table.grid(padding=(0, _GAP, 0, 0), expand=True)
    for ratio in (None, 1, None):
        table.add_column(ratio=ratio, no_wrap=True)
    table.add_row(f"step {history.step} of {history.total_steps}", bar, f"{share:.0%}")
    return table


def _clock(history: History, speeds: Sequence[str], width: int, now: float) -> Text:
    """Return how long the run has worked and will yet, and as many of its speeds as fit."""
    left = history.seconds_left(now)
    line = f"{duration(now - history.began)} elapsed"
    for part in ([] if left is None else [f"{duration(left)} left"]) + [*speeds]:
        longer = f"{line}   {part}"
        line = longer if len(longer) <= width else line
    return Text(line)


def _work_line(work: Work, width: int, now: float) -> Table:
    """Return what is done just now and since when; where its end is known, how far it is and how long it takes."""
    elapsed, has_end = now - work.began, work.total > 0
    left = f", {duration(elapsed / work.done * (work.total - work.done))} left" if has_end and work.done else ""
    count = f"{work.done:,}/{work.total:,}" if has_end else f"{work.done:,}" if work.done else ""
    bar: list[RenderableType] = (
        [ProgressBar(total=work.total, completed=work.done, width=width // 8)] if has_end and width >= _WIDE else []
    )
    cells: list[RenderableType] = [*bar, *filter(None, [count]), f"{duration(elapsed)} elapsed{left}"]
    table = Table.grid(padding=(0, _GAP, 0, 0))
    table.add_column(no_wrap=True, overflow="ellipsis")
    for cell in cells:
        table.add_column(no_wrap=True, min_width=len(cell) if isinstance(cell, str) else None)
    table.add_row(Text(work.what), *cells)
    return table
