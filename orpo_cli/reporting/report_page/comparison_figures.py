"""The figures of several runs as numbers: accuracy against nll, what each setting did, the held-out curves."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from orpo_cli.reporting.leaderboard import ALL_RUNS, FRONT, rank_of
from orpo_cli.reporting.report_page.figures import INTERVAL, Figure, Series
from orpo_cli.reporting.report_page.thinning import some_of
from orpo_cli.statistics.intervals import Estimate
from orpo_cli.statistics.leaderboard import Leaderboard, Place, in_order, shown

_LONGEST_LABEL, _MOST_LABELS = 24, 12
_TOLD_APART = 6
"""So many recipes have lines of their own look; of more, the first has one and the others share one."""

_DECADE = 10
_UNITS = {"accuracy": "share of pairs", "nll": "nats a token"}
_TITLES = {"accuracy": "accuracy", "nll": "nll of chosen"}

Records = Mapping[str, Sequence[dict[str, Any]]]
"""The lines of metrics.jsonl by the folder of their run."""


@dataclass(frozen=True)
class Mark:
    """A recipe, or the model before training.

    Args:
        label: what stands beside it.
        accuracy, nll: the means over its runs.
    """

    label: str
    name: str
    rank: str
    accuracy: Estimate
    nll: Estimate
    is_on_front: bool | None


@dataclass(frozen=True)
class TradeOff:
    """Accuracy against nll, a mark for each recipe, the first on the list first."""

    name: str
    title: str
    caption: str
    recipes: list[Mark]
    before: Mark | None
    kind: str = field(default="trade_off", init=False)


@dataclass(frozen=True)
class Dot:
    """One run.

    Args:
        value: of the setting.
        others: the rest of its settings and its seed, the same for runs that differ in nothing but the setting.
    """

    name: str
    value: float | str
    result: float
    others: str


@dataclass(frozen=True)
class SettingFigure:
    """A metric of each run against its value of one setting.

    Args:
        unit: the name and unit of the vertical axis.
        scale: of the horizontal axis: linear, log, or point where its values are steps of equal width.
        values: the values of the setting in their order.
        means: the mean over all runs with a value, for each of `values`.
    """

    name: str
    title: str
    unit: str
    caption: str
    setting: str
    scale: str
    values: list[float | str]
    means: list[float]
    runs: list[Dot]
    kind: str = field(default="setting", init=False)


def numbered(board: Leaderboard) -> bool:
    """Return whether recipes are called by their numbers in the figure, where there is no room for their names."""
    return len(board.places) > _MOST_LABELS or any(len(_short(place)) > _LONGEST_LABEL for place in board.places)


def recipe_name(place: Place) -> str:
    """Return the settings of a recipe in words."""
    return place.name or ALL_RUNS


def trade_off(board: Leaderboard) -> TradeOff | None:
    """Return accuracy against nll; None where nothing is ranked, or nll cannot be compared."""
    if not board.places or not board.has_nll:
        return None
    marks = [
        Mark(
            label,
            recipe_name(place),
            rank_of(place, board.places),
            place.metrics.accuracy,
            place.metrics.nll,
            place.is_on_front,
        )
        for label, place in zip(_labels(board), board.places, strict=True)
    ]
    before = board.before
    name = "before training"
    first = None if before is None else Mark(name, name, "", before.accuracy, before.nll, None)
    return TradeOff("trade-off", "Held-out accuracy against nll of chosen", _caption(board), marks, first)


def _caption(board: Leaderboard) -> str:
    seeds = "means over seeds, " if any(len(place.seeds) > 1 for place in board.places) else ""
    said = [
        f"Better is up and to the left. Bars are the {INTERVAL}s, in which all pairs of a prompt count as one draw; "
        f"{seeds}{board.pairs} held-out pairs of {board.prompts} prompts."
    ]
    if any(place.is_on_front for place in board.places):
        said.append(f"{FRONT} and the dashed line: the Pareto front; no other recipe is as good in both.")
    if board.before is not None:
        said.append("× is the model before training.")
    if numbered(board):
        said.append("The numbers are those of the table.")
    return " ".join(said)


def _labels(board: Leaderboard) -> list[str]:
    if numbered(board):
        return [str(number) for number in range(1, len(board.places) + 1)]
    return [_short(place) for place in board.places]


def _short(place: Place) -> str:
    """Return the settings of a recipe without the sections of their keys, where these are not needed."""
    if not place.settings:
        return "after training"
    short = {key: _last_part(key) for key in place.settings}
    names = list(short.values())
    return " ".join(
        f"{short[key] if names.count(short[key]) == 1 else key}={shown(value)}" for key, value in place.settings.items()
    )


def _last_part(key: str) -> str:
    section, _, last = key.rpartition(".")
    return section if section and last in ("name", "path") else last


def setting_figures(board: Leaderboard) -> list[SettingFigure]:
    """Return for each setting that differs its figures: accuracy, and nll where it can be compared."""
    metrics = ["accuracy", "nll"] if board.has_nll else ["accuracy"]
    return [_setting_figure(board, key, metric) for key in board.keys for metric in metrics]


def _setting_figure(board: Leaderboard, key: str, metric: str) -> SettingFigure:
    found = [place.settings[key] for place in board.places]
    scale, values = _axis(found)
    runs = [dot for place in board.places for dot in _dots(place, key, metric, scale)]
    caption = f"Each run, and as bars the means of all runs with a value of {key}, whatever else they have."
    others = [dot.others for dot in runs]
    if len(set(others)) < len(others):
        caption += " Thin lines join runs that differ in nothing else."
    if scale == "point" and all(map(_is_number, found)):
        caption += " The values stand at equal distances."
    return SettingFigure(
        f"{key.replace('.', '-')}-{metric}",
        f"{key}: {_TITLES[metric]}",
        _UNITS[metric],
        caption,
        key,
        scale,
        values,
        [_mean([dot.result for dot in runs if dot.value == value]) for value in values],
        runs,
    )


def _axis(found: Sequence[Any]) -> tuple[str, list[float | str]]:
    """Return the scale that the values of a setting have, and these values in their order."""
    values = sorted({shown(value): value for value in found}.values(), key=in_order)
    if all(_is_number(value) for value in values):
        above = [value for value in values if value > 0]
        if not above or above[-1] < _DECADE * above[0]:
            return "linear", values
        if len(above) == len(values):
            return "log", values
    return "point", [shown(value) for value in values]


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _dots(place: Place, key: str, metric: str, scale: str) -> Iterator[Dot]:
    value = place.settings[key]
    others = " ".join(f"{name}={shown(other)}" for name, other in place.settings.items() if name != key)
    at = shown(value) if scale == "point" else value
    for seed, result in zip(place.seeds, place.values[metric], strict=True):
        yield Dot(f"{recipe_name(place)}, seed {seed}", at, result, f"{others} seed={seed}".strip())


def _mean(numbers: Sequence[float]) -> float:
    return sum(numbers) / len(numbers)


def run_curves(board: Leaderboard, records: Records) -> list[Figure]:
    """Return the curves of all ranked runs over their steps, each a line; none where no run was evaluated twice."""
    folders = [folder for place in board.places for folder in place.folders]
    evaluations, pairs = _of_the_same_pairs({folder: records[folder] for folder in folders}, board.pairs)
    if not any(len(lines) > 1 for lines in evaluations.values()):
        return []
    said = f"One line for each run, of {pairs} held-out pairs."
    figures = []
    for metric in ("accuracy", "nll") if board.has_nll else ("accuracy",):
        series = [
            Series(
                f"{recipe_name(place)}, seed {seed}",
                _role(number, len(board.places)),
                [line["step"] for line in evaluations[folder]],
                [line[metric] for line in evaluations[folder]],
                group=_group(number, board),
            )
            for number, place in enumerate(board.places)
            for folder, seed in zip(place.folders, place.seeds, strict=True)
        ]
        is_share = metric == "accuracy"
        caption = f"{said} The line across is at one half." if is_share else said
        title = f"{_TITLES[metric].capitalize()} over the steps"
        level, domain = (0.5, (0.0, 1.0)) if is_share else (None, None)
        figures.append(Figure(f"curves-{metric}", title, _UNITS[metric], caption, series, level, domain))
    return figures


def _of_the_same_pairs(records: Records, pairs: int) -> tuple[Records, int]:
    """Return evaluations that are all of the same pairs, and how many pairs these are.

    They are those of a part of the held-out pairs, if each run has them of as large a part: it is the same part then.
    """
    parts = {folder: [line for line in lines if line["kind"] == "eval_part"] for folder, lines in records.items()}
    sizes = {line["pairs"] for lines in parts.values() for line in lines}
    if len(sizes) == 1 and all(parts.values()):
        return {folder: some_of(lines) for folder, lines in parts.items()}, sizes.pop()
    whole = {folder: [line for line in lines if line["kind"] == "eval"] for folder, lines in records.items()}
    return {folder: some_of(lines) for folder, lines in whole.items()}, pairs


def _role(number: int, recipes: int) -> str:
    if recipes <= _TOLD_APART:
        return f"recipe_{number + 1}"
    return "other" if number else "recipe_1"


def _group(number: int, board: Leaderboard) -> str:
    if number and len(board.places) > _TOLD_APART:
        return "the others"
    return f"no. {number + 1}" if numbered(board) else _short(board.places[number])
