"""Measure memory: how much is free, in use now, and was in use at the peak."""

import os
import resource
import sys
from pathlib import Path

import torch

from orpo_cli.machine.shares import SHARED_BY

_CGROUP = Path("/sys/fs/cgroup")
_STATUS = Path("/proc/self/status")


def free_memory(device: torch.device) -> int:
    """Return the bytes that this process may still take on the device, its share of what there is."""
    import psutil

    shared_by = int(os.environ.get(SHARED_BY, "1"))
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0]) // shared_by
    return min(min(int(psutil.virtual_memory().available), _left_to_container()) // shared_by, _left_to_process())


def used_memory() -> int:
    """Return the bytes of main memory that this process has now."""
    import psutil

    return int(psutil.Process().memory_info().rss)


def peak_memory(device: torch.device) -> int:
    """Return the most bytes of the device that this process has had."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    if _STATUS.exists():  # on Linux `ru_maxrss` includes what the process that started this one had
        line = next(line for line in _STATUS.read_text().splitlines() if line.startswith("VmHWM:"))
        return 1024 * int(line.split()[1])
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


def peak_in_words(device: torch.device) -> str:
    """Return the peak for the message of a run whose memory ran out."""
    return f"this process had {peak_memory(device) / 1e9:.2f} GB at its peak"


def _left_to_process() -> int:
    """Return what the process's own limit (`ulimit -v`) leaves."""
    import psutil

    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    return 2**62 if limit == resource.RLIM_INFINITY else int(limit - psutil.Process().memory_info().vms)


def _left_to_container() -> int:
    try:
        most, used = (int((_CGROUP / name).read_text()) for name in ("memory.max", "memory.current"))
        files = next(line for line in (_CGROUP / "memory.stat").read_text().splitlines() if line.startswith("file "))
        return most - used + int(files.split()[1])  # pages of files are dropped when memory is short
    except (OSError, ValueError, StopIteration):
        return 2**62
