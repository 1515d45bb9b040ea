"""Optimizers and schedules: names, types, limits and meaning of their keys, a class for each set of keys."""

import math
from dataclasses import dataclass
from typing import Any

from orpo_cli.config.limits import require


def _check_optimizer(config: Any) -> None:
    require(0 < config.lr < 1e38, "optimizer.lr", config.lr, "a number above 0 that fp32 can hold")
    require(0 <= config.weight_decay < math.inf, "optimizer.weight_decay", config.weight_decay, "0 or more")


def _check_adam(config: Any) -> None:
    valid_betas = len(config.betas) == 2 and all(0 <= beta < 1 for beta in config.betas)
    require(valid_betas, "optimizer.betas", config.betas, "two numbers, 0 or more and below 1")
    require(0 < config.eps < math.inf, "optimizer.eps", config.eps, "a number above 0")


def _check_momentum(config: Any) -> None:
    require(0 <= config.momentum < 1, "optimizer.momentum", config.momentum, "0 or more and below 1")


@dataclass(frozen=True)
class AdamWConfig:
    """AdamW.

    name: adamw
    lr: learning rate at its highest
    weight_decay: on matrices; norms and biases are not decayed
    betas: decay rates of the first and second moment
    eps: added to the root of the second moment
    """

    name: str
    lr: float
    weight_decay: float
    betas: list[float]
    eps: float

    def __post_init__(self) -> None:
        _check_optimizer(self)
        _check_adam(self)


@dataclass(frozen=True)
class AdafactorConfig:
    """Adafactor.

    name: adafactor
    lr: learning rate at its highest
    weight_decay: on matrices; norms and biases are not decayed
    beta2_decay: exponent by which the second moment's decay rate approaches 1 (below 0)
    """

    name: str
    lr: float
    weight_decay: float
    beta2_decay: float

    def __post_init__(self) -> None:
        _check_optimizer(self)
        require(-math.inf < self.beta2_decay < 0, "optimizer.beta2_decay", self.beta2_decay, "a number below 0")


@dataclass(frozen=True)
class SGDConfig:
    """Stochastic gradient descent.

    name: sgd
    lr: learning rate at its highest
    weight_decay: on matrices; norms and biases are not decayed
    momentum: 0 is none
    """

    name: str
    lr: float
    weight_decay: float
    momentum: float

    def __post_init__(self) -> None:
        _check_optimizer(self)
        _check_momentum(self)


@dataclass(frozen=True)
class MuonConfig:
    """Muon for the layers' matrices, AdamW for the rest.

    name: muon
    lr: learning rate at its highest, for both
    weight_decay: on matrices; norms and biases are not decayed
    momentum: of Muon
    betas: of AdamW
    eps: of AdamW
    """

    name: str
    lr: float
    weight_decay: float
    momentum: float
    betas: list[float]
    eps: float

    def __post_init__(self) -> None:
        _check_optimizer(self)
        _check_momentum(self)
        _check_adam(self)


OptimizerConfig = AdamWConfig | AdafactorConfig | SGDConfig | MuonConfig


def _check_scheduler(config: Any) -> None:
    steps, ratio = config.warmup_steps, config.warmup_ratio
    require(steps is None or steps >= 0, "scheduler.warmup_steps", steps, "0 or more")
    require(ratio is None or 0 <= ratio <= 1, "scheduler.warmup_ratio", ratio, "0 to 1")
    require(0 <= config.min_lr_ratio <= 1, "scheduler.min_lr_ratio", config.min_lr_ratio, "0 to 1")


@dataclass(frozen=True)
class SchedulerConfig:
    """The learning rate over the steps.

    name: linear, cosine, constant, inverse_sqrt
    warmup_steps: steps until the full learning rate; where set, warmup_ratio is not used
    warmup_ratio: the same as a share of all steps
    min_lr_ratio: the lowest learning rate after warm-up, as a share of optimizer.lr
    """

    name: str
    warmup_steps: int | None
    warmup_ratio: float | None
    min_lr_ratio: float

    def __post_init__(self) -> None:
        _check_scheduler(self)


@dataclass(frozen=True)
class WsdConfig:
    """Warm-up, stable, decay.

    name: wsd
    warmup_steps: steps until the full learning rate; where set, warmup_ratio is not used
    warmup_ratio: the same as a share of all steps
    min_lr_ratio: the learning rate at the end, as a share of optimizer.lr
    decay_ratio: share of all steps over which it falls, at the end
    """

    name: str
    warmup_steps: int | None
    warmup_ratio: float | None
    min_lr_ratio: float
    decay_ratio: float

    def __post_init__(self) -> None:
        _check_scheduler(self)
        require(0 <= self.decay_ratio <= 1, "scheduler.decay_ratio", self.decay_ratio, "0 to 1")


AnySchedulerConfig = SchedulerConfig | WsdConfig


OPTIMIZERS: dict[str, type] = {"adamw": AdamWConfig, "adafactor": AdafactorConfig, "sgd": SGDConfig, "muon": MuonConfig}
SCHEDULERS: dict[str, type] = {
    "linear": SchedulerConfig,
    "cosine": SchedulerConfig,
    "constant": SchedulerConfig,
    "inverse_sqrt": SchedulerConfig,
    "wsd": WsdConfig,
}
