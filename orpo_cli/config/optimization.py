"""The optimizer and scheduler sections: a class for each set of keys, with their types, limits and meanings."""

import math
from dataclasses import dataclass

from orpo_cli.config.limits import require, require_installed


@dataclass(frozen=True)
class _Optimizer:
    name: str
    lr: float
    weight_decay: float
    layer_lr_decay: float

    def __post_init__(self) -> None:
        require(0 < self.lr < 1e38, "optimizer.lr", self.lr, "a number above 0 that fp32 can hold")
        require(0 <= self.weight_decay < math.inf, "optimizer.weight_decay", self.weight_decay, "0 or more")
        decay = self.layer_lr_decay
        require(0 < decay <= 1, "optimizer.layer_lr_decay", decay, "above 0, 1 at most")


def _check_momentum(momentum: float) -> None:
    require(0 <= momentum < 1, "optimizer.momentum", momentum, "0 or more and below 1")


def _check_betas(betas: list[float]) -> None:
    valid_betas = len(betas) == 2 and all(0 <= beta < 1 for beta in betas)
    require(valid_betas, "optimizer.betas", betas, "two numbers, 0 or more and below 1")


def _check_adam(betas: list[float], eps: float) -> None:
    _check_betas(betas)
    require(0 < eps < math.inf, "optimizer.eps", eps, "a number above 0")


@dataclass(frozen=True)
class AdamWConfig(_Optimizer):
    """AdamW.

    name: adamw
    lr: highest learning rate
    weight_decay: weight decay of matrices; norms and biases have none
    layer_lr_decay: factor of the learning rate for each layer above a weight; 1 gives all weights the same rate
    betas: decay rates of the first and second moment
    eps: number added to the root of the second moment
    """

    betas: list[float]
    eps: float

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_adam(self.betas, self.eps)


@dataclass(frozen=True)
class AdamW8bitConfig(AdamWConfig):
    """AdamW whose two moments have 8 bits a weight (bitsandbytes); those of fewer than 4096 weights have 32.

    name: adamw_8bit, or paged_adamw_8bit, whose moments leave a GPU that is full for main memory
    lr: highest learning rate
    weight_decay: weight decay of matrices; norms and biases have none
    layer_lr_decay: factor of the learning rate for each layer above a weight; 1 gives all weights the same rate
    betas: decay rates of the first and second moment
    eps: number added to the root of the second moment
    """


@dataclass(frozen=True)
class ScheduleFreeAdamWConfig(AdamWConfig):
    """AdamW whose result is an average of its weights, which takes the place of a schedule (schedulefree).

    name: schedule_free_adamw
    lr: learning rate after the warm-up of the scheduler, which must be constant
    weight_decay: weight decay of matrices; norms and biases have none
    layer_lr_decay: factor of the learning rate for each layer above a weight; 1 gives all weights the same rate
    betas: share of the average in the weights that a step is taken from (above 0), and decay rate of the second moment
    eps: number added to the root of the second moment
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.betas[0] > 0, "optimizer.betas", self.betas, "two numbers below 1, the first above 0")


@dataclass(frozen=True)
class StableAdamWConfig(AdamWConfig):
    """AdamW that takes a smaller step where the gradient is large for its second moment (optimi).

    name: stable_adamw
    lr: highest learning rate
    weight_decay: weight decay of matrices; norms and biases have none
    layer_lr_decay: factor of the learning rate for each layer above a weight; 1 gives all weights the same rate
    betas: decay rates of the first and second moment
    eps: number added to the root of the second moment
    """


@dataclass(frozen=True)
class LionConfig(_Optimizer):
    """Lion: every weight moves by the learning rate, up or down (optimi).

    name: lion
    lr: highest learning rate, a third to a tenth of AdamW's
    weight_decay: weight decay of matrices; norms and biases have none
    layer_lr_decay: factor of the learning rate for each layer above a weight; 1 gives all weights the same rate
    betas: shares of the gradients before, in the sign that a step takes and in the average that is kept
    """

    betas: list[float]

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_betas(self.betas)


@dataclass(frozen=True)
class AdafactorConfig(_Optimizer):
    """Adafactor.

    name: adafactor
    lr: highest learning rate
    weight_decay: weight decay of matrices; norms and biases have none
    layer_lr_decay: factor of the learning rate for each layer above a weight; 1 gives all weights the same rate
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
    layer_lr_decay: factor of the learning rate for each layer above a weight; 1 gives all weights the same rate
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
    layer_lr_decay: factor of the learning rate for each layer above a weight; 1 gives all weights the same rate
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


OptimizerConfig = (
    AdamWConfig
    | AdamW8bitConfig
    | ScheduleFreeAdamWConfig
    | StableAdamWConfig
    | LionConfig
    | AdafactorConfig
    | SGDConfig
    | MuonConfig
)


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


OPTIMIZERS: dict[str, type] = {
    "adamw": AdamWConfig, "adafactor": AdafactorConfig, "sgd": SGDConfig, "muon": MuonConfig,
    "adamw_8bit": AdamW8bitConfig, "paged_adamw_8bit": AdamW8bitConfig, "lion": LionConfig,
    "schedule_free_adamw": ScheduleFreeAdamWConfig, "stable_adamw": StableAdamWConfig,
}  # fmt: skip
SCHEDULERS: dict[str, type] = {
    **dict.fromkeys(("linear", "cosine", "constant", "inverse_sqrt"), SchedulerConfig), "wsd": WsdConfig
}  # fmt: skip

LIBRARIES = {
    "adamw_8bit": "bitsandbytes", "paged_adamw_8bit": "bitsandbytes", "lion": "optimi", "stable_adamw": "optimi",
    "schedule_free_adamw": "schedulefree",
}  # fmt: skip
"""The module of an optimizer that is not torch's, which is also the name of the extra."""

WHOLE_WEIGHTS = {
    "adafactor": "torch's Adafactor", "adamw_8bit": "bitsandbytes", "paged_adamw_8bit": "bitsandbytes"
}  # fmt: skip
"""Optimizers that cannot work on slices of weights, and whose they are."""


def check_library(optimizer: OptimizerConfig) -> None:
    """Refuse an optimizer whose library is not installed.

    Raises:
        ConfigError: if it is not.
    """
    library = LIBRARIES.get(optimizer.name)
    if library is not None:
        require_installed(f"optimizer={optimizer.name}", library, library)
