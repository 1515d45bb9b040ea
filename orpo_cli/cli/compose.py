"""Hydra, held in one place: overrides and YAML groups become the configuration of one job, or of each job of a sweep.

Only Hydra's compose API and its override parser are used: Hydra makes no folder and touches neither signals, logging
nor sys.argv.
"""

import contextlib
import io
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException, MissingConfigException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException
from omegaconf.resolvers import oc

from orpo_cli.cli.arguments import Arguments
from orpo_cli.cli.config_dir import check_config_dir, check_override
from orpo_cli.cli.folders import (
    check_folder_is_given,
    folder_of,
    is_resume_of_named_run,
    refuse_two_folders,
    run_folder,
)
from orpo_cli.cli.hydra_errors import missing_option, refusal
from orpo_cli.cli.origins import Layer, with_origins
from orpo_cli.cli.saved_adapter import with_saved_adapter
from orpo_cli.cli.shorthand import REWRITES, is_path, key_of, with_trackers_named
from orpo_cli.config.config_yaml import with_keys
from orpo_cli.config.keys import SECTIONS, builtin_configs, explain_unknown_key
from orpo_cli.config.load import as_literals, load_config
from orpo_cli.config.schema import AUTO, ROOT_KEYS, RunConfig
from orpo_cli.config.sweep import LAUNCHERS
from orpo_cli.errors import ConfigError
from orpo_cli.quoting import override_value
from orpo_cli.runs.folder import RunFolder

_ONE_AT_A_TIME = threading.RLock()
"""Hydra keeps what it composes in variables of the whole process."""


@dataclass(frozen=True)
class Job:
    """One composed job.

    Args:
        config: its configuration, in values without references.
        overrides: as typed, or as the sweep expanded them.
        folder: the folder it is to run in.
        choices: group -> the option that was chosen.
    """

    config: DictConfig
    overrides: list[str]
    folder: Path
    choices: Mapping[str, str]


@dataclass(frozen=True)
class Composition:
    """What was composed: one job, or the jobs of a sweep.

    Args:
        sweep: the folder of the sweep.
        launcher: the launcher of Hydra's that was chosen for its jobs.
        launcher_values: its keys.
    """

    jobs: list[Job]
    sweep: Path | None
    launcher: str = "basic"
    launcher_values: dict[str, Any] = field(default_factory=dict)


def compose_jobs(arguments: Arguments, root: str = "train", first: int = 0) -> Composition:
    """Compose the configuration of every job.

    Args:
        root: the name of the root configuration, where `--config-name` gives no other.
        first: the number of the first job of a sweep.
    Raises:
        ConfigError: if anything is wrong with flags, overrides or YAML.
    """
    with _hydra(arguments, root) as (name, overrides):
        if not arguments.multirun:
            cfg = compose(name, overrides, return_hydra_config=True)
            if cfg.hydra.mode != RunMode.MULTIRUN:
                _refuse_lost_choices(cfg, name, overrides)
                check_folder_is_given(cfg, overrides, "hydra.run.dir")
                return Composition([_job(cfg, run_folder(cfg))], None)
        return _compose_sweep(name, overrides, first)


def varied(arguments: Arguments, root: str = "train") -> list[Override]:
    """Return the overrides that give a key of a sweep several values, typed or in its YAML.

    Raises:
        ConfigError: if anything is wrong with flags, overrides or YAML.
    """
    with _hydra(arguments, root) as (name, overrides):
        return [override for override in _swept(name, overrides).overrides.values() if override.is_sweep_override()]


def show(arguments: Arguments, root: str = "train") -> None:
    """Print what `--cfg` or `--info` asks for.

    Raises:
        ConfigError: if anything is wrong with flags, overrides or YAML.
    """
    with _hydra(arguments, root) as (name, overrides):
        hydra: Any = GlobalHydra.instance().hydra
        if arguments.info:
            hydra.show_info(arguments.info, name, overrides)
            return
        text = io.StringIO()
        try:
            with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(text):
                hydra.show_cfg(name, overrides, arguments.cfg, arguments.package, arguments.resolve)
        except SystemExit:
            raise ConfigError(f"--package {arguments.package}: the configuration has no such part") from None
        if arguments.cfg == "job":
            _refuse_lost_choices(compose(name, overrides, return_hydra_config=True), name, overrides)
        is_value = not text.getvalue().startswith("# @package") and arguments.package not in (None, "_global_")
        if arguments.cfg == "job" and not is_value:
            layers = _layers(name, overrides, arguments)
            print(with_origins(text.getvalue(), layers, arguments.package, arguments.resolve), end="")
        else:
            print(text.getvalue(), end="")


