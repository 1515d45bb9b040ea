"""Score pairs without gradients, in micro-batches of their own size: what a model gives to each, and the metrics."""

import math
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch

from orpo_cli.data.tokens.store import PairStore
from orpo_cli.errors import DivergedError, is_out_of_memory
from orpo_cli.losses import objective
from orpo_cli.statistics.scored_pairs import ScoredPairs
from orpo_cli.statistics.summary import metrics_of_pairs
from orpo_cli.training import divergence
from orpo_cli.training.events import Evaluated, EvaluationProgress, MemoryRanOut, PairLogps
from orpo_cli.training.inputs import Scoring
from orpo_cli.training.metrics import StepSums
from orpo_cli.training.micro_batches import (
    MicroBatchLoss,
    batches,
    denominators_of,
    micro_batch_loss,
    own_micro_batches,
    recorded_loss,
    smaller,
)

EVALUATED_AT_ONCE = 4096
"""Pairs that are cut into micro-batches together: enough to find neighbours in length among any number of pairs."""


@dataclass
class _Done:
    """What this process has computed: the sums of the metrics, and (pair, chosen, rejected) log-probabilities."""

    sums: StepSums
    logps: list[tuple[int, float, float]] = field(default_factory=list)

    def add(self, part: MicroBatchLoss) -> None:
        self.sums += StepSums.of(part.scores, part.output, part.load)
        if part.pairs:
            chosen, rejected = part.scores.chosen_sum.tolist(), part.scores.rejected_sum.tolist()
            self.logps += zip(part.pairs, chosen, rejected, strict=True)

    def broken_pairs(self) -> list[int]:
        return [pair for pair, chosen, rejected in self.logps if not math.isfinite(chosen + rejected)]


def evaluate(
    scoring: Scoring, store: PairStore, step: int, known: PairLogps | None = None
) -> Generator[EvaluationProgress | Evaluated | MemoryRanOut, None, None]:
    """Score all pairs of a store without changing anything; the last event holds metrics and log-probabilities.

    Args:
        step: the step of the weights, for the events.
        known: what the model gives to the pairs, where that was computed before under the same conditions; the metrics
            are the same to the bit. It does not know the load of experts.
    Raises:
        DivergedError: if the metrics are not finite.
        OutOfMemoryError: if not even one pair at a time fits into memory.
    """
    hardware = scoring.hardware
    denominators = denominators_of(store, range(len(store)), scoring.config)
    done = _Done(StepSums.zero(hardware.device, scoring.balancing))
    scoring.scorer.eval()
    yield EvaluationProgress(0, len(store))
    for start in range(0, len(store), EVALUATED_AT_ONCE):
        window = range(start, min(start + EVALUATED_AT_ONCE, len(store)))
        while (part := (yield from _scored(scoring, store, window, denominators, known))) is None:
            scoring.budget.evaluation = smaller(scoring, store, window, scoring.budget.evaluation)
            yield MemoryRanOut(step, scoring.budget.evaluation)
        done.sums += part.sums
        done.logps += part.logps
    metrics = replace(done.sums, values=hardware.sum_over_processes(done.sums.values)).metrics(scoring.balancing)
    if not all(map(math.isfinite, metrics.values())):
        report = divergence.evaluation_report(scoring, store, step, done.broken_pairs(), metrics)
        raise DivergedError(f"{report}. Nothing was saved of this step")
    logps = _in_order(hardware.gathered(done.logps))
    yield Evaluated(step, metrics | _of_pairs(store, logps), logps)


def _scored(
    scoring: Scoring,
    store: PairStore,
    window: Sequence[int],
    denominators: objective.Denominators,
    known: PairLogps | None,
) -> Generator[EvaluationProgress, None, _Done | None]:
    """Score this process's share of `window`; return None if memory ran out in any process."""
    hardware, fitted = scoring.hardware, True
    computed = _Done(StepSums.zero(hardware.device, scoring.balancing))
    try:
        with torch.no_grad(), scoring.scorer.at_work(scoring.layout):
            for part in _parts(scoring, store, window, denominators, known):
                computed.add(part)
                reached = window[0] + len(computed.logps) * hardware.processes
                yield EvaluationProgress(min(reached, window[-1] + 1), len(store))
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error) or scoring.scorer.is_divided:
            raise
        fitted = False
    return None if hardware.any_process(not fitted) else computed


def _parts(
    scoring: Scoring,
    store: PairStore,
    window: Sequence[int],
    denominators: objective.Denominators,
    known: PairLogps | None,
) -> Iterator[MicroBatchLoss]:
    """Yield the losses of this process's micro-batches."""
    budget = scoring.budget.evaluation
    if known is None:
        for part in batches(scoring, store, window, budget):
            yield micro_batch_loss(scoring, store, part, denominators)
    else:
        for pairs in own_micro_batches(scoring, store, window, budget):
            yield recorded_loss(scoring, store, pairs, known, denominators)


def _of_pairs(store: PairStore, logps: PairLogps) -> dict[str, float]:
    """Return the metrics that a summary of the pairs has as well, so that both have the same number.

    Sums of micro-batches round in fp32, and in an order that depends on how the pairs were cut.
    """
    lengths, unknown = store.token_counts.astype(np.int64), np.zeros(len(store), np.int64)
    scored = ScoredPairs(
        chosen_logp=np.array(logps.chosen),
        rejected_logp=np.array(logps.rejected),
        chosen_tokens=lengths[:, 1],
        rejected_tokens=lengths[:, 2],
        chosen_characters=unknown,
        rejected_characters=unknown,
        prompt=np.arange(len(store)),
        turns=unknown,
        source=unknown.astype(str),
        weight=store.weights.astype(np.float64),
    )
    return metrics_of_pairs(scored)


def _in_order(logps: list[tuple[int, float, float]]) -> PairLogps:
    _, chosen, rejected = zip(*sorted(logps), strict=True)
    return PairLogps(chosen, rejected)
