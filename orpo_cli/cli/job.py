"""One training run from a checked configuration to a model: each step of the straight line, once."""

import contextlib
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from orpo_cli.cli.facts import environment, panel_facts, run_record
from orpo_cli.cli.resume import (
    Continuation,
    changed_settings,
    check_settings,
    continuation,
    identity,
    refuse_other_data,
)
from orpo_cli.config.load import PLACES, found_elsewhere, load_config, read_saved_config
from orpo_cli.config.schema import LoraConfig, RunConfig
from orpo_cli.data.collation import padded
from orpo_cli.data.preparation import tokenizer_fingerprint
from orpo_cli.data.prepare import PreparedData, prepare
from orpo_cli.errors import (
    ConfigError,
    ModelError,
    OrpoError,
    OutOfMemoryError,
    UnreachableError,
    first_line,
    is_out_of_memory,
)
from orpo_cli.models import adapters, loading
from orpo_cli.models.files import ModelFiles, find_model, fingerprint
from orpo_cli.models.probe import shares_prefixes
from orpo_cli.models.scorer import Scorer
from orpo_cli.reporting import records
from orpo_cli.reporting.completeness import fault_of_records
from orpo_cli.reporting.terminal import Outcome, Terminal
from orpo_cli.training import checkpoints
from orpo_cli.training.disk import check_space
from orpo_cli.training.events import Sampled, TimeIsUp
from orpo_cli.training.hardware import Hardware, find_hardware, is_lost_peer, reason_of_loss
from orpo_cli.training.interrupts import stop_at_step_boundary
from orpo_cli.training.measuring import Budget, Training, total_steps
from orpo_cli.training.memory import fitting_tokens, footprint, free_memory, peak_in_words
from orpo_cli.training.moments import load_moments
from orpo_cli.training.optimizers import build_optimizers
from orpo_cli.training.publication import remove_leftovers
from orpo_cli.training.run import Result, go_on, run


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
            _train(config, config_yaml, folder, screen)
    except KeyboardInterrupt as ended:
        if (folder / "config.yaml").exists():
            ended.args = (f"go on with: {go_on(folder)}",)
        raise


def _train(config: RunConfig, config_yaml: str, folder: Path, screen: Terminal) -> None:
    check_settings(config, folder)
    hardware = find_hardware(config.trainer)
    with hardware.main_first():
        files = find_model(config.model, screen.progress)
        tokenizer = loading.load_tokenizer(files, config.model.chat_template)
    resolved = {
        "tokenizer": tokenizer_fingerprint(tokenizer),
        "model files": fingerprint(files.directory),
        "trainer.precision": hardware.precision,
    }
    conditions = identity(config) | resolved, environment(config, hardware)
    going_on = continuation(config, folder, *conditions)
    max_length, notes = _max_length(config, files)
    with hardware.main_first():
        data = prepare(config.data, tokenizer, max_length, config.seed, screen.progress)
        _check_evaluation(config, data)
    if going_on is not None:
        refuse_other_data(config, going_on, data.sha256)
    result = Result(
        folder, tokenizer, data.end_id, data.question, data.sha256, *conditions, loading.stored_dtype(files),
        (folder / records.METRICS, folder / records.SAMPLES),
    )  # fmt: skip
    notes += [*data.notes, *_notes_on_going_on(config, folder, going_on)]
    if hardware.is_main:
        check_space(config, files.directory, result.checkpoints, total_steps(config, data.train))
        _write_start(result, config, config_yaml, data, hardware, going_on)
    screen.progress("loading the model", 0, 0)
    training, building_notes = built_training(config, files, data, hardware, going_on)
    notes += [*building_notes, *_head_note(training, files.name)]
    steps_done = 0 if going_on is None else going_on.state.step
    facts = panel_facts(training, files.name, data, max_length, steps_done)
    screen.start(facts, notes, training.total_steps, steps_done)
    outcome = _follow(training, result, data.uses_chat_template, screen, going_on)
    if outcome is None:
        return
    if hardware.is_main:
        records.write_json(folder / "run.json", records.read_json(folder / "run.json") | {"finished": True})
    screen.finish(outcome)


def _notes_on_going_on(config: RunConfig, folder: Path, going_on: Continuation | None) -> list[str]:
    if going_on is None:
        if config.resume is None or not (folder / "config.yaml").exists():
            return []
        lost = max((record["step"] for record in records.read_records(folder / records.METRICS)), default=0)
        again = f"; {lost} steps are done again" if lost > 0 else ""
        return [f"there is no checkpoint to go on from: the run starts at its beginning{again}"]
    began = load_config(read_saved_config(folder))
    fault = fault_of_records(folder, began, going_on.state.step, finished=False)
    return [*going_on.notes, *([] if fault is None else [fault])]


def built_training(
    config: RunConfig,
    files: ModelFiles,
    data: PreparedData,
    hardware: Hardware,
    going_on: Continuation | None,
) -> tuple[Training, list[str]]:
    """Model, optimizers and all else that steps need, as they were at a checkpoint. Returns what to say of them too."""
    model = _build_model(config, files, data, hardware, None if going_on is None else going_on.checkpoint)
    layout, notes = _layout(config, model, data)
    budget = _budget(config, model, hardware, None if going_on is None else going_on.state)
    training = _build_training(config, model, data, hardware, layout, budget)
    if going_on is not None:
        steps = going_on.state.step - going_on.state.skipped
        without = load_moments(going_on.checkpoint / checkpoints.OPTIMIZER, model, training.optimizers, steps)
        notes += _moments_note(without)
    return training, notes


