"""What is derived from the scores of pairs."""

import numpy as np
import pytest
import torch
from made_pairs import made_pairs

from orpo_cli.errors import DataError
from orpo_cli.losses import objective


def test_log_odds_ratio_is_that_of_the_objective() -> None:
    """Also at probability 1, where both are clamped at log p = -1e-7, and where p is smaller than any float."""
    logp = np.array([-0.0, -1e-9, -1e-4, -0.5, -0.7, -3.0, -800.0])
    tokens = np.ones(7, int)
    pairs = made_pairs(
        [True] * 7, chosen_logp=logp, rejected_logp=logp[::-1], chosen_tokens=tokens, rejected_tokens=tokens
    )
    expected = objective.log_odds(torch.tensor(logp)) - objective.log_odds(torch.tensor(logp[::-1].copy()))
    np.testing.assert_allclose(pairs.log_odds_ratio, expected.numpy(), rtol=1e-12)


def test_a_tie_is_no_win_and_the_sum_may_say_otherwise_than_the_mean() -> None:
    """Mean: -20/10 = -2 against -2 (tie), -1.5, -2.5; sums: -20 against -20, -15, -20 (a tie too)."""
    pairs = made_pairs(
        [True] * 3,
        chosen_logp=np.array([-20.0, -20.0, -20.0]),
        chosen_tokens=np.array([10, 10, 10]),
        rejected_logp=np.array([-20.0, -15.0, -20.0]),
        rejected_tokens=np.array([10, 10, 8]),
    )
    assert pairs.wins.tolist() == [False, False, True]
    assert pairs.wins_by_sum.tolist() == [False, False, False]
    assert pairs.margin.tolist() == [0.0, -0.5, 0.5]


def test_pairs_of_weight_zero_are_not_counted() -> None:
    pairs = made_pairs([True, False, True], prompt=[7, 7, 9], weight=np.array([0.5, 0.0, 0.0]))
    assert (len(pairs.counted()), pairs.counted().prompt.tolist(), pairs.prompts) == (1, [7], 2)
    with pytest.raises(DataError, match="None of the 2 pairs has a weight above 0"):
        pairs.take(np.array([1, 2])).counted()
    with pytest.raises(DataError, match="None of the 0 pairs"):
        made_pairs([]).counted()
