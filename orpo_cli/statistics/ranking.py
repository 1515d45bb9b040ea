"""Rank recipes so that those which a paired test cannot separate share a rank.

B is the number of pairs, R the number of runs of a recipe, G the number of prompts.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import sqrt

import numpy as np
import scipy

from orpo_cli.statistics.intervals import prompt_sums
from orpo_cli.statistics.scored_pairs import FloatArray, IntArray
from orpo_cli.statistics.significance import holm, sign_flip_p

LEVEL = 0.05


@dataclass(frozen=True)
class Contender:
    """One recipe to rank.

    Args:
        parts: what each pair adds to the metric of each run, (R, B); larger is better.
        tie: orders recipes that share a rank; smaller comes first.
    """

    parts: FloatArray
    tie: float

    @property
    def value(self) -> float:
        """Return the mean over its runs of the metric."""
        return float(self.parts.sum(1).mean())


@dataclass(frozen=True)
class Standing:
    """Where a recipe stands.

    Args:
        index: its number among the contenders.
        rank: one more than the number of recipes with a better rank; None where nothing tests the order.
        p: of its difference to the best of all, adjusted for the number of others (Holm); None for that one.
    """

    index: int
    rank: int | None
    p: float | None


@dataclass(frozen=True)
class SeedVariance:
    """The variance of a metric between seeds of one recipe, pooled over recipes, and its degrees of freedom."""

    variance: float
    degrees: int


def ranked(contenders: Sequence[Contender], prompt: IntArray) -> list[Standing]:
    """Return where each stands, the best first.

    The best of those that are left takes the next rank, with all that cannot be separated from it: p >= 0.05, adjusted
    for their number (Holm). So a recipe that is alone on the first rank is separated from each of the others.
    """
    seeds = seed_variance(contenders)
    left = sorted(range(len(contenders)), key=lambda index: -contenders[index].value)
    to_best: dict[int, float] = {}
    standings: list[Standing] = []
    while left:
        best, others = contenders[left[0]], left[1:]
        adjusted = holm([difference_p(best.parts, contenders[other].parts, prompt, seeds) for other in others])
        p = dict(zip(others, adjusted, strict=True))
        to_best = to_best or p
        group = [left[0], *(other for other in others if p[other] >= LEVEL)]
        rank = len(standings) + 1
        group.sort(key=lambda index: contenders[index].tie)
        standings += [Standing(index, rank, to_best.get(index)) for index in group]
        left = [index for index in left if index not in group]
    return standings


def difference_p(ours: FloatArray, theirs: FloatArray, prompt: IntArray, seeds: SeedVariance | None) -> float:
    """Return the p-value of a difference between the means over the runs of two recipes.

    Signs are flipped over prompts. That tells whether these runs differ on other prompts, and not whether runs with
    other seeds would. Where the variance between seeds is known, a t-test with the sum of both variances must tell the
    recipes apart as well: p is the larger of the two.
    """
    difference = ours.mean(0) - theirs.mean(0)
    totals = prompt_sums(difference, prompt)
    p = sign_flip_p(totals)
    if seeds is None or p == 1:
        return p
    degrees = len(totals) - 1
    of_prompts = float((totals**2).sum()) * len(totals) / degrees
    of_seeds = seeds.variance * (1 / len(ours) + 1 / len(theirs))
    both = of_prompts + of_seeds
    together = both**2 / (of_prompts**2 / degrees + of_seeds**2 / seeds.degrees)  # Satterthwaite 1946
    return max(p, float(2 * scipy.special.stdtr(together, -abs(difference.sum()) / sqrt(both))))


def seed_variance(contenders: Sequence[Contender]) -> SeedVariance | None:
    """Return the variance between seeds; None where each recipe has one run."""
    degrees = sum(len(contender.parts) - 1 for contender in contenders)
    if degrees == 0:
        return None
    squares = sum(((contender.parts.sum(1) - contender.value) ** 2).sum() for contender in contenders)
    return SeedVariance(float(squares) / degrees, degrees)


def front(points: Sequence[tuple[float, float]]) -> list[bool]:
    """Return which points are on the Pareto front: no other is at least as good in both and better in one.

    Args:
        points: of each the accuracy (larger is better) and the nll (smaller is better).
    """
    gains = np.array([(accuracy, -nll) for accuracy, nll in points])
    return [not ((gains >= point).all(1) & (gains > point).any(1)).any() for point in gains]
