"""What length explains, against closed forms and an independent fit."""

import numpy as np
import pytest
from made_pairs import made_pairs, prompts_of
from scipy import optimize, stats

from orpo_cli.statistics.intervals import Estimate, accuracy
from orpo_cli.statistics.length import LengthLogistic, balanced_accuracy, length_logistic, longer_wins
from orpo_cli.statistics.scored_pairs import ScoredPairs


def random_pairs(count: int = 120, most: int = 4) -> ScoredPairs:
    random = np.random.default_rng(0)
    more = random.integers(-40, 60, size=count)
    wins = random.random(count) < 1 / (1 + np.exp(-0.4 - more / 40))
    return made_pairs(wins, prompts_of(count, most), more, weight=random.choice([0.5, 1.0, 2.0], size=count))


def fitted(outcome: Estimate | LengthLogistic | str) -> LengthLogistic:
    assert isinstance(outcome, LengthLogistic)
    return outcome


def test_the_ruler_counts_a_tie_as_one_half() -> None:
    """Longer in two of five, shorter in one, equal in two: 3/5. Characters are asked for by their own column."""
    pairs = made_pairs([True] * 5, more_tokens=[3, 1, 0, -2, 0], chosen_characters=np.full(5, 500))
    assert longer_wins(pairs.more_tokens, pairs).value == pytest.approx(0.6)
    assert longer_wins(pairs.more_characters, pairs).value == 1.0


@pytest.mark.parametrize("shorter", [40, 70, 160])
@pytest.mark.parametrize("most", [1, 4])
def test_a_model_that_prefers_the_longer_scores_exactly_one_half_balanced(shorter: int, most: int) -> None:
    more = np.where(np.arange(200) < shorter, -7, 12) * (1 + np.arange(200) % 3)
    prompt = prompts_of(200, most)
    pairs = made_pairs(more > 0, prompt, more, weight=1.0 + np.arange(200) % 4)
    balanced = balanced_accuracy(pairs)
    assert isinstance(balanced, Estimate)
    assert balanced.value == pytest.approx(0.5, abs=1e-15)
    assert balanced.low < 0.45 < 0.55 < balanced.high
    opposite = balanced_accuracy(made_pairs(more < 0, prompt, more))
    assert isinstance(opposite, Estimate)
    assert opposite.value == pytest.approx(0.5, abs=1e-15)


def test_balanced_accuracy_by_hand() -> None:
    """20 prompts with a longer chosen, 15 won; 10 with a shorter one, 4 won; 5 of equal length, which do not count.

    (0.75 + 0.4) / 2 = 0.575. v = 30/29 (0.75 * 0.25 / 20 + 0.4 * 0.6 / 10) / 4 = 30/29 * 0.033375 / 4, and
    n_eff = 0.575 * 0.425 / v = 28.31..., below 4 / (1/20 + 1/10) = 26.67: the latter holds. Wilson's middle is
    (p + t^2 / 2n) / (1 + t^2 / n).
    """
    wins = np.concatenate([np.arange(20) < 15, np.arange(10) < 4, np.ones(5, bool)])
    balanced = balanced_accuracy(made_pairs(wins, more_tokens=np.repeat([9, -9, 0], [20, 10, 5])))
    assert isinstance(balanced, Estimate)
    square = stats.t.ppf(0.975, 29) ** 2 / (80 / 3)
    assert balanced.value == pytest.approx(0.575)
    assert (balanced.low + balanced.high) / 2 == pytest.approx((0.575 + square / 2) / (1 + square), rel=1e-12)


def test_balanced_accuracy_without_a_loss() -> None:
    """Each prompt counts once: 4 / (1/20 + 1/10) of them, and Wilson at 1 begins at 1 / (1 + t^2 / n)."""
    pairs = made_pairs([True] * 60, np.repeat(np.arange(30), 2), np.repeat([9, -9], [40, 20]))
    low = 1 / (1 + stats.t.ppf(0.975, 29) ** 2 / (80 / 3))
    assert balanced_accuracy(pairs) == Estimate(1.0, pytest.approx(low, rel=1e-12), 1.0)


