"""What the trials of a search have come to, as their folders tell it, and whether one that runs is dominated."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from orpo_cli.errors import ConfigError, DivergedError, OrpoError, OutOfMemoryError
from orpo_cli.runs.compare import record_of_model
from orpo_cli.runs.folder import RunFolder
from orpo_cli.runs.scores import evaluation_files, read_file
from orpo_cli.runs.search import Ending, Objectives, Point, Told
from orpo_cli.statistics.dominance import Evaluations, dominated

_OF_ITS_SETTINGS = tuple(error.exit_code for error in (ConfigError, DivergedError, OutOfMemoryError))
"""Exit codes of a run whose settings cannot be trained: it would end in the same way again."""


def told(point: Point, path: Path, exit_code: int | None) -> Told:
    """Return what is known of a trial.

    Args:
        path: its folder.
        exit_code: of its process; None where it has not ended, or was interrupted.
    """
    folder = RunFolder(path)
    if folder.is_finished:
        record = record_of_model(folder)
        if record is None:
            return Told(point, Ending.UNKNOWN, None)
        return Told(point, Ending.SCORED, Objectives(record["accuracy"], record["nll"]))
    if folder.stopped is not None:
        return Told(point, Ending.STOPPED, None)
    if exit_code is None:
        return Told(point, Ending.RUNNING, None)
    return Told(point, Ending.UNTRAINABLE if exit_code in _OF_ITS_SETTINGS else Ending.UNKNOWN, None)


@dataclass
class Watch:
    """Looks at a trial while it runs, and asks it to end once another one dominates it.

    Args:
        path: the folder of the trial.
        others: the folders of the other trials; those that have not ended do not count.
        reason: why it was asked to end.
    """

    path: Path
    others: Sequence[Path]
    reason: str | None = None
    _seen: int = field(default=-1, init=False)

    def is_dominated(self) -> bool:
        """Return whether the trial is dominated; its files are read where there is another evaluation."""
        files = evaluation_files(RunFolder(self.path).evaluations)
        if self.reason is None and max(files, default=-1) > self._seen:
            try:
                self._look([step for step in files if step >= self._seen])
            except OrpoError:  # of a run that is about to begin, or was damaged
                return False
        return self.reason is not None

    def _look(self, steps: Sequence[int]) -> None:
        folder = RunFolder(self.path)
        length = _length(folder)
        if length is None:
            return
        ended = [other for other in map(RunFolder, self.others) if other.is_finished or other.stopped is not None]
        rivals = [other for other in ended if _length(other) == length]
        scored = [_evaluations(one, steps) for one in (folder, *rivals)]
        found = dominated(scored[0], scored[1:], length.steps)
        self._seen = max(steps)
        if found is not None:
            better = rivals[found.rival].path.name
            self.reason = f"stopped at step {found.step}: job {better} is better in accuracy and nll"


@dataclass(frozen=True)
class _Length:
    steps: int
    pairs_per_step: int


def _length(folder: RunFolder) -> _Length | None:
    """Return how long a run is, without which its steps cannot be compared; None before it has begun."""
    steps = folder.record.get("total_steps")
    return _Length(steps, folder.config.trainer.pairs_per_step) if type(steps) is int else None


def _evaluations(folder: RunFolder, steps: Sequence[int]) -> Evaluations:
    files = evaluation_files(folder.evaluations)
    read = {step: read_file(folder.evaluations, files[step]) for step in steps if step in files}
    return {step: pairs for step, pairs in read.items() if pairs is not None}
