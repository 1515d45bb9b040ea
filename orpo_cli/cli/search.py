"""A search: a sweep whose next job is chosen by what those before it have come to.

What is known of the trials is in their folders; sweep.json has beside what was typed which values were asked for, and
how a trial ended that left nothing. Nothing else is kept: `orpo resume SWEEP_DIR` reads both and goes on.
"""

import json
import sys
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orpo_cli.cli.arguments import Arguments, take_count
from orpo_cli.cli.compose import Composition, Job, compose_jobs, varied
from orpo_cli.cli.search_space import space_of
from orpo_cli.config.load import load_config
from orpo_cli.config.schema import AUTO
from orpo_cli.errors import ConfigError, WriteError
from orpo_cli.files.untrusted import MAX_OWN_BYTES, read_json
from orpo_cli.files.writing import write_json
from orpo_cli.quoting import first_line, override_value
from orpo_cli.runs.folder import SWEEP, RunFolder
from orpo_cli.runs.search import Ending, Point, Space, check_installed, corners, holds, propose

if TYPE_CHECKING:
    from orpo_cli.runs.trials import Watch

TRIALS = "sweep.trials"
"""The key that makes a sweep a search: of how many trials. It belongs to the sweep and to no run."""

NOTED = "trials"
"""The key of sweep.json that holds the trials."""


@dataclass(frozen=True)
class Trial:
    """A job of a search.

    Args:
        job: the name of its folder.
        values: of each key that is searched, as they are typed.
        exit_code: of its process; None before its end, and where it was interrupted.
    """

    job: str
    values: Point
    exit_code: int | None = None


@dataclass(frozen=True)
class Settled:
    """How a trial ended that is not run again.

    Args:
        stopped: why the search ended it, if it did.
    """

    exit_code: int
    stopped: str | None


def search_of(arguments: Arguments) -> "Search | None":
    """Return the search that was typed, with its trials so far where it is resumed; None where no search was typed.

    Raises:
        ConfigError: if it cannot be searched so; nothing has been trained yet.
    """
    arguments, count = take_count(arguments, TRIALS, "a search is a sweep")
    if count is None:
        return None
    check_installed()
    space = space_of(varied(arguments))
    lowest, highest = (_composed(arguments, corner) for corner in corners(space))
    assert lowest.sweep is not None
    try:
        config = load_config(lowest.jobs[0].config)
        load_config(highest.jobs[0].config)
    except ConfigError as error:
        whole = (
            "; whole numbers are asked for with int(interval(...))" if "expected a whole number" in str(error) else ""
        )
        raise ConfigError(f"{error}{whole}") from None
    if config.data.eval_fraction == 0 and not config.data.eval_paths:
        raise ConfigError(
            f"{TRIALS}={count}: nothing is held out, so that no trial can be told from another; data.eval_fraction=0.1 "
            "or data.eval_path=FILE holds pairs out"
        )
    placed = replace(
        arguments, overrides=[*arguments.overrides, f"hydra.sweep.dir={override_value(str(lowest.sweep))}"]
    )
    is_resumed = lowest.jobs[0].config.get("resume") == AUTO
    trials = read_trials(lowest.sweep, space) if is_resumed else []
    return Search(placed, space, count, config.seed, lowest, trials)


def _composed(arguments: Arguments, point: Point, number: int = 0) -> Composition:
    """Compose one job of a sweep: what is typed last for a key counts."""
    chosen = [f"{key}={value}" for key, value in point.items()]
    return compose_jobs(replace(arguments, overrides=[*arguments.overrides, *chosen]), first=number)


def read_trials(folder: Path, space: Space) -> list[Trial]:
    """Return the trials of the search in a folder; none where there is no sweep.

    Raises:
        ConfigError: if it holds another sweep, or a search of something else.
    """
    try:
        noted = read_json(folder / SWEEP, MAX_OWN_BYTES)
    except (OSError, ValueError):
        return []
    trials = noted.get(NOTED)
    if not isinstance(trials, list):
        raise ConfigError(f"{folder}: holds a sweep over all combinations, and no search; leave {TRIALS} out")
    found = [_trial(entry, space) for entry in trials]
    for entry, trial in zip(trials, found, strict=True):
        if trial is None:
            raise ConfigError(
                f"{folder / SWEEP}: {json.dumps(entry)}: no trial of the space that is searched now; what is searched "
                "cannot be changed, choose another output_dir"
            )
    return [trial for trial in found if trial is not None]


