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

from orpo_cli.checkpoints.averaging import use_resulting_weights, use_weights_of_steps
from orpo_cli.errors import CheckpointError, is_out_of_memory
from orpo_cli.models.slices import Gathering, slice_like
from orpo_cli.models.weights import dtype_name, tensor_problem

STATE_BYTES = {
    "adamw": 8, "muon": 4, "sgd": 4, "adafactor": 0, "adamw_8bit": 2 + 8 / 256, "paged_adamw_8bit": 2 + 8 / 256,
    "lion": 4, "schedule_free_adamw": 8, "stable_adamw": 8,
}  # fmt: skip
"""Bytes of optimizer state for each trained weight of fp32; adafactor keeps only rows and columns.

Moments of 8 bits have two scales for each 256 of them."""

_OF_GROUPS = ("setup", "step", "k", "weight_sum", "lr_max")
"""What optimi and schedulefree keep once for all parameters of a group. It is saved with each of them."""

_CONSTANT = ("qmap1", "qmap2")
"""What bitsandbytes keeps for each parameter and never changes: the values that 8 bits stand for."""


def state_bytes(optimizer: str, item: int, saved: bool = False) -> float:
    """Return the bytes of optimizer state for each trained weight.

    Args:
        item: the bytes of the weight itself.
        saved: whether it is the state on the disk.
    """
    if optimizer.endswith("8bit"):
        return STATE_BYTES[optimizer]
    compensated = item < 4 and optimizer in ("lion", "stable_adamw")
    beside_the_average = saved and optimizer == "schedule_free_adamw"
    return item * (STATE_BYTES[optimizer] / 4 + compensated + beside_the_average)


def named_optimizer_state(model: nn.Module, optimizers: Sequence[Optimizer]) -> dict[str, torch.Tensor]:
    """Return the state of the optimizers; a parameter that never had a gradient has none."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return {
        f"{names[id(parameter)]}|{part}": value
        for optimizer, group, parameter in _trained(optimizers)
        if parameter in optimizer.state
        for part, value in _parts(group, optimizer.state[parameter]).items()
    }


def _parts(group: Mapping[str, Any], state: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """Return what steps change of a parameter's state and of its group; numbers as tensors of fp64, which holds all."""
    tensors = {part: value for part, value in state.items() if isinstance(value, torch.Tensor)}
    numbers = {part: value for part, value in state.items() if isinstance(value, int | float)}
    numbers |= {part: group[part] for part in _OF_GROUPS if state and part in group}
    changing = {part: value.detach() for part, value in tensors.items() if part not in _CONSTANT}
    return changing | {part: torch.tensor(float(value), dtype=torch.float64) for part, value in numbers.items()}


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
        kept, kept_by_group = _kept(optimizer, group, parameter)
        expected = _parts(kept_by_group, kept)
        found = saved.pop(name, {})
        if expected and not found:
            without.append(name)
            continue
        if (has := _described(found)) != (keeps := _described(expected)):
            raise CheckpointError(f"{path}: {name}: has {has}; the optimizer keeps {keeps or 'nothing'}")
        for part, value in found.items():
            if problem := tensor_problem(value):
                raise CheckpointError(f"{path}: {name}: {part} {problem}")
        if kept:
            optimizer.state[parameter] = _filled(kept, found, parameter)
            group |= _filled({part: kept_by_group[part] for part in found if part in kept_by_group}, found, parameter)
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


def _kept(
    optimizer: Optimizer, group: dict[str, Any], parameter: nn.Parameter
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return what the optimizer keeps of a parameter, and its group; the tensors are without values, on no device.

    It is found out by a step on a small parameter of as many dimensions, whose gradient is zero. What bitsandbytes
    keeps depends on the size; it makes the state, which may be in pages, without a step.
    """
    made: Any = optimizer
    if hasattr(made, "init_state"):
        made.init_state(group, parameter, 0, 0)  # the numbers are for settings of single parameters: there are none
        return made.state.pop(parameter), group
    small = nn.Parameter(
        torch.zeros([2 + axis for axis in range(parameter.ndim)], dtype=parameter.dtype, device=parameter.device)
    )
    small.grad = torch.zeros_like(small)
    trial = copy.copy(optimizer)
    stepped = copy.deepcopy({key: value for key, value in group.items() if key != "params"}) | {"params": [small]}
    trial.state, trial.param_groups = defaultdict(dict), [stepped]
    use_weights_of_steps([trial])
    trial.step()
    use_resulting_weights([trial])
    grown = dict(zip(small.shape, parameter.shape, strict=True))
    kept = {
        part: value.new_empty([grown.get(size, size) for size in value.shape], device="meta")
        if isinstance(value, torch.Tensor)
        else value
        for part, value in trial.state[small].items()
    }
    return kept, stepped


def _filled(kept: Mapping[str, Any], found: Mapping[str, torch.Tensor], parameter: nn.Parameter) -> dict[str, Any]:
    """Return what an optimizer keeps with the values that were saved of it, where they were.

    They are copied, since what is read are pages of the file, which somebody may write to.
    """
    return {part: _like(value, found[part], parameter) if part in found else value for part, value in kept.items()}


def _like(value: Any, saved: torch.Tensor, parameter: nn.Parameter) -> Any:
    """Return a saved value in the place, or of the kind, of one that an optimizer keeps."""
    if not isinstance(value, torch.Tensor):
        return type(value)(saved.item())
    return slice_like(saved, parameter) if value.is_meta else value.copy_(saved)


def _described(parts: Mapping[str, torch.Tensor]) -> str:
    return ", ".join(f"{part} {dtype_name(value.dtype)} {list(value.shape)}" for part, value in sorted(parts.items()))
