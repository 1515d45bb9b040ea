"""Show runs side by side on the terminal: places, what the settings did, what is not ranked, and the verdict."""

import os
import shlex
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from orpo_cli.quoting import chat_command, evaluate_command, export_command, harmless
from orpo_cli.reporting.evaluation import interval, number, p_value
from orpo_cli.statistics.comparability import Unranked
from orpo_cli.statistics.intervals import Estimate
from orpo_cli.statistics.leaderboard import METRICS, Effect, Leaderboard, Place, shown

FRONT = "◆"
ALL_RUNS = "all runs"
"""The name of a recipe that has no other beside it."""

HEADINGS = {"accuracy": "accuracy", "balanced_accuracy": "balanced", "nll": "nll", "margin": "margin"}
_NUMBERS_AND_RUNS, _SETTING = 110, 15
"""The columns that a terminal needs for all numbers and the runs, and for each setting in a column of its own."""

_LONGEST_RECIPE, _LONGEST_NUMBER, _OTHER_COLUMNS = 24, 16, 12
"""The columns that a line of a recipe has at most, a metric, and rank and mark together."""


def print_leaderboard(board: Leaderboard, console: Console) -> None:
    """Print runs side by side as tables, and what they say in words."""
    if board.places:
        title = f"{board.pairs} held-out pairs of {board.prompts} prompts, by {board.by}"
        console.print(Text(f"leaderboard: {title}", style="bold"))
        console.print(_places_table(board, console.width))
    if board.effects:
        console.print(Text("what each setting did: means of all runs with a value", style="bold"))
        console.print(_effects_table(board.effects))
    if board.unranked:
        console.print(Text("not ranked", style="bold"))
        console.print(_unranked_table(board.unranked))
    console.print(Text(harmless(board.verdict), style="bold"))
    for line in _legend(board, console.width):
        console.print(Text(line, style="dim"))
    for line in board.notes:
        console.print(Text(f"note: {harmless(line)}", style="yellow"))
    for what, line in next_commands(board):
        console.print(Text(harmless(f"{what + ':':<18} {line}")), soft_wrap=True)


def next_commands(board: Leaderboard) -> Iterator[tuple[str, str]]:
    """Yield where the model of the first recipe is, and the commands for what can be done with it, by what they do."""
    if not board.places:
        return
    folder = board.places[0].folders[0]
    is_tied = sum(place.rank == board.places[0].rank for place in board.places) > 1
    yield "lowest nll of rank 1" if is_tied else "first on the list", str(Path(folder) / "model")
    yield "talk to it", chat_command(Path(folder))
    yield "export it", export_command(Path(folder))
    yield "train it again", again(folder)
    yield "on other pairs", evaluate_command(Path(folder), on_own_pairs=False)


def again(folder: str) -> str:
    """Return the command that trains a run again, in a folder that is still to be named."""
    return shlex.join(["orpo", "train", str(Path(folder) / "config.yaml"), "output_dir=NEW_FOLDER"])


def rank_of(place: Place, places: Sequence[Place]) -> str:
    """Return a rank as it is written: `1=` where it is shared, `-` where there is none."""
    if place.rank is None:
        return "-"
    return f"{place.rank}{'=' * (sum(other.rank == place.rank for other in places) > 1)}"


def short_names(folders: Iterable[str], among: Sequence[Place]) -> str:
    """Return the names of folders below what the folders of all places have in common."""
    everything = [folder for place in among for folder in place.folders]
    above = os.path.commonpath(everything) if len(everything) > 1 else str(Path(everything[0]).parent)
    return ", ".join(os.path.relpath(folder, above) for folder in folders)


def said(board: Leaderboard) -> list[str]:
    """Return the metrics that can be said of at least one recipe."""
    return [name for name in METRICS if any(not isinstance(getattr(p.metrics, name), str) for p in board.places)]


def _is_wide(board: Leaderboard, width: int) -> bool:
    return width >= _NUMBERS_AND_RUNS + _SETTING * max(len(board.keys), 1)


def _metrics(board: Leaderboard, width: int) -> list[str]:
    """Return the metrics that have room, that by which is ranked and the nll before others."""
    names = said(board)
    if _is_wide(board, width):
        return names
    room = (width - _OTHER_COLUMNS - _recipe_width(board)) // _LONGEST_NUMBER
    first = sorted(names, key=lambda name: (name != board.by, name not in ("accuracy", "nll")))
    return [name for name in names if name in first[: max(room, 1)]]


def _recipe_width(board: Leaderboard) -> int:
    lines = [line for place in board.places for line in _recipe(place, board).split("\n")]
    return min(max(map(len, [*lines, "before training"])), _LONGEST_RECIPE)


def _recipe(place: Place, board: Leaderboard) -> str:
    """Return the settings of a place, one a line; the names of its runs where recipes do not differ."""
    lines = (harmless(f"{key}={shown(value)}") for key, value in place.settings.items())
    return "\n".join(lines) or harmless(short_names(place.folders, board.places))


