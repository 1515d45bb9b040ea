"""Write checkpoints and the trained model, and remove checkpoints that are no longer kept.

A checkpoint is published as a whole (`orpo_cli.files.directories`), verified, and named by LATEST; only then are older
ones removed.
"""

import contextlib
import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from orpo_cli.checkpoints.copies import Copies
from orpo_cli.checkpoints.lookup import (
    BEST,
    LATEST,
    OPTIMIZER,
    STATE,
    TrainingState,
    best_checkpoint,
    list_checkpoints,
    verify,
)
from orpo_cli.checkpoints.optimizer_state import named_optimizer_state, save_optimizer_state
from orpo_cli.errors import CheckpointError
from orpo_cli.files.directories import StagedDirectory, remove
from orpo_cli.files.manifest import MANIFEST, list_files, write_manifest
from orpo_cli.files.writing import fsync_growing, point, rewrite_doubtful
from orpo_cli.models.adapter_files import ADAPTER
from orpo_cli.models.adapters import has_learned, is_adapted
from orpo_cli.models.saving import CARD, cast_saved, save_model, stop_generation_at, weight_bytes
from orpo_cli.models.slices import Gathering, gathered


@dataclass(frozen=True)
class Retention:
    """Which checkpoints are kept: the last few, and the best by a metric of its evaluation if one is named."""

    keep_last: int
    keep_best: str | None


@dataclass(frozen=True)
class LiveState:
    """What steps change.

    Args:
        weights: by name.
        optimizers: the state of the optimizers, as `named_optimizer_state` names it.
    """

    weights: dict[str, torch.Tensor]
    optimizers: dict[str, torch.Tensor] | Gathering

    @classmethod
    def of(cls, model: nn.Module, optimizers: Sequence[Optimizer]) -> "LiveState":
        """Return what steps change of a model and its optimizers."""
        return cls(_trained_weights(model), named_optimizer_state(model, optimizers))

    @classmethod
    def gathered(cls, model: nn.Module, optimizers: Sequence[Optimizer], keep: bool) -> "LiveState":
        """Return the same of a model of which each process has slices; all processes call this together.

        Args:
            keep: whether this process wants the weights; the optimizers' state is gathered while it is saved.
        """
        weights = _trained_weights(model, and_frozen=not is_adapted(model))  # the whole model is saved, in one piece
        return cls(gathered(weights, keep), Gathering(named_optimizer_state(model, optimizers)))

    def finish(self) -> None:
        """Go on with what is gathered together, where this process has not saved it all."""
        if isinstance(self.optimizers, Gathering):
            self.optimizers.finish()


def begin_checkpoint(
    root: Path,
    model: Any,
    tokenizer: Any,
    live: LiveState,
    state: TrainingState,
    retention: Retention,
    records: Sequence[Path] = (),
    copies: Copies | None = None,
) -> Callable[[], Path]:
    """Copy weights and optimizer state, and return the function that makes the checkpoint `root/step-NNNNNN` of them.

    That function may run in any thread while training continues. It writes, adds checksums, flushes (the run's records
    too), publishes, moves LATEST, removes older checkpoints, and returns the directory.

    Args:
        live: what steps change of the model and of its optimizers.
        records: files of the run that grow with its steps.
        copies: memory for the copies; without it, or without room, weights and state are written before this returns.
    Raises:
        WriteError: if the disk is full or fails, here or in that function; earlier checkpoints are untouched.
        CheckpointError: if an adapter is incomplete, or no step has changed it.
    """
    draft = StagedDirectory(root / f"step-{state.step:06d}", weight_bytes(model) + _size(live.optimizers))
    with draft.writing():
        rewrite_doubtful(records)
        copied = None
        if copies is not None and not isinstance(live.optimizers, Gathering):
            copied = copies.of(live.weights, live.optimizers)

    def write() -> None:
        weights, optimizer_state = copied or (live.weights, live.optimizers)
        with draft.writing() as directory:
            save_model(directory, model, tokenizer, weights)
            if is_adapted(model) and state.step > state.skipped and not has_learned(directory / ADAPTER):
                raise CheckpointError(f"{draft.final}: the adapter is what it was before the first step; not saved")
            save_optimizer_state(directory / OPTIMIZER, optimizer_state)
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


def stage_model(
    final: Path, model: Any, tokenizer: Any, end_id: int, card: str | None
) -> tuple[StagedDirectory, dict[str, dict[str, Any]]]:
    """Write the trained model beside its place, as a directory that `from_pretrained` loads.

    Args:
        end_id: the token that ends a response; generation stops at it.
        card: what is said of the model, for people and for the model hub; None writes nothing.
    Returns:
        the directory, to be published, and its files as `list_files` returns them.
    Raises:
        WriteError: if the disk is full or fails.
    """
    stop_generation_at(model, end_id)
    draft = StagedDirectory(final, weight_bytes(model))
    with draft.writing() as directory:
        save_model(directory, model, tokenizer)
        return draft, _with_card(directory, card)


def stage_adapter(
    final: Path, checkpoint: Path, dtype: torch.dtype | None, card: str | None
) -> tuple[StagedDirectory, dict[str, dict[str, Any]]]:
    """Write the adapter of a checkpoint where `stage_model` writes a model; its base need not be loaded for that.

    Args:
        dtype: what its weights are cast to; None leaves them as they were trained.
    """
    draft = StagedDirectory(final, (checkpoint / ADAPTER).stat().st_size)
    with draft.writing() as directory:
        left = shutil.ignore_patterns(OPTIMIZER, STATE, MANIFEST)
        shutil.copytree(checkpoint, directory, ignore=left, copy_function=shutil.copyfile, dirs_exist_ok=True)
        if dtype is not None:
            cast_saved(directory / ADAPTER, dtype)
        return draft, _with_card(directory, card)


def _with_card(directory: Path, card: str | None) -> dict[str, dict[str, Any]]:
    if card is not None:
        (directory / CARD).write_text(card, encoding="utf-8")
    return list_files(directory)


def _size(state: dict[str, torch.Tensor] | Gathering) -> int:
    tensors = state.tensors if isinstance(state, Gathering) else state
    return sum(value.nbytes for value in tensors.values())


def _trained_weights(model: nn.Module, and_frozen: bool = False) -> dict[str, torch.Tensor]:
    """Return what steps may change of a model's own state, by name.

    Args:
        and_frozen: whether weights that no step changes are among them.
    """
    state = model.state_dict(keep_vars=True)
    frozen = {name for name, value in state.items() if isinstance(value, nn.Parameter) and not value.requires_grad}
    detached = {id(value): value.detach() for value in state.values()}  # one for each, also where two names are tied
    return {name: detached[id(value)] for name, value in state.items() if and_frozen or name not in frozen}


def _rotate(root: Path, newest: int, retention: Retention) -> None:
    """Remove all checkpoints but the last few and the best; `newest` has been verified."""
    best = best_checkpoint(root, retention.keep_best)
    if best is not None:
        point(root / BEST, best.name)
    for step, old in list_checkpoints(root)[: -retention.keep_last]:
        if step < newest and old != best:
            with contextlib.suppress(OSError):  # what cannot be removed now goes with the next
                remove(old)
