"""Find, verify and read checkpoints.

`step-NNNNNN/` has weights (or adapter), tokenizer, optimizer state and numbers, as safetensors and JSON: nothing is
pickled. The rest of a run's state follows from its configuration and the number of the step. Writing is the business
of `orpo_cli.checkpoints.saving`.
"""

import contextlib
import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orpo_cli.config.schema import BETTER
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
    """The numbers of a checkpoint.

    Args:
        step: the number of optimizer steps so far, including skipped ones.
        total_steps: the number of steps of the run.
        max_tokens: the size of micro-batches that fitted into memory; gradients add up in their order.
        data_sha256: the checksum of each input file.
        identity: the settings that must not change on resume, by key.
        environment: whatever else can change the last digits: versions, threads, instruction set.
        skipped: the number of steps that were not finite and changed nothing.
        evaluation: the metrics measured after exactly this step; None without an evaluation.
        evaluation_due: whether an evaluation after this step was begun and not finished.
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


_TYPES = {
    "step": int, "total_steps": int, "max_tokens": int, "data_sha256": dict, "identity": dict, "environment": dict,
    "skipped": int, "evaluation_due": bool,
}  # fmt: skip


def list_checkpoints(root: Path) -> list[tuple[int, Path]]:
    """Return (step, directory) of all checkpoints, whole or not, by step."""
    found = [(int(match.group(1)), path) for path in root.glob("step-*") if (match := _NAME.fullmatch(path.name))]
    return sorted((step, path) for step, path in found if path.is_dir() and not path.is_symlink())


def latest_checkpoint(root: Path) -> tuple[Path, list[str]]:
    """Return the newest whole checkpoint, and what is wrong with newer ones and with LATEST.

    Raises:
        CheckpointError: if there is none; the message says what is wrong with each.
    """
    problems = []
    for _, path in reversed(list_checkpoints(root)):
        try:
            verify(path)
        except CheckpointError as error:
            problems.append(str(error))
        else:
            problem = pointer_problem(root / LATEST, path)
            return path, problems + ([problem] if problem else [])
    raise CheckpointError("; ".join([f"{root}: no checkpoint to resume from", *problems]))


def best_checkpoint(root: Path, metric: str | None) -> Path | None:
    """Return the checkpoint whose evaluation has the best value of a metric.

    Of equal values, as those of accuracy often are, the lower nll is better, and then the earlier checkpoint.
    """
    if metric is None:
        return None
    sign = 1 if BETTER[metric] is min else -1
    values: list[tuple[float, float, Path]] = []
    for _, path in list_checkpoints(root):
        with contextlib.suppress(CheckpointError):
            evaluation = read_state(path).evaluation or {}
            if metric in evaluation:
                values.append((sign * evaluation[metric], evaluation.get("nll", math.inf), path))
    return min(values, key=lambda value: value[:2])[2] if values else None


def pointer_problem(pointer: Path, newest: Path) -> str | None:
    """Return why LATEST does not name the newest whole checkpoint.

    It is written last, so it may lag behind; the checkpoint to resume from is searched for, whatever LATEST says.
    """
    if pointer.is_symlink():
        return f"{pointer}: is a link, which is not followed"
    try:
        name = read_text(pointer, 1000).strip()
    except FileNotFoundError:
        return f"{pointer}: is missing"
    except (OSError, ValueError):
        return f"{pointer}: cannot be read"
    says = f"{pointer}: says {name[:100]!r}, but the newest whole checkpoint is {newest.name}"
    return None if name == newest.name else says


def verify(directory: Path) -> TrainingState:
    """Compare every file of a checkpoint with its manifest, and return its numbers.

    Raises:
        CheckpointError: if it is damaged, or was written in another version of the format.
    """
    check_manifest(directory, {STATE, OPTIMIZER})
    state = read_state(directory)
    named = _NAME.fullmatch(directory.name)
    if named and int(named.group(1)) != state.step:
        raise CheckpointError(f"{directory}: {STATE} is of step {state.step}")
    return state


def read_state(directory: Path) -> TrainingState:
    """Return the numbers of a checkpoint that has been verified.

    Raises:
        CheckpointError: if they were written in another version of the format.
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
            f"{'; a later version of orpo wrote it, and can read it' if is_later else ''}"
        )
    try:
        state = TrainingState(**({"environment": {}} | values))
    except TypeError:
        raise CheckpointError(f"{directory}: {STATE} has other keys than version {version}") from None
    for key, kind in _TYPES.items():
        if type(value := getattr(state, key)) is not kind:
            raise CheckpointError(f"{directory}: {STATE}: {key}={str(value)[:100]}: expected {kind.__name__}")
    return state
