"""The loop: a generator of events. Everything that changes a weight happens here.

A step is a pure function of its number, the weights and the data: its pairs come from the plan, its dropout from a seed
of its own, its learning rate from the schedule. Micro-batches and processes only share out its work.
"""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from orpo_cli.config.schema import RunConfig
from orpo_cli.data import plan
from orpo_cli.data.collation import COSTS, LAYOUTS, Batch
from orpo_cli.data.pairs import Lengths
from orpo_cli.data.store import PairStore
from orpo_cli.errors import DivergedError
from orpo_cli.losses import objective
from orpo_cli.models.scorer import Scorer
from orpo_cli.training.events import Evaluated, EvaluationProgress, StepDone
from orpo_cli.training.hardware import Hardware
from orpo_cli.training.metrics import StepSums
from orpo_cli.training.optimizers import set_lr
from orpo_cli.training.schedules import lr_factor

EVALUATED_AT_ONCE = 4096
"""Pairs whose micro-batches are cut together: enough to find neighbours in length, whatever there is to evaluate."""


@dataclass(frozen=True)
class Training:
    """What a run needs to take steps.

    Args:
        scorer: owns the model, which lies on the hardware's device.
        optimizers: over its trainable parameters.
        total_steps: of the whole run.
    """

    config: RunConfig
    scorer: Scorer
    optimizers: list[Optimizer]
    train: PairStore
    evaluation: PairStore
    hardware: Hardware
    total_steps: int

    @property
    def epoch(self) -> plan.Epoch:
        """What one pass sees of the training pairs."""
        return plan.Epoch.of(self.train.sizes, self.config.data.mixture)

    def parameters(self) -> list[nn.Parameter]:
        """What is trained."""
        return [parameter for parameter in self.scorer.parameters() if parameter.requires_grad]


@dataclass(frozen=True)
class _Measured:
    """One micro-batch after its forward pass."""

    pairs: tuple[int, ...]
    scores: objective.PairScores
    output: objective.LossOutput


def steps(training: Training, first: int = 1) -> Iterator[StepDone]:
    """Take the steps `first` to `total_steps`, one at a time.

    Raises:
        DivergedError: a loss or gradient is not finite; the weights are those of the step before.
    """
    config = training.config
    planned = plan.steps(training.epoch, config.trainer.pairs_per_step, training.total_steps, config.seed, first)
    for step in planned:
        yield _take_step(training, step)


def _take_step(training: Training, step: plan.Step) -> StepDone:
    started = time.perf_counter()
    config, hardware = training.config, training.hardware
    training.scorer.train()
    torch.manual_seed(_dropout_seed(config.seed, step.number, hardware.rank))
    lr = set_lr(training.optimizers, lr_factor(config.scheduler, step.number, training.total_steps))
    sums, measured = StepSums.zero(hardware.device), []
    denominators = _denominators(training.train, step.pairs, config)
    for pairs in _micro_batches(training.train, step.pairs, config.trainer.max_tokens, training):
        done = _measure(training, training.train, pairs, denominators)
        done.output.loss.backward()  # type: ignore[no-untyped-call]
        sums += StepSums.of(done.scores, done.output)
        measured.append(_detached(done))
    grad_norm = _gradient_norm(training)
    metrics = replace(sums, values=hardware.sum_over_processes(sums.values)).metrics()
    if not (torch.isfinite(grad_norm) and all(map(_is_finite, metrics.values()))):
        raise DivergedError(_divergence_report(training, step, measured, metrics, float(grad_norm), lr))
    _update(training, grad_norm)
    seconds = time.perf_counter() - started
    tokens = sum(sum(training.train.lengths(pair)) for pair in step.pairs)
    metrics |= {"grad_norm": float(grad_norm), "lr": lr}
    metrics |= {"tokens_per_second": tokens / seconds, "pairs_per_second": len(step.pairs) / seconds}
    return StepDone(step.number, training.total_steps, step.epoch, metrics)


def evaluate(training: Training, step: int) -> Iterator[EvaluationProgress | Evaluated]:
    """Measure all evaluation pairs without changing anything; the last event holds the metrics.

    Raises:
        DivergedError: they are not finite.
    """
    store, hardware = training.evaluation, training.hardware
    denominators = _denominators(store, range(len(store)), training.config)
    sums, done = StepSums.zero(hardware.device), 0
    training.scorer.eval()
    yield EvaluationProgress(0, len(store))
    for start in range(0, len(store), EVALUATED_AT_ONCE):
        window = range(start, min(start + EVALUATED_AT_ONCE, len(store)))
        for pairs in _micro_batches(store, window, training.config.trainer.eval_max_tokens, training):
            with torch.no_grad():
                measured = _measure(training, store, pairs, denominators)
                sums += StepSums.of(measured.scores, measured.output)
            done += len(pairs) * hardware.processes
            yield EvaluationProgress(min(done, len(store)), len(store))
    metrics = replace(sums, values=hardware.sum_over_processes(sums.values)).metrics()
    if not all(map(_is_finite, metrics.values())):
        raise DivergedError(
            f"the evaluation after step {step} is not finite: {metrics}; nothing was saved of this step"
        )
    yield Evaluated(step, metrics)


