"""The order of a run: baseline, steps with their evaluations and checkpoints, final figures, the result."""

import contextlib
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from orpo_cli.checkpoints.background import Writer
from orpo_cli.checkpoints.copies import Copies
from orpo_cli.checkpoints.reading import TrainingState
from orpo_cli.checkpoints.saving import Retention, begin_checkpoint, draft_model
from orpo_cli.config.schema import LoraConfig, TrainerConfig
from orpo_cli.errors import DivergedError, InterruptedRunError, OrpoError, WriteError
from orpo_cli.machine.signals import StopRequest
from orpo_cli.machine.time_limit import TimeLimit
from orpo_cli.models.adapters import merged
from orpo_cli.models.sampling import greedy_answer
from orpo_cli.models.weights import first_not_finite
from orpo_cli.training import loop
from orpo_cli.training.evaluation import evaluate
from orpo_cli.training.events import (
    CheckpointFailed,
    CheckpointSaved,
    Evaluated,
    Event,
    LossSpiked,
    ModelWritten,
    Sampled,
    StepDone,
    StepSkipped,
    TimeIsUp,
)
from orpo_cli.training.spikes import SpikeWatch
from orpo_cli.training.training import Training


@dataclass(frozen=True)
class Result:
    """Where a run leaves what it made, and what of it does not follow from the configuration.

    Args:
        folder: the run's folder; checkpoints/ and model/ are made inside.
        tokenizer: saved beside the weights.
        end_id: the token that ends an answer in the training data.
        sample_prompt: the words of the prompt that is answered before and after training.
        data_sha256, identity, environment: kept in each checkpoint, compared on resume.
        load_base: the model the run started from, as it is stored, into which adapters are merged.
        records: files beside the checkpoints that grow with the steps; a checkpoint puts them on the disk first.
        go_on: the command that goes on with the run.
    """

    folder: Path
    tokenizer: Any
    end_id: int
    sample_prompt: str
    data_sha256: dict[str, str]
    identity: dict[str, Any]
    environment: dict[str, Any]
    load_base: Callable[[], nn.Module]
    records: tuple[Path, ...]
    go_on: str

    @property
    def checkpoints(self) -> Path:
        """Directory of the checkpoints."""
        return self.folder / "checkpoints"

    @property
    def model(self) -> Path:
        """Directory of the trained model."""
        return self.folder / "model"


def run(
    training: Training, result: Result, stop: StopRequest, checkpoint: tuple[Path, TrainingState] | None = None
) -> Iterator[Event]:
    """Train to the end and publish the model, from the beginning or from a checkpoint.

    Raises:
        DivergedError: a loss, a gradient or an updated weight is not finite.
        InterruptedRunError: a signal came; the state is saved.
        WriteError: a checkpoint or the model could not be written.
    """
    limit = TimeLimit(training.config.trainer.max_seconds)
    whole = _Run(training, result, stop, limit, Writer(), _copies(training))
    try:
        yield from whole.start() if checkpoint is None else whole.go_on_from(*checkpoint)
        yield from whole.train()
    finally:
        whole.writer.close(wait=not stop.at_once)


def _copies(training: Training) -> Copies | None:
    """On a CPU, writing takes the cores that the steps would have: nothing would be gained by copying first."""
    return None if training.hardware.device.type == "cpu" else Copies()


