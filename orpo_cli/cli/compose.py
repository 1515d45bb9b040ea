"""Hydra, held in one place: compose the configuration, run the job or the sweep, put its errors into one line."""

import os
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException, MissingConfigException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from orpo_cli.config.load import builtin_configs, explain_unknown_key, nearest
from orpo_cli.errors import ConfigError, OutputError

ALLOWED_HYDRA_KEYS = re.compile(
    r"hydra\.(run\.dir|sweep\.dir|sweep\.subdir|sweeper\.params(\..+)?|verbose)|hydra/launcher"
)
"""What may be set of Hydra itself; its other keys can import and run any code."""


def run(argv: Sequence[str], job: Callable[[DictConfig], None]) -> None:
    """Compose from flags and overrides, then call `job` once, or once for each job of a sweep.

    Raises:
        ConfigError: anything wrong with flags, overrides or YAML.
        OutputError: a run folder cannot be created.
    """
    _refuse_unsafe(argv)
    OmegaConf.register_new_resolver("orpo.run_dir", _run_dir, replace=True)
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra raises instead of printing and leaving
    sys.argv = ["orpo train", *argv]
    decorate: Any = hydra.main(version_base="1.3", config_path=str(builtin_configs()), config_name="train")
    try:
        decorate(job)()
    except MissingConfigException as error:
        raise ConfigError(_missing_option(error)) from None
    except (HydraException, OmegaConfBaseException, ValueError) as error:
        raise ConfigError(_one_line(error)) from None
    except OSError as error:
        raise OutputError(f"cannot create the run folder {error.filename}: {error.strerror}") from None


def run_dir() -> Path:
    """The folder Hydra gave the current job."""
    return Path(HydraConfig.get().runtime.output_dir)


def is_sweep() -> bool:
    """Whether the current job belongs to a sweep."""
    return bool(HydraConfig.get().mode == RunMode.MULTIRUN)


def job_overrides() -> list[str]:
    """The overrides of the current job, as typed or as expanded by the sweep."""
    return list(HydraConfig.get().overrides.task)


def with_overrides(saved: DictConfig, overrides: Sequence[str]) -> DictConfig:
    """`saved` with values overridden. Used on resume, where whole groups cannot be replaced any more.

    Raises:
        ConfigError: an override replaces a group, deletes a key, or names an unknown one.
    """
    changed: DictConfig = saved.copy()
    for override in OverridesParser.create().parse_overrides(list(overrides)):
        _apply(changed, override)
    return changed


def _apply(cfg: DictConfig, override: Override) -> None:
    key = override.key_or_group
    if isinstance(cfg.get(key), DictConfig) or override.is_delete():
        raise ConfigError(f"{override.input_line}: a resumed run keeps its {key}; only single values can be overridden")
    if OmegaConf.select(cfg, key, default=_ABSENT) is _ABSENT:
        raise ConfigError(explain_unknown_key(key))
    OmegaConf.update(cfg, key, override.value())


_ABSENT = object()


def _run_dir(resume: str | None, output_dir: str) -> str:
    return resume or output_dir


def _refuse_unsafe(argv: Sequence[str]) -> None:
    for word in argv:
        key = word.lstrip("+~").split("=", 1)[0]
        if "_target_" in word:
            raise ConfigError(f"{word}: `_target_` is code; configurations hold values only")
        if re.match(r"hydra[./]", key) and not ALLOWED_HYDRA_KEYS.fullmatch(key.split("@")[0]):
            raise ConfigError(f"{word}: this key of Hydra cannot be set; hydra.run.dir and hydra.sweep.dir can")


def _missing_option(error: MissingConfigException) -> str:
    group, _, name = (error.missing_cfg_file or "").rpartition("/")
    if not group:
        return _one_line(error)
    if not error.options:
        groups = [path.name for path in builtin_configs().iterdir() if path.is_dir()]
        return f"unknown group `{group}`: {nearest(group, groups)}"
    return f"{group}={name}: no such option; {nearest(name, error.options)}"


def _one_line(error: Exception) -> str:
    text = str(error)
    unknown = re.search(r"Could not (?:override|append) '([^']+)'", text)
    if unknown:
        key = unknown.group(1).split("=")[0]
        if "not in struct" in text or "No match in the defaults list" in text:
            return explain_unknown_key(key)
    lines = [line.strip() for line in text.splitlines() if line.strip() and not set(line.strip()) <= {"^", "-"}]
    return "; ".join(lines[:2]) or type(error).__name__
