"""The time a run may take, `trainer.max_time`."""

import os
import time

_LONGEST_UNSEEN_SAVE = 600
"""Seconds left for a save where there was none, or fewer: a tenth of the limit."""


BEGAN = "ORPO_BEGAN"
"""In the environment of a process that shares the steps with others: when the one that started them did begin."""


def began() -> float:
    """When this run did, in seconds since the epoch."""
    import psutil

    return float(os.environ.get(BEGAN) or psutil.Process().create_time())


class TimeLimit:
    """The time a run may take since its process was started.

    Args:
        seconds: None for no limit.
    """

    def __init__(self, seconds: float | None) -> None:
        taken = time.time() - began()
        self._ends_at = None if seconds is None else time.monotonic() + seconds - taken
        self._unseen_save = 0.0 if seconds is None else min(seconds / 10, _LONGEST_UNSEEN_SAVE)
        self._began = time.monotonic()
        self._longest = 0.0
        self._longest_save: float | None = None
        self.last_save = 0.0
        """Seconds that it took."""

    @property
    def over(self) -> float:
        """Seconds since the time was up; 0 before."""
        return 0.0 if self._ends_at is None else max(0.0, time.monotonic() - self._ends_at)

    def begin_stretch(self) -> None:
        """Another stretch of work, saves aside, begins now."""
        self._began = time.monotonic()

    def saved(self, seconds: float) -> None:
        """A save has taken so long."""
        self.last_save = seconds
        self._longest_save = max(self._longest_save or 0.0, seconds)

    def leaves_no_time(self, saves: int) -> bool:
        """Whether another stretch of work and so many saves may not fit; asked at the end of each stretch.

        It knows the longest stretch, and the longest save where there was one; that a save should take longer than any
        before is told by `over`.
        """
        now = time.monotonic()
        self._longest = max(self._longest, now - self._began)
        save = self._unseen_save if self._longest_save is None else self._longest_save
        return self._ends_at is not None and now + 2 * self._longest + saves * save > self._ends_at
