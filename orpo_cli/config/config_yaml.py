"""Write and read the config.yaml of a run's folder, which may be somebody else's folder."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from orpo_cli.config.keys import LENGTH, PLACES, SECTIONS, section_keys, values_of
from orpo_cli.config.load import as_literals, load_config
from orpo_cli.config.schema import RunConfig
from orpo_cli.errors import ConfigError, InputNotFoundError
from orpo_cli.files.untrusted import read_yaml

LATER_KEYS: dict[str, Any] = {
    "model.chat_template_args": None,
    "model.base": None,
    "model.save_dtype": None,
    "data.first_won": None,
    "data.second_won": None,
    "data.ignore_keys": [],
    "data.later_turns": "error",
    "data.fold_system": False,
    "model.dropout": True,
    "loss.router_aux_loss_coef": 0.0,
    "adapter.target_parameters": [],
    "adapter.rank_pattern": None,
    "adapter.alpha_pattern": None,
    "adapter.modules_to_save": [],
    "adapter.train_tokens": [],
    "adapter.init": "default",
    "adapter.dora": False,
    "adapter.rslora": False,
    "adapter.bits": None,
    "optimizer.layer_lr_decay": 1.0,
    "trainer.early_stop": None,
    "trainer.result": "last",
    "trainer.sample_every": None,
    "trainer.parallel": "ddp",
    "trainer.fit": None,
    "tracker.name": "none",
    "tracker.project": "orpo",
    "tracker.run_name": None,
    "tracker.entity": None,
    "tracker.uri": None,
    **{f"data.columns.{field}": None for field in ("input", "history", "messages", "response_a", "response_b")},
    **{f"data.columns.{field}": None for field in ("winner", "tie", "score_a", "score_b")},
}
"""Keys that the config.yaml of an earlier version lacks, with the values that its runs had."""

_LATER_SECTIONS = ("tracker",)
"""Sections all of whose keys are later ones, which may be missing as a whole."""


@dataclass(frozen=True)
class EarlierDefault:
    """A default that has changed.

    Args:
        value: the default before.
        came_with: a key that is in every config.yaml since the change.
    """

    value: Any
    came_with: str


EARLIER_DEFAULTS = {"data.chat_template": EarlierDefault(None, "data.fold_system")}
"""Keys whose default has changed; a run of an earlier version keeps the one it began with."""

SavedConfig = DictConfig
"""The values of a config.yaml, not yet checked against the schema."""


def portable_yaml(config: RunConfig, run_dir: Path) -> str:
    """Return the configuration as it is saved in the folder of its run.

    It holds values and no references, and local paths are absolute, so that the run can be resumed from any directory
    and by somebody else.
    """
    saved = values_of(config) | {"output_dir": str(run_dir), "resume": None}
    for section, keys in {"data": ("path", "eval_path"), "model": ("path", "base", "chat_template")}.items():
        for key in keys:
            saved[section][key] = from_anywhere(saved[section][key])
    return _dumped(as_literals(saved))


def resumed_yaml(saved: SavedConfig, config: RunConfig) -> str:
    """Return the saved configuration of a run, with data and model where they are now, and as long as it is now.

    Args:
        saved: the configuration that the run began with.
        config: the configuration that it is resumed with.
    """
    values: Any = OmegaConf.to_container(saved, resolve=False)
    for section, key in (place.split(".") for place in (*PLACES, *LENGTH)):
        values.setdefault(section, {})[key] = as_literals(from_anywhere(getattr(getattr(config, section), key)))
    return _dumped(values)


def from_anywhere(value: Any) -> Any:
    """Return an existing path, a pattern, or a list of them as absolute paths; other values as they are."""
    if isinstance(value, list | tuple):
        return [from_anywhere(item) for item in value]
    if not isinstance(value, str) or value.startswith("builtin:"):
        return value
    path = Path(value).expanduser()
    is_pattern = any(sign in value for sign in "*?[")
    return str(path.absolute()) if path.exists() or is_pattern else value


def load_saved_config(saved: SavedConfig, path: Path) -> RunConfig:
    """Check the saved configuration of a run against the schema.

    Args:
        path: the file it was read from.
    Raises:
        ConfigError: if it is not the configuration of a run; the message begins with the path.
    """
    try:
        return load_config(saved)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None


def read_saved_config(path: Path) -> SavedConfig:
    """Return the values in the config.yaml of an earlier run, which may be somebody else's.

    Raises:
        InputNotFoundError: if the folder has no config.yaml.
        ConfigError: if it is not a mapping of plain YAML, or has references.
    """
    if not path.is_file():
        raise InputNotFoundError(f"{path}: no such file; resume=DIR takes the folder of an earlier run")
    try:
        _, values = read_yaml(path)
        if not isinstance(values, dict):
            raise ValueError(": expected a mapping")
        _refuse_references(values)
        return OmegaConf.create(values)
    except (OSError, OmegaConfBaseException) as error:
        first_line = re.sub(r"\s+", " ", str(error))[:200]
        raise ConfigError(f"{path}: not a configuration: {first_line}") from None
    except ValueError as error:
        raise ConfigError(f"{path}{error}") from None


def keys_since(saved: SavedConfig) -> dict[str, Any]:
    """Return the keys that a configuration of an earlier version has not, with the value for what was done then.

    Those whose default has changed since are among them, where the configuration has the earlier one.
    """
    values = {**LATER_KEYS, "data.eval_seed": saved.get("seed")}
    found = {}
    for key, value in values.items():
        section, _, name = key.rpartition(".")
        node = OmegaConf.select(saved, section)
        is_missing = node is None and section in _LATER_SECTIONS
        if is_missing or (isinstance(node, DictConfig) and name not in node and _has_key(node, section, name)):
            found[key] = value
    for key, default in EARLIER_DEFAULTS.items():
        if default.came_with in found and OmegaConf.select(saved, key) == default.value:
            found[key] = default.value
    return found


def _has_key(node: DictConfig, section: str, name: str) -> bool:
    """Return whether a section, or the variant of it that its name says, has a key."""
    return section not in SECTIONS or name in section_keys(section, str(node.get("name")))


def with_keys(saved: DictConfig, values: Mapping[str, Any]) -> DictConfig:
    """Return a configuration with other values of some dotted keys."""
    changed = saved.copy()
    for key, value in values.items():
        OmegaConf.update(changed, key, value)
    return changed


def _refuse_references(part: Any, key: str = "") -> None:
    """Refuse `${...}` anywhere: it may read the environment, or multiply."""
    for name, item in part.items() if isinstance(part, dict) else enumerate(part) if isinstance(part, list) else ():
        _refuse_references(item, f"{key}.{name}" if key else str(name))
    if isinstance(part, str) and re.search(r"(?<!\\)(?:\\\\)*\$\{", part):
        raise ValueError(f": {key}={part[:100]}: a saved configuration holds no references; write the value")


def _dumped(values: Any) -> str:
    return yaml.safe_dump(values, sort_keys=False, allow_unicode=True)
