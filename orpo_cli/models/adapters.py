"""Put LoRA adapters on a model with peft, load saved ones, and merge them into the weights."""

import contextlib
import copy
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import nn

from orpo_cli.config.adapter import ALL_LINEAR, FrozenConfig, LoraConfig, is_pattern
from orpo_cli.errors import CheckpointError, ConfigError, DivergedError, ModelError
from orpo_cli.models import adapter_inits
from orpo_cli.models.adapter_files import ADAPTER, adapter_settings
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
            adapted: Any = get_peft_model(model, _peft_config(**adapter_settings(settings)))
        except (ValueError, TypeError, AttributeError, KeyError) as error:
            raise ModelError(f"{settings}: the adapter does not fit the model: {first_line(error)}") from None
    else:
        adapted = _with_new_lora(model, settings, begins)
    _refuse_tied_targets(adapted, settings)
    for weight in adapted.parameters():
        if weight.requires_grad:
            weight.data = weight.data.float()  # a copy of a whole module has the dtype of the frozen one
    saved = adapted.peft_config["default"]
    saved.base_model_name_or_path, saved.revision = base_reference, revision  # peft puts the model's own path there
    result: nn.Module = adapted
    return result


def _with_new_lora(model: nn.Module, config: LoraConfig, begins: bool) -> Any:
    from peft import get_peft_model

    targets: Any = ALL_LINEAR if config.targets == [ALL_LINEAR] else config.targets
    if (layers := language_layers(model)) is not None:
        targets = [name for name in layers if targets == ALL_LINEAR or _is_one_of(targets, name)]
    settings = _peft_settings(config) | {"target_modules": targets}
    settings |= {"ensure_weight_tying": _is_tied(model) and bool(config.modules_to_save or config.train_tokens)}
    settings |= adapter_inits.peft_init(config) if begins else {}
    if targets == ALL_LINEAR or config.target_parameters:
        _check_experts(model, config)
    _check_names(model, config)
    try:
        adapted = get_peft_model(model, _peft_config(**settings))
    except ValueError as error:
        first = str(error).split(". ")[0]
        if not first.startswith("Target modules"):
            raise ConfigError(f"adapter: {first}") from None
        linear = ", ".join(_linear_names(model))
        raise ConfigError(f"adapter.targets={config.targets}: {first}; linear layers here: {linear}") from None
    if config.init != "eva":
        adapted.peft_config["default"].init_lora_weights = True  # what is saved says how it is loaded, not how it began
    if adapter_inits.replaces_base(config):
        adapter_inits.describe_as_saved(adapted)
        if begins:
            adapter_inits.keep_replaced_part(adapted)
    return adapted


def _peft_settings(config: LoraConfig) -> dict[str, Any]:
    return {
        "r": config.rank,
        "lora_alpha": config.alpha,
        "lora_dropout": config.dropout,
        "rank_pattern": dict(config.rank_pattern or {}),
        "alpha_pattern": dict(config.alpha_pattern or {}),
        "target_parameters": list(config.target_parameters) or None,
        "modules_to_save": list(config.modules_to_save) or None,
        "trainable_token_indices": list(config.train_tokens) or None,
        "use_dora": config.dora,
        "use_rslora": config.rslora,
    }


def _check_names(model: nn.Module, config: LoraConfig) -> None:
    """Refuse names of nothing in the model, which peft passes over."""
    modules = [name for name, _ in model.named_modules()]
    weights = [name for name, _ in model.named_parameters(remove_duplicate=False)]
    for key, names, there in (
        ("modules_to_save", config.modules_to_save, modules),
        ("target_parameters", config.target_parameters, weights),
        ("rank_pattern", config.rank_pattern or (), modules),
        ("alpha_pattern", config.alpha_pattern or (), modules),
    ):
        for name in names:
            if not any(re.fullmatch(rf"(.*\.)?({name})", one) for one in there):
                leaves = sorted({one.removesuffix(".weight").rpartition(".")[2] for one in there} - {""})
                named = ", ".join(leaf for leaf in leaves if not leaf.isdecimal())
                raise ConfigError(f"adapter.{key}: the model has no {name}; names here: {named}")


def _linear_names(model: nn.Module) -> list[str]:
    linear = (name for name, module in model.named_modules() if isinstance(module, nn.Linear))
    return sorted({name.rsplit(".", 1)[-1] for name in linear})


def _check_experts(model: nn.Module, config: LoraConfig) -> None:
    """Refuse experts as targets of more than plain LoRA: their weights are no modules of their own."""
    asked = {"dora": config.dora, "dropout": config.dropout, "init": config.init, "bits": config.bits}
    more = {key: value for key, value in asked.items() if value not in (False, 0, "default", "gaussian", None)}
    if not more or all(parameter.ndim < 3 for parameter in model.parameters()):
        return
    key, value = next(iter(more.items()))
    linear = ",".join(name for name in _linear_names(model) if name != "lm_head")
    raise ConfigError(
        f"adapter.{key}={str(value).lower()}: the experts of this model, which all-linear means too, take plain LoRA "
        f"alone; name other layers: adapter.targets=[{linear}]"
    )


def _is_tied(model: Any) -> bool:
    ends = (model.get_input_embeddings(), model.get_output_embeddings())
    return None not in ends and ends[0].weight is ends[1].weight


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


def language_layers(model: Any) -> list[str] | None:
    """Return the names of the linear layers of the language part; None where the model has no other part."""
    inside, head = {id(module) for module in model.get_decoder().modules()}, model.get_output_embeddings()
    linear = {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    of_language = [name for name, module in linear.items() if id(module) in inside]
    has_other_part = any(module is not head for name, module in linear.items() if name not in of_language)
    return of_language if has_other_part else None


def _is_one_of(targets: list[str] | str, name: str) -> bool:
    if isinstance(targets, str):
        return re.fullmatch(targets, name) is not None
    return any(name == target or name.endswith(f".{target}") for target in targets)


def _peft_config(**settings: Any) -> Any:
    from peft import LoraConfig as PeftLoraConfig

    return PeftLoraConfig(**settings, task_type="CAUSAL_LM")


def _refuse_tied_targets(adapted: Any, settings: Settings) -> None:
    """Refuse an adapter on one of two layers that share a matrix: merged, it would change both."""
    base = adapted.get_base_model()
    ends = (base.get_input_embeddings(), base.get_output_embeddings())
    if _is_tied(base) and any(hasattr(end, "base_layer") for end in ends):
        what = settings if isinstance(settings, Path) else f"adapter.targets={settings.targets}"
        raise ConfigError(
            f"{what}: embeddings and head of this model share their weights, "
            "so that an adapter on one of them cannot be merged; leave both out"
        )


def token_ids(tokenizer: Any, tokens: Sequence[str | int]) -> list[int]:
    """Return the ids of tokens that are given as text or as ids.

    Raises:
        ConfigError: if the tokenizer has no such token.
    """
    known = tokenizer.get_vocab()
    ids = [known.get(token) if isinstance(token, str) else token for token in tokens]
    for token, number in zip(tokens, ids, strict=True):
        if number is None or not 0 <= number < len(tokenizer):
            raise ConfigError(f"adapter.train_tokens: {token} is no token of this model's tokenizer")
    return list(dict.fromkeys(number for number in ids if number is not None))


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
    """Return whether saved adapters change the model: each is a product whose second factor begins as zeros."""
    with safe_open(path, framework="pt") as tensors:
        return any(bool(tensors.get_tensor(name).any()) for name in tensors.keys() if "lora_B" in name)  # noqa: SIM118


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
