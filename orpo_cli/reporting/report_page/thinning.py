"""Thin long curves honestly: many steps become one point that says how far they spread."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

T = TypeVar("T")

POINTS = 300
"""A curve of so many steps is drawn as it is."""

EVALUATIONS = 100
"""So many evaluations are drawn; of more, some are left out."""


@dataclass(frozen=True)
class Thinned:
    """Numbers over steps; where steps were put together, each point is a mean, with the lowest and the highest."""

    step: list[int]
    value: list[float]
    low: list[float] | None = None
    high: list[float] | None = None


def thinned(step: Sequence[int], value: Sequence[float]) -> Thinned:
    """Return at most `POINTS` points for the values of the steps, in their order."""
    if len(step) <= POINTS:
        return Thinned(list(step), list(value))
    parts = np.array_split(np.arange(len(step)), POINTS)
    steps, values = np.asarray(step), np.asarray(value)
    return Thinned(
        [int(steps[part[-1]]) for part in parts],
        *([_six_digits(of(values[part])) for part in parts] for of in (np.mean, np.min, np.max)),
    )


def thinning_in_words(steps: int) -> str | None:
    """Return what was done to curves of so many steps; None where nothing was."""
    if steps <= POINTS:
        return None
    return (
        f"The {steps:,} recorded steps are drawn as {POINTS} points. Each is the mean of about {steps / POINTS:.0f} of "
        "them, at the last one; the shade reaches from the lowest to the highest. metrics.jsonl has every step."
    )


def some_of(items: Sequence[T], most: int = EVALUATIONS) -> list[T]:
    """Return at most so many of the items, evenly spread, the first and the last among them."""
    return [items[place] for place in np.linspace(0, len(items) - 1, min(len(items), most)).round().astype(int)]


def _six_digits(value: float) -> float:
    return float(f"{value:.6g}")
