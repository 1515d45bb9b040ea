"""The user's own `--config-dir`, read before Hydra reads it: YAML is data, adds to the built-in options, and is small.

Hydra itself would import and run what a `_target_` or a logging section names, take a file that has the name of a
built-in one without a word, and expand 200 bytes of nested aliases into gigabytes.
"""

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from orpo_cli.config.load import CODE_KEYS
from orpo_cli.errors import ConfigError

MAX_BYTES = 1_000_000
MAX_VALUES = 10_000
"""Values in one file, an alias counted as often as it is used."""

ALLOWED_HYDRA_KEYS = re.compile(r"hydra\.(run\.dir|sweep\.dir|sweep\.subdir|sweeper\.params(\..+)?|verbose)")
"""What may be set of Hydra itself; its other keys can import and run any code."""

_OF_A_ROOT = {"hydra.mode", "hydra.output_subdir", "hydra.job.chdir"}
"""What train.yaml sets besides, so that a copy of it can be a root."""

_ALLOWED_HYDRA_GROUP = re.compile(r"override /?hydra/(launcher|job_logging|hydra_logging): \w+")
_PACKAGE = re.compile(r"^\s*#\s*@package\s+\S*hydra", re.MULTILINE)
_FOLDER = re.compile(r"[A-Za-z_][\w-]*")
_OPTION = re.compile(rf"/?({_FOLDER.pattern}/)*[\w.-]+")


def check_config_dir(directory: Path, builtin: Path) -> None:
    """Read every YAML file in `directory` that can be an option: one in folders whose names can be groups.

    Raises:
        ConfigError: it is no directory, or a file in it is not plain data, too large, or named as a built-in one.
    """
    if not directory.is_dir():
        raise ConfigError(f"--config-dir {directory}: no such directory")
    for path in _yaml_files(directory):
        shadowed = builtin / path.relative_to(directory).with_suffix(".yaml")
        if shadowed.is_file():
            raise ConfigError(f"{path} has the name of the built-in {shadowed}; rename it")
        _check_file(path)


def _yaml_files(directory: Path) -> Iterator[Path]:
    for folder, subfolders, names in os.walk(directory):
        subfolders[:] = sorted(name for name in subfolders if _FOLDER.fullmatch(name))
        for path in (Path(folder) / name for name in subfolders):
            if path.is_symlink() or path == directory / "hydra":
                what = "a link to a directory" if path.is_symlink() else "options of Hydra itself"
                raise ConfigError(f"{path}: {what} cannot be a part of --config-dir")
        yield from (Path(folder) / name for name in sorted(names) if name.endswith((".yaml", ".yml")))


def _check_file(path: Path) -> None:
    try:
        if path.stat().st_size > MAX_BYTES:
            raise ConfigError(f"{path}: {path.stat().st_size} bytes; expected at most {MAX_BYTES}")
        text = path.read_text(encoding="utf-8")
        values = _Loader(text).get_single_data()
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise ConfigError(f"{path}:{line}: {error.problem}") from None
    except (yaml.YAMLError, UnicodeDecodeError, ValueError, RecursionError) as error:
        raise ConfigError(f"{path}: not YAML: {' '.join(str(error).split())[:200]}") from None
    if _PACKAGE.search(text):
        raise ConfigError(f"{path}: its @package is a part of Hydra itself, which cannot be set")
    _check_values(values, path)


class _Loader(yaml.SafeLoader):
    """YAML's safe loader that refuses duplicate keys, and aliases that multiply."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """As a mapping whose keys differ."""
        keys = [key.value for key, _ in node.value if key.tag != "tag:yaml.org,2002:merge"]
        for key, _ in reversed(node.value):
            if keys.count(key.value) > 1:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key `{key.value}` stands twice", key.start_mark
                )
        return super().construct_mapping(node, deep)

    def get_single_node(self) -> yaml.Node | None:
        """The only document, once it is known to be small when expanded."""
        node: yaml.Node | None = super().get_single_node()
        if node is not None and _size(node, {}) > MAX_VALUES:
            raise yaml.YAMLError(f"more than {MAX_VALUES} values once its aliases are expanded")
        return node


def _size(node: yaml.Node, known: dict[int, int]) -> int:
    """Values below `node`; each node is visited once."""
    if id(node) not in known:
        known[id(node)] = MAX_VALUES + 1  # of an alias that holds itself
        parts = [node for pair in node.value for node in pair] if isinstance(node, yaml.MappingNode) else node.value
        known[id(node)] = 1 if isinstance(node, yaml.ScalarNode) else 1 + sum(_size(part, known) for part in parts)
    return known[id(node)]


def _check_values(values: Any, path: Path) -> None:
    for keys, value in _leaves(values):
        if CODE_KEYS & set(keys):
            raise ConfigError(f"{path}: {'.'.join(keys)}: configurations hold values, never code; remove it")
        dotted = ".".join(keys)
        if keys[:1] == ("hydra",) and not (ALLOWED_HYDRA_KEYS.fullmatch(dotted) or dotted in _OF_A_ROOT):
            raise ConfigError(f"{path}: {dotted}: this key of Hydra cannot be set")
        if keys[:1] == ("defaults",):
            _check_default(": ".join([*keys[2:], str(value)]), path)


def _check_default(entry: str, path: Path) -> None:
    about_hydra = "hydra" in entry and not _ALLOWED_HYDRA_GROUP.fullmatch(entry)
    if about_hydra or not all(_OPTION.fullmatch(word) for word in re.split(r"[\s:@]+", entry)):
        raise ConfigError(f"{path}: defaults: {entry}: expected an option of a group")


def _leaves(values: Any, keys: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    items = values.items() if isinstance(values, dict) else enumerate(values) if isinstance(values, list) else None
    if items is None:
        yield keys, values
        return
    for key, value in items:
        yield from _leaves(value, (*keys, str(key)))
