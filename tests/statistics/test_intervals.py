"""Estimates against numbers derived by hand and independent references."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from made_pairs import made_pairs
from scipy import optimize, stats

from orpo_cli.statistics.intervals import Estimate, accuracy, effective_number, mean, prompt_variance, ratio, wilson


def wilson_by_roots(share: float, number: float, t: float) -> tuple[float, float]:
    """Return the shares that are just t standard errors, their own, away from the one observed."""

    def distance(true: float) -> float:
        return (share - true) ** 2 - t**2 * true * (1 - true) / number

    inside = min(max(share, 1e-9), 1 - 1e-9)  # 0 and 1 are roots themselves
    low = 0.0 if share == 0 else optimize.brentq(distance, 0.0, inside, xtol=1e-14)
    return low, 1.0 if share == 1 else optimize.brentq(distance, inside, 1.0, xtol=1e-14)


def bounds(estimate: Estimate) -> tuple[float | None, float | None]:
    return estimate.low, estimate.high


def test_accuracy_of_three_prompts_by_hand() -> None:
    """Prompts won 2 of 2, 1 of 2 and 0 of 1: p = 0.6.

    Sums of y - p: 0.8, -0.2, -0.6, so v = 3/2 (0.64 + 0.04 + 0.36) / 25 = 0.0624 and n_eff = 0.24 / 0.0624 = 50/13.
    """
    wins, prompt = np.array([1.0, 1, 1, 0, 0]), np.array([5, 5, 3, 3, 8])
    estimate = accuracy(wins, np.ones(5), prompt)
    assert estimate.value == pytest.approx(0.6, abs=1e-15)
    assert bounds(estimate) == pytest.approx(wilson_by_roots(0.6, 50 / 13, stats.t.ppf(0.975, 2)), abs=1e-12)


@pytest.mark.parametrize(("won", "pairs"), [(1, 50), (25, 50), (71, 100), (499, 504)])
def test_with_one_pair_a_prompt_one_pair_is_lost_to_the_mean(won: int, pairs: int) -> None:
    """v = n/(n-1) * n p (1-p) / n^2, so n_eff = n - 1."""
    estimate = accuracy(np.arange(pairs) < won, np.ones(pairs), np.arange(pairs))
    expected = wilson_by_roots(won / pairs, pairs - 1, stats.t.ppf(0.975, pairs - 1))
    assert (estimate.value, *bounds(estimate)) == pytest.approx((won / pairs, *expected), abs=1e-12)


def test_without_a_loss_or_a_win_each_prompt_counts_once() -> None:
    """Wilson at p = 1: the lower bound is 1 / (1 + t^2 / G)."""
    prompt, t = np.repeat(np.arange(20), 3), stats.t.ppf(0.975, 19)
    won, lost = (accuracy(np.full(60, outcome), np.ones(60), prompt) for outcome in (True, False))
    assert bounds(won) == pytest.approx((1 / (1 + t**2 / 20), 1.0), abs=1e-12)
    assert bounds(lost) == pytest.approx((0.0, 1 - 1 / (1 + t**2 / 20)), abs=1e-12)


def test_pairs_never_count_more_than_once() -> None:
    """Each prompt has one win and one loss, so that prompts do not vary at all: 12 pairs count as 12."""
    estimate = accuracy(np.tile([True, False], 6), np.ones(12), np.repeat(np.arange(6), 2))
    assert bounds(estimate) == pytest.approx(wilson_by_roots(0.5, 12, stats.t.ppf(0.975, 5)), abs=1e-12)


def test_one_prompt_gives_no_interval() -> None:
    assert accuracy(np.array([True, False]), np.ones(2), np.zeros(2, int)) == Estimate(0.5, None, None)
    assert mean(np.array([1.0, 4.0]), np.array([1.0, 3.0]), np.zeros(2, int)) == Estimate(3.25, None, None)
    assert Estimate(2.0, None, None).through(np.sqrt) == Estimate(np.sqrt(2.0), None, None)


def test_mean_of_independent_pairs_has_the_interval_of_the_textbook() -> None:
    values = np.random.default_rng(0).normal(size=30)
    estimate = mean(values, np.ones(30), np.arange(30))
    expected = stats.ttest_1samp(values, 0.0).confidence_interval(0.95)
    assert (estimate.value, *bounds(estimate)) == pytest.approx((values.mean(), *expected), rel=1e-12)


def test_ratio_of_two_prompts_by_hand() -> None:
    """30 nats over 10 tokens and, in two pairs, 6 + 12 over 2 + 4: R = 48/16 = 3.

    Sums of nats - R tokens: 30 - 30 = 0 and 0: no variance. With 33 and 15 instead of 30 and 18 they are 3 and -3, and
    v = 2/1 * 18 / 256 = 9/64; the standard error is 3/8.
    """
    tokens, prompt = np.array([10.0, 2, 4]), np.array([0, 1, 1])
    assert ratio(np.array([30.0, 6, 12]), tokens, prompt) == Estimate(3.0, 3.0, 3.0)
    half = stats.t.ppf(0.975, 1) * 3 / 8
    assert bounds(ratio(np.array([33.0, 6, 9]), tokens, prompt)) == pytest.approx((3 - half, 3 + half), rel=1e-12)


SETS = st.lists(st.tuples(st.booleans(), st.integers(0, 9), st.sampled_from([0.5, 1.0, 3.0])), min_size=1, max_size=40)


@given(SETS)
def test_variance_is_that_of_plain_loops_and_the_interval_holds_the_value(rows: list[tuple[bool, int, float]]) -> None:
    """In any order of pairs and with any numbers for prompts."""
    outcome, prompt, weight = (np.array(column) for column in zip(*rows, strict=True))
    total = sum(w for _, _, w in rows)
    share = sum(w * y for y, _, w in rows) / total
    sums = {g: sum(w * (y - share) for y, h, w in rows if h == g) for _, g, _ in rows}
    prompts = len(sums)
    variance = prompts / max(prompts - 1, 1) * sum(value**2 for value in sums.values()) / total**2
    assert prompt_variance(weight * (outcome - share) / total, prompt) == (pytest.approx(variance, abs=1e-15), prompts)
    estimate = accuracy(outcome, weight, prompt)
    assert estimate.value == pytest.approx(share, abs=1e-15)
    if prompts > 1:
        number = min(len(rows), share * (1 - share) / variance) if variance > 1e-15 else len(rows)
        expected = wilson_by_roots(share, prompts if share in (0, 1) else number, stats.t.ppf(0.975, prompts - 1))
        assert bounds(estimate) == pytest.approx(expected, abs=1e-9)


@given(SETS)
def test_pairs_twice_in_their_prompts_say_nothing_new(rows: list[tuple[bool, int, float]]) -> None:
    """The variance is the same, and so is a mean; an accuracy too where the number of pairs is not the limit."""
    outcome, prompt, weight = (np.array(column) for column in zip(*rows, strict=True))
    once = mean(outcome, weight, prompt)
    twice = mean(np.tile(outcome, 2), np.tile(weight, 2), np.tile(prompt, 2))
    if once.low is None:
        assert twice == Estimate(pytest.approx(once.value), None, None)
    else:
        assert (twice.value, *bounds(twice)) == pytest.approx((once.value, *bounds(once)), abs=1e-12)


def test_independent_pairs_twice_give_the_same_accuracy() -> None:
    once = accuracy(np.arange(48) < 31, np.ones(48), np.arange(48))
    twice = accuracy(np.tile(np.arange(48) < 31, 2), np.ones(96), np.tile(np.arange(48), 2))
    assert bounds(twice) == pytest.approx(bounds(once), abs=1e-12)


def test_the_effective_number_ends_at_the_number_of_pairs() -> None:
    assert effective_number(0.5, 0.01, most=100, without_variance=7) == 25
    assert effective_number(0.5, 1e-33, most=100, without_variance=7) == 100
    assert effective_number(0.5, 0.0, most=100, without_variance=7) == 100
    assert effective_number(1.0, 0.0, most=100, without_variance=7) == 7


@given(st.integers(0, 300), st.integers(1, 300), st.integers(2, 300))
def test_an_interval_of_a_share_stays_between_0_and_1(won: int, more: int, prompts: int) -> None:
    estimate = wilson(won / (won + more), won + more, prompts)
    assert 0 <= estimate.low <= estimate.value <= estimate.high <= 1


def test_numbers_are_plain_floats() -> None:
    """They are written as JSON."""
    pairs = made_pairs([True, False, True])
    for estimate in (accuracy(pairs.wins, pairs.weight, pairs.prompt), mean(pairs.margin, pairs.weight, pairs.prompt)):
        assert [type(number) for number in (estimate.value, estimate.low, estimate.high)] == [float] * 3
