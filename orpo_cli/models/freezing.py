"""Train some weights of a model, and leave the others as they are."""

import re

from torch import nn

from orpo_cli.config.adapter import FrozenConfig, is_pattern
from orpo_cli.errors import ConfigError
from orpo_cli.models.adapters import layers_of


def freeze(model: nn.Module, config: FrozenConfig) -> None:
    """Leave only the weights of the last layers and of the named modules to be trained.

    Raises:
        ConfigError: if no weight has one of the names, or there are not so many layers.
    """
    named, layers = list(model.named_parameters(remove_duplicate=False)), list(layers_of(model))
    if config.layers > len(layers):
        raise ConfigError(f"adapter.layers={config.layers}: the model has {len(layers)} layers")
    trained = {id(weight) for layer in layers[len(layers) - config.layers :] for weight in layer.parameters()}
    for name in [config.train] if isinstance(config.train, str) else config.train:
        found = {id(weight) for weight_name, weight in named if _is_named(name, weight_name)}
        if not found:
            parts = ", ".join(sorted({weight_name.split(".")[-2] for weight_name, _ in named}))
            raise ConfigError(f"adapter.train={name}: no weight has such a name; modules here: {parts}")
        trained |= found
    for _, weight in named:
        weight.requires_grad_(id(weight) in trained)


def _is_named(name: str, weight: str) -> bool:
    return f".{name}." in f".{weight}." or (is_pattern(name) and re.fullmatch(name, weight) is not None)
