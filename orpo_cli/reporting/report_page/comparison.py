"""The page of several runs side by side: its facts, from the leaderboard and the curves of the runs."""

from collections.abc import Iterator, Mapping

from orpo_cli.reporting.evaluation import interval, number, p_value
from orpo_cli.reporting.leaderboard import (
    ALL_RUNS,
    FRONT,
    HEADINGS,
    next_commands,
    rank_of,
    said,
    short_names,
    signs_in_words,
    with_spread,
)  # fmt: skip
from orpo_cli.reporting.report_page.comparison_figures import Records, numbered, run_curves, setting_figures, trade_off
from orpo_cli.reporting.report_page.facts import ComparisonFacts, Places
from orpo_cli.statistics.leaderboard import Leaderboard, Place, shown
from orpo_cli.statistics.pooled import Pooled

Cell = str | list[str]


def comparison_facts(board: Leaderboard, folder: str, about: str, records: Records, again: str) -> ComparisonFacts:
    """Return what the page of a comparison says.

    Args:
        folder: the folder that all runs are in.
        about: what the runs have in common, in words; nothing where that is not known.
        records: the lines of metrics.jsonl of the ranked runs.
        again: the command that writes the page.
    """
    runs = sum(len(place.folders) for place in board.places)
    made = [_counted(len(board.places), "recipe"), _counted(runs, "run")]
    return ComparisonFacts(
        title=", ".join(made) if board.places else _counted(len(board.unranked), "run"),
        folder=folder,
        state=". ".join(part for part in (about, _ranked_by(board)) if part),
        verdict=board.verdict,
        notes=list(board.notes),
        places=_places(board) if board.places else None,
        trade_off=trade_off(board),
        settings=setting_figures(board),
        curves=run_curves(board, records),
        unranked=[(run.folder, run.name, run.in_words) for run in board.unranked],
        commands=[*next_commands(board), ("write this page again", again)],
    )


def _counted(count: int, what: str) -> str:
    return f"{count} {what}{'s' * (count != 1)}"


def _ranked_by(board: Leaderboard) -> str:
    if not board.places:
        return ""
    return f"Ranked by {board.by} on {board.pairs} held-out pairs of {_counted(board.prompts, 'prompt')}"


def _places(board: Leaderboard) -> Places:
    numbers = ["no."] if numbered(board) else []
    names = list(board.keys) or ["recipe"]
    head = ["rank", *numbers, *names, "runs", *(HEADINGS[name] for name in said(board)), *_last_heading(board), ""]
    rows = [list(_row(number, place, board)) for number, place in enumerate(board.places, 1)]
    if board.before is not None:
        cells = [
            "",
            *("" for _ in numbers),
            "before training",
            *("" for _ in names),
            *_metrics(board.before, {}, board),
        ]
        rows.append([*cells, *("" for _ in head[len(cells) :])])
    ranks = [place.rank for place in board.places]
    first = ranks.count(1)
    return Places(head, rows, first if first < len(ranks) else 0, signs_in_words(board, "p"))


def _last_heading(board: Leaderboard) -> list[str]:
    """Return the heading of the column behind the metrics, if there is one: what the test or the order is of."""
    if board.by == "loss":
        return ["loss"]
    return ["p"] if any(place.p is not None for place in board.places) else []


def _row(count: int, place: Place, board: Leaderboard) -> Iterator[Cell]:
    yield rank_of(place, board.places)
    if numbered(board):
        yield str(count)
    yield from (shown(value) for value in place.settings.values()) if place.settings else [ALL_RUNS]
    yield short_names(place.folders, board.places)
    yield from _metrics(place.metrics, place.spread, board)
    for heading in _last_heading(board):
        if heading == "loss":
            yield "" if place.loss is None else number(place.loss)
        else:
            yield "" if place.p is None else p_value(place.p)
    yield FRONT if place.is_on_front else ""


def _metrics(metrics: Pooled, spread: Mapping[str, float | None], board: Leaderboard) -> Iterator[Cell]:
    for name in said(board):
        value = getattr(metrics, name)
        yield "-" if isinstance(value, str) else [with_spread(value, spread.get(name)), interval(value)]
