"""The keys of what is trained: every weight, some of them, or an adapter beside weights that stay as they are."""

import math
import re
from dataclasses import dataclass
from typing import Any

from orpo_cli.config.limits import require, require_choice
from orpo_cli.errors import ConfigError

ALL_LINEAR = "all-linear"
"""The target that stands for every linear layer but the head."""

INITS = ("default", "gaussian", "orthogonal", "eva", "pissa", "olora")
"""The ways in which a new adapter begins."""

REPLACES_BASE = ("pissa", "olora")
"""The inits that take a part of the base weights into the adapter, so that the base is another while it is trained."""


@dataclass(frozen=True)
class NoAdapterConfig:
    """Full fine-tuning.

    name: none
    default_lr: learning rate for optimizers that do not bring their own
    """

    name: str
    default_lr: float


@dataclass(frozen=True)
class FrozenConfig(NoAdapterConfig):
    """Full fine-tuning of some weights; the others stay as they are.

    name: frozen
    default_lr: learning rate for optimizers that do not bring their own
    layers: how many of the last layers are trained
    train: modules that are trained too: names as norm or lm_head, or one pattern for whole names of weights
    """

    layers: int
    train: Any

    def __post_init__(self) -> None:
        require(self.layers >= 0, "adapter.layers", self.layers, "0 or more")
        object.__setattr__(self, "train", names_or_pattern("adapter.train", self.train))
        require(self.layers > 0 or self.train != [], "adapter.train", self.train, "a module name where layers is 0")

    @property
    def in_words(self) -> str:
        """Return which weights are trained, in one line."""
        layers = [f"the last {self.layers} layers"] if self.layers else []
        return ", ".join([*layers, *([self.train] if isinstance(self.train, str) else self.train)])


@dataclass(frozen=True)
class LoraConfig:
    """Low-rank adapters beside frozen weights.

    name: lora
    default_lr: learning rate for optimizers that do not bring their own
    rank: rank of the two matrices
    alpha: the update is scaled by alpha / rank, with rslora by alpha / sqrt(rank)
    dropout: dropout on the adapter's input
    targets: modules that get an adapter: names, one pattern for whole names, or all-linear (every one but the head)
    target_parameters: weights that get one and are no module of their own, as mlp.experts.down_proj of a mixture
    rank_pattern: other ranks by name or pattern, as in {q_proj: 32}, or null
    alpha_pattern: other alphas by name or pattern, or null
    modules_to_save: modules that are trained as a whole and saved with the adapter, as [embed_tokens, lm_head]
    train_tokens: tokens, or their ids, whose rows of the embeddings are trained with the adapter
    init: default (adds nothing at first), gaussian, orthogonal, eva (from the data); pissa, olora (from the weights)
    dora: true trains a magnitude for each output of a target as well (DoRA)
    rslora: true scales by alpha / sqrt(rank), so that the update does not shrink as rank grows
    bits: 4 or 8 keeps the frozen linear layers in so many bits (bitsandbytes); null as the model is
    merge: true saves model/ with the adapter merged into the weights, false saves the adapter
    """

    name: str
    default_lr: float
    rank: int
    alpha: float
    dropout: float
    targets: Any
    target_parameters: list[str]
    rank_pattern: dict[str, int] | None
    alpha_pattern: dict[str, float] | None
    modules_to_save: list[str]
    train_tokens: list[Any]
    init: str
    dora: bool
    rslora: bool
    bits: int | None
    merge: bool

    def __post_init__(self) -> None:
        require(self.rank >= 1, "adapter.rank", self.rank, "1 or more")
        require(0 < self.alpha < math.inf, "adapter.alpha", self.alpha, "above 0")
        require(0 <= self.dropout < 1, "adapter.dropout", self.dropout, "0 or more and below 1")
        object.__setattr__(self, "targets", names_or_pattern("adapter.targets", self.targets))
        has_target = len(self.targets) + len(self.target_parameters) > 0
        require(has_target, "adapter.targets", self.targets, "at least one module name")
        for pattern in (*(self.rank_pattern or ()), *(self.alpha_pattern or ())):
            _check_pattern("adapter.rank_pattern, alpha_pattern", pattern)
        for name, rank in (self.rank_pattern or {}).items():
            require(rank >= 1, f"adapter.rank_pattern.{name}", rank, "1 or more")
        for name, alpha in (self.alpha_pattern or {}).items():
            require(0 < alpha < math.inf, f"adapter.alpha_pattern.{name}", alpha, "above 0")
        for token in self.train_tokens:
            require(isinstance(token, str | int), "adapter.train_tokens", token, "tokens as text, or ids")
        require_choice("adapter.init", self.init, INITS)
        _check_bits(self.bits)
        self._check_together()

    @property
    def in_words(self) -> str:
        """Return the kind, sizes and targets of the adapter, in one line."""
        kind = ("rs" if self.rslora else "") + ("DoRA" if self.dora else "LoRA")
        targets = [*(self.targets if isinstance(self.targets, list) else [self.targets]), *self.target_parameters]
        parts = [f"{kind} of rank {self.rank}, alpha {self.alpha:g}, on {', '.join(targets)}"]
        parts += [f"init {self.init}"] if self.init != "default" else []
        whole = [*self.modules_to_save, *map(str, self.train_tokens)]
        parts += [f"with {', '.join(whole)}"] if whole else []
        return ", ".join([*parts, *([f"base in {self.bits} bits"] if self.bits else [])])

    def _check_together(self) -> None:
        """Refuse what cannot be trained together, in the words of this tool instead of peft's."""
        odd = next((rank for rank in (self.rank, *(self.rank_pattern or {}).values()) if rank % 2), None)
        if self.init == "orthogonal" and odd is not None:
            raise ConfigError(f"adapter.init=orthogonal: needs an even rank, not {odd}")
        splits = self.init in REPLACES_BASE
        with_dora = "adapter.dora=true" if splits and self.dora else None
        with_bits = f"adapter.bits={self.bits}" if self.bits and (splits or self.init == "orthogonal") else None
        if with_dora or with_bits:
            raise ConfigError(
                f"adapter.init={self.init} with {with_dora or with_bits}: this init needs a base whose weights are "
                "plain; adapter.init=default, gaussian and eva do not"
            )
        if self.dora and self.bits == 8:
            raise ConfigError("adapter.dora=true with adapter.bits=8: DoRA needs a base in 4 bits, or as it is")
        if self.target_parameters:
            for key, given in (("dora", self.dora), ("dropout", self.dropout > 0), ("init", self.init != "default")):
                if given:
                    raise ConfigError(
                        f"adapter.{key}={str(getattr(self, key)).lower()} with adapter.target_parameters: adapters of "
                        "weights that are no module are plain LoRA without dropout"
                    )


