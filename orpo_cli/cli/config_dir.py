"""What may be set: overrides, and the YAML of the user's own `--config-dir`, read before Hydra reads it.

YAML is data, adds to the built-in options, and is small: Hydra itself would take a file that has the name of a built-in
one without a word, and expand 200 bytes of nested aliases into gigabytes.
"""

import os
import re
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

from orpo_cli.config.keys import CODE_KEYS, OWN_KEYS
from orpo_cli.config.schema import ROOT_KEYS
from orpo_cli.config.sweep import LAUNCHERS
from orpo_cli.errors import ConfigError
from orpo_cli.files.untrusted import read_yaml
from orpo_cli.runs.folder import RECORD, SWEEP

_LAUNCHERS = "|".join(["basic", *LAUNCHERS])
_LAUNCHER_KEYS = "|".join(sorted({key.name for launcher in LAUNCHERS.values() for key in fields(launcher)}))
LAUNCHER_OVERRIDE = rf"hydra/launcher=({_LAUNCHERS})|hydra\.launcher\.({_LAUNCHER_KEYS})=.*"
"""An override that says where the jobs of a sweep work."""

ALLOWED_HYDRA_KEYS = re.compile(
    rf"hydra\.(run\.dir|sweep\.dir|sweep\.subdir|sweeper\.params\..+|verbose|launcher\.({_LAUNCHER_KEYS}))"
)
"""What may be set of Hydra itself; its other keys would have no effect here, or would run code."""

_OF_A_ROOT = re.compile(r"hydra\.(mode|output_subdir|job\.chdir|job\.config\.override_dirname\.exclude_keys(\.\d+)?)")
"""What a root configuration may set besides, so that a copy of the built-in one can be a root."""

_OF_ROOTS = {*ROOT_KEYS, *(key for own in OWN_KEYS.values() for key in own)}
"""Keys outside of any section, whose values may be paths."""

_ANY_TEXT = ("prompt",)
"""Keys whose value is what somebody says to a model."""

_HYDRA_DEFAULT = re.compile(rf"override /?hydra/((job_logging|hydra_logging): \w+|launcher: ({_LAUNCHERS}))")
"""An entry of a defaults list that chooses an option of Hydra itself."""

_PACKAGE = re.compile(r"^\s*#\s*@package\s+\S*hydra", re.MULTILINE)
_FOLDER = re.compile(r"[A-Za-z_][\w-]*")
_OUTPUTS = {RECORD, SWEEP, "multirun.yaml"}
"""Files by which a folder is known as one that a run or a sweep has written."""

_WRITTEN = {"config.yaml", "multirun.yaml"}
"""The YAML files that these write, which are no options."""


def check_config_dir(directory: Path, builtin: Path) -> None:
    """Read every YAML file in `directory` that can be an option: one in folders whose names can be groups.

    Raises:
        ConfigError: if it is no directory, or a file in it is not plain data, too large, or named as a built-in one.
    """
    if not directory.is_dir():
        raise ConfigError(f"--config-dir {directory}: no such directory")
    for path in _yaml_files(directory):
        shadowed = builtin / path.relative_to(directory).with_suffix(".yaml")
        if shadowed.is_file():
            raise ConfigError(f"{path} has the name of the built-in {shadowed}; rename it")
        check_file(path)


def _yaml_files(directory: Path) -> Iterator[Path]:
    outputs: list[Path] = []
    for place, subfolders, names in os.walk(directory):
        folder = Path(place)
        subfolders[:] = sorted(name for name in subfolders if _FOLDER.fullmatch(name))
        if _OUTPUTS & set(names):
            outputs.append(folder)
        written = _WRITTEN if any(folder.is_relative_to(output) for output in outputs) else set()
        yield from (folder / name for name in sorted({*names} - written) if name.endswith((".yaml", ".yml")))


def check_file(path: Path) -> Any:
    """Read a YAML file that is data and nothing else, and return what it holds.

    Raises:
        ConfigError: if it is not plain data, too large, or has keys that are code or parts of Hydra itself.
    """
    try:
        text, values = read_yaml(path, exponents=True)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise ConfigError(f"{path}{error}") from None
    if _PACKAGE.search(text):
        raise ConfigError(f"{path}: its @package is a part of Hydra itself, which cannot be set")
    for keys, value in _leaves(values):
        dotted = ".".join(keys)
        if CODE_KEYS & set(keys):
            raise ConfigError(f"{path}: {dotted}: configurations hold values, never code; remove it")
        if keys[:1] == ("hydra",) and not (ALLOWED_HYDRA_KEYS.fullmatch(dotted) or _OF_A_ROOT.fullmatch(dotted)):
            raise ConfigError(f"{path}: {_why_not(dotted)}")
        if dotted.startswith(_SWEPT):
            check_override(f"{dotted}={value}")
        entry = ": ".join([*keys[2:], str(value)])
        if keys[:1] == ("defaults",) and "hydra" in entry and not _HYDRA_DEFAULT.fullmatch(entry):
            raise ConfigError(f"{path}: defaults: {_why_not(entry)}")
    return values


def is_of_launcher(word: str) -> bool:
    """Return whether an override says where the jobs of a sweep work."""
    return re.fullmatch(LAUNCHER_OVERRIDE, word.lstrip("+")) is not None


def check_override(word: str) -> None:
    """Refuse what is no override, what is code, and keys of Hydra itself but the few that name folders and sweeps.

    Raises:
        ConfigError: if `word` is one of these.
    """
    key, equals, value = word.lstrip("+~").partition("=")
    group, _, package = key.partition("@")
    if group in _ANY_TEXT and equals:
        return
    if not (equals or word.startswith("~")) or not key:
        raise ConfigError(f"`{word}`: expected KEY=VALUE, as in lambda=0.1 or data=FILE")
    if re.search(rf"({'|'.join(CODE_KEYS)})\s*[:=]", word):
        raise ConfigError(f"{word}: configurations hold values, never code")
    of_hydra = group.partition("/")[0].partition(".")[0] == "hydra" and not (
        ALLOWED_HYDRA_KEYS.fullmatch(group) or is_of_launcher(word)
    )
    if "hydra" in package or of_hydra:
        raise ConfigError(_why_not(word))
    if "/" in value and "." not in group and group not in _OF_ROOTS:
        raise ConfigError(f"{word}: expected the name of an option, not a path")
    if group.startswith(_SWEPT):
        check_override(f"{group.removeprefix(_SWEPT)}={value}")  # it becomes an override of each job


_SWEPT = "hydra.sweeper.params."


def _why_not(what: str) -> str:
    if re.search(r"hydra[./]sweeper", what):
        return f"{what}: sweepers of Hydra cannot be chosen; sweep.trials=N searches with N runs"
    if re.search(r"hydra\.launcher", what):
        return (
            f"{what}: no key of a launcher here; jobs have the environment in which the sweep is started. "
            f"Known: {_LAUNCHER_KEYS.replace('|', ', ')}"
        )
    if "hydra/launcher" in what:
        return f"{what}: no launcher here; known: basic, {', '.join(LAUNCHERS)}"
    return f"{what}: this key of Hydra cannot be set; hydra.run.dir and hydra.sweep.dir can"


def _leaves(values: Any, keys: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    items = values.items() if isinstance(values, dict) else enumerate(values) if isinstance(values, list) else None
    if items is None:
        yield keys, values
        return
    for key, value in items:
        yield from _leaves(value, (*keys, str(key)))
