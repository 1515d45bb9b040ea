"""Save the state of a run's optimizers as tensors named `PARAMETER|PART`, and load it again."""

import copy
import json
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn
from torch.optim import Optimizer

from orpo_cli.errors import CheckpointError, is_out_of_memory
from orpo_cli.models.slices import Gathering, slice_like
from orpo_cli.models.weights import dtype_name, tensor_problem

STATE_BYTES = {"adamw": 8, "muon": 4, "sgd": 4, "adafactor": 0}
"""Bytes of optimizer state for each trained weight; adafactor keeps only rows and columns."""


def named_optimizer_state(model: nn.Module, optimizers: Sequence[Optimizer]) -> dict[str, torch.Tensor]:
    """Return the state of the optimizers; a parameter that never had a gradient has none."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return {
        f"{names[id(parameter)]}|{part}": value.detach()
        for optimizer in optimizers
        for parameter, state in optimizer.state.items()
        for part, value in state.items()
        if isinstance(value, torch.Tensor)
    }


def save_optimizer_state(path: Path, state: Mapping[str, torch.Tensor] | Gathering) -> None:
    """Save the state of the optimizers; of divided weights no more than one tensor of it is in memory as a whole."""
    if not isinstance(state, Gathering):
        save_file({name: value.cpu().contiguous() for name, value in state.items()}, path)
        return
    header, end = {}, 0
    for name, value in state.tensors.items():
        begin, end = end, end + value.nbytes
        code = _CODES[value.dtype]
        header[name] = {"dtype": code, "shape": list(value.shape), "data_offsets": [begin, end]}
    encoded = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    encoded += b" " * (-len(encoded) % 8)
    with path.open("wb") as stream:
        stream.write(len(encoded).to_bytes(8, "little") + encoded)
        for _, value in state.items():
            stream.write(value.flatten().view(torch.uint8).numpy().data)


_CODES = {torch.float64: "F64", torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16"}
"""The names of dtypes in a safetensors file: the length of its header, the header as JSON, and the numbers."""


def load_optimizer_state(path: Path, model: nn.Module, optimizers: Sequence[Optimizer], steps: int) -> list[str]:
    """Put a saved state into freshly built optimizers.

    Args:
        steps: the number of steps before the state was saved.
    Returns:
        the names of the trained parameters that have no saved state.
    Raises:
        CheckpointError: if these optimizers do not keep such a state of these parameters.
    """
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    without = []
    saved = _read(path)
    for optimizer, group, parameter in _trained(optimizers):
        name = names[id(parameter)]
        expected = _kept(optimizer, group, parameter)
        found = saved.pop(name, {})
        if expected and not found:
            without.append(name)
            continue
        if (has := _described(found)) != (keeps := _described(expected)):
            raise CheckpointError(f"{path}: {name}: has {has}; the optimizer keeps {keeps or 'nothing'}")
        for part, value in found.items():
            if problem := tensor_problem(value):
                raise CheckpointError(f"{path}: {name}: {part} {problem}")
        # copied, since what is read are pages of the file, which somebody may write to
        optimizer.state[parameter] = {part: slice_like(value, parameter) for part, value in found.items()}
    if saved:
        raise CheckpointError(f"{path}: has state of {min(saved)}, which is not trained here")
    if without and not any(optimizer.state for optimizer in optimizers) and steps > 0:
        raise CheckpointError(f"{path}: has no optimizer state after {steps} steps")
    return without


def _read(path: Path) -> dict[str, dict[str, torch.Tensor]]:
    """Return the parts of the saved state, by parameter."""
    saved: dict[str, dict[str, torch.Tensor]] = defaultdict(dict)
    try:
        with safe_open(path, framework="pt") as tensors:
            for key in tensors.keys():  # noqa: SIM118 - it is no dictionary
                name, _, part = key.rpartition("|")
                saved[name][part] = tensors.get_tensor(key)
    except (OSError, SafetensorError) as error:
        if is_out_of_memory(error):
            raise
        raise CheckpointError(f"{path}: cannot be read: {error}") from None
    return saved


def _trained(optimizers: Sequence[Optimizer]) -> Iterator[tuple[Optimizer, dict[str, Any], nn.Parameter]]:
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                yield optimizer, group, parameter


def _kept(optimizer: Optimizer, group: dict[str, Any], parameter: nn.Parameter) -> dict[str, torch.Tensor]:
    """Return what the optimizer keeps of a parameter, without values.

    It is found out by a step on a small parameter of as many dimensions, whose gradient is zero.
    """
    small = nn.Parameter(
        torch.zeros([2 + axis for axis in range(parameter.ndim)], dtype=parameter.dtype, device=parameter.device)
    )
    small.grad = torch.zeros_like(small)
    trial = copy.copy(optimizer)
    trial.state, trial.param_groups = defaultdict(dict), [{**group, "params": [small]}]
    trial.step()
    grown = dict(zip(small.shape, parameter.shape, strict=True))
    return {
        part: value.new_empty(()).expand([grown.get(size, size) for size in value.shape])
        for part, value in trial.state[small].items()
        if isinstance(value, torch.Tensor)
    }


def _described(parts: Mapping[str, torch.Tensor]) -> str:
    return ", ".join(f"{part} {dtype_name(value.dtype)} {list(value.shape)}" for part, value in sorted(parts.items()))
