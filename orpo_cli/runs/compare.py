"""Compare runs: read what each one scored and with which settings, and put them side by side."""

import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from orpo_cli.config.keys import LENGTH
from orpo_cli.errors import ConfigError, InputNotFoundError, OrpoError
from orpo_cli.files.untrusted import MAX_OWN_BYTES, read_json
from orpo_cli.runs.folder import SWEEP, RunFolder
from orpo_cli.runs.resume import identity
from orpo_cli.runs.scores import read_scored
from orpo_cli.runs.state import FINISHED, state_of
from orpo_cli.statistics.comparability import Candidate, HeldOut, Unranked
from orpo_cli.statistics.evaluation import Scored
from orpo_cli.statistics.leaderboard import BY, Leaderboard, leaderboard

_ALSO_COUNT = (*LENGTH, "trainer.early_stop", "trainer.result")
"""Keys that may change on resume and all the same decide which model a run leaves."""


@dataclass(frozen=True)
class JobOutcome:
    """What a sweep knows of a job.

    Args:
        name: the overrides that tell it from others.
        problem: how it ended, where it has not done what it was asked for.
    """

    name: str
    problem: str | None


def compare(
    directories: Sequence[str | Path], by: str = "accuracy", outcomes: Mapping[Path, JobOutcome] | None = None
) -> Leaderboard:
    """Rank the finished runs in some folders of runs and sweeps; the others are named with their state.

    Args:
        by: one of `BY`.
        outcomes: what is known of the jobs of a sweep, by folder.
    Raises:
        ConfigError: if there is no such metric.
        InputNotFoundError: if a directory is neither of a run nor of a sweep.
    """
    if by not in BY:
        raise ConfigError(f"by={by}: expected one of {', '.join(BY)}")
    known = outcomes or {}
    paths = dict.fromkeys(folder for directory in directories for folder in runs_of(Path(directory), known))
    found = [_candidate(path, known.get(path)) for path in paths]
    candidates = [run for run in found if isinstance(run, Candidate)]
    return leaderboard(candidates, [run for run in found if isinstance(run, Unranked)], by)


def runs_of(directory: Path, known: Mapping[Path, JobOutcome]) -> Iterator[Path]:
    """Yield the folder of a run, or those of the jobs of a sweep.

    Raises:
        InputNotFoundError: if the directory is neither.
    """
    path = directory.expanduser().absolute()
    if RunFolder(path).has_begun or path in known:
        yield path
        return
    try:
        jobs = read_json(path / SWEEP, MAX_OWN_BYTES).get("jobs")
    except (OSError, ValueError):
        raise InputNotFoundError(
            f"{directory}: holds neither a run nor a sweep; `orpo runs {directory}` lists the runs below it"
        ) from None
    yield from (path / name for name in (jobs if isinstance(jobs, list) else []) if isinstance(name, str))


def _candidate(path: Path, outcome: JobOutcome | None) -> Candidate | Unranked:
    folder, name = RunFolder(path), "" if outcome is None else outcome.name
    if outcome is not None and outcome.problem is not None:
        return Unranked(str(path), name, outcome.problem)
    try:
        state = state_of(folder)
        if state.word != FINISHED:
            return Unranked(str(path), name, state.in_words)
        scored, before, record = _scored(folder)
        if scored is None or record is None:
            return Unranked(str(path), name, FINISHED, _why_not_scored(folder))
        return Candidate(
            folder=str(path),
            settings=_settings(folder),
            seed=folder.config.seed,
            pairs=scored.pairs.counted(),
            before=None if before is None else before.pairs.counted(),
            held_out=_held_out(folder, scored),
            objective=str(folder.record.get("objective")),
            loss=float(record["loss"]),
        )
    except OrpoError as error:
        return Unranked(str(path), name, "unreadable", str(error))


def record_of_model(folder: RunFolder) -> dict[str, Any] | None:
    """Return the metrics of all held-out pairs for the model that a run has left; None where there are none."""
    step = folder.end.get("model_step")
    evaluated = [record for record in folder.records if record["kind"] == "eval" and record["step"] == step]
    return evaluated[-1] if type(step) is int and evaluated else None


def _scored(folder: RunFolder) -> tuple[Scored | None, Scored | None, dict[str, Any] | None]:
    """Return what the model of a run gave to the held-out pairs, before and after training, and its metrics."""
    record = record_of_model(folder)
    if record is None:
        return None, None, None
    after, before = (read_scored(folder.evaluations, str(folder.model), at, {}) for at in (record["step"], 0))
    return after, before, record


def _why_not_scored(folder: RunFolder) -> str:
    pairs = folder.record.get("pairs")
    if isinstance(pairs, dict) and pairs.get("eval") == 0:
        return "held no pairs out; orpo evaluate scores any file: data=FILE, or train with data.eval_fraction=0.1"
    return "has no scores of its held-out pairs, as runs of earlier versions; a new run of its config.yaml has them"


def _settings(folder: RunFolder) -> dict[str, Any]:
    """Return the settings that decide what a run learned, by key; data by its files and the digest of their content."""
    config = folder.config
    also = {key: getattr(config.trainer, key.removeprefix("trainer.")) for key in _ALSO_COUNT}
    data = ",".join(f"{os.path.basename(name)}@{digest[:6]}" for name, digest in _digests(folder).items())  # noqa: PTH119
    decisive = {key: value for key, value in identity(config).items() if key != "seed"}
    return {"data.path": data, **decisive, **also}


def _digests(folder: RunFolder) -> dict[str, str]:
    digests = folder.record.get("data_sha256")
    return {str(name): str(digest) for name, digest in (digests if isinstance(digests, dict) else {}).items()}


def _held_out(folder: RunFolder, scored: Scored) -> HeldOut:
    """Return which pairs a run was scored on: the content of their files, their rows, weights and texts' lengths."""
    pairs, digests = scored.pairs, _digests(folder)
    names = [str(name) for name in np.unique(pairs.source)]
    contents = {name: digests.get(name, name) for name in names}
    digest = hashlib.sha256("\n".join(contents[str(name)] for name in pairs.source).encode())
    for column in (scored.rows[:, 1], pairs.chosen_characters, pairs.rejected_characters, pairs.weight):
        digest.update(np.ascontiguousarray(column).tobytes())
    files = ", ".join(f"{name}@{contents[name][:6]}" for name in names)
    return HeldOut(digest.hexdigest(), files)
