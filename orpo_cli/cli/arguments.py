"""What is typed after `orpo train` and `orpo check`: a file of settings (see `entry_file`), flags, and overrides."""

import argparse
import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NoReturn

from orpo_cli.cli import entry_file, shorthand
from orpo_cli.cli.entry_file import NO_FILE, EntryFile
from orpo_cli.config.keys import key_for, nearest
from orpo_cli.errors import ConfigError
from orpo_cli.quoting import override_value

_QUOTED = re.compile(r"""'(?:\\.|[^'\\])*'|"(?:\\.|[^"\\])*\"""")
_SURPRISING_NUMBER = re.compile(r"[+-]?(?=0\d|[\d.eE+-]*\d_)(?:\d[\d_]*)?(?:\.[\d_]*)?(?:[eE][+-]?[\d_]+)?")
"""`012` is 12 here and 10 in YAML; `2026_11_27` would be 20261127."""


class Parser(argparse.ArgumentParser):
    """A parser that raises ConfigError where argparse would print and leave."""

    def error(self, message: str) -> NoReturn:
        """Refuse what was typed."""
        raise ConfigError(f"{message}; usage: {self.usage}")


_PARSER = Parser(usage="orpo train [FILE.yaml] [FLAGS] [KEY=VALUE ...]", add_help=False, allow_abbrev=False)
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
    """What was typed: the overrides in Hydra's own grammar, those of a file of settings among them, and the flags."""

    overrides: list[str]
    entry: EntryFile = NO_FILE
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


def take_count(arguments: Arguments, key: str, why: str) -> tuple[Arguments, int | None]:
    """Return what was typed without `KEY=N`, a number that only a sweep has, and N; None where it was not typed.

    Args:
        why: why it takes `-m`.
    Raises:
        ConfigError: if it is no number, or nothing is swept.
    """
    typed = [word for word in arguments.overrides if shorthand.key_of(word) == key]
    if not typed:
        return arguments, None
    count = typed[-1].partition("=")[2]
    if not count.isdecimal() or int(count) < 1:
        raise ConfigError(f"{typed[-1]}: expected a number of runs, 1 or more")
    if not arguments.multirun:
        raise ConfigError(f"{typed[-1]}: {why}; add -m")
    return replace(arguments, overrides=[word for word in arguments.overrides if word not in typed]), int(count)


def parse(argv: Sequence[str]) -> Arguments:
    """Parse what follows `orpo train`.

    Raises:
        ConfigError: if a flag is unknown or lacks its value, one sweep mixes group options and paths, a number is
            written as people do not read it, or something is wrong with the file of settings.
        InputNotFoundError: if there is no such file.
    """
    for word in argv:
        if not word.isprintable() and word != word.encode("utf-8", "replace").decode():
            raise ConfigError(f"{word!a}: is not UTF-8")
    given, unknown = _PARSER.parse_known_intermixed_args(list(argv))
    if unknown:
        raise ConfigError(_what_to_write(unknown, argv))
    if (given.resolve or given.package) and not given.cfg:
        raise ConfigError("--resolve and --package go with --cfg job|hydra|all")
    words: list[str] = given.overrides
    entry = entry_file.read_entry(Path(words.pop(0))) if words and entry_file.is_meant(words[0]) else NO_FILE
    if misplaced := next(filter(entry_file.is_meant, words), None):
        raise ConfigError(f"{misplaced}: one file of settings can be given, as the first word: orpo train FILE.yaml")
    own = given.config_dir
    typed = [word for override in words for word in shorthand.expanded(override, given.multirun, own)]
    for word in typed:
        _refuse_surprising_numbers(word)
    read = tuple(word for override in entry.words for word in shorthand.expanded(override, False, own))
    entry = replace(entry, words=read).behind(typed)
    return Arguments(**{**vars(given), "overrides": [*entry.words, *typed]}, entry=entry)


def _what_to_write(flags: Sequence[str], argv: Sequence[str]) -> str:
    """Return the answer to unknown flags: the overrides that they would be, where all are like the names of keys."""
    written: list[str] = []
    flags = [flag for flag in flags if flag.startswith("--")] or flags[:1]
    for flag in flags:
        name, equals, value = flag.partition("=")
        key = key_for(name.lstrip("-").replace("-", "_"))
        if key is None:
            return f"unknown flag {name}: {nearest(name, FLAGS)}"
        after = [*argv[argv.index(flag) + 1 :], "--"][0]
        has_value = not after.startswith("--") and "=" not in after
        written.append(f"{key}={shlex.quote(value if equals else after if has_value else 'true')}")
    return f"{' '.join(flags)}: values are set without dashes: write {' '.join(written)}"


def _refuse_surprising_numbers(override: str) -> None:
    key, _, value = override.partition("=")
    for part in re.split(r"[,()\[\]{}]", _QUOTED.sub("", value)):
        if _SURPRISING_NUMBER.fullmatch(part.strip()):
            raise ConfigError(
                f"{override}: `{part.strip()}`: a number is written without leading zeros and underscores, text "
                f"like it in quotes, as in {shlex.quote(f'{key}={override_value(part.strip())}')}"
            )
