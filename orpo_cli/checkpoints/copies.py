"""Copy a training state to main memory, so that it can be written while training continues to change it."""

from collections.abc import Mapping

import torch
from torch import Tensor

from orpo_cli.errors import is_out_of_memory
from orpo_cli.machine.memory import free_memory, peak_memory, used_memory


class Copies:
    """Memory for one copy of a state: allocated for the first copy and filled again for every later one."""

    def __init__(self) -> None:
        self._held: dict[tuple[object, ...], Tensor] = {}

    def of(self, *states: Mapping[str, Tensor]) -> list[dict[str, Tensor]] | None:
        """Return copies of states, valid until the next call; tensors that share memory share the copy.

        Returns:
            None if free memory would not hold them beside what the steps need at their highest.
        """
        tensors = {_place(tensor): tensor for state in states for tensor in state.values()}
        held = {place: copy for place, copy in self._held.items() if place in tensors}
        new = {place: tensor for place, tensor in tensors.items() if place not in held}
        self._held = {}
        if new and not _has_room(sum(tensor.nbytes for tensor in new.values())):
            return None
        try:
            held |= {place: torch.empty(tensor.shape, dtype=tensor.dtype) for place, tensor in new.items()}
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            return None
        for place, tensor in tensors.items():
            held[place].copy_(tensor)
        self._held = held
        return [{name: held[_place(tensor)] for name, tensor in state.items()} for state in states]


def _has_room(needed: int) -> bool:
    cpu = torch.device("cpu")
    needed_by_steps = peak_memory(cpu) - used_memory()
    return needed < free_memory(cpu) - needed_by_steps


def _place(tensor: Tensor) -> tuple[object, ...]:
    return tensor.device, tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride()
