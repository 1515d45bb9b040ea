"""Take the steps of a run, as a generator of events. Everything that changes a weight happens here.

A step is a pure function of its number, the weights and the data: its pairs come from the plan, its dropout from a seed
of its own, its learning rate from the schedule. Micro-batches and processes only divide its work.

The load-balancing loss of a mixture of experts needs the choices of all tokens of the step before the first backward
pass (`orpo_cli.losses.balance`). Where the step is more than one micro-batch, a forward pass without head and gradient
counts them first: up to a third of a step's time more. The choices of the step before, or of each micro-batch by
itself, would cost nothing, but be another loss, or make the step depend on how it is cut.
"""

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import TypeVar

import torch
from torch import Tensor

from orpo_cli.data import plan
from orpo_cli.errors import DivergedError, OutOfMemoryError, is_out_of_memory
from orpo_cli.losses import objective
from orpo_cli.losses.balance import Balancing, balance_loss
from orpo_cli.machine.memory import peak_in_words, peak_memory
from orpo_cli.models.slices import whole
from orpo_cli.training import divergence
from orpo_cli.training.events import MemoryRanOut, StepDone, StepSkipped
from orpo_cli.training.inputs import Training
from orpo_cli.training.metrics import StepSums
from orpo_cli.training.micro_batches import (
    MicroBatchLoss,
    batches,
    choices_of,
    denominators_of,
    micro_batch_loss,
    own_micro_batches,
    smaller,
)
from orpo_cli.training.optimizers import set_lr
from orpo_cli.training.schedules import lr_factor

T = TypeVar("T")


def steps(training: Training, first: int = 1, skipped: int = 0) -> Iterator[StepDone | StepSkipped | MemoryRanOut]:
    """Take the steps `first` to `total_steps`, one at a time.

    Args:
        skipped: the number of steps before `first` that were skipped.
    Raises:
        DivergedError: if a loss or gradient is not finite; the weights are those of the step before.
        OutOfMemoryError: if not even one pair at a time fits into memory.
    """
    config = training.config
    planned = plan.steps(training.epoch, config.trainer.pairs_per_step, training.total_steps, config.seed, first)
    for step in planned:
        while (done := _take_step(training, step)) is None:
            training.budget.training = smaller(training.scoring, training.train, step.pairs, training.budget.training)
            yield MemoryRanOut(step.number, training.budget.training)
        if isinstance(done, StepSkipped):
            skipped += 1
            _check_skips(training, done, skipped)
        yield done


def _take_step(training: Training, step: plan.Step) -> StepDone | StepSkipped | None:
    """Take one step; return None if memory ran out, and then nothing has changed."""
    started = time.perf_counter()
    config, hardware = training.config, training.hardware
    training.scorer.train()
    training.use_weights_of_steps()
    lr = set_lr(training.optimizers, lr_factor(config.scheduler, step.number, training.total_steps))
    computed = _computed(training, step)
    if computed is None:
        return None
    sums, losses = computed
    grad_norm = _gradient_norm(training)
    metrics = replace(sums, values=hardware.sum_over_processes(sums.values)).metrics(training.scoring.balancing)
    metrics |= {"grad_norm": float(grad_norm), "lr": lr}
    if not all(map(math.isfinite, metrics.values())):
        _forget_gradients(training)
        return StepSkipped(step.number, training.total_steps, divergence.step_report(training, step, losses, metrics))
    _update(training, grad_norm)
    seconds = time.perf_counter() - started
    tokens = sum(sum(training.train.lengths(pair)) for pair in step.pairs)
    metrics |= {"tokens_per_second": tokens / seconds, "pairs_per_second": len(step.pairs) / seconds}
    metrics |= {"peak_memory_gb": peak_memory(hardware.device) / 1e9}
    return StepDone(step.number, training.total_steps, step.epoch, metrics)


def _check_skips(training: Training, step: StepSkipped, skipped: int) -> None:
    """Check that the configuration allows to skip a step, and so many of them.

    Raises:
        DivergedError: if it does not.
    """
    trainer = training.config.trainer
    unchanged = "The weights were not changed by this step"
    if trainer.on_nonfinite == "halt":
        raise DivergedError(
            f"{step.report}. {unchanged}; a smaller optimizer.lr, a longer scheduler.warmup_steps or "
            "trainer.precision=fp32 are the usual cures; trainer.on_nonfinite=skip leaves such steps out"
        )
    if skipped > trainer.max_skipped:
        raise DivergedError(
            f"{step.report}. {unchanged}; {skipped} steps were not finite, trainer.max_skipped={trainer.max_skipped}"
        )


def _computed(training: Training, step: plan.Step) -> tuple[StepSums, list[MicroBatchLoss]] | None:
    """Compute the gradient of a step, and before it the choices of its experts where it needs them."""
    balancing, choices = training.scoring.balancing, None
    if balancing is not None and not _is_one_micro_batch(training, step):
        own = _if_it_fits(training, step, lambda: _choices(training, balancing, step))
        if own is None:
            return None
        choices = training.hardware.sum_over_processes(own)
    return _if_it_fits(training, step, lambda: _with_gradients(training, step, choices))


