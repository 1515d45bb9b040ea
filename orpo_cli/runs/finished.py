"""Whether a run is finished, so that resuming it leaves it alone."""

import contextlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from orpo_cli.checkpoints import reading
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
    """Return whether the run in the folder has taken all its steps and its model is there.

    Raises:
        ConfigError: if it is finished, with other settings than `config`.
        CheckpointError: if what lies in the place of its model is damaged or somebody else's by now.
    """
    if not folder.model.is_dir() or not folder.config_yaml.is_file():
        return False
    refuse_changed_settings(config, folder)
    if _must_write_model(folder):
        return False
    for _, path in reversed(reading.list_checkpoints(folder.checkpoints)):
        with contextlib.suppress(CheckpointError):  # one that cannot be read tells nothing
            then = reading.read_state(path).identity
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
    files = folder.model_files
    must_write = not folder.is_finished or not there.issuperset(files)
    try:
        if must_write and (foreign := sorted(there - files.keys())):
            gone = sorted(files.keys() - there)
            what = f"{gone[0]} is missing" if gone else f"{foreign[0]} is not in the list in run.json"
            raise CheckpointError(f"{folder.path}: {what}")
        present = {name: entry for name, entry in files.items() if name in there}
        check_listed(folder.path, present, "the list in run.json")
    except CheckpointError as error:
        again = "again" if folder.is_finished else "there"
        raise CheckpointError(
            f"{error}: {folder.path / MODEL} is not, or not known to be, as the run left it, and is not replaced; "
            f"move it away, and {resume_command(folder.path)} writes the model {again}"
        ) from None
    return must_write


def _has_moved(config: RunConfig, then: Mapping[str, Any]) -> bool:
    """Return whether the model of an identity lies in another directory now, that of `config`."""
    path = identity(config)["model.path"]
    if path == then.get("model.path") or not Path(path).is_dir():
        return False
    from orpo_cli.models.files import fingerprint
    from orpo_cli.runs.start import find_files

    try:
        return fingerprint(find_files(config.model, lambda *_: None)) == then.get(MODEL_FILES)
    except (OSError, ValueError, OrpoError):
        return False  # loading says what is wrong with it
