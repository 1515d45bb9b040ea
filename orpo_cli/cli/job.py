"""One training run from a checked configuration to a model: each step of the straight line, once."""

import contextlib
import math
import signal
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch

from orpo_cli.checkpoints.disk_space import check_space
from orpo_cli.checkpoints.reading import LATEST
from orpo_cli.cli.building import built_training, head_note, load_base, merge_note
from orpo_cli.cli.facts import environment, panel_facts, run_record
from orpo_cli.cli.resume import (
    MODEL_FILES,
    Continuation,
    changed_settings,
    check_settings,
    continuation,
    identity,
    refuse_other_data,
    refuse_other_length,
    way_on,
)
from orpo_cli.config.keys import PLACES
from orpo_cli.config.saved import found_elsewhere, load_saved_config
from orpo_cli.config.schema import LoraConfig, RunConfig, TrainerConfig
from orpo_cli.data.prepare import PreparedData, prepare
from orpo_cli.data.tokens.cached_files import tokenizer_fingerprint
from orpo_cli.errors import (
    ConfigError,
    InterruptedRunError,
    OrpoError,
    OutOfMemoryError,
    UnreachableError,
    is_out_of_memory,
)
from orpo_cli.files.directories import remove_leftovers
from orpo_cli.files.manifest import size_and_checksum
from orpo_cli.files.writing import fsync, point
from orpo_cli.machine.hardware import Hardware, find_hardware, is_lost_peer, leave, reason_of_loss
from orpo_cli.machine.memory import peak_in_words
from orpo_cli.machine.signals import StopRequest, stop_at_step_boundary
from orpo_cli.models import loading
from orpo_cli.models.files import ModelFiles, find_model, fingerprint
from orpo_cli.models.saving import check_can_be_saved
from orpo_cli.reporting import records
from orpo_cli.reporting.completeness import metrics_problem
from orpo_cli.reporting.terminal import Outcome, Terminal
from orpo_cli.training.events import ModelWritten, Sampled, TimeIsUp
from orpo_cli.training.run import Result, run
from orpo_cli.training.training import Training, total_steps


def train(config: RunConfig, config_yaml: str, folder: Path, screen: Terminal) -> None:
    """Run `config` in `folder`, which this process has claimed.

    Args:
        config_yaml: the configuration as composed, for the record.
    Raises:
        OrpoError: see `orpo_cli.errors`; a run that does not take all its steps always raises.
    """
    loading.be_quiet()
    try:
        with _errors_of_torch_explained():
            try:
                _train(config, config_yaml, folder, screen)
            except InterruptedRunError:
                leave()
                raise
            leave()
    except KeyboardInterrupt as ended:
        if (folder / "config.yaml").exists():
            ended.args = (f"go on with: {way_on(config, folder)}",)
        raise