def _places_table(board: Leaderboard, width: int) -> Table:
    is_wide, metrics = _is_wide(board, width), _metrics(board, width)
    table = Table(box=SIMPLE_HEAD, pad_edge=False, header_style="bold")
    table.add_column("rank")
    for name in board.keys if is_wide and board.keys else ("recipe",):
        table.add_column(harmless(name), overflow="fold", min_width=_SETTING if is_wide else _recipe_width(board))
    for heading in ["runs"] if is_wide else []:
        table.add_column(heading, overflow="fold")
    headings = ["loss"] if board.by == "loss" else ["p"] if is_wide else []
    for heading in (*(HEADINGS[name] for name in metrics), *headings, ""):
        table.add_column(heading, justify="right", no_wrap=True)
    for place in board.places:
        cells = _cells_of_place(place, board, is_wide, metrics)
        table.add_row(*cells, style="bold" if place.rank == 1 else "")
    if board.before is not None:
        gap = [""] * (max(len(board.keys), 1) if is_wide else 0)
        numbers = [_cell(getattr(board.before, name), None, is_wide) for name in metrics]
        table.add_row("", "before training", *gap, *numbers, style="dim")
    return table


def _cells_of_place(place: Place, board: Leaderboard, is_wide: bool, metrics: Sequence[str]) -> Iterator[str | Text]:
    yield rank_of(place, board.places)
    if is_wide and place.settings:
        yield from (harmless(shown(value)) for value in place.settings.values())
    else:
        yield _recipe(place, board)
    if is_wide:
        yield harmless(short_names(place.folders, board.places))
    yield from (_cell(getattr(place.metrics, name), place.spread.get(name), is_wide) for name in metrics)
    if place.loss is not None:
        yield number(place.loss)
    elif is_wide:
        yield "" if place.p is None else p_value(place.p)
    yield FRONT if place.is_on_front else ""


def _cell(value: Estimate | str, spread: float | None, is_wide: bool) -> str | Text:
    """Return a number with its spread over seeds, and its interval on a second line."""
    if isinstance(value, str):
        return "-"
    bounds = interval(value) if is_wide or value.low is None or value.high is None else _short_interval(value)
    return Text.assemble(with_spread(value, spread), "\n", (bounds, "not bold dim"))


def _short_interval(value: Estimate) -> str:
    return f"[{value.low:.2f}, {value.high:.2f}]"


def with_spread(value: Estimate, spread: float | None) -> str:
    """Return a number with its standard deviation over seeds, where there are several."""
    return number(value.value) if spread is None else f"{number(value.value)} ±{number(spread)}"


def _effects_table(effects: Sequence[Effect]) -> Table:
    table = Table(box=SIMPLE_HEAD, pad_edge=False, header_style="bold")
    table.add_column("setting", overflow="fold")
    for heading in ("value", "runs", *HEADINGS.values()):
        table.add_column(heading, justify="right", overflow="fold")
    last = ""
    for effect in effects:
        numbers = ("-" if (mean := effect.means[name]) is None else number(mean) for name in METRICS)
        key = "" if effect.key == last else harmless(effect.key)
        if key and last:
            table.add_section()
        table.add_row(key, harmless(shown(effect.value)), str(effect.runs), *numbers)
        last = effect.key
    return table


def _unranked_table(unranked: Sequence[Unranked]) -> Table:
    has_names = any(run.name for run in unranked)
    table = Table(box=SIMPLE_HEAD, pad_edge=False, header_style="bold")
    for heading in ("folder", *(["overrides"] if has_names else []), "state"):
        table.add_column(heading, overflow="fold")
    for run in unranked:
        names = [harmless(run.name)] if has_names else []
        table.add_row(*(Text(cell) for cell in (harmless(run.folder), *names, harmless(run.in_words))))
    return table


def _legend(board: Leaderboard, width: int) -> Iterator[str]:
    """Yield what the signs in the table mean, as far as they are there, and what has no room."""
    if not board.places:
        return
    yield signs_in_words(board, "p" if _is_wide(board, width) else "ranks")
    if left_out := [HEADINGS[name] for name in said(board) if name not in _metrics(board, width)]:
        yield f"this terminal is too narrow for {', '.join(left_out)} and p; a wider one and the files show them"


def signs_in_words(board: Leaderboard, tested: str) -> str:
    """Return what the signs in a table of places mean, as far as they are there.

    Args:
        tested: the name of the column that shows what the test says.
    """
    parts = ["[ ] 95 % interval over prompts"]
    if any(len(place.seeds) > 1 for place in board.places):
        parts.insert(0, "± standard deviation over seeds")
    if any(place.is_on_front for place in board.places):
        parts.append(f"{FRONT} no other is as good in accuracy and nll and better in one")
    if any(place.p is not None for place in board.places):
        parts.append(f"{tested}: a paired test against the best {board.by}, Holm")
    return "; ".join(parts)
