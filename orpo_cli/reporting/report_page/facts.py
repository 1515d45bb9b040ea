"""Everything that a page says; web/src/run.js and web/src/comparison.js read these names."""

from dataclasses import dataclass, field
from typing import Any

from orpo_cli.config.defaults import Difference
from orpo_cli.reporting.report_page.comparison_figures import SettingFigure, TradeOff
from orpo_cli.reporting.report_page.figures import Figure
from orpo_cli.reporting.report_page.margins import MarginFigure
from orpo_cli.reporting.report_page.result import Numbers, Sample, Tile


@dataclass(frozen=True)
class RunFacts:
    """The page of a run.

    Args:
        state: whether the run is finished, in words.
        reading: what is to be said of the run: `text`, and whether it `warns`.
        held_out, training: the figures.
        thinning: how long curves were thinned; None where none was.
        samples_note: of which prompts the answers are.
        what: facts of the run by their names.
        ledger: part, class and number of pairs.
        commands: what to type next, by what it does.
    """

    title: str
    folder: str
    state: str
    tiles: list[Tile]
    reading: list[dict[str, Any]]
    numbers: Numbers | None
    held_out: list[Figure | MarginFigure]
    training: list[Figure]
    thinning: str | None
    samples: list[Sample]
    samples_note: str
    formula: str
    what: list[tuple[str, str]]
    differences: list[Difference]
    ledger: list[tuple[str, str, int]]
    notes: list[str]
    commands: list[tuple[str, str]]
    kind: str = field(default="run", init=False)


@dataclass(frozen=True)
class Places:
    """The table of recipes.

    Args:
        rows: a cell is a text, or a list of lines of which the first is the largest.
        first: the number of rows at the head of the table that are on rank 1, where there are others.
        note: what its signs mean.
    """

    head: list[str]
    rows: list[list[str | list[str]]]
    first: int
    note: str


@dataclass(frozen=True)
class ComparisonFacts:
    """The page of several runs side by side.

    Args:
        state: the models, the data and the held-out pairs, in words.
        folder: the folder that all runs are in.
        notes: what a reader should know.
        settings: the figures of what each setting did.
        curves: the figures of the held-out pairs over the steps.
        unranked: folder, name and state of the runs that are not ranked.
        commands: where the first model is, and what to type next, by what it does.
    """

    title: str
    folder: str
    state: str
    verdict: str
    notes: list[str]
    places: Places | None
    trade_off: TradeOff | None
    settings: list[SettingFigure]
    curves: list[Figure]
    unranked: list[tuple[str, str, str]]
    commands: list[tuple[str, str]]
    kind: str = field(default="comparison", init=False)
