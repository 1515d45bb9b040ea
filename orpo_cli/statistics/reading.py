"""Read what a run did: a few sentences, each by a rule and with the numbers that it rests on.

A sentence claims a difference only where a test over prompts tells one; what the numbers do not show is said as well.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import scipy

from orpo_cli.statistics.answers import Answer, fluency
from orpo_cli.statistics.evaluation import Evaluation
from orpo_cli.statistics.intervals import Estimate
from orpo_cli.statistics.scored_pairs import ScoredPairs
from orpo_cli.statistics.summary import Summary

LEAST_P = 0.05
"""A change whose p-value is as large is not told from none."""

HARDLY = 0.02
"""The share of the weight on chosen below which the preference term hardly acts; usual values of lambda begin there."""

OVERWHELMS = 0.9
"""The share from which on the preference term leaves the nll nothing to say."""

UNMOVED = 1e-3
"""Nats a token. A model whose log-probabilities have moved less is as it was."""

FAR_LESS = 0.5
"""Nats a token. By so much less likely, chosen is far less likely than rejected."""

VISIBLE = 0.005
"""Nats a token. A smaller move is 0.00 in words."""

PARTED = 0.05
"""Nats a token. By so much the margin has to grow before the two sides have parted."""

LENGTH_RULES = 0.15
"""How far from one half a ruler of length has to score before a rise in accuracy may be its."""


@dataclass(frozen=True)
class Outcome:
    """What is known of a run at its end.

    Args:
        lambda_: the weight of the preference term; None where the loss has none.
        evaluation: the model against the one that the run began with; None where nothing was held out, or not kept.
        before, after: the answers to the same prompts.
        pairs_per_step, pairs_in_last_step: pairs in a step, and in the last one.
        held_out: the number of held-out pairs.
    """

    lambda_: float | None
    evaluation: Evaluation | None
    before: Sequence[Answer] = ()
    after: Sequence[Answer] = ()
    pairs_per_step: int = 1
    pairs_in_last_step: int = 1
    held_out: int = 0


@dataclass(frozen=True)
class Sentence:
    """One thing that is said of a run.

    Args:
        name: the name of its rule.
        warns: whether it tells of something that may be wrong.
    """

    name: str
    text: str
    warns: bool = False


def read(outcome: Outcome) -> tuple[Sentence, ...]:
    """Return what is to be said of a run, in order; the texts are for people, the names for programs."""
    return tuple(_sentences(outcome))


def read_evaluation(evaluation: Evaluation) -> tuple[Sentence, ...]:
    """Return what is to be said of a model against another by their scores alone; nothing where there is no other."""
    before = evaluation.against_summary
    if evaluation.comparison is None or evaluation.against is None or before is None:
        return ()
    if _has_moved(evaluation):
        return tuple(_of_the_change(evaluation, before))
    moved = f"log-probabilities differ by {_moved(evaluation):.1g} nats a token"
    return (Sentence("unmoved", f"0 of {evaluation.summary.pairs} pairs flipped and {moved}: the models score alike."),)


def _sentences(outcome: Outcome) -> Iterator[Sentence]:
    evaluation = outcome.evaluation
    if evaluation is None and outcome.held_out:
        yield Sentence("no_scores", "What the held-out pairs scored was not kept; `orpo evaluate` scores them again.")
    elif evaluation is None:
        yield Sentence(
            "nothing_held_out",
            "Nothing was held out, so no number says whether the run helped; data.eval_fraction=0.1 holds a tenth out.",
            warns=True,
        )
    elif evaluation.comparison is None or evaluation.against is None or evaluation.against_summary is None:
        yield Sentence("no_baseline", "The evaluation before the first step is missing, so no change can be told.")
    elif _has_moved(evaluation):
        yield from _of_the_change(evaluation, evaluation.against_summary)
    else:
        yield Sentence(
            "unmoved",
            f"0 of {evaluation.summary.pairs} pairs flipped and log-probabilities moved by {_moved(evaluation):.1g} "
            "nats a token: the model is as it was; the learning rate is too small, or the run too short.",
            warns=True,
        )
    yield from _of_the_preference_term(outcome)
    yield from _of_the_answers(outcome)
    if outcome.pairs_in_last_step * 2 < outcome.pairs_per_step:
        yield Sentence(
            "short_last_step",
            f"The last step had {outcome.pairs_in_last_step} of {outcome.pairs_per_step} pairs, so its own numbers are "
            "noisier than the others.",
        )


def _of_the_change(evaluation: Evaluation, before: Summary) -> Iterator[Sentence]:
    """Yield what changed on the held-out pairs, and what explains it."""
    yield from _imitation(before)
    yield _accuracy(evaluation, before)
    yield from _length(evaluation, before)
    yield from _both_sides(evaluation, before)


def _imitation(before: Summary) -> Iterator[Sentence]:
    if before.accuracy.value < 0.2 and before.margin.value < -FAR_LESS:
        yield Sentence(
            "hard_to_imitate",
            f"Before training chosen was far less likely than rejected ({before.logps_chosen.value:.2f} and "
            f"{before.logps_rejected.value:.2f} nats a token, accuracy {before.accuracy.value:.2f}): the model may not "
            "be able to imitate it.",
            warns=True,
        )


def _accuracy(evaluation: Evaluation, before: Summary) -> Sentence:
    found, now, then = evaluation.comparison, evaluation.summary.accuracy, before.accuracy
    assert found is not None
    change = (
        f"accuracy {then.value:.2f} to {now.value:.2f} {_interval(now)} on {evaluation.summary.pairs} held-out pairs"
    )
    flips = f"{found.to_chosen} flipped to chosen, {found.to_rejected} to rejected"
    p = "p < 0.001" if found.p < 0.001 else f"p {found.p:.2g}"
    if found.p >= LEAST_P:
        return Sentence("no_difference", f"No difference can be told: {change} ({flips}; {p}).")
    if found.change.value > 0:
        return Sentence("rose", f"Chosen wins more often: {change} ({flips}; {p}).")
    return Sentence("fell", f"Chosen wins less often: {change} ({flips}; {p}).", warns=True)


def _length(evaluation: Evaluation, before: Summary) -> Iterator[Sentence]:
    """Yield that a rise may be length: a ruler of length scores too, and the balanced accuracy does not rise with it.

    A model that only prefers one length has a balanced accuracy of one half.
    """
    found, now = evaluation.comparison, evaluation.summary
    assert found is not None
    if found.p >= LEAST_P or found.change.value <= 0:
        return
    longer = now.longer_wins.value
    rule, score = ("the longer response wins", longer) if longer >= 0.5 else ("the shorter response wins", 1 - longer)
    if score - 0.5 < LENGTH_RULES:
        return
    balanced, was = now.balanced_accuracy, before.balanced_accuracy
    if isinstance(balanced, Estimate) and isinstance(was, Estimate):
        is_told_from_chance = balanced.low is not None and balanced.low > 0.5
        if is_told_from_chance and balanced.value - was.value >= found.change.value / 2:
            return
        control = f"the accuracy balanced by length goes from {was.value:.2f} to {balanced.value:.2f}"
    else:
        control = "too few pairs go the other way to tell it apart"
    yield Sentence(
        "may_be_length",
        f'Most of the gain may be due to length: the rule "{rule}" scores {score:.2f} on these pairs, and {control}.',
        warns=True,
    )


def _both_sides(evaluation: Evaluation, before: Summary) -> Iterator[Sentence]:
    """Yield how the log-probabilities of both responses moved."""
    now, margin = evaluation.summary, evaluation.comparison and evaluation.comparison.margin
    if not isinstance(margin, Estimate):
        return
    chosen = now.logps_chosen.value - before.logps_chosen.value
    rejected = now.logps_rejected.value - before.logps_rejected.value
    moves = f"chosen {chosen:+.2f}, rejected {rejected:+.2f} nats a token"
    has_parted = margin.low is not None and margin.high is not None and not margin.low <= 0 <= margin.high
    if chosen < 0:
        yield Sentence("chosen_less_likely", f"Chosen became less likely too: {moves}.", warns=True)
    elif has_parted and margin.value >= PARTED:
        yield Sentence("parted", f"Chosen and rejected moved apart: {moves}; the margin grew by {_signed(margin)}.")
    elif rejected > 0 and chosen >= VISIBLE:
        yield Sentence(
            "alike",
            f"Both sides became more likely alike: {moves}; the margin changed by {_signed(margin)}, which SFT alone "
            "would do too.",
        )


def _of_the_preference_term(outcome: Outcome) -> Iterator[Sentence]:
    if outcome.lambda_ is None or outcome.lambda_ == 0:
        yield Sentence("no_preference_term", "The loss was nll alone: nothing but imitation of chosen was trained.")
        return
    if outcome.evaluation is None:
        return
    scored = outcome.evaluation.scored
    share = scored.metrics["or_pull"] / (1 + scored.metrics["or_pull"])
    weighed = f"the preference term has {share:.0%} of the weight on chosen (lambda {outcome.lambda_:g})"
    if share < HARDLY:
        yield Sentence("hardly_acts", f"Lambda hardly acts: {weighed}.", warns=True)
    elif share > OVERWHELMS:
        yield Sentence("overwhelms", f"Lambda overwhelms the nll: {weighed}.", warns=True)
    else:
        saturated = f"its sigmoid is {saturation(scored.pairs):.0%} saturated"
        yield Sentence("acts", f"On held-out pairs {weighed}; {saturated}.")


def saturation(pairs: ScoredPairs) -> float:
    """Return the weighted mean of sigmoid(log odds ratio): 0.5 pushes half as hard as it can, at 1 nothing is left."""
    pairs = pairs.counted()
    return float((pairs.weight * scipy.special.expit(pairs.log_odds_ratio)).sum() / pairs.weight.sum())


def _of_the_answers(outcome: Outcome) -> Iterator[Sentence]:
    """Yield that answers are damaged, in a comparison with those before."""
    if not outcome.before or not outcome.after:
        return
    then, now = fluency(outcome.before), fluency(outcome.after)
    if now.repeating >= then.repeating + 2:
        yield Sentence(
            "repeats",
            f"{now.repeating} of {now.answers} answers repeat themselves ({then.repeating} before): look at them.",
            warns=True,
        )
    elif now.words < 2 <= then.words:
        yield Sentence(
            "empty_answers", f"The answers have {now.words:.1f} words ({then.words:.0f} before).", warns=True
        )
    else:
        ending = "" if now.ending is None else f"; {now.ending} end by themselves ({then.ending} before)"
        yield Sentence(
            "fluent",
            f"{now.repeating} of {now.answers} answers repeat themselves ({then.repeating} before){ending}; "
            f"{now.words:.0f} words each ({then.words:.0f}), different pairs of words {now.distinct:.2f} "
            f"({then.distinct:.2f}).",
        )


def _has_moved(evaluation: Evaluation) -> bool:
    found = evaluation.comparison
    assert found is not None
    return bool(found.to_chosen or found.to_rejected) or _moved(evaluation) >= UNMOVED


def _moved(evaluation: Evaluation) -> float:
    """Return the mean absolute change of the log-probabilities, in nats a token."""
    assert evaluation.against is not None
    now, then = evaluation.scored.pairs, evaluation.against.pairs
    return float((abs(now.chosen_mean - then.chosen_mean) + abs(now.rejected_mean - then.rejected_mean)).mean() / 2)


def _interval(estimate: Estimate) -> str:
    return "" if estimate.low is None or estimate.high is None else f"[{estimate.low:.2f}, {estimate.high:.2f}]"


def _signed(estimate: Estimate) -> str:
    if estimate.low is None or estimate.high is None:
        return f"{estimate.value:+.2f}"
    return f"{estimate.value:+.2f} [{estimate.low:+.2f}, {estimate.high:+.2f}]"
