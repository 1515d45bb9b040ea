"""The keys that a sweep has besides those of its runs."""

from dataclasses import dataclass, fields


@dataclass(frozen=True)
class SweepConfig:
    """What is asked for of a sweep, and of no run in it.

    trials: number of runs of a search, each with values chosen by what those before have come to; goes with -m
    """

    trials: int


SWEEP_KEYS = tuple(f"sweep.{field.name}" for field in fields(SweepConfig))
