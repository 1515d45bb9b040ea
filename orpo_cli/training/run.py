"""Take the steps of a run (training/loop.py) with the evaluations, samples and checkpoints between them."""

import contextlib
import signal
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orpo_cli.checkpoints.background import BackgroundSaver
from orpo_cli.checkpoints.copies import Copies
from orpo_cli.checkpoints.lookup import TrainingState
from orpo_cli.checkpoints.saving import LiveState, Retention, begin_checkpoint
from orpo_cli.config.schema import TrainerConfig
from orpo_cli.errors import DivergedError, InterruptedRunError, OrpoError, WriteError
from orpo_cli.machine.signals import StopRequest
from orpo_cli.machine.time_limit import TimeLimit
from orpo_cli.models.sampling import answers
from orpo_cli.models.slices import own_slice
from orpo_cli.models.weights import first_not_finite
from orpo_cli.training import loop
from orpo_cli.training.early_stop import without_improvement
from orpo_cli.training.evaluation import evaluate
from orpo_cli.training.events import (
    CheckpointFailed,
    CheckpointSaved,
    Evaluated,
    Event,
    LossSpiked,
    PairLogps,
    PartEvaluated,
    Sampled,
    StepDone,
    StepSkipped,
    StoppedEarly,
    TimeIsUp,
    WorkProgress,
)
from orpo_cli.training.held_out_part import HeldOutPart, held_out_part
from orpo_cli.training.inputs import Training
from orpo_cli.training.spikes import SpikeWatch


@dataclass(frozen=True)
class RunContext:
    """What a run needs beside its `Training`: where it saves, and what each checkpoint keeps of its origin.

    Args:
        checkpoints: the directory of the checkpoints.
        tokenizer: saved beside the weights.
        end_id: the token that ends an answer in the training data.
        sample_prompts: pairs whose prompts are answered before, during and after training, with the words of each.
        data_sha256, identity, environment: kept in each checkpoint and compared on resume.
        records: files beside the checkpoints that grow with the steps; a checkpoint puts them on the disk first.
        resume_command: the command that resumes the run.
        evaluations: the metrics of the evaluations so far, in order, as far as the checkpoint to resume from.
        before: what the held-out pairs score before the first step, where that is known.
    """

    checkpoints: Path
    tokenizer: Any
    end_id: int
    sample_prompts: Sequence[tuple[int, str]]
    data_sha256: dict[str, str]
    identity: dict[str, Any]
    environment: dict[str, Any]
    records: tuple[Path, ...]
    resume_command: str
    evaluations: Sequence[Mapping[str, float]] = ()
    before: PairLogps | None = None


def run(
    training: Training, context: RunContext, stop: StopRequest, checkpoint: tuple[Path, TrainingState] | None = None
) -> Iterator[Event]:
    """Take all steps, from the beginning or from a checkpoint; or end after `TimeIsUp`, or `StoppedEarly`.

    Raises:
        DivergedError: if a loss, a gradient or an updated weight is not finite.
        InterruptedRunError: if a signal came; the state is saved.
        WriteError: if a checkpoint could not be written.
    """
    limit = TimeLimit(training.config.trainer.max_seconds)
    evaluations, part = [*context.evaluations], held_out_part(training)
    whole = _Run(training, context, stop, limit, BackgroundSaver(), _copies(training), evaluations, part=part)
    try:
        yield from whole.start() if checkpoint is None else whole.resume_from(*checkpoint)
        yield from whole.train()
    finally:
        whole.writer.close(wait=not stop.at_once)


def _copies(training: Training) -> Copies | None:
    """Return room for copies, but not on a CPU: there, writing takes the cores that the steps would have."""
    return None if training.hardware.device.type == "cpu" else Copies()


