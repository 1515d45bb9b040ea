"""What Hydra refuses, in one line and in the words of this tool."""

import re
from collections.abc import Sequence

from hydra.errors import MissingConfigException, OverrideParseException

from orpo_cli.cli.shorthand import REWRITES
from orpo_cli.config.keys import SECTIONS, builtin_configs, explain_unknown_key, nearest


def missing_option(error: MissingConfigException) -> str:
    """Return why there is no such option, with the nearest one that there is."""
    group, _, name = (error.missing_cfg_file or "").rpartition("/")
    if not group:
        return f"--config-name={name}: no such file; expected {name}.yaml in --config-dir"
    if not error.options:
        groups = [path.name for path in builtin_configs().iterdir() if path.is_dir()]
        return f"unknown group `{group}`: {nearest(group, groups)}"
    nor = ", and no file or folder of this name is here" if group in REWRITES else ""
    return f"{group}={name}: no such option{nor}; {nearest(name, error.options)}"


def refusal(error: Exception, argv: Sequence[str], root: str = "train") -> str:
    """Return why Hydra or OmegaConf refuses what was typed.

    Args:
        root: the name of the root configuration, which may have keys of its own.
    """
    text = str(error)
    if isinstance(error, OverrideParseException):
        return f"{error.override}: cannot be read; a value with special characters takes quotes: \"KEY='VALUE'\""
    if twice := re.search(r"Could not append to config[^']*'([^'=]+)|Multiple values for ([\w@/]+)\.", text):
        key = twice.group(1) or twice.group(2)
        return f"{key} is there already: write {key}=... without `+`"
    if unknown := re.search(r"Could not (?:override|delete)[^']*'([^'=]+)", text):
        return explain_unknown_key(unknown.group(1), _variants_in_use(argv), root)
    if several := re.search(r"Ambiguous value for argument '(.+)'|Sweep parameters '(.+)' requires", text):
        word = several.group(1) or several.group(2)
        return f"{word}: several values are a sweep; add -m{' sweep.trials=20' if 'interval(' in word else ''}"
    if "Config group override must be" in text:
        return "a group takes the name of one of its options, not a number or null; see `orpo train --help`"
    lines = [line.strip() for line in text.splitlines() if line.strip() and not set(line.strip()) <= {"^", "-"}]
    first = re.sub(r"^\w+Error raised while resolving interpolation: ", "", lines[0]) if lines else ""
    return first or type(error).__name__


def _variants_in_use(argv: Sequence[str]) -> dict[str, str]:
    chosen = (word.partition("=")[::2] for word in argv)
    return {
        group: option for group, option in chosen if isinstance(kinds := SECTIONS.get(group), dict) and option in kinds
    }
