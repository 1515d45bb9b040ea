"""Translate what the tools share: the arguments of transformers' Trainer, and those of adapters."""

import math
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from orpo_cli.config.adapter import INITS, is_pattern
from orpo_cli.config.optimization import OPTIMIZERS
from orpo_cli.config.tracking import TRACKERS
from orpo_cli.config.translation import Translation


def one_or_all(values: list[Any]) -> Any:
    """Return the value of a list that has one, else the list."""
    return values[0] if len(values) == 1 else values


def trainer(it: Translation, default_lr: float, default_epochs: int) -> None:
    """Translate the arguments of transformers' Trainer, which TRL and LLaMA-Factory have."""
    it.move(
        "num_train_epochs", "trainer.epochs", default_epochs, lambda count: whole_epochs(it, "num_train_epochs", count)
    )
    optimizer(it, "optim", default_lr)
    scheduler(it, "lr_scheduler_type")
    trackers = it.get("report_to", [])
    named = [trackers] if isinstance(trackers, str) else trackers
    known = [name for name in named if name in TRACKERS]
    if known:
        it.set("tracker.name", one_or_all(known), "report_to")
    for name in ("eval_strategy", "save_strategy"):
        if it.get(name) == "epoch":
            it.differs.append(f"{name}: epoch: evaluations and checkpoints are counted in steps")
    shared(it)


def shared(it: Translation) -> None:
    """Translate what axolotl calls as the Trainer does."""
    steps = it.get("max_steps", -1)
    if steps > 0:
        it.set("trainer.max_steps", steps, "max_steps")
    for name, key in (("eval_steps", "trainer.eval_every"), ("save_steps", "trainer.save_every"),
                      ("logging_steps", "trainer.log_every")):  # fmt: skip
        count = it.get(name)
        if isinstance(count, int | float) and count >= 1:
            it.set(key, int(count), name)
        elif count:
            it.differs.append(f"{name}: {count}: a share of the steps; {key} is a number of steps")
    _moments(it)
    it.move("attn_implementation", "model.attn_implementation")
    it.move("run_name", "tracker.run_name")
    if it.get("load_best_model_at_end"):
        it.set("trainer.keep_best", "nll", "load_best_model_at_end")
        it.set("trainer.result", "best", "load_best_model_at_end")
        it.used.add("metric_for_best_model")
    it.move("save_total_limit", "trainer.keep_last")
    it.move("max_grad_norm", "trainer.max_grad_norm")
    it.move("gradient_checkpointing", "trainer.gradient_checkpointing", convert=bool)
    it.move("seed", "seed")
    it.move("output_dir", "output_dir")
    if it.get("bf16") is True:
        it.set("trainer.precision", "bf16", "bf16")
    if it.get("fp16") is True:
        it.differs.append("fp16: products are computed in bf16, or in fp32 where the hardware has no bf16")
    if it.get("resume_from_checkpoint"):
        it.differs.append(
            "resume_from_checkpoint: checkpoints of other tools cannot be resumed; model=DIR starts from weights"
        )
    for name in ("deepspeed", "fsdp", "fsdp_config", "accelerator_config"):
        if it.get(name):
            it.differs.append(
                f"{name}: trainer.processes=N shares the pairs of a step; trainer.parallel=fsdp divides the weights too"
            )


_OPTIMIZERS = {
    "adamw_bnb_8bit": "adamw_8bit", "adamw_8bit": "adamw_8bit", "paged_adamw_8bit": "paged_adamw_8bit",
    "lion_32bit": "lion", "lion_pytorch": "lion", "schedule_free_adamw": "schedule_free_adamw",
    "stable_adamw": "stable_adamw",
}  # fmt: skip
"""Names of optimizers elsewhere, and here; others are found by the part of a name that says what they are."""

_WITHOUT_EQUIVALENT = ("schedule_free", "galore", "apollo")
"""Parts of names of optimizers that are not those that their other parts name."""


