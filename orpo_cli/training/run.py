"""The order of a run: baseline, steps with their evaluations and checkpoints, final figures, the result."""

import contextlib
import shlex
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from orpo_cli.errors import DivergedError, InterruptedRunError, OrpoError, WriteError
from orpo_cli.models.adapters import is_adapted, merged
from orpo_cli.models.sampling import greedy_answer
from orpo_cli.training import loop
from orpo_cli.training.checkpoints import Retention, TrainingState, begin_checkpoint, publish_model
from orpo_cli.training.evaluation import evaluate
from orpo_cli.training.events import (
    CheckpointFailed,
    CheckpointSaved,
    Evaluated,
    Event,
    LossSpiked,
    MemoryRanOut,
    Sampled,
    StepDone,
    StepSkipped,
    TimeIsUp,
)
from orpo_cli.training.interrupts import StopRequest, TimeLimit
from orpo_cli.training.measuring import Training
from orpo_cli.training.saving import Writer
from orpo_cli.training.spikes import SpikeWatch


def go_on(folder: Path) -> str:
    """The command that goes on with the run in a folder."""
    return f"orpo resume {shlex.quote(str(folder))}"


@dataclass(frozen=True)
class Result:
    """Where a run leaves what it made, and what of it does not follow from the configuration.

    Args:
        folder: the run's folder; checkpoints/ and model/ are made inside.
        tokenizer: saved beside the weights.
        end_id: the token that ends an answer in the training data.
        sample_prompt: the words of the prompt that is answered before and after training.
        data_sha256, identity, environment: kept in each checkpoint, compared on resume.
        stored_dtype: of the weights the run started from, in which merged weights are written.
    """

    folder: Path
    tokenizer: Any
    end_id: int
    sample_prompt: str
    data_sha256: dict[str, str]
    identity: dict[str, Any]
    environment: dict[str, Any]
    stored_dtype: torch.dtype

    @property
    def checkpoints(self) -> Path:
        """Directory of the checkpoints."""
        return self.folder / "checkpoints"

    @property
    def model(self) -> Path:
        """Directory of the trained model."""
        return self.folder / "model"

    @property
    def go_on(self) -> str:
        """The command that goes on with the run."""
        return go_on(self.folder)


@dataclass
class _Progress:
    """What a run has come to.

    Args:
        step: the last one, taken or skipped.
        skipped: steps that were not finite.
        evaluation: after the last step, where there was one.
        evaluation_due: the evaluation after the last step was begun and not finished.
        last_good: the newest checkpoint.
    """

    step: int = 0
    skipped: int = 0
    evaluation: dict[str, float] | None = None
    evaluation_due: bool = False
    last_good: Path | None = None


def _progress_at(checkpoint: Path, state: TrainingState) -> _Progress:
    return _Progress(state.step, state.skipped, state.evaluation, state.evaluation_due, checkpoint)


def run(
    training: Training, result: Result, stop: StopRequest, checkpoint: tuple[Path, TrainingState] | None = None
) -> Iterator[Event]:
    """Train to the end and publish the model, from the beginning or from a checkpoint.

    Raises:
        DivergedError: a loss or gradient is not finite.
        InterruptedRunError: a signal came; the state is saved.
        WriteError: a checkpoint or the model could not be written.
    """
    writer = Writer()
    try:
        yield from _run(training, result, stop, checkpoint, writer)
    finally:
        writer.close()


def _run(
    training: Training, result: Result, stop: StopRequest, checkpoint: tuple[Path, TrainingState] | None, writer: Writer
) -> Iterator[Event]:
    trainer = training.config.trainer
    progress = _Progress()
    if checkpoint is None:
        yield from _measured(training, stop, progress)
        _stop_where_a_signal_came(training, stop, f"before the first step; begin again with: {result.go_on}")
        yield from _sampled(training, result, 0)
    else:
        progress = _progress_at(*checkpoint)
        if progress.evaluation_due:
            yield from _evaluated_late(training, result, stop, progress, writer)
    limit, spikes = TimeLimit(trainer.max_seconds), SpikeWatch()
    for event in _steps(training, progress, writer):
        yield event
        if not isinstance(event, StepDone | StepSkipped):
            continue
        yield from _written(training, progress, writer)
        progress.step, progress.evaluation, progress.evaluation_due = event.step, None, False
        progress.skipped += isinstance(event, StepSkipped)
        if isinstance(event, StepDone):
            yield from _spike(training, spikes, event, progress)
        is_last = event.step == training.total_steps
        if is_last or _is_due(event.step, trainer.eval_every):
            yield from _measured(training, stop, progress)
        stopping = training.hardware.any_process(stop.signal_number is not None)
        time_is_up = training.hardware.any_process(limit.leaves_no_time())
        ends = is_last or stopping or time_is_up
        if ends or _is_due(event.step, trainer.save_every):
            _begin_checkpoint(training, result, progress, writer)
        if ends:
            yield from _written(training, progress, writer, is_last=True)
        if stopping and (not is_last or progress.evaluation_due):
            raise _interrupted(stop, f"after {_place(training, progress)}; go on with: {result.go_on}")
        if time_is_up and not is_last:
            yield TimeIsUp(event.step, training.total_steps, result.go_on)
            return
    yield from _sampled(training, result, training.total_steps)
    _publish(training, result)


