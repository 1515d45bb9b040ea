"""Checkpoints are brought to the disk beside the next steps."""

import contextlib
import os
import sys
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from orpo_cli.errors import OrpoError


@dataclass(frozen=True)
class Written:
    """How a checkpoint went: the directory it lies in, or why there is none."""

    step: int
    outcome: Path | OrpoError


def _give_way() -> None:
    """Let this thread have what the steps' threads leave; each of those waits for the slowest of them."""
    if sys.platform == "linux":  # elsewhere it would be the priority of the whole process
        with contextlib.suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 19)


class Writer:
    """At most one checkpoint that is on its way to the disk."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint", initializer=_give_way)
        self._thread.submit(int).result()  # it is there before memory is short: a start that fails half-way never ends
        self._writing: tuple[int, Future[Path]] | None = None

    def begin(self, step: int, checkpoint: Callable[[], Callable[[], Path]]) -> None:
        """Run `orpo_cli.training.saving.begin_checkpoint` now and what it returns beside this thread.

        The one before must have been asked for (`finished`).
        """
        try:
            writing = self._thread.submit(checkpoint())
        except OrpoError as error:
            writing = Future()
            writing.set_exception(error)
        self._writing = step, writing

    def finished(self, wait: bool) -> Written | None:
        """How the last checkpoint went, once; None where none was begun since.

        Args:
            wait: for one that is still on its way; else None is returned then too.
        """
        if self._writing is None or not (wait or self._writing[1].done()):
            return None
        (step, writing), self._writing = self._writing, None
        error = writing.exception()
        if error is not None and not isinstance(error, OrpoError):
            raise error
        return Written(step, writing.result() if error is None else error)

    def close(self) -> None:
        """Wait, and end the thread."""
        self._thread.shutdown()
