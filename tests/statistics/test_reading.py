"""The reading of made situations: which sentences come, and with which numbers."""

from collections.abc import Sequence

import numpy as np
import pytest
from made_pairs import made_pairs

from orpo_cli.statistics.answers import Answer
from orpo_cli.statistics.evaluation import Evaluation, Scored, evaluation_of
from orpo_cli.statistics.reading import Outcome, Sentence, read, saturation
from orpo_cli.statistics.scored_pairs import ScoredPairs

COUNT = 40


def scored(pairs: ScoredPairs, pull: float = 0.3) -> Scored:
    rows = np.stack([np.zeros(len(pairs), np.int64), np.arange(len(pairs))], 1)
    return Scored("model", pairs, {"or_pull": pull}, rows, np.arange(len(pairs)), [])


def evaluated(before: ScoredPairs, after: ScoredPairs, pull: float = 0.3) -> Evaluation:
    return evaluation_of(scored(after, pull), scored(before, pull))


def pairs(chosen: float, rejected: float, wins: int = COUNT // 2, more_tokens: Sequence[int] | int = 0) -> ScoredPairs:
    """The rejected responses at this mean log-probability, chosen near its own: the first `wins` are 0.1 above both
    numbers, the others 0.1 below."""
    made = made_pairs([True] * COUNT, more_tokens=more_tokens)
    above, below = max(chosen, rejected) + 0.1, min(chosen, rejected) - 0.1
    means = np.where(np.arange(COUNT) < wins, above, below)
    return ScoredPairs(
        **{**vars(made), "chosen_logp": means * made.chosen_tokens, "rejected_logp": rejected * made.rejected_tokens}
    )


def texts(text: str, count: int = 8) -> list[Answer]:
    return [Answer(f"{number}?", text, text, True, 9) for number in range(count)]


def found(outcome: Outcome) -> dict[str, Sentence]:
    return {sentence.name: sentence for sentence in read(outcome)}


def test_nothing_held_out() -> None:
    assert set(found(Outcome(0.1, None))) == {"nothing_held_out"}


def test_a_learning_rate_too_small() -> None:
    """Nothing flips; a quarter of the responses move by 4e-6."""
    before, after = pairs(-2.0, -2.0), pairs(-2.0 + 4e-6, -2.0)
    said = found(Outcome(0.1, evaluated(before, after)))
    assert said["unmoved"].text.startswith("0 of 40 pairs flipped and log-probabilities moved by 1e-06 nats a token")
    assert said["unmoved"].warns
    assert not said.keys() & {"rose", "fell", "no_difference", "alike"}


def test_a_rise_with_its_interval() -> None:
    said = found(Outcome(0.5, evaluated(pairs(-2.0, -2.0, wins=10), pairs(-1.8, -2.4, wins=36))))
    text = said["rose"].text
    assert text.startswith("Chosen wins more often: accuracy 0.25 to 0.90 [0.7")
    assert "26 flipped to chosen, 0 to rejected; p < 0.001" in text
    assert "parted" in said
    assert "may_be_length" not in said


@pytest.mark.parametrize("wins", [18, 20, 22])
def test_two_seeds_of_one_recipe_differ_by_nothing(wins: int) -> None:
    said = found(Outcome(0.1, evaluated(pairs(-2.0, -2.0), pairs(-1.9, -1.9, wins=wins))))
    assert said["no_difference"].text.startswith("No difference can be told: accuracy 0.50 to")
    assert not said.keys() & {"rose", "fell"}


def test_both_sides_more_likely_alike() -> None:
    """As after SFT: +0.1 both, and the margin stays."""
    said = found(Outcome(0.1, evaluated(pairs(-2.0, -2.0), pairs(-1.9, -1.9))))
    assert said["alike"].text.startswith("Both sides became more likely alike: chosen +0.10, rejected +0.10")


def test_chosen_less_likely() -> None:
    said = found(Outcome(0.1, evaluated(pairs(-2.0, -2.0, wins=10), pairs(-3.0, -6.0, wins=40))))
    assert said["chosen_less_likely"].text.startswith("Chosen became less likely too: chosen -")
    assert said["chosen_less_likely"].warns


@pytest.mark.parametrize("ruler", ["longer wins", "shorter wins"])
def test_a_rise_that_length_explains(ruler: str) -> None:
    """Chosen is longer, or shorter, in 28 of 40 pairs. Afterwards all of these are won and no other; before, some."""
    is_explained = np.arange(COUNT) < 28
    longer = np.where(is_explained == (ruler == "longer wins"), 20, -20)
    half = np.arange(COUNT) % 2 == 0
    made_before = made_pairs(half, more_tokens=longer)
    after = made_pairs(is_explained, more_tokens=longer)
    weak = found(Outcome(0.1, evaluated(made_before, after)))
    assert "may_be_length" not in weak  # 0.5 to 0.7 is no rise that a test can tell
    few = np.arange(COUNT) % 4 == 0
    said = found(Outcome(0.1, evaluated(made_pairs(few, more_tokens=longer), after)))
    rule = f"the {ruler.replace(' ', ' response ')}"
    assert said["may_be_length"].text == (
        f'Most of the gain may be due to length: the rule "{rule}" scores 0.70 on these pairs, and the accuracy '
        "balanced by length goes from 0.25 to 0.50."
    )


def test_lambda_that_hardly_acts_and_one_that_overwhelms() -> None:
    """A pull of 0.01 beside the nll's 1 is 1 % of the weight; of 19, 95 %. The usual lambda of 0.1 begins with 5 %."""
    before, after = pairs(-2.0, -2.0), pairs(-1.9, -1.9)
    small, large = (found(Outcome(0.1, evaluated(before, after, pull))) for pull in (0.01, 19.0))
    assert "has 1% of the weight on chosen (lambda 0.1)" in small["hardly_acts"].text
    assert "has 95% of the weight" in large["overwhelms"].text
    for pull in (0.05, 0.5):
        assert "acts" in found(Outcome(0.1, evaluated(before, after, pull)))
    for lambda_ in (0.0, None):
        assert "no_preference_term" in found(Outcome(lambda_, evaluated(before, after)))


def test_a_rise_with_ruined_answers() -> None:
    evaluation = evaluated(pairs(-2.0, -2.0, wins=10), pairs(-1.8, -2.4, wins=36))
    ruined = [*texts("on and on and on and on and on", 6), *texts("a fine answer that ends", 2)]
    said = found(Outcome(0.5, evaluation, before=texts("a fine answer that ends"), after=ruined))
    assert said["repeats"].text == "6 of 8 answers repeat themselves (0 before): look at them."
    assert {"rose", "repeats"} <= set(said)
    fine = found(Outcome(0.5, evaluation, before=texts("a fine answer"), after=texts("another fine answer")))
    assert "repeats" not in fine
    assert fine["fluent"].text.startswith("0 of 8 answers repeat themselves (0 before); 8 end by themselves (8 before)")


def test_far_less_likely_from_the_start() -> None:
    """As the first built-in preferences: -4.5 against -3.0, accuracy 0."""
    said = found(Outcome(0.5, evaluated(pairs(-4.5, -3.0, wins=0), pairs(-4.0, -5.0, wins=40))))
    assert said["hard_to_imitate"].text.startswith("Before training chosen was far less likely than rejected (-4.6")
    assert "hard_to_imitate" not in found(Outcome(0.5, evaluated(pairs(-2.0, -2.0), pairs(-1.9, -1.9))))


def test_a_short_last_step() -> None:
    said = found(Outcome(0.1, None, pairs_per_step=8, pairs_in_last_step=2))
    assert said["short_last_step"].text.startswith("The last step had 2 of 8 pairs")
    assert "short_last_step" not in found(Outcome(0.1, None, pairs_per_step=8, pairs_in_last_step=4))


def test_saturation_by_hand() -> None:
    """Equal log-odds are half saturated; odds of 3 to 1, log-odds ln 3 against 0, three quarters."""
    one, half = np.log(0.75), np.log(0.5)
    made = made_pairs([True])
    equal = ScoredPairs(**{**vars(made), "chosen_logp": made.rejected_logp / 100 * made.chosen_tokens})
    assert saturation(equal) == pytest.approx(0.5)
    parted = ScoredPairs(
        **{**vars(made), "chosen_logp": one * made.chosen_tokens, "rejected_logp": half * made.rejected_tokens}
    )
    assert saturation(parted) == pytest.approx(0.75)
