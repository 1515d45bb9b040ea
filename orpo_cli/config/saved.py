"""The configuration of a run as its folder keeps it: written, and read again, perhaps from somebody else's folder."""

import re
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from orpo_cli.config import schema
from orpo_cli.config.keys import PLACES
from orpo_cli.config.load import as_literals, load_config
from orpo_cli.errors import ConfigError, InputNotFoundError
from orpo_cli.files.untrusted import read_yaml


def portable_yaml(cfg: DictConfig, run_dir: Path) -> str:
    """The composed configuration as saved in a run folder.

    It holds values and no references, so that a run folder of somebody else needs none to be resolved; local paths are
    absolute, so that the run can be resumed from any directory.
    """
    saved: Any = OmegaConf.to_container(cfg, resolve=True)
    saved.pop("hydra", None)
    saved["output_dir"], saved["resume"] = str(run_dir), None
    for section, keys in {"data": ("path", "eval_path"), "model": ("path", "chat_template")}.items():
        for key in keys:
            saved[section][key] = from_anywhere(saved[section][key])
    return _dumped(as_literals(saved))


def found_elsewhere(run_dir: Path, now: str) -> str:
    """The saved configuration of a run, with data and model where it found them when it went on.

    Args:
        now: the configuration it went on with, as `portable_yaml` gives it.
    """
    values: Any = OmegaConf.to_container(read_saved_config(run_dir), resolve=False)
    there = yaml.safe_load(now)
    for section, key in (place.split(".") for place in PLACES):
        values.setdefault(section, {})[key] = there[section][key]
    return _dumped(values)


class _Dumper(yaml.SafeDumper):
    """YAML's safe dumper; it would fold the line breaks that YAML 1.1 knows besides LF where they are not escaped."""


def _text(dumper: _Dumper, text: str) -> yaml.Node:
    style = '"' if any(sign in text for sign in "\x85\u2028\u2029") else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style)


_Dumper.add_representer(str, _text)


def _dumped(values: Any) -> str:
    return yaml.dump(values, Dumper=_Dumper, sort_keys=False, allow_unicode=True)


def from_anywhere(value: Any) -> Any:
    """A path that is there, as it can be found from anywhere; a pattern too, and a list of them. Hub ids and other
    values stay as they are."""
    if isinstance(value, list | tuple):
        return [from_anywhere(item) for item in value]
    if not isinstance(value, str) or value.startswith("builtin:"):
        return value
    path = Path(value).expanduser()
    is_pattern = any(sign in value for sign in "*?[")
    return str(path.resolve() if path.exists() else path.absolute()) if path.exists() or is_pattern else value


def read_saved_config(run_dir: Path) -> DictConfig:
    """The configuration of an earlier run, which may be somebody else's: values, whose references are few and plain.

    Raises:
        InputNotFoundError: the folder has no config.yaml.
        ConfigError: it is not a mapping of plain YAML.
    """
    path = run_dir / "config.yaml"
    if not path.is_file():
        raise InputNotFoundError(f"{path}: no such file; resume=DIR takes the folder of an earlier run")
    try:
        _, values = read_yaml(path)
        if not isinstance(values, dict):
            raise ValueError(": expected a mapping")
        _check_references(values, values)
        return OmegaConf.create(values)
    except (OSError, OmegaConfBaseException) as error:
        first_line = re.sub(r"\s+", " ", str(error))[:200]
        raise ConfigError(f"{path}: not a configuration: {first_line}") from None
    except ValueError as error:
        raise ConfigError(f"{path}{error}") from None


def load_saved_config(run_dir: Path) -> schema.RunConfig:
    """The configuration of an earlier run, checked.

    Raises:
        InputNotFoundError: the folder has no config.yaml.
        ConfigError: it is not the configuration of a run; the message begins with its path.
    """
    saved = read_saved_config(run_dir)
    try:
        return load_config(saved)
    except ConfigError as error:
        raise ConfigError(f"{run_dir / 'config.yaml'}: {error}") from None


_REFERENCE = re.compile(r"(?<!\\)(?:\\\\)*\$\{")
_PLAIN_REFERENCE = re.compile(r"\$\{(\w+)\.(\w+)\}")


def _check_references(part: Any, values: dict[Any, Any], key: str = "") -> None:
    """Refuse what reads the environment or multiplies: earlier versions saved `${adapter.default_lr}` and the like."""
    for name, item in part.items() if isinstance(part, dict) else enumerate(part) if isinstance(part, list) else ():
        _check_references(item, values, f"{key}.{name}" if key else str(name))
    if not isinstance(part, str) or not _REFERENCE.search(part):
        return
    plain = _PLAIN_REFERENCE.fullmatch(part)
    section = values.get(plain[1]) if plain else None
    target = section.get(plain[2]) if plain and isinstance(section, dict) else None
    if not isinstance(target, bool | int | float):
        raise ValueError(f": {key}={part[:100]}: a saved configuration holds values; write the value")
