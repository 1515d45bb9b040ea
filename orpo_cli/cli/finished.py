"""Whether a run has ended well, so that resuming it leaves it alone."""

import contextlib
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from orpo_cli.cli.resume import MODEL_FILES, check_settings, identity, refuse_other_settings, wherever_the_model_is
from orpo_cli.config.schema import RunConfig
from orpo_cli.errors import CheckpointError, ModelError
from orpo_cli.reporting import records
from orpo_cli.reporting.records import MODEL
from orpo_cli.training import checkpoints
from orpo_cli.training.publication import check_listed


def finished(config: RunConfig, folder: Path) -> bool:
    """Whether the run in `folder` has taken all its steps and its model is there.

    Raises:
        ConfigError: it has, with other settings than `config`.
        CheckpointError: it has, and the model is not as it left it.
    """
    if _is_to_be_published(folder):
        return False
    check_settings(config, folder)
    for _, path in reversed(checkpoints.checkpoints(folder / "checkpoints")):
        with contextlib.suppress(CheckpointError):  # one that cannot be read tells nothing
            then = checkpoints.read_state(path).identity
            refuse_other_settings(config, wherever_the_model_is(then) if _is_moved(config, then) else then)
            break
    return True


def _is_to_be_published(folder: Path) -> bool:
    """Whether the run has not left its model, or files of it are gone and all that is there is the run's own.

    Raises:
        CheckpointError: what is there is damaged, or somebody's work by now, and would be written over.
    """
    there = {path.relative_to(folder).as_posix() for path in (folder / MODEL).rglob("*") if not path.is_dir()}
    if not there or records.is_going_on(folder) or not (folder / "config.yaml").exists():
        return True
    files = {name: entry for name, entry in records.files_left(folder).items() if name.startswith(f"{MODEL}/")}
    gone, of_others = sorted(files.keys() - there), there - files.keys()
    try:
        if gone and of_others:
            raise CheckpointError(f"{folder}: {gone[0]} is missing")
        check_listed(folder, {name: entry for name, entry in files.items() if name in there}, "the list in run.json")
    except CheckpointError as error:
        raise CheckpointError(
            f"{error}: {folder / MODEL} is not, or not known to be, as the finished run left it; if that is not your "
            f"doing, remove it, and orpo resume {shlex.quote(str(folder))} writes it again"
        ) from None
    return bool(gone)


def _is_moved(config: RunConfig, then: Mapping[str, Any]) -> bool:
    """Whether the model of an identity lies in another directory now, that of `config`."""
    path = identity(config)["model.path"]
    if path == then.get("model.path") or not (Path(path) / "config.json").is_file():
        return False
    from orpo_cli.models.files import fingerprint

    try:
        return fingerprint(Path(path)) == then.get(MODEL_FILES)
    except (OSError, ValueError, ModelError):
        return False  # loading says what is wrong with it