def _moments_note(without: list[str]) -> list[str]:
    if not without:
        return []
    more = f" and {len(without) - 3} more" if len(without) > 3 else ""
    return [
        f"the checkpoint has no optimizer state of {', '.join(without[:3])}{more}: "
        "as of weights that no step has changed, they begin with none"
    ]


def _follow(
    training: Training, result: Result, chat: bool, screen: Terminal, going_on: Continuation | None
) -> Outcome | None:
    """Consume the events of the run; each goes to the files first, then to the screen. None where its time was up."""
    recorder = _recorder(training, result, screen, going_on) if training.hardware.is_main else None

    def on_signal(number: int) -> None:
        again = "; Ctrl-C stops without saving" if number == signal.SIGINT else ""
        screen.warn(f"{signal.Signals(number).name}: stopping after this step{again}")

    checkpoint = None if going_on is None else (going_on.checkpoint, going_on.state)
    with stop_at_step_boundary(on_signal) as stop:
        for event in run(training, result, stop, checkpoint):
            if recorder is not None:
                recorder.show(event)
            screen.show(event)
            if isinstance(event, TimeIsUp):
                return None
    if recorder is not None:
        recorder.finish()
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


def _build_model(
    config: RunConfig, files: ModelFiles, data: PreparedData, hardware: Hardware, resumed_from: Path | None
) -> Any:
    lora = config.adapter if isinstance(config.adapter, LoraConfig) else None
    dtype = _weights_dtype(config, hardware, frozen=lora is not None)
    model: Any = loading.load_model(
        files, dtype, config.model.attn_implementation, data.highest_token_id, None if lora else resumed_from
    )
    if lora:
        if resumed_from:
            model = adapters.load_lora(model, resumed_from, files.reference)
        else:
            model = adapters.add_lora(model, lora, config.seed, files.reference)
    model.to(hardware.device)
    if config.trainer.gradient_checkpointing:
        try:
            adapters.base_of(model).gradient_checkpointing_enable({"use_reentrant": False})
        except ValueError as error:
            raise ConfigError(f"trainer.gradient_checkpointing=true: {first_line(error)}") from None
    return model


def _weights_dtype(config: RunConfig, hardware: Hardware, frozen: bool) -> torch.dtype:
    if config.model.dtype != "auto":
        return loading.DTYPES[config.model.dtype]
    return loading.DTYPES[hardware.precision] if frozen else torch.float32


def _layout(config: RunConfig, model: Any, data: PreparedData) -> tuple[str, list[str]]:
    """The layout of the run: packed only where this model's attention can share a prompt."""
    if config.trainer.layout == "padded":
        return "padded", []
    stores = [store for store in (data.train, data.evaluation) if len(store) > 0]
    pairs = [store[index] for store in stores for index in (store.shortest(), store.longest())]
    reason = shares_prefixes(adapters.base_of(model), pairs)
    if reason is None:
        return "packed", []
    return "padded", [f"layout padded, since this model cannot share a prompt between two responses: {reason}"]


def _budget(config: RunConfig, model: Any, hardware: Hardware, state: checkpoints.TrainingState | None) -> Budget:
    """Sizes of micro-batches; those of a run that goes on are what fitted before, unless they are given."""
    max_tokens = config.trainer.max_tokens
    if isinstance(max_tokens, int):
        return Budget(max_tokens, config.trainer.eval_max_tokens)
    if state is not None:
        return Budget(state.max_tokens, config.trainer.eval_max_tokens)
    free = free_memory(hardware.device)
    return Budget(fitting_tokens(footprint(config, model, hardware), free, hardware), config.trainer.eval_max_tokens)


def _build_training(
    config: RunConfig, model: Any, data: PreparedData, hardware: Hardware, layout: str, budget: Budget
) -> Training:
    total = total_steps(config, data.train)
    optimizers = build_optimizers(model, config.optimizer)
    scorer = Scorer(model, hardware.dtype)
    return Training(config, scorer, optimizers, data.train, data.evaluation, hardware, total, layout, budget)


def _head_note(training: Training, name: str) -> list[str]:
    """Compute one real pair before any step: the model must be causal, its head as the scorer computes it.

    Raises:
        ModelError: the model sees later tokens, or cannot compute the pair at all.
    """
    training.scorer.eval()
    batch = padded([training.train[training.train.shortest()]], score_prompts=False).to(training.hardware.device)
    try:
        with training.scorer.at_work("padded"):
            causal, difference = training.scorer.is_causal(batch), training.scorer.check_head(batch)
    except (RuntimeError, IndexError, ValueError, TypeError, AttributeError) as error:
        if is_out_of_memory(error):
            raise
        raise ModelError(f"model.path={name}: cannot compute a pair: {first_line(error)}") from error
    if not causal:
        raise ModelError(f"model.path={name}: its tokens see later ones; preferences need a causal (decoder) model")
    if not training.scorer.whole_logits:
        return []
    return [f"this model's head is computed as a whole, with more memory: in chunks it differs by {difference:.2g} nat"]


def _write_start(
    result: Result,
    config: RunConfig,
    config_yaml: str,
    data: PreparedData,
    hardware: Hardware,
    going_on: Continuation | None,
) -> None:
    """The files of a run that are there before its first step; what is left of a dead one goes."""
    folder = result.folder
    for directory in (folder, result.checkpoints):
        remove_leftovers(directory)
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
    records.write_ledger(folder / "ledger.jsonl", data.ledger.lines())
    records.write_json(
        folder / "run.json", run_record(config, data, hardware) | {"went_on": history, "finished": False}
    )
