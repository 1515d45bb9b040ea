"""Jobs that submitit hands to Slurm, or starts itself on this machine as it would there.

A job that has to leave, because its time is up or others go first, saves, is queued again and resumes.
"""

import contextlib
import logging
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orpo_cli.errors import UnreachableError
from orpo_cli.machine.processes import Children, LoneProcess, passing_on_signals, start_alone
from orpo_cli.quoting import first_line

if TYPE_CHECKING:
    from submitit import Executor, Job

_POLL_SECONDS = 0.5
_OF_SUBMITIT = ("timeout_min", "cpus_per_task", "gpus_per_node", "mem_gb", "name", "nodes", "tasks_per_node")
"""Parameters that submitit has for every kind of queue; what others it takes begin with the name of the queue."""

_TOLD = ("CANCELLED", "PREEMPTED", "TIMEOUT")
"""The states of a job that was told to end; others that left no exit code were killed."""


class QueuedTraining:
    """What a job of the queue does: an `orpo train` in a process of its own.

    Args:
        arguments: of `orpo train`.
        environment: variables that it has besides those of the job.
        resumes: whether it was queued before.
    """

    def __init__(self, arguments: Sequence[str], environment: Mapping[str, str], resumes: bool = False) -> None:
        self._arguments = list(arguments)
        self._environment = dict(environment)
        self._resumes = resumes
        self._process: LoneProcess | None = None

    def __call__(self) -> int:
        """Run it, and return its exit code."""
        resumes = self._resumes or os.environ.get("SLURM_RESTART_COUNT", "0") != "0"
        arguments = [*self._arguments, *(["resume=auto"] if resumes else [])]
        with passing_on_signals() as children:
            self._process = start_alone(arguments, children, self._environment, is_shown=True)
            while (code := self._process.exit_code()) is None:
                time.sleep(_POLL_SECONDS)
        return code

    def checkpoint(self) -> Any:
        """Let the run save and end, and return what resumes it; submitit calls this when the job has to leave."""
        from submitit.helpers import DelayedSubmission

        if self._process is not None:
            self._process.terminate()
            self._process.wait()
        return DelayedSubmission(QueuedTraining(self._arguments, self._environment, resumes=True))


class QueuedJob:
    """A job in the queue.

    Args:
        children: tells whether a signal came that asks all jobs to save and end.
    """

    def __init__(self, job: "Job[int]", children: Children) -> None:
        self._job = job
        self._children = children
        self._is_told = False

    def exit_code(self) -> int | None:
        """Return its exit code, or 128 + a signal where the queue ended it; None while it waits or runs."""
        from submitit.core.utils import UncompletedJobError

        if self._children.asked is not None:
            self.terminate()
        if not self._job.done():
            return None
        try:
            return self._job.results()[0]
        except UncompletedJobError:  # it was ended before it could say so
            is_told = self._is_told or self._job.state.startswith(_TOLD)
            return 128 + (signal.SIGTERM if is_told else signal.SIGKILL)

    def terminate(self) -> None:
        """Ask it to save and end; one that waits leaves the queue."""
        if self._is_told:
            return
        self._is_told = True
        if type(self._job).__name__ == "LocalJob":
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(self._job.job_id), signal.SIGTERM)
            return
        for what in (["--state=PENDING"], ["--state=RUNNING", "--signal=TERM"]):
            subprocess.run(["scancel", *what, self._job.job_id], capture_output=True, check=False)

    def output(self) -> str:
        """Return what it printed."""
        return "".join(text or "" for text in (self._job.stdout(), self._job.stderr()))


class Queue:
    """A queue for the jobs of a sweep.

    Args:
        cluster: local or slurm.
        parameters: those of submitit, as `hydra.launcher` names them; None where it is to choose.
        folder: where submitit keeps its files; all machines of the queue have to see it.
    """

    def __init__(self, cluster: str, parameters: Mapping[str, Any], folder: Path) -> None:
        import submitit

        logging.getLogger("submitit").setLevel(logging.ERROR)  # it warns of each question that the queue cannot answer
        given = {key: value for key, value in parameters.items() if value is not None}
        of_cluster = {"python": f"{shlex.quote(sys.executable)} -P"}  # which takes no module from where it is started
        if "max_num_timeout" in given:
            of_cluster["max_num_timeout"] = given.pop("max_num_timeout")
        try:
            self._executor: Executor = submitit.AutoExecutor(
                folder, cluster=cluster, **{f"{cluster}_{key}": value for key, value in of_cluster.items()}
            )
            self._executor.update_parameters(
                **{key if key in _OF_SUBMITIT else f"{cluster}_{key}": value for key, value in given.items()}
            )
        except (RuntimeError, ValueError) as error:
            raise UnreachableError(f"hydra/launcher=submitit_{cluster}: {first_line(error)}") from None

    def submit(self, arguments: Sequence[str], environment: Mapping[str, str], children: Children) -> QueuedJob:
        """Hand in `orpo train ARGUMENTS`.

        Raises:
            UnreachableError: if the queue does not take it.
        """
        from submitit.core.utils import FailedJobError

        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # the terminal's, which is passed on
        try:
            return QueuedJob(self._executor.submit(QueuedTraining(arguments, environment)), children)
        except FailedJobError as error:
            raise UnreachableError(f"the queue does not take the job: {first_line(error)}") from None
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
