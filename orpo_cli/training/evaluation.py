"""Evaluate all held-out pairs, in micro-batches of their own size, without gradients."""

import math
from collections.abc import Generator, Sequence
from dataclasses import replace

import torch

from orpo_cli.errors import DivergedError, is_out_of_memory
from orpo_cli.losses import objective
from orpo_cli.training import divergence
from orpo_cli.training.events import Evaluated, EvaluationProgress, MemoryRanOut
from orpo_cli.training.inputs import Training
from orpo_cli.training.metrics import StepSums
from orpo_cli.training.micro_batches import batches, denominators_of, micro_batch_loss, smaller

EVALUATED_AT_ONCE = 4096
"""Pairs that are cut into micro-batches together: enough to find neighbours in length among any number of pairs."""


def evaluate(training: Training, step: int) -> Generator[EvaluationProgress | Evaluated | MemoryRanOut, None, None]:
    """Compute the metrics of all held-out pairs without changing anything; the last event holds them.

    Raises:
        DivergedError: if they are not finite.
        OutOfMemoryError: if not even one pair at a time fits into memory.
    """
    store, hardware = training.evaluation, training.hardware
    denominators = denominators_of(store, range(len(store)), training.config)
    sums, done = StepSums.zero(hardware.device), 0
    broken: list[int] = []
    training.scorer.eval()
    yield EvaluationProgress(0, len(store))
    for start in range(0, len(store), EVALUATED_AT_ONCE):
        window = range(start, min(start + EVALUATED_AT_ONCE, len(store)))
        while (part := (yield from _sums_of(training, window, denominators, done, broken))) is None:
            training.budget.evaluation = smaller(training, store, window, training.budget.evaluation)
            yield MemoryRanOut(step, training.budget.evaluation)
        sums += part
        done += len(window)
    metrics = replace(sums, values=hardware.sum_over_processes(sums.values)).metrics()
    if not all(map(math.isfinite, metrics.values())):
        report = divergence.evaluation_report(training, step, broken, metrics)
        raise DivergedError(f"{report}. Nothing was saved of this step")
    yield Evaluated(step, metrics)


def _sums_of(
    training: Training, window: Sequence[int], denominators: objective.Denominators, done: int, broken: list[int]
) -> Generator[EvaluationProgress, None, StepSums | None]:
    """Return the sums of this process's share of `window`; None if memory ran out in any process.

    Args:
        done: the number of pairs evaluated before.
        broken: a list that gets the pairs whose scores are not finite.
    """
    store, hardware = training.evaluation, training.hardware
    sums, fitted = StepSums.zero(hardware.device), True
    try:
        with torch.no_grad(), training.scorer.at_work(training.layout):
            for pairs, batch in batches(training, store, window, training.budget.evaluation):
                part = micro_batch_loss(training, store, pairs, batch, denominators)
                sums += StepSums.of(part.scores, part.output)
                broken += divergence.broken_pairs(part)
                done += len(pairs) * hardware.processes
                yield EvaluationProgress(min(done, len(store)), len(store))
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        fitted = False
    return None if hardware.any_process(not fitted) else sums
