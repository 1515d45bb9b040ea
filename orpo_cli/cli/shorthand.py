"""`data=FILE` and `model=DIR_OR_HUB_ID`: the two things users type that Hydra's grammar does not know.

A value with a `.` or a separator (or a leading `~`) cannot be a group option, so `data=prefs.json` is unambiguous and
becomes `data=file data.path='prefs.json'`. Hydra 1.3 also refuses flags that stand between overrides, so flags are
moved to the front. Nothing else is rewritten.
"""

import os
import re
from collections.abc import Sequence
from pathlib import Path

from orpo_cli.errors import ConfigError

REWRITES = {"data": "file", "model": "pretrained"}
"""Group -> the option that takes a path."""

_OPTION_NAME = re.compile(r"[A-Za-z0-9_]+")
_FLAGS_WITH_VALUE = (
    "--config-dir", "-cd", "--config-name", "-cn", "--config-path", "-cp", "--cfg", "-c", "--package", "-p"
)  # fmt: skip
_SWEEP_FUNCTION = re.compile(r"(choice|range|interval|glob|shuffle|sort|tag)\(")


def expand(argv: Sequence[str]) -> list[str]:
    """Rewrite path shorthands and put flags first.

    Args:
        argv: what follows `orpo train`.
    Returns:
        flags, then overrides, in Hydra's own grammar.
    Raises:
        ConfigError: one sweep mixes group options and paths.
    """
    flags, overrides = split_flags(argv)
    multirun = any(flag in ("-m", "--multirun") for flag in flags)
    return flags + [part for override in overrides for part in _expand_override(override, multirun)]


def split_flags(argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """Flags (with their values) and overrides, each in their order."""
    flags: list[str] = []
    overrides: list[str] = []
    words = iter(argv)
    for word in words:
        if not word.startswith("-"):
            overrides.append(word)
            continue
        flags.append(word)
        if word in _FLAGS_WITH_VALUE:
            flags.extend([value] if (value := next(words, None)) is not None else [])
    return flags, overrides


def _expand_override(override: str, multirun: bool) -> list[str]:
    group, equals, value = override.partition("=")
    if not equals or group not in REWRITES or not value or _SWEEP_FUNCTION.match(value):
        return [override]
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
    """In single quotes as Hydra's grammar has it: backslashes are literal but before a quote; `${` must not interpolate."""
    escaped = re.sub(r"(\\*)'", lambda match: match.group(1) * 2 + r"\'", value)
    escaped = re.sub(r"(\\+)$", lambda match: match.group(1) * 2, escaped)
    return "'" + escaped.replace("${", r"\${") + "'"
