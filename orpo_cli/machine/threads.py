"""Use as many threads as there are cores to compute on; more would only wait for each other.

Tried side by side over whole steps on two cores and left out, since none was faster by more than the noise of 5 %:
freed memory that glibc keeps (`mallopt`; its fragments also broke the bound on the head's memory), pages of 2 MB
(`THP_MEM_ALLOC_ENABLE`), and threads that spin while they wait (`OMP_WAIT_POLICY=active`).
"""

import math
import os
import sys
from collections.abc import MutableMapping
from pathlib import Path

THREADS = "OMP_NUM_THREADS"
_CPU_QUOTA = Path("/sys/fs/cgroup/cpu.max")


def choose_threads(environment: MutableMapping[str, str] = os.environ, processes: int = 1) -> None:
    """Choose the number of threads, unless the user has chosen; call this before torch is imported.

    Args:
        environment: the environment of the processes.
        processes: the number of processes that share the cores.
    """
    if not environment.get(THREADS):  # an empty value chooses none
        environment[THREADS] = str(max(1, usable_cores() // processes))


def usable_cores() -> int:
    """Return the number of cores for this process: no hyperthreads, no more than its container is given."""
    import psutil

    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(allowed, psutil.cpu_count(logical=False) or allowed, _quota()))


def _quota() -> int:
    try:
        quota, period = _CPU_QUOTA.read_text().split()
        return math.ceil(int(quota) / int(period))
    except (OSError, ValueError):
        return sys.maxsize
