"""Weights in memory and in files: whether they are finite, and numbers of the kind that is trained."""

from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from orpo_cli.errors import CheckpointError

_TRAINED = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


def first_not_finite(weights: Iterable[tuple[str, torch.Tensor]]) -> str | None:
    """The name of the first weight that has a NaN or an infinity; None where none has."""
    return next((name for name, weight in weights if not _is_finite(weight)), None)


def fault_of(tensor: torch.Tensor) -> str | None:
    """What training leaves in no tensor of floating-point numbers; None where it may have left these."""
    if tensor.dtype not in _TRAINED:
        return f"is stored as {tensor.dtype}, in which nothing is trained"
    return None if _is_finite(tensor) else "has values that are not finite"


def _is_finite(tensor: torch.Tensor) -> bool:
    """A sum is finite only where all its terms are, and takes a tenth of the time of looking at each of them."""
    return bool(torch.isfinite(tensor.sum())) or bool(torch.isfinite(tensor).all())


def stored_dtypes(path: Path) -> dict[str, torch.dtype]:
    """Of the tensors of a safetensors file, by name.

    Raises:
        CheckpointError: it cannot be read.
    """
    try:
        with safe_open(path, framework="pt") as tensors:
            return {name: tensors.get_tensor(name).dtype for name in tensors.keys()}  # noqa: SIM118 - no dictionary
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path}: cannot be read: {error}") from None


def check_stored_as_trained(path: Path, trained: Mapping[str, torch.Tensor]) -> None:
    """Libraries would convert numbers of any other kind on loading, and lose what they were.

    Raises:
        CheckpointError: a tensor of the file is of another kind than the weight of its name.
    """
    for name, dtype in stored_dtypes(path).items():
        if name in trained and trained[name].dtype != dtype:
            raise CheckpointError(f"{path}: {name} is stored as {dtype}, trained as {trained[name].dtype}")
