"""The one file that may stand first on the command line: YAML of the same keys, read as the words it stands for.

    model: ./my-llama
    data: prefs.json
    optimizer: {name: sgd, lr: 1e-3}
    lambda: 0.1

means `model=./my-llama data=prefs.json optimizer=sgd optimizer.lr=1e-3 lambda=0.1`. From here on there are only words:
the processes of a run and the jobs of a sweep get them, and a sweep that is resumed does not read the file again.
"""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orpo_cli.cli.config_dir import check_file
from orpo_cli.cli.shorthand import REWRITES, at_paths, is_path, key_of
from orpo_cli.config.keys import SECTIONS, groups_without_default, nested_kinds
from orpo_cli.errors import ConfigError, InputNotFoundError
from orpo_cli.quoting import override_of, with_references

_OF_HYDRA = {
    "defaults": "options are chosen by their group, as in `optimizer: sgd`; a defaults list is for --config-dir",
    "hydra": "the keys of Hydra cannot be set here; hydra.run.dir and hydra.sweep.dir can on the command line",
}


@dataclass(frozen=True)
class EntryFile:
    """Hold the place of the file, and the overrides that it stands for; none where no file was given."""

    path: Path = Path()
    words: tuple[str, ...] = ()

    def behind(self, typed: Sequence[str]) -> "EntryFile":
        """Return the file without the words that those typed behind it replace.

        An option chosen anew replaces the section, whose keys are those of the other option.
        """
        options = {key_of(word): word for word in self.words}
        chosen = {key_of(word): word for word in typed}
        other = {key for key in chosen.keys() & options.keys() & SECTIONS.keys() if chosen[key] != options[key]}
        kept = [word for word in self.words if key_of(word) not in chosen]
        return EntryFile(self.path, tuple(word for word in kept if key_of(word).partition(".")[0] not in other))

    @contextmanager
    def named(self) -> Iterator[None]:
        """Name the file in what is wrong with a key of it."""
        try:
            yield
        except ConfigError as error:
            found = re.match(r"(?:unknown key )?`?([\w.]+)", str(error))
            key = f"{found[1] if found else ''}."
            if any(key.startswith(f"{key_of(word)}.") for word in self.words):
                error.args = (f"{self.path}: {error}",)
            raise


NO_FILE = EntryFile()


def is_meant(word: str) -> bool:
    """Return whether a typed word is the name of such a file, and no override."""
    return "=" not in word and word.endswith((".yaml", ".yml"))


def read_entry(path: Path) -> EntryFile:
    """Read the file.

    Raises:
        InputNotFoundError: if there is none.
        ConfigError: if it is not plain data, too large, or holds no keys.
    """
    if not path.is_file():
        raise InputNotFoundError(f"{path}: no such file; expected a YAML file of the keys of `orpo train`")
    values = check_file(path)
    if not isinstance(values, dict) or not values:
        raise ConfigError(f"{path}: expected keys and their values, as in `lambda: 0.1`")
    try:
        return EntryFile(path, tuple(word for key, value in values.items() for word in _words(str(key), value)))
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None


def _words(key: str, value: Any) -> Iterator[str]:
    """Yield the overrides that a key of the file stands for."""
    if key in _OF_HYDRA:
        raise ConfigError(f"`{key}`: {_OF_HYDRA[key]}")
    if isinstance(value, dict) and "." not in key:
        yield from _section(key, value)
    elif key in SECTIONS:
        yield from _option(key, value)
    elif key in groups_without_default():
        yield f"+{key}={value}"
    else:
        yield f"{key}={_typed(value)}"


def _section(section: str, values: dict[Any, Any]) -> Iterator[str]:
    if "name" in values:
        yield from _option(section, values["name"])
    elif "path" in values and section in REWRITES:
        yield f"{section}={REWRITES[section]}"
    kinds = SECTIONS.get(section)
    parts = nested_kinds(kinds) if isinstance(kinds, type) else {}
    for key, value in values.items():
        if key in parts and isinstance(value, dict):
            yield from (f"{section}.{key}.{name}={_typed(item)}" for name, item in value.items())
        elif key != "name":
            yield f"{section}.{key}={_typed(value)}"


def _option(group: str, value: Any) -> list[str]:
    if isinstance(value, list) and group in REWRITES:
        return at_paths(group, [str(path) for path in value], is_list=True)
    if isinstance(value, list) and group == "tracker":
        return [f"{group}={_typed(value)}"]
    if not isinstance(value, str):
        shown = "null" if value is None else value
        raise ConfigError(f"{group}: {shown}: expected one of its options, or keys of its own; or leave it out")
    return at_paths(group, [value]) if group in REWRITES and is_path(value) else [f"{group}={value}"]


def _typed(value: Any) -> str:
    """Return a value as it is typed; a text may hold references to other keys, but no sweep."""
    return override_of(value, with_references)
