"""`data=FILE` and `model=DIR_OR_HUB_ID`: the two things users type that Hydra's grammar does not know.

A value with a `.` or a separator (or a leading `~`) cannot be a group option, so `data=prefs.json` is unambiguous and
becomes `data=file data.path='prefs.json'`; a list of paths, `data=[a.jsonl,b.jsonl]`, likewise. Hydra 1.3 also refuses
flags that stand between overrides, so flags are moved to the front; of its flags only those in `FLAGS` are let through
(another one loads a pickle). Nothing else is rewritten.
"""

import os
import re
import shlex
from collections.abc import Sequence
from pathlib import Path

from orpo_cli.config.keys import nearest
from orpo_cli.errors import ConfigError

REWRITES = {"data": "file", "model": "pretrained"}
"""Group -> the option that takes a path."""

_OPTION_NAME = re.compile(r"[A-Za-z0-9_]+")
FLAGS: dict[str, tuple[str, ...] | None] = {
    "--multirun": None,
    "--cfg": ("job", "hydra", "all"),
    "--resolve": None,
    "--package": (),
    "--info": ("all", "config", "defaults", "defaults-tree", "plugins", "searchpath"),
    "--config-dir": (),
    "--config-name": (),
}
"""Flag -> the values it takes: None where it takes none, empty where any."""

SHORT_FLAGS = {
    "-m": "--multirun", "-c": "--cfg", "-p": "--package", "-i": "--info", "-cd": "--config-dir", "-cn": "--config-name"
}  # fmt: skip
_QUOTED = re.compile(r"""'(?:\\.|[^'\\])*'|"(?:\\.|[^"\\])*\"""")
_SURPRISING_NUMBER = re.compile(r"[+-]?(?=0\d|[\d.eE+-]*\d_)(?:\d[\d_]*)?(?:\.[\d_]*)?(?:[eE][+-]?[\d_]+)?")
"""`012` is 12 here and 10 in YAML; `2026_11_27` would be 20261127."""

_SWEEP_FUNCTION = re.compile(r"(choice|range|interval|glob|shuffle|sort|tag)\(")


def expand(argv: Sequence[str]) -> list[str]:
    """Rewrite path shorthands and put flags first.

    Args:
        argv: what follows `orpo train`.
    Returns:
        flags, then overrides, in Hydra's own grammar.
    Raises:
        ConfigError: one sweep mixes group options and paths, a number is written as people do not read it, or a flag is
            unknown or lacks its value.
    """
    flags, overrides = split_flags(argv)
    multirun = "--multirun" in flags
    words = [word for override in overrides for word in _expand_override(override, multirun)]
    for word in words:
        _refuse_surprising_numbers(word)
    return flags + words


def split_flags(argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """Flags, each one word in its long form (`--cfg=job`), and overrides, each in their order.

    Raises:
        ConfigError: a flag is unknown, or lacks its value.
    """
    flags: list[str] = []
    overrides: list[str] = []
    words = list(argv)
    while words:
        word = words.pop(0)
        if word.startswith("-"):
            flags.append(_flag(word, words))
        else:
            overrides.append(word)
    return flags, overrides


def _flag(word: str, following: list[str]) -> str:
    """`word` in its long form with its value, which is taken from the words that follow where it stands apart."""
    typed, equals, value = word.partition("=")
    flag = SHORT_FLAGS.get(typed, typed)
    if flag not in FLAGS:
        raise ConfigError(f"unknown flag {typed}: {nearest(typed, FLAGS)}")
    choices = FLAGS[flag]
    if choices is None:
        if equals:
            raise ConfigError(f"{word}: {flag} takes no value")
        return flag
    if not equals and flag == "--info" and not (following and following[0] in choices):
        value = "all"
    elif not equals:
        value = following.pop(0) if following else ""
    if not value or (choices and value not in choices):
        raise ConfigError(f"{word}: expected {flag} " + ("|".join(choices) or "VALUE"))
    return f"{flag}={value}"


def _expand_override(override: str, multirun: bool) -> list[str]:
    group, equals, value = override.partition("=")
    if not equals or group not in REWRITES or not value or _SWEEP_FUNCTION.match(value):
        return [override]
    if value.startswith("[") and value.endswith("]") and not Path(value).exists():
        paths = ",".join(quoted(_expand_home(item)) for item in _alternatives(value[1:-1]))
        return [f"{group}={REWRITES[group]}", f"{group}.path=[{paths}]"]
    values = _alternatives(value) if multirun else [_unquoted(value)]
    are_paths = [_is_path(item) for item in values]
    if not any(are_paths):
        return [override]
    if not all(are_paths):
        raise ConfigError(
            f"{override}: a sweep over {group} takes either built-in names or paths, not both; "
            f"write a file in this directory as ./NAME"
        )
    paths = ",".join(quoted(_expand_home(item)) for item in values)
    return [f"{group}={REWRITES[group]}", f"{group}.path={paths}"]


def _refuse_surprising_numbers(override: str) -> None:
    key, _, value = override.partition("=")
    for part in re.split(r"[,()\[\]{}]", _QUOTED.sub("", value)):
        if _SURPRISING_NUMBER.fullmatch(part.strip()):
            raise ConfigError(
                f"{override}: `{part.strip()}`: a number is written without leading zeros and underscores, text "
                f"like it in quotes, as in {shlex.quote(f'{key}={quoted(part.strip())}')}"
            )


def _is_path(value: str) -> bool:
    return not _OPTION_NAME.fullmatch(value) and value != "null"


def _alternatives(value: str) -> list[str]:
    """Split at commas that stand outside quotes; a file whose own name holds a comma stays whole."""
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


def quoted(value: str) -> str:
    """In single quotes as Hydra's grammar has it, and OmegaConf's inside it.

    Backslashes are literal but in front of `${` (which must not interpolate), of a quote, and at the end.
    """
    for special, escaped in ((r"\$\{", r"\\${"), ("'", r"\\'"), (r"\Z", "")):
        value = re.sub(rf"(\\*){special}", rf"\1\1{escaped}", value)
    return f"'{value}'"


def placed(words: Sequence[str], folder: Path) -> list[str]:
    """Arguments of a run in a folder, whatever folder is in them."""
    place = quoted(str(folder))
    keys = [word.partition("=")[0] for word in words]
    moved = [
        f"{key}={place}" if key.lstrip("+") == "output_dir" else word for key, word in zip(keys, words, strict=True)
    ]
    return [*moved, f"hydra.run.dir={place}"]


def go_on(folder: Path, words: Sequence[str] = ()) -> str:
    """The command that goes on with the run or the sweep in a folder, as it is typed in a shell.

    Args:
        words: overrides, in Hydra's grammar.
    """
    return shlex.join(["orpo", "resume", str(folder), *words])
