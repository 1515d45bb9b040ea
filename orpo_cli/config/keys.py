"""The keys of the configuration: the sections they are in, and what is said of one that is unknown."""

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path

from orpo_cli.config import optimization, preferences, schema

SECTIONS: dict[str, type | dict[str, type]] = {
    "model": schema.ModelConfig,
    "data": preferences.DataConfig,
    "loss": schema.LossConfig,
    "adapter": schema.ADAPTERS,
    "optimizer": optimization.OPTIMIZERS,
    "scheduler": optimization.SCHEDULERS,
    "trainer": schema.TrainerConfig,
}

CODE_KEYS = {"_target_", "_partial_", "_recursive_"}
"""Keys by which Hydra calls what a value names."""

NAMES_ELSEWHERE = {
    "alpha": "lambda",
    "beta": "lambda",
    "learning_rate": "optimizer.lr",
    "batch_size": "trainer.pairs_per_step",
}
"""What other tools call a key, and its name here."""


def builtin_configs() -> Path:
    """The directory of YAML groups: inside an installed package, or at the top of a source tree."""
    package = Path(__file__).resolve().parent.parent
    installed = package / "configs"
    return installed if installed.is_dir() else package.parent / "configs"


def nearest(name: str, known: Iterable[str]) -> str:
    """` (did you mean ...?)` with the closest known name, or the list of known names."""
    known = sorted(known)
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    return f"did you mean `{close[0]}`?" if close else "known: " + ", ".join(known)


def section_keys(section: str, name: str | None = None) -> list[str]:
    """Keys of a section; of all its variants where `name` is not one of them."""
    kinds = SECTIONS[section]
    if not isinstance(kinds, dict):
        kinds = {section: kinds}
    chosen = [kinds[name]] if name in kinds else kinds.values()
    return sorted({field.name for kind in chosen for field in fields(kind)})


def _dotted_keys(section: str, name: str | None) -> list[str]:
    """Keys of a section as they are typed, those inside a key included."""
    kinds = SECTIONS[section]
    parts = {} if isinstance(kinds, dict) else nested_kinds(kinds)
    inside = [f"{key}.{field.name}" for key, kind in parts.items() for field in fields(kind)]
    return sorted([key for key in section_keys(section, name) if key not in parts] + inside)


def explain_unknown_key(full_key: str, config_names: Mapping[str, str] | None = None) -> str:
    """Why `full_key` is not a key, with the nearest one that is.

    Args:
        full_key: dotted, as typed.
        config_names: for each section with variants, the variant in use.
    """
    if full_key in {path.name for path in builtin_configs().iterdir() if path.is_dir()} - set(SECTIONS):
        return f"`{full_key}` is a group that a run has no option of yet: write +{full_key}=..."
    section, _, rest = full_key.partition(".")
    leaf = full_key.rpartition(".")[2]
    if leaf in NAMES_ELSEWHERE or leaf in schema.ROOT_KEYS:
        return f"unknown key `{full_key}`: did you mean `{NAMES_ELSEWHERE.get(leaf, leaf)}`?"
    if section not in SECTIONS or not rest:
        return f"unknown key `{full_key}`: {_nearest_root_key(full_key)}"
    name = (config_names or {}).get(section)
    keys = _dotted_keys(section, name)
    where = f" in {section}={name}" if name else ""
    owners = _variants_with(section, rest)
    close = difflib.get_close_matches(rest, keys, n=1, cutoff=0.6)
    hint = f"did you mean `{section}.{close[0]}`?" if close else "its keys: " + ", ".join(keys)
    if owners:
        hint = f"it belongs to {section}={', '.join(owners)}" + (f"; its keys: {', '.join(keys)}" if name else "")
    return f"unknown key `{full_key}`{where}: {hint}"


def _nearest_root_key(key: str) -> str:
    nested = [f"{name}.{leaf}" for name in SECTIONS for leaf in section_keys(name)]
    by_leaf = [name for name in nested if name.split(".")[1] == key]
    close = by_leaf or difflib.get_close_matches(key, [*schema.ROOT_KEYS, *SECTIONS, *nested], n=1, cutoff=0.6)
    return f"did you mean `{close[0]}`?" if close else "known: " + ", ".join([*schema.ROOT_KEYS, *SECTIONS])


def _variants_with(section: str, key: str) -> list[str]:
    kinds = SECTIONS[section]
    return [name for name in kinds if key in section_keys(section, name)] if isinstance(kinds, dict) else []


def nested_kinds(kind: type) -> dict[str, type]:
    """The fields of a configuration class that hold keys of their own, with the class of each."""
    return {
        field.name: field.type for field in fields(kind) if isinstance(field.type, type) and is_dataclass(field.type)
    }


FREE_KEYS = (
    "data.workers",
    "trainer.device",
    "trainer.processes",
    "trainer.max_tokens",
    "trainer.eval_max_tokens",
    "trainer.layout",
    "trainer.gradient_checkpointing",
    "trainer.eval_every",
    "trainer.save_every",
    "trainer.log_every",
    "trainer.keep_last",
    "trainer.keep_best",
    "trainer.on_nonfinite",
    "trainer.max_skipped",
    "trainer.on_spike",
    "trainer.on_save_error",
    "trainer.max_time",
    "trainer.timeout",
    "trainer.sample_tokens",
)
"""Keys that may change on resume; of the others, all but those of the folder decide what is computed."""

PLACES = ("data.path", "data.eval_path", "model.path", "model.revision")
"""Keys that say where data and model are; these count by their content."""
