"""Simulations: intervals hold the truth as often as they say, and equal models are not told apart.

Whether a pair is won depends on its prompt: the log-odds of a prompt are normal with standard deviation 1, around the
middle that gives the accuracy. A share of 4,000 repetitions has a standard error of 0.4 percent points or less, of
10,000 of 0.25.
"""

import numpy as np
import pytest
from made_pairs import made_pairs, prompts_of
from scipy.optimize import brentq
from scipy.special import expit

from orpo_cli.statistics.comparison import compare
from orpo_cli.statistics.intervals import Estimate, accuracy
from orpo_cli.statistics.length import balanced_accuracy

pytestmark = pytest.mark.slow

NODES, MASSES = np.polynomial.hermite_e.hermegauss(60)
ACCURACIES = (0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.97)


def share_of_wins(log_odds: float, deviation: float) -> float:
    return float(MASSES @ expit(log_odds + deviation * NODES) / MASSES.sum())


def log_odds_of(share: float, deviation: float) -> float:
    return float(brentq(lambda middle: share_of_wins(middle, deviation) - share, -1.0, 40.0))


@pytest.mark.parametrize("most", [1, 4, 6])
@pytest.mark.parametrize("pairs", [50, 100, 200, 504])
def test_accuracy_is_covered(pairs: int, most: int) -> None:
    random, prompt, weight = np.random.default_rng(0), prompts_of(pairs, most), np.ones(pairs)
    covered = {}
    for share in ACCURACIES:
        middle, hits = log_odds_of(share, 1.0), 0
        for _ in range(10_000):
            effects = random.standard_normal(prompt[-1] + 1)
            estimate = accuracy(random.random(pairs) < expit(middle + effects)[prompt], weight, prompt)
            hits += estimate.low <= share <= estimate.high
        covered[share] = hits / 10_000
    assert all(0.93 <= rate <= 0.985 for rate in covered.values()), covered


@pytest.mark.parametrize(("pairs", "most"), [(50, 4), (100, 6), (200, 1), (504, 4)])
def test_equal_models_are_rarely_told_apart(pairs: int, most: int) -> None:
    """Two models share half of what makes a prompt hard or easy, so that pairs of a prompt flip together."""
    random, prompt = np.random.default_rng(0), prompts_of(pairs, most)
    rejected = {}
    for share in (0.5, 0.7, 0.97):
        middle, hits = log_odds_of(share, 2**0.5), 0
        for _ in range(4000):
            shared, *own = random.standard_normal((3, prompt[-1] + 1))
            wins = [random.random(pairs) < expit(middle + shared + effects)[prompt] for effects in own]
            hits += compare(*(made_pairs(model, prompt) for model in wins)).p <= 0.05
        rejected[share] = hits / 4000
    assert all(rate <= 0.06 for rate in rejected.values()), rejected


@pytest.mark.parametrize("most", [1, 4, 6])
@pytest.mark.parametrize("longer", [0.5, 0.2])
def test_balanced_accuracy_is_covered(longer: float, most: int) -> None:
    """200 pairs of a model that likes length: half a logit more where chosen is longer, half a logit less else."""
    random, prompt = np.random.default_rng(0), prompts_of(200, most)
    covered = {}
    for middle in (0.0, 1.5):
        share, hits = (share_of_wins(middle + 0.5, 1.0) + share_of_wins(middle - 0.5, 1.0)) / 2, 0
        for _ in range(4000):
            more = np.where(random.random(200) < longer, 10, -10)
            effects = random.standard_normal(prompt[-1] + 1)[prompt]
            wins = random.random(200) < expit(middle + more / 20 + effects)
            estimate = balanced_accuracy(made_pairs(wins, prompt, more))
            assert isinstance(estimate, Estimate)
            hits += estimate.low <= share <= estimate.high
        covered[middle] = hits / 4000
    assert all(0.93 <= rate <= 0.985 for rate in covered.values()), covered