def optimizer(it: Translation, name: str, default_lr: float | None) -> None:
    chosen = it.get(name)
    if chosen is not None:
        _chosen_optimizer(it, name, str(chosen))
    it.move("learning_rate", "optimizer.lr", default_lr, float)
    it.move("weight_decay", "optimizer.weight_decay", convert=float)


def _chosen_optimizer(it: Translation, name: str, chosen: str) -> None:
    kinds = () if any(part in chosen for part in _WITHOUT_EQUIVALENT) else ("adamw", "adafactor", "sgd", "muon", "lion")
    kind = _OPTIMIZERS.get(chosen) or next((kind for kind in kinds if kind in chosen), None)
    it.set("optimizer.name", kind or "adamw", name)
    if kind is None:
        it.differs.append(f"{name}: {chosen} has no equivalent; this is AdamW")
    elif chosen not in _OPTIMIZERS and any(mark in chosen for mark in ("8bit", "4bit", "paged", "bnb")):
        it.differs.append(f"{name}: {chosen}: the optimizer's state is kept in fp32, and takes more memory")
    if kind in ("lion", "stable_adamw") and chosen != "lion_pytorch":  # which the Trainer gives what AdamW has
        it.set("optimizer.betas", [0.9, 0.999], "adam_beta1, adam_beta2, their defaults there")
    if kind == "stable_adamw":
        it.set("optimizer.eps", 1e-8, "adam_epsilon, its default there")


def _moments(it: Translation) -> None:
    """Translate what Adam's moments are computed with, where the optimizer has any."""
    keys = {field.name for field in fields(OPTIMIZERS[it.keys.get("optimizer.name", "adamw")])}
    betas, eps = [it.get("adam_beta1"), it.get("adam_beta2")], it.get("adam_epsilon")
    if betas != [None, None] and "betas" in keys:
        first, second = (value or default for value, default in zip(betas, (0.9, 0.999), strict=True))
        it.set("optimizer.betas", [first, second], "adam_beta1, adam_beta2")
    if eps is not None and "eps" in keys:
        it.set("optimizer.eps", eps, "adam_epsilon")


_SCHEDULERS = {
    "linear": "linear", "cosine": "cosine", "constant": "constant", "constant_with_warmup": "constant",
    "inverse_sqrt": "inverse_sqrt", "warmup_stable_decay": "wsd", "cosine_with_min_lr": "cosine",
}  # fmt: skip


def scheduler(it: Translation, name: str) -> None:
    chosen = it.get(name, "cosine" if it.tool == "axolotl" else "linear")
    it.set("scheduler.name", _SCHEDULERS.get(chosen, "linear"), name)
    if it.keys.get("optimizer.name") == "schedule_free_adamw":
        it.set("scheduler.name", "constant", "schedule_free_adamw, which needs no other")
        if _SCHEDULERS.get(chosen) != "constant":
            it.differs.append(f"{name}: {chosen}: with schedule_free_adamw the rate is constant after its warm-up")
    elif chosen not in _SCHEDULERS:
        it.differs.append(f"{name}: {chosen} has no equivalent; this is linear")
    for share in ("cosine_min_lr_ratio", "min_lr_rate"):
        it.move(share, "scheduler.min_lr_ratio", convert=float)
    steps, ratio = it.get("warmup_steps"), it.get("warmup_ratio")
    if steps is not None and steps >= 1:
        it.set("scheduler.warmup_steps", int(steps), "warmup_steps")
    elif ratio is not None or steps:
        it.set(
            "scheduler.warmup_ratio",
            float(ratio if ratio is not None else steps),
            "warmup_ratio" if ratio is not None else "warmup_steps",
        )
    elif it.tool != "axolotl":
        it.set("scheduler.warmup_ratio", 0.0, "warmup_steps, its default there")