def _layers(name: str, overrides: Sequence[str], arguments: Arguments) -> Iterator[Layer]:
    """Yield what each file of the defaults list sets, in the order in which Hydra merges them, then each override."""
    loader: Any = GlobalHydra.instance().config_loader()
    listed = loader.compute_defaults_list(name, list(overrides), RunMode.RUN)
    _, repository = loader._parse_overrides_and_create_caching_repo(name, list(overrides))
    for default in listed.defaults:
        loaded = loader._load_single_config(default, repository)
        folder = Path("configs") if loaded.path == f"file://{builtin_configs()}" else arguments.config_dir
        yield Layer(f"{folder}/{default.config_path}.yaml", OmegaConf.to_container(loaded.config))
    of_file = set(overrides[: len(arguments.entry.words)])
    for override in listed.config_overrides:
        if not override.is_delete():
            source = str(arguments.entry.path) if override.input_line in of_file else "the command line"
            yield Layer(source, override.value(), override.key_or_group)


def config_of(job: Job, folder: RunFolder) -> RunConfig:
    """Return the checked configuration of a job: of one that resumes the run in its folder, that of the run.

    A run of an earlier version keeps the meaning of keys that it did not have, unless they are typed.

    Raises:
        ConfigError: if anything is wrong with it.
    """
    if is_resume_of_named_run(job.config):
        return load_config(with_overrides(folder.saved_config, job.overrides))
    if job.config.get("resume") != AUTO or not folder.has_begun:
        return load_config(job.config)
    typed = set(map(key_of, job.overrides))
    then = {key: value for key, value in folder.keys_since.items() if key not in typed}
    return load_config(with_keys(job.config, then))


def with_overrides(saved: DictConfig, overrides: Sequence[str]) -> DictConfig:
    """Return a saved configuration with values overridden; whole groups cannot be replaced any more.

    Raises:
        ConfigError: if an override replaces a group, deletes a key, or names an unknown one.
    """
    changed: DictConfig = saved.copy()
    for word in map(with_trackers_named, overrides):
        try:
            override = OverridesParser.create().parse_override(word)
        except HydraException as error:
            raise ConfigError(refusal(error, overrides)) from None
        key = override.key_or_group
        if override.is_sweep_override():
            raise ConfigError(f"{word}: several values are a sweep; a resumed run takes one")
        if isinstance(changed.get(key), DictConfig) or override.is_delete():
            moved = ", such as data.path=FILE where it was moved" if key == "data" else ""
            raise ConfigError(f"{word}: a resumed run keeps its {key}; only single values can be overridden{moved}")
        if OmegaConf.select(changed, key, default=_ABSENT) is _ABSENT:
            raise ConfigError(explain_unknown_key(key))
        OmegaConf.update(changed, key, override.value())
    return changed


_ABSENT = object()


@contextlib.contextmanager
def _hydra(arguments: Arguments, root: str) -> Iterator[tuple[str, list[str]]]:
    """Initialise Hydra for the block, put what it raises into one line, and leave everything as it was.

    Yields the name of the root configuration, and the overrides.
    """
    overrides = [with_trackers_named(word) for word in with_saved_adapter(arguments.overrides)]
    name, main = arguments.config_name or root, builtin_configs()
    for word in overrides:
        check_override(word)
    refuse_two_folders(overrides)
    if arguments.config_dir is not None:
        check_config_dir(arguments.config_dir, main)
        other = arguments.config_dir.absolute()
        if (other / f"{name.removesuffix('.yaml')}.yaml").is_file():  # Hydra looks for the root in one directory only
            main, other = other, main
        place = override_value(f"file://{other}")
        overrides = [*overrides, f"hydra.searchpath=[{place}]"]
    with _ONE_AT_A_TIME, contextlib.ExitStack() as stack:
        stack.callback(setattr, HydraConfig.instance(), "cfg", HydraConfig.instance().cfg)
        _set_hydra_aside(stack)
        OmegaConf.register_new_resolver("oc.env", _refuse_environment, replace=True)
        stack.callback(OmegaConf.register_new_resolver, "oc.env", oc.env, replace=True)
        try:
            stack.enter_context(initialize_config_dir(str(main), job_name=root, version_base="1.3"))
            for launcher, keys in LAUNCHERS.items():  # in place of those that plugins may have brought
                ConfigStore.instance().store(group="hydra/launcher", name=launcher, node=keys)
            yield name, overrides
        except MissingConfigException as error:
            raise ConfigError(missing_option(error)) from None
        except (HydraException, OmegaConfBaseException, ValueError, AssertionError) as error:  # asserts of OmegaConf
            raise ConfigError(refusal(error, arguments.overrides, root)) from None


def _set_hydra_aside(stack: contextlib.ExitStack) -> None:
    """Take the Hydra of a program that has one out of the way, and bring it back when the stack is closed."""
    theirs = GlobalHydra.instance().hydra
    GlobalHydra.instance().clear()
    stack.callback(lambda: setattr(GlobalHydra.instance(), "hydra", theirs))


def _refuse_environment(name: str, *_default: Any) -> str:
    raise ValueError(f"${{oc.env:{name}}}: configurations do not read the environment; let the shell put the value in")


@dataclass(frozen=True)
class _Swept:
    """The configuration that all jobs of a sweep have in common, and their overrides by key."""

    master: DictConfig
    overrides: dict[str, Override]


