"""LoRA through peft: put adapters on a model, load them again, merge them."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import nn

from orpo_cli.config.schema import LoraConfig
from orpo_cli.errors import CheckpointError, ConfigError, DivergedError
from orpo_cli.models.weights import check_stored_as_trained, first_not_finite, kind_in_words, stored

ADAPTER = "adapter_model.safetensors"
"""The file that peft saves adapters in."""


def add_lora(model: nn.Module, config: LoraConfig, seed: int, base_reference: str) -> nn.Module:
    """Freeze `model` and put trainable adapters beside the targeted layers.

    Args:
        base_reference: what the saved adapter will name as its base model.
    Raises:
        ConfigError: no layer has one of the target names.
    """
    from peft import LoraConfig as PeftLoraConfig
    from peft import get_peft_model

    targets: Any = "all-linear" if config.targets == ["all-linear"] else config.targets
    torch.manual_seed(seed)
    try:
        adapted = get_peft_model(
            model,
            PeftLoraConfig(
                r=config.rank,
                lora_alpha=config.alpha,
                lora_dropout=config.dropout,
                target_modules=targets,
                task_type="CAUSAL_LM",
            ),
        )
    except ValueError as error:
        leaves = {name.rsplit(".", 1)[-1] for name, module in model.named_modules() if isinstance(module, nn.Linear)}
        first = str(error).split(". ")[0]
        raise ConfigError(
            f"adapter.targets={config.targets}: {first}; linear layers here: {', '.join(sorted(leaves))}"
        ) from None
    _refuse_tied_targets(adapted, config)
    adapted.peft_config["default"].base_model_name_or_path = base_reference  # peft puts the model's own path there
    result: nn.Module = adapted
    return result


def _refuse_tied_targets(adapted: Any, config: LoraConfig) -> None:
    """An adapter on one of two layers that share a matrix would change both once it is merged."""
    base = adapted.get_base_model()
    ends = (base.get_input_embeddings(), base.get_output_embeddings())
    if None in ends or ends[0].weight is not ends[1].weight:
        return
    if any(hasattr(layer, "base_layer") for layer in ends):
        raise ConfigError(
            f"adapter.targets={config.targets}: embeddings and head of this model share their weights, "
            "so that an adapter on one of them cannot be merged; leave both out"
        )


def load_lora(model: nn.Module, config: LoraConfig, seed: int, base_reference: str, directory: Path) -> nn.Module:
    """Add adapters with the weights saved in `directory`; of what it says about them nothing else is believed.

    Args:
        base_reference: as for `add_lora`; the base may have been somewhere else.
    Raises:
        CheckpointError: they do not fit this model, have values that are not finite, or are pickled.
    """
    path = directory / ADAPTER
    if not path.is_file():
        raise CheckpointError(f"{directory}: has no {ADAPTER}")
    adapted = add_lora(model, config, seed, base_reference)
    _check_fits(path, _weights(adapted))
    saved = load_file(path)
    if (key := first_not_finite(saved.items())) is not None:
        raise CheckpointError(f"{path}: {key} has values that are not finite")
    _set_weights(adapted, saved)
    return adapted


def _check_fits(path: Path, expected: Mapping[str, torch.Tensor]) -> None:
    """peft starts what is missing anew.

    Raises:
        CheckpointError: the adapters in a file have other names, shapes or numbers than expected.
    """
    saved, does_not_fit = stored(path), f"{path.parent}: the adapter does not fit the model"
    if saved.keys() != expected.keys():
        name = sorted(saved.keys() ^ expected.keys())[0]
        raise CheckpointError(
            f"{does_not_fit}: {len(saved)} tensors, expected {len(expected)}; "
            f"{name} is {'missing' if name in expected else 'unknown'}"
        )
    for name, tensor in saved.items():
        if tensor.shape != expected[name].shape:
            raise CheckpointError(f"{does_not_fit}: {name} is {list(tensor.shape)}, not {list(expected[name].shape)}")
    check_stored_as_trained(path, expected)


def _weights(adapted: Any) -> dict[str, torch.Tensor]:
    """Of the adapters, by the names under which they are saved."""
    from peft import get_peft_model_state_dict

    weights: dict[str, torch.Tensor] = get_peft_model_state_dict(adapted, save_embedding_layers=False)
    return weights


def _set_weights(adapted: Any, weights: dict[str, torch.Tensor]) -> None:
    from peft import set_peft_model_state_dict

    set_peft_model_state_dict(adapted, weights)


def has_learned(path: Path) -> bool:
    """Whether saved adapters change the model: each is a product whose second factor begins as zeros."""
    with safe_open(path, framework="pt") as tensors:
        return any(bool(tensors.get_tensor(name).any()) for name in tensors.keys() if "lora_B" in name)  # noqa: SIM118


def is_adapted(model: Any) -> bool:
    """Whether the model carries adapters of peft."""
    return hasattr(model, "peft_config")


def base_of(model: Any) -> Any:
    """The transformers model, adapters or not; adapters are layers inside it."""
    return model.get_base_model() if is_adapted(model) else model


def merged(model: Any, base: nn.Module, config: LoraConfig) -> Any:
    """The plain model with adapters added into its weights.

    Args:
        model: that carries the adapters; its own weights may have been rounded for training.
        base: the weights as they are stored, and will be again.
    Raises:
        DivergedError: a sum is too large for the numbers that the base is stored in.
    """
    whole: Any = add_lora(base, config, 0, "")
    _set_weights(whole, _weights(model))
    plain = whole.merge_and_unload()
    if (key := first_not_finite(plain.state_dict().items())) is not None:
        dtype = kind_in_words(plain.state_dict()[key].dtype)
        raise DivergedError(
            f"{key} is not finite in {dtype}, in which the base model is stored, once the adapter is merged into it; "
            "the checkpoints have the adapter by itself"
        )
    return plain