@dataclass
class _Run:
    """The progress of a run; each method yields the events of its part.

    Args:
        evaluations: the metrics of all so far.
        step: the last one, taken or skipped.
        skipped: steps that were not finite.
        evaluation: after the last step, where there was one.
        evaluation_due: the evaluation after the last step was begun and not finished.
        last_good: the newest checkpoint.
        part: the held-out pairs that are evaluated between, where `trainer.eval_every` is auto.
    """

    training: Training
    context: RunContext
    stop: StopRequest
    limit: TimeLimit
    writer: BackgroundSaver
    copies: Copies | None
    evaluations: list[Mapping[str, float]]
    step: int = 0
    skipped: int = 0
    evaluation: dict[str, float] | None = None
    evaluation_due: bool = False
    last_good: Path | None = None
    part: HeldOutPart | None = None

    @property
    def _settings(self) -> TrainerConfig:
        return self.training.config.trainer

    @property
    def _place(self) -> str:
        return f"step {self.step} of {self.training.total_steps}"

    def start(self) -> Iterator[Event]:
        """Measure and sample before the first step."""
        yield from self._measured(self.context.before)
        self._stop_where_a_signal_came(f"before the first step; begin again with: {self.context.resume_command}")
        yield from self._sampled()

    def resume_from(self, checkpoint: Path, state: TrainingState) -> Iterator[Event]:
        """Continue from a checkpoint; the evaluation after it comes first, if a signal has cut it short."""
        self.step, self.skipped, self.last_good = state.step, state.skipped, checkpoint
        is_made_last = self._is_last and state.step < state.total_steps
        self.evaluation = state.evaluation
        self.evaluation_due = state.evaluation_due or (is_made_last and self.evaluation is None)
        if not self.evaluation_due:
            return
        yield from self._measured()
        self._stop_where_a_signal_came(
            f"in the evaluation after {self._place}; resume with: {self.context.resume_command}"
        )
        if self._settings.keep_best is not None:
            yield from self._begin_checkpoint(steps_follow=False)
            yield from self._written(wait=True)

    def train(self) -> Iterator[Event]:
        """Take the steps that are left, as long as evaluations become better where `trainer.early_stop` is set."""
        spikes, over_at_start = SpikeWatch(), self.limit.over
        if self.step and not (self._is_last or self._stops_early):
            yield from self._sampled_where_due()  # after the checkpoint, so that they come again on resume
        self.limit.begin_stretch()
        for event in () if self._stops_early else self._steps():
            yield event
            if not isinstance(event, StepDone | StepSkipped):
                continue
            yield from self._after(event, spikes)
            is_over = self._is_last or self._stops_early
            stopping = self._any_process(self.stop.signal_number is not None)
            save_is_due = _is_due(event.step, self._settings.save_every)
            time_is_up = self._time_is_up(save_is_due)
            ends = is_over or stopping or time_is_up
            if ends or save_is_due:
                yield from self._begin_checkpoint(steps_follow=not ends)
            if ends:
                yield from self._written(wait=True, is_last=True)
            if stopping and (not is_over or self.evaluation_due):
                raise self._interrupted(f"after {self._place}; resume with: {self.context.resume_command}")
            if is_over:
                break
            if time_is_up:
                over, save = self.limit.over, self.limit.last_save
                yield TimeIsUp(
                    event.step, self.training.total_steps, self.context.resume_command, over, over_at_start, save
                )
                return
            self.limit.begin_stretch()
            yield from self._sampled_where_due()
        if self._stops_early:
            count = without_improvement(self.evaluations, self._settings.watched)
            yield StoppedEarly(self.step, self.training.total_steps, self._settings.watched, count)
        yield from self._sampled()

    def _after(self, event: StepDone | StepSkipped, spikes: SpikeWatch) -> Iterator[Event]:
        """Keep the numbers of a step, and evaluate where that is due."""
        yield from self._written()
        self.step, self.evaluation, self.evaluation_due = event.step, None, False
        self.skipped += isinstance(event, StepSkipped)
        if isinstance(event, StepDone):
            yield from self._spike(spikes, event)
        every = self._settings.eval_every
        if self._is_last or (isinstance(every, int) and _is_due(event.step, every)):
            yield from self._measured()
        elif self.part is not None and self.part.is_due(event.step):
            yield from self._part_measured(self.part)

    @property
    def _is_last(self) -> bool:
        return self.step == self.training.total_steps

    @property
    def _stops_early(self) -> bool:
        """Return whether the evaluation after this step ends the run before its last."""
        patience = self._settings.early_stop
        if patience is None or self.evaluation is None or self._is_last:
            return False
        return without_improvement(self.evaluations, self._settings.watched) >= patience

    def _time_is_up(self, save_is_due: bool) -> bool:
        """Return whether the next step and the save after it may come too late; the process that saves knows."""
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
        """Raise the error again, with the last checkpoint named."""
        yield from self._written(wait=True)
        last_good = "there is no checkpoint" if self.last_good is None else f"last checkpoint: {self.last_good}"
        raise DivergedError(f"{error}; {last_good}") from None

    def _measured(self, known: PairLogps | None = None) -> Iterator[Event]:
        """Evaluate after the current step; if a signal ends the evaluation, it stays due.

        Args:
            known: what the pairs score, where that is known already.
        """
        if len(self.training.evaluation) == 0:
            return
        self.evaluation_due = True
        self.training.use_resulting_weights()
        scoring, pairs = self.training.scoring, self.training.evaluation
        try:
            with contextlib.closing(evaluate(scoring, pairs, self.step, known)) as events:
                for event in events:
                    yield event
                    if isinstance(event, Evaluated):
                        self.evaluation, self.evaluation_due = event.metrics, False
                        self.evaluations.append(event.metrics)
                        if self.part is not None:
                            yield from self._part_measured(self.part, event)
                    elif self.stop.signal_number is not None and self.training.hardware.processes == 1:
                        return
        except DivergedError as error:
            yield from self._diverged(error)

    def _part_measured(self, part: HeldOutPart, whole: Evaluated | None = None) -> Iterator[Event]:
        """Evaluate the part of the held-out pairs, unless all of them have just been and are the part.

        Args:
            whole: the evaluation of all of them after this step, if there was one.
        """
        self.training.use_resulting_weights()
        is_all = len(part.store) == len(self.training.evaluation)
        for event in [whole] if whole and is_all else evaluate(self.training.scoring, part.store, self.step):
            if isinstance(event, Evaluated):
                yield PartEvaluated(self.step, event.metrics, len(part.store), part.places, event.logps)
            else:
                yield event

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

    def _sampled_where_due(self) -> Iterator[Event]:
        if _is_due(self.step, self._settings.sample_every):
            yield from self._sampled()

    def _sampled(self) -> Iterator[Event]:
        """Answer some held-out prompts (or training prompts, where nothing is held out)."""
        limit, context = self._settings.sample_tokens, self.context
        if limit == 0 or not context.sample_prompts or not self._computes_answers:
            return
        store = self.training.evaluation if len(self.training.evaluation) > 0 else self.training.train
        prompts = [(words, store[pair].prompt_ids) for pair, words in context.sample_prompts]
        scorer, seed = self.training.scorer, self.training.config.seed
        self.training.use_resulting_weights()
        yield WorkProgress(f"answering {len(prompts)} prompts (trainer.sample_tokens=0 leaves it out)")
        found = scorer.call(answers, context.tokenizer, prompts, context.end_id, limit, seed)
        yield Sampled(self.step, tuple(found))

    @property
    def _computes_answers(self) -> bool:
        """Return whether this process answers prompts; a layer of a divided model is whole where all compute it."""
        return self.training.hardware.is_main or self.training.scorer.is_divided

    def _begin_checkpoint(self, steps_follow: bool) -> Iterator[Event]:
        """Begin to write a checkpoint of the current step, once the one before is written; `_written` says how it went.

        Args:
            steps_follow: steps follow while it is written.
        """
        yield from self._written(wait=True)
        self.training.use_resulting_weights()
        yield from self._check_weights()
        training, is_main = self.training, self.training.hardware.is_main
        model, optimizers = training.scorer.model, training.optimizers
        if training.scorer.is_divided:
            live = LiveState.gathered(model, optimizers, keep=is_main)
        else:
            live = LiveState.of(model, optimizers)
        try:
            if is_main:
                self._begin_to_write(live, steps_follow)
        finally:
            live.finish()

    def _begin_to_write(self, live: LiveState, steps_follow: bool) -> None:
        training, context = self.training, self.context
        state = TrainingState(
            step=self.step,
            total_steps=training.total_steps,
            max_tokens=training.budget.training,
            data_sha256=context.data_sha256,
            identity=context.identity,
            environment=context.environment,
            skipped=self.skipped,
            evaluation=self.evaluation,
            evaluation_due=self.evaluation_due,
        )
        retention = Retention(self._settings.keep_last, self._settings.keep_best)
        copies = self.copies if steps_follow else None
        root, tokenizer, records = context.checkpoints, context.tokenizer, context.records
        model = training.scorer.model
        self.writer.begin(
            state.step, lambda: begin_checkpoint(root, model, tokenizer, live, state, retention, records, copies)
        )

    def _check_weights(self) -> Iterator[Event]:
        """Raise DivergedError if a weight is not finite: the update can be so after a finite loss and gradient."""
        weights = self.training.scorer.model.named_parameters()
        own = first_not_finite((name, own_slice(weight)) for name, weight in weights if weight.requires_grad)
        if names := self.training.hardware.gathered([own] if own else []):
            name = names[0]
            diverged = DivergedError(
                f"{name} is not finite after {self._place}, whose loss and gradient were: the optimizer's state or "
                "its settings (lr, weight_decay) let the update overflow; nothing was saved of it"
            )
            yield from self._diverged(diverged)

    def _written(self, wait: bool = False, is_last: bool = False) -> Iterator[Event]:
        """Say in the main process how the last checkpoint went; the other processes learn whether the run continues.

        Args:
            wait: for one that is still on its way.
            is_last: nothing comes after it, so a failure is the run's.
        Raises:
            OrpoError: if it failed and the run does not continue without it.
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


def _is_due(step: int, every: int | None) -> bool:
    return every is not None and step % every == 0
