"""Test whether two models differ by flipping signs over prompts, and adjust several such tests for each other."""

from collections.abc import Sequence

import numpy as np
import scipy

from orpo_cli.statistics.scored_pairs import FloatArray, IntArray

DRAWS = 10_000
MOST_SUMS = 2**14
"""Up to so many different sums, all sign flips are counted instead of drawn."""

SEED = 0
ROUNDING = 1e-9  # part of the sum of absolute totals; sums that are equal but for rounding count as equal


def sign_flip_p(totals: FloatArray) -> float:
    """Return how often a sum is at least as far from 0 if each prompt's total has either sign, as if models were equal.

    Prompts whose totals are equally large are interchangeable: only the number of those with a plus matters. That makes
    the count exact for any number of prompts if the totals are few different ones, as with one pair a prompt (McNemar's
    exact test).

    Args:
        totals: the weighted difference of wins over the pairs of each prompt, (G,).
    """
    sizes, counts = np.unique(np.abs(totals[totals != 0]), return_counts=True)
    least = abs(totals.sum()) - ROUNDING * np.abs(totals).sum()
    if np.log1p(counts).sum() <= np.log(MOST_SUMS):
        sums, shares = np.zeros(1), np.ones(1)
        for size, count in zip(sizes, counts, strict=True):
            plus = np.arange(count + 1)
            sums = np.add.outer(sums, size * (2 * plus - count)).ravel()
            shares = np.multiply.outer(shares, _binomial(plus, count)).ravel()
        return min(float(shares[np.abs(sums) >= least].sum()), 1.0)
    random, sums = np.random.default_rng(SEED), np.zeros(DRAWS)
    for size, count in zip(sizes, counts, strict=True):
        sums += size * (2 * random.binomial(count, 0.5, DRAWS) - count)
    return float((1 + (np.abs(sums) >= least).sum()) / (1 + DRAWS))


def holm(p: Sequence[float]) -> tuple[float, ...]:
    """Return p-values adjusted for being several, in their order (S. Holm 1979).

    The smallest is multiplied by their number, the next by one less, and none becomes smaller than the one before.
    """
    order = np.argsort(p)
    adjusted = np.empty(len(order))
    adjusted[order] = np.maximum.accumulate(np.asarray(p)[order] * np.arange(len(order), 0, -1))
    return tuple(np.minimum(adjusted, 1.0).tolist())


def _binomial(plus: IntArray, count: int) -> FloatArray:
    """Return the probability of each number of heads in `count` tosses of a fair coin."""
    logs = scipy.special.gammaln(count + 1) - scipy.special.gammaln(plus + 1) - scipy.special.gammaln(count - plus + 1)
    return np.asarray(np.exp(logs - count * np.log(2.0)))
