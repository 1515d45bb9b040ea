"""A thread that drives one tracker, so that the run neither waits for it nor ends with it."""

import threading
import time
from collections.abc import Callable
from queue import SimpleQueue

from orpo_cli.quoting import in_one_line
from orpo_cli.reporting.trackers.tracker import Tracker

DEADLINE = 30.0
"""Seconds that the end of a run waits for all its trackers together."""


class TrackerThread:
    """Hands work to one tracker, in order.

    Args:
        name: of the tracker.
        opening: returns the tracker; called in the thread.
    """

    def __init__(self, name: str, opening: Callable[[], Tracker]) -> None:
        self._name = name
        self._opening = opening
        self._work: SimpleQueue[Callable[[Tracker], None]] = SimpleQueue()
        self._problem: str | None = None
        self._is_named = self._is_closed = False
        self._thread = threading.Thread(target=self._drive, name=f"tracker {name}", daemon=True)
        self._thread.start()

    def put(self, work: Callable[[Tracker], None]) -> None:
        """Have something done with the tracker, when it is its turn."""
        self._work.put(work)

    def close(self, finished: bool) -> None:
        """Have the tracker closed, after all that was put before."""

        def last(tracker: Tracker) -> None:
            tracker.close(finished)
            self._is_closed = True

        self.put(last)

    def wait(self, ends: float) -> None:
        """Wait for the tracker that is being closed until a time of `time.monotonic`."""
        self._thread.join(max(ends - time.monotonic(), 0.0))
        if self._thread.is_alive():
            self._problem = (
                f"not done {DEADLINE:g} seconds after the end of the run; what it shows may be incomplete, "
                "metrics.jsonl is not"
            )

    def new_problem(self) -> str | None:
        """Return what is wrong with the tracker, once."""
        if self._problem is None or self._is_named:
            return None
        self._is_named = True
        return f"tracker.name={self._name}: {self._problem}"

    def _drive(self) -> None:
        try:
            tracker = self._opening()
            while not self._is_closed:
                self._work.get()(tracker)
        except BaseException as error:  # also the SystemExit of a package that gives up
            self._problem = f"takes nothing more, the run does not need it: {in_one_line(error)}"
