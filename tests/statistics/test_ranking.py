"""Ranks: shared where a paired test cannot separate, with the variance between seeds where that is known."""

from math import sqrt

import numpy as np
import pytest
from made_pairs import made_pairs
from scipy.stats import t

from orpo_cli.statistics.pooled import contributions, pooled, spread
from orpo_cli.statistics.ranking import Contender, SeedVariance, difference_p, front, ranked, seed_variance
from orpo_cli.statistics.scored_pairs import ScoredPairs
from orpo_cli.statistics.summary import summarize

METRICS = ("accuracy", "balanced_accuracy", "nll", "margin")


def random_pairs(seed: int, pairs: int = 120) -> ScoredPairs:
    """Pairs of 60 prompts, whose weights and lengths differ."""
    draws = np.random.default_rng(seed)
    lengths = np.random.default_rng(0).integers(-40, 40, pairs)
    return made_pairs(
        draws.random(pairs) < 0.6,
        prompt=np.arange(pairs) // 2,
        more_tokens=lengths,
        weight=np.random.default_rng(1).uniform(0.5, 2, pairs),
        rejected_logp=-100 * draws.uniform(1.5, 2.5, pairs),
    )


def test_one_run_pooled_has_the_numbers_of_its_summary() -> None:
    pairs = random_pairs(2)
    found, summary = pooled([pairs]), summarize(pairs)
    assert all(getattr(found, name) == getattr(summary, name) for name in METRICS)


@pytest.mark.parametrize("name", METRICS)
def test_a_pooled_metric_is_the_mean_over_runs_and_the_sum_over_pairs(name: str) -> None:
    """1e-12: the same sums in another order."""
    runs = [random_pairs(2), random_pairs(3), random_pairs(4)]
    values = [getattr(summarize(pairs), name).value for pairs in runs]
    assert getattr(pooled(runs), name).value == pytest.approx(sum(values) / 3, abs=1e-12)
    assert contributions(name, runs).sum(1) == pytest.approx(values, abs=1e-12)


def test_spread_is_the_standard_deviation_over_seeds() -> None:
    """Of 0.5, 0.6 and 0.8: mean 19/30, squares 16 + 1 + 25 of 1/900, over 2."""
    assert spread([0.5, 0.6, 0.8]) == pytest.approx(sqrt(42 / 900 / 2))
    assert spread([0.5]) is None


def parts(*runs: list[float]) -> np.ndarray:
    return np.array(runs) / len(runs[0])


def test_without_seeds_the_test_flips_signs_over_prompts() -> None:
    """Six prompts that all say the same: 2 of the 64 flips are as far from 0."""
    p = difference_p(parts([1] * 6), parts([0] * 6), np.arange(6), None)
    assert p == pytest.approx(2 / 64)


def test_seeds_count_as_a_second_variance() -> None:
    """20 prompts of which 16 are gained and 4 lost: 0.6; variance over prompts 20/19 * 20/400, over seeds 2 * 0.02 / 2.

    Satterthwaite's degrees of freedom, with 19 and 2 of the two variances.
    """
    gain = [1.0] * 16 + [0.0] * 4
    ours, theirs = parts(gain, gain), parts([1 - one for one in gain], [1 - one for one in gain])
    of_prompts, of_seeds = 20 / 19 * 20 / 400, 0.02
    degrees = (of_prompts + of_seeds) ** 2 / (of_prompts**2 / 19 + of_seeds**2 / 2)
    expected = 2 * t.sf(0.6 / sqrt(of_prompts + of_seeds), degrees)
    assert difference_p(ours, theirs, np.arange(20), SeedVariance(0.02, 2)) == pytest.approx(expected)
    assert difference_p(ours, theirs, np.arange(20), None) < 0.02 < 0.03 < expected


def test_variance_between_seeds_is_pooled_over_recipes() -> None:
    """0.5 and 0.7 have squares 0.02 about their mean; 0.4 and 0.4 none; one run says nothing: 0.02 over 2 degrees."""
    contenders = [Contender(np.full((1, 1), 0.9), 0), Contender(np.array([[0.5], [0.7]]), 0)]
    contenders.append(Contender(np.array([[0.4], [0.4]]), 0))
    found = seed_variance(contenders)
    assert found is not None
    assert (found.variance, found.degrees) == (pytest.approx(0.01), 2)
    assert seed_variance(contenders[:1]) is None


def won(first: int, count: int, of: int = 100) -> np.ndarray:
    wins = np.zeros((1, of))
    wins[0, first : first + count] = 1 / of
    return wins


def test_recipes_that_cannot_be_separated_share_a_rank_in_the_order_of_their_tie() -> None:
    """80 and 78 of 100 pairs, then 60 and 59; the last two differ by one pair, from the first by 20 or more."""
    values = {"worse nll": (won(0, 80), 2.0), "better nll": (won(0, 78), 1.0), "low": (won(0, 59), 1.5)}
    values["lower"] = (won(0, 60), 1.6)
    names = list(values)
    found = ranked([Contender(*value) for value in values.values()], np.arange(100))
    assert [(names[one.index], one.rank) for one in found] == [
        ("better nll", 1), ("worse nll", 1), ("low", 3), ("lower", 3),
    ]  # fmt: skip
    assert found[1].p is None
    # two pairs flipped, both one way: 2 of 4; 20 and 21 pairs: 2^-19 and 2^-20 times 2 and 3
    assert [found[index].p for index in (0, 2, 3)] == pytest.approx([0.5, 3 * 2**-20, 2 * 2**-19])


def test_equal_recipes_have_one_rank() -> None:
    found = ranked([Contender(won(0, 50), 1.0), Contender(won(0, 50), 1.0)], np.arange(100))
    assert [one.rank for one in found] == [1, 1]


def test_front() -> None:
    points = [(0.8, 2.0), (0.7, 1.0), (0.7, 1.5), (0.9, 3.0), (0.8, 2.0), (0.6, 0.9)]
    assert front(points) == [True, True, False, True, True, True]


@pytest.mark.slow
def test_recipes_that_differ_only_by_chance_have_no_winner() -> None:
    """1,000 times three seeds of two equal recipes, where seeds shift the accuracy: at most 6 % are separated.

    The flips over prompts alone, which know nothing of other seeds, separate more than 40 %.
    """
    draws = np.random.default_rng(7)
    separated = flipped = 0
    for _ in range(1000):
        hard, prompt = draws.normal(size=100), np.arange(100)
        recipes = []
        for _ in range(2):
            shifts = draws.normal(scale=0.4, size=(3, 1))
            recipes.append((hard + shifts + draws.normal(size=(3, 100)) > -0.3) / 100)
        found = ranked([Contender(one, 0.0) for one in recipes], prompt)
        separated += found[1].rank == 2
        flipped += difference_p(*recipes, prompt, None) < 0.05
    assert separated <= 60
    assert flipped > 400


@pytest.mark.slow
def test_one_of_several_equal_models_rarely_wins() -> None:
    """600 times two, four and eight equal models: one is alone on the first rank at most 6 % of the time."""
    draws = np.random.default_rng(0)
    for count in (2, 4, 8):
        alone = 0
        for _ in range(600):
            wins = draws.normal(size=60) + draws.normal(size=(count, 60)) > -0.3
            found = ranked([Contender(one[None] / 60, 0.0) for one in wins], np.arange(60))
            alone += found[1].rank != 1
        assert alone <= 36, count
