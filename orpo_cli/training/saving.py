"""How checkpoints and the model are written, and which checkpoints are kept.

A checkpoint is published as a whole (`orpo_cli.training.publication`), verified, pointed to by LATEST, and only then
older ones go.
"""

import contextlib
import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn
from torch.optim import Optimizer

from orpo_cli.config.schema import BETTER
from orpo_cli.errors import CheckpointError, ModelError, WriteError, in_one_line, is_failed_write, is_out_of_memory
from orpo_cli.models.adapters import ADAPTER, base_of, has_learned, is_adapted
from orpo_cli.models.loading import end_tokens, mark_as_loaded
from orpo_cli.training.checkpoints import BEST, LATEST, OPTIMIZER, STATE, TrainingState, checkpoints, read_state, verify
from orpo_cli.training.copies import Copies
from orpo_cli.training.moments import named_moments
from orpo_cli.training.publication import (
    LEFTOVER,
    Draft,
    fsync_growing,
    listed,
    point,
    remove,
    rewrite_doubtful,
    write_manifest,
)


@dataclass(frozen=True)
class Retention:
    """Which checkpoints are kept: the last few, and the best by a metric of its evaluation where one is named."""

    keep_last: int
    keep_best: str | None


def begin_checkpoint(
    root: Path,
    model: Any,
    tokenizer: Any,
    optimizers: Sequence[Optimizer],
    state: TrainingState,
    retention: Retention,
    records: Sequence[Path] = (),
    copies: Copies | None = None,
) -> Callable[[], Path]:
    """Copy weights and optimizer state. Returns what makes `root/step-NNNNNN` of them, in any thread.

    That is writing, checksums, flushing (of the run's records of these steps too), publication, LATEST, and the removal
    of older checkpoints; it returns the directory. Training may go on meanwhile.

    Args:
        records: files of the run that grow with its steps.
        copies: where it is None, or has no room, weights and optimizer state are written before this returns.
    Raises:
        WriteError: the disk is full or failed, here or in the rest; the earlier checkpoints are untouched.
        CheckpointError: an adapter is incomplete, or no step has changed it.
    """
    live = _trained_weights(model), named_moments(model, optimizers)
    draft = Draft(
        root / f"step-{state.step:06d}", _weight_bytes(model) + sum(moment.nbytes for moment in live[1].values())
    )
    with draft.writing():
        rewrite_doubtful(records)
        copied = None if copies is None else copies.of(*live)

    def write() -> None:
        weights, moments = copied or live
        with draft.writing() as directory:
            save_model(directory, model, tokenizer, weights)
            if is_adapted(model) and state.step > state.skipped and not has_learned(directory / ADAPTER):
                raise CheckpointError(f"{draft.final}: the adapter is what it was before the first step; not saved")
            save_file({name: moment.cpu().contiguous() for name, moment in moments.items()}, directory / OPTIMIZER)
            (directory / STATE).write_text(json.dumps(asdict(state), indent=2), encoding="utf-8")

    if copied is None:
        write()

    def rest() -> Path:
        if copied is not None:
            write()
        with draft.writing() as directory:
            write_manifest(directory)
            for path in records:
                fsync_growing(path)
        draft.publish()
        verify(draft.final)
        point(root / LATEST, draft.final.name)
        _rotate(root, state.step, retention)
        return draft.final

    return rest


def draft_model(final: Path, model: Any, tokenizer: Any, end_id: int) -> tuple[Draft, dict[str, dict[str, Any]]]:
    """Write the result beside its place: a directory that `from_pretrained` loads.

    Returns what publishes it, as a whole or not at all, and its files as `listed` has them.

    Args:
        end_id: the token that ends an answer; generation stops at it.
    Raises:
        WriteError: the disk is full or failed.
    """
    stop_generation_at(model, end_id)
    draft = Draft(final, _weight_bytes(model))
    with draft.writing() as directory:
        save_model(directory, model, tokenizer)
        files = listed(directory)
    return draft, files


