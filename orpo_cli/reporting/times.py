"""Times in words: a moment, and how long something takes."""

from datetime import UTC, datetime


def utc(seconds: float) -> str:
    """Return a moment in seconds since the epoch as text, 2026-01-31T14:05:09Z."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def duration(seconds: float | None) -> str:
    """Return a duration in hours, minutes and seconds, 0:01:02; a question mark for one that is not known."""
    if seconds is None:
        return "?"
    whole = max(0, int(seconds))
    return f"{whole // 3600}:{whole // 60 % 60:02d}:{whole % 60:02d}"