def _train(config: RunConfig, config_yaml: str, folder: Path, screen: Terminal) -> None:
    check_settings(config, folder)
    hardware = find_hardware(config.trainer)
    with hardware.main_first():
        files = find_model(config.model, screen.progress)
        tokenizer = loading.load_tokenizer(files, config.model.chat_template)
    resolved = {
        "tokenizer": tokenizer_fingerprint(tokenizer),
        MODEL_FILES: fingerprint(files.directory),
        "trainer.precision": hardware.precision,
    }
    conditions = identity(config) | resolved, environment(config, hardware)
    going_on = continuation(config, folder, *conditions)
    max_length, notes = _max_length(config, files)
    with hardware.main_first():
        data = prepare(config.data, tokenizer, max_length, config.seed, screen.progress)
        _check_evaluation(config, data)
    steps = total_steps(config, data.train)
    if going_on is not None:
        refuse_other_data(config, going_on, data.sha256)
        refuse_other_length(going_on, steps)
    result = Result(
        folder, tokenizer, data.end_id, data.question, data.sha256, *conditions,
        partial(load_base, files, resolved[MODEL_FILES]), (folder / records.METRICS, folder / records.SAMPLES),
        way_on(config, folder),
    )  # fmt: skip
    notes += [*data.notes, *_notes_on_best(config.trainer, steps), *_notes_on_going_on(config, folder, going_on)]
    if hardware.is_main:
        for directory in (folder, result.checkpoints):
            remove_leftovers(directory)
        check_space(config, files.directory, result.checkpoints, steps)
        _write_start(result, config, config_yaml, data, hardware, going_on)
    screen.progress("loading the model", 0, 0)
    training, building_notes = built_training(config, files, data, hardware, going_on)
    if hardware.is_main:
        whole = not isinstance(config.adapter, LoraConfig) or config.adapter.merge
        check_can_be_saved(training.scorer.model, tokenizer, folder, whole)
    notes += [*building_notes, *merge_note(config, files), *head_note(training, files.name)]
    steps_done = 0 if going_on is None else going_on.state.step
    facts = panel_facts(training, files.name, data, max_length, steps_done)
    screen.start(facts, notes, training.total_steps, steps_done)
    if not _follow(training, result, screen, going_on):
        return
    if hardware.is_main:
        _note_end(folder)
    with contextlib.suppress(KeyboardInterrupt):  # all is done; there is nothing that a signal could end
        screen.finish(_outcome(result, data.uses_chat_template))


def _notes_on_going_on(config: RunConfig, folder: Path, going_on: Continuation | None) -> list[str]:
    if going_on is None:
        if config.resume is None or not (folder / "config.yaml").exists():
            return []
        lost = max((record["step"] for record in records.read_records(folder / records.METRICS)), default=0)
        again = f"; {lost} steps are done again" if lost > 0 else ""
        return [f"there is no checkpoint to go on from: the run starts at its beginning{again}"]
    began = load_saved_config(folder)
    problem = metrics_problem(folder, began, going_on.state.step, finished=False)
    return [*going_on.notes, *([] if problem is None else [problem])]


def _follow(training: Training, result: Result, screen: Terminal, going_on: Continuation | None) -> bool:
    """Consume the events of the run; each goes to the files first, then to the screen.

    Returns whether it came to its end, before its time was up.
    """
    recorder = _recorder(training, result, screen, going_on) if training.hardware.is_main else None

    def on_signal(number: int) -> None:
        again = "; Ctrl-C stops without saving" if number == signal.SIGINT else ""
        screen.warn(f"{signal.Signals(number).name}: stopping after this step{again}")

    checkpoint = None if going_on is None else (going_on.checkpoint, going_on.state)
    with stop_at_step_boundary(on_signal) as stop, _stops_together(stop, result):
        for event in run(training, result, stop, checkpoint):
            if recorder is not None:
                recorder.show(event)
            screen.show(event)
            if isinstance(event, TimeIsUp):
                return False
            if isinstance(event, ModelWritten):
                records.note_model(result.folder, event.files)
    if recorder is not None:
        recorder.finish()
    return True


def _note_end(folder: Path) -> None:
    written = [name for name in (records.METRICS, records.SAMPLES) if (folder / name).is_file()]
    records.note_end(folder, {name: size_and_checksum(folder / name) for name in written})


def _outcome(result: Result, chat: bool) -> Outcome:
    """What is shown of the run at its end, from what it has recorded."""
    folder = result.folder
    evaluations = [record for record in records.read_records(folder / records.METRICS) if record["kind"] == "eval"]
    samples = [Sampled(**record) for record in records.read_records(folder / records.SAMPLES)]
    return Outcome(
        baseline=evaluations[0] if evaluations and evaluations[0]["step"] == 0 else None,
        final=evaluations[-1] if evaluations else None,
        before=samples[0] if samples and samples[0].step == 0 else None,
        after=samples[-1] if samples else None,
        model=result.model,
        chat=chat,
    )


