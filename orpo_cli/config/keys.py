"""The keys of the configuration: their sections, which may change on resume, and what to say of an unknown one."""

import difflib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, fields, is_dataclass
from pathlib import Path
from typing import Any

from orpo_cli.config import adapter, data, evaluation, generation, optimization, schema, tracking
from orpo_cli.config.sweep import SWEEP_KEYS

SECTIONS: dict[str, type | dict[str, type]] = {
    "model": schema.ModelConfig,
    "data": data.DataConfig,
    "loss": schema.LossConfig,
    "adapter": adapter.ADAPTERS,
    "optimizer": optimization.OPTIMIZERS,
    "scheduler": optimization.SCHEDULERS,
    "trainer": schema.TrainerConfig,
    "tracker": tracking.TrackerConfig,
}
"""The class of each section, or its variants by their names."""

LENGTH = ("trainer.epochs", "trainer.max_steps")
"""Keys that say how long a run is; on resume the schedule of the steps that are left is that of the new length."""

FREE_KEYS = (
    *LENGTH,
    "data.workers",
    "model.save_dtype",
    "trainer.device",
    "trainer.processes",
    "trainer.parallel",
    "trainer.max_tokens",
    "trainer.eval_max_tokens",
    "trainer.layout",
    "trainer.gradient_checkpointing",
    "trainer.fit",
    "trainer.eval_every",
    "trainer.save_every",
    "trainer.log_every",
    "trainer.keep_last",
    "trainer.keep_best",
    "trainer.early_stop",
    "trainer.result",
    "trainer.on_nonfinite",
    "trainer.max_skipped",
    "trainer.on_spike",
    "trainer.on_save_error",
    "trainer.max_time",
    "trainer.timeout",
    "trainer.sample_tokens",
    "trainer.sample_every",
    "tracker.name",
    "tracker.project",
    "tracker.run_name",
    "tracker.entity",
    "tracker.uri",
)
"""Keys that may change on resume; all others but the run's folder decide what is computed."""

PLACES = ("data.path", "data.eval_path", "model.path", "model.revision", "model.base")
"""Keys that say where data and model are; on resume their content must be the same, not their place."""

OWN_KEYS = {"evaluate": evaluation.EVALUATION_KEYS, "generate": generation.GENERATION_KEYS}
"""Root -> the root keys that it has besides those of a run."""

CODE_KEYS = {"_target_", "_partial_", "_recursive_"}
"""Keys that make Hydra call what a value names."""

NAMES_ELSEWHERE = {
    "alpha": "lambda",
    "beta": "lambda",
    "learning_rate": "optimizer.lr",
    "optim": "optimizer",
    "lr_scheduler_type": "scheduler",
    "batch_size": "trainer.pairs_per_step",
    "num_train_epochs": "trainer.epochs",
    "eval_steps": "trainer.eval_every",
    "save_steps": "trainer.save_every",
    "logging_steps": "trainer.log_every",
    "model_name_or_path": "model",
    "dataset_name": "data",
    "moe_aux_loss_coef": "loss.router_aux_loss_coef",
    "lora_r": "adapter.rank",
    "lora_alpha": "adapter.alpha",
    "lora_dropout": "adapter.dropout",
    "report_to": "tracker",
    "n_trials": "sweep.trials",
}
"""Names of keys in other tools, and here."""


def values_of(config: schema.RunConfig) -> dict[str, Any]:
    """Return the values of a run by the names that they have in YAML, those of a section in a dictionary."""
    return {"lambda" if key == "lambda_" else key: value for key, value in asdict(config).items()}


