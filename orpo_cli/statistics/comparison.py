"""Compare two models on the same pairs."""

from dataclasses import dataclass, replace

import numpy as np

from orpo_cli.errors import DataError
from orpo_cli.statistics.intervals import Estimate, mean, prompt_sums, ratio
from orpo_cli.statistics.scored_pairs import FloatArray, ScoredPairs
from orpo_cli.statistics.significance import sign_flip_p

OTHER_TOKENS = "Not comparable: the two models cut the responses into different tokens"


@dataclass(frozen=True)
class Comparison:
    """What changed from one model to another on the same pairs.

    Args:
        to_chosen: the number of pairs that the other model had wrong and this one has right.
        to_rejected: the number of pairs that the other model had right and this one has wrong.
        change: the accuracy of this model minus that of the other.
        p: the probability of a change at least as large between equal models, by flipping signs over prompts.
        nll, margin: the change of these means; a sentence where the models have other tokens.
    """

    to_chosen: int
    to_rejected: int
    change: Estimate
    p: float
    nll: Estimate | str
    margin: Estimate | str


def compare(pairs: ScoredPairs, against: ScoredPairs) -> Comparison:
    """Compare a model with another that scored the same pairs in the same order.

    Raises:
        DataError: if they are not the same pairs, or none has a weight above 0.
    """
    refuse_other_pairs(pairs, against)
    pairs, against = pairs.counted(), against.counted()
    gain = pairs.wins.astype(float) - against.wins
    same_tokens = np.array_equal(pairs.chosen_tokens, against.chosen_tokens) and np.array_equal(
        pairs.rejected_tokens, against.rejected_tokens
    )
    return Comparison(
        to_chosen=int((gain > 0).sum()),
        to_rejected=int((gain < 0).sum()),
        change=_change_of_accuracy(gain, pairs),
        p=sign_flip_p(prompt_sums(pairs.weight * gain, pairs.prompt)),
        nll=_change_of_nll(pairs, against) if same_tokens else OTHER_TOKENS,
        margin=mean(pairs.margin - against.margin, pairs.weight, pairs.prompt) if same_tokens else OTHER_TOKENS,
    )


def _change_of_accuracy(gain: FloatArray, pairs: ScoredPairs) -> Estimate:
    """Estimate the change of accuracy, with the interval of two imaginary pairs more, one flipped each way.

    Where few pairs flip, the plain interval is far too narrow, and of no width where none does; so it covers (after
    Bonett and Price 2012, who add them to a table of pairs).
    """
    value = float((pairs.weight * gain).sum() / pairs.weight.sum())
    if pairs.prompts == 1:
        return Estimate(value, None, None)
    weight = np.append(pairs.weight, [pairs.weight.mean()] * 2)
    prompt = np.append(pairs.prompt, [pairs.prompt.max() + 1, pairs.prompt.max() + 2])
    return replace(mean(np.append(gain, [1.0, -1.0]), weight, prompt), value=value).within(-1.0, 1.0)


def _change_of_nll(pairs: ScoredPairs, against: ScoredPairs) -> Estimate:
    nats = against.chosen_logp - pairs.chosen_logp
    return ratio(pairs.weight * nats, pairs.weight * pairs.chosen_tokens, pairs.prompt)


def refuse_other_pairs(pairs: ScoredPairs, against: ScoredPairs) -> None:
    """Check that both sets have the same columns, but for those that depend on the model.

    Raises:
        DataError: if they do not.
    """
    if len(pairs) != len(against):
        raise DataError(
            f"{len(pairs)} pairs cannot be compared with {len(against)}: both models must have scored the same pairs"
        )
    for column in ("prompt", "chosen_characters", "rejected_characters", "source", "weight"):
        ours, theirs = getattr(pairs, column), getattr(against, column)
        if (other := np.flatnonzero(ours != theirs)).size:
            place = other[0]
            raise DataError(
                f"Pair {place + 1} of {len(pairs)} is not the same in both sets ({column}: {ours[place]} and "
                f"{theirs[place]}): both models must have scored the same pairs in the same order"
            )