def collate(training: Training, store: PairStore, pairs: Sequence[int]) -> Batch:
    """One micro-batch in the layout of the run, on its device."""
    config = training.config
    layout = LAYOUTS[config.trainer.layout]
    batch: Batch = layout([store[pair] for pair in pairs], score_prompts=config.loss.nll == "prompt_and_chosen")
    return batch.to(training.hardware.device)


def _measure(
    training: Training, store: PairStore, pairs: tuple[int, ...], denominators: objective.Denominators
) -> _Measured:
    batch = collate(training, store, pairs)
    with training.hardware.autocast():
        token_logps = training.scorer(batch)
    scores = objective.pair_scores(token_logps, batch.scored, batch.pair_count)
    config = training.config
    weights = torch.from_numpy(store.weights[list(pairs)]).to(token_logps.device)
    return _Measured(pairs, scores, objective.loss(scores, denominators, config.loss, config.lambda_, weights))


def _detached(measured: _Measured) -> _Measured:
    scores = objective.PairScores(*(value.detach() for value in vars(measured.scores).values()))
    return replace(measured, scores=scores, output=replace(measured.output, loss=measured.output.loss.detach()))


def _micro_batches(
    store: PairStore, pairs: Sequence[int], max_tokens: int, training: Training
) -> list[tuple[int, ...]]:
    padded_or_packed_cost = COSTS[training.config.trainer.layout]

    def cost(indices: Sequence[int]) -> int:
        tokens: int = padded_or_packed_cost([store.lengths(index) for index in indices])
        return tokens

    hardware = training.hardware
    return plan.micro_batches(pairs, cost, max_tokens, hardware.rank, hardware.processes)


def _denominators(store: PairStore, pairs: Sequence[int], config: RunConfig) -> objective.Denominators:
    chosen = np.asarray(pairs)
    weights = store.weights[chosen].astype(np.float64)
    tokens = objective.nll_tokens(Lengths(*store.token_counts[chosen].T), config.loss)
    return objective.Denominators(float(weights.sum()), float((weights * tokens).sum()))


def _gradient_norm(training: Training) -> Tensor:
    """Sum the gradients over processes. Returns their norm."""
    parameters, hardware = training.parameters(), training.hardware
    if hardware.processes > 1:
        has_gradient = torch.tensor([float(parameter.grad is not None) for parameter in parameters])
        used = hardware.sum_over_processes(has_gradient.to(hardware.device)).tolist()
        for parameter in (parameter for parameter, count in zip(parameters, used, strict=True) if count > 0):
            own = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            parameter.grad = hardware.sum_over_processes(own)
    return torch.nn.utils.get_total_norm([parameter.grad for parameter in parameters if parameter.grad is not None])


def _update(training: Training, grad_norm: Tensor) -> None:
    limit = training.config.trainer.max_grad_norm
    if limit is not None:
        torch.nn.utils.clip_grads_with_norm_(training.parameters(), limit, grad_norm)
    for optimizer in training.optimizers:
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)


def _dropout_seed(seed: int, step: int, rank: int) -> int:
    return (seed * 1_000_003 + step * 1_009 + rank) % 2**63


def _is_finite(value: float) -> bool:
    return value - value == 0


def _divergence_report(
    training: Training,
    step: plan.Step,
    measured: Sequence[_Measured],
    metrics: dict[str, float],
    grad_norm: float,
    lr: float,
) -> str:
    """Name the pairs whose scores are not finite; where all are, the gradient broke and the whole step is suspect."""
    own = [
        pair
        for done in measured
        for pair, total in zip(done.pairs, (done.scores.chosen_sum + done.scores.rejected_sum).tolist(), strict=True)
        if not _is_finite(total)
    ]
    broken = sorted(training.hardware.gathered(own))
    suspects = broken or sorted(step.pairs)
    sources = ", ".join(str(training.train.source(pair)) for pair in suspects[:10])
    more = f" and {len(suspects) - 10} more" if len(suspects) > 10 else ""
    what = "log-probabilities are not finite for" if broken else "all pairs have finite scores; the step's pairs are"
    return (
        f"step {step.number} of {training.total_steps} diverged: loss {metrics['loss']:g}, "
        f"gradient norm {grad_norm:g}, lr {lr:g}; {what} {sources}{more}. The weights were not changed by this step; "
        "a smaller optimizer.lr, a longer scheduler.warmup_steps or trainer.precision=fp32 are the usual cures"
    )
