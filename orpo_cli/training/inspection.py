"""Whether what a run has left is whole: checksums, finite weights, an adapter that has learned something."""

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
    if checkpoints.checkpoints(root):
        try:
            newest, faults = checkpoints.latest_checkpoint(root)
            yield Finding(f"LATEST names {newest.name}", "; ".join(faults) or None)
        except CheckpointError as error:
            yield Finding("a checkpoint to go on from", str(error))


def inspect_weights(directory: Path, steps: int) -> Iterator[Finding]:
    """The tensors of a checkpoint or a model.

    Args:
        steps: that have changed them.
    """
    fault, count, learned, is_adapter = None, 0, False, False
    for path in sorted(directory.glob("*.safetensors")):
        is_adapter = is_adapter or path.name.startswith("adapter")
        try:
            with safe_open(path, framework="pt") as tensors:
                for name in tensors.keys():  # noqa: SIM118 - it is no dictionary
                    tensor = tensors.get_tensor(name)
                    count += 1
                    learned = learned or ("lora_B" in name and bool(tensor.any()))
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