def test_balanced_sides_of_independent_pairs_give_the_plain_accuracy() -> None:
    """With 50 pairs on each side and 35 won on each, both are 0.7; the interval differs by one pair of a hundred."""
    pairs = made_pairs(np.arange(100) % 50 < 35, more_tokens=np.repeat([5, -5], 50))
    balanced, plain = balanced_accuracy(pairs), accuracy(pairs.wins, pairs.weight, pairs.prompt)
    assert isinstance(balanced, Estimate)
    assert (balanced.value, balanced.low, balanced.high) == pytest.approx(
        (plain.value, plain.low, plain.high), abs=1e-12
    )


def test_too_few_prompts_on_a_side_are_said() -> None:
    """18 pairs whose chosen is shorter are of 9 prompts."""
    more = np.repeat([4, -4], [30, 18])
    prompt = np.concatenate([np.arange(30), np.repeat(np.arange(30, 39), 2)])
    assert balanced_accuracy(made_pairs([True, False] * 24, prompt, more)) == (
        "The chosen response is the shorter one for 9 of 39 prompts; a balanced accuracy needs 10 on each side"
    )
    assert balanced_accuracy(made_pairs([True, False] * 24, prompt, -more)) == (
        "The chosen response is the longer one for 9 of 39 prompts; a balanced accuracy needs 10 on each side"
    )
    assert balanced_accuracy(made_pairs([True])) == (
        "The chosen response is the shorter one for 0 of 1 prompts; a balanced accuracy needs 10 on each side"
    )


def test_logistic_of_two_lengths_has_a_closed_form() -> None:
    """60 pairs with +8 tokens, 45 won: log-odds ln 3. 60 with -8, 40 won: ln 2. The deviation is 8, so x = +1, -1.

    at_equal_length = (ln 3 + ln 2) / 2, slope = (ln 3 - ln 2) / 2; both have the variance
    120/119 (1 / (60 * 3/4 * 1/4) + 1 / (60 * 2/3 * 1/3)) / 4.
    """
    wins = np.concatenate([np.arange(60) < 45, np.arange(60) < 40])
    logistic = fitted(length_logistic(made_pairs(wins, more_tokens=np.repeat([8, -8], 60))))
    half = stats.t.ppf(0.975, 119) * np.sqrt(120 / 119 * (16 / 180 + 9 / 120) / 4)
    at_equal, slope = np.log(6) / 2, np.log(1.5) / 2
    assert logistic.deviation == 8.0
    for found, value in ((logistic.at_equal_length, at_equal), (logistic.slope, slope)):
        assert (found.value, found.low, found.high) == pytest.approx((value, value - half, value + half), rel=1e-9)
    share = logistic.accuracy_at_equal_length
    assert share.value == pytest.approx(6**0.5 / (1 + 6**0.5))
    assert share.low == pytest.approx(1 / (1 + np.exp(half - at_equal)))


