"""Pool the runs of a recipe, which differ only in their seed and have all been scored on the same pairs.

B is the number of pairs, R the number of runs.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from orpo_cli.statistics.intervals import Estimate, accuracy, mean, ratio
from orpo_cli.statistics.length import balanced_accuracy
from orpo_cli.statistics.scored_pairs import FloatArray, ScoredPairs


@dataclass(frozen=True)
class Pooled:
    """The means over the runs of a recipe.

    Intervals are over prompts, of the mean outcome of each pair: what other prompts would have given to these runs.
    What other seeds would have given is not in them; see `spread`.

    Args:
        balanced_accuracy: a sentence where it cannot be said.
    """

    accuracy: Estimate
    balanced_accuracy: Estimate | str
    nll: Estimate
    margin: Estimate


def pooled(runs: Sequence[ScoredPairs]) -> Pooled:
    """Return the means over runs; of one run they are those of `summarize`."""
    first = runs[0]
    weight, prompt = first.weight, first.prompt
    wins = np.mean([pairs.wins for pairs in runs], axis=0)
    chosen = np.mean([pairs.chosen_logp for pairs in runs], axis=0)
    return Pooled(
        accuracy=accuracy(wins, weight, prompt),
        balanced_accuracy=balanced_accuracy(first, wins),
        nll=ratio(-weight * chosen, weight * first.chosen_tokens, prompt),
        margin=mean(np.mean([pairs.margin for pairs in runs], axis=0), weight, prompt),
    )


def contributions(metric: str, runs: Sequence[ScoredPairs]) -> FloatArray:
    """Return what each pair adds to a metric of each run, (R, B); the sum over the pairs of a run is its metric.

    Args:
        metric: the name of a field of `Pooled`; where `balanced_accuracy` can be said of these pairs.
    """
    first = runs[0]
    share = first.weight / first.weight.sum()
    if metric == "accuracy":
        return np.stack([share * pairs.wins for pairs in runs])
    if metric == "margin":
        return np.stack([share * pairs.margin for pairs in runs])
    if metric == "nll":
        a_nat = share / (share * first.chosen_tokens).sum()
        return np.stack([-a_nat * pairs.chosen_logp for pairs in runs])
    sides = [np.where(side, first.weight, 0.0) for side in (first.more_tokens > 0, first.more_tokens < 0)]
    halves = np.asarray(sides[0] / sides[0].sum() + sides[1] / sides[1].sum()) / 2
    return np.stack([halves * pairs.wins for pairs in runs])


def spread(values: Sequence[float]) -> float | None:
    """Return the standard deviation of a metric over seeds; None for one seed."""
    return float(np.std(values, ddof=1)) if len(values) > 1 else None
