"""Put a new LoRA adapter on a model, with the targets that the configuration names, and refuse names of nothing."""

import re
from collections.abc import Sequence
from typing import Any

from torch import nn

from orpo_cli.config.adapter import ALL_LINEAR, REPLACES_BASE, LoraConfig
from orpo_cli.errors import ConfigError
from orpo_cli.models import adapter_inits
from orpo_cli.quoting import first_line


def with_new_lora(model: nn.Module, config: LoraConfig, begins: bool) -> Any:
    """Put a new adapter beside the layers that a configuration names.

    Args:
        begins: whether its weights are those of `adapter.init`; without, any that will be replaced.
    Raises:
        ConfigError: if the model has not what the configuration names, or it cannot be trained so.
    """
    from peft import get_peft_model

    settings = _peft_settings(config) | _targets(model, config)
    settings |= {"ensure_weight_tying": is_tied(model) and bool(config.modules_to_save or config.train_tokens)}
    settings |= adapter_inits.peft_init(config) if begins else {}
    if settings["target_modules"] == ALL_LINEAR or settings["target_parameters"]:
        _check_experts(model, config)
    _check_names(model, config)
    try:
        adapted = get_peft_model(model, peft_config(**settings))
    except (ValueError, TypeError) as error:
        first = first_line(error).split(". ")[0]
        if not first.startswith("Target module"):
            raise ConfigError(f"adapter: {first}") from None
        linear = ", ".join(_linear_names(model))
        raise ConfigError(f"adapter.targets={config.targets}: {first}; linear layers here: {linear}") from None
    _check_layers(adapted, config, settings["target_modules"])
    _check_ranks(adapted, config)
    if config.init != "eva":
        adapted.peft_config["default"].init_lora_weights = True  # what is saved says how it is loaded, not how it began
    if config.init in REPLACES_BASE:
        adapter_inits.describe_as_saved(adapted)
        if begins:
            adapter_inits.begin_from_base(adapted, config.init)
    return adapted


def _targets(model: Any, config: LoraConfig) -> dict[str, Any]:
    """Return which modules and weights get an adapter.

    A pattern is applied here where the model has experts: peft would look for the last parts of the names that fit it
    in every layer.
    """
    targets: Any = ALL_LINEAR if config.targets == [ALL_LINEAR] else config.targets
    parameters = list(config.target_parameters)
    if (layers := language_layers(model)) is not None:
        targets = [name for name in layers if targets == ALL_LINEAR or _is_one_of(targets, name)]
    elif isinstance(config.targets, str) and (experts := _experts(model)):
        parameters += [name for name in experts if _is_one_of(config.targets, name)]
        linear = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
        fitting = [name for name in linear if _is_one_of(config.targets, name)]
        targets = fitting if fitting or parameters else config.targets
    return {"target_modules": targets, "target_parameters": parameters or None}


def _peft_settings(config: LoraConfig) -> dict[str, Any]:
    return {
        "r": config.rank,
        "lora_alpha": config.alpha,
        "lora_dropout": config.dropout,
        "rank_pattern": dict(config.rank_pattern or {}),
        "alpha_pattern": dict(config.alpha_pattern or {}),
        "modules_to_save": list(config.modules_to_save) or None,
        "trainable_token_indices": list(config.train_tokens) or None,
        "use_dora": config.dora,
        "use_rslora": config.rslora,
    }


def _check_names(model: Any, config: LoraConfig) -> None:
    """Refuse names of nothing in the model, which peft passes over."""
    modules = [name for name, _ in model.named_modules()]
    weights = [name for name, _ in model.named_parameters(remove_duplicate=False)]
    for key, names, there in (
        ("modules_to_save", config.modules_to_save, modules),
        ("target_parameters", config.target_parameters, weights),
    ):
        for name in names:
            parts = [one for one in there if f".{one}".endswith(f".{name}")]
            if key == "modules_to_save" and any(_is_quantized(model.get_submodule(one)) for one in parts):
                raise ConfigError(
                    f"adapter.modules_to_save=[{name}] with adapter.bits={config.bits}: its weights are quantized; let "
                    "adapter.targets name it instead, or leave adapter.bits out"
                )
            if not parts:
                leaves = sorted({one.removesuffix(".weight").rpartition(".")[2] for one in there} - {""})
                named = ", ".join(leaf for leaf in leaves if not leaf.isdecimal())
                raise ConfigError(f"adapter.{key}: the model has no {name}; names here: {named}")
    ends = (model.get_input_embeddings(), *([model.get_output_embeddings()] if is_tied(model) else []))
    whole = [name for name, module in model.named_modules() if any(module is end for end in ends)]
    for name in config.modules_to_save if config.train_tokens else ():
        if any(f".{one}".endswith(f".{name}") for one in whole):
            raise ConfigError(
                f"adapter.train_tokens with adapter.modules_to_save=[{name}]: it has all rows; leave one out"
            )


