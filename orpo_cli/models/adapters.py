"""Put LoRA adapters on a model with peft, load saved ones, and merge them into the weights."""

import contextlib
import copy
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import nn

from orpo_cli.config.adapter import LoraConfig
from orpo_cli.errors import CheckpointError, ConfigError, DivergedError, ModelError
from orpo_cli.models import adapter_inits
from orpo_cli.models.adapter_files import ADAPTER, adapter_settings
from orpo_cli.models.new_adapters import is_tied, peft_config, with_new_lora
from orpo_cli.models.slices import whole
from orpo_cli.models.weights import dtype_name, first_not_finite, stored_tensors
from orpo_cli.quoting import first_line

Settings = LoraConfig | Path
"""What an adapter is made from: the configuration of a new one, or the directory of a saved one."""


def add_lora(
    model: nn.Module,
    settings: Settings,
    seed: int,
    base_reference: str,
    revision: str | None = None,
    begins: bool = False,
) -> nn.Module:
    """Freeze `model` and put trainable adapters beside the targeted layers.

    The weights of a saved adapter are loaded afterwards, by `load_weights`.

    Args:
        base_reference: the name of the base model in the saved adapter.
        revision: the revision that goes with it.
        begins: whether the weights of a new adapter are those of `adapter.init`; without, any that will be replaced.
    Raises:
        ConfigError: if no layer has one of the target names, or the adapter could not be merged.
        ModelError: if a saved adapter cannot be made again on this model.
    """
    from peft import get_peft_model

    torch.manual_seed(seed)
    if isinstance(settings, Path):
        try:
            adapted: Any = get_peft_model(model, peft_config(**adapter_settings(settings)))
        except (ValueError, TypeError, AttributeError, KeyError) as error:
            raise ModelError(f"{settings}: the adapter does not fit the model: {first_line(error)}") from None
    else:
        adapted = with_new_lora(model, settings, begins)
    _refuse_tied_targets(adapted, settings)
    for weight in adapted.parameters():
        if weight.requires_grad:
            weight.data = weight.data.float()  # a copy of a whole module has the dtype of the frozen one
    saved = adapted.peft_config["default"]
    saved.base_model_name_or_path, saved.revision = base_reference, revision  # peft puts the model's own path there
    result: nn.Module = adapted
    return result


def _refuse_tied_targets(adapted: Any, settings: Settings) -> None:
    """Refuse an adapter on one of two layers that share a matrix: merged, it would change both."""
    base = adapted.get_base_model()
    ends = (base.get_input_embeddings(), base.get_output_embeddings())
    if is_tied(base) and any(hasattr(end, "base_layer") for end in ends):
        what = settings if isinstance(settings, Path) else f"adapter.targets={settings.targets}"
        raise ConfigError(
            f"{what}: embeddings and head of this model share their weights, "
            "so that an adapter on one of them cannot be merged; leave both out"
        )


def load_weights(adapted: nn.Module, directory: Path) -> None:
    """Take the weights of adapters from `directory`; its adapter_config.json is not read.

    Raises:
        CheckpointError: if the weights cannot be read, do not fit this model, or are not finite.
    """
    from peft import set_peft_model_state_dict

    path = directory / ADAPTER
    _check_fits(path, _weights(adapted))
    saved = load_file(path)
    if (key := first_not_finite(saved.items())) is not None:
        raise CheckpointError(f"{path}: {key} has values that are not finite")
    if hasattr(adapted, "replaced"):
        saved = adapter_inits.replace_part_of_base(adapted, saved)
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
    """Return the weights of the adapters as they are saved, by their names in the file."""
    from peft import get_peft_model_state_dict

    state = adapter_inits.with_replaced_part(adapted, adapted.state_dict())
    weights: dict[str, torch.Tensor] = get_peft_model_state_dict(adapted, state, save_embedding_layers=False)
    return weights


def has_learned(path: Path) -> bool:
    """Return whether saved adapters change the model: each is a product of which one factor begins as zeros."""
    with safe_open(path, framework="pt") as tensors:
        second = [name for name in tensors.keys() if "lora_B" in name or "lora_embedding_A" in name]  # noqa: SIM118
        return any(bool(tensors.get_tensor(name).any()) for name in second)


@contextlib.contextmanager
def idle_adapters_left_out(model: Any) -> Iterator[None]:
    """Compute without adapters while the block runs, where they add exactly nothing yet: the result is the same."""
    factors = [weight for name, weight in model.named_parameters() if "lora_B" in name]
    is_idle = bool(factors) and not any(bool(whole(factor).any()) for factor in factors)
    with model.disable_adapter() if is_idle else contextlib.nullcontext():
        yield


def is_adapted(model: Any) -> bool:
    """Return whether the model carries peft adapters."""
    return hasattr(model, "peft_config")


def base_of(model: Any) -> Any:
    """Return the transformers model, with or without adapters; adapters are layers inside it."""
    return model.get_base_model() if is_adapted(model) else model


def layers_of(base: Any) -> Iterator[nn.Module]:
    """Yield the layers of a transformers model, the parts that it says must stay on one device."""
    kinds = set(base._no_split_modules or ())
    # a divided layer has a class of torch's that inherits from its own
    return (module for module in base.modules() if any(kind.__name__ in kinds for kind in type(module).__mro__))


def merged(model: Any, base: nn.Module) -> Any:
    """Return a plain model with the adapters added into its weights.

    Args:
        model: the model that carries the adapters; its own weights may have been rounded for training.
        base: the same model with its weights as they are stored.
    Raises:
        DivergedError: if a sum is too large for the dtype that the base is stored in.
    """
    from peft import get_peft_model, set_peft_model_state_dict

    whole: Any = get_peft_model(base, copy.deepcopy(model.peft_config["default"]))
    set_peft_model_state_dict(whole, _weights(model))
    return merged_in_place(whole)


def merged_in_place(adapted: Any) -> Any:
    """Return a plain model with the adapters that a model carries added into its own weights.

    Raises:
        DivergedError: if a sum is too large for the dtype that the base is stored in.
    """
    plain = adapted.merge_and_unload()
    if (key := first_not_finite(plain.state_dict().items())) is not None:
        dtype = dtype_name(plain.state_dict()[key].dtype)
        raise DivergedError(
            f"merged into the base model, which is stored in {dtype}, the adapter makes {key} not finite; "
            "the checkpoints have the adapter by itself"
        )
    return plain


def merge_saved(base: nn.Module, directory: Path) -> Any:
    """Return a plain model with a saved adapter added into its weights.

    Raises:
        ModelError: if the adapter cannot be made again on this model.
        CheckpointError: if its weights do not fit, or are not finite.
    """
    whole: Any = add_lora(base, directory, 0, "")
    load_weights(whole, directory)
    return whole.merge_and_unload()
