"""Put LoRA adapters on a model with peft, load saved ones, and merge them into the weights."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import nn

from orpo_cli.config.schema import LoraConfig
from orpo_cli.errors import CheckpointError, ConfigError, DivergedError
from orpo_cli.models.weights import dtype_name, first_not_finite, stored_tensors

ADAPTER = "adapter_model.safetensors"
"""The file that peft saves adapters in."""


def add_lora(model: nn.Module, config: LoraConfig, seed: int, base_reference: str) -> nn.Module:
    """Freeze `model` and put trainable adapters beside the targeted layers.

    Args:
        base_reference: the name of the base model in the saved adapter.
    Raises:
        ConfigError: if no layer has one of the target names, or the adapter could not be merged.
    """
    from peft import LoraConfig as PeftLoraConfig
    from peft import get_peft_model

    targets: Any = "all-linear" if config.targets == ["all-linear"] else config.targets
    sizes = {"r": config.rank, "lora_alpha": config.alpha, "lora_dropout": config.dropout}
    torch.manual_seed(seed)
    try:
        adapted = get_peft_model(model, PeftLoraConfig(**sizes, target_modules=targets, task_type="CAUSAL_LM"))
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
    """Refuse an adapter on one of two layers that share a matrix: merged, it would change both."""
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
    """Add adapters as `add_lora` does, with the weights saved in `directory`; its adapter_config.json is not read.

    Raises:
        CheckpointError: if the weights cannot be read, do not fit this model, or are not finite.
    """
    adapted = add_lora(model, config, seed, base_reference)
    take_weights(adapted, directory)
    return adapted


def take_weights(adapted: nn.Module, directory: Path) -> None:
    """Give adapters the weights that are saved in `directory`.

    Raises:
        CheckpointError: if the weights cannot be read, do not fit this model, or are not finite.
    """
    from peft import set_peft_model_state_dict

    path = directory / ADAPTER
    _check_fits(path, _weights(adapted))
    saved = load_file(path)
    if (key := first_not_finite(saved.items())) is not None:
        raise CheckpointError(f"{path}: {key} has values that are not finite")
    set_peft_model_state_dict(adapted, saved)


def _check_fits(path: Path, expected: Mapping[str, torch.Tensor]) -> None:
    """Compare the names and shapes of saved adapters with the expected ones; peft starts missing ones anew."""
    saved = {name: list(tensor.shape) for name, tensor in stored_tensors(path).items()}
    fitting = {name: list(tensor.shape) for name, tensor in expected.items()}
    for name in sorted(saved.keys() | fitting.keys()):
        if saved.get(name) != fitting.get(name):
            raise CheckpointError(
                f"{path.parent}: the adapter does not fit the model: {name} is {saved.get(name, 'missing')}, "
                f"expected {fitting.get(name, 'no such tensor')}"
            )


def _weights(adapted: Any) -> dict[str, torch.Tensor]:
    """Return the weights of the adapters by the names under which they are saved."""
    from peft import get_peft_model_state_dict

    weights: dict[str, torch.Tensor] = get_peft_model_state_dict(adapted, save_embedding_layers=False)
    return weights


def has_learned(path: Path) -> bool:
    """Return whether saved adapters change the model: each is a product whose second factor begins as zeros."""
    with safe_open(path, framework="pt") as tensors:
        return any(bool(tensors.get_tensor(name).any()) for name in tensors.keys() if "lora_B" in name)  # noqa: SIM118


def is_adapted(model: Any) -> bool:
    """Return whether the model carries peft adapters."""
    return hasattr(model, "peft_config")


def base_of(model: Any) -> Any:
    """Return the transformers model, with or without adapters; adapters are layers inside it."""
    return model.get_base_model() if is_adapted(model) else model


def merged(model: Any, base: nn.Module, config: LoraConfig) -> Any:
    """Return a plain model with the adapters added into its weights.

    Args:
        model: the model that carries the adapters; its own weights may have been rounded for training.
        base: the same model with its weights as they are stored.
    Raises:
        DivergedError: if a sum is too large for the dtype that the base is stored in.
    """
    from peft import set_peft_model_state_dict

    whole: Any = add_lora(base, config, 0, "")
    set_peft_model_state_dict(whole, _weights(model))
    plain = whole.merge_and_unload()
    if (key := first_not_finite(plain.state_dict().items())) is not None:
        dtype = dtype_name(plain.state_dict()[key].dtype)
        raise DivergedError(
            f"merged into the base model, which is stored in {dtype}, the adapter makes {key} not finite; "
            "the checkpoints have the adapter by itself"
        )
    return plain
