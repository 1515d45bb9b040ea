"""Two models on the same pairs."""

from dataclasses import replace

import numpy as np
import pytest
from made_pairs import made_pairs
from scipy import stats

from orpo_cli.errors import DataError
from orpo_cli.statistics.comparison import OTHER_TOKENS, compare
from orpo_cli.statistics.intervals import Estimate

BEFORE = [False, False, False, True, True, False]
AFTER = [True, True, True, False, True, False]
PROMPT = [0, 0, 1, 2, 3, 3]


def test_change_of_four_prompts_by_hand() -> None:
    """Three pairs became right and one wrong: change 2/6. Totals of the prompts: 2, 1, -1, 0.

    With one pair more flipped each way the mean is 2/8. Sums of d - 1/4: 3/2, 3/4, -5/4, -1/2, 3/4, -5/4, so
    v = 6/5 * 27/4 / 64 = 81/640; 1/4 + 2.57 * 0.356 is above 1, the largest change there is. Of the 8 sign flips of
    2, 1, 1 the sums are 4, 2, 2, 0 and their negatives: six of eight are at least 2.
    """
    comparison = compare(made_pairs(AFTER, PROMPT), made_pairs(BEFORE, PROMPT))
    low = 1 / 4 - stats.t.ppf(0.975, 5) * np.sqrt(81 / 640)
    change = comparison.change
    assert (comparison.to_chosen, comparison.to_rejected) == (3, 1)
    assert (change.value, change.low, change.high) == pytest.approx((1 / 3, low, 1.0), rel=1e-12)
    assert comparison.p == pytest.approx(0.75, abs=1e-12)


def test_change_of_nll_and_margin_by_hand() -> None:
    """A won pair has 1 nat a token and a lost one 3. Four pairs changed by -2, -2, -2, +2 of 6 of equal length.

    nll: -4/6; the margin is +1 or -1, so it changes by 4/6. Weights 1, 1, 1, 3, 1, 1: nothing is left of 2 + 2 + 2 - 6.
    """
    comparison = compare(made_pairs(AFTER, PROMPT), made_pairs(BEFORE, PROMPT))
    assert isinstance(comparison.nll, Estimate)
    assert isinstance(comparison.margin, Estimate)
    assert (comparison.nll.value, comparison.margin.value) == pytest.approx((-2 / 3, 2 / 3))
    weight = np.array([1.0, 1, 1, 3, 1, 1])
    weighted = compare(made_pairs(AFTER, PROMPT, weight=weight), made_pairs(BEFORE, PROMPT, weight=weight))
    assert (weighted.change.value, weighted.p) == pytest.approx((0.0, 1.0))


def test_longer_responses_weigh_more_in_the_change_of_nll() -> None:
    """100 tokens that lose 2 nats each and 300 that gain 2: (200 - 600) / 400 = -1."""
    comparison = compare(
        made_pairs([False, True], more_tokens=[0, 200]), made_pairs([True, False], more_tokens=[0, 200])
    )
    assert comparison.nll == Estimate(-1.0, pytest.approx(-1 - 3 * 6.3531), pytest.approx(-1 + 3 * 6.3531))


def test_equal_models_differ_by_nothing() -> None:
    """Which 6 pairs alone do not prove: with one more flipped each way, v = 6/5 * 2 / 64."""
    comparison = compare(made_pairs(AFTER, PROMPT), made_pairs(AFTER, PROMPT))
    assert (comparison.to_chosen, comparison.to_rejected, comparison.p) == (0, 0, 1.0)
    assert comparison.nll == comparison.margin == Estimate(0.0, 0.0, 0.0)
    half = stats.t.ppf(0.975, 5) * np.sqrt(0.0375)
    change = comparison.change
    assert (change.value, change.low, change.high) == pytest.approx((0.0, -half, half), rel=1e-12)


def test_one_prompt_proves_nothing() -> None:
    comparison = compare(made_pairs([True] * 6, [4] * 6), made_pairs([False] * 6, [4] * 6))
    assert (comparison.change, comparison.p) == (Estimate(1.0, None, None), 1.0)


def test_pairs_of_weight_zero_are_left_out() -> None:
    weight = np.array([0.0, 0, 0, 1, 1, 1])
    comparison = compare(made_pairs(AFTER, PROMPT, weight=weight), made_pairs(BEFORE, PROMPT, weight=weight))
    assert (comparison.to_chosen, comparison.to_rejected, comparison.change.value) == (0, 1, -1 / 3)


def test_models_with_other_tokens_are_compared_by_accuracy_only() -> None:
    ours = made_pairs(AFTER, PROMPT)
    theirs = replace(made_pairs(BEFORE, PROMPT), rejected_tokens=np.full(6, 90))
    comparison = compare(ours, theirs)
    assert (comparison.nll, comparison.margin) == (OTHER_TOKENS, OTHER_TOKENS)
    assert comparison.to_chosen == 3


def test_other_pairs_are_refused() -> None:
    ours = made_pairs(AFTER, PROMPT)
    with pytest.raises(
        DataError, match=r"^6 pairs cannot be compared with 5: both models must have scored the same pairs"
    ):
        compare(ours, made_pairs(BEFORE[:5], PROMPT[:5]))
    characters = ours.chosen_characters + np.array([0, 0, 7, 0, 7, 0])
    with pytest.raises(DataError, match=r"^Pair 3 of 6 .* \(chosen_characters: 400 and 407\): both models"):
        compare(ours, replace(ours, chosen_characters=characters))
    with pytest.raises(DataError, match=r"^Pair 1 of 6 .* \(source: made and other\)"):
        compare(ours, replace(ours, source=np.full(6, "other")))
