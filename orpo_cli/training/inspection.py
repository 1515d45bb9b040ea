"""Whether what a run has left is whole: checksums, finite weights, an adapter that has learned something."""

import filecmp
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from orpo_cli.errors import CheckpointError
from orpo_cli.training import checkpoints


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at. `fault` says what is wrong with it; None where nothing is."""

    what: str
    fault: str | None = None


def inspect_checkpoints(root: Path) -> Iterator[Finding]:
    """Each checkpoint, and whether LATEST names the newest."""
    for _, path in checkpoints.checkpoints(root):
        try:
            state = checkpoints.verify(path)
        except CheckpointError as error:
            yield Finding(f"{path.name}: every file as the manifest says", str(error))
            continue
        yield Finding(f"{path.name}: every file as the manifest says, step {state.step} of {state.total_steps}")
        yield from inspect_weights(path, state.step - state.skipped)
    if checkpoints.checkpoints(root) or (root / checkpoints.LATEST).exists():
        try:
            newest, faults = checkpoints.latest_checkpoint(root)
            yield Finding(f"LATEST names {newest.name}", "; ".join(faults) or None)
        except CheckpointError as error:
            yield Finding("a checkpoint to go on from", str(error))


def inspect_end(root: Path, model: Path) -> Iterator[Finding]:
    """Of a run that says it is finished: whether its newest checkpoint is of its last step and has the model's weights.

    Args:
        root: of the checkpoints.
    """
    saved = checkpoints.checkpoints(root)
    if not saved:
        yield Finding("a checkpoint of the last step", f"{root}: has no checkpoint")
        return
    _, path = saved[-1]
    try:
        state = checkpoints.read_state(path)
    except CheckpointError:
        return  # its own finding says so
    early = state.step != state.total_steps
    yield Finding("a checkpoint of the last step", f"{path}: of {state.total_steps} steps" if early else None)
    same = [name.name for name in model.glob("*.safetensors") if (path / name.name).is_file()]  # none of merged weights
    other = [name for name in same if not filecmp.cmp(model / name, path / name, shallow=False)]
    if same:
        fault = f"{model / other[0]}: differs from {path / other[0]}" if other else None
        yield Finding(f"{model.name}: the weights of {path.name}", fault)


def inspect_weights(directory: Path, steps: int) -> Iterator[Finding]:
    """The tensors of a checkpoint or a model.

    Args:
        steps: that have changed them.
    """
    fault, count, learned, is_adapter = None, 0, False, False
    for path in sorted(directory.glob("*.safetensors")):
        of_adapter = path.name.startswith("adapter")  # the optimizer's state has tensors of the same names
        is_adapter = is_adapter or of_adapter
        try:
            with safe_open(path, framework="pt") as tensors:
                for name in tensors.keys():  # noqa: SIM118 - it is no dictionary
                    tensor = tensors.get_tensor(name)
                    count += 1
                    learned = learned or (of_adapter and "lora_B" in name and bool(tensor.any()))
                    if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
                        fault = fault or f"{path}: {name} has values that are not finite"
        except (OSError, SafetensorError) as error:
            fault = fault or f"{path}: {error}"
    if count == 0:
        fault = fault or f"{directory}: has no tensors"
    yield Finding(f"{directory.name}: {count} tensors, all finite", fault)
    if is_adapter:
        untouched = None if learned or steps == 0 else f"{directory}: the adapter is what it was before the first step"
        yield Finding(f"{directory.name}: the adapter has learned", untouched)
