"""The names, types, limits and meanings of all keys. The values are in `configs/`, never here.

Each section is a frozen dataclass; `orpo train --help` prints the `key: meaning` lines of its docstring. Limits are
checked in `__post_init__`, written so that NaN fails them.
"""

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from orpo_cli.config.adapter import AdapterConfig, NoAdapterConfig, bits_of
from orpo_cli.config.data import DataConfig
from orpo_cli.config.limits import require, require_choice
from orpo_cli.config.optimization import WHOLE_WEIGHTS, OptimizerConfig, SchedulerConfig
from orpo_cli.config.tracking import TrackerConfig
from orpo_cli.errors import ConfigError


@dataclass(frozen=True)
class ModelConfig:
    """The model to fine-tune.

    path: local directory, hub id, or builtin:smollm2, builtin:tiny; the folder of a run, or an adapter to train further
    revision: branch, tag or commit on the hub; null is the default branch
    dtype: dtype of the weights in memory: auto (fp32 if they are trained, that of precision if frozen), fp32, bf16
    attn_implementation: sdpa, eager, flash_attention_2, ...; null leaves the choice to transformers
    chat_template: Jinja file that replaces the tokenizer's chat template, or builtin:zephyr; null keeps the tokenizer's
    chat_template_args: further arguments for the chat template, as in {enable_thinking: false}, or null
    base: base model of the adapter that path names; null takes the one that its adapter_config.json names
    save_dtype: dtype of model/: fp32, bf16, fp16; null keeps that of training, or for a merged model that of its base
    dropout: true applies the dropout of the model's config.json, and a step then depends on its cut; false applies none
    """

    path: str
    revision: str | None
    dtype: str
    attn_implementation: str | None
    chat_template: str | None
    chat_template_args: Any
    base: str | None
    save_dtype: str | None
    dropout: bool

    def __post_init__(self) -> None:
        given = self.chat_template_args
        require(given is None or isinstance(given, dict), "model.chat_template_args", given, "keys and values, or null")
        require(self.path.strip() != "", "model.path", "''", "a directory, a hub id or builtin:NAME")
        require_choice("model.dtype", self.dtype, ("auto", "fp32", "bf16"))
        if self.save_dtype is not None:
            require_choice("model.save_dtype", self.save_dtype, ("fp32", "bf16", "fp16"))


@dataclass(frozen=True)
class LossConfig:
    """The objective: nll + lambda * preference term.

    name: name of the preset, for the panel and the logs
    nll: tokens that the nll is taken over: chosen, prompt_and_chosen
    nll_average: sequence (mean over a response, then over pairs) or token (over all tokens of the step)
    preference: preference term: odds_ratio, log_ratio, none
    length_normalized: true scores a response by its mean log-probability, false by the sum
    label_smoothing: probability that a pair is labelled the wrong way round (0 to below 0.5)
    router_aux_loss_coef: factor of the load-balancing loss of a mixture of experts; auto: the model's own; 0: none
    """

    name: str
    nll: str
    nll_average: str
    preference: str
    length_normalized: bool
    label_smoothing: float
    router_aux_loss_coef: float | int | str

    def __post_init__(self) -> None:
        require_choice("loss.nll", self.nll, ("chosen", "prompt_and_chosen"))
        require_choice("loss.nll_average", self.nll_average, ("sequence", "token"))
        require_choice("loss.preference", self.preference, ("odds_ratio", "log_ratio", "none"))
        smoothing = self.label_smoothing
        require(0 <= smoothing < 0.5, "loss.label_smoothing", smoothing, "0 or more and below 0.5")
        factor = self.router_aux_loss_coef
        is_valid = factor == AUTO if isinstance(factor, str) else 0 <= factor < math.inf
        require(is_valid, "loss.router_aux_loss_coef", factor, "auto, or a number, 0 or more")


BETTER: dict[str, Callable[..., Any]] = {
    "loss": min, "nll_loss": min, "nll": min, "or_loss": min,
    "log_odds_ratio": max, "accuracy": max, "margin": max, "logps/chosen": max,
}  # fmt: skip
"""The metrics by which a checkpoint can be the best, and the function that returns the better of two values."""

AUTO = "auto"
"""The value of `resume` and `trainer.max_tokens` that the run finds out by itself."""

_DURATION = re.compile(r"(\d+)|(?:(\d+)d)?(?:(\d+)h)?(?:(\d+)m)?(?:(\d+)s)?|(\d+):([0-5]\d):([0-5]\d)")


def seconds_of(duration: int | str) -> int | None:
    """Return the seconds of `90`, `45m`, `1h30m`, `2d` or `HH:MM:SS`; None if it is nothing of the kind."""
    parts = _DURATION.fullmatch(str(duration))
    if parts is None:
        return None
    sizes = (1, 86400, 3600, 60, 1, 3600, 60, 1)
    return sum(size * int(part or 0) for size, part in zip(sizes, parts.groups(), strict=True))


