"""Build the optimizers of a run: one of torch's, or two with Muon, which leaves vectors and embeddings to AdamW."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from orpo_cli.config.optimization import AdafactorConfig, AdamWConfig, MuonConfig, OptimizerConfig, SGDConfig
from orpo_cli.models.slices import is_slice

NamedParameters = list[tuple[str, nn.Parameter]]


def build_optimizers(model: nn.Module, config: OptimizerConfig) -> list[Optimizer]:
    """Build optimizers for the trainable parameters; the `initial_lr` of each group is its highest learning rate."""
    named = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    optimizers = _build(named, config, _layer_matrices(model))
    for group in groups(optimizers):
        group["initial_lr"] = group["lr"]
    return optimizers


def groups(optimizers: Iterable[Optimizer]) -> Iterable[dict[str, Any]]:
    """Return all parameter groups."""
    return (group for optimizer in optimizers for group in optimizer.param_groups)


def set_lr(optimizers: Iterable[Optimizer], factor: float) -> float:
    """Set each group's learning rate to `factor` times its highest, and return that of the first group."""
    for group in groups(optimizers):
        group["lr"] = group["initial_lr"] * factor
    return float(next(iter(groups(optimizers)))["lr"])


def _build(named: NamedParameters, config: OptimizerConfig, layer_matrices: set[str]) -> list[Optimizer]:
    decay = config.weight_decay
    match config:
        case AdamWConfig():
            return [_adamw(named, config)]
        case AdafactorConfig():
            return [torch.optim.Adafactor(_decay_groups(named, decay), config.lr, config.beta2_decay)]
        case SGDConfig():
            # torch has no fused SGD for slices of weights
            how = {"foreach": True} if any(is_slice(weight) for _, weight in named) else {"fused": True}
            return [torch.optim.SGD(_decay_groups(named, decay), lr=config.lr, momentum=config.momentum, **how)]
        case MuonConfig():
            # without names, which Muon would lose in its state_dict
            matrices = [parameter for name, parameter in named if name in layer_matrices]
            rest = [(name, parameter) for name, parameter in named if name not in layer_matrices]
            built: list[Optimizer] = []
            if matrices:
                rate, momentum = config.lr, config.momentum
                built.append(torch.optim.Muon(matrices, rate, decay, momentum, adjust_lr_fn="match_rms_adamw"))
            return [*built, _adamw(rest, config)] if rest else built


def _adamw(named: NamedParameters, config: AdamWConfig | MuonConfig) -> Optimizer:
    """Build an AdamW that passes over weights, gradients and state once, not a dozen times."""
    betas = (config.betas[0], config.betas[1])
    return torch.optim.AdamW(_decay_groups(named, config.weight_decay), config.lr, betas, config.eps, fused=True)


def _decay_groups(named: NamedParameters, weight_decay: float) -> list[dict[str, Any]]:
    """Return the parameter groups: matrices are decayed, vectors such as norms and biases are not."""
    matrices = [parameter for _, parameter in named if parameter.ndim >= 2]
    vectors = [parameter for _, parameter in named if parameter.ndim < 2]
    decayed: list[dict[str, Any]] = [{"params": matrices, "weight_decay": weight_decay}] if matrices else []
    return [*decayed, {"params": vectors, "weight_decay": 0.0}] if vectors else decayed


def _layer_matrices(model: nn.Module) -> set[str]:
    """Return the names of the matrices that Muon is meant for: neither embeddings nor the head."""
    embeddings = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    outside_layers = {name for name, _ in model.named_parameters() if "lm_head" in name or "embed_out" in name}
    return {
        name
        for name, parameter in model.named_parameters()
        if parameter.ndim == 2 and id(parameter) not in embeddings and name not in outside_layers
    }
