"""Whether a run is finished, so that resuming it leaves it alone."""

import contextlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from orpo_cli.checkpoints import lookup
from orpo_cli.config.schema import RunConfig
from orpo_cli.errors import CheckpointError, OrpoError
from orpo_cli.files.manifest import check_listed
from orpo_cli.quoting import resume_command
from orpo_cli.runs.folder import MODEL, RunFolder
from orpo_cli.runs.resume import (
    MODEL_FILES,
    identity,
    refuse_changed_settings,
    refuse_other_checkpoint,
    without_places,
)


def is_complete(config: RunConfig, folder: RunFolder) -> bool:
    """Return whether the run in the folder has taken all its steps, no more are asked for, and its model is there.

    Raises:
        ConfigError: if it is finished, with other settings than `config`.
        CheckpointError: if what lies in the place of its model is damaged or somebody else's by now.
    """
    if not folder.model.is_dir() or not folder.config_yaml.is_file():
        return False
    refuse_changed_settings(config, folder)
    if _must_write_model(folder) or _is_asked_for_another_end(config, folder):
        return False
    for _, path in reversed(lookup.list_checkpoints(folder.checkpoints)):
        with contextlib.suppress(CheckpointError):  # one that cannot be read tells nothing
            then = lookup.read_state(path).identity
            refuse_other_checkpoint(config, without_places(then) if _has_moved(config, then) else then)
            break
    return True


def _must_write_model(folder: RunFolder) -> bool:
    """Return whether the model is still to be written, or is to be written again since files of it are gone.

    Raises:
        CheckpointError: if a file would be replaced that is not as the run left it.
    """
    there = {path.relative_to(folder.path).as_posix() for path in folder.model.rglob("*") if not path.is_dir()}
    if not there:
        return True
    must_write = not folder.is_finished or not there.issuperset(folder.model_files)
    problems = [_problem_of_model(folder, files, there, must_write) for files in folder.models or [{}]]
    if None not in problems:
        again = "again" if folder.is_finished else "there"
        raise CheckpointError(
            f"{problems[-1]}: {folder.path / MODEL} has changed since the run, or run.json does not list it, so it "
            f"is not replaced; move it away, and {resume_command(folder.path)} writes the model {again}"
        )
    return must_write


def _problem_of_model(folder: RunFolder, files: Mapping[str, Any], there: set[str], must_write: bool) -> str | None:
    """Return in what the files that are there differ from those of a model, which may be gone in part."""
    if must_write and (foreign := sorted(there - files.keys())):
        gone = sorted(files.keys() - there)
        what = f"{gone[0]} is missing" if gone else f"{foreign[0]} is not in the list in run.json"
        return f"{folder.path}: {what}"
    try:
        check_listed(folder.path, {name: files[name] for name in files if name in there}, "the list in run.json")
    except CheckpointError as error:
        return str(error)
    return None


def _is_asked_for_another_end(config: RunConfig, folder: RunFolder) -> bool:
    """Return whether other steps, or another model of the same steps, are asked for than the run ended with."""
    now, begun = config.trainer, folder.config.trainer
    if (now.epochs, now.max_steps) != (begun.epochs, begun.max_steps):
        return True
    if now.result not in (begun.result, folder.end.get("result", "last")):
        return True
    stopped = folder.end.get("early_stop")
    return stopped is not None and now.early_stop not in (begun.early_stop, stopped)


def _has_moved(config: RunConfig, then: Mapping[str, Any]) -> bool:
    """Return whether the model of an identity lies in another directory now, that of `config`."""
    path = identity(config)["model.path"]
    if path == then.get("model.path") or not Path(path).is_dir():
        return False
    from orpo_cli.models.files import fingerprint
    from orpo_cli.runs.starting_model import find_model_files

    try:
        return fingerprint(find_model_files(config.model, lambda *_: None)) == then.get(MODEL_FILES)
    except (OSError, ValueError, OrpoError):
        return False  # loading says what is wrong with it
