"""The order of a run: baseline, steps with their evaluations and checkpoints, final figures, the result."""

import shlex
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from orpo_cli.errors import InterruptedRunError
from orpo_cli.models.adapters import is_adapted, merged
from orpo_cli.models.sampling import greedy_answer
from orpo_cli.training import loop
from orpo_cli.training.checkpoints import TrainingState, publish_model, save_checkpoint
from orpo_cli.training.evaluation import evaluate
from orpo_cli.training.events import CheckpointSaved, Event, MemoryRanOut, Sampled
from orpo_cli.training.interrupts import StopRequest
from orpo_cli.training.measuring import Training


@dataclass(frozen=True)
class Result:
    """Where a run leaves what it made, and what of it does not follow from the configuration.

    Args:
        folder: the run's folder; checkpoints/ and model/ are made inside.
        tokenizer: saved beside the weights.
        end_id: the token that ends an answer in the training data.
        sample_prompt: the words of the prompt that is answered before and after training.
        data_sha256, identity: kept in each checkpoint, compared on resume.
        stored_dtype: of the weights the run started from, in which merged weights are written.
    """

    folder: Path
    tokenizer: Any
    end_id: int
    sample_prompt: str
    data_sha256: dict[str, str]
    identity: dict[str, Any]
    stored_dtype: torch.dtype

    @property
    def checkpoints(self) -> Path:
        """Directory of the checkpoints."""
        return self.folder / "checkpoints"

    @property
    def model(self) -> Path:
        """Directory of the trained model."""
        return self.folder / "model"


def run(training: Training, result: Result, stop: StopRequest, steps_done: int = 0) -> Iterator[Event]:
    """Train from after `steps_done` to the end, and publish the model.

    Raises:
        DivergedError: a loss or gradient is not finite.
        InterruptedRunError: a signal came; the state is saved.
        WriteError: a checkpoint or the model could not be written.
    """
    trainer = training.config.trainer
    if steps_done == 0:
        yield from _measured(training, 0)
        yield from _sampled(training, result, 0)
    for done in loop.steps(training, first=steps_done + 1):
        yield done
        if isinstance(done, MemoryRanOut):
            continue
        is_last = done.step == training.total_steps
        stopping = training.hardware.any_process(stop.signal_number is not None)
        if is_last or _is_due(done.step, trainer.eval_every):
            yield from _measured(training, done.step)
        if is_last or stopping or _is_due(done.step, trainer.save_every):
            yield _saved(training, result, done.step)
        if stopping and not is_last:
            raise InterruptedRunError(
                f"stopped by a signal after step {done.step} of {training.total_steps}; "
                f"go on with: orpo train {shlex.quote(f'resume={result.folder}')}",
                stop.signal_number or signal.SIGTERM,
            )
    yield from _sampled(training, result, training.total_steps)
    _publish(training, result)


def _is_due(step: int, every: int | None) -> bool:
    return every is not None and step % every == 0


def _measured(training: Training, step: int) -> Iterator[Event]:
    if len(training.evaluation) > 0:
        yield from evaluate(training, step)


def _sampled(training: Training, result: Result, step: int) -> Iterator[Event]:
    """Answer the first evaluation prompt (or training prompt, where nothing is held out)."""
    limit = training.config.trainer.sample_tokens
    if limit == 0 or not training.hardware.is_main:
        return
    store = training.evaluation if len(training.evaluation) > 0 else training.train
    prompt_ids = store[0].prompt_ids
    with training.scorer.weights:
        answer = greedy_answer(training.scorer.model, result.tokenizer, prompt_ids, result.end_id, limit)
    yield Sampled(step, result.sample_prompt, answer)


def _saved(training: Training, result: Result, step: int) -> CheckpointSaved:
    max_tokens = training.budget.training
    state = TrainingState(step, training.total_steps, max_tokens, result.data_sha256, result.identity)
    path = result.checkpoints / f"step-{step:06d}"
    if training.hardware.is_main:
        model, keep = training.scorer.model, training.config.trainer.keep_last
        path = save_checkpoint(result.checkpoints, model, result.tokenizer, training.optimizers, state, keep)
    training.hardware.wait_for_all()
    return CheckpointSaved(step, path)


def _publish(training: Training, result: Result) -> None:
    if not training.hardware.is_main:
        return
    model = training.scorer.model
    if is_adapted(model) and getattr(training.config.adapter, "merge", False):
        model = merged(model, result.stored_dtype)
    publish_model(result.model, model, result.tokenizer, result.end_id)
