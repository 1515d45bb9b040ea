"""Hold the scores that a model gave to preference pairs, and derive what is counted from them.

B is the number of pairs.
"""

from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

from orpo_cli.errors import DataError

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]
BoolArray = NDArray[np.bool_]
TextArray = NDArray[np.str_]

LOG_HALF = -np.log(2.0)
CLOSEST_TO_ZERO = -1e-7  # as in losses/objective.py, so that the log odds ratio is the one that training shows


@dataclass(frozen=True)
class ScoredPairs:
    """Hold what a model gave to each pair of a set; each column is an array of shape (B,).

    Args:
        chosen_logp, rejected_logp: the sums of the log-probabilities of a response's tokens, in nats.
        chosen_tokens, rejected_tokens: the numbers of these tokens, each at least 1.
        chosen_characters, rejected_characters: the lengths of the responses as people read them.
        prompt: the number of the pair's prompt; pairs of one prompt are not independent of each other.
        turns: the number of user turns in the prompt; 0 where it is not known.
        source: the name of the file, or of the source, that the pair is from.
        weight: the weight of the pair; pairs of weight 0 are not counted anywhere.
    """

    chosen_logp: FloatArray
    rejected_logp: FloatArray
    chosen_tokens: IntArray
    rejected_tokens: IntArray
    chosen_characters: IntArray
    rejected_characters: IntArray
    prompt: IntArray
    turns: IntArray
    source: TextArray
    weight: FloatArray

    def __len__(self) -> int:
        return len(self.weight)

    def take(self, rows: BoolArray | IntArray) -> "ScoredPairs":
        """Return some of the pairs."""
        return ScoredPairs(*(getattr(self, field.name)[rows] for field in fields(self)))

    def counted(self) -> "ScoredPairs":
        """Return the pairs whose weight is above 0.

        Raises:
            DataError: if there is none.
        """
        positive = self.weight > 0
        if not positive.any():
            raise DataError(f"None of the {len(self)} pairs has a weight above 0: there is nothing to evaluate")
        return self if positive.all() else self.take(positive)

    @property
    def prompts(self) -> int:
        """Return the number of different prompts."""
        return len(np.unique(self.prompt))

    @property
    def chosen_mean(self) -> FloatArray:
        """Return the mean log-probability of the chosen response's tokens."""
        return self.chosen_logp / self.chosen_tokens

    @property
    def rejected_mean(self) -> FloatArray:
        """Return the mean log-probability of the rejected response's tokens."""
        return self.rejected_logp / self.rejected_tokens

    @property
    def margin(self) -> FloatArray:
        """Return how much higher the mean log-probability of the chosen response is."""
        return self.chosen_mean - self.rejected_mean

    @property
    def log_odds_ratio(self) -> FloatArray:
        """Return the log-odds of chosen over rejected by mean log-probability (arXiv 2403.07691, eq. 5)."""
        return _log_odds(self.chosen_mean) - _log_odds(self.rejected_mean)

    @property
    def wins(self) -> BoolArray:
        """Return whether the chosen response has the higher mean log-probability; a tie is no win, as in training."""
        return self.margin > 0

    @property
    def wins_by_sum(self) -> BoolArray:
        """Return whether the chosen response has the higher summed log-probability."""
        return self.chosen_logp > self.rejected_logp

    @property
    def more_tokens(self) -> IntArray:
        """Return how many tokens more the chosen response has than the rejected one."""
        return self.chosen_tokens - self.rejected_tokens

    @property
    def more_characters(self) -> IntArray:
        """Return how many characters more the chosen response has than the rejected one."""
        return self.chosen_characters - self.rejected_characters


def _log_odds(logp: FloatArray) -> FloatArray:
    """Return log(p / (1 - p)) from log p <= 0; log(1 - p) as Maechler 2012 computes it."""
    near_zero = np.log(-np.expm1(np.clip(logp, LOG_HALF, CLOSEST_TO_ZERO)))
    far = np.log1p(-np.exp(np.minimum(logp, LOG_HALF)))
    return np.asarray(logp - np.where(logp > LOG_HALF, near_zero, far))
