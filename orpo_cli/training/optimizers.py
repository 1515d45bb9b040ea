"""Optimizers of torch, by name. A run has one, or two where Muon leaves the vectors and embeddings to AdamW."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from orpo_cli.config.optimization import AdafactorConfig, AdamWConfig, MuonConfig, OptimizerConfig, SGDConfig

NamedParameters = list[tuple[str, nn.Parameter]]


def build_optimizers(model: nn.Module, config: OptimizerConfig) -> list[Optimizer]:
    """Optimizers over the trainable parameters of `model`; `initial_lr` of each group is the highest learning rate."""
    named = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    optimizers = _build(named, config, _layer_matrices(model))
    for group in groups(optimizers):
        group["initial_lr"] = group["lr"]
    return optimizers


def groups(optimizers: Iterable[Optimizer]) -> Iterable[dict[str, Any]]:
    """All parameter groups."""
    return (group for optimizer in optimizers for group in optimizer.param_groups)


def set_lr(optimizers: Iterable[Optimizer], factor: float) -> float:
    """Set each group's learning rate to `factor` times its highest. Returns the first group's."""
    rates = []
    for group in groups(optimizers):
        group["lr"] = group["initial_lr"] * factor
        rates.append(group["lr"])
    return float(rates[0])


def _build(named: NamedParameters, config: OptimizerConfig, layer_matrices: set[str]) -> list[Optimizer]:
    decay = config.weight_decay
    match config:
        case AdamWConfig():
            betas = (config.betas[0], config.betas[1])
            return [_adamw(_decay_groups(named, decay), config.lr, betas, config.eps)]
        case AdafactorConfig():
            decayed = _decay_groups(named, decay)
            return [torch.optim.Adafactor(decayed, lr=config.lr, beta2_decay=config.beta2_decay)]
        case SGDConfig():
            return [torch.optim.SGD(_decay_groups(named, decay), lr=config.lr, momentum=config.momentum, fused=True)]
        case MuonConfig():
            matrices = [(name, parameter) for name, parameter in named if name in layer_matrices]
            rest = [(name, parameter) for name, parameter in named if name not in layer_matrices]
            built: list[Optimizer] = []
            if matrices:
                # a list of (name, parameter) would lose its names in state_dict; the order is all that is needed
                weights = [parameter for _, parameter in matrices]
                built.append(
                    torch.optim.Muon(
                        weights, config.lr, weight_decay=decay, momentum=config.momentum, adjust_lr_fn="match_rms_adamw"
                    )
                )
            if rest:
                betas = (config.betas[0], config.betas[1])
                built.append(_adamw(_decay_groups(rest, decay), config.lr, betas, config.eps))
            return built


def _adamw(decayed: list[dict[str, Any]], lr: float, betas: tuple[float, float], eps: float) -> Optimizer:
    """In one pass over weights, gradients and state instead of a dozen."""
    return torch.optim.AdamW(decayed, lr=lr, betas=betas, eps=eps, fused=True)


def _decay_groups(named: NamedParameters, weight_decay: float) -> list[dict[str, Any]]:
    """Matrices are decayed; norms, biases and other vectors are not."""
    matrices = [parameter for _, parameter in named if parameter.ndim >= 2]
    vectors = [parameter for _, parameter in named if parameter.ndim < 2]
    decayed: list[dict[str, Any]] = [{"params": matrices, "weight_decay": weight_decay}] if matrices else []
    return [*decayed, {"params": vectors, "weight_decay": 0.0}] if vectors else decayed


def _layer_matrices(model: nn.Module) -> set[str]:
    """Names of matrices that are not embeddings; what Muon is meant for."""
    embeddings = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    outside_layers = {name for name, _ in model.named_parameters() if "lm_head" in name or "embed_out" in name}
    return {
        name
        for name, parameter in model.named_parameters()
        if parameter.ndim == 2 and id(parameter) not in embeddings and name not in outside_layers
    }
