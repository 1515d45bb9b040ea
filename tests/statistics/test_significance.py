"""p-values against enumeration, the exact binomial test, and adjustments by hand."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from orpo_cli.statistics.significance import DRAWS, holm, sign_flip_p


def p_by_enumeration(totals: np.ndarray) -> float:
    flips = np.array(list(itertools.product((-1, 1), repeat=len(totals))))
    return float((np.abs(flips @ totals) >= abs(totals.sum()) - 1e-9).mean())


@given(st.lists(st.sampled_from([0, 1, -1, 2, -3, 0.1, 0.2, -0.3]), max_size=9))
def test_few_prompts_are_enumerated(totals: list[float]) -> None:
    """Sums that differ by rounding only, as 0.1 + 0.2 and 0.3, count as equal."""
    assert sign_flip_p(np.array(totals)) == pytest.approx(p_by_enumeration(np.array(totals)), abs=1e-12)


@pytest.mark.parametrize(("plus", "minus"), [(0, 0), (1, 0), (5, 0), (12, 4), (130, 100), (3000, 2800)])
def test_one_pair_a_prompt_is_mcnemars_exact_test(plus: int, minus: int) -> None:
    totals = np.repeat([1.0, -1.0, 0.0], [plus, minus, 40])
    expected = stats.binomtest(plus, plus + minus).pvalue if plus else 1.0
    assert sign_flip_p(totals) == pytest.approx(expected, rel=1e-9)


def test_many_different_totals_are_drawn() -> None:
    """18 different ones: each sum of 2^18 flips is another; within four standard errors of the exact p."""
    totals = np.sqrt(np.arange(1.0, 19)) * np.repeat([1, -1], [12, 6])
    exact = p_by_enumeration(totals)
    drawn = sign_flip_p(totals)
    assert drawn == pytest.approx(exact, abs=4 * math.sqrt(exact * (1 - exact) / DRAWS))
    assert drawn != exact
    assert drawn == sign_flip_p(totals)


def test_drawn_p_is_never_zero() -> None:
    assert sign_flip_p(np.sqrt(np.arange(1.0, 101))) == 1 / (1 + DRAWS)


def test_holm_by_hand() -> None:
    """0.01 * 4; 0.02 * 3; 0.03 * 2 = 0.06, no less than the one before; 0.9 * 1."""
    assert holm([0.03, 0.9, 0.01, 0.02]) == pytest.approx((0.06, 0.9, 0.04, 0.06))
    assert holm([0.6, 0.7]) == (1.0, 1.0)
    assert holm([0.25]) == (0.25,)
    assert holm([]) == ()
