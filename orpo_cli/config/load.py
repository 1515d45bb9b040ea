"""The one door from YAML to typed configuration; after it nobody sees a DictConfig."""

import difflib
import re
from collections.abc import Iterable, Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from orpo_cli.config import optimization, preferences, schema
from orpo_cli.config.plain import read_yaml
from orpo_cli.errors import ConfigError, InputNotFoundError

SECTIONS: dict[str, type | dict[str, type]] = {
    "model": schema.ModelConfig,
    "data": preferences.DataConfig,
    "loss": schema.LossConfig,
    "adapter": schema.ADAPTERS,
    "optimizer": optimization.OPTIMIZERS,
    "scheduler": optimization.SCHEDULERS,
    "trainer": schema.TrainerConfig,
}

CODE_KEYS = {"_target_", "_partial_", "_recursive_"}
"""Keys by which Hydra calls what a value names."""

NAMES_ELSEWHERE = {
    "alpha": "lambda",
    "beta": "lambda",
    "learning_rate": "optimizer.lr",
    "batch_size": "trainer.pairs_per_step",
}
"""What other tools call a key, and its name here."""


def builtin_configs() -> Path:
    """The directory of YAML groups: inside an installed package, or at the top of a source tree."""
    package = Path(__file__).resolve().parent.parent
    installed = package / "configs"
    return installed if installed.is_dir() else package.parent / "configs"


def nearest(name: str, known: Iterable[str]) -> str:
    """` (did you mean ...?)` with the closest known name, or the list of known names."""
    known = sorted(known)
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    return f"did you mean `{close[0]}`?" if close else "known: " + ", ".join(known)


def section_keys(section: str, name: str | None = None) -> list[str]:
    """Keys of a section; of all its variants where `name` is not one of them."""
    kinds = SECTIONS[section]
    if not isinstance(kinds, dict):
        kinds = {section: kinds}
    chosen = [kinds[name]] if name in kinds else kinds.values()
    return sorted({field.name for kind in chosen for field in fields(kind)})


def _dotted_keys(section: str, name: str | None) -> list[str]:
    """Keys of a section as they are typed, those inside a key included."""
    kinds = SECTIONS[section]
    parts = {} if isinstance(kinds, dict) else nested_kinds(kinds)
    inside = [f"{key}.{field.name}" for key, kind in parts.items() for field in fields(kind)]
    return sorted([key for key in section_keys(section, name) if key not in parts] + inside)


def explain_unknown_key(full_key: str, config_names: Mapping[str, str] | None = None) -> str:
    """Why `full_key` is not a key, with the nearest one that is.

    Args:
        full_key: dotted, as typed.
        config_names: for each section with variants, the variant in use.
    """
    if full_key in {path.name for path in builtin_configs().iterdir() if path.is_dir()} - set(SECTIONS):
        return f"`{full_key}` is a group that a run has no option of yet: write +{full_key}=..."
    section, _, rest = full_key.partition(".")
    leaf = full_key.rpartition(".")[2]
    if leaf in NAMES_ELSEWHERE or leaf in schema.ROOT_KEYS:
        return f"unknown key `{full_key}`: did you mean `{NAMES_ELSEWHERE.get(leaf, leaf)}`?"
    if section not in SECTIONS or not rest:
        return f"unknown key `{full_key}`: {_nearest_root_key(full_key)}"
    name = (config_names or {}).get(section)
    keys = _dotted_keys(section, name)
    where = f" in {section}={name}" if name else ""
    owners = _variants_with(section, rest)
    close = difflib.get_close_matches(rest, keys, n=1, cutoff=0.6)
    hint = f"did you mean `{section}.{close[0]}`?" if close else "its keys: " + ", ".join(keys)
    if owners:
        hint = f"it belongs to {section}={', '.join(owners)}" + (f"; its keys: {', '.join(keys)}" if name else "")
    return f"unknown key `{full_key}`{where}: {hint}"


def _nearest_root_key(key: str) -> str:
    nested = [f"{name}.{leaf}" for name in SECTIONS for leaf in section_keys(name)]
    by_leaf = [name for name in nested if name.split(".")[1] == key]
    close = by_leaf or difflib.get_close_matches(key, [*schema.ROOT_KEYS, *SECTIONS, *nested], n=1, cutoff=0.6)
    return f"did you mean `{close[0]}`?" if close else "known: " + ", ".join([*schema.ROOT_KEYS, *SECTIONS])


def _variants_with(section: str, key: str) -> list[str]:
    kinds = SECTIONS[section]
    return [name for name in kinds if key in section_keys(section, name)] if isinstance(kinds, dict) else []


def _plain(error: OmegaConfBaseException) -> str:
    text = str(error).split("\n", 1)[0]
    return "expected a list, as in [1,2]" if "is not a ListConfig" in text else text.replace("'None'", "null")


