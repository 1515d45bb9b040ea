"""Checkpoints are brought to the disk beside the next steps."""

import contextlib
import os
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from orpo_cli.errors import OrpoError


@dataclass(frozen=True)
class Written:
    """How a checkpoint went: the directory it lies in, or why there is none; and how many seconds it took."""

    step: int
    outcome: Path | OrpoError
    seconds: float


def _give_way() -> None:
    """Let this thread have what the steps' threads leave; each of those waits for the slowest of them."""
    if sys.platform == "linux":  # elsewhere it would be the priority of the whole process
        with contextlib.suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 19)


@dataclass
class _Writing:
    """A checkpoint on its way, since when, and until when where it has arrived."""

    step: int
    result: Future[Path]
    began: float
    ended: float | None = None

    def note_end(self, _result: Future[Path]) -> None:
        self.ended = time.monotonic()

    @property
    def seconds(self) -> float:
        return (self.ended or time.monotonic()) - self.began


class Writer:
    """At most one checkpoint that is on its way to the disk."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint", initializer=_give_way)
        self._thread.submit(int).result()  # it is there before memory is short: a start that fails half-way never ends
        self._writing: _Writing | None = None

    @property
    def is_busy(self) -> bool:
        """Whether there is a checkpoint that has not been asked for, or is on its way."""
        return self._writing is not None

    def begin(self, step: int, checkpoint: Callable[[], Callable[[], Path]]) -> None:
        """Run `orpo_cli.checkpoints.saving.begin_checkpoint` now and what it returns beside this thread.

        The one before must have been asked for (`finished`).
        """
        began = time.monotonic()
        try:
            writing = self._thread.submit(checkpoint())
        except OrpoError as error:
            writing = Future()
            writing.set_exception(error)
        self._writing = _Writing(step, writing, began)
        writing.add_done_callback(self._writing.note_end)

    def finished(self, wait: bool) -> Written | None:
        """How the last checkpoint went, once; None where none was begun since.

        Args:
            wait: for one that is still on its way; else None is returned then too.
        """
        if self._writing is None or not (wait or self._writing.result.done()):
            return None
        writing, self._writing = self._writing, None
        error = writing.result.exception()
        if error is not None and not isinstance(error, OrpoError):
            raise error
        return Written(writing.step, writing.result.result() if error is None else error, writing.seconds)

    def close(self, wait: bool) -> None:
        """End the thread.

        Args:
            wait: for a checkpoint that is on its way; else the thread is left to it.
        """
        self._thread.shutdown(wait)
