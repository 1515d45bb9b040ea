"""The sessions of a run: each time it is started, anew or to be resumed, and how long it has worked in all."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from orpo_cli.reporting.times import utc


@dataclass(frozen=True)
class Session:
    """One start of a run.

    Args:
        began: when, in seconds since the epoch.
        command: the command line; None in Python.
    """

    began: float
    command: str | None

    @property
    def noted(self) -> dict[str, Any]:
        """Return what run.json says of it."""
        return {"started": utc(self.began), "command": self.command}

    @property
    def seconds(self) -> float:
        """Return how long it has lasted by now."""
        return max(0.0, time.time() - self.began)


def last_start(record: Mapping[str, Any]) -> float | None:
    """Return when the last session of a run began, by its run.json; None where that does not say it."""
    resumes = record.get("resumes")
    sessions = [record, *(resumes if isinstance(resumes, list) else [])]
    try:
        return datetime.fromisoformat(sessions[-1]["started"]).timestamp()
    except (KeyError, TypeError, ValueError):
        return None


def seconds_so_far(record: Mapping[str, Any], records: Sequence[Mapping[str, Any]]) -> float:
    """Return how long the sessions of a run have lasted.

    One that was cut short lasted until its last recorded step or evaluation: nothing else of its end is known.

    Args:
        record: run.json.
        records: the steps and evaluations in metrics.jsonl.
    """
    noted = record.get("seconds")
    seconds = float(noted) if isinstance(noted, int | float) else 0.0
    began, last = last_start(record), max((part.get("time", 0.0) for part in records), default=0.0)
    return seconds if "ended" in record or began is None else seconds + max(0.0, last - began)