def _steps(
    training: Training, progress: _Progress, writer: Writer
) -> Iterator[StepDone | StepSkipped | MemoryRanOut | CheckpointSaved | CheckpointFailed]:
    """The steps that are left; a divergence names the checkpoint it leaves."""
    try:
        yield from loop.steps(training, progress.step + 1, progress.skipped, before_update=writer.wait)
    except DivergedError as error:
        yield from _written(training, progress, writer)
        raise _with_last_good(error, progress) from None


def _with_last_good(error: DivergedError, progress: _Progress) -> DivergedError:
    last_good = "there is no checkpoint" if progress.last_good is None else f"last checkpoint: {progress.last_good}"
    return DivergedError(f"{error}; {last_good}")


def _is_due(step: int, every: int | None) -> bool:
    return every is not None and step % every == 0


def _measured(training: Training, stop: StopRequest, progress: _Progress) -> Iterator[Event]:
    """Evaluate after the last step; a signal ends that, and the evaluation stays due."""
    if len(training.evaluation) == 0:
        return
    progress.evaluation_due = True
    try:
        with contextlib.closing(evaluate(training, progress.step)) as events:
            for event in events:
                yield event
                if isinstance(event, Evaluated):
                    progress.evaluation, progress.evaluation_due = event.metrics, False
                elif stop.signal_number is not None and training.hardware.processes == 1:
                    return
    except DivergedError as error:
        raise _with_last_good(error, progress) from None


def _evaluated_late(
    training: Training, result: Result, stop: StopRequest, progress: _Progress, writer: Writer
) -> Iterator[Event]:
    """The evaluation that a signal cut short in the run before; its checkpoint can only then be the best."""
    yield from _measured(training, stop, progress)
    place = _place(training, progress)
    _stop_where_a_signal_came(training, stop, f"in the evaluation after {place}; go on with: {result.go_on}")
    if training.config.trainer.keep_best is not None:
        _begin_checkpoint(training, result, progress, writer)
        yield from _written(training, progress, writer)


def _stop_where_a_signal_came(training: Training, stop: StopRequest, where: str) -> None:
    if training.hardware.any_process(stop.signal_number is not None):
        raise _interrupted(stop, where)


def _interrupted(stop: StopRequest, where: str) -> InterruptedRunError:
    return InterruptedRunError(f"stopped by a signal {where}", stop.signal_number or signal.SIGTERM)


def _place(training: Training, progress: _Progress) -> str:
    return f"step {progress.step} of {training.total_steps}"


def _spike(training: Training, spikes: SpikeWatch, done: StepDone, progress: _Progress) -> Iterator[LossSpiked]:
    loss = done.metrics["loss"]
    deviations = spikes.deviations(loss)
    if deviations is None:
        return
    yield LossSpiked(done.step, loss, deviations)
    if training.config.trainer.on_spike == "halt":
        spiked = DivergedError(
            f"the loss of step {done.step}, {loss:g}, is {deviations:.1f} standard deviations above the steps before "
            "it, and trainer.on_spike=halt; the step has been taken and was not saved"
        )
        raise _with_last_good(spiked, progress)


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


def _begin_checkpoint(training: Training, result: Result, progress: _Progress, writer: Writer) -> None:
    """Begin to write the state after the last step; `_written` says how it went."""
    if not training.hardware.is_main:
        return
    state = TrainingState(
        step=progress.step,
        total_steps=training.total_steps,
        max_tokens=training.budget.training,
        data_sha256=result.data_sha256,
        identity=result.identity,
        environment=result.environment,
        skipped=progress.skipped,
        evaluation=progress.evaluation,
        evaluation_due=progress.evaluation_due,
    )
    trainer = training.config.trainer
    retention = Retention(trainer.keep_last, trainer.keep_best)
    root, model, tokenizer = result.checkpoints, training.scorer.model, result.tokenizer
    writer.begin(state.step, lambda: begin_checkpoint(root, model, tokenizer, training.optimizers, state, retention))


def _written(
    training: Training, progress: _Progress, writer: Writer, is_last: bool = False
) -> Iterator[CheckpointSaved | CheckpointFailed]:
    """How the checkpoint went that was begun last, in the main process; the others learn whether the run goes on.

    Args:
        is_last: nothing comes after it, so a failure is the run's.
    Raises:
        OrpoError: it failed and the run does not go on without.
    """
    written = writer.finished()
    error = written.outcome if written and isinstance(written.outcome, OrpoError) else None
    ends = error is not None and (is_last or training.config.trainer.on_save_error == "stop")
    if training.hardware.any_process(ends):
        raise error or WriteError("the main process could not write a checkpoint")
    if error is not None and written is not None:
        yield CheckpointFailed(written.step, str(error))
    elif written is not None and isinstance(written.outcome, Path):
        progress.last_good = written.outcome
        yield CheckpointSaved(written.step, written.outcome)


def _publish(training: Training, result: Result) -> None:
    if not training.hardware.is_main:
        return
    model = training.scorer.model
    if is_adapted(model) and getattr(training.config.adapter, "merge", False):
        model = merged(model, result.stored_dtype)
    publish_model(result.model, model, result.tokenizer, result.end_id)
