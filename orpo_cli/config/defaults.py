"""Tell in which keys a run differs from what its options say by themselves."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import yaml

from orpo_cli.config.data import ColumnsConfig, DataConfig
from orpo_cli.config.keys import SECTIONS, builtin_configs, dotted, values_of
from orpo_cli.config.schema import RunConfig

_OPTIONS = {"model": "pretrained", "data": "file", "trainer": "default", "tracker": "none"}
"""The option of a section whose values do not say which one it is; of trackers there may be several."""

_REFERENCE = re.compile(r"\$\{(?P<key>[\w.]+)\}|\$\{divided:\$\{(?P<divided>[\w.]+)\},(?P<by>[\d.]+)\}")
"""The value of another key, or a part of it."""

_OF_EVERY_RUN = {"output_dir", "resume", "model.path", "data.path"}
"""Keys that have no default."""


@dataclass(frozen=True)
class Difference:
    """A key whose value is not the default.

    Args:
        default: None where nothing gives one, as in an option of the user's own.
    """

    key: str
    value: Any
    default: Any


def differences(config: RunConfig) -> list[Difference]:
    """Return the keys in which a run differs from the defaults: first the options, then the values in each.

    The default of a value is that of the option that was chosen: with `optimizer=muon`, what that file says.
    """
    values = dict(dotted(values_of(config)))
    root = yaml.safe_load((builtin_configs() / "train.yaml").read_text(encoding="utf-8"))
    usual = {group: name for part in root["defaults"] if isinstance(part, dict) for group, name in part.items()}
    chosen = {section: _OPTIONS.get(section) or str(values[f"{section}.name"]) for section in SECTIONS}
    options = [
        Difference(section, name, usual[section])
        for section, name in chosen.items()
        if section not in _OPTIONS and name != usual[section]
    ]
    defaults = {"seed": root["seed"]}
    for section, name in chosen.items():
        defaults |= _defaults_of(section, name)
    defaults = {key: _resolved(value, values) for key, value in defaults.items()}
    without = _OF_EVERY_RUN | {f"{section}.name" for section in chosen if section not in _OPTIONS}
    keys = [key for key in values if key not in without]
    changed = [Difference(key, values[key], defaults.get(key)) for key in keys if values[key] != defaults.get(key)]
    return options + changed


def default_data(path: str) -> DataConfig:
    """Return the section of a file of preferences whose other keys all have their defaults."""
    values = yaml.safe_load((builtin_configs() / "data" / "file.yaml").read_text(encoding="utf-8"))
    return DataConfig(**values | {"path": path, "columns": ColumnsConfig(**values["columns"])})


def place_of_model(name: str) -> str | None:
    """Return the hub id, or the built-in place, of an option of the group `model`; None where it names none."""
    place = _defaults_of("model", name).get("model.path")
    return None if place is None or place == "???" else str(place)


def _defaults_of(section: str, name: str) -> dict[str, Any]:
    """Return the values of a built-in option by dotted keys; nothing where there is none of this name."""
    built_in = {path.stem: path for path in (builtin_configs() / section).glob("*.yaml")}
    if name not in built_in:
        return {}
    option = yaml.safe_load(built_in[name].read_text(encoding="utf-8"))
    return dict(dotted(option if section == "loss" else {section: option}))  # a loss brings its lambda, at the root


def _resolved(value: Any, values: Mapping[str, Any]) -> Any:
    """Return the value of a default; a reference is the run's own value of another key."""
    reference = _REFERENCE.fullmatch(value) if isinstance(value, str) else None
    if reference is None:
        return value
    found = values.get(reference["key"] or reference["divided"])
    return found / float(reference["by"]) if reference["by"] and found is not None else found
