"""Show a list of runs as a table."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from orpo_cli.quoting import harmless
from orpo_cli.reporting.evaluation import number
from orpo_cli.statistics.leaderboard import shown

_STYLES = {"running": "bold green", "unfinished": "yellow"}
_WIDE = 110
"""Columns of a terminal from which on model and data are always shown."""

_TIMES, _NAMED = 80, 14
"""Columns from which on it is shown when a run was started, and how many more each of model and data takes."""


@dataclass(frozen=True)
class ListedRun:
    """What a list says of a run.

    Args:
        folder: below the directory that was looked through.
        started: seconds since 1970.
        state: `finished`, `running`, `stopped` or `unfinished`.
        step: the last one that is saved.
        total_steps: None where it is not known yet.
        model, data, lambda_: as config.yaml has them; None where it cannot be read.
        accuracy, nll: of the model on the held-out pairs; None where there are none.
    """

    folder: str
    started: float
    state: str
    step: int | None
    total_steps: int | None
    model: str | None
    data: str | None
    lambda_: float | None
    accuracy: float | None
    nll: float | None


def print_runs(runs: Sequence[ListedRun], console: Console) -> None:
    """Print a line for each run; where there is little room, only what tells runs apart."""
    is_wide = console.width >= _WIDE
    named = [name for name in ("model", "data") if is_wide or len({getattr(run, name) for run in runs}) > 1]
    table = Table(box=SIMPLE_HEAD, pad_edge=False, header_style="bold", padding=(0, 1, 0, 0))
    has_time = console.width >= _TIMES + _NAMED * len(named)
    for heading in ("started", "state") if has_time else ("state",):
        table.add_column(heading, no_wrap=True)
    table.add_column("run", overflow="fold", min_width=12)
    for heading in named:
        table.add_column(heading, no_wrap=True, overflow="ellipsis", max_width=None if is_wide else 12)
    for heading in ("lambda", "steps", "accuracy", "nll"):
        table.add_column(heading, justify="right", no_wrap=True)
    for run in runs:
        cells = list(_cells(run, named))
        table.add_row(*map(Text, cells if has_time else cells[1:]), style=_STYLES.get(run.state, ""))
    console.print(table)


def _cells(run: ListedRun, named: Sequence[str]) -> Iterator[str]:
    yield f"{datetime.fromtimestamp(run.started):%Y-%m-%d %H:%M}"
    yield run.state
    yield harmless(run.folder)
    yield from ("?" if (text := getattr(run, name)) is None else harmless(text) for name in named)
    yield "" if run.lambda_ is None else shown(run.lambda_)
    yield _steps(run)
    for value in (run.accuracy, run.nll):
        yield "" if value is None else number(value)


def _steps(run: ListedRun) -> str:
    if run.step is None:
        return "none saved"
    return str(run.step) if run.total_steps in (None, run.step) else f"{run.step} of {run.total_steps}"
