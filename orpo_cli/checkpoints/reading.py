"""What a checkpoint holds, and how it is found, verified and read.

`step-NNNNNN/` has weights (or adapter), tokenizer, optimizer state and numbers, as safetensors and JSON: nothing is
pickled. Everything else of a run's state follows from its configuration and the number of the step. How one is written
is `orpo_cli.checkpoints.saving`.
"""

import os
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from orpo_cli.errors import CheckpointError
from orpo_cli.files.manifest import check_manifest
from orpo_cli.files.untrusted import MAX_OWN_BYTES, read_json, read_text

FORMAT_VERSION = 3
READABLE_VERSIONS = (2, 3)
LATEST = "LATEST"
BEST = "BEST"
STATE = "state.json"
OPTIMIZER = "optimizer.safetensors"
_NAME = re.compile(r"step-(\d{6,})")


@dataclass(frozen=True)
class TrainingState:
    """The numbers of a checkpoint; the rest of a run's state follows from the configuration.

    Args:
        step: optimizer steps taken, those that were skipped included.
        total_steps: of the run.
        max_tokens: of the micro-batches that fitted; gradients add up in their order.
        data_sha256: of each input file.
        identity: the settings that must not change on resume, by key.
        environment: what besides can change the last digits: versions, threads, instruction set.
        skipped: steps that were not finite and changed nothing.
        evaluation: metrics measured after this very step; None where it was not evaluated.
        evaluation_due: an evaluation after this step was begun and not finished.
    """

    step: int
    total_steps: int
    max_tokens: int
    data_sha256: dict[str, str]
    identity: dict[str, Any]
    environment: dict[str, Any]
    skipped: int = 0
    evaluation: dict[str, float] | None = None
    evaluation_due: bool = False
    format_version: int = FORMAT_VERSION


def checkpoints(root: Path) -> list[tuple[int, Path]]:
    """(step, directory) of all checkpoints, by step."""
    found = [(int(match.group(1)), path) for path in root.glob("step-*") if (match := _NAME.fullmatch(path.name))]
    return sorted((step, path) for step, path in found if path.is_dir() and not path.is_symlink())


def latest_checkpoint(root: Path) -> tuple[Path, list[str]]:
    """The newest checkpoint whose manifest holds, and what is wrong with newer ones and with LATEST.

    Raises:
        CheckpointError: there is none; the message says what is wrong with each.
    """
    problems = []
    for _, path in reversed(checkpoints(root)):
        try:
            verify(path)
        except CheckpointError as error:
            problems.append(str(error))
        else:
            return path, problems + pointer_problems(root / LATEST, path)
    raise CheckpointError("; ".join([f"{root}: no checkpoint to go on from", *problems]))


def pointer_problems(pointer: Path, newest: Path) -> list[str]:
    """LATEST is written last, so it may lag behind; a search finds the newest, whatever LATEST says."""
    if pointer.is_symlink():
        return [f"{pointer}: is a link, which is not followed"]
    try:
        name = read_text(pointer, 1000).strip()
    except FileNotFoundError:
        return [f"{pointer}: is missing"]
    except (OSError, ValueError):
        return [f"{pointer}: cannot be read"]
    return [] if name == newest.name else [f"{pointer}: says {name[:100]!r}, the newest that is whole is {newest.name}"]


def lags_behind(pointer: Path, names: Sequence[str]) -> bool:
    """Whether LATEST is as a kill between publishing a checkpoint and pointing to it leaves it.

    Args:
        names: of the checkpoints, oldest first.
    """
    if not os.path.lexists(pointer):
        return len(names) == 1
    try:
        return not pointer.is_symlink() and read_text(pointer, 1000).strip() in names[-2:-1]
    except (OSError, ValueError):
        return False


def verify(directory: Path) -> TrainingState:
    """Compare every file with the manifest. Returns the numbers.

    Raises:
        CheckpointError: a file is missing, has another size or checksum, or is of another version of the format.
    """
    check_manifest(directory, {STATE, OPTIMIZER})
    if not any(path.name != OPTIMIZER for path in directory.glob("*.safetensors")):
        raise CheckpointError(f"{directory}: has no weights")
    state = read_state(directory)
    named = _NAME.fullmatch(directory.name)
    if named and int(named.group(1)) != state.step:
        raise CheckpointError(f"{directory}: {STATE} is of step {state.step}")
    return state


def read_state(directory: Path) -> TrainingState:
    """The numbers of a verified checkpoint.

    Raises:
        CheckpointError: written by another version of the format.
    """
    try:
        values = read_json(directory / STATE, MAX_OWN_BYTES)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{directory}: {STATE} cannot be read: {error}") from None
    version = values.get("format_version")
    if version not in READABLE_VERSIONS:
        is_later = type(version) is int and version > FORMAT_VERSION
        raise CheckpointError(
            f"{directory}: format version {version}; this orpo reads {' and '.join(map(str, READABLE_VERSIONS))}"
            f"{'; the later orpo that wrote it reads it' if is_later else ''}"
        )
    try:
        state = TrainingState(**({"environment": {}} | values))
    except TypeError:
        raise CheckpointError(f"{directory}: {STATE} has other keys than version {version}") from None
    for key, value in asdict(state).items():
        if not _is_of_its_kind(key, value):
            raise CheckpointError(f"{directory}: {STATE}: {key}={str(value)[:100]}: not what is saved there")
    return state


def _is_of_its_kind(key: str, value: Any) -> bool:
    if key == "evaluation_due":
        return isinstance(value, bool)
    if key == "evaluation" and value is None:
        return True
    if key in ("data_sha256", "identity", "environment", "evaluation"):
        kinds = {"data_sha256": str, "evaluation": int | float}.get(key, object)
        return isinstance(value, dict) and all(isinstance(part, kinds) for part in value.values())
    least = 1 if key in ("total_steps", "max_tokens") else 0
    return type(value) is int and least <= value < 1 << 53
