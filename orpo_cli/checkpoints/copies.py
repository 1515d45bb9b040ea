"""Copies of a training state in main memory, to be written while training goes on to change the state itself."""

from collections.abc import Mapping

import torch
from torch import Tensor

from orpo_cli.errors import is_out_of_memory
from orpo_cli.machine.memory import free_memory, peak_memory, used_memory


class Copies:
    """Memory for one copy of a state: taken for the first, filled again for every other."""

    def __init__(self) -> None:
        self._held: dict[tuple[object, ...], Tensor] = {}

    def of(self, *states: Mapping[str, Tensor]) -> list[dict[str, Tensor]] | None:
        """Copies of states, which hold until the next call; tensors that share their memory share the copy.

        None where free memory would not hold them beside what steps take at their highest.
        """
        tensors = {_place(tensor): tensor for state in states for tensor in state.values()}
        held = {place: copy for place, copy in self._held.items() if place in tensors}
        new = {place: tensor for place, tensor in tensors.items() if place not in held}
        self._held = {}
        if new and not self._has_room(sum(tensor.nbytes for tensor in new.values())):
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

    @staticmethod
    def _has_room(needed: int) -> bool:
        cpu = torch.device("cpu")
        taken_in_steps = peak_memory(cpu) - used_memory()
        return needed < free_memory(cpu) - taken_in_steps


def _place(tensor: Tensor) -> tuple[object, ...]:
    """Where a tensor lies in memory, and as what."""
    return tensor.device, tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride()
