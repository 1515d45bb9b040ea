"""What a search can try, in Hydra's grammar: `interval(0.05,1)`, `tag(log,interval(1e-6,1e-4))`, lists and ranges.

    lambda=interval(0.05,1)                       any number between
    optimizer.lr=tag(log,interval(1e-6,1e-4))     the same, where factors count
    adapter.rank=int(interval(8,64))              whole numbers
    adapter.rank=range(8,65,8)                    the values of a range; neighbours are taken to be alike
    optimizer=adamw,muon                          the values of a list, or of choice() or glob(): nothing is alike

As in Hydra's own sweeper for optuna, but that a range ends before its last number, as it does in every other sweep.
"""

from collections.abc import Sequence
from math import isfinite

from hydra.core.override_parser.types import IntervalSweep, Override

from orpo_cli.cli.folders import FOLDER_KEYS
from orpo_cli.errors import ConfigError
from orpo_cli.runs.search import Interval, Listed, Space

_LOG = "log"


def space_of(overrides: Sequence[Override]) -> Space:
    """Return the space that the overrides of a sweep span.

    Raises:
        ConfigError: if there is none, or a key of it cannot be searched.
    """
    if not overrides:
        raise ConfigError(
            "sweep.trials: there is nothing to search; give a key an interval or several values, as in "
            "'lambda=interval(0.05,1)'"
        )
    return {override.get_key_element(): _dimension(override) for override in overrides}


def _dimension(override: Override) -> Listed | Interval:
    typed, value = override.input_line, override.value()
    if override.key_or_group == "seed":
        raise ConfigError(
            f"{typed}: seed cannot be searched, since the luckiest would win; give one seed, and try the best "
            "setting with others"
        )
    if override.key_or_group in FOLDER_KEYS:
        raise ConfigError(f"{typed}: cannot be searched")
    tags = set(getattr(value, "tags", ()))
    if tags - {_LOG} or (tags and not isinstance(value, IntervalSweep)):
        raise ConfigError(f"{typed}: the only tag here is log, of an interval: tag(log,interval(1e-6,1e-4))")
    if isinstance(value, IntervalSweep):
        return _interval(override, value, bool(tags))
    words = list(override.sweep_string_iterator())
    if not words:
        raise ConfigError(f"{typed}: the search has no values")
    if getattr(value, "shuffle", False):  # into another order each time
        words.sort()
    return Listed(tuple(dict.fromkeys(words)), override.is_range_sweep())


def _interval(override: Override, value: IntervalSweep, is_log: bool) -> Interval:
    low, high = value.start, value.end
    if low is None or high is None or not (isfinite(low) and isfinite(high) and low <= high):
        raise ConfigError(f"{override.input_line}: expected two numbers, the lower one first")
    if is_log and low <= 0:
        raise ConfigError(f"{override.input_line}: with tag(log,...) an interval begins above 0")
    return Interval(low, high, isinstance(low, int), is_log)
