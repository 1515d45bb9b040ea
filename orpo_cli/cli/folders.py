"""The folder that a job runs in: which keys say it, which of them may be given together, and how it is given on."""

import re
from collections.abc import Sequence
from pathlib import Path

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf

from orpo_cli.cli.shorthand import key_of
from orpo_cli.config.schema import AUTO
from orpo_cli.errors import ConfigError
from orpo_cli.quoting import override_value

FOLDER_KEYS = ("output_dir", "hydra.run.dir", "hydra.sweep.dir", "resume")
"""Keys that say where a run or a sweep is."""


def is_resume_of_named_run(cfg: DictConfig) -> bool:
    """Return whether a job resumes a run by its folder, so that its values are those that the run has saved."""
    return cfg.get("resume") not in (None, AUTO)


def run_folder(cfg: DictConfig) -> Path:
    """Return the folder of a run: that of the run to resume, else `output_dir`."""
    return folder_of(cfg, "resume" if is_resume_of_named_run(cfg) else "hydra.run.dir")


def folder_of(cfg: DictConfig, key: str) -> Path:
    """Return the folder that a key names.

    Raises:
        ConfigError: if the value of the key, or of `output_dir`, can be no folder.
    """
    for name in ("output_dir", key):  # the second may be a reference to the first
        value = OmegaConf.select(cfg, name)
        if not isinstance(value, str) or not value.strip() or "\0" in value:
            raise ConfigError(f"{name}={value}: expected a folder")
    return Path(value)


def placed(overrides: Sequence[str], folder: Path) -> list[str]:
    """Return the overrides of a run in this folder, whatever folder they name."""
    place = override_value(str(folder))
    kept = [f"{word.partition('=')[0]}={place}" if key_of(word) == "output_dir" else word for word in overrides]
    return [*kept, f"hydra.run.dir={place}"]


def check_folder_is_given(cfg: DictConfig, overrides: Sequence[str], key_of_hydra: str) -> None:
    """Check that `resume=auto` is told where to look.

    Args:
        overrides: what was typed.
        key_of_hydra: the key that names the folder as `output_dir` does.
    Raises:
        ConfigError: if neither key was typed.
    """
    given = {key_of(word) for word in overrides}
    if cfg.get("resume") == AUTO and given.isdisjoint({"output_dir", key_of_hydra}):
        raise ConfigError(
            "resume=auto resumes what is in output_dir, whose default is a new folder each time; "
            "give it: output_dir=FOLDER"
        )


def refuse_two_folders(overrides: Sequence[str]) -> None:
    """Refuse two keys that name different folders for one run: one of them would be ignored silently.

    Raises:
        ConfigError: if two were typed.
    """
    words = {key_of(word): word for word in overrides}
    advice = {
        ("output_dir", "hydra.run.dir"): "two folders for one run; give output_dir only",
        ("output_dir", "hydra.sweep.dir"): "two folders for one run; give output_dir only",
        ("output_dir", "resume"): "a run is resumed in its own folder; leave output_dir out",
        ("hydra.run.dir", "resume"): "a run is resumed in its own folder; leave hydra.run.dir out",
    }
    for pair, what in advice.items():
        if words.keys() >= set(pair):
            folders = {_folder_in(words[key]) for key in pair}
            if len(folders) == 2 and None not in folders:
                raise ConfigError(f"{words[pair[0]]} {words[pair[1]]}: {what}")


def _folder_in(word: str) -> Path | None:
    """Return the folder that an override sets; None where that is a reference, or none."""
    try:
        override = OverridesParser.create().parse_override(word)
        value = override.value()
        is_none = value is None or (override.key_or_group == "resume" and value == AUTO)
        return None if is_none or _REFERENCE.search(str(value)) else Path(str(value)).resolve()
    except (HydraException, OSError, RuntimeError, ValueError):
        return None


_REFERENCE = re.compile(r"(?<!\\)\$\{")