@dataclass(frozen=True)
class TrainerConfig:
    """The loop. Mathematics: epochs, max_steps, pairs_per_step, max_grad_norm, precision. The rest: hardware, display.

    epochs: passes over the training pairs
    max_steps: optimizer steps; if it is set, epochs is not used
    pairs_per_step: pairs in one optimizer step, over all processes
    max_tokens: tokens of one micro-batch, padding included; a longer pair goes alone; auto is what memory allows
    eval_max_tokens: the same for evaluation, which keeps no activations
    layout: packed (one prompt for both responses, no padding) or padded (also used if the model needs it)
    precision: auto (bf16 if the hardware multiplies it, otherwise fp32), bf16, fp32
    device: auto, cpu, cuda, cuda:N, mps
    processes: processes on this machine, one for each device
    parallel: ddp splits the pairs of a step among the processes; fsdp also divides the weights among them
    gradient_checkpointing: true computes activations twice to hold fewer of them
    fit: auto sets parallel=fsdp and gradient_checkpointing=true where the longest pair does not fit without; null none
    max_grad_norm: norm to which larger gradients are scaled down; null never does
    eval_every: N: every N steps; null: only at start and end; auto: also in between, on some pairs, in 5 % of the time
    save_every: write a checkpoint every N steps; null only at the end
    log_every: print and record every Nth step
    keep_last: how many of the latest checkpoints are kept
    keep_best: metric (nll, accuracy, ...) by which the best checkpoint is kept too; of equals, that of the better nll
    early_stop: ends the run after N evaluations in a row without a better value of keep_best, or else nll; null never
    result: weights in model/: last (those after the last step) or best (those of the checkpoint of keep_best)
    on_nonfinite: halt at a step whose loss or gradient is not finite, or skip it
    max_skipped: how many steps of a run may be skipped before it stops
    on_spike: warn or halt at a loss that is 8 standard deviations above the last 50
    on_save_error: stop, or continue until the next checkpoint is due; the last one must succeed
    max_time: 3600, 45m, 1h30m, HH:MM:SS: time for the run with saving; only an unusually slow step or save exceeds it
    timeout: how many seconds one of several processes waits for another
    sample_tokens: most tokens of an answer to a held-out prompt, before and after training; 0 answers none
    sample_every: answer these prompts every N steps too; null only before and after training
    """

    epochs: int
    max_steps: int | None
    pairs_per_step: int
    max_tokens: int | str
    eval_max_tokens: int
    layout: str
    precision: str
    device: str
    processes: int
    parallel: str
    gradient_checkpointing: bool
    fit: str | None
    max_grad_norm: float | None
    eval_every: int | str | None
    save_every: int | None
    log_every: int
    keep_last: int
    keep_best: str | None
    early_stop: int | None
    result: str
    on_nonfinite: str
    max_skipped: int
    on_spike: str
    on_save_error: str
    max_time: int | str | None
    timeout: int
    sample_tokens: int
    sample_every: int | None

    @property
    def watched(self) -> str:
        """Return the metric whose improvement counts."""
        return self.keep_best or "nll"

    @property
    def max_seconds(self) -> int | None:
        """`max_time` in seconds."""
        return None if self.max_time is None else seconds_of(self.max_time)

    def __post_init__(self) -> None:
        auto_or_number = self.max_tokens == AUTO if isinstance(self.max_tokens, str) else self.max_tokens >= 1
        require(auto_or_number, "trainer.max_tokens", self.max_tokens, "auto, or a number, 1 or more")
        counts = "epochs pairs_per_step eval_max_tokens processes log_every keep_last max_skipped timeout"
        for key in counts.split():
            require(getattr(self, key) >= 1, f"trainer.{key}", getattr(self, key), "1 or more")
        require(self.processes <= 256, "trainer.processes", self.processes, "1 to 256")
        every = self.eval_every
        is_number_or_null = every is None or (isinstance(every, int) and every >= 1)
        require(is_number_or_null or every == AUTO, "trainer.eval_every", every, "1 or more, auto, or null")
        for key in ("max_steps", "save_every", "early_stop", "sample_every"):
            value = getattr(self, key)
            require(value is None or value >= 1, f"trainer.{key}", value, "1 or more, or null")
        norm = self.max_grad_norm
        require(norm is None or 0 < norm < math.inf, "trainer.max_grad_norm", norm, "a number above 0, or null")
        require(self.sample_tokens >= 0, "trainer.sample_tokens", self.sample_tokens, "0 or more")
        if self.sample_every is not None and self.sample_tokens == 0:
            raise ConfigError(
                f"trainer.sample_every={self.sample_every}: has no effect with trainer.sample_tokens=0, which answers "
                "no prompt"
            )
        self._check_best()
        require_choice("trainer.on_nonfinite", self.on_nonfinite, ("halt", "skip"))
        require_choice("trainer.on_spike", self.on_spike, ("warn", "halt"))
        require_choice("trainer.on_save_error", self.on_save_error, ("stop", "continue"))
        has_time = self.max_time is None or (self.max_seconds or 0) > 0
        require(has_time, "trainer.max_time", self.max_time, "seconds, a duration as 45m or 1h30m, HH:MM:SS, or null")
        require_choice("trainer.layout", self.layout, ("packed", "padded"))
        require_choice("trainer.precision", self.precision, ("auto", "bf16", "fp32"))
        require_choice("trainer.parallel", self.parallel, ("ddp", "fsdp"))
        require(self.fit in (None, AUTO), "trainer.fit", self.fit, "auto or null")
        device = self.device
        known = device in ("auto", "cpu", "cuda", "mps") or (device.startswith("cuda:") and device[5:].isdecimal())
        require(known, "trainer.device", device, "auto, cpu, cuda, cuda:N or mps")

    def _check_best(self) -> None:
        require_choice("trainer.result", self.result, ("last", "best"))
        if self.keep_best is not None:
            require_choice("trainer.keep_best", self.keep_best, tuple(BETTER))
            if not isinstance(self.eval_every, int):
                raise ConfigError(
                    f"trainer.keep_best={self.keep_best}: with trainer.eval_every={self.eval_every or 'null'} only the "
                    "last step is evaluated on all held-out pairs, so that no other can be the best; set "
                    "trainer.eval_every=N"
                )
        elif self.result == "best":
            raise ConfigError("trainer.result=best: needs a metric; set trainer.keep_best, as in trainer.keep_best=nll")
        if self.early_stop is not None and not isinstance(self.eval_every, int):
            raise ConfigError(
                f"trainer.early_stop={self.early_stop}: with trainer.eval_every={self.eval_every or 'null'} only the "
                "last step is evaluated on all held-out pairs; set trainer.eval_every=N"
            )


