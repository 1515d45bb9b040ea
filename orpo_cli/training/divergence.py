"""What is said of a step that is not finite: its numbers, the rows they come from, and the token."""

from collections.abc import Sequence

import torch

from orpo_cli.data import plan
from orpo_cli.data.collation import CHOSEN, PROMPT
from orpo_cli.data.tokens.store import PairStore
from orpo_cli.training.micro_batches import Measured, collate, is_finite
from orpo_cli.training.training import Training

_NAMED = 10


def report(training: Training, step: plan.Step, measured: Sequence[Measured], metrics: dict[str, float]) -> str:
    """Name the pairs whose scores are not finite; where all are, the gradient broke and the whole step is suspect."""
    own = [
        (pair, f" in micro-batch {number} of {len(measured)}, {_first_token(training, training.train, pair)}")
        for number, done in enumerate(measured, start=1)
        for pair in broken_pairs(done)
    ]
    broken = sorted(training.hardware.gathered(own[:_NAMED]))
    sources = _named(training.train, broken or [(pair, "") for pair in sorted(step.pairs)])
    what = "log-probabilities are not finite for" if broken else "all pairs have finite scores; the step's pairs are"
    return (
        f"step {step.number} of {training.total_steps} is not finite: loss {metrics['loss']:g}, "
        f"gradient norm {metrics['grad_norm']:g}, lr {metrics['lr']:g}; {what} {sources}"
    )


def evaluation_report(training: Training, step: int, broken: Sequence[int], metrics: dict[str, float]) -> str:
    """Name the held-out pairs, found by this process, whose scores are not finite."""
    own = [(pair, f", {_first_token(training, training.evaluation, pair)}") for pair in broken[:_NAMED]]
    rows = _named(training.evaluation, sorted(set(training.hardware.gathered(own))))
    return (
        f"the evaluation after step {step} is not finite: loss {metrics['loss']:g}; "
        f"log-probabilities are not finite for {rows or 'no pair, but a mean is'}"
    )


def broken_pairs(measured: Measured) -> list[int]:
    """Pairs of a micro-batch whose scores are not finite."""
    totals = (measured.scores.chosen_sum + measured.scores.rejected_sum).tolist()
    return [pair for pair, total in zip(measured.pairs, totals, strict=True) if not is_finite(total)]


def _named(store: PairStore, pairs: Sequence[tuple[int, str]]) -> str:
    sources = "; ".join(f"{store.source(pair)}{where}" for pair, where in pairs[:_NAMED])
    return sources + (f" and {len(pairs) - _NAMED} more" if len(pairs) > _NAMED else "")


def _first_token(training: Training, store: PairStore, pair: int) -> str:
    """Which token's log-probability is the first that is not finite, on a second look at the pair."""
    batch = collate(training, store, [pair])
    with torch.no_grad(), training.scorer.at_work(training.layout):
        token_logps = training.scorer(batch)
    broken = (~torch.isfinite(token_logps)).nonzero().flatten().tolist()
    if not broken:
        return "its tokens finite on a second look"
    scored = batch.scored
    role = int(scored.roles[broken[0]])
    place = int((scored.roles[: broken[0]] == role).sum()) + 1
    text = {PROMPT: "prompt", CHOSEN: "chosen response"}.get(role, "rejected response")
    return f"token {place} of its {text} (id {int(scored.ids[broken[0]])})"
