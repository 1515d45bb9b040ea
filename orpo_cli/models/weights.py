"""Weights in memory and in files: whether they are finite, and numbers of the kind that is trained."""

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from orpo_cli.errors import CheckpointError

_TRAINED = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


def first_not_finite(weights: Iterable[tuple[str, torch.Tensor]]) -> str | None:
    """The name of the first weight that has a NaN or an infinity; None where none has."""
    return next((name for name, weight in weights if not _is_finite(weight)), None)


def tensor_problem(tensor: torch.Tensor) -> str | None:
    """What no run leaves in a tensor; None where it may have. Integers are counts and masks, and not judged."""
    if not (tensor.is_floating_point() or tensor.is_complex()):
        return None
    if problem := dtype_problem(tensor.dtype):
        return problem
    return None if _is_finite(tensor) else "has values that are not finite"


def dtype_problem(dtype: torch.dtype) -> str | None:
    """Why these are not the numbers of what is trained; None where they may be."""
    return None if dtype in _TRAINED else f"is stored as {kind_in_words(dtype)}, as no run stores it"


def kind_in_words(dtype: torch.dtype) -> str:
    """As `float32`."""
    return str(dtype).removeprefix("torch.")


def _is_finite(tensor: torch.Tensor) -> bool:
    """A sum is finite only where all its terms are, and takes a tenth of the time of looking at each of them."""
    return bool(torch.isfinite(tensor.sum())) or bool(torch.isfinite(tensor).all())


def stored(path: Path) -> dict[str, torch.Tensor]:
    """The tensors of a safetensors file, by name, without their values: on the meta device.

    Raises:
        CheckpointError: it cannot be read.
    """
    try:
        with safe_open(path, framework="pt") as tensors:
            return {name: tensors.get_tensor(name).to("meta") for name in tensors.keys()}  # noqa: SIM118 - no dictionary
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path}: cannot be read: {error}") from None


_BUFFER = re.compile(r"(attn|attention)\.bias$|masked_bias$|inv_freq$")


def is_buffer(name: str) -> bool:
    """Whether a stored tensor is what older versions of transformers stored of masks and rotations."""
    return _BUFFER.search(name) is not None


def stored_weights(paths: Iterable[Path]) -> dict[str, torch.Tensor]:
    """Of the tensors of safetensors files, by name and without their values, those that are weights.

    Raises:
        CheckpointError: a file cannot be read.
    """
    tensors = (item for path in paths for item in stored(path).items())
    return {name: tensor for name, tensor in tensors if tensor.is_floating_point() and not is_buffer(name)}


def main_dtype(weights: Mapping[str, torch.Tensor]) -> torch.dtype:
    """In which most of their numbers are; fp32 where there are none."""
    numbers: Counter[torch.dtype] = Counter()
    for tensor in weights.values():
        numbers[tensor.dtype] += tensor.numel()
    return max(numbers, key=numbers.__getitem__, default=torch.float32)


def _by_stored_name(model: Any) -> dict[str, torch.Tensor]:
    """What a model of transformers saves, under the names it may have in a file, without its head's too."""
    saved = model.state_dict().keys()
    weights = {name: weight for name, weight in (*model.named_parameters(), *model.named_buffers()) if name in saved}
    return {name.removeprefix(f"{model.base_model_prefix}."): weight for name, weight in weights.items()} | weights


def take_as_stored(model: Any, paths: Iterable[Path]) -> None:
    """Put weights that safetensors files hold in other numbers back as they are there: transformers loads all in one
    kind, and rounds what a file holds more precisely, norms and routers above all.

    Raises:
        CheckpointError: a file cannot be read.
    """
    weights = _by_stored_name(model)
    for path in paths:
        kept = {name: tensor for name, tensor in stored(path).items() if name in weights}
        with safe_open(path, framework="pt") as tensors:
            for name, tensor in kept.items():
                weight = weights[name]
                if weight.dtype != tensor.dtype and weight.shape == tensor.shape:
                    weight.data = tensors.get_tensor(name).clone()


def rounded_when_merged(skeleton: Any, weights: Mapping[str, torch.Tensor]) -> list[str]:
    """Stored weights that `take_as_stored` finds under no name of the model, and that are more precise than most.

    Args:
        skeleton: the model, be it without values.
    """
    most, known = torch.finfo(main_dtype(weights)), _by_stored_name(skeleton)
    return [name for name, tensor in weights.items() if name not in known and torch.finfo(tensor.dtype).eps < most.eps]


def check_stored_as_trained(path: Path, trained: Mapping[str, torch.Tensor]) -> None:
    """Libraries would convert numbers of any other kind on loading, and lose what they were.

    Raises:
        CheckpointError: a tensor of the file is of another kind than the weight of its name.
    """
    for name, tensor in stored(path).items():
        if name in trained and trained[name].dtype != tensor.dtype:
            found, wanted = kind_in_words(tensor.dtype), kind_in_words(trained[name].dtype)
            raise CheckpointError(f"{path}: {name} is stored as {found}, trained as {wanted}")