def _swept(name: str, words: Sequence[str]) -> _Swept:
    loader: Any = GlobalHydra.instance().config_loader()
    parser = OverridesParser.create(config_loader=loader)
    parsed = parser.parse_overrides(list(words))
    chosen = [
        str(one.input_line)
        for one in parsed
        if one.is_hydra_override() or (_is_group(one) and not one.is_sweep_override())
    ]
    master = compose(name, chosen, return_hydra_config=True)
    params: Any = OmegaConf.to_container(master.hydra.sweeper.params or OmegaConf.create(), resolve=True)
    swept = parser.parse_overrides([f"{key}={value}" for key, value in params.items()])
    swept += [one for one in parsed if not one.is_hydra_override()]
    return _Swept(master, {override.get_key_element(): override for override in swept})


def _compose_sweep(name: str, words: Sequence[str], first: int) -> Composition:
    """Compose each job of a sweep: one for each combination of the values of all overrides."""
    loader: Any = GlobalHydra.instance().config_loader()
    swept = _swept(name, words)
    jobs: list[Job] = []
    sweeps: list[Path] = []
    before = swept.master
    for number, combination in enumerate(product(*map(_values, swept.overrides.values())), first):
        cfg = loader.load_sweep_config(swept.master, list(combination))
        OmegaConf.copy_cache(from_config=before, to_config=cfg)  # one time of day for all jobs
        with open_dict(cfg.hydra.job):
            cfg.hydra.job.id = cfg.hydra.job.num = number
        HydraConfig.instance().set_config(cfg)
        _refuse_lost_choices(cfg, name, words)
        check_folder_is_given(cfg, words, "hydra.sweep.dir")
        sweeps.append(folder_of(cfg, "hydra.sweep.dir").absolute())
        jobs.append(_job(cfg, sweeps[-1] / str(cfg.hydra.sweep.subdir)))
        before = cfg
    if not jobs:
        raise ConfigError("the sweep has no values: one of its lists is empty")
    for number, folder in enumerate(sweeps):
        if folder != sweeps[0]:
            raise ConfigError(
                f"job {number}, in {folder}: job 0 is in {sweeps[0]}; a sweep has one output_dir, "
                "and hydra.sweep.subdir names its jobs"
            )
    hydra = swept.master.hydra
    values: Any = OmegaConf.to_container(hydra.launcher, resolve=True)
    return Composition(jobs, sweeps[0], str(hydra.runtime.choices["hydra/launcher"]), values)


def _refuse_lost_choices(cfg: DictConfig, name: str, words: Sequence[str]) -> None:
    """Refuse an option that is typed where an experiment sets another path: in Hydra's order the experiment wins.

    Args:
        words: all overrides; those of Hydra itself say where options are found.
    Raises:
        ConfigError: if the typed option is not what would be used.
    """
    if "experiment" not in cfg.hydra.runtime.choices:
        return
    typed: Any = OmegaConf.to_container(cfg.hydra.overrides.task, resolve=False)
    for group in REWRITES:
        chosen = next((word for word in typed if word.startswith(f"{group}=")), f"{group}=null")
        if is_path(chosen.partition("=")[2]) or f"{group}.path" in map(key_of, typed) or chosen.endswith("=null"):
            continue
        own = compose(name, [chosen, *(word for word in words if word.startswith("hydra."))])[group]
        if not OmegaConf.is_missing(own, "path") and own.path != (sets := cfg[group].path):
            raise ConfigError(
                f"{chosen}: +experiment={cfg.hydra.runtime.choices.experiment} sets {group}.path={sets}, which wins "
                f"over an option; with {group}.path={own.path} the experiment has what you chose"
            )


def _is_group(override: Override) -> bool:
    return "." not in override.key_or_group and override.key_or_group not in ROOT_KEYS


def _values(override: Override) -> list[str]:
    """Return an override once for each of its values."""
    key = override.get_key_element()
    if not override.is_sweep_override():
        return [f"{key}={override.get_value_element_as_str()}"]
    if not override.is_discrete_sweep():
        raise ConfigError(
            f"{override.input_line}: has no values to sweep over, as a list, choice(), range() or glob() has; "
            "sweep.trials=20 searches it with 20 runs"
        )
    return [f"{key}={value}" for value in override.sweep_string_iterator()]


def _job(cfg: DictConfig, folder: Path) -> Job:
    """Resolve a composed configuration; Hydra's own part is left out."""
    overrides: Any = OmegaConf.to_container(cfg.hydra.overrides.task, resolve=False)
    keys = ["resume"] if is_resume_of_named_run(cfg) else [str(key) for key in cfg if key != "hydra"]
    try:
        values: Any = {key: _resolved(cfg, key) for key in keys}
    except OmegaConfBaseException as error:
        for section in SECTIONS:
            if section not in cfg:
                raise ConfigError(f"{section} is not set; see `orpo train --help`") from None
        raise ConfigError(f"{error.full_key}: {str(error).splitlines()[0]}") from None
    choices: Any = OmegaConf.to_container(cfg.hydra.runtime.choices)
    return Job(OmegaConf.create(as_literals(values)), list(overrides), folder, choices)


def _resolved(cfg: DictConfig, key: str) -> Any:
    if OmegaConf.is_missing(cfg, key):
        return "???"
    value = cfg[key]
    return OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value