def lora(
    it: Translation,
    source: str,
    uses: bool,
    rank: str,
    default_rank: int | None,
    default_alpha: int | None,
    default_dropout: float,
) -> None:
    given = (rank, "lora_alpha", "lora_dropout", "lora_target_modules", "lora_target", "lora_target_linear")
    if not uses:
        it.set("adapter.name", "none", "full fine-tuning")
        it.used |= set(given)
        return
    it.set("adapter.name", "lora", source)
    it.move(rank, "adapter.rank", default_rank)
    found = it.keys.get("adapter.rank")
    it.move("lora_alpha", "adapter.alpha", default_alpha or (2 * found if found else None))
    it.move("lora_dropout", "adapter.dropout", default_dropout, float)
    targets = it.get("lora_target_modules", it.get("lora_target"))
    if isinstance(targets, str) and not is_pattern(targets):
        targets = names(targets)
    everything = it.get("lora_target_linear", False) or targets in (["all"], ["all-linear"])
    if everything:
        targets = ["all-linear"]
    if targets:
        source = next(
            name
            for name in ("lora_target_linear", *given)
            if it.given.get(name) not in (None, False) and "target" in name
        )
        it.set("adapter.targets", targets, source)
    for name in ("use_dora", "peft_use_dora"):
        it.move(name, "adapter.dora", convert=bool)
    for name in ("use_rslora", "peft_use_rslora"):
        it.move(name, "adapter.rslora", convert=bool)
    for name in ("lora_modules_to_save", "additional_target"):
        it.move(name, "adapter.modules_to_save", convert=names)
    if (init := it.get("peft_init_lora_weights")) in INITS:
        it.set("adapter.init", init, "peft_init_lora_weights")
    if it.get("pissa_init"):
        it.set("adapter.init", "pissa", "pissa_init")
    it.move("lora_target_parameters", "adapter.target_parameters", convert=names)


def names(given: Any) -> list[str]:
    """Return names that stand in a list, or behind commas."""
    return [part.strip() for part in given.split(",")] if isinstance(given, str) else list(given)


def pairs_per_step(it: Translation, batch: str, accumulation: str, default: int) -> None:
    pairs = int(it.get(batch, default)) * int(it.get(accumulation, 1))
    it.set("trainer.pairs_per_step", pairs, f"{batch} times {accumulation}")
    it.differs.append(
        f"trainer.pairs_per_step: {pairs} is {batch} times {accumulation}, for one device; multiply it by the devices "
        "that you had. How a step is cut into micro-batches is found by memory and does not change the result"
    )


def quantized(it: Translation, bits_of: Mapping[str, Any]) -> None:
    """Quantize the base of an adapter as it was.

    Args:
        bits_of: settings, and the bits that each asks for where it is set; None for the number that it holds.
    """
    it.used |= {"bnb_4bit_quant_type", "use_bnb_nested_quant", "quantization_type", "quantization_method"}
    for name, bits in bits_of.items():
        wanted = it.get(name) and (bits or int(it.get(name)))
        if wanted in (4, 8) and it.keys["adapter.name"] == "lora":
            it.set("adapter.bits", wanted, name)
        elif wanted:
            it.differs.append(f"{name}: the base is not quantized here, so it takes more memory")


def weights_dtype(it: Translation, name: str) -> None:
    names = {"float32": "fp32", "bfloat16": "bf16", "auto": "auto"}
    chosen = it.get(name)
    it.used |= {"dtype", "torch_dtype"}
    if chosen in names:
        it.set("model.dtype", names[chosen], name)
    elif chosen is not None:
        it.differs.append(
            f"{name}: {chosen}: weights are fp32 where they are trained, bf16 or fp32 where they are frozen"
        )


def whole_epochs(it: Translation, name: str, count: Any) -> int:
    if float(count) != int(count):
        it.differs.append(f"{name}: {count} is rounded up to whole epochs; trainer.max_steps ends a run in between")
    return math.ceil(float(count))
