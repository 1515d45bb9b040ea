"""Execute a run in a claimed folder: have it assembled, write its first files, take its steps, publish its model."""

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from orpo_cli.checkpoints.disk_space import check_space
from orpo_cli.checkpoints.lookup import best_checkpoint, latest_checkpoint, verify
from orpo_cli.checkpoints.saving import stage_adapter, stage_model
from orpo_cli.config.schema import RunConfig
from orpo_cli.errors import (
    DivergedError,
    InterruptedRunError,
    OrpoError,
    OutOfMemoryError,
    UnreachableError,
    is_out_of_memory,
)
from orpo_cli.files.directories import remove_leftovers
from orpo_cli.machine.hardware import Hardware, is_lost_peer, leave_processes, lost_peer_reason
from orpo_cli.machine.memory import peak_in_words, peak_memory
from orpo_cli.machine.signals import StopRequest
from orpo_cli.models.loading import DTYPES
from orpo_cli.models.saving import cast_weights, check_can_be_saved
from orpo_cli.quoting import in_one_line
from orpo_cli.reporting.metrics_file import MetricsFile, sampled
from orpo_cli.reporting.times import utc
from orpo_cli.runs import scores
from orpo_cli.runs.assembly import Assembly
from orpo_cli.runs.before_training import known_scores
from orpo_cli.runs.beginning import begin, earlier, notes_on_best, notes_on_resume, started
from orpo_cli.runs.card import Form, Result, card_of
from orpo_cli.runs.folder import RunFolder
from orpo_cli.runs.outcome import evaluation_of_run, outcome_of, what_is_noted
from orpo_cli.runs.report import write_report_or_warn
from orpo_cli.runs.resume import (
    ResumePoint,
    check_resume_point,
    find_resume_point,
    notes_on_defaults,
    refuse_changed_settings,
    resume_command_with_changes,
)
from orpo_cli.runs.session import Session
from orpo_cli.runs.stretches import BEFORE, NOW, stretches
from orpo_cli.statistics.evaluation import Evaluation
from orpo_cli.statistics.reading import Sentence, read
from orpo_cli.training.events import (
    Evaluated,
    Event,
    PartEvaluated,
    RunFinished,
    Sampled,
    StepDone,
    StepSkipped,
    TimeIsUp,
    Warned,
    WorkProgress,
)
from orpo_cli.training.inputs import Training, total_steps
from orpo_cli.training.run import RunContext, run


def execute(
    config: RunConfig, folder: RunFolder, tell: Callable[[Event], None], stop: StopRequest, session: Session
) -> Iterator[Event]:
    """Run a configuration in a folder that this process has claimed.

    Args:
        tell: given the events that arise inside a call: progress and warnings.
    """
    with _errors_of_torch_explained():
        try:
            yield from _execute(config, folder, tell, stop, session)
        except InterruptedRunError:
            leave_processes()
            raise
        leave_processes()


def _execute(
    config: RunConfig, folder: RunFolder, tell: Callable[[Event], None], stop: StopRequest, session: Session
) -> Iterator[Event]:
    refuse_changed_settings(config, folder)
    assembly = Assembly(config, lambda what, done, total: tell(WorkProgress(what, done, total)))
    resume_point = find_resume_point(config, folder, assembly.identity, assembly.environment)
    data, hardware = assembly.data, assembly.hardware
    steps = total_steps(config, data.train)
    before = total_steps(folder.config, data.train) if folder.has_begun else steps
    if resume_point is not None:
        planned = [before, *(stretch.total for stretch in stretches(folder.resumes, before))]
        check_resume_point(resume_point, config, data.sha256, steps, planned)
    context = _context(assembly, folder, resume_point)
    assembly.notes += [*notes_on_best(config.trainer, steps), *notes_on_resume(config, folder, resume_point, steps)]
    assembly.notes += notes_on_defaults(config, folder)
    if hardware.is_main:
        for directory in (folder.path, folder.checkpoints):
            remove_leftovers(directory)
        check_space(config, assembly.files, folder.checkpoints, steps)
        begin(assembly, folder, resume_point, {} if steps == before else {BEFORE: before, NOW: steps}, session)
    training = assembly.training(resume_point)
    if hardware.is_main:
        check_can_be_saved(training.scorer.model, assembly.tokenizer, folder.path, config.saves_whole_model)
    assembly.check_merge()
    assembly.check_model(training)
    yield from _to_the_end(assembly, training, folder, resume_point, context, tell, stop, session)


