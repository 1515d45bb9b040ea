"""Write checkpoints to disk while the next steps are taken."""

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
class SaveOutcome:
    """How saving a checkpoint ended.

    Args:
        outcome: the checkpoint's directory, or the reason why there is none.
        seconds: the time it took.
    """

    step: int
    outcome: Path | OrpoError
    seconds: float


def _give_way() -> None:
    """Let this thread have only what the threads of the steps leave; each of those waits for the slowest of them."""
    if sys.platform == "linux":  # elsewhere it would be the priority of the whole process
        with contextlib.suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 19)


class BackgroundSaver:
    """A thread that writes at most one checkpoint at a time."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint", initializer=_give_way)
        self._thread.submit(int).result()  # it starts before memory is short: a start that fails half-way never ends
        self._saving: Future[SaveOutcome] | None = None

    @property
    def is_busy(self) -> bool:
        """Return whether a checkpoint is being written, or its outcome has not been asked for."""
        return self._saving is not None

    def begin(self, step: int, checkpoint: Callable[[], Callable[[], Path]]) -> None:
        """Call `checkpoint` now and what it returns in the thread; `finished` must have told of the one before.

        Args:
            checkpoint: `orpo_cli.checkpoints.saving.begin_checkpoint` with its arguments.
        """
        began = time.monotonic()

        def outcome_of(write: Callable[[], Path]) -> SaveOutcome:
            outcome: Path | OrpoError
            try:
                outcome = write()
            except OrpoError as error:
                outcome = error
            return SaveOutcome(step, outcome, time.monotonic() - began)

        try:
            self._saving = self._thread.submit(outcome_of, checkpoint())
        except OrpoError as error:
            self._saving = Future()
            self._saving.set_result(SaveOutcome(step, error, time.monotonic() - began))

    def finished(self, wait: bool) -> SaveOutcome | None:
        """Return the outcome of the last checkpoint, once; None if there is none to tell of.

        Args:
            wait: whether to wait for a checkpoint that is still being written; otherwise it yields None too.
        """
        if self._saving is None or not (wait or self._saving.done()):
            return None
        saving, self._saving = self._saving, None
        return saving.result()

    def close(self, wait: bool) -> None:
        """End the thread.

        Args:
            wait: whether to wait for a checkpoint that is being written; otherwise the thread is left to it.
        """
        self._thread.shutdown(wait)
