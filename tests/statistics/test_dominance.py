"""When a trial of a search is dominated: both objectives, clearly, twice in a row, not too early and not at its end."""

import numpy as np
import pytest
from made_pairs import made_pairs
from scipy.special import expit

from orpo_cli.statistics.dominance import Dominated, Evaluations, dominated
from orpo_cli.statistics.scored_pairs import ScoredPairs

STEPS = (10, 20, 30, 40)


def model(won: int, nll: float, pairs: int = 20) -> ScoredPairs:
    """The first `won` of some pairs are won; the nll of each chosen response differs a little from the mean."""
    chosen = -100 * (nll + np.linspace(-0.01, 0.01, pairs))
    wins = np.arange(pairs) < won
    return made_pairs(wins, chosen_logp=chosen, rejected_logp=chosen + np.where(wins, -100, 100))


def at(steps: tuple[int, ...], pairs: ScoredPairs) -> Evaluations:
    return dict.fromkeys(steps, pairs)


GOOD, POOR = model(20, 1.0), model(10, 2.0)


def test_a_trial_behind_in_both_is_stopped_at_the_second_evaluation_that_counts() -> None:
    """Of 40 steps a quarter is 10: the evaluations after 10 and 20 are the first two in a row."""
    assert dominated(at(STEPS, POOR), [at(STEPS, GOOD)], 40) == Dominated(20, 0)


def test_the_first_quarter_does_not_count() -> None:
    assert dominated(at(STEPS, POOR), [at(STEPS, GOOD)], 60) == Dominated(30, 0)


@pytest.mark.parametrize(
    "trial",
    [model(20, 2.0), model(10, 1.0), model(18, 2.0), model(20, 1.0)],
    ids=["accuracy is as good", "nll is as good", "two pairs prove nothing", "equal"],
)
def test_one_objective_alone_is_no_reason(trial: ScoredPairs) -> None:
    """Two flips one way have p = 2 / 2^2."""
    assert dominated(at(STEPS, trial), [at(STEPS, GOOD)], 40) is None


def test_once_is_no_reason_and_neither_is_twice_with_a_gap() -> None:
    assert dominated({10: GOOD, 20: POOR, 30: GOOD}, [at(STEPS, GOOD)], 40) is None
    assert dominated({10: POOR, 20: GOOD, 30: POOR}, [at(STEPS, GOOD)], 40) is None
    assert dominated({10: GOOD, 20: POOR, 30: POOR}, [at(STEPS, GOOD)], 40) == Dominated(30, 0)


def test_the_last_step_comes_too_late() -> None:
    assert dominated({30: POOR, 40: POOR}, [at(STEPS, GOOD)], 40) is None


def test_two_rivals_that_are_better_once_each_are_no_reason() -> None:
    rivals = [{10: GOOD, 20: POOR, 30: GOOD}, {10: POOR, 20: GOOD, 30: POOR}]
    assert dominated(at(STEPS, POOR), rivals, 40) is None


def test_a_rival_counts_as_far_as_it_went_on_the_same_pairs() -> None:
    stopped, others = {10: GOOD}, at(STEPS, model(20, 1.0, pairs=21))
    assert dominated(at(STEPS, POOR), [stopped, others], 40) is None
    assert dominated(at(STEPS, POOR), [stopped, others, at(STEPS, GOOD)], 40) == Dominated(20, 2)


@pytest.mark.parametrize(("rivals", "stops"), [(1, True), (6, True), (7, False)])
def test_a_part_of_eight_pairs_proves_the_less_the_more_rivals_there_are(rivals: int, stops: bool) -> None:
    """Eight flips one way have p = 2 / 2^8 = 0.0078; six times that is below 0.05, seven times is not."""
    trial, rival = at(STEPS, model(0, 2.0, pairs=8)), at(STEPS, model(8, 1.0, pairs=8))
    assert (dominated(trial, [rival] * rivals, 40) is not None) == stops


@pytest.mark.slow
@pytest.mark.parametrize(("rivals", "pairs"), [(1, 8), (1, 100), (5, 30), (19, 100)])
def test_a_trial_as_good_as_its_rivals_is_hardly_ever_stopped(rivals: int, pairs: int) -> None:
    """Ten evaluations; runs share what makes a pair hard, and their nll differs clearly, so accuracy alone decides."""
    random, found = np.random.default_rng(0), 0

    def run(shared: np.ndarray) -> Evaluations:
        own, level = 0.7 * random.standard_normal(pairs), random.standard_normal()
        wins = [random.random(pairs) < expit(3 * (shared + own)) for _ in range(10)]
        chosen = -100 * (5 + level + 0.05 * random.standard_normal((10, pairs)))
        return {
            10 * (place + 1): made_pairs(won, chosen_logp=logps, rejected_logp=logps + np.where(won, -50, 50))
            for place, (won, logps) in enumerate(zip(wins, chosen, strict=True))
        }

    for _ in range(100):
        shared = random.standard_normal(pairs)
        found += dominated(run(shared), [run(shared) for _ in range(rivals)], 110) is not None
    assert found <= 3