def _trial(entry: Any, space: Space) -> Trial | None:
    if not isinstance(entry, dict) or entry.keys() != {"job", "values", "exit_code"}:
        return None
    job, values, code = entry["job"], entry["values"], entry["exit_code"]
    is_point = isinstance(values, dict) and all(isinstance(word, str) for word in values.values())
    if not is_point or not holds(space, values) or not isinstance(job, str) or type(code) not in (int, type(None)):
        return None
    return Trial(job, values, code)


@dataclass
class Search:
    """A search under way.

    Args:
        arguments: what was typed, without the number of trials, and with the folder of the sweep.
        count: how many trials there are to be.
        seed: of the sampler; the one of the runs.
        composed: a composition of the same sweep, with the lowest values.
        trials: those that have begun, in their order.
    """

    arguments: Arguments
    space: Space
    count: int
    seed: int
    composed: Composition
    trials: list[Trial]
    _is_exhausted: bool = False

    @property
    def folder(self) -> Path:
        """Return the folder of the sweep."""
        assert self.composed.sweep is not None
        return self.composed.sweep

    @property
    def left(self) -> int:
        """Return how many trials have not begun."""
        return 0 if self._is_exhausted else max(self.count - len(self.trials), 0)

    def composition(self) -> Composition:
        """Compose the trials that have begun; of a search that begins, the first."""
        jobs = [self._job(number, trial.values) for number, trial in enumerate(self.trials)]
        for job, trial in zip(jobs, self.trials, strict=True):
            if job.folder.name != trial.job:
                raise ConfigError(f"{self.folder}: its job {trial.job} would be {job.folder.name} as it is typed now")
        first = None if jobs else self.next_job()
        return replace(self.composed, jobs=jobs if first is None else [first])

    def next_job(self) -> Job | None:
        """Return the next trial; None where there are enough, or nothing is left to try."""
        if not self.left:
            return None
        from orpo_cli.runs.trials import told

        known = [told(trial.values, self.folder / trial.job, trial.exit_code) for trial in self.trials]
        point = propose(self.space, known, self.seed)
        if point is None:
            self._is_exhausted = True
            print(f"\nnothing is left to try: the search ends with {len(self.trials)} trials", file=sys.stderr)
            return None
        job = self._job(len(self.trials), point)
        self.trials.append(Trial(job.folder.name, point))
        return job

    def _job(self, number: int, point: Point) -> Job:
        return _composed(self.arguments, point, number).jobs[0]

    def settled(self, job: Path) -> Settled | None:
        """Return how a trial ended, if it was stopped, or its settings cannot be trained."""
        from orpo_cli.runs.trials import told

        trial = self.trials[self._number(job)]
        ending = told(trial.values, job, trial.exit_code).ending
        if ending is Ending.STOPPED:
            return Settled(0, RunFolder(job).stopped)
        return Settled(trial.exit_code, None) if ending is Ending.UNTRAINABLE and trial.exit_code is not None else None

    def watch(self, job: Path) -> "Watch":
        """Return what asks a trial to end once another one dominates it; the trial is noted first."""
        from orpo_cli.runs.trials import Watch

        self._note()
        others = [self.folder / trial.job for trial in self.trials if trial.job != job.name]
        return Watch(job, others)

    def end(self, job: Path, exit_code: int, stopped: str | None) -> None:
        """Note how a trial ended.

        Args:
            stopped: why the search ended it, if it did.
        """
        number = self._number(job)
        self.trials[number] = replace(self.trials[number], exit_code=None if stopped is not None else exit_code)
        self._note()
        if stopped is not None:
            try:
                RunFolder(job).note(stopped=stopped)
            except OSError as error:
                raise WriteError(f"{job}: {first_line(error)}") from None

    def _number(self, job: Path) -> int:
        return [trial.job for trial in self.trials].index(job.name)

    def _note(self) -> None:
        path = self.folder / SWEEP
        names = [trial.job for trial in self.trials]
        try:
            typed = read_json(path, MAX_OWN_BYTES)
            write_json(path, typed | {"jobs": names, NOTED: [asdict(trial) for trial in self.trials]})
        except (OSError, ValueError) as error:
            raise WriteError(f"{path}: {first_line(error)}") from None