def _literal(value: Any) -> Any:
    """`value`, in which references are resolved, so that a `${` left in it (of a file name) is not one again."""
    if isinstance(value, dict):
        return {key: _literal(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_literal(item) for item in value]
    return re.sub(r"(\\*)\$\{", r"\1\1\\${", value) if isinstance(value, str) else value


def _typed(kind: type, values: dict[str, Any], prefix: str = "") -> Any:
    """An instance of `kind` from untyped values; `prefix` is `section.` or empty, for the message."""
    typed = OmegaConf.structured(kind)
    OmegaConf.set_readonly(typed, False)
    for name, part in nested_kinds(kind).items():
        typed[name] = _nested(part, values.get(name), f"{prefix}{name}.")
        OmegaConf.set_readonly(typed[name], False)
    try:
        return OmegaConf.to_object(OmegaConf.merge(typed, _literal(values)))
    except OmegaConfBaseException as error:
        key = str(error.full_key or error.key).split("[")[0]
        value = values.get(key)
        given = "null" if value is None else value
        raise ConfigError(f"{prefix}{key.rstrip('_')}={given}: {_plain(error)}") from None


def _nested(kind: type, values: Any, prefix: str) -> Any:
    """An instance of a class of keys inside a section."""
    known = [field.name for field in fields(kind)]
    if not isinstance(values, dict):
        raise ConfigError(f"{prefix.rstrip('.')}={values}: expected values of its keys: {', '.join(known)}")
    for key in values:
        if key not in known:
            raise ConfigError(f"unknown key `{prefix}{key}`: {nearest(str(key), known)}")
    for key in known:
        if key not in values:
            raise ConfigError(f"{prefix}{key} is not set: write {prefix}{key}=...")
    return _typed(kind, values, prefix)


def nested_kinds(kind: type) -> dict[str, type]:
    """The fields of a configuration class that hold keys of their own, with the class of each."""
    return {
        field.name: field.type for field in fields(kind) if isinstance(field.type, type) and is_dataclass(field.type)
    }


def _section(cfg: DictConfig, section: str) -> Any:
    kinds = SECTIONS[section]
    node = cfg.get(section)
    if not isinstance(node, DictConfig):
        what = f"{section} is not set" if node is None else f"{section}={node}: not one of its options"
        raise ConfigError(f"{what}; see `orpo train --help`")
    name = str(node.get("name")) if isinstance(kinds, dict) else None
    if isinstance(kinds, dict) and name not in kinds:
        raise ConfigError(f"{section}.name={name}: {nearest(str(name), kinds)}")
    known = section_keys(section, name)
    for key in node:
        if key not in known:
            raise ConfigError(explain_unknown_key(f"{section}.{key!s}", {section: name} if name else None))
    for key in known:
        if key not in node or OmegaConf.is_missing(node, key):
            hint = (
                f"choose the group option {section}={name}"
                if name and key not in node
                else f"write {section}.{key}=..."
            )
            raise ConfigError(f"{section}.{key} is not set: {hint}")
    values: Any = OmegaConf.to_container(node, resolve=True)
    return _typed(kinds[str(name)] if isinstance(kinds, dict) else kinds, values, f"{section}.")


def _root(cfg: DictConfig) -> schema.RootConfig:
    for key in schema.ROOT_KEYS:
        if key not in cfg:
            raise ConfigError(f"{key} is not set")
    root: schema.RootConfig = _typed(schema.RootConfig, {schema.ROOT_KEYS[key]: cfg[key] for key in schema.ROOT_KEYS})
    return root


def _refuse_code(cfg: Any, prefix: str = "") -> None:
    """YAML is data, not code: a `_target_` anywhere is refused."""
    items = cfg.items() if isinstance(cfg, dict) else enumerate(cfg) if isinstance(cfg, list) else ()
    for key, value in items:
        if key in CODE_KEYS:
            raise ConfigError(f"{prefix}{key}: configurations hold values, never code; remove it")
        _refuse_code(value, f"{prefix}{key}.")


def load_check_config(cfg: DictConfig) -> tuple[schema.RunConfig, preferences.CheckConfig]:
    """Check the composed configuration of `orpo check`: that of a run, and what is looked for.

    Raises:
        ConfigError: as `load_config`.
    """
    _refuse_code(OmegaConf.to_container(cfg, resolve=False))
    values: Any = OmegaConf.to_container(cfg.get("check") or OmegaConf.create(), resolve=True)
    check: preferences.CheckConfig = _nested(preferences.CheckConfig, values, "check.")
    return load_config(OmegaConf.masked_copy(cfg, [str(key) for key in cfg if key != "check"])), check


def load_config(cfg: DictConfig) -> schema.RunConfig:
    """Check a composed configuration against the schema.

    Raises:
        ConfigError: an unknown key, a wrong type, or a value outside its limits; one line that names the key.
    """
    _refuse_code(OmegaConf.to_container(cfg, resolve=False))
    for key in cfg:
        if key not in SECTIONS and key not in schema.ROOT_KEYS and key != "hydra":
            raise ConfigError(explain_unknown_key(str(key)))
    try:
        root = _root(cfg)
        sections = {section: _section(cfg, section) for section in SECTIONS}
    except OmegaConfBaseException as error:
        raise ConfigError(f"{error.full_key}: {_plain(error)}") from None
    return schema.RunConfig(**vars(root), **sections)


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
    return _dumped(_literal(saved))


FREE_KEYS = (
    "data.workers",
    "trainer.device",
    "trainer.processes",
    "trainer.max_tokens",
    "trainer.eval_max_tokens",
    "trainer.layout",
    "trainer.gradient_checkpointing",
    "trainer.eval_every",
    "trainer.save_every",
    "trainer.log_every",
    "trainer.keep_last",
    "trainer.keep_best",
    "trainer.on_nonfinite",
    "trainer.max_skipped",
    "trainer.on_spike",
    "trainer.on_save_error",
    "trainer.max_time",
    "trainer.timeout",
    "trainer.sample_tokens",
)
"""Keys that may change on resume; of the others, all but those of the folder decide what is computed."""

PLACES = ("data.path", "data.eval_path", "model.path", "model.revision")
"""Keys that say where data and model are; these count by their content."""


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