@contextlib.contextmanager
def _stops_together(stop: StopRequest, result: Result) -> Iterator[None]:
    """A process that a signal told twice, or before its steps, leaves at once; that is the end of the others, too, and
    what the signal asked for."""
    try:
        yield
    except Exception as error:
        if stop.signal_number is None or not is_lost_peer(error):
            raise
        raise InterruptedRunError(
            f"stopped by a signal, and another process of this run left at once; go on with: {result.go_on}",
            stop.signal_number,
        ) from error


def _recorder(training: Training, result: Result, screen: Terminal, going_on: Continuation | None) -> records.Recorder:
    log_every = training.config.trainer.log_every
    if going_on is None:
        return records.Recorder(result.folder, log_every, screen.warn)
    state = going_on.state
    return records.Recorder(result.folder, log_every, screen.warn, state.step, state.evaluation_due)


def _check_evaluation(config: RunConfig, data: PreparedData) -> None:
    if config.trainer.keep_best is not None and len(data.evaluation) == 0:
        raise ConfigError(
            f"trainer.keep_best={config.trainer.keep_best}: nothing is held out to measure it on; "
            "set data.eval_fraction or data.eval_path"
        )


def _notes_on_best(trainer: TrainerConfig, steps: int) -> list[str]:
    """The best checkpoint is one of a step that is evaluated and saved."""
    if trainer.keep_best is None or trainer.eval_every is None:
        return []
    if trainer.save_every is not None and math.lcm(trainer.eval_every, trainer.save_every) < steps:
        return []
    saves = "null" if trainer.save_every is None else trainer.save_every
    return [
        f"trainer.keep_best={trainer.keep_best}: trainer.eval_every={trainer.eval_every} and "
        f"trainer.save_every={saves} meet at no step before the last, {steps}; only that can be the best"
    ]


@contextlib.contextmanager
def _errors_of_torch_explained() -> Iterator[None]:
    """torch names a failed allocation or connection; say what to do. Steps make their micro-batches smaller before."""
    try:
        yield
    except OrpoError:
        raise
    except Exception as error:
        if is_lost_peer(error):
            lost = reason_of_loss(error)
            raise UnreachableError(f"another process of this run is gone, or did not answer: {lost}") from error
        if not is_out_of_memory(error):
            raise
        device = torch.device("cuda" if isinstance(error, torch.OutOfMemoryError) else "cpu")
        raise OutOfMemoryError(
            "out of memory outside the steps: the model, its gradients or the optimizer's state do not fit; "
            f"{peak_in_words(device)}. Choose adapter=lora, optimizer=adafactor or a smaller model"
        ) from error


def _max_length(config: RunConfig, files: ModelFiles) -> tuple[int, list[str]]:
    wanted, usable = config.data.max_length, loading.usable_length(files, config.data.max_length)
    note = f"data.max_length is {usable}, the positions this model has, instead of {wanted}"
    return usable, [note] if usable < wanted else []


def _write_start(
    result: Result,
    config: RunConfig,
    config_yaml: str,
    data: PreparedData,
    hardware: Hardware,
    going_on: Continuation | None,
) -> None:
    """The files of a run that are there before its first step."""
    folder = result.folder
    if going_on is not None:
        point(result.checkpoints / LATEST, going_on.checkpoint.name)
    history: list[Any] = []
    if (folder / "config.yaml").exists():
        changed = changed_settings(config, folder)
        step = 0 if going_on is None else going_on.state.step
        history = [
            *records.went_on(folder),
            {"after_step": step, "changed": changed, "environment": result.environment},
        ]
        if changed.keys() & set(PLACES):
            records.write_text(folder / "config.yaml", found_elsewhere(folder, config_yaml))
    else:
        records.write_text(folder / "config.yaml", config_yaml)
    ledger = folder / "ledger.jsonl"
    records.write_ledger(ledger, data.ledger.lines())
    notes = {
        "went_on": history,
        "files": {ledger.name: size_and_checksum(ledger)},
        "model_files": records.model_listings(folder),
        "finished": False,
    }
    records.write_json(folder / "run.json", run_record(config, data, hardware) | notes)
    fsync(folder)
    with contextlib.suppress(PermissionError):  # it may be one that is not for reading
        fsync(folder.parent)
