"""Estimate means, ratios and accuracies with 95 % intervals in which all pairs of a prompt count as one draw.

A model that is right about one pair of a prompt tends to be right about the others, so the prompts are the sample and
the pairs are not. With u the influence of each pair on an estimate, the variance of the estimate is

    v = G / (G - 1) * sum over the G prompts of (sum of u over the prompt's pairs)^2

and quantiles are those of Student's t with G - 1 degrees of freedom. One prompt alone gives no interval.
"""

from collections.abc import Callable
from dataclasses import dataclass
from math import sqrt

import numpy as np
import scipy
from numpy.typing import NDArray

from orpo_cli.statistics.scored_pairs import FloatArray, IntArray

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Estimate:
    """A number with its 95 % interval; the bounds are None where one prompt alone says nothing about others."""

    value: float
    low: float | None
    high: float | None

    def through(self, increasing: Callable[[float], float]) -> "Estimate":
        """Return the estimate of an increasing function of the number."""
        low, high = (None if bound is None else increasing(bound) for bound in (self.low, self.high))
        return Estimate(increasing(self.value), low, high)

    def within(self, least: float, most: float) -> "Estimate":
        """Return the estimate with bounds that lie where the number can lie."""
        low, high = (None if bound is None else min(max(bound, least), most) for bound in (self.low, self.high))
        return Estimate(self.value, low, high)


def mean(values: NDArray[np.float64 | np.bool_], weight: FloatArray, prompt: IntArray) -> Estimate:
    """Estimate the weighted mean of a quantity of pairs.

    Args:
        values: the quantity of each pair, (B,).
        weight: the weights of the pairs, (B,), all above 0.
        prompt: the number of each pair's prompt, (B,).
    """
    return ratio(weight * values, weight, prompt)


def ratio(numerator: FloatArray, denominator: FloatArray, prompt: IntArray) -> Estimate:
    """Estimate the ratio of two sums over pairs, such as nats over tokens."""
    total = denominator.sum()
    value = float(numerator.sum() / total)
    return by_t(value, *prompt_variance((numerator - value * denominator) / total, prompt))


def accuracy(outcome: NDArray[np.float64 | np.bool_], weight: FloatArray, prompt: IntArray) -> Estimate:
    """Estimate a share of pairs, with Wilson's interval at the effective number of pairs.

    Where pairs of a prompt are alike, they say as much about the share as fewer independent ones would: n of those give
    the variance p (1 - p) / n. With no win or no loss there is no variance to see, and each prompt counts once.

    Args:
        outcome: 1 where the pair is counted, 0 where it is not, and one half for a tie, (B,).
        weight, prompt: see `mean`.
    """
    total = weight.sum()
    value = float((weight * outcome).sum() / total)
    variance, prompts = prompt_variance(weight * (outcome - value) / total, prompt)
    return wilson(value, effective_number(value, variance, len(outcome), prompts), prompts)


def effective_number(share: float, variance: float, most: float, without_variance: float) -> float:
    """Return how many independent pairs would give a share this variance.

    Args:
        most: the upper limit of the answer.
        without_variance: the answer where the share is 0 or 1.
    """
    if share in (0, 1):
        return without_variance
    return min(most, share * (1 - share) / variance) if variance > 0 else most


def wilson(share: float, number: float, prompts: int) -> Estimate:
    """Return a share with Wilson's interval at an effective number of pairs.

    E. B. Wilson 1927; with `number` = n: (p + t^2/2n +- t sqrt(p (1-p) / n + t^2/4n^2)) / (1 + t^2/n).
    """
    if prompts < 2:
        return Estimate(share, None, None)
    square = quantile(prompts) ** 2 / number
    middle = (share + square / 2) / (1 + square)
    half = sqrt(square * share * (1 - share) + square**2 / 4) / (1 + square)
    return Estimate(share, max(middle - half, 0.0), min(middle + half, 1.0))


def by_t(value: float, variance: float, prompts: int) -> Estimate:
    """Return a value with the symmetric interval of Student's t."""
    if prompts < 2:
        return Estimate(value, None, None)
    half = quantile(prompts) * sqrt(variance)
    return Estimate(value, value - half, value + half)


def prompt_variance(influence: FloatArray, prompt: IntArray) -> tuple[float, int]:
    """Return the variance of an estimate from the influence of each pair, (B,), and the number of prompts."""
    sums = prompt_sums(influence, prompt)
    prompts = len(sums)
    return float(prompts / max(prompts - 1, 1) * (sums**2).sum()), prompts


def prompt_sums(values: FloatArray, prompt: IntArray) -> FloatArray:
    """Return the sum over the pairs of each prompt, (G,)."""
    return np.asarray(np.bincount(np.unique(prompt, return_inverse=True)[1], weights=values), np.float64)


def quantile(prompts: int) -> float:
    """Return the number of standard errors that an interval reaches to each side."""
    return float(scipy.special.stdtrit(prompts - 1, (1 + CONFIDENCE) / 2))
