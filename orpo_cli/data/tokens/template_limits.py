"""Limit the time and the memory of what a chat template does.

A single operation inside Python's own code, such as sorting a hundred million numbers, cannot be interrupted; it ends
by itself.
"""

import contextlib
import resource
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from orpo_cli.data.pairs import ProblemError

_STATM = Path("/proc/self/statm")


def template_problem(text: str) -> ProblemError:
    """Return the error for a row that a chat template cannot write."""
    return ProblemError(text, "template")


@contextlib.contextmanager
def limited_time(seconds: float) -> Iterator[None]:
    """Raise ProblemError in a block that takes longer; only a main thread can be interrupted."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(*_: Any) -> None:
        raise template_problem(f"the chat template takes longer than {seconds} seconds")

    started = time.monotonic()
    before = signal.signal(signal.SIGALRM, stop)
    left, interval = signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before or signal.SIG_DFL)
        if left:  # an alarm that was set before is still due
            signal.setitimer(signal.ITIMER_REAL, max(0.001, left - (time.monotonic() - started)), interval)


@contextlib.contextmanager
def limited_memory(size: int) -> Iterator[None]:
    """Raise ProblemError in a block that takes so many bytes more, on Linux; the limit is of the whole process.

    It is set from the main thread only, since other threads may be those of a notebook or a program of the user.
    """
    if threading.current_thread() is not threading.main_thread() or not _STATM.exists():
        yield
        return
    taken = int(_STATM.read_text(encoding="ascii").split()[0]) * resource.getpagesize()
    before = resource.getrlimit(resource.RLIMIT_AS)
    lowest = min([taken + size, *(limit for limit in before if limit != resource.RLIM_INFINITY)])
    resource.setrlimit(resource.RLIMIT_AS, (lowest, before[1]))
    try:
        yield
    except MemoryError:
        raise template_problem(f"the chat template takes more than {size >> 20:,} MB of memory") from None
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)
