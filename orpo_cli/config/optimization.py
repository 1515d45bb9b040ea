"""The optimizer and scheduler sections: a class for each set of keys, with their types, limits and meanings."""

import math
from dataclasses import dataclass

from orpo_cli.config.limits import require


@dataclass(frozen=True)
class _Optimizer:
    name: str
    lr: float
    weight_decay: float

    def __post_init__(self) -> None:
        require(0 < self.lr < 1e38, "optimizer.lr", self.lr, "a number above 0 that fp32 can hold")
        require(0 <= self.weight_decay < math.inf, "optimizer.weight_decay", self.weight_decay, "0 or more")


def _check_momentum(momentum: float) -> None:
    require(0 <= momentum < 1, "optimizer.momentum", momentum, "0 or more and below 1")


def _check_adam(betas: list[float], eps: float) -> None:
    valid_betas = len(betas) == 2 and all(0 <= beta < 1 for beta in betas)
    require(valid_betas, "optimizer.betas", betas, "two numbers, 0 or more and below 1")
    require(0 < eps < math.inf, "optimizer.eps", eps, "a number above 0")


@dataclass(frozen=True)
class AdamWConfig(_Optimizer):
    """AdamW.

    name: adamw
    lr: highest learning rate
    weight_decay: weight decay of matrices; norms and biases have none
    betas: decay rates of the first and second moment
    eps: number added to the root of the second moment
    """

    betas: list[float]
    eps: float

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_adam(self.betas, self.eps)


@dataclass(frozen=True)
class AdafactorConfig(_Optimizer):
    """Adafactor.

    name: adafactor
    lr: highest learning rate
    weight_decay: weight decay of matrices; norms and biases have none
    beta2_decay: exponent by which the second moment's decay rate approaches 1 (below 0)
    """

    beta2_decay: float

    def __post_init__(self) -> None:
        super().__post_init__()
        require(-math.inf < self.beta2_decay < 0, "optimizer.beta2_decay", self.beta2_decay, "a number below 0")


@dataclass(frozen=True)
class SGDConfig(_Optimizer):
    """Stochastic gradient descent.

    name: sgd
    lr: highest learning rate
    weight_decay: weight decay of matrices; norms and biases have none
    momentum: momentum; 0 is none
    """

    momentum: float

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_momentum(self.momentum)


@dataclass(frozen=True)
class MuonConfig(_Optimizer):
    """Muon for the layers' matrices, AdamW for the rest.

    name: muon
    lr: highest learning rate, of Muon and of AdamW beside it
    weight_decay: weight decay of matrices; norms and biases have none
    momentum: momentum of Muon
    betas: decay rates of AdamW's first and second moment
    eps: number added to the root of AdamW's second moment
    """

    momentum: float
    betas: list[float]
    eps: float

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_momentum(self.momentum)
        _check_adam(self.betas, self.eps)


OptimizerConfig = AdamWConfig | AdafactorConfig | SGDConfig | MuonConfig


@dataclass(frozen=True)
class SchedulerConfig:
    """The learning rate over the steps.

    name: linear, cosine, constant, inverse_sqrt
    warmup_steps: steps until the full learning rate; if it is set, warmup_ratio is not used
    warmup_ratio: the same as a share of all steps
    min_lr_ratio: lowest learning rate after warm-up, as a share of optimizer.lr
    """

    name: str
    warmup_steps: int | None
    warmup_ratio: float | None
    min_lr_ratio: float

    def __post_init__(self) -> None:
        steps, ratio = self.warmup_steps, self.warmup_ratio
        require(steps is None or steps >= 0, "scheduler.warmup_steps", steps, "0 or more")
        require(ratio is None or 0 <= ratio <= 1, "scheduler.warmup_ratio", ratio, "0 to 1")
        require(0 <= self.min_lr_ratio <= 1, "scheduler.min_lr_ratio", self.min_lr_ratio, "0 to 1")


@dataclass(frozen=True)
class WsdConfig(SchedulerConfig):
    """Warm-up, stable, decay.

    name: wsd
    warmup_steps: steps until the full learning rate; if it is set, warmup_ratio is not used
    warmup_ratio: the same as a share of all steps
    min_lr_ratio: learning rate at the end, as a share of optimizer.lr
    decay_ratio: share of all steps, at the end, over which the learning rate falls
    """

    decay_ratio: float

    def __post_init__(self) -> None:
        super().__post_init__()
        require(0 <= self.decay_ratio <= 1, "scheduler.decay_ratio", self.decay_ratio, "0 to 1")


OPTIMIZERS: dict[str, type] = {"adamw": AdamWConfig, "adafactor": AdafactorConfig, "sgd": SGDConfig, "muon": MuonConfig}
SCHEDULERS: dict[str, type] = {
    **dict.fromkeys(("linear", "cosine", "constant", "inverse_sqrt"), SchedulerConfig), "wsd": WsdConfig
}  # fmt: skip
