"""Read the directory of a saved adapter: what kind it is, and on which base model it belongs."""

from pathlib import Path
from typing import Any

from orpo_cli.errors import ModelError
from orpo_cli.files.untrusted import read_json
from orpo_cli.quoting import first_line

ADAPTER = "adapter_model.safetensors"
"""The file that peft saves adapters in."""

ADAPTER_CONFIG = "adapter_config.json"

_SETTINGS = (
    "r", "lora_alpha", "lora_dropout", "target_modules", "exclude_modules", "fan_in_fan_out", "use_rslora", "use_dora",
    "rank_pattern", "alpha_pattern", "layers_to_transform", "layers_pattern", "target_parameters", "modules_to_save",
    "trainable_token_indices", "ensure_weight_tying",
)  # fmt: skip
"""Settings with which peft trains, saves and merges an adapter as it does any other."""

_NOT_OF_THE_ADAPTER = (
    "auto_mapping", "base_model_name_or_path", "eva_config", "inference_mode", "megatron_core",
    "peft_type", "peft_version", "qalora_group_size", "revision", "runtime_config", "task_type",
)  # fmt: skip
"""Settings that say nothing of how a saved adapter is computed."""

_HARMLESS = {"bias": ("none",), "init_lora_weights": (True, False, "gaussian", "eva", "orthogonal")}
"""Values of two settings that leave the base model as it is; with others peft changes it as the adapter is made."""


def holds_adapter(directory: Path) -> bool:
    """Return whether a directory holds an adapter and no model of its own."""
    return (directory / ADAPTER_CONFIG).is_file() and not any(directory.glob("model*.safetensors"))


def read_adapter(directory: Path) -> dict[str, Any]:
    """Return what adapter_config.json says.

    Raises:
        ModelError: if it cannot be read, there are no weights beside it, or the adapter is no LoRA that is trained as
            any other.
    """
    path = directory / ADAPTER_CONFIG
    try:
        values = read_json(path)
    except (OSError, ValueError) as error:
        raise ModelError(f"{path}: cannot be read: {first_line(error)}") from None
    if not (directory / ADAPTER).is_file():
        raise ModelError(f"{directory}: has {ADAPTER_CONFIG} and no {ADAPTER}; adapters are read from safetensors only")
    if (kind := values.get("peft_type")) != "LORA":
        raise ModelError(f"{path}: is an adapter of kind {kind}; only LoRA is trained further or merged here")
    if (task := values.get("task_type")) not in (None, "CAUSAL_LM"):
        raise ModelError(f"{path}: is an adapter for {task}, not for a causal language model")
    for key, value in values.items():
        if (key in _HARMLESS and value not in _HARMLESS[key]) or (value and not _is_known(key)):
            raise ModelError(f"{path}: {key}={str(value)[:100]}: an adapter of this kind is not trained or merged here")
    return values


def _is_known(key: str) -> bool:
    return key in (*_SETTINGS, *_NOT_OF_THE_ADAPTER, *_HARMLESS)


def adapter_settings(directory: Path) -> dict[str, Any]:
    """Return the settings of a saved adapter that decide what it computes.

    Raises:
        ModelError: as for `read_adapter`.
    """
    return {key: value for key, value in read_adapter(directory).items() if key in _SETTINGS}


def adapter_in_words(directory: Path) -> str:
    """Return rank, alpha and targets of a saved adapter in one line."""
    settings = adapter_settings(directory)
    targets = [settings.get(key) or [] for key in ("target_modules", "target_parameters")]
    names = [str(name) for part in targets for name in (part if isinstance(part, list) else [part])]
    leaves = {name.removesuffix(".weight").rpartition(".")[2] for name in names}
    kind = " ".join(word for key, word in (("use_dora", "DoRA"), ("use_rslora", "rsLoRA")) if settings.get(key))
    sizes = f"rank {settings.get('r')}, alpha {settings.get('lora_alpha')}"
    whole = [*(settings.get("modules_to_save") or []), *(["tokens"] if settings.get("trainable_token_indices") else [])]
    also = f", with {', '.join(whole)}" if whole else ""
    return f"{kind or 'LoRA'} of {sizes}, on {', '.join(sorted(leaves))}{also}"
