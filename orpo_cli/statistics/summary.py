"""Summarize what a model gave to a set of pairs: whole, and by source, number of turns and length."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from math import exp

import numpy as np

from orpo_cli.statistics.comparison import compare, refuse_other_pairs
from orpo_cli.statistics.intervals import Estimate, accuracy, mean, ratio
from orpo_cli.statistics.length import LengthLogistic, balanced_accuracy, length_logistic, longer_wins
from orpo_cli.statistics.scored_pairs import BoolArray, IntArray, ScoredPairs
from orpo_cli.statistics.significance import holm

BUCKETS = 4
LEAST_PAIRS_A_BUCKET = 10
LARGEST_EXPONENT = 700.0  # e^709.8 is the largest number there is; a ruined model may come near


@dataclass(frozen=True)
class Summary:
    """Everything that is said about a set of pairs; where something cannot be said, a sentence tells why.

    Names are those of training/metrics.py where the number is the same.

    Args:
        pairs, prompts: the number of pairs whose weight is above 0, and of their prompts.
        accuracy, accuracy_sum: the share of pairs whose chosen response has the higher mean (or summed) logps.
        balanced_accuracy: the mean of the accuracies where chosen is longer and where it is shorter, in tokens.
        longer_wins, longer_wins_characters: the accuracy of a ruler that prefers the longer response.
        nll, nll_rejected: the mean negative log-probability of a token of the chosen, or rejected, responses.
        perplexity, perplexity_rejected: e to the power of these.
        margin, log_odds_ratio, logps_chosen, logps_rejected: means over pairs.
        length_logistic: the regression of winning on length.
    """

    pairs: int
    prompts: int
    accuracy: Estimate
    accuracy_sum: Estimate
    balanced_accuracy: Estimate | str
    longer_wins: Estimate
    longer_wins_characters: Estimate
    nll: Estimate
    nll_rejected: Estimate
    perplexity: Estimate
    perplexity_rejected: Estimate
    margin: Estimate
    log_odds_ratio: Estimate
    logps_chosen: Estimate
    logps_rejected: Estimate
    length_logistic: LengthLogistic | str


@dataclass(frozen=True)
class BreakdownRow:
    """What is said about a part of the pairs.

    Args:
        by: `source`, `turns` or `length`.
        name: the source, the number of user turns, or the chosen response's tokens.
        change: the change of accuracy against another model, if there is one.
        p: the p-value of this change, adjusted for the number of rows (Holm).
    """

    by: str
    name: str
    pairs: int
    prompts: int
    accuracy: Estimate
    nll: Estimate
    margin: Estimate
    change: Estimate | None = None
    p: float | None = None


def summarize(pairs: ScoredPairs) -> Summary:
    """Summarize a set of pairs.

    Raises:
        DataError: if no pair has a weight above 0.
    """
    pairs = pairs.counted()
    weight, prompt = pairs.weight, pairs.prompt
    estimates = _of_metrics(pairs)
    nll_rejected = ratio(-weight * pairs.rejected_logp, weight * pairs.rejected_tokens, prompt)
    return Summary(
        pairs=len(pairs),
        prompts=pairs.prompts,
        accuracy_sum=accuracy(pairs.wins_by_sum, weight, prompt),
        balanced_accuracy=balanced_accuracy(pairs),
        longer_wins=longer_wins(pairs.more_tokens, pairs),
        longer_wins_characters=longer_wins(pairs.more_characters, pairs),
        nll_rejected=nll_rejected,
        perplexity=estimates["nll"].through(_perplexity),
        perplexity_rejected=nll_rejected.through(_perplexity),
        length_logistic=length_logistic(pairs),
        **{name.replace("/", "_"): estimate for name, estimate in estimates.items()},
    )


def metrics_of_pairs(pairs: ScoredPairs) -> dict[str, float]:
    """Return those metrics of training/metrics.py that a summary has as well, to the last digit as it has them.

    Raises:
        DataError: if no pair has a weight above 0.
    """
    return {name: estimate.value for name, estimate in _of_metrics(pairs.counted()).items()}


def _of_metrics(pairs: ScoredPairs) -> dict[str, Estimate]:
    weight, prompt = pairs.weight, pairs.prompt
    return {
        "accuracy": accuracy(pairs.wins, weight, prompt),
        "nll": ratio(-weight * pairs.chosen_logp, weight * pairs.chosen_tokens, prompt),
        "margin": mean(pairs.margin, weight, prompt),
        "log_odds_ratio": mean(pairs.log_odds_ratio, weight, prompt),
        "logps/chosen": mean(pairs.chosen_mean, weight, prompt),
        "logps/rejected": mean(pairs.rejected_mean, weight, prompt),
    }


def breakdown(pairs: ScoredPairs, against: ScoredPairs | None = None) -> tuple[BreakdownRow, ...]:
    """Summarize the pairs of each source, number of turns and length, where there is more than one of them.

    Lengths are the quarters of the chosen responses by their tokens; fewer parts below 40 pairs.

    Args:
        against: what another model gave to the same pairs.

    Raises:
        DataError: if no pair has a weight above 0, or `against` are not the same pairs.
    """
    if against is not None:
        refuse_other_pairs(pairs, against)  # before each part has as many by chance
        against = against.counted()
    pairs = pairs.counted()
    rows, changes = [], []
    for by, name, part in _parts(pairs):
        rows.append(_row(by, name, pairs.take(part)))
        if against is not None:
            changes.append(compare(pairs.take(part), against.take(part)))
    adjusted = holm([change.p for change in changes])
    changed = (replace(row, change=change.change, p=p) for row, change, p in zip(rows, changes, adjusted, strict=False))
    return tuple(rows) if against is None else tuple(changed)


def _row(by: str, name: str, pairs: ScoredPairs) -> BreakdownRow:
    weight, prompt = pairs.weight, pairs.prompt
    return BreakdownRow(
        by,
        name,
        len(pairs),
        pairs.prompts,
        accuracy(pairs.wins, weight, prompt),
        ratio(-weight * pairs.chosen_logp, weight * pairs.chosen_tokens, prompt),
        mean(pairs.margin, weight, prompt),
    )


def _parts(pairs: ScoredPairs) -> Iterator[tuple[str, str, BoolArray]]:
    """Yield the name of each part and its pairs, (B,); what all pairs have in common is no part."""
    sources = list(dict.fromkeys(pairs.source.tolist()))
    turns = np.unique(pairs.turns).tolist()
    ends = _length_ends(pairs.chosen_tokens)
    if len(sources) > 1:
        yield from (("source", source, pairs.source == source) for source in sources)
    if len(turns) > 1:
        yield from (("turns", str(count) if count else "unknown", pairs.turns == count) for count in turns)
    if len(ends) > 1:
        for start, end in zip([pairs.chosen_tokens.min(), *(end + 1 for end in ends)], ends, strict=False):
            yield "length", f"{start} to {end}", (start <= pairs.chosen_tokens) & (pairs.chosen_tokens <= end)


def _length_ends(tokens: IntArray) -> list[int]:
    """Return the largest length of each part."""
    parts = min(BUCKETS, len(tokens) // LEAST_PAIRS_A_BUCKET)
    ends = np.quantile(tokens, np.arange(1, parts + 1) / parts, method="inverted_cdf")
    return [int(end) for end in np.unique(ends)]


def _perplexity(nll: float) -> float:
    return exp(min(nll, LARGEST_EXPONENT))
