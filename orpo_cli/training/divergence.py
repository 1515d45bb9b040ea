"""Report a step that is not finite: its numbers, the rows they come from, and the token."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from orpo_cli.data import plan
from orpo_cli.data.collation import CHOSEN, PROMPT
from orpo_cli.data.tokens.store import PairStore
from orpo_cli.training.inputs import Scoring, Training
from orpo_cli.training.micro_batches import MicroBatchLoss, collate

_NAMED = 10


def step_report(
    training: Training, step: plan.Step, losses: Sequence[MicroBatchLoss], metrics: dict[str, float]
) -> str:
    """Name the pairs whose scores are not finite; without any, the gradient broke and all pairs are suspects."""
    own = [
        _Found(pair, training.hardware.rank, f" in micro-batch {number} of {len(losses)}")
        for number, done in enumerate(losses, start=1)
        for pair in broken_pairs(done)
    ]
    broken = _described(training.scoring, training.train, own)
    sources = _named(training.train, broken or [(pair, "") for pair in sorted(step.pairs)])
    what = "log-probabilities are not finite for" if broken else "all pairs have finite scores; the step's pairs are"
    return (
        f"step {step.number} of {training.total_steps} is not finite: loss {metrics['loss']:g}, "
        f"gradient norm {metrics['grad_norm']:g}, lr {metrics['lr']:g}; {what} {sources}"
    )


def evaluation_report(
    scoring: Scoring, store: PairStore, step: int, broken: Sequence[int], metrics: dict[str, float]
) -> str:
    """Name the held-out pairs whose scores are not finite.

    Args:
        broken: those that this process has found.
    """
    rows = _named(store, _described(scoring, store, [_Found(pair, scoring.hardware.rank) for pair in broken]))
    what = f"log-probabilities are not finite for {rows}" if rows else "all pairs are finite, but not their sum"
    return f"the evaluation after step {step} is not finite: loss {metrics['loss']:g}; {what}"


def broken_pairs(done: MicroBatchLoss) -> list[int]:
    """Return the pairs of a micro-batch whose scores are not finite."""
    totals = (done.scores.chosen_sum + done.scores.rejected_sum).tolist()
    return [pair for pair, total in zip(done.pairs, totals, strict=True) if not math.isfinite(total)]


@dataclass(frozen=True, order=True)
class _Found:
    """A pair whose scores are not finite, the process that has found it, and where there."""

    pair: int
    rank: int
    where: str = ""


def _described(scoring: Scoring, store: PairStore, own: Sequence[_Found]) -> list[tuple[int, str]]:
    """Return the pairs that any process has found, and in words where it was, as the process says that found it.

    Args:
        own: those that this process has found; all processes call this together.
    """
    hardware = scoring.hardware
    found = sorted({one.pair: one for one in sorted(hardware.gathered([*own[:_NAMED]]), reverse=True)}.values())
    tokens = [_first_token(scoring, store, one.pair) for one in found]  # divided weights need all processes for it
    said = [(one, token) for one, token in zip(found, tokens, strict=True) if one.rank == hardware.rank]
    on = f" on process {{}} of {hardware.processes}" if hardware.processes > 1 else ""
    return [(one.pair, f"{one.where}{on.format(one.rank)}, {token}") for one, token in sorted(hardware.gathered(said))]


def _named(store: PairStore, pairs: Sequence[tuple[int, str]]) -> str:
    sources = "; ".join(f"{store.source(pair)}{where}" for pair, where in pairs[:_NAMED])
    return sources + (f" and {len(pairs) - _NAMED} more" if len(pairs) > _NAMED else "")


def _first_token(scoring: Scoring, store: PairStore, pair: int) -> str:
    """Compute a pair again, in all processes, and say which token is the first with no finite log-probability."""
    batch = collate(scoring, store, [pair])
    with torch.no_grad(), scoring.scorer.at_work(scoring.layout):
        token_logps = scoring.scorer(batch)
    broken = (~torch.isfinite(token_logps)).nonzero().flatten().tolist()
    if not broken:
        return "finite when computed again"
    scored = batch.scored
    role = int(scored.roles[broken[0]])
    place = int((scored.roles[: broken[0]] == role).sum()) + 1
    text = {PROMPT: "prompt", CHOSEN: "chosen response"}.get(role, "rejected response")
    return f"token {place} of its {text} (id {int(scored.ids[broken[0]])})"
