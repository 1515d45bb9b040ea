"""Whether a run has ended well, so that resuming it leaves it alone."""

import contextlib
from collections.abc import Mapping, Set
from pathlib import Path
from typing import Any

from orpo_cli.checkpoints import reading
from orpo_cli.cli.arguments import go_on
from orpo_cli.cli.resume import MODEL_FILES, check_settings, identity, refuse_other_settings, wherever_the_model_is
from orpo_cli.config.schema import RunConfig
from orpo_cli.errors import CheckpointError, ModelError
from orpo_cli.files.manifest import check_listed
from orpo_cli.reporting import records
from orpo_cli.reporting.records import MODEL


def finished(config: RunConfig, folder: Path) -> bool:
    """Whether the run in `folder` has taken all its steps and its model is there.

    Raises:
        ConfigError: it has, with other settings than `config`.
        CheckpointError: what is in the place of its model is damaged, or somebody's work by now, which writing the
            model would replace.
    """
    if not (folder / "config.yaml").is_file():
        return False
    check_settings(config, folder)
    if _is_model_to_be_written(folder):
        return False
    for _, path in reversed(reading.checkpoints(folder / "checkpoints")):
        with contextlib.suppress(CheckpointError):  # one that cannot be read tells nothing
            then = reading.read_state(path).identity
            refuse_other_settings(config, wherever_the_model_is(then) if _is_moved(config, then) else then)
            break
    return True


def _is_model_to_be_written(folder: Path) -> bool:
    """Whether the run has not left its model yet, or files of it are gone; all that is there is the run's own.

    Raises:
        CheckpointError: not all is.
    """
    there = {path.relative_to(folder).as_posix() for path in (folder / MODEL).rglob("*") if not path.is_dir()}
    if not there:
        return True
    is_left = records.is_finished(folder)
    wrong: list[CheckpointError] = []
    for files in reversed(records.model_listings(folder) or [{}]):
        is_to_be_written = not is_left or not there.issuperset(files)
        try:
            _check_own(folder, files, there, is_to_be_written)
            return is_to_be_written
        except CheckpointError as error:
            wrong.append(error)
    raise CheckpointError(
        f"{wrong[0]}: {folder / MODEL} is not, or not known to be, as the run left it, and is not written over; "
        f"move it away, and {go_on(folder)} writes the model {'again' if is_left else 'there'}"
    )


def _check_own(folder: Path, files: Mapping[str, Any], there: Set[str], is_to_be_written: bool) -> None:
    """Compare what is there with a list; more may be there only where it stays.

    Raises:
        CheckpointError: it is not as listed.
    """
    of_others = sorted(there - files.keys())
    if of_others and is_to_be_written:
        gone = sorted(files.keys() - there)
        what = f"{gone[0]} is missing" if gone else f"{of_others[0]} is not in the list in run.json"
        raise CheckpointError(f"{folder}: {what}")
    check_listed(folder, {name: entry for name, entry in files.items() if name in there}, "the list in run.json")


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