def test_logistic_agrees_with_an_independent_fit() -> None:
    """The likelihood maximised without derivatives, and the sandwich of its numerical ones, prompt by prompt."""
    pairs = random_pairs()
    deviation = np.sqrt(np.cov(pairs.more_tokens, aweights=pairs.weight, ddof=0))

    def surprise(fit: np.ndarray, rows: np.ndarray | slice = slice(None)) -> float:
        log_odds = fit[0] + fit[1] * pairs.more_tokens[rows] / deviation
        return float((pairs.weight[rows] * np.logaddexp(0, np.where(pairs.wins[rows], -log_odds, log_odds))).sum())

    best = optimize.minimize(surprise, [0.0, 0.0], method="Nelder-Mead", options={"xatol": 1e-10, "fatol": 1e-13}).x
    steps = np.eye(2) * 1e-4
    scores, curvature = [], np.zeros((2, 2))
    groups = [np.flatnonzero(pairs.prompt == number) for number in np.unique(pairs.prompt)]
    for rows in groups:
        scores.append([(surprise(best + step, rows) - surprise(best - step, rows)) / 2e-4 for step in steps])
    for i, j in np.ndindex(2, 2):
        corners = [(a * b, surprise(best + a * steps[i] + b * steps[j])) for a in (1, -1) for b in (1, -1)]
        curvature[i, j] = sum(sign * value for sign, value in corners) / 4e-8
    bread, meat = np.linalg.inv(curvature), np.array(scores).T @ np.array(scores)
    errors = np.sqrt(np.diag(bread @ meat @ bread) * len(groups) / (len(groups) - 1))
    half = stats.t.ppf(0.975, len(groups) - 1) * errors

    logistic = fitted(length_logistic(pairs))
    assert logistic.deviation == pytest.approx(deviation, rel=1e-12)
    for found, value, reach in zip((logistic.at_equal_length, logistic.slope), best, half, strict=True):
        assert found.value == pytest.approx(value, abs=1e-5)
        assert (found.low, found.high) == pytest.approx((value - reach, value + reach), abs=1e-4)


def test_logistic_where_chosen_is_always_much_longer() -> None:
    """Lengths 1000 tokens up: the slope and its error stay, the odds at equal length follow from the line."""
    pairs = random_pairs()
    near = fitted(length_logistic(pairs))
    further = made_pairs(pairs.wins, pairs.prompt, pairs.more_tokens + 1000, weight=pairs.weight)
    far = fitted(length_logistic(further))
    assert (far.slope.value, far.slope.low) == pytest.approx((near.slope.value, near.slope.low), rel=1e-8)
    expected = near.at_equal_length.value - near.slope.value * 1000 / near.deviation
    assert far.at_equal_length.value == pytest.approx(expected, rel=1e-8)


@pytest.mark.parametrize(
    ("wins", "more", "said"),
    [
        ([True] * 4, [1, 2, -3, 4], "All 4 pairs are won: length has nothing to explain"),
        ([False] * 4, [1, 2, -3, 4], "All 4 pairs are lost: length has nothing to explain"),
        (
            [True, False, True, False],
            [7, -3, 2, 2],
            "Length alone separates the pairs: chosen has at most +2 tokens more than rejected where the pair is lost, "
            "and at least +2 where it is won",
        ),
        (
            [True, False, True],
            [-7, 3, -2],
            "Length alone separates the pairs: chosen has at most -2 tokens more than rejected where the pair is won, "
            "and at least +3 where it is lost",
        ),
        (
            [True, False, True],
            [5, 5, 5],
            "Chosen and rejected differ by the same number of tokens in every pair: length has nothing to explain",
        ),
    ],
)
def test_without_a_finite_fit_the_reason_is_said(wins: list[bool], more: list[int], said: str) -> None:
    assert length_logistic(made_pairs(wins, more_tokens=more)) == said


def test_a_single_pair_on_the_wrong_side_is_enough_for_a_fit() -> None:
    """The gradient is zero there: the mean chance of a win is the share of wins, also weighted by length."""
    pairs = made_pairs(np.arange(40) > 20, more_tokens=np.arange(40) - np.where(np.arange(40) == 30, 13, 0))
    logistic = fitted(length_logistic(pairs))
    log_odds = logistic.at_equal_length.value + logistic.slope.value * pairs.more_tokens / logistic.deviation
    surplus = pairs.wins - 1 / (1 + np.exp(-log_odds))
    assert (surplus.sum(), surplus @ pairs.more_tokens) == pytest.approx((0.0, 0.0), abs=1e-7)
    assert logistic.slope.value > 5


def test_one_prompt_gives_a_fit_without_bounds() -> None:
    logistic = fitted(length_logistic(made_pairs([True, False, True, False], [3] * 4, [4, -4, -4, 4])))
    assert (logistic.slope.low, logistic.at_equal_length.high) == (None, None)
    assert logistic.slope.value == pytest.approx(0.0, abs=1e-12)
