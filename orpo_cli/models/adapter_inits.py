"""Begin an adapter from the weights of its base or from data, and save one whose base has changed as plain LoRA.

PiSSA and OLoRA take a part B0 A0 of a base weight W into the adapter and train it there: the model computes
W - s B0 A0 + s B A. Saved beside the W that everybody has, that is the adapter s [B | -B0] [A ; A0] of twice the rank.
"""

import copy
import math
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from orpo_cli.config.adapter import REPLACES_BASE, LoraConfig
from orpo_cli.data.collation import PAD, padded
from orpo_cli.data.tokens.store import PairStore
from orpo_cli.errors import ConfigError

_EVA_PAIRS, _EVA_BATCHES = 4, 32
"""Pairs of a batch, and batches, that the directions of EVA are found in; it goes through them until they settle."""


def peft_init(config: LoraConfig) -> dict[str, Any]:
    """Return the settings with which peft begins an adapter, where `begin_from_base` does not."""
    is_plain = config.init in ("default", *REPLACES_BASE)
    settings: dict[str, Any] = {"init_lora_weights": True if is_plain else config.init}
    if config.init != "eva":
        return settings
    from peft import EvaConfig

    return settings | {"eva_config": EvaConfig(rho=1.0)}  # every layer keeps the rank that the configuration gives it


def begin_from_base(adapted: Any, init: str) -> None:
    """Move the largest part of the base weights into the factors of an adapter, and remember it.

    peft would round the factors to the dtype of the base, after it has taken away the product of those not rounded.

    Args:
        init: `pissa` or `olora`.
    """
    for _, layer in _layers(adapted):
        layer.pissa_init("default", init) if init == "pissa" else layer.olora_init("default")
    adapted.replaced = {name: weight.detach().clone() for name, weight in _factors(adapted)}


def replace_part_of_base(adapted: Any, saved: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Take the saved part of the base away from it, in place of one taken before, and return the trained factors.

    Args:
        saved: the tensors of a saved adapter of twice the rank, by the names in its file.
    """
    trained, before, adapted.replaced = dict(saved), adapted.replaced, {}
    for name, _ in _factors(adapted):
        key = name.replace(".default", "")
        axis = _axis(name)
        own, part = saved[key].chunk(2, axis)
        trained[key] = own.contiguous()
        adapted.replaced[name] = (part if axis == 0 else -part).contiguous()
    for name, layer in _layers(adapted):
        base = layer.get_base_layer().weight
        part = (_product(adapted.replaced, name, layer) - _product(before, name, layer)).to(base.device)
        base.data = (base.data.float() - (part.T if layer.fan_in_fan_out else part)).to(base.dtype)
    return trained


def _product(factors: Mapping[str, Tensor], name: str, layer: Any) -> Tensor:
    first, second = (factors[f"{name}.lora_{side}.default.weight"].cpu() for side in "AB")
    product: Tensor = layer.scaling["default"] * second @ first
    return product


def with_replaced_part(adapted: Any, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return named weights of an adapter in the form in which they are saved: with the replaced part, subtracted."""
    replaced = getattr(adapted, "replaced", None) or {}
    return {name: _joined(name, weight, replaced.get(name)) for name, weight in weights.items()}


def describe_as_saved(adapted: Any) -> None:
    """Let the settings of an adapter that replaces a part of its base say what is saved: twice the rank."""
    settings = adapted.peft_config["default"]
    adapted.replaced = {name: torch.zeros_like(weight) for name, weight in _factors(adapted)}
    alphas = math.sqrt(2) if settings.use_rslora else 2
    settings.r, settings.lora_alpha = 2 * settings.r, alphas * settings.lora_alpha
    settings.rank_pattern = {name: 2 * rank for name, rank in settings.rank_pattern.items()}
    settings.alpha_pattern = {name: alphas * alpha for name, alpha in settings.alpha_pattern.items()}


def begin_from_data(adapted: Any, store: PairStore) -> None:
    """Begin the adapters with the directions in which the inputs of their layers vary most (EVA), over some pairs.

    Args:
        adapted: a model with fresh adapters of `init: eva`.
    Raises:
        ConfigError: if the pairs have too few tokens for the rank.
    """
    from peft import initialize_lora_eva_weights

    together = min(_EVA_PAIRS, len(store))
    count = min(_EVA_BATCHES, len(store) // together)
    pairs = [store[place] for place in np.linspace(0, len(store) - 1, count * together).round().astype(int)]
    batches = [padded(pairs[place : place + together], False) for place in range(0, len(pairs), together)]
    rank = max(layer.r["default"] for _, layer in _layers(adapted))
    batches = [batch for batch in batches if int((batch.segments != PAD).sum()) >= rank]
    if not batches:  # peft would look for them for ever
        raise ConfigError(
            f"adapter.init=eva: {together} pairs of the data have fewer than {rank} tokens, in which there are no "
            f"{rank} directions; lower adapter.rank, or choose another init"
        )
    inputs = [{"input_ids": batch.input_ids, "attention_mask": (batch.segments != PAD).long()} for batch in batches]
    device = next(adapted.parameters()).device
    on_device = [{name: tensor.to(device) for name, tensor in one.items()} for one in inputs]
    saved = copy.copy(adapted.peft_config["default"])
    saved.init_lora_weights, saved.eva_config = True, None
    initialize_lora_eva_weights(adapted, on_device, gather_distributed_inputs=False, show_progress_bar=False)
    adapted.peft_config["default"] = saved  # peft names each layer by itself


def _joined(name: str, weight: Tensor, replaced: Tensor | None) -> Tensor:
    if replaced is None:
        return weight
    axis = _axis(name)
    return torch.cat((weight, (replaced if axis == 0 else -replaced).to(weight)), axis)


def _axis(name: str) -> int:
    """Return the axis of a factor that is the rank."""
    return 0 if "lora_A" in name else 1


def _factors(adapted: Any) -> Iterable[tuple[str, Tensor]]:
    return ((name, weight) for name, weight in adapted.named_parameters() if "lora_A" in name or "lora_B" in name)


def _layers(adapted: Any) -> Iterable[tuple[str, Any]]:
    return ((name, module) for name, module in adapted.named_modules() if hasattr(module, "lora_A"))