def save_model(directory: Path, model: Any, tokenizer: Any, weights: Mapping[str, torch.Tensor] | None = None) -> None:
    """Weights (or adapters), configuration and tokenizer, as transformers and peft lay them out.

    Args:
        weights: saved instead of the model's own of these names.
    Raises:
        CheckpointError: not every trained tensor of the adapters was saved.
    """
    options: dict[str, Any] = {"state_dict": model.state_dict() | (weights or {})}
    if is_adapted(model):
        # peft would ask the hub at every save whether the vocabulary has grown; it never does here
        options["save_embedding_layers"] = False
        for config in model.peft_config.values():
            if isinstance(config.target_modules, set):  # in another order in each process
                config.target_modules = sorted(config.target_modules)
    model.save_pretrained(directory, **options)
    tokenizer.save_pretrained(directory)
    if is_adapted(model):
        _check_adapter(directory, sum(parameter.requires_grad for parameter in model.parameters()))


def check_can_be_saved(model: Any, tokenizer: Any, folder: Path, whole: bool) -> None:
    """Save all but the weights in a directory that goes again: transformers loads what it then refuses to save.

    Args:
        folder: of the run.
        whole: not only an adapter will be saved.
    Raises:
        ModelError: it does here.
        WriteError: the disk is full or failed.
    """
    base = base_of(model)
    parts = (base.config, base.generation_config, tokenizer) if whole else (tokenizer,)
    with tempfile.TemporaryDirectory(dir=folder, prefix=LEFTOVER) as scratch:
        try:
            for part in parts:
                part.save_pretrained(scratch)
        except Exception as error:
            if is_out_of_memory(error):
                raise
            kind = WriteError if is_failed_write(error) else ModelError
            raise kind(f"{folder}: the model could not be saved: {in_one_line(error)}") from error


def stop_generation_at(model: Any, end_id: int) -> None:
    """Add the trained end token to those at which `generate` stops."""
    config = getattr(model, "generation_config", None)
    if config is None:
        return
    wanted = list(dict.fromkeys([*(token for token in end_tokens(config) if token is not None), end_id]))
    config.eos_token_id = wanted[0] if len(wanted) == 1 else wanted
    mark_as_loaded(config)


def _trained_weights(model: nn.Module) -> dict[str, torch.Tensor]:
    """What steps may change of a model's own state, by name."""
    state = model.state_dict(keep_vars=True)
    return {name: value.detach() for name, value in state.items() if not _is_frozen(value)}


def _is_frozen(value: Any) -> bool:
    return isinstance(value, nn.Parameter) and not value.requires_grad


def _weight_bytes(model: Any) -> int:
    """Of what `save_model` saves."""
    return sum(weight.nbytes for weight in model.parameters() if weight.requires_grad or not is_adapted(model))


def _check_adapter(directory: Path, expected: int) -> None:
    """peft saves what its filters let through; a saved adapter has each trained tensor."""
    path = directory / ADAPTER
    with safe_open(path, framework="pt") as tensors:
        found = len(list(tensors.keys()))
    if found != expected:
        raise CheckpointError(f"{path}: {found} tensors were saved, {expected} are trained")


def _rotate(root: Path, newest: int, retention: Retention) -> None:
    """Remove what is older than the last few, but the best. `newest` has been verified."""
    best = _best(root, retention.keep_best)
    if best is not None:
        point(root / BEST, best.name)
    for step, old in checkpoints(root)[: -retention.keep_last]:
        if step < newest and old != best:
            with contextlib.suppress(OSError):  # what cannot be removed now goes with the next
                remove(old)


def _best(root: Path, metric: str | None) -> Path | None:
    """The checkpoint with the best value of a metric of its evaluation; the earlier of equal ones."""
    if metric is None:
        return None
    values: list[tuple[float, Path]] = []
    for _, path in checkpoints(root):
        with contextlib.suppress(CheckpointError):
            evaluation = read_state(path).evaluation
            if evaluation is not None and metric in evaluation:
                values.append((evaluation[metric], path))
    return BETTER[metric](values, key=lambda value: value[0])[1] if values else None