@dataclass(frozen=True)
class RootConfig:
    """Keys outside any section.

    lambda: weight of the preference term (the paper's lambda; `alpha` in the authors' code, `beta` in TRL)
    seed: seed of the order of the pairs, of the adapter's initial weights and of dropout
    resume: folder of the run to resume; auto resumes the run in output_dir, or begins it
    output_dir: folder of the run; in a sweep, the folder of the jobs' folders
    """

    lambda_: float
    seed: int
    resume: str | None
    output_dir: str

    def __post_init__(self) -> None:
        require(0 <= self.lambda_ < math.inf, "lambda", self.lambda_, "a number, 0 or more")
        require(0 <= self.seed < 2**32, "seed", self.seed, "0 to 4294967295")
        require(self.resume is None or self.resume.strip() != "", "resume", "''", "the folder of an earlier run")


ROOT_KEYS = {"lambda": "lambda_", "seed": "seed", "resume": "resume", "output_dir": "output_dir"}
"""Each root key of the YAML and its name in Python, where `lambda` is a reserved word."""


@dataclass(frozen=True)
class RunConfig(RootConfig):
    """A whole run: the root keys and one section for each group."""

    model: ModelConfig
    data: DataConfig
    loss: LossConfig
    adapter: AdapterConfig
    optimizer: OptimizerConfig
    scheduler: SchedulerConfig
    trainer: TrainerConfig
    tracker: TrackerConfig

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.loss.preference == "none" and self.lambda_ != 0:
            raise ConfigError(
                f"lambda={self.lambda_} with loss={self.loss.name}: this loss has no preference term to weigh; "
                "remove lambda, or choose loss=orpo"
            )
        name, schedule = self.optimizer.name, self.scheduler.name
        if self.trainer.parallel == "fsdp" and (whole := self.needs_whole_weights) is not None:
            raise ConfigError(f"trainer.parallel=fsdp with {whole} trainer.parallel=ddp")
        if name == "schedule_free_adamw" and schedule != "constant":
            raise ConfigError(
                f"scheduler={schedule} with optimizer={name}: its average takes the place of a schedule, and a rate "
                "that falls weighs the last steps less; choose scheduler=constant, which may warm up"
            )

    @property
    def needs_whole_weights(self) -> str | None:
        """Return what cannot work with slices of weights, and what to choose; None where nothing is in the way."""
        name, bits = self.optimizer.name, bits_of(self.adapter)
        if name in WHOLE_WEIGHTS:
            return f"optimizer={name}: {WHOLE_WEIGHTS[name]} needs whole weights; choose another optimizer, or"
        return f"adapter.bits={bits}: quantized weights are whole in each process; choose" if bits else None

    @property
    def merges(self) -> bool:
        """Return whether the trained adapter is merged into the model that is saved."""
        return not isinstance(self.adapter, NoAdapterConfig) and self.adapter.merge

    @property
    def saves_whole_model(self) -> bool:
        """Return whether what is saved is a whole model, no adapter."""
        return isinstance(self.adapter, NoAdapterConfig) or self.adapter.merge
