"""Keep the time that a run may take, `trainer.max_time`."""

import os
import time

_LONGEST_UNSEEN_SAVE = 600
"""Most seconds reserved for the first save; they are a tenth of the limit otherwise."""

BEGAN = "ORPO_BEGAN"
"""Environment variable with the start time of the process that started those that share the steps."""


def began() -> float:
    """Return when this run began, in seconds since the epoch."""
    import psutil

    return float(os.environ.get(BEGAN) or psutil.Process().create_time())


class TimeLimit:
    """The time that a run may take, counted from the start of its process.

    Args:
        seconds: the limit; None is no limit.
    """

    def __init__(self, seconds: float | None) -> None:
        taken = time.time() - began()
        self._ends_at = None if seconds is None else time.monotonic() + seconds - taken
        self._unseen_save = 0.0 if seconds is None else min(seconds / 10, _LONGEST_UNSEEN_SAVE)
        self._began = time.monotonic()
        self._longest = 0.0
        self._longest_save: float | None = None
        self.last_save = 0.0
        """Duration of the last save, in seconds."""

    @property
    def over(self) -> float:
        """Seconds by which the limit is exceeded; 0 before."""
        return 0.0 if self._ends_at is None else max(0.0, time.monotonic() - self._ends_at)

    def begin_stretch(self) -> None:
        """Note that another stretch of work begins now; saves are not part of it."""
        self._began = time.monotonic()

    def saved(self, seconds: float) -> None:
        """Note how long a save has taken."""
        self.last_save = seconds
        self._longest_save = max(self._longest_save or 0.0, seconds)

    def leaves_no_time(self, saves: int) -> bool:
        """Return whether another stretch of work and `saves` saves may not fit; to be asked at the end of each stretch.

        It reckons with twice the longest stretch and the longest save so far. If one takes longer than any before,
        `over` tells.
        """
        now = time.monotonic()
        self._longest = max(self._longest, now - self._began)
        save = self._unseen_save if self._longest_save is None else self._longest_save
        return self._ends_at is not None and now + 2 * self._longest + saves * save > self._ends_at