@dataclass(frozen=True)
class SavedAdapterConfig:
    """The adapter that model.path names, trained further; rank, alpha, dropout and targets are its own.

    name: saved
    default_lr: learning rate for optimizers that do not bring their own
    bits: 4 or 8 keeps the frozen linear layers in so many bits (bitsandbytes); null as the model is
    merge: true saves model/ with the adapter merged into the weights, false saves the adapter
    """

    name: str
    default_lr: float
    bits: int | None
    merge: bool

    def __post_init__(self) -> None:
        _check_bits(self.bits)


AdapterConfig = NoAdapterConfig | FrozenConfig | LoraConfig | SavedAdapterConfig

ADAPTERS: dict[str, type] = {
    "none": NoAdapterConfig, "frozen": FrozenConfig, "lora": LoraConfig, "saved": SavedAdapterConfig
}  # fmt: skip


def bits_of(config: AdapterConfig) -> int | None:
    """Return in how many bits the frozen linear layers are kept; None for as the model is."""
    return config.bits if isinstance(config, LoraConfig | SavedAdapterConfig) else None


def is_pattern(name: str) -> bool:
    """Return whether a name of modules is a regular expression for their whole names."""
    return re.search(r"[*+?^$|()\[\]\\]", name) is not None


def _check_bits(bits: int | None) -> None:
    require(bits in (None, 4, 8), "adapter.bits", bits, "4, 8 or null")


def _check_pattern(key: str, pattern: str) -> None:
    try:
        re.compile(pattern)
    except re.error as error:
        raise ConfigError(f"{key}={pattern}: is no regular expression: {error}") from None


def names_or_pattern(key: str, given: Any) -> list[str] | str:
    """Return names in a list, or the one regular expression for whole names that was given instead.

    Raises:
        ConfigError: if it is neither.
    """
    if isinstance(given, str) and is_pattern(given):
        _check_pattern(key, given)
        return given
    names = [given] if isinstance(given, str) else given
    is_list_of_text = isinstance(names, list) and all(isinstance(name, str) and name for name in names)
    require(is_list_of_text, key, given, "names in a list, or one name or pattern")
    if (pattern := next(filter(is_pattern, names), None)) is not None:
        raise ConfigError(f"{key}: {pattern} is a pattern, which stands alone: {key}='{pattern}', or a|b for several")
    return list(names)