def _is_one_micro_batch(training: Training, step: plan.Step) -> bool:
    own = own_micro_batches(training.scoring, training.train, step.pairs, training.budget.training)
    return training.hardware.processes == 1 and len(own) == 1


def _if_it_fits(training: Training, step: plan.Step, compute: Callable[[], T]) -> T | None:
    """Compute with the model, in all processes; return None, with no gradient left, if memory ran out in any of them.

    It draws the dropout of the step from its beginning, so that each pass over the step has the same.
    """
    hardware, result = training.hardware, None
    torch.manual_seed(_dropout_seed(training.config.seed, step.number, hardware.rank))
    try:
        with training.scorer.at_work(training.scoring.layout):
            result = compute()
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        if training.scorer.is_divided:  # the others wait in the middle of a layer: this one cannot begin again alone
            raise OutOfMemoryError(_out_of_memory_divided(training, step)) from error
    if hardware.any_process(result is None):
        _forget_gradients(training)
        return None
    return result


def _choices(training: Training, balancing: Balancing, step: plan.Step) -> Tensor:
    """Return how many tokens of this process's micro-batches each expert is chosen for, (experts,)."""
    scoring, store = training.scoring, training.train
    choices = torch.zeros(balancing.experts, device=training.hardware.device)
    for part in batches(scoring, store, step.pairs, training.budget.training):
        choices += choices_of(scoring, balancing, store, part)
    return choices


def _with_gradients(
    training: Training, step: plan.Step, choices: Tensor | None
) -> tuple[StepSums, list[MicroBatchLoss]]:
    """Run forward and backward passes over this process's micro-batches.

    Args:
        choices: those of the whole step, (experts,), where the objective has a load-balancing loss; None where the
            step is one micro-batch.
    """
    scoring, losses = training.scoring, []
    sums = StepSums.zero(training.hardware.device, scoring.balancing)
    denominators = denominators_of(training.train, step.pairs, training.config)
    for part in batches(scoring, training.train, step.pairs, training.budget.training):
        done = micro_batch_loss(scoring, training.train, part, denominators)
        _objective(done, scoring.balancing, choices).backward()  # type: ignore[no-untyped-call]
        sums += StepSums.of(done.scores, done.output, done.load)
        losses.append(_detached(done))
    return sums, losses


def _objective(done: MicroBatchLoss, balancing: Balancing | None, choices: Tensor | None) -> Tensor:
    """Return the share of a micro-batch in all that is minimized: its loss, and that of the balance of its experts."""
    if balancing is None or done.load is None:
        return done.output.loss
    of_step = done.load.choices if choices is None else choices
    return done.output.loss + balancing.coefficient * balance_loss(of_step, done.load.probabilities, balancing.top_k)


def _out_of_memory_divided(training: Training, step: plan.Step) -> str:
    tokens, trainer = training.budget.training, training.config.trainer
    checkpointing = "" if trainer.gradient_checkpointing else ", trainer.gradient_checkpointing=true"
    return (
        f"out of memory in step {step.number}; {peak_in_words(training.hardware.device)}. With trainer.parallel=fsdp a "
        f"step cannot be taken again with smaller micro-batches: resume with trainer.max_tokens={max(1, tokens // 2)}"
        f"{checkpointing}, or more processes"
    )


def _detached(done: MicroBatchLoss) -> MicroBatchLoss:
    scores = objective.PairScores(*(value.detach() for value in vars(done.scores).values()))
    return replace(done, scores=scores, output=replace(done.output, loss=done.output.loss.detach()), load=None)


def _forget_gradients(training: Training) -> None:
    for optimizer in training.optimizers:
        optimizer.zero_grad(set_to_none=True)
    if training.hardware.device.type == "cuda":
        torch.cuda.empty_cache()


def _gradient_norm(training: Training) -> Tensor:
    """Sum the gradients over processes, where that has not been done layer by layer, and return their norm."""
    parameters, hardware = training.parameters(), training.hardware
    if hardware.processes > 1 and not training.scorer.is_divided:
        has_gradient = torch.tensor([float(parameter.grad is not None) for parameter in parameters])
        used = hardware.sum_over_processes(has_gradient.to(hardware.device)).tolist()
        for parameter in (parameter for parameter, count in zip(parameters, used, strict=True) if count > 0):
            own = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            parameter.grad = hardware.sum_over_processes(own)
    return whole(
        torch.nn.utils.get_total_norm([parameter.grad for parameter in parameters if parameter.grad is not None])
    )


def _update(training: Training, grad_norm: Tensor) -> None:
    limit = training.config.trainer.max_grad_norm
    if limit is not None and grad_norm > limit:
        torch.nn.utils.clip_grads_with_norm_(training.parameters(), limit, grad_norm)
    for optimizer in training.optimizers:
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)


def _dropout_seed(seed: int, step: int, rank: int) -> int:
    return (seed * 1_000_003 + step * 1_009 + rank) % 2**63
