"""Divide the weights of a model among the processes of a run with torch's fully_shard (FSDP2).

Each process keeps a slice of every weight, its gradient and its optimizer state; a layer is whole only while it
computes. Whatever computes with the model, or gathers a weight, is called by all processes together.
"""

import copy

import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, distribute_tensor

from orpo_cli.machine.hardware import Hardware
from orpo_cli.models.adapters import base_of, layers_of
from orpo_cli.models.precision import modules_in_fp32
from orpo_cli.models.scorer import Scorer


def without_weights(model: nn.Module) -> nn.Module:
    """Return a copy of a model whose parameters have no values; buffers, which no division touches, keep theirs."""
    empty = {
        id(parameter): nn.Parameter(torch.empty_like(parameter, device="meta"), parameter.requires_grad)
        for parameter in model.parameters()
    }
    return copy.deepcopy(model, empty)


def divide(scorer: Scorer, hardware: Hardware) -> None:
    """Divide the weights of a scorer, which have no values yet, among the processes of a run, a layer at a time.

    The scorer is the root, since it uses the matrix of the head by itself. Gradients are added up in fp32.
    """
    mesh = init_device_mesh(hardware.device.type, (hardware.processes,))
    smaller = None if hardware.dtype == torch.float32 else hardware.dtype
    policy = MixedPrecisionPolicy(param_dtype=smaller, reduce_dtype=torch.float32)
    for module in modules_in_fp32(scorer.model) if smaller else ():
        fully_shard(module, mesh=mesh, mp_policy=MixedPrecisionPolicy())
    for layer in layers_of(base_of(scorer.model)):
        fully_shard(layer, mesh=mesh, mp_policy=policy)
    fully_shard(scorer, mesh=mesh, mp_policy=policy)
    for module in scorer.modules():
        if isinstance(module, FSDPModule):
            # the denominators of a loss are those of the whole step, so that gradients are added up, not averaged
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)  # gloo has no other way, and NCCL loses bf16 in its own
    for method in ("routed", "router_logits", "is_causal", "check_head", "call"):
        register_fsdp_forward_method(scorer, method)
    scorer.is_divided = True


def fill(model: nn.Module, source: nn.Module | None, device: torch.device) -> None:
    """Give the weights of a divided model their values, one weight at a time.

    Args:
        source: the whole model in the main process, which has no weights afterwards; None in the others.
    """
    values = {} if source is None else source.state_dict(keep_vars=True)
    filled: dict[int, nn.Parameter] = {}
    weights = {name: weight for name, weight in model.state_dict(keep_vars=True).items() if isinstance(weight, DTensor)}
    for name, weight in weights.items():
        if id(weight) not in filled:
            whole = torch.empty(weight.shape, dtype=weight.dtype, device=device)
            if values:
                whole = values[name].data.to(device)
                values[name].data = torch.empty(0)
            own = distribute_tensor(whole, weight.device_mesh, weight.placements)
            filled[id(weight)] = nn.Parameter(own, weight.requires_grad)
    model.load_state_dict({name: filled[id(weight)] for name, weight in weights.items()}, strict=False, assign=True)
    model.to(device)