def _to_the_end(
    assembly: Assembly,
    training: Training,
    folder: RunFolder,
    resume_point: ResumePoint | None,
    context: RunContext,
    tell: Callable[[Event], None],
    stop: StopRequest,
    session: Session,
) -> Iterator[Event]:
    """Say that the steps begin, take and record them, and publish the model."""
    metrics_file, checkpoint, step = None, None, 0

    def warn(text: str) -> None:
        tell(Warned(text))

    if training.hardware.is_main:
        metrics_file = _metrics_file(training.config, folder, resume_point, warn)
    yield started(assembly, training, folder, resume_point, session)  # whoever watches reads the metrics then
    if resume_point is not None:
        checkpoint, step = (resume_point.checkpoint, resume_point.state), resume_point.state.step
    with _stops_together(stop, context), _page_of_an_early_end(training.hardware, folder, metrics_file, warn):
        for event in run(training, context, stop, checkpoint):
            if metrics_file is not None:
                metrics_file.record(event)
                if isinstance(event, Evaluated | PartEvaluated):
                    _keep_scores(folder, event, warn)
            yield event
            if isinstance(event, TimeIsUp):
                if metrics_file is not None:
                    write_report_or_warn(folder, metrics_file, warn)
                return
            if isinstance(event, StepDone | StepSkipped):
                step = event.step
        if metrics_file is not None:
            yield WorkProgress("writing the model")
            end, best = _end(assembly, training, folder, step)
            known = _known(metrics_file, folder, training, end)
            _publish_model(assembly, training, folder, best, known, warn)
            metrics_file.finish()
            finished = _finished(known, folder, assembly, training, end, session)
            folder.note_end(end=asdict(end), ended=utc(time.time()), **what_is_noted(finished))
            stop.comes_too_late = True
            write_report_or_warn(folder, metrics_file, warn)
            yield finished


@contextlib.contextmanager
def _page_of_an_early_end(
    hardware: Hardware, folder: RunFolder, written: MetricsFile | None, warn: Callable[[str], None]
) -> Iterator[None]:
    """Write report.html also where the run is stopped or diverges; what is saved of it is on the disk by then."""
    try:
        yield
    except (InterruptedRunError, DivergedError) as error:
        # of several processes that diverge, the first that has ended ends the others
        if written is not None and (hardware.processes == 1 or isinstance(error, InterruptedRunError)):
            write_report_or_warn(folder, written, warn)
        raise


def _keep_scores(folder: RunFolder, event: Evaluated | PartEvaluated, warn: Callable[[str], None]) -> None:
    """Write what each pair scored; a run whose folder cannot be written to goes on without."""
    try:
        scores.write(folder.evaluations, event)
    except OSError as error:
        warn(f"{error.filename}: {error.strerror}; what each pair scored after step {event.step} is not kept")


@dataclass(frozen=True)
class End:
    """How a run ended.

    Args:
        step: the last one.
        total_steps: the number of steps that were planned.
        early_stop: `trainer.early_stop`, where it ended the run.
        result: `trainer.result`.
        model_step: the step whose weights the model has.
    """

    step: int
    total_steps: int
    early_stop: int | None
    result: str
    model_step: int


def _context(assembly: Assembly, folder: RunFolder, resume_point: ResumePoint | None) -> RunContext:
    return RunContext(
        checkpoints=folder.checkpoints,
        tokenizer=assembly.tokenizer,
        end_id=assembly.data.end_id,
        sample_prompts=assembly.data.questions,
        data_sha256=assembly.data.sha256,
        identity=assembly.identity,
        environment=assembly.environment,
        records=(folder.metrics, folder.samples),
        resume_command=resume_command_with_changes(assembly.config, folder),
        evaluations=[part for part in earlier(folder, resume_point) if part["kind"] == "eval"],
        before=None if resume_point else known_scores(assembly, folder),
    )


def _metrics_file(
    config: RunConfig, folder: RunFolder, resume_point: ResumePoint | None, warn: Callable[[str], None]
) -> MetricsFile:
    lines = folder.metrics_lines, folder.samples_lines
    if resume_point is None:
        return MetricsFile(folder.path, config.trainer.log_every, warn, *lines)
    state = resume_point.state
    return MetricsFile(folder.path, config.trainer.log_every, warn, *lines, state.step, state.evaluation_due)


def _end(assembly: Assembly, training: Training, folder: RunFolder, step: int) -> tuple[End, Path | None]:
    """Return how the run has ended, and the checkpoint whose weights its model gets; None for those it has.

    Args:
        step: the last one.
    """
    trainer = assembly.config.trainer
    best = best_checkpoint(folder.checkpoints, trainer.keep_best) if trainer.result == "best" else None
    model_step = step if best is None else verify(best).step
    early_stop = trainer.early_stop if step < training.total_steps else None
    end = End(step, training.total_steps, early_stop, trainer.result, model_step)
    return end, best if model_step != step else None


