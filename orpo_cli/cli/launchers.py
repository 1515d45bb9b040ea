"""Where the jobs of a sweep work: some at a time on this machine, or in a queue.

The launchers of Hydra are chosen as Hydra spells them, but their plugins are not used: a job that fails must take no
other with it, and the table at the end needs all that were not lost.
"""

import shutil
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from orpo_cli.cli import forked_jobs
from orpo_cli.cli.arguments import Arguments, take_count
from orpo_cli.cli.config_dir import is_of_launcher
from orpo_cli.config.limits import require_installed
from orpo_cli.errors import ConfigError, UnreachableError
from orpo_cli.machine import processes
from orpo_cli.machine.shares import cuda_devices, share
from orpo_cli.machine.threads import usable_cores

if TYPE_CHECKING:
    from orpo_cli.cli.compose import Composition
    from orpo_cli.machine.queue import Queue, QueuedJob

JOBS = "sweep.jobs"
"""The key that says how many jobs of a sweep work at the same time."""

_QUEUE_FILES = "queue"
"""The folder of a sweep in which submitit keeps what it hands to the queue, and what the jobs print."""


class WorkingJob(Protocol):
    """A job that has been started."""

    def exit_code(self) -> int | None:
        """Return its exit code; None until it has ended."""

    def terminate(self) -> None:
        """Ask it to save and end."""

    def output(self) -> str:
        """Return what it printed; nothing where that was shown as it came."""


class Launcher(Protocol):
    """What starts the jobs of a sweep.

    Args:
        first_state: what a job is at when it has been started.
    """

    first_state: str

    @property
    def at_once(self) -> int:
        """Return the most jobs that work at the same time."""

    def start(self, arguments: Sequence[str], place: int, children: processes.Children) -> WorkingJob:
        """Start `orpo train ARGUMENTS`.

        Args:
            place: which of those that work at the same time it is, from 0.
        """


def take_jobs(arguments: Arguments) -> tuple[Arguments, int | None]:
    """Return what was typed without `sweep.jobs=N`, and N.

    Raises:
        ConfigError: if it is no number, or nothing is swept.
    """
    return take_count(arguments, JOBS, "only a sweep has several jobs")


def refuse_launcher_of_one_run(arguments: Arguments) -> None:
    """Refuse a launcher that would start nothing.

    Raises:
        ConfigError: if one was typed.
    """
    if word := next(filter(is_of_launcher, arguments.overrides), None):
        raise ConfigError(f"{word}: says where the jobs of a sweep work; add -m")


def launcher_of(
    composition: "Composition", trainers: Sequence[Any], at_once: int | None, is_search: bool, is_shown: bool
) -> Launcher:
    """Return what starts the jobs of a sweep.

    Args:
        trainers: the `trainer` sections of the jobs that are not refused.
        at_once: the most jobs that are to work at the same time, where that was typed.
        is_shown: whether what a job prints is shown as it comes, where it is the only one at work.
    Raises:
        ConfigError: if a package is missing, there are too few GPUs, or it is not said how many trials work at once.
        UnreachableError: if there is no such queue.
    """
    name, values = composition.launcher, composition.launcher_values
    several = is_search or len(composition.jobs) > 1
    if name == "basic" and at_once is None:
        return Pool(1, 1, [], is_shown, several)
    wanted = max((int(trainer.processes) for trainer in trainers), default=1)
    if not name.startswith("submitit"):
        if name == "joblib" and at_once is None:
            at_once = int(values["n_jobs"])
            at_once = usable_cores() if at_once < 0 else max(at_once, 1)
        devices = cuda_devices() if any(trainer.device in ("auto", "cuda") for trainer in trainers) else []
        return Pool(at_once or 1, wanted, devices, is_shown, several)
    require_installed(f"hydra/launcher={name}", "submitit", "slurm")
    if name == "submitit_slurm" and shutil.which("srun") is None:
        raise UnreachableError(f"hydra/launcher={name}: there is no srun here; a sweep is started where Slurm is")
    if is_search and at_once is None:
        raise ConfigError(
            f"hydra/launcher={name}: a search learns from the trials that have ended: say with {JOBS}=N how many work "
            "at the same time"
        )
    assert composition.sweep is not None
    return Queued(name.removeprefix("submitit_"), values, composition.sweep, at_once or len(composition.jobs))


class Pool:
    """Some jobs at a time on this machine, each with its share of it.

    Args:
        per_job: the most processes that a job has.
        devices: the GPUs that jobs can be given.
        is_shown: whether what a job prints is shown as it comes, where it is the only one at work.
        several: whether there are several jobs; they are forks then, where that is possible.
    """

    first_state = "running"

    def __init__(self, at_once: int, per_job: int, devices: list[str], is_shown: bool, several: bool) -> None:
        if at_once > 1 and per_job > 1 and devices and len(devices) < at_once * per_job:
            raise ConfigError(
                f"{JOBS}={at_once}: with trainer.processes={per_job} that takes {at_once * per_job} GPUs; here are "
                f"{len(devices)}"
            )
        self.at_once = at_once
        self._per_job = per_job
        self._devices = devices
        self._is_shown = is_shown and at_once == 1
        self._begin = forked_jobs.start if several and forked_jobs.are_possible() else processes.start_anew

    def start(self, arguments: Sequence[str], place: int, children: processes.Children) -> WorkingJob:
        """Start `orpo train ARGUMENTS`; one job at a time has the whole machine."""
        own = {} if self.at_once == 1 else share(place, self.at_once, self._per_job, self._devices)
        return processes.start_alone(arguments, children, own, self._is_shown, self._begin)


class Queued:
    """Jobs that submitit hands to a queue.

    Args:
        cluster: local or slurm.
        values: those of `hydra.launcher`.
        folder: of the sweep.
    """

    first_state = "in the queue"

    def __init__(self, cluster: str, values: dict[str, Any], folder: Path, at_once: int) -> None:
        self.at_once = at_once
        self._cluster = cluster
        self._values = values
        self._folder = folder / _QUEUE_FILES

    @cached_property
    def _queue(self) -> "Queue":
        from orpo_cli.machine.queue import Queue

        return Queue(self._cluster, self._values, self._folder)

    def start(self, arguments: Sequence[str], place: int, children: processes.Children) -> "QueuedJob":
        """Hand in `orpo train ARGUMENTS`."""
        own = share(place, self.at_once, 1, []) if self._cluster == "local" else {}
        return self._queue.submit(arguments, own, children)
