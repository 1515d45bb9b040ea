"""Judge weights in memory and in safetensors files: their names, dtypes, and whether they are finite."""

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from orpo_cli.errors import CheckpointError

TRAINABLE = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
"""The dtypes of weights that can be trained, and of everything that a run saves."""

_BUFFER = re.compile(r"(attn|attention)\.bias$|masked_bias$|inv_freq$")


def first_not_finite(weights: Iterable[tuple[str, torch.Tensor]]) -> str | None:
    """Return the name of the first weight that has a NaN or an infinity."""
    return next((name for name, weight in weights if not _is_finite(weight)), None)


def tensor_problem(tensor: torch.Tensor) -> str | None:
    """Return what is wrong with a saved tensor. Integers are counts and masks, and not judged."""
    if not (tensor.is_floating_point() or tensor.is_complex()):
        return None
    if tensor.dtype not in TRAINABLE:
        return f"is stored as {dtype_name(tensor.dtype)}, which no run saves"
    return None if _is_finite(tensor) else "has values that are not finite"


def dtype_name(dtype: torch.dtype) -> str:
    """Return the name of a dtype, as `float32`."""
    return str(dtype).removeprefix("torch.")


def _is_finite(tensor: torch.Tensor) -> bool:
    """Return whether all values are finite; then their sum mostly is too, which takes a tenth of the time to know."""
    return bool(torch.isfinite(tensor.sum())) or bool(torch.isfinite(tensor).all())


def stored_tensors(path: Path) -> dict[str, torch.Tensor]:
    """Return the tensors of a safetensors file by name, without their values: on the meta device.

    Raises:
        CheckpointError: if it cannot be read.
    """
    try:
        with safe_open(path, framework="pt") as tensors:
            return {name: tensors.get_tensor(name).to("meta") for name in tensors.keys()}  # noqa: SIM118 - no dictionary
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path}: cannot be read: {error}") from None


def is_buffer(name: str) -> bool:
    """Return whether a stored tensor is a mask or a rotation that older versions of transformers saved."""
    return _BUFFER.search(name) is not None


def stored_weights(paths: Iterable[Path]) -> dict[str, torch.Tensor]:
    """Return the weights in safetensors files by name, without their values.

    Raises:
        CheckpointError: if a file cannot be read.
    """
    tensors = (item for path in paths for item in stored_tensors(path).items())
    return {name: tensor for name, tensor in tensors if tensor.is_floating_point() and not is_buffer(name)}


def main_dtype(weights: Mapping[str, torch.Tensor]) -> torch.dtype:
    """Return the dtype of most numbers in the weights; fp32 if there are none."""
    numbers: Counter[torch.dtype] = Counter()
    for tensor in weights.values():
        numbers[tensor.dtype] += tensor.numel()
    return max(numbers, key=numbers.__getitem__, default=torch.float32)


def _by_stored_name(model: Any) -> dict[str, torch.Tensor]:
    """Return what a transformers model saves, by the names it may have in a file: with its prefix and without."""
    saved = model.state_dict().keys()
    weights = {name: weight for name, weight in (*model.named_parameters(), *model.named_buffers()) if name in saved}
    return {name.removeprefix(f"{model.base_model_prefix}."): weight for name, weight in weights.items()} | weights


def take_as_stored(model: Any, paths: Iterable[Path]) -> None:
    """Give each weight the dtype and value that it has in the safetensors files.

    transformers loads all weights in one dtype and rounds those that a file holds more precisely, above all norms and
    routers.

    Raises:
        CheckpointError: if a file cannot be read.
    """
    weights = _by_stored_name(model)
    for path in paths:
        kept = {name: tensor for name, tensor in stored_tensors(path).items() if name in weights}
        with safe_open(path, framework="pt") as tensors:
            for name, tensor in kept.items():
                weight = weights[name]
                if weight.dtype != tensor.dtype and weight.shape == tensor.shape:
                    weight.data = tensors.get_tensor(name).clone()


def rounded_when_merged(skeleton: Any, weights: Mapping[str, torch.Tensor]) -> list[str]:
    """Return the names of stored weights that are more precise than most and that `take_as_stored` does not find.

    Args:
        skeleton: the model, possibly without values.
        weights: the result of `stored_weights`.
    """
    most, known = torch.finfo(main_dtype(weights)), _by_stored_name(skeleton)
    return [name for name, tensor in weights.items() if name not in known and torch.finfo(tensor.dtype).eps < most.eps]