def dotted(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield nested values by their dotted keys."""
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from dotted(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", list(value) if isinstance(value, tuple) else value


def builtin_configs() -> Path:
    """Return the directory of YAML groups: inside an installed package, or at the top of a source tree."""
    package = Path(__file__).resolve().parent.parent
    installed = package / "configs"
    return installed if installed.is_dir() else package.parent / "configs"


def groups_without_default() -> set[str]:
    """Return the groups that a run has no option of unless one is chosen, such as `experiment`."""
    return {path.name for path in builtin_configs().iterdir() if path.is_dir()} - set(SECTIONS)


def section_keys(section: str, name: str | None = None) -> list[str]:
    """Return the keys of a section's variant `name`, or of all its variants if there is no such variant."""
    kinds = SECTIONS[section]
    if not isinstance(kinds, dict):
        kinds = {section: kinds}
    chosen = [kinds[name]] if name in kinds else kinds.values()
    return sorted({field.name for kind in chosen for field in fields(kind)})


def nested_kinds(kind: type) -> dict[str, type]:
    """Return the fields of a configuration class that hold keys of their own, with their classes."""
    return {
        field.name: field.type for field in fields(kind) if isinstance(field.type, type) and is_dataclass(field.type)
    }


def nearest(name: str, known: Iterable[str]) -> str:
    """Return a question with the closest known name, or the list of known names."""
    known = sorted(known)
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    return f"did you mean `{close[0]}`?" if close else "known: " + ", ".join(known)


def key_for(name: str) -> str | None:
    """Return the key that a name stands for: its own, one of another tool, or the last part of one key only."""
    section, _, leaf = name.partition(".")
    if name in (*schema.ROOT_KEYS, *SECTIONS, *SWEEP_KEYS) or (section in SECTIONS and leaf in section_keys(section)):
        return name
    owners = [f"{section}.{name}" for section in SECTIONS if name in section_keys(section)]
    return NAMES_ELSEWHERE.get(name) or (owners[0] if len(owners) == 1 else None)


def explain_unknown_key(full_key: str, config_names: Mapping[str, str] | None = None, root: str = "train") -> str:
    """Return why `full_key` is not a key, with the nearest one that is.

    Args:
        full_key: the dotted key, as typed.
        config_names: the variant in use, for each section with variants.
        root: the name of the root configuration, which may have keys of its own.
    """
    if full_key in groups_without_default():
        return f"`{full_key}` is a group without a default: choose one of its options with +{full_key}=..."
    if full_key in SWEEP_KEYS:
        return f"{full_key}: a sweep has this key, and no run: orpo train -m ... {full_key}=..."
    section, _, rest = full_key.partition(".")
    leaf = full_key.rpartition(".")[2]
    if leaf in NAMES_ELSEWHERE or leaf in schema.ROOT_KEYS:
        return f"unknown key `{full_key}`: did you mean `{NAMES_ELSEWHERE.get(leaf, leaf)}`?"
    if section not in SECTIONS or not rest:
        return f"unknown key `{full_key}`: {_nearest_root_key(full_key, OWN_KEYS.get(root, ()))}"
    name = (config_names or {}).get(section)
    where = f" in {section}={name}" if name else ""
    return f"unknown key `{full_key}`{where}: {_nearest_section_key(section, rest, name)}"


def _nearest_root_key(key: str, own: Sequence[str]) -> str:
    nested = [*(f"{name}.{leaf}" for name in SECTIONS for leaf in section_keys(name)), *SWEEP_KEYS]
    by_leaf = [name for name in nested if name.split(".")[1] == key]
    roots = [*own, *schema.ROOT_KEYS, *SECTIONS]
    close = by_leaf or difflib.get_close_matches(key, [*roots, *nested], n=1, cutoff=0.6)
    return f"did you mean `{close[0]}`?" if close else "known: " + ", ".join(roots)


def _nearest_section_key(section: str, key: str, name: str | None) -> str:
    kinds = SECTIONS[section]
    owners = [owner for owner in kinds if key in section_keys(section, owner)] if isinstance(kinds, dict) else []
    parts = {} if isinstance(kinds, dict) else nested_kinds(kinds)
    inside = [f"{part}.{field.name}" for part, kind in parts.items() for field in fields(kind)]
    keys = sorted([known for known in section_keys(section, name) if known not in parts] + inside)
    if owners:
        return f"it belongs to {section}={', '.join(owners)}" + (f"; its keys: {', '.join(keys)}" if name else "")
    close = difflib.get_close_matches(key, keys, n=1, cutoff=0.6)
    return f"did you mean `{section}.{close[0]}`?" if close else "its keys: " + ", ".join(keys)
