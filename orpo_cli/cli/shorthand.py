"""Two things that Hydra's grammar does not know: `data=FILE` and `model=DIR_OR_HUB_ID`.

A value with a `.` or a separator (or a leading `~`) cannot be a group option, so `data=prefs.json` is unambiguous and
becomes `data=file data.path='prefs.json'`; a list of paths, `data=[a.jsonl,b.jsonl]`, likewise. A plain word is an
option if there is one of that name, else the file or folder of that name. Nothing else is rewritten.
"""

import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from orpo_cli.config.keys import builtin_configs
from orpo_cli.config.tracking import NO_TRACKER, TRACKERS
from orpo_cli.errors import ConfigError
from orpo_cli.quoting import override_value

REWRITES = {"data": "file", "model": "pretrained"}
"""Group -> the option that takes a path."""

_OPTION_NAME = re.compile(r"[A-Za-z0-9_]+")
_SWEEP_FUNCTION = re.compile(r"(choice|range|interval|glob|shuffle|sort|tag)\(")


def expanded(override: str, multirun: bool, config_dir: Path | None = None) -> list[str]:
    """Return the overrides that one typed word stands for.

    Args:
        config_dir: the directory with the user's own options.
    Raises:
        ConfigError: if a sweep mixes group options and paths.
    """
    group, equals, value = override.partition("=")
    if not equals or group not in REWRITES or not value or _SWEEP_FUNCTION.match(value):
        return [override]
    if value.startswith("[") and value.endswith("]") and not Path(value).exists():
        return at_paths(group, alternatives(value[1:-1]), is_list=True)
    values = alternatives(value) if multirun else [_unquoted(value)]
    are_paths = [_is_place(group, item, config_dir) for item in values]
    if not any(are_paths):
        return [override]
    if not all(are_paths):
        raise ConfigError(
            f"{override}: a sweep over {group} takes either built-in names or paths, not both; "
            f"write a file in this directory as ./NAME"
        )
    return at_paths(group, values)


def with_quoted(keys: Sequence[str], word: str) -> str:
    """Return an override of a key whose value is a path as Hydra's grammar takes it; other words as they are."""
    key, equals, value = word.partition("=")
    return (
        f"{key}={override_value(_expand_home(_unquoted(value)))}" if equals and key in keys and is_path(value) else word
    )


def with_trackers_named(word: str) -> str:
    """Return `tracker=wandb` and `tracker=[tensorboard,wandb]` as values of tracker.name; other words as they are.

    Hydra would merge the options of a list, so that only the last would count, and a resumed run composes no options.
    """
    key, _, value = word.partition("=")
    is_named = "[" in value or (value and set(value.split(",")) <= {NO_TRACKER, *TRACKERS})
    return f"tracker.name={value}" if key == "tracker" and is_named else word


def key_of(override: str) -> str:
    """Return the key that an override sets, adds or deletes."""
    return override.lstrip("+~").partition("=")[0]


def at_paths(group: str, paths: Sequence[str], is_list: bool = False) -> list[str]:
    """Return the overrides of a group whose option takes a path: one, the values of a sweep, or a list."""
    values = ",".join(override_value(_expand_home(path)) for path in paths)
    return [f"{group}={REWRITES[group]}", f"{group}.path={f'[{values}]' if is_list else values}"]


def is_path(value: str) -> bool:
    """Return whether a value cannot be the name of an option."""
    return not _OPTION_NAME.fullmatch(value) and value != "null"


def _is_place(group: str, value: str, config_dir: Path | None) -> bool:
    """Return whether a value is a path or hub id: it can be no option, or is none, and something of its name exists."""
    if is_path(value) or value == "null" or not _exists(value):
        return is_path(value)
    folders = [folder / group for folder in (builtin_configs(), config_dir) if folder is not None]
    return not any((folder / f"{value}.yaml").is_file() for folder in folders)


def _exists(value: str) -> bool:
    return os.path.exists(value)  # noqa: PTH110 - Path would raise where a name is too long


def hidden_places(overrides: Sequence[str]) -> Iterator[str]:
    """Yield a sentence for each option that is chosen and has the name of a file or folder here.

    Args:
        overrides: as `expanded` returns them.
    """
    for word in overrides:
        group, _, value = word.partition("=")
        for name in alternatives(value) if group in REWRITES and value != REWRITES[group] else ():
            if not is_path(name) and _exists(name):
                yield f"{group}={name}: the option of this name is taken; what has this name here is {group}=./{name}"


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
