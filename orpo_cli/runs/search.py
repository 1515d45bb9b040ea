"""Ask optuna which settings a search tries next; nothing is kept between two questions.

What is asked for is a function of the space, the seed of the search and what the trials so far have come to, so that a
search whose process was killed goes on as if it had not been. The sampler is TPE for two objectives (Ozaki et al.
2022), which learns from the eleventh trial on and needs nothing but the results; NSGA-II draws its first fifty trials
at random, more than a search of models can afford, and would have to be told its generations again.
"""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum, auto
from math import prod
from typing import TYPE_CHECKING, Any

from orpo_cli.config.limits import require_installed

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution
    from optuna.samplers import BaseSampler

_DIGITS = 4
"""Significant digits of a number that is asked for: enough for any setting, and few enough to be read and typed."""

_ATTEMPTS = 1000
"""How often a sampler is asked for a point that was not tried."""


@dataclass(frozen=True)
class Listed:
    """A key with a list of values.

    Args:
        values: as they are typed.
        is_ordered: whether neighbours are alike, as in a range of numbers.
    """

    values: tuple[str, ...]
    is_ordered: bool


@dataclass(frozen=True)
class Interval:
    """A key with any number between two, both among them.

    Args:
        is_whole: whether only whole numbers count.
        is_log: whether each factor, not each difference, is as likely as another.
    """

    low: float
    high: float
    is_whole: bool
    is_log: bool


Space = Mapping[str, Listed | Interval]
"""The keys of a search, with what each can be."""

Point = Mapping[str, str]
"""A value of each key, as it is typed."""


class Ending(Enum):
    """How a trial ended."""

    SCORED = auto()
    STOPPED = auto()
    """Since another one dominates it."""
    UNTRAINABLE = auto()
    """Since its settings are refused, diverge or need too much memory."""
    UNKNOWN = auto()
    """For a reason that says nothing of its settings, such as a full disk."""
    RUNNING = auto()
    """Not yet."""


@dataclass(frozen=True)
class Objectives:
    """What all held-out pairs gave to the model of a trial."""

    accuracy: float
    nll: float


@dataclass(frozen=True)
class Told:
    """What is known of a trial; `objectives` where it is scored."""

    point: Point
    ending: Ending
    objectives: Objectives | None


def check_installed() -> None:
    """Refuse a search without optuna.

    Raises:
        ConfigError: if it is missing; the message has the command that installs it.
    """
    require_installed("sweep.trials", "optuna", "optuna")


def propose(space: Space, trials: Sequence[Told], seed: int) -> Point | None:
    """Return the settings of the next trial, none that was tried; None where there are no others."""
    tried = [trial.point for trial in trials]
    if len({tuple(point.items()) for point in tried}) >= _size(space):
        return None
    attempts = (_asked(space, trials, _sampler(seed, len(trials), attempt)) for attempt in range(_ATTEMPTS))
    return next((point for point in attempts if point not in tried), None)


def holds(space: Space, point: Point) -> bool:
    """Return whether a point has a value of each key, and of no other."""
    return point.keys() == space.keys() and all(_internal(space[key], word) is not None for key, word in point.items())


def corners(space: Space) -> tuple[Point, Point]:
    """Return the points with the lowest and with the highest end of each interval, and the first value of each list."""

    def at(low: bool) -> Point:
        return {
            key: dimension.values[0]
            if isinstance(dimension, Listed)
            else _word(dimension, dimension.low if low else dimension.high)
            for key, dimension in space.items()
        }

    return at(True), at(False)


def _size(space: Space) -> float:
    """Return the number of different points."""
    return prod(_choices(dimension) for dimension in space.values())


def _choices(dimension: Listed | Interval) -> float:
    if isinstance(dimension, Listed):
        return len(dimension.values)
    if dimension.low == dimension.high:
        return 1
    return dimension.high - dimension.low + 1 if dimension.is_whole else float("inf")


def _sampler(seed: int, number: int, attempt: int) -> "BaseSampler":
    """Return the sampler of one trial; where it asks for what was tried, the next attempt draws at random."""
    import numpy as np
    from optuna.samplers import RandomSampler, TPESampler

    own_seed = int(np.random.SeedSequence([seed, number, attempt]).generate_state(1)[0])
    if attempt:
        return RandomSampler(seed=own_seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # optuna calls the option experimental
        return TPESampler(seed=own_seed, constant_liar=True)  # trials that run count as poor, so that others differ


def _asked(space: Space, trials: Sequence[Told], sampler: "BaseSampler") -> Point:
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(directions=["maximize", "minimize"], sampler=sampler)
    distributions = {key: _distribution(dimension) for key, dimension in space.items()}
    for trial in trials:
        study.add_trial(_as_known(trial, space, distributions))
    asked = study.ask(distributions)
    return {key: _word(space[key], value) for key, value in asked.params.items()}


def _as_known(trial: Told, space: Space, distributions: dict[str, "BaseDistribution"]) -> Any:
    """Return a trial as optuna knows it: one without objectives is pruned, worse than all that have some.

    Optuna's own word for a failed trial would be forgotten, and the same settings asked for again.
    """
    from optuna.trial import TrialState, create_trial

    states = {
        Ending.SCORED: TrialState.COMPLETE,
        Ending.UNKNOWN: TrialState.FAIL,
        Ending.RUNNING: TrialState.RUNNING,
    }
    found = trial.objectives
    return create_trial(
        state=states.get(trial.ending, TrialState.PRUNED),
        values=None if found is None else [found.accuracy, found.nll],
        params={key: _internal(space[key], word) for key, word in trial.point.items()},
        distributions=distributions,
    )


def _distribution(dimension: Listed | Interval) -> "BaseDistribution":
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    if isinstance(dimension, Interval):
        if dimension.is_whole:
            return IntDistribution(int(dimension.low), int(dimension.high), dimension.is_log)
        return FloatDistribution(dimension.low, dimension.high, dimension.is_log)
    last = len(dimension.values) - 1
    return IntDistribution(0, last) if dimension.is_ordered else CategoricalDistribution(range(last + 1))


def _word(dimension: Listed | Interval, value: float) -> str:
    """Return a value of optuna's as it is typed."""
    if isinstance(dimension, Listed):
        return dimension.values[int(value)]
    if dimension.is_whole:
        return str(int(value))
    return repr(min(max(float(f"{value:.{_DIGITS}g}"), dimension.low), dimension.high))


def _internal(dimension: Listed | Interval, word: str) -> float | None:
    """Return a typed value as optuna knows it; None where the key cannot have it."""
    if isinstance(dimension, Listed):
        return dimension.values.index(word) if word in dimension.values else None
    try:
        value = int(word) if dimension.is_whole else float(word)
    except ValueError:
        return None
    return value if dimension.low <= value <= dimension.high else None
