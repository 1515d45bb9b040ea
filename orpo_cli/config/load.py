"""Turn YAML into a typed configuration; behind this door nobody sees a DictConfig."""

import re
from collections.abc import Sequence
from dataclasses import fields
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from orpo_cli.config import data, evaluation, export, generation, schema
from orpo_cli.config.keys import (
    CODE_KEYS,
    SECTIONS,
    builtin_configs,
    explain_unknown_key,
    nearest,
    nested_kinds,
    section_keys,
)
from orpo_cli.errors import ConfigError

OmegaConf.register_new_resolver("divided", lambda value, by: value / by, replace=True)


def load_config(cfg: DictConfig) -> schema.RunConfig:
    """Check a composed configuration against the schema.

    Raises:
        ConfigError: if it has an unknown key, a wrong type, or a value outside its limits; one line that names the key.
    """
    _refuse_code(OmegaConf.to_container(cfg, resolve=False))
    for key in cfg:
        if key not in SECTIONS and key not in schema.ROOT_KEYS and key != "hydra":
            raise ConfigError(explain_unknown_key(str(key)))
    for key in schema.ROOT_KEYS:
        if key not in cfg:
            raise ConfigError(f"{key} is not set")
    try:
        values = {schema.ROOT_KEYS[key]: cfg[key] for key in schema.ROOT_KEYS}
        root: schema.RootConfig = _typed(schema.RootConfig, values)
        sections = {section: _section(cfg, section) for section in SECTIONS}
    except OmegaConfBaseException as error:
        raise ConfigError(f"{error.full_key}: {_in_our_words(error)}") from None
    return schema.RunConfig(**vars(root), **sections)


def load_check_config(cfg: DictConfig) -> tuple[schema.RunConfig, data.CheckConfig]:
    """Check the composed configuration of `orpo check`: that of a run, and what is looked for.

    Raises:
        ConfigError: as for `load_config`, or if it resumes a run.
    """
    if cfg.get("resume") is not None:
        raise ConfigError(f"resume={cfg.resume}: a check looks at data; give data=... and model=... instead")
    _refuse_code(OmegaConf.to_container(cfg, resolve=False))
    values: Any = OmegaConf.to_container(cfg.get("check") or OmegaConf.create(), resolve=True)
    check: data.CheckConfig = _nested(data.CheckConfig, values, "check.")
    return load_config(OmegaConf.masked_copy(cfg, [str(key) for key in cfg if key != "check"])), check


def load_evaluation_config(cfg: DictConfig) -> tuple[schema.RunConfig, evaluation.EvaluationConfig]:
    """Check the composed configuration of `orpo evaluate`: that of a run, and what belongs to an evaluation.

    Raises:
        ConfigError: as for `load_config`, or if it resumes a run.
    """
    if cfg.get("resume") is not None:
        raise ConfigError(f"resume={cfg.resume}: an evaluation takes model=RUN_DIR")
    return _with_own_keys(cfg, evaluation.EvaluationConfig)


def load_generation_config(cfg: DictConfig) -> tuple[schema.RunConfig, generation.GenerationConfig]:
    """Check the composed configuration of `orpo generate`: that of a run, and how answers are chosen.

    Raises:
        ConfigError: as for `load_config`, if no model is given, or if it resumes a run.
    """
    if cfg.get("resume") is not None:
        raise ConfigError(f"resume={cfg.resume}: answers are those of model=RUN_DIR")
    if "model" in cfg and OmegaConf.is_missing(cfg.model, "path"):
        raise ConfigError("no model is given: type model=RUN_DIR, a directory with a model, or a hub id")
    return _with_own_keys(cfg, generation.GenerationConfig)


def _with_own_keys(cfg: DictConfig, kind: type) -> tuple[schema.RunConfig, Any]:
    """Return the configuration of a run, and an instance of the class of the root keys beside it."""
    own = [field.name for field in fields(kind)]
    values: Any = {key: cfg[key] for key in own}
    of_run = OmegaConf.masked_copy(cfg, [str(key) for key in cfg if key not in own])
    return load_config(of_run), _typed(kind, values)


def load_export_config(words: Sequence[str]) -> export.ExportConfig:
    """Check the words KEY=VALUE of `orpo export` against the schema; what is not given is as in configs/export.yaml.

    Raises:
        ConfigError: if a word sets no key, a key is unknown or given twice, or a value is outside its limits.
    """
    values: Any = OmegaConf.to_container(OmegaConf.load(builtin_configs() / "export.yaml"))
    given: dict[str, str | None] = {}
    for word in words:
        key, equals, value = word.partition("=")
        if not equals:
            raise ConfigError(f"{word}: expected KEY=VALUE, as in to=DIR")
        if key not in values:
            raise ConfigError(f"unknown key `{key}`: {nearest(key, values)}")
        if key in given:
            raise ConfigError(f"{word}: {key} is given twice")
        given[key] = None if value == "null" else value
    result: export.ExportConfig = _typed(export.ExportConfig, values | given)
    return result


def _refuse_code(cfg: Any, prefix: str = "") -> None:
    """Refuse a `_target_` anywhere: YAML is data, not code."""
    items = cfg.items() if isinstance(cfg, dict) else enumerate(cfg) if isinstance(cfg, list) else ()
    for key, value in items:
        if key in CODE_KEYS:
            raise ConfigError(f"{prefix}{key}: configurations hold values, never code; remove it")
        _refuse_code(value, f"{prefix}{key}.")


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
            is_of_variant = name and key not in node
            hint = f"choose the group option {section}={name}" if is_of_variant else f"write {section}.{key}=..."
            raise ConfigError(f"{section}.{key} is not set: {hint}")
    values: Any = OmegaConf.to_container(node, resolve=True)
    return _typed(kinds[str(name)] if isinstance(kinds, dict) else kinds, values, f"{section}.")


def _nested(kind: type, values: Any, prefix: str) -> Any:
    """Return an instance of a class of keys inside a section."""
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


def _typed(kind: type, values: dict[str, Any], prefix: str = "") -> Any:
    """Return an instance of `kind` from untyped values.

    Args:
        prefix: the section and a dot, for the message.
    """
    typed = OmegaConf.structured(kind)
    OmegaConf.set_readonly(typed, False)
    for name, part in nested_kinds(kind).items():
        typed[name] = _nested(part, values.get(name), f"{prefix}{name}.")
        OmegaConf.set_readonly(typed[name], False)
    try:
        return OmegaConf.to_object(OmegaConf.merge(typed, as_literals(values)))
    except OmegaConfBaseException as error:
        key = str(error.full_key or error.key).split("[")[0]
        value = values.get(key)
        given = "null" if value is None else value
        raise ConfigError(f"{prefix}{key.rstrip('_')}={given}: {_in_our_words(error)}") from None


def as_literals(value: Any) -> Any:
    """Return resolved values in which a `${` that is left, of a file name, is escaped."""
    if isinstance(value, dict):
        return {key: as_literals(item) for key, item in value.items()}
    if isinstance(value, list):
        return [as_literals(item) for item in value]
    return re.sub(r"(\\*)\$\{", r"\1\1\\${", value) if isinstance(value, str) else value


def _in_our_words(error: OmegaConfBaseException) -> str:
    text = str(error).split("\n", 1)[0]
    expected = {
        "is not a ListConfig": "a list, as in [1,2]", "is not a valid bool": "true or false",
        "could not be converted to Integer": "a whole number", "could not be converted to Float": "a number",
    }  # fmt: skip
    found = next((what for said, what in expected.items() if said in text), None)
    return f"expected {found}" if found else text.replace("'None'", "null")
