"""Hydra, held in one place: compose the configuration, run the job or the sweep, put its errors into one line."""

import contextlib
import os
import re
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from orpo_cli.cli.arguments import REWRITES
from orpo_cli.cli.config_dir import check_config_dir, check_override
from orpo_cli.config.keys import SECTIONS, builtin_configs, explain_unknown_key, nearest
from orpo_cli.config.schema import AUTO
from orpo_cli.errors import ConfigError, OutputError
from orpo_cli.files.untrusted import read_text
from orpo_cli.machine.signals import signals_wait


def run(
    argv: Sequence[str],
    job: Callable[[DictConfig], None],
    root: str = "train",
    sweep: Callable[[], None] | None = None,
) -> None:
    """Compose from flags and overrides, then call `job` once, or once for each job of a sweep.

    Args:
        argv: as `shorthand.expand` returns it.
        root: the name of the root configuration, where `--config-name` gives no other.
        sweep: called once all jobs of a sweep are known; whatever ConfigError it raises, the folder stays as it was.
    Raises:
        ConfigError: anything wrong with flags, overrides or YAML.
        OutputError: a run folder cannot be created.
    """
    for word in argv:
        if word.startswith("--config-dir="):
            check_config_dir(Path(word.partition("=")[2]), builtin_configs())
        elif not word.startswith("--"):
            check_override(word)
    _refuse_two_folders(argv)
    before = _Before()
    for word in argv:
        if given := _HYDRA_DIR.match(word):
            before.look_at(given[2])
    OmegaConf.register_new_resolver("orpo.run_dir", partial(_run_dir, before), replace=True)
    OmegaConf.register_new_resolver("oc.env", _no_environment, replace=True)
    jobs: list[Path] = []

    def composed(cfg: DictConfig) -> None:
        with signals_wait(False):
            job(cfg)
        if is_sweep():
            jobs.append(run_dir())
            with contextlib.suppress(OSError, ValueError):  # Hydra makes it, for a job that may never begin
                run_dir().rmdir()
                for made in run_dir().relative_to(sweep_dir()).parents[:-1]:
                    (sweep_dir() / made).rmdir()

    try:
        with signals_wait():  # raised inside Hydra, what a signal asks for may be lost
            _run_hydra(argv, composed, root)
        if jobs and sweep is not None:
            sweep()
    except (ConfigError, OutputError):
        before.put_back()
        raise
    finally:
        before.remove_unused()


def _run_hydra(argv: Sequence[str], job: Callable[[DictConfig], None], root: str) -> None:
    """Hydra itself, and what it raises in one line."""
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra raises instead of printing and leaving
    sys.argv = [f"orpo {root}", *argv]
    decorate: Any = hydra.main(version_base="1.3", config_path=str(builtin_configs()), config_name=root)
    try:
        decorate(job)()
    except MissingConfigException as error:
        raise ConfigError(_missing_option(error)) from None
    except (HydraException, OmegaConfBaseException, ValueError, AssertionError) as error:  # asserts of OmegaConf
        raise ConfigError(_one_line(error, argv)) from None
    except SystemExit as error:
        if error.code != 1:
            raise
        raise ConfigError("--package: the configuration has no such part") from None
    except OSError as error:
        what = f"the run folder {error.filename}" if error.filename else "a run folder here"
        raise OutputError(f"cannot create {what}: {error.strerror}") from None


def run_dir() -> Path:
    """The folder Hydra gave the current job."""
    runtime: Any = OmegaConf.to_container(HydraConfig.get().runtime, resolve=False)  # a `${` in a name is no reference
    return Path(runtime["output_dir"])


def sweep_dir() -> Path:
    """The folder that the current sweep was given."""
    return Path(os.path.abspath(HydraConfig.get().sweep.dir))  # noqa: PTH100 - as Hydra does with run_dir


def is_sweep() -> bool:
    """Whether the current job belongs to a sweep."""
    return bool(HydraConfig.get().mode == RunMode.MULTIRUN)


def job_overrides() -> list[str]:
    """The overrides of the current job, as typed or as expanded by the sweep; references in them are not resolved."""
    overrides: Any = OmegaConf.to_container(HydraConfig.get().overrides.task, resolve=False)
    return list(overrides)


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
        moved = ", such as data.path=FILE where it was moved" if key == "data" else ""
        raise ConfigError(
            f"{override.input_line}: a resumed run keeps its {key}; only single values can be overridden{moved}"
        )
    if OmegaConf.select(cfg, key, default=_ABSENT) is _ABSENT:
        raise ConfigError(explain_unknown_key(key))
    OmegaConf.update(cfg, key, override.value())


_ABSENT = object()


def _run_dir(before: "_Before", resume: str | None, output_dir: str) -> str:
    """The folder `resume` names, else `output_dir`, looked at before Hydra makes it."""
    folder = output_dir if resume in (None, AUTO) else resume
    if not isinstance(folder, str) or not folder.strip() or "\0" in folder:
        raise ValueError(f"{'resume' if resume else 'output_dir'}={folder}: expected a folder")
    try:
        before.look_at(folder)
    except OSError as error:
        raise ValueError(f"{folder}: {error.strerror}") from None
    return folder


