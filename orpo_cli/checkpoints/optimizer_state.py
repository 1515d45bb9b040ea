"""The state of a run's optimizers as named tensors, `PARAMETER|PART`, and back."""

import copy
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import nn
from torch.optim import Optimizer

from orpo_cli.errors import CheckpointError, is_out_of_memory
from orpo_cli.models.weights import kind_in_words, tensor_problem

_STEP = "step"
"""The part in which optimizers count the steps that changed a parameter."""

_SQUARES = ("exp_avg_sq", "row_var", "col_var", "variance")
"""Parts that are averages of squares: of AdamW, and of Adafactor for matrices and for vectors."""


def named_optimizer_state(model: nn.Module, optimizers: Sequence[Optimizer]) -> dict[str, torch.Tensor]:
    """What the optimizers keep; nothing of a parameter that never had a gradient."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return {
        f"{names[id(parameter)]}|{part}": value.detach()
        for optimizer in optimizers
        for parameter, state in optimizer.state.items()
        for part, value in state.items()
        if isinstance(value, torch.Tensor)
    }


def load_optimizer_state(path: Path, model: nn.Module, optimizers: Sequence[Optimizer], steps: int) -> list[str]:
    """Put a saved state into freshly built optimizers.

    Args:
        steps: that were taken.
    Returns:
        names of the trained parameters of which nothing was kept.
    Raises:
        CheckpointError: it is not what these optimizers keep of these parameters after so many steps.
    """
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    without = []
    saved: dict[str, dict[str, torch.Tensor]] = defaultdict(dict)
    for name, part, value in read_optimizer_state(path):
        saved[name][part] = value
    for optimizer, group, parameter in _trained(optimizers):
        name = names[id(parameter)]
        expected = _kept(optimizer, group, parameter)
        found = saved.pop(name, {})
        if expected and not found:
            without.append(name)
            continue
        if found.keys() != expected.keys():
            raise CheckpointError(
                f"{path}: {name}: has {', '.join(sorted(found))}; "
                f"the optimizer keeps {', '.join(sorted(expected)) or 'nothing'}"
            )
        for part, value in found.items():
            like = expected[part]
            if (value.shape, value.dtype) != (like.shape, like.dtype):
                raise CheckpointError(
                    f"{path}: {name}: {part} is {_described(value)}; the optimizer keeps {_described(like)}"
                )
            if problem := optimizer_value_problem(part, value, steps):
                raise CheckpointError(f"{path}: {name}: {problem}")
        # copied: what is read are pages of the file, which may be written
        optimizer.state[parameter] = {part: value.to(expected[part].device, copy=True) for part, value in found.items()}
    if saved:
        raise CheckpointError(f"{path}: has state of {min(saved)}, which is not trained here")
    if without and not any(optimizer.state for optimizer in optimizers) and steps > 0:
        raise CheckpointError(f"{path}: has no state, after {steps} steps")
    return without


def read_optimizer_state(path: Path) -> Iterator[tuple[str, str, torch.Tensor]]:
    """Name of the parameter, part, value.

    Raises:
        CheckpointError: the file cannot be read.
    """
    try:
        with safe_open(path, framework="pt") as tensors:
            for key in tensors.keys():  # noqa: SIM118 - it is no dictionary
                name, _, part = key.rpartition("|")
                yield name, part, tensors.get_tensor(key)
    except (OSError, SafetensorError) as error:
        if is_out_of_memory(error):
            raise
        raise CheckpointError(f"{path}: cannot be read: {error}") from None


def optimizer_value_problem(part: str, value: torch.Tensor, steps: int) -> str | None:
    """What no optimizer would have left there, after so many steps; None where it may have."""
    if not value.is_floating_point():
        return f"{part} is {_described(value)}"
    if problem := tensor_problem(value):
        return f"{part} {problem}"
    if part in _SQUARES and value.numel() > 0 and float(value.min()) < 0:
        return f"{part}, averages of squares, has negative ones"
    if part == _STEP and (value.ndim > 0 or not 0 < float(value) <= steps):
        return f"{part} is {value.tolist()}, after {steps} steps"
    return None


def _trained(optimizers: Sequence[Optimizer]) -> Iterator[tuple[Optimizer, dict[str, Any], nn.Parameter]]:
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                yield optimizer, group, parameter


def _kept(optimizer: Optimizer, group: dict[str, Any], parameter: nn.Parameter) -> dict[str, torch.Tensor]:
    """What the optimizer keeps of a parameter, without values: seen on a small one, after a step with no gradient."""
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


def _described(value: torch.Tensor) -> str:
    return f"{kind_in_words(value.dtype)} {list(value.shape)}"


STATE_BYTES = {"adamw": 8, "muon": 4, "sgd": 4, "adafactor": 0}
"""Bytes of optimizer state for each trained parameter; adafactor keeps rows and columns only."""
