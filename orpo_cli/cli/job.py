"""One training run from a checked configuration to a model: each step of the straight line, once."""

import contextlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from orpo_cli.cli.facts import panel_facts, run_record
from orpo_cli.cli.resume import identity, resumed_from
from orpo_cli.config.schema import LoraConfig, RunConfig
from orpo_cli.data import plan
from orpo_cli.data.collation import padded
from orpo_cli.data.prepare import PreparedData, prepare
from orpo_cli.errors import ConfigError, ModelError, OutOfMemoryError
from orpo_cli.models import adapters, loading
from orpo_cli.models.probe import shares_prefixes
from orpo_cli.models.scorer import Scorer
from orpo_cli.reporting import records
from orpo_cli.reporting.terminal import Outcome, Terminal
from orpo_cli.training import checkpoints
from orpo_cli.training.events import Sampled
from orpo_cli.training.hardware import Hardware, find_hardware, is_out_of_memory
from orpo_cli.training.interrupts import stop_at_step_boundary
from orpo_cli.training.measuring import Budget, Training
from orpo_cli.training.memory import fitting_tokens, footprint, free_memory
from orpo_cli.training.optimizers import build_optimizers
from orpo_cli.training.run import Result, run


def train(config: RunConfig, config_yaml: str, folder: Path, screen: Terminal) -> None:
    """Run `config` in `folder`, which this process has claimed.

    Args:
        config_yaml: the configuration as composed, for the record.
    Raises:
        OrpoError: see `orpo_cli.errors`; a run that does not take all its steps always raises.
    """
    loading.be_quiet()
    with _memory_errors_explained():
        _train(config, config_yaml, folder, screen)


def _train(config: RunConfig, config_yaml: str, folder: Path, screen: Terminal) -> None:
    hardware = find_hardware(config.trainer)
    with hardware.main_first():
        files = loading.find_model(config.model, screen.progress)
        tokenizer = loading.load_tokenizer(files, config.model.chat_template)
        max_length, length_note = _max_length(config, files)
        data = prepare(config.data, tokenizer, max_length, config.seed, screen.progress)
    run_identity = identity(config, tokenizer)
    checkpoint = resumed_from(config, folder, data, run_identity)
    if hardware.is_main:
        _write_start(folder, config, config_yaml, data, hardware)
    screen.progress("loading the model", 0, 0)
    model = _build_model(config, files, data, hardware, checkpoint)
    state = None if checkpoint is None else checkpoints.read_state(checkpoint)
    layout, layout_note = _layout(config, model, data)
    training = _build_training(config, model, data, hardware, layout, _budget(config, model, hardware, state))
    steps_done = 0 if state is None else state.step
    if checkpoint is not None:
        checkpoints.load_optimizers(checkpoint, model, training.optimizers)
    if config.resume is not None and checkpoint is None:
        length_note.append("there is no checkpoint yet to go on from: the run starts at its beginning")
    notes = [*length_note, *data.notes, *_head_note(training, files.name), *layout_note]
    facts = panel_facts(training, files.name, data, max_length, steps_done)
    screen.start(facts, notes, training.total_steps, steps_done)
    result = Result(
        folder, tokenizer, data.end_id, data.question, data.sha256, run_identity, loading.stored_dtype(files)
    )
    outcome = _follow(training, result, data.uses_chat_template, screen, steps_done)
    if hardware.is_main:
        records.write_json(folder / "run.json", run_record(config, data, hardware) | {"finished": True})
    screen.finish(outcome)


def _follow(training: Training, result: Result, chat: bool, screen: Terminal, steps_done: int) -> Outcome:
    """Consume the events of the run; each goes to the files first, then to the screen."""
    config, folder = training.config, result.folder
    recorder = records.Recorder(folder, config.trainer.log_every, steps_done) if training.hardware.is_main else None
    with stop_at_step_boundary() as stop:
        for event in run(training, result, stop, steps_done):
            if recorder is not None:
                recorder.show(event)
            screen.show(event)
    evaluations = [record for record in records.read_records(folder / records.METRICS) if record["kind"] == "eval"]
    samples = [Sampled(**record) for record in records.read_records(folder / records.SAMPLES)]
    return Outcome(
        baseline=evaluations[0] if evaluations else None,
        final=evaluations[-1] if evaluations else None,
        before=samples[0] if samples else None,
        after=samples[-1] if samples else None,
        model=result.model,
        chat=chat,
    )


@contextlib.contextmanager
def _memory_errors_explained() -> Iterator[None]:
    """torch names a failed allocation; say what to lower. The steps themselves make their micro-batches smaller."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise OutOfMemoryError(
            "out of memory outside the steps: the model, its gradients or the optimizer's state do not fit; "
            "choose adapter=lora, optimizer=adafactor or a smaller model"
        ) from error


def _max_length(config: RunConfig, files: loading.ModelFiles) -> tuple[int, list[str]]:
    wanted, usable = config.data.max_length, loading.usable_length(files, config.data.max_length)
    note = f"data.max_length is {usable}, the positions this model has, instead of {wanted}"
    return usable, [note] if usable < wanted else []


def _build_model(
    config: RunConfig, files: loading.ModelFiles, data: PreparedData, hardware: Hardware, resumed_from: Path | None
) -> Any:
    lora = config.adapter if isinstance(config.adapter, LoraConfig) else None
    source = files if lora or resumed_from is None else replace(files, directory=resumed_from)
    dtype = _weights_dtype(config, hardware, frozen=lora is not None)
    model: Any = loading.load_model(source, dtype, config.model.attn_implementation, data.highest_token_id)
    if lora:
        if resumed_from:
            model = adapters.load_lora(model, resumed_from)
        else:
            model = adapters.add_lora(model, lora, config.seed, files.reference)
    model.to(hardware.device)
    if config.trainer.gradient_checkpointing:
        try:
            adapters.base_of(model).gradient_checkpointing_enable({"use_reentrant": False})
        except ValueError as error:
            raise ConfigError(f"trainer.gradient_checkpointing=true: {str(error).splitlines()[0]}") from None
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
    trainer = config.trainer
    epoch = plan.Epoch.of(data.train.sizes, config.data.mixture)
    total = plan.total_steps(epoch.pairs, trainer.pairs_per_step, trainer.epochs, trainer.max_steps)
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
        raise ModelError(f"model.path={name}: cannot compute a pair: {str(error).splitlines()[0]}") from error
    if not causal:
        raise ModelError(f"model.path={name}: its tokens see later ones; preferences need a causal (decoder) model")
    if not training.scorer.whole_logits:
        return []
    return [f"this model's head is computed as a whole, with more memory: in chunks it differs by {difference:.2g} nat"]


def _write_start(folder: Path, config: RunConfig, config_yaml: str, data: PreparedData, hardware: Hardware) -> None:
    if config.resume is None:
        (folder / "config.yaml").write_text(config_yaml, encoding="utf-8")
    records.write_ledger(folder / "ledger.jsonl", data.ledger.lines())
    records.write_json(folder / "run.json", run_record(config, data, hardware) | {"finished": False})
