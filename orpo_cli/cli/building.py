"""The parts of a run, built from its configuration or from one of its checkpoints."""

from pathlib import Path
from typing import Any

import torch

from orpo_cli.checkpoints import reading
from orpo_cli.checkpoints.optimizer_state import load_optimizer_state
from orpo_cli.cli.resume import Continuation
from orpo_cli.config.schema import LoraConfig, RunConfig
from orpo_cli.data.collation import padded
from orpo_cli.data.prepare import PreparedData
from orpo_cli.errors import ConfigError, ModelError, is_out_of_memory
from orpo_cli.machine.hardware import Hardware
from orpo_cli.machine.memory import free_memory
from orpo_cli.models import adapters, loading
from orpo_cli.models.files import ModelFiles, fingerprint, loaded_weights
from orpo_cli.models.probe import shares_prefixes
from orpo_cli.models.scorer import Scorer
from orpo_cli.models.weights import kind_in_words, main_dtype, rounded_when_merged, stored_weights, take_as_stored
from orpo_cli.quoting import first_few, first_line
from orpo_cli.training.footprint import fitting_tokens, footprint
from orpo_cli.training.optimizers import build_optimizers
from orpo_cli.training.training import Budget, Training, total_steps


def built_training(
    config: RunConfig,
    files: ModelFiles,
    data: PreparedData,
    hardware: Hardware,
    going_on: Continuation | None,
) -> tuple[Training, list[str]]:
    """Model, optimizers and all else that steps need, as they were at a checkpoint. Returns what to say of them too."""
    model, notes = _build_model(config, files, data, hardware, None if going_on is None else going_on.checkpoint)
    layout, layout_notes = _layout(config, model, data)
    notes += layout_notes
    budget = _budget(config, model, hardware, None if going_on is None else going_on.state)
    training = _build_training(config, model, data, hardware, layout, budget)
    if going_on is not None:
        steps = going_on.state.step - going_on.state.skipped
        without = load_optimizer_state(going_on.checkpoint / reading.OPTIMIZER, model, training.optimizers, steps)
        notes += _optimizer_state_note(without)
    return training, notes


def head_note(training: Training, name: str) -> list[str]:
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


def load_base(files: ModelFiles, expected: str) -> Any:
    """The model that a run began with, each weight in the numbers it is stored in.

    Args:
        expected: the fingerprint it had.
    Raises:
        ModelError: it has changed since.
    """
    try:
        is_same = fingerprint(files.directory) == expected
    except (OSError, ValueError, ModelError):
        is_same = False
    if not is_same:
        raise ModelError(
            f"model.path={files.name}: has changed while the adapter was trained, which is not merged into it; "
            "the checkpoints have the adapter by itself"
        )
    paths = loaded_weights(files.directory)
    model, _ = loading.load_model(files, main_dtype(stored_weights(paths)), None, highest_token_id=0)
    take_as_stored(model, paths)
    return model


def merge_note(config: RunConfig, files: ModelFiles) -> list[str]:
    """What merging will round, known before training.

    Raises:
        CheckpointError: a file of weights cannot be read.
        ModelError: config.json is damaged, or not of a causal language model.
    """
    if not (isinstance(config.adapter, LoraConfig) and config.adapter.merge):
        return []
    weights = stored_weights(loaded_weights(files.directory))
    rounded = rounded_when_merged(loading.load_skeleton(files), weights)
    if not rounded:
        return []
    return [
        f"adapter.merge=true: {len(rounded)} stored weights that the model has under no such name, "
        f"{first_few(rounded)}: where it has them under another, they will be rounded to "
        f"{kind_in_words(main_dtype(weights))}, in which most are stored"
    ]


def _build_model(
    config: RunConfig, files: ModelFiles, data: PreparedData, hardware: Hardware, resumed_from: Path | None
) -> tuple[Any, list[str]]:
    lora = config.adapter if isinstance(config.adapter, LoraConfig) else None
    dtype = _weights_dtype(config, hardware, frozen=lora is not None)
    model: Any
    model, notes = loading.load_model(
        files, dtype, config.model.attn_implementation, data.highest_token_id, None if lora else resumed_from
    )
    if lora:
        if resumed_from:
            model = adapters.load_lora(model, lora, config.seed, files.reference, resumed_from)
        else:
            model = adapters.add_lora(model, lora, config.seed, files.reference)
    model.to(hardware.device)
    if config.trainer.gradient_checkpointing:
        try:
            adapters.base_of(model).gradient_checkpointing_enable({"use_reentrant": False})
        except ValueError as error:
            raise ConfigError(f"trainer.gradient_checkpointing=true: {first_line(error)}") from None
    return model, notes


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


def _budget(config: RunConfig, model: Any, hardware: Hardware, state: reading.TrainingState | None) -> Budget:
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


def _optimizer_state_note(without: list[str]) -> list[str]:
    if not without:
        return []
    return [
        f"the checkpoint has no optimizer state of {first_few(without)}: "
        "as of weights that no step has changed, they begin with none"
    ]
