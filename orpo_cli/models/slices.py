"""Handle tensors of which each process may have a slice: gather them, cut them, look at the own part.

Slices are torch's DTensors, whose module takes long to import; a process that has none does not import it.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor


def is_slice(tensor: Tensor) -> bool:
    """Return whether other processes have parts of a tensor."""
    return hasattr(tensor, "to_local")


def whole(tensor: Tensor) -> Tensor:
    """Return a tensor with the slices of all processes; all of them call this together."""
    given: Any = tensor
    gathered: Tensor = given.full_tensor() if is_slice(tensor) else tensor
    return gathered


def own_slice(tensor: Tensor) -> Tensor:
    """Return what this process has of a tensor."""
    given: Any = tensor
    own: Tensor = given.to_local() if is_slice(tensor) else tensor
    return own


def slice_like(value: Tensor, parameter: Tensor) -> Tensor:
    """Return a copy of a value, or the slice of it that this process keeps, where it is of a divided parameter."""
    if not is_slice(parameter) or value.shape != parameter.shape:
        return value.to(parameter.device, copy=True)
    from torch.distributed.tensor import distribute_tensor

    given: Any = parameter
    own: Tensor = distribute_tensor(value.to(given.device), given.device_mesh, given.placements, src_data_rank=None)
    return own.clone()


def gathered(tensors: Mapping[str, Tensor], keep: bool) -> dict[str, Tensor]:
    """Return whole tensors in main memory; all processes call this together.

    Args:
        keep: whether this process wants them.
    """
    found: dict[int, Tensor] = {}
    for tensor in tensors.values():
        if id(tensor) not in found:  # tied weights are one tensor under two names
            one = whole(tensor)
            found[id(tensor)] = one.cpu() if keep else torch.empty(0)
    return {name: found[id(tensor)] for name, tensor in tensors.items()} if keep else {}


class Gathering:
    """Tensors of which each process has a slice, whole one after the other; every process goes through all of them.

    Args:
        tensors: those of this process, under the names that they have in each.
    """

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        # in the order that they have in a safetensors file
        self.tensors = dict(sorted(tensors.items(), key=lambda item: (-item[1].dtype.itemsize, item[0])))
        self._left = iter(self.tensors.items())

    def items(self) -> Iterator[tuple[str, Tensor]]:
        """Yield the whole tensors that are left, in main memory."""
        for name, tensor in self._left:
            yield name, whole(tensor).cpu()

    def finish(self) -> None:
        """Go through what is left, since the other processes wait for it."""
        for _ in self.items():
            pass
