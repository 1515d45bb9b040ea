"""Build the optimizers of a run: one, or two with Muon, which leaves vectors and embeddings to AdamW."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from orpo_cli.config.optimization import (
    AdafactorConfig,
    AdamW8bitConfig,
    AdamWConfig,
    LionConfig,
    MuonConfig,
    OptimizerConfig,
    ScheduleFreeAdamWConfig,
    SGDConfig,
    StableAdamWConfig,
)
from orpo_cli.errors import ModelError
from orpo_cli.models.adapters import base_of, layers_of
from orpo_cli.models.quantized import weight_count
from orpo_cli.models.slices import is_slice

NamedParameters = list[tuple[str, nn.Parameter]]
Groups = list[dict[str, Any]]


def build_optimizers(model: nn.Module, config: OptimizerConfig) -> list[Optimizer]:
    """Build optimizers for the trainable parameters; the `initial_lr` of each group is its highest learning rate.

    Raises:
        ModelError: if the rate differs by layers, and the model does not say which modules are its layers.
    """
    named = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    above = {} if config.layer_lr_decay == 1 else _layers_above(model)
    optimizers = _build(named, config, _layer_matrices(model), above)
    for group in groups(optimizers):
        group["initial_lr"] = group["lr"]
    return optimizers


def groups(optimizers: Iterable[Optimizer]) -> Iterable[dict[str, Any]]:
    """Return all parameter groups."""
    return (group for optimizer in optimizers for group in optimizer.param_groups)


def set_lr(optimizers: Iterable[Optimizer], factor: float) -> float:
    """Set each group's learning rate to `factor` times its highest, and return the highest of all groups."""
    for group in groups(optimizers):
        group["lr"] = group["initial_lr"] * factor
    return max(float(group["lr"]) for group in groups(optimizers))


def _build(
    named: NamedParameters, config: OptimizerConfig, layer_matrices: set[str], above: dict[int, int]
) -> list[Optimizer]:
    if isinstance(config, MuonConfig):
        # without names, which Muon would lose in its state_dict
        matrices = _groups([item for item in named if item[0] in layer_matrices], config, above)
        rest = _groups([item for item in named if item[0] not in layer_matrices], config, above)
        muon = (
            [torch.optim.Muon(matrices, momentum=config.momentum, adjust_lr_fn="match_rms_adamw")] if matrices else []
        )
        return [*muon, _adamw(rest, config)] if rest else [*muon]
    return [_one(_groups(named, config, above), config)]


def _one(grouped: Groups, config: OptimizerConfig) -> Any:
    """Build an optimizer of parameter groups, each of which has its learning rate and its weight decay."""
    match config:
        case AdamW8bitConfig():
            return _bitsandbytes_adamw(grouped, config)
        case ScheduleFreeAdamWConfig():
            from orpo_cli.training.schedule_free import ExactScheduleFree

            return ExactScheduleFree(grouped, betas=_pair(config.betas), eps=config.eps)
        case StableAdamWConfig():
            from optimi import StableAdamW

            return StableAdamW(grouped, config.lr, _pair(config.betas), eps=config.eps, **_OPTIMI)
        case LionConfig():
            from optimi import Lion

            return Lion(grouped, config.lr, _pair(config.betas), **_OPTIMI)
        case AdafactorConfig():
            return torch.optim.Adafactor(grouped, beta2_decay=config.beta2_decay)
        case SGDConfig():
            # torch has no fused SGD for slices of weights
            how = {"foreach": True} if any(map(is_slice, _parameters(grouped))) else {"fused": True}
            return torch.optim.SGD(grouped, momentum=config.momentum, **how)
        case AdamWConfig() | MuonConfig():
            return _adamw(grouped, config)


_OPTIMI: dict[str, Any] = {"kahan_sum": True, "triton": False}
"""What optimi would choose at its first step, which a resumed run does not take: sums of bf16 weights are compensated.

Its Triton kernels are faster on a GPU, and round in another way than what runs everywhere."""


def _adamw(grouped: Groups, config: AdamWConfig | MuonConfig) -> Optimizer:
    """Build an AdamW that passes over weights, gradients and state once, not a dozen times."""
    return torch.optim.AdamW(grouped, betas=_pair(config.betas), eps=config.eps, fused=True)


def _bitsandbytes_adamw(grouped: Groups, config: AdamW8bitConfig) -> Any:
    from bitsandbytes.optim import AdamW8bit

    is_paged = config.name.startswith("paged") and all(weight.is_cuda for weight in _parameters(grouped))
    return AdamW8bit(grouped, betas=_pair(config.betas), eps=config.eps, is_paged=is_paged)


def _pair(betas: list[float]) -> tuple[float, float]:
    return betas[0], betas[1]


def _parameters(grouped: Groups) -> list[nn.Parameter]:
    return [parameter for group in grouped for parameter in group["params"]]


def _groups(named: NamedParameters, config: OptimizerConfig, above: dict[int, int]) -> Groups:
    """Return the parameter groups: matrices are decayed, vectors such as norms and biases are not.

    Args:
        above: the number of layers above a parameter, by its id; 0 for those that are not there.
    """
    found: dict[tuple[bool, int], list[nn.Parameter]] = {}
    for _, parameter in named:
        found.setdefault((parameter.ndim < 2, above.get(id(parameter), 0)), []).append(parameter)
    return [
        {
            "params": parameters,
            "lr": config.lr * config.layer_lr_decay**layers,
            "weight_decay": 0.0 if is_vector else config.weight_decay,
        }
        for (is_vector, layers), parameters in sorted(found.items(), key=lambda item: item[0])
    ]


def _layers_above(model: nn.Module) -> dict[int, int]:
    """Return how many layers come after a parameter, by its id: after embeddings all, also where they are the head."""
    base = base_of(model)
    layers = list(layers_of(base))
    if not layers:
        raise ModelError("optimizer.layer_lr_decay: the model does not say which modules are its layers; set it to 1")
    embeddings = [base.get_input_embeddings(), *(part for part in base.modules() if isinstance(part, nn.Embedding))]
    found = {id(parameter): len(layers) for part in embeddings for parameter in part.parameters()}
    for number, layer in enumerate(layers, start=1):
        found |= {id(parameter): len(layers) - number for parameter in layer.parameters()}
    return found


def left_to_adamw(model: nn.Module) -> int:
    """Return how many trained numbers Muon leaves to the AdamW beside it."""
    matrices = _layer_matrices(model)
    named = model.named_parameters()
    return sum(weight_count(weight) for name, weight in named if weight.requires_grad and name not in matrices)


def _layer_matrices(model: nn.Module) -> set[str]:
    """Return the names of the matrices that Muon is meant for: neither embeddings, or rows of them, nor the head."""
    embeddings = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    of_ends = ("lm_head", "embed_out", "trainable_tokens", "lora_embedding")
    outside_layers = {name for name, _ in model.named_parameters() if any(end in name for end in of_ends)}
    return {
        name
        for name, parameter in model.named_parameters()
        if parameter.ndim == 2 and id(parameter) not in embeddings and name not in outside_layers
    }
