"""Jobs of a sweep as forks of one process that has imported what a run needs, which takes longer than a short run.

A fork is safe where no other thread could hold a lock in that moment. The process that is forked only imports, and the
threads that libraries start when they are imported, of OpenBLAS in numpy and of jemalloc in pyarrow, are off in it.
Where there are GPUs each job starts as a process of its own: an import may initialise CUDA, which no fork survives.
"""

import os
import runpy
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from multiprocessing import forkserver
from multiprocessing.context import ForkServerProcess
from typing import IO

from orpo_cli.machine import processes
from orpo_cli.machine.shares import cuda_devices
from orpo_cli.machine.threads import THREADS, choose_threads

_IMPORTED = [
    "hydra.compose", "orpo_cli.cli.commands", "orpo_cli.cli.compose", "orpo_cli.cli.main", "orpo_cli.cli.sweeps",
    "orpo_cli.reporting.terminal", "orpo_cli.runs.execution", "pandas", "peft", "transformers.modeling_utils",
    "transformers.models.auto.modeling_auto", "transformers.models.auto.tokenization_auto",
]  # fmt: skip

_WITHOUT_THREADS = {"OPENBLAS_NUM_THREADS": "1", "JE_ARROW_MALLOC_CONF": "background_thread:false"}
_WITHOUT_THE_CURRENT_DIRECTORY = {"PYTHONSAFEPATH": "1"}


def are_possible() -> bool:
    """Return whether jobs can be forks on this machine."""
    return sys.platform == "linux" and not cuda_devices()


class ForkedJob(ForkServerProcess):
    """An `orpo train ARGUMENTS` in a fork; beside what it is for Python, it is asked as a `subprocess.Popen` is.

    Args:
        environment: all variables that it has.
        output: the file that takes what it prints; None where that goes to the standard error of this process.
    """

    def __init__(self, arguments: Sequence[str], environment: Mapping[str, str], output: str | None) -> None:
        super().__init__()
        self._arguments = list(arguments)
        self._environment = dict(environment)
        self._output = output

    def run(self) -> None:
        """Be that `orpo`, in the fork."""
        os.setpgid(0, 0)
        os.environ.clear()
        os.environ.update(self._environment)
        os.environ[processes.PARENT] = str(os.getppid())
        if self._output is not None:
            os.dup2(os.open(self._output, os.O_WRONLY | os.O_APPEND), 2)
        os.dup2(2, 1)
        sys.argv = ["orpo", "train", *self._arguments]
        runpy.run_module("orpo_cli", run_name="__main__")

    def poll(self) -> int | None:
        """Return its exit code, negative for the signal that killed it; None while it runs."""
        return self.exitcode

    def send_signal(self, number: int) -> None:
        """Send it a signal, unless it has ended."""
        with suppress(ProcessLookupError):
            os.kill(self.pid, number)

    @property
    def pid(self) -> int:
        """Return its id."""
        pid = super().pid
        assert pid is not None, "it has not been started"
        return pid


def start(arguments: Sequence[str], environment: Mapping[str, str], said: IO[bytes] | None) -> ForkedJob:
    """Start `orpo train ARGUMENTS` in a fork.

    What is forked starts with the first job, and computes with as many threads as that one has: all have as many.

    Args:
        environment: all variables that it has.
        said: the file that keeps what it prints; None where that goes to the standard error of this process.
    """
    threads = {THREADS: environment.get(THREADS, "")}
    choose_threads(threads)
    with _variables(threads | _WITHOUT_THREADS | _WITHOUT_THE_CURRENT_DIRECTORY):
        forkserver.set_forkserver_preload(_IMPORTED)
        forkserver.ensure_running()
    job = ForkedJob(arguments, environment, None if said is None else f"/proc/{os.getpid()}/fd/{said.fileno()}")
    job.start()
    return job


@contextmanager
def _variables(values: Mapping[str, str]) -> Iterator[None]:
    """Set variables of this process while the block runs: what it starts has them."""
    before = dict(os.environ)
    os.environ.update(values)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)