def _is_quantized(module: nn.Module) -> bool:
    return any(not weight.is_floating_point() for weight in module.parameters())


def _check_layers(adapted: Any, config: LoraConfig, targets: list[str] | str) -> None:
    """Refuse a pattern for layers beside experts that have names of experts, which peft puts an adapter on instead."""
    if not isinstance(config.targets, str) or not isinstance(targets, list):
        return
    layers = dict(adapted.get_base_model().named_modules())
    if (name := next((name for name in targets if not hasattr(layers[name], "lora_A")), None)) is not None:
        raise ConfigError(
            f"adapter.targets={config.targets}: fits {name}, which peft takes for an expert; leave such layers out"
        )


def _check_ranks(adapted: Any, config: LoraConfig) -> None:
    """Refuse ranks and alphas of layers that have no adapter, and ranks for which an init finds no directions."""
    layers = {name: layer for name, layer in adapted.named_modules() if hasattr(layer, "lora_A")}
    for key, names in (("rank_pattern", config.rank_pattern), ("alpha_pattern", config.alpha_pattern)):
        for name in names or ():
            if not any(re.fullmatch(rf"(.*\.)?({name})", layer) for layer in layers):
                leaves = ", ".join(sorted({layer.rpartition(".")[2] for layer in layers}))
                raise ConfigError(f"adapter.{key}: no layer with an adapter is called {name}; those are: {leaves}")
    for name, layer in layers.items() if config.init in (*REPLACES_BASE, "eva") else ():
        if isinstance(layer.get_base_layer(), nn.Embedding):
            raise ConfigError(
                f"adapter.init={config.init}: begins from linear layers, and {name.rpartition('.')[2]} is an "
                "embedding; leave it out of adapter.targets, or set adapter.init=default"
            )
        rank, sides = layer.r["default"], (layer.in_features, layer.out_features)
        if rank > min(sides):
            raise ConfigError(
                f"adapter.init={config.init}: {name.rpartition('.')[2]} is a matrix of {sides[1]} x {sides[0]}, which "
                f"has no {rank} directions to begin with; lower adapter.rank, or set adapter.rank_pattern"
            )


def _linear_names(model: nn.Module) -> list[str]:
    linear = (name for name, module in model.named_modules() if isinstance(module, nn.Linear))
    return sorted({name.rsplit(".", 1)[-1] for name in linear})


def _check_experts(model: nn.Module, config: LoraConfig) -> None:
    """Refuse experts as targets of more than plain LoRA: their weights are no modules of their own."""
    asked = {"dora": config.dora, "dropout": config.dropout, "init": config.init, "bits": config.bits}
    more = {key: value for key, value in asked.items() if value not in (False, 0, "default", "gaussian", None)}
    if not more or not _experts(model):
        return
    key, value = next(iter(more.items()))
    linear = ",".join(name for name in _linear_names(model) if name != "lm_head")
    instead = "leave adapter.target_parameters out, and name" if config.target_parameters else "name"
    raise ConfigError(
        f"adapter.{key}={str(value).lower()}: the experts of this model, which all-linear means too, take plain LoRA "
        f"alone; {instead} other layers: adapter.targets=[{linear}]"
    )


def _experts(model: nn.Module) -> list[str]:
    """Return the names of the weights that hold several matrices."""
    return [name for name, parameter in model.named_parameters() if parameter.ndim >= 3]


def is_tied(model: Any) -> bool:
    """Return whether embeddings and head of a transformers model are one matrix."""
    ends = (model.get_input_embeddings(), model.get_output_embeddings())
    return None not in ends and ends[0].weight is ends[1].weight


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


def peft_config(**settings: Any) -> Any:
    """Return peft's configuration of an adapter of a causal language model."""
    from peft import LoraConfig as PeftLoraConfig

    return PeftLoraConfig(**settings, task_type="CAUSAL_LM")


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
