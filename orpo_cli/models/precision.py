"""Multiply with bf16 copies of fp32 weights that are cast once an optimizer step.

Outside `CastWeights` a model has its fp32 weights, which the optimizer changes and a checkpoint saves.
"""

import re
from typing import Any

import torch
from torch import Tensor, nn

from orpo_cli.models.adapters import base_of


class CastWeights:
    """A context manager within which the parameters of a model hold copies of a smaller dtype.

    The gradients of the copies are summed in fp32 over the backward passes of the block, and become the gradients of
    the parameters when it ends. What the architecture wants in fp32 stays so.

    Args:
        model: a transformers model, with or without adapters.
        dtype: the dtype of the copies; parameters that are as small are left alone, so for fp32 nothing happens.
    """

    def __init__(self, model: nn.Module, dtype: torch.dtype) -> None:
        self._cast = [
            parameter
            for name, parameter in model.named_parameters()
            if parameter.is_floating_point() and parameter.element_size() > dtype.itemsize and not _stays(model, name)
        ]
        self._dtype = dtype
        self._full: list[Tensor] = []
        self._copies: list[Tensor] = []
        self._gradients: dict[nn.Parameter, Tensor] = {}
        for parameter in self._cast:
            if parameter.requires_grad:
                parameter.register_post_accumulate_grad_hook(self._collect)  # type: ignore[no-untyped-call]

    def _collect(self, parameter: Any) -> None:
        if not self._full:  # outside the block a parameter keeps its own gradient
            return
        sum_before = self._gradients.get(parameter)
        self._gradients[parameter] = parameter.grad.float() if sum_before is None else sum_before.add_(parameter.grad)
        parameter.grad = None

    @torch.no_grad()
    def __enter__(self) -> None:
        self._full = [parameter.data for parameter in self._cast]
        if not self._copies:
            self._copies = [weight.to(self._dtype) for weight in self._full]
        else:
            moved = [place for place, parameter in enumerate(self._cast) if parameter.requires_grad]
            if moved:  # none is, where all are frozen, or while adapters are switched off
                torch._foreach_copy_([self._copies[place] for place in moved], [self._full[place] for place in moved])
        for parameter, copy in zip(self._cast, self._copies, strict=True):
            parameter.data = copy

    def __exit__(self, *_: object) -> None:
        for parameter, weight in zip(self._cast, self._full, strict=True):
            parameter.data = weight
            parameter.grad = self._gradients.get(parameter)
        self._full, self._gradients = [], {}


def modules_in_fp32(model: nn.Module) -> list[nn.Module]:
    """Return the modules whose own weights the architecture wants in fp32."""
    return [
        module
        for prefix, module in model.named_modules()
        if any(_stays(model, f"{prefix}.{name}") for name, _ in module.named_parameters(recurse=False))
    ]


def _stays(model: Any, name: str) -> bool:
    wanted = getattr(base_of(model), "_keep_in_fp32_modules_strict", None) or ()
    return any(re.search(rf"(^|\.){part}($|\.)", name) for part in wanted)
