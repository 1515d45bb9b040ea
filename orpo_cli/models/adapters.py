"""LoRA through peft: put adapters on a model, load them again, merge them."""

import warnings
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import nn

from orpo_cli.config.schema import LoraConfig
from orpo_cli.errors import CheckpointError, ConfigError, is_out_of_memory
from orpo_cli.models.weights import check_stored_as_trained, first_not_finite, stored_dtypes

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


def load_lora(model: nn.Module, directory: Path, base_reference: str) -> nn.Module:
    """Put the adapters saved in `directory` on their base model, ready to train on.

    Args:
        base_reference: as for `add_lora`; the base may have been somewhere else.
    Raises:
        CheckpointError: they do not fit this model, have values that are not finite, or are pickled.
    """
    from peft import PeftModel, get_peft_model_state_dict

    if not (directory / ADAPTER).is_file():
        raise CheckpointError(f"{directory}: has no {ADAPTER}")
    try:
        with warnings.catch_warnings(action="ignore"):  # of what is missing; it is an error below
            adapted: Any = PeftModel.from_pretrained(model, str(directory), is_trainable=True)
    except (ValueError, RuntimeError, KeyError, OSError) as error:
        if is_out_of_memory(error):
            raise
        reason = " ".join(str(error).split())[:300]
        raise CheckpointError(f"{directory}: the adapter does not fit the model: {reason}") from None
    saved = stored_dtypes(directory / ADAPTER)
    expected = get_peft_model_state_dict(adapted, save_embedding_layers=False)
    if saved.keys() != expected.keys():  # peft starts what is missing anew
        name = sorted(saved.keys() ^ expected.keys())[0]
        raise CheckpointError(
            f"{directory}: the adapter does not fit the model: {len(saved)} tensors, expected {len(expected)}; "
            f"{name} is {'missing' if name in expected else 'unknown'}"
        )
    check_stored_as_trained(directory / ADAPTER, expected)
    if (key := first_not_finite(expected.items())) is not None:
        raise CheckpointError(f"{directory / ADAPTER}: {key} has values that are not finite")
    adapted.peft_config["default"].base_model_name_or_path = base_reference
    loaded: nn.Module = adapted
    return loaded


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


def merged(model: Any, dtype: torch.dtype) -> Any:
    """The plain model with its adapters added into the weights.

    Args:
        dtype: of the result. Adapters are small; added to weights in bf16 a good part of them would be rounded away.
    """
    return model.to(dtype).merge_and_unload()