@dataclass
class _Run:
    """A run and what it has come to. Its methods yield the events of their part.

    Args:
        step: the last one, taken or skipped.
        skipped: steps that were not finite.
        evaluation: after the last step, where there was one.
        evaluation_due: the evaluation after the last step was begun and not finished.
        last_good: the newest checkpoint.
    """

    training: Training
    result: Result
    stop: StopRequest
    limit: TimeLimit
    writer: Writer
    copies: Copies | None
    step: int = 0
    skipped: int = 0
    evaluation: dict[str, float] | None = None
    evaluation_due: bool = False
    last_good: Path | None = None

    @property
    def _settings(self) -> TrainerConfig:
        return self.training.config.trainer

    @property
    def _place(self) -> str:
        return f"step {self.step} of {self.training.total_steps}"

    def start(self) -> Iterator[Event]:
        """Measure and sample before the first step."""
        yield from self._measured()
        self._stop_where_a_signal_came(f"before the first step; begin again with: {self.result.go_on}")
        yield from self._sampled()

    def go_on_from(self, checkpoint: Path, state: TrainingState) -> Iterator[Event]:
        """Make up for an evaluation that a signal cut short; only then can its step be the best."""
        self.step, self.skipped, self.last_good = state.step, state.skipped, checkpoint
        self.evaluation, self.evaluation_due = state.evaluation, state.evaluation_due
        if not self.evaluation_due:
            return
        yield from self._measured()
        self._stop_where_a_signal_came(f"in the evaluation after {self._place}; go on with: {self.result.go_on}")
        if self._settings.keep_best is not None:
            yield from self._begin_checkpoint(goes_on=False)
            yield from self._written(wait=True)

    def train(self) -> Iterator[Event]:
        """Take the steps that are left and publish the model."""
        spikes, over_at_start = SpikeWatch(), self.limit.over
        self.limit.begin_stretch()
        for event in self._steps():
            yield event
            if not isinstance(event, StepDone | StepSkipped):
                continue
            yield from self._written()
            self.step, self.evaluation, self.evaluation_due = event.step, None, False
            self.skipped += isinstance(event, StepSkipped)
            if isinstance(event, StepDone):
                yield from self._spike(spikes, event)
            is_last = event.step == self.training.total_steps
            if is_last or _is_due(event.step, self._settings.eval_every):
                yield from self._measured()
            stopping = self._any_process(self.stop.signal_number is not None)
            save_is_due = _is_due(event.step, self._settings.save_every)
            time_is_up = self._time_is_up(save_is_due)
            ends = is_last or stopping or time_is_up
            if ends or save_is_due:
                yield from self._begin_checkpoint(goes_on=not ends)
            if ends:
                yield from self._written(wait=True, is_last=True)
            if stopping and (not is_last or self.evaluation_due):
                raise self._interrupted(f"after {self._place}; go on with: {self.result.go_on}")
            if time_is_up and not is_last:
                over, save = self.limit.over, self.limit.last_save
                yield TimeIsUp(event.step, self.training.total_steps, self.result.go_on, over, over_at_start, save)
                return
            self.limit.begin_stretch()
        yield from self._sampled()
        yield from self._publish()

    def _time_is_up(self, save_is_due: bool) -> bool:
        """Whether the next step and the save after it may come too late; the process that saves knows."""
        model = self.step + 1 == self.training.total_steps
        no_time = self.limit.leaves_no_time(saves=1 + self.writer.is_busy + save_is_due + model)
        return self._any_process(no_time and self.training.hardware.is_main)

    def _any_process(self, yes: bool) -> bool:
        return self.training.hardware.any_process(yes)

    def _steps(self) -> Iterator[Event]:
        try:
            yield from loop.steps(self.training, self.step + 1, self.skipped)
        except DivergedError as error:
            yield from self._diverged(error)

    def _diverged(self, error: DivergedError) -> Iterator[Event]:
        """Raise it, naming the checkpoint it leaves."""
        yield from self._written(wait=True)
        last_good = "there is no checkpoint" if self.last_good is None else f"last checkpoint: {self.last_good}"
        raise DivergedError(f"{error}; {last_good}") from None

    def _measured(self) -> Iterator[Event]:
        """Evaluate after the last step; a signal ends that, and the evaluation stays due."""
        if len(self.training.evaluation) == 0:
            return
        self.evaluation_due = True
        try:
            with contextlib.closing(evaluate(self.training, self.step)) as events:
                for event in events:
                    yield event
                    if isinstance(event, Evaluated):
                        self.evaluation, self.evaluation_due = event.metrics, False
                    elif self.stop.signal_number is not None and self.training.hardware.processes == 1:
                        return
        except DivergedError as error:
            yield from self._diverged(error)

    def _stop_where_a_signal_came(self, where: str) -> None:
        if self._any_process(self.stop.signal_number is not None):
            raise self._interrupted(where)

    def _interrupted(self, where: str) -> InterruptedRunError:
        return InterruptedRunError(f"stopped by a signal {where}", self.stop.signal_number or signal.SIGTERM)

    def _spike(self, spikes: SpikeWatch, done: StepDone) -> Iterator[Event]:
        loss = done.metrics["loss"]
        deviations = spikes.deviations(loss)
        if deviations is None:
            return
        yield LossSpiked(done.step, loss, deviations)
        if self._settings.on_spike == "halt":
            spiked = DivergedError(
                f"the loss of step {done.step}, {loss:g}, is {deviations:.1f} standard deviations above the steps "
                "before it, and trainer.on_spike=halt; the step has been taken and was not saved"
            )
            yield from self._diverged(spiked)

    def _sampled(self) -> Iterator[Event]:
        """Answer the first evaluation prompt (or training prompt, where nothing is held out)."""
        limit = self._settings.sample_tokens
        if limit == 0 or not self.training.hardware.is_main:
            return
        store = self.training.evaluation if len(self.training.evaluation) > 0 else self.training.train
        prompt_ids = store[0].prompt_ids
        scorer, result = self.training.scorer, self.result
        with scorer.weights:
            answer = greedy_answer(scorer.model, result.tokenizer, prompt_ids, result.end_id, limit)
        yield Sampled(self.step, result.sample_prompt, answer)

    def _begin_checkpoint(self, goes_on: bool) -> Iterator[Event]:
        """Begin to write the state after the last step; `_written` says how it went, here how the one before did.

        Args:
            goes_on: steps follow while it is written.
        """
        yield from self._written(wait=True)
        yield from self._check_weights()
        if not self.training.hardware.is_main:
            return
        training, result = self.training, self.result
        state = TrainingState(
            step=self.step,
            total_steps=training.total_steps,
            max_tokens=training.budget.training,
            data_sha256=result.data_sha256,
            identity=result.identity,
            environment=result.environment,
            skipped=self.skipped,
            evaluation=self.evaluation,
            evaluation_due=self.evaluation_due,
        )
        retention = Retention(self._settings.keep_last, self._settings.keep_best)
        copies = self.copies if goes_on else None
        root, model, tokenizer = result.checkpoints, training.scorer.model, result.tokenizer
        self.writer.begin(
            state.step,
            lambda: begin_checkpoint(
                root, model, tokenizer, training.optimizers, state, retention, result.records, copies
            ),
        )

    def _check_weights(self) -> Iterator[Event]:
        """Loss and gradient may be finite and an update still not be; no checkpoint goes for one of such weights."""
        weights = self.training.scorer.model.named_parameters()
        name = first_not_finite((name, weight) for name, weight in weights if weight.requires_grad)
        if name is not None:
            diverged = DivergedError(
                f"{name} is not finite after {self._place}, whose loss and gradient were: the optimizer's state or "
                "its settings (lr, weight_decay) let the update overflow; nothing was saved of it"
            )
            yield from self._diverged(diverged)

    def _written(self, wait: bool = False, is_last: bool = False) -> Iterator[Event]:
        """How the checkpoint went that was begun last, in the main process; the others learn whether the run goes on.

        Args:
            wait: for one that is still on its way.
            is_last: nothing comes after it, so a failure is the run's.
        Raises:
            OrpoError: it failed and the run does not go on without.
        """
        written = self.writer.finished(wait)
        if written is not None:
            self.limit.saved(written.seconds)
        error = written.outcome if written and isinstance(written.outcome, OrpoError) else None
        ends = error is not None and (is_last or self._settings.on_save_error == "stop")
        if self._any_process(ends):
            raise error or WriteError("the main process could not write a checkpoint")
        if error is not None and written is not None:
            yield CheckpointFailed(written.step, str(error))
        elif written is not None and isinstance(written.outcome, Path):
            self.last_good = written.outcome
            yield CheckpointSaved(written.step, written.outcome)

    def _publish(self) -> Iterator[Event]:
        if not self.training.hardware.is_main:
            return
        model, adapter = self.training.scorer.model, self.training.config.adapter
        if isinstance(adapter, LoraConfig) and adapter.merge:
            model = merged(model, self.result.load_base(), adapter)
        draft, files = draft_model(self.result.model, model, self.result.tokenizer, self.result.end_id)
        with draft.writing():
            yield ModelWritten(files)
        draft.publish()


def _is_due(step: int, every: int | None) -> bool:
    return every is not None and step % every == 0
