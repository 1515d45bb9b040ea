"""Tell how much of an accuracy may be length: the ruler "longer wins", balanced accuracy, a logistic regression.

Lengths are tokens of the response, as the model that scored the pairs counts them.
"""

from dataclasses import dataclass

import numpy as np
import scipy
from numpy.typing import NDArray

from orpo_cli.statistics.intervals import (
    Estimate,
    accuracy,
    by_t,
    effective_number,
    prompt_variance,
    wilson,
)
from orpo_cli.statistics.scored_pairs import BoolArray, FloatArray, IntArray, ScoredPairs

LEAST_PROMPTS = 10
"""So many prompts must have a pair whose chosen response is the longer one, and as many one whose is the shorter."""


@dataclass(frozen=True)
class LengthLogistic:
    """A logistic regression of winning a pair on how much longer its chosen response is.

    Args:
        at_equal_length: the log-odds of a win where both responses are equally long.
        slope: the change of the log-odds by one standard deviation of the difference in tokens.
        deviation: this standard deviation, in tokens.
    """

    at_equal_length: Estimate
    slope: Estimate
    deviation: float

    @property
    def accuracy_at_equal_length(self) -> Estimate:
        """Return the share of wins where both responses are equally long."""
        return self.at_equal_length.through(lambda log_odds: float(scipy.special.expit(log_odds)))


def longer_wins(longer: IntArray, pairs: ScoredPairs) -> Estimate:
    """Estimate the accuracy of a ruler that prefers the longer response; a tie counts one half.

    Args:
        longer: how much longer the chosen response of each pair is, in tokens or in characters, (B,).
    """
    return accuracy((1 + np.sign(longer)) / 2, pairs.weight, pairs.prompt)


def balanced_accuracy(pairs: ScoredPairs, outcome: FloatArray | None = None) -> Estimate | str:
    """Estimate the mean of the accuracies where chosen is longer and where it is shorter, or say why not.

    Whoever only prefers the longer, or the shorter, response scores one half. The interval is Wilson's, as for an
    accuracy. n and m independent pairs on the two sides would give the variance p (1 - p) (1/n + 1/m) / 4, so the
    effective number is at most 4 / (1/n + 1/m).

    Args:
        outcome: 1 where the pair is won, or the share of several models that win it, (B,); by default, one model's.
    """
    wins = pairs.wins.astype(float) if outcome is None else outcome
    sides = [pairs.more_tokens > 0, pairs.more_tokens < 0]
    prompts = [len(np.unique(pairs.prompt[side])) for side in sides]
    if min(prompts) < LEAST_PROMPTS:
        word = "longer" if prompts[0] < prompts[1] else "shorter"
        return (
            f"The chosen response is the {word} one for {min(prompts)} of {pairs.prompts} prompts; "
            f"a balanced accuracy needs {LEAST_PROMPTS} on each side"
        )
    shares, influence = [], np.zeros(len(pairs))
    for side in sides:
        weight = np.where(side, pairs.weight, 0.0) / pairs.weight[side].sum()
        shares.append(float((weight * wins).sum()))
        influence += weight * (wins - shares[-1]) / 2
    share = sum(shares) / 2
    either = sides[0] | sides[1]
    variance, both = prompt_variance(influence[either], pairs.prompt[either])
    number = effective_number(share, variance, _both_sides([side.sum() for side in sides]), _both_sides(prompts))
    return wilson(share, number, both)


def length_logistic(pairs: ScoredPairs) -> LengthLogistic | str:
    """Fit log-odds(win) = at_equal_length + slope * (more tokens / their standard deviation), or say why not.

    Errors are those of the sandwich: the inverse of the information times the variance of the scores, each prompt one.
    """
    if reason := _no_finite_fit(pairs.more_tokens, pairs.wins):
        return reason
    centre = np.average(pairs.more_tokens, weights=pairs.weight)
    deviation = float(np.sqrt(np.average((pairs.more_tokens - centre) ** 2, weights=pairs.weight)))
    design = np.stack([np.ones(len(pairs)), pairs.more_tokens / deviation])
    centred = design - [[0.0], [centre / deviation]]  # the fit converges best where intercept and slope are unrelated
    fit = _fitted(centred, pairs.wins, pairs.weight)
    fit -= [fit[1] * centre / deviation, 0.0]
    errors = pairs.weight * (pairs.wins - scipy.special.expit(fit @ design))
    influence = np.linalg.solve(_information(fit, design, pairs.weight), design * errors)
    at_equal_length, slope = (
        by_t(float(value), *prompt_variance(row, pairs.prompt)) for value, row in zip(fit, influence, strict=True)
    )
    return LengthLogistic(at_equal_length, slope, deviation)


def _both_sides(counts: list[int]) -> float:
    return float(4 / sum(1 / count for count in counts))


def _no_finite_fit(longer: IntArray, wins: BoolArray) -> str | None:
    """Return why the likelihood has no maximum, if it has none (Albert and Anderson 1984)."""
    if wins.all() or not wins.any():
        return f"All {len(wins)} pairs are {'won' if wins.all() else 'lost'}: length has nothing to explain"
    won, lost = longer[wins], longer[~wins]
    if won.min() == won.max() == lost.min() == lost.max():
        return "Chosen and rejected differ by the same number of tokens in every pair: length has nothing to explain"
    for low, high, names in ((lost, won, ("lost", "won")), (won, lost, ("won", "lost"))):
        if low.max() <= high.min():
            return (
                f"Length alone separates the pairs: chosen has at most {low.max():+d} tokens more than rejected where "
                f"the pair is {names[0]}, and at least {high.min():+d} where it is {names[1]}"
            )
    return None


def _fitted(design: FloatArray, wins: BoolArray, weight: FloatArray) -> FloatArray:
    """Return the two coefficients at which the gradient of the likelihood is zero."""
    total = weight.sum()
    return np.asarray(
        scipy.optimize.root(
            lambda fit: design @ (weight * (scipy.special.expit(fit @ design) - wins)) / total,
            np.zeros(2),
            jac=lambda fit: _information(fit, design, weight) / total,
            tol=1e-12,
        ).x
    )


def _information(fit: FloatArray, design: FloatArray, weight: FloatArray) -> NDArray[np.float64]:
    """Return the negative second derivative of the log-likelihood, (2, 2)."""
    win = scipy.special.expit(fit @ design)
    return np.asarray((design * (weight * win * (1 - win))) @ design.T)
