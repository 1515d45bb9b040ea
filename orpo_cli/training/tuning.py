"""Settings of the process that make steps on a CPU faster and change no number.

Tensors of a step are allocated and freed thousands of times. By default each large one is a mapping of its own, which
the kernel hands out in zeroed pages of 4 kB and takes back; here memory stays with the process, in large pages.
Threads are as many as there are cores to compute on: more wait for each other. What the user has set is left alone.
"""

import ctypes
import math
import os
import sys
from collections.abc import Mapping
from pathlib import Path

LARGE_PAGES = "THP_MEM_ALLOC_ENABLE"
"""Read by torch at its first allocation: large tensors lie on pages of 2 MB."""

THREADS = "OMP_NUM_THREADS"

SYSTEM_MALLOC = "ORPO_SYSTEM_MALLOC"
"""Set to anything, it leaves the allocator as it is."""

_ALLOCATOR_CHOSEN = ("MALLOC_", "GLIBC_TUNABLES", "LD_PRELOAD", SYSTEM_MALLOC)
_TRIM_THRESHOLD, _MMAP_MAX = -1, -4
"""Parameters of glibc's mallopt (malloc.h)."""

_CPU_QUOTA = Path("/sys/fs/cgroup/cpu.max")


def tune_process() -> bool:
    """Choose the settings. To be called before torch is imported.

    Returns:
        whether the allocator was told to keep memory: with glibc, unless the user has chosen something of it.
    """
    os.environ.setdefault(THREADS, str(usable_cores()))
    if _is_chosen(os.environ) or not sys.platform.startswith("linux"):
        return False
    os.environ.setdefault(LARGE_PAGES, "1")
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return mallopt is not None and bool(mallopt(_MMAP_MAX, 0) and mallopt(_TRIM_THRESHOLD, 2**31 - 1))


def usable_cores() -> int:
    """Cores that this process may compute on: no hyperthreads, no more than its container is given."""
    import psutil

    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(allowed, psutil.cpu_count(logical=False) or allowed, _quota()))


def _quota() -> int:
    try:
        quota, period = _CPU_QUOTA.read_text().split()
        return math.ceil(int(quota) / int(period))
    except (OSError, ValueError):
        return sys.maxsize


def _is_chosen(environment: Mapping[str, str]) -> bool:
    return any(name.startswith(_ALLOCATOR_CHOSEN) for name in environment)