def _no_environment(name: str, *_default: Any) -> str:
    """Stands for OmegaConf's resolver of that name: values are saved, shown and logged."""
    raise ValueError(f"${{oc.env:{name}}}: configurations do not read the environment; let the shell put the value in")


_HYDRA_DIR = re.compile(r"hydra\.(?:run|sweep)\.dir=(['\"]?)(.+)\1$")


def _refuse_two_folders(argv: Sequence[str]) -> None:
    """Of output_dir and a folder that is given to Hydra or to go on in, one would be left out without a word.

    Raises:
        ConfigError: both are given, and differ.
    """
    words = {word.lstrip("+").partition("=")[0]: word for word in argv}
    ways = {
        ("output_dir", "hydra.run.dir"): "two folders for one run; give output_dir only",
        ("output_dir", "hydra.sweep.dir"): "two folders for one run; give output_dir only",
        ("output_dir", "resume"): "a run goes on in its own folder; leave output_dir out",
        ("hydra.run.dir", "resume"): "a run goes on in its own folder; leave hydra.run.dir out",
    }
    for pair, advice in ways.items():
        if words.keys() >= set(pair):
            folders = {_folder_in(words[key]) for key in pair}
            if len(folders) == 2 and None not in folders:
                raise ConfigError(f"{words[pair[0]]} {words[pair[1]]}: {advice}")


def _folder_in(word: str) -> Path | None:
    """The folder that an override sets; None where that is a reference, or none."""
    try:
        override = OverridesParser.create().parse_override(word)
        value = override.value()
        is_none = value is None or (override.key_or_group == "resume" and value == AUTO)
        return None if is_none or _REFERENCE.search(str(value)) else Path(str(value)).resolve()
    except (HydraException, OSError, RuntimeError, ValueError):
        return None


_REFERENCE = re.compile(r"(?<!\\)\$\{")


class _Before:
    """The folder of a run or a sweep as it was before Hydra made it, which it does before anything is checked."""

    def __init__(self) -> None:
        self._missing: list[Path] = []
        self._noted: dict[Path, str | None] = {}

    def look_at(self, folder: str) -> None:
        """Remember what does not exist yet of a folder, and what Hydra noted in it of an earlier sweep.

        Raises:
            OSError: its name cannot be one.
        """
        absolute = Path(folder).absolute()
        self._missing += [path for path in (absolute, *absolute.parents) if not path.exists()]
        note = absolute / _NOTE
        with contextlib.suppress(OSError, ValueError):
            self._noted.setdefault(note, read_text(note) if note.exists() else None)

    def put_back(self) -> None:
        """The folder of a sweep keeps no note of one that is refused."""
        for path, text in self._noted.items():
            with contextlib.suppress(OSError, ValueError):
                if text is None:
                    path.unlink()
                elif read_text(path) != text:
                    path.write_text(text, encoding="utf-8")

    def remove_unused(self) -> None:
        """A run or a sweep that never began leaves no folder."""
        for folder in sorted(self._missing, key=lambda path: len(path.parts), reverse=True):
            if folder.is_dir() and {path.name for path in folder.iterdir()} <= {_NOTE}:
                (folder / _NOTE).unlink(missing_ok=True)
                folder.rmdir()


_NOTE = "multirun.yaml"
"""What Hydra writes into the folder of each sweep."""


def _missing_option(error: MissingConfigException) -> str:
    group, _, name = (error.missing_cfg_file or "").rpartition("/")
    if not group:
        return f"--config-name={name}: no such file; expected {name}.yaml in --config-dir"
    if not error.options:
        groups = [path.name for path in builtin_configs().iterdir() if path.is_dir()]
        return f"unknown group `{group}`: {nearest(group, groups)}"
    as_path = f" A file or folder here is written ./{name}" if group in REWRITES else ""
    return f"{group}={name}: no such option; {nearest(name, error.options)}{as_path}"


def _one_line(error: Exception, argv: Sequence[str]) -> str:
    """Hydra's message as one line in the words of this tool."""
    text = str(error)
    if isinstance(error, OverrideParseException):
        return f"{error.override}: cannot be read; a value with special characters takes quotes: \"KEY='VALUE'\""
    if twice := re.search(r"Could not append to config[^']*'([^'=]+)|Multiple values for ([\w@/]+)\.", text):
        key = twice.group(1) or twice.group(2)
        return f"{key} is there already: write {key}=... without `+`"
    if unknown := re.search(r"Could not (?:override|delete)[^']*'([^'=]+)", text):
        return explain_unknown_key(unknown.group(1), _variants_in_use(argv))
    if several := re.search(r"Ambiguous value for argument '(.+)'", text):
        return f"{several.group(1)}: several values are a sweep; add -m"
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