@dataclass(frozen=True)
class Known:
    """What is known of the model that the run leaves.

    Args:
        before, after: the first sampled answers and the last, where they are of the model.
    """

    step: int
    evaluation: Evaluation | None
    reading: Sequence[Sentence]
    before: Sampled | None
    after: Sampled | None


def _known(metrics_file: MetricsFile, folder: RunFolder, training: Training, end: End) -> Known:
    before = sampled(metrics_file.samples, 0)
    after = sampled(metrics_file.samples, end.step) if end.model_step == end.step and end.step else None
    evaluation = evaluation_of_run(folder, metrics_file.evaluations, end.model_step)
    reading = read(outcome_of(training, evaluation, before, after, end.step))
    return Known(end.model_step, evaluation, reading, before, after)


def _publish_model(
    assembly: Assembly,
    training: Training,
    folder: RunFolder,
    best: Path | None,
    known: Known,
    warn: Callable[[str], None],
) -> None:
    """Put the trained model in its place; run.json lists its files before they are there.

    Args:
        best: the checkpoint whose weights it gets; None for those that it has.
    """
    model, config = training.scorer.model, assembly.config
    dtype = None if config.model.save_dtype is None else DTYPES[config.model.save_dtype]
    card = _card(assembly, folder, known, warn)
    divided = (best or latest_checkpoint(folder.checkpoints)[0]) if training.scorer.is_divided else None
    if divided is not None and not config.saves_whole_model:
        staged, files = stage_adapter(folder.model, divided, dtype, card)
    else:
        if divided is not None:
            model = assembly.whole_model(divided)
        elif best is not None:
            assembly.model.take_checkpoint(model, best)
        if config.merges:
            model = assembly.merged(model)
        if dtype is not None:
            cast_weights(model, dtype)
        staged, files = stage_model(folder.model, model, assembly.tokenizer, assembly.data.end_id, card)
    with staged.writing():
        folder.note_model(files)
    staged.publish()


def _card(assembly: Assembly, folder: RunFolder, known: Known, warn: Callable[[str], None]) -> str | None:
    """Return the card of the model; None where it cannot be written, which costs no run its model."""
    config = assembly.config
    form = Form(
        library="transformers" if config.saves_whole_model else "peft",
        plain=assembly.saves_plain_model,
        place="DIR",
        end_token=assembly.tokenizer.convert_ids_to_tokens(assembly.data.end_id),
        chat=assembly.data.uses_chat_template,
    )
    answers = [part.answers if part else () for part in (known.before, known.after)]
    result = Result(known.step, known.evaluation, [sentence.text for sentence in known.reading], *answers)
    try:
        return card_of(config, folder, result, form)
    except Exception as error:
        warn(f"model/README.md was not written: {in_one_line(error)}")
        return None


def _finished(
    known: Known, folder: RunFolder, assembly: Assembly, training: Training, end: End, session: Session
) -> RunFinished:
    return RunFinished(
        evaluation=known.evaluation,
        reading=known.reading,
        before=known.before,
        after=known.after,
        model=folder.model,
        chat=assembly.data.uses_chat_template,
        plain=assembly.saves_plain_model,
        best_step=None if end.model_step == end.step else end.model_step,
        seconds=round(folder.record["seconds"] + session.seconds, 3),
        peak_memory=peak_memory(training.hardware.device),
    )


@contextlib.contextmanager
def _stops_together(stop: StopRequest, context: RunContext) -> Iterator[None]:
    """Take it for the interrupt that a signal asked for where another process of the run left at once because of it."""
    try:
        yield
    except Exception as error:
        if stop.signal_number is None or not is_lost_peer(error):
            raise
        raise InterruptedRunError(
            f"stopped by a signal, and another process of this run left at once; resume with: {context.resume_command}",
            stop.signal_number,
        ) from error


@contextlib.contextmanager
def _errors_of_torch_explained() -> Iterator[None]:
    """Say what to do where torch names a failed allocation or connection outside the steps."""
    try:
        yield
    except OrpoError:
        raise
    except Exception as error:
        if is_lost_peer(error):
            lost = lost_peer_reason(error)
            raise UnreachableError(f"another process of this run is gone, or did not answer: {lost}") from error
        if not is_out_of_memory(error):
            raise
        device = torch.device("cuda" if isinstance(error, torch.OutOfMemoryError) else "cpu")
        raise OutOfMemoryError(
            "out of memory outside the steps: the model, its gradients or the optimizer's state do not fit; "
            f"{peak_in_words(device)}. Choose adapter=lora, optimizer=adafactor or a smaller model"
        ) from error
