"""What is typed after `orpo train` and `orpo check`: flags, overrides, and two things Hydra's grammar does not know.

`data=FILE` and `model=DIR_OR_HUB_ID`: a value with a `.` or a separator (or a leading `~`) cannot be a group option, so
`data=prefs.json` is unambiguous and becomes `data=file data.path='prefs.json'`; a list of paths,
`data=[a.jsonl,b.jsonl]`, likewise. Nothing else is rewritten.
"""

import argparse
import os
import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from orpo_cli.config.keys import nearest
from orpo_cli.errors import ConfigError
from orpo_cli.quoting import override_value

REWRITES = {"data": "file", "model": "pretrained"}
"""Group -> the option that takes a path."""

_OPTION_NAME = re.compile(r"[A-Za-z0-9_]+")
_QUOTED = re.compile(r"""'(?:\\.|[^'\\])*'|"(?:\\.|[^"\\])*\"""")
_SURPRISING_NUMBER = re.compile(r"[+-]?(?=0\d|[\d.eE+-]*\d_)(?:\d[\d_]*)?(?:\.[\d_]*)?(?:[eE][+-]?[\d_]+)?")
"""`012` is 12 here and 10 in YAML; `2026_11_27` would be 20261127."""

_SWEEP_FUNCTION = re.compile(r"(choice|range|interval|glob|shuffle|sort|tag)\(")


class Parser(argparse.ArgumentParser):
    """A parser that raises ConfigError where argparse would print and leave."""

    def error(self, message: str) -> NoReturn:
        """Refuse what was typed."""
        raise ConfigError(f"{message}; usage: {self.usage}")


_PARSER = Parser(usage="orpo train [FLAGS] [KEY=VALUE ...]", add_help=False, allow_abbrev=False)
_PARSER.add_argument("-m", "--multirun", action="store_true")
_PARSER.add_argument("-c", "--cfg", choices=("job", "hydra", "all"))
_PARSER.add_argument("--resolve", action="store_true")
_PARSER.add_argument("-p", "--package")
_INFOS = ("all", "config", "defaults", "defaults-tree", "plugins", "searchpath")
_PARSER.add_argument("-i", "--info", nargs="?", const="all", choices=_INFOS)
_PARSER.add_argument("-cd", "--config-dir", type=Path)
_PARSER.add_argument("-cn", "--config-name")
_PARSER.add_argument("overrides", nargs="*")
FLAGS = [flag for action in _PARSER._actions for flag in action.option_strings if flag.startswith("--")]


@dataclass(frozen=True)
class Arguments:
    """What was typed: the overrides in Hydra's own grammar, and the flags."""

    overrides: list[str]
    multirun: bool = False
    cfg: str | None = None
    resolve: bool = False
    package: str | None = None
    info: str | None = None
    config_dir: Path | None = None
    config_name: str | None = None

    @property
    def flags(self) -> list[str]:
        """Return the flags that choose where configurations come from, as they are typed."""
        directory = [] if self.config_dir is None else [f"--config-dir={self.config_dir}"]
        return [*directory, *([] if self.config_name is None else [f"--config-name={self.config_name}"])]


def parse(argv: Sequence[str]) -> Arguments:
    """Parse what follows `orpo train`.

    Raises:
        ConfigError: if a flag is unknown or lacks its value, one sweep mixes group options and paths, or a number is
            written as people do not read it.
    """
    for word in argv:
        if not word.isprintable() and word != word.encode("utf-8", "replace").decode():
            raise ConfigError(f"{word!a}: is not UTF-8")
    given, unknown = _PARSER.parse_known_intermixed_args(list(argv))
    if unknown:
        flag = unknown[0].partition("=")[0]
        raise ConfigError(f"unknown flag {flag}: {nearest(flag, FLAGS)}")
    if (given.resolve or given.package) and not given.cfg:
        raise ConfigError("--resolve and --package go with --cfg job|hydra|all")
    overrides = [word for override in given.overrides for word in _expand_override(override, given.multirun)]
    for word in overrides:
        _refuse_surprising_numbers(word)
    return Arguments(**{**vars(given), "overrides": overrides})


def key_of(override: str) -> str:
    """Return the key that an override sets, adds or deletes."""
    return override.lstrip("+~").partition("=")[0]


def _expand_override(override: str, multirun: bool) -> list[str]:
    group, equals, value = override.partition("=")
    if not equals or group not in REWRITES or not value or _SWEEP_FUNCTION.match(value):
        return [override]
    if value.startswith("[") and value.endswith("]") and not Path(value).exists():
        paths = ",".join(override_value(_expand_home(item)) for item in alternatives(value[1:-1]))
        return [f"{group}={REWRITES[group]}", f"{group}.path=[{paths}]"]
    values = alternatives(value) if multirun else [_unquoted(value)]
    are_paths = [_is_path(item) for item in values]
    if not any(are_paths):
        return [override]
    if not all(are_paths):
        raise ConfigError(
            f"{override}: a sweep over {group} takes either built-in names or paths, not both; "
            f"write a file in this directory as ./NAME"
        )
    paths = ",".join(override_value(_expand_home(item)) for item in values)
    return [f"{group}={REWRITES[group]}", f"{group}.path={paths}"]


def _refuse_surprising_numbers(override: str) -> None:
    key, _, value = override.partition("=")
    for part in re.split(r"[,()\[\]{}]", _QUOTED.sub("", value)):
        if _SURPRISING_NUMBER.fullmatch(part.strip()):
            raise ConfigError(
                f"{override}: `{part.strip()}`: a number is written without leading zeros and underscores, text "
                f"like it in quotes, as in {shlex.quote(f'{key}={override_value(part.strip())}')}"
            )


def _is_path(value: str) -> bool:
    return not _OPTION_NAME.fullmatch(value) and value != "null"


def alternatives(value: str) -> list[str]:
    """Split at commas outside quotes; the name of a file that holds a comma stays whole."""
    if Path(_expand_home(_unquoted(value))).exists():
        return [_unquoted(value)]
    parts = re.findall(r"""(?:'(?:\\.|[^'\\])*'|"(?:\\.|[^"\\])*"|\\.|[^,])+""", value)
    return [_unquoted(part.strip()) for part in parts]


def _unquoted(value: str) -> str:
    if len(value) >= 2 and value[0] == value[-1] and value[0] in "'\"":
        return value[1:-1].replace(f"\\{value[0]}", value[0])
    return value


def _expand_home(value: str) -> str:
    return os.path.expanduser(value)  # noqa: PTH111 - Path would drop a leading "./" that tells a path from a hub id
