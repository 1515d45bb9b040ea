"""How many steps a run has: as it was planned when it began, and on each resume that made it longer or shorter."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

BEFORE, NOW = "total_steps_before", "total_steps"
"""Keys of a resume in run.json that changed the number of steps."""


@dataclass(frozen=True)
class Stretch:
    """The steps after `after` were taken by the schedule of a run of `total` steps."""

    after: int
    total: int


def stretches(resumes: Sequence[Mapping[str, Any]], total: int) -> list[Stretch]:
    """Return the stretches of a run, in order; steps that were taken again count as they were taken last.

    Args:
        resumes: the resumes in run.json.
        total: the number of steps of the run today.
    """
    changes = [entry for entry in resumes if type(entry.get(BEFORE)) is int and type(entry.get(NOW)) is int]
    found = [Stretch(0, changes[0][BEFORE] if changes else total)]
    for entry in resumes:
        planned = entry[NOW] if entry in changes else found[-1].total
        kept = [stretch for stretch in found if stretch.after < entry["after_step"]]
        is_same = bool(kept) and kept[-1].total == planned
        found = kept if is_same else [*kept, Stretch(entry["after_step"], planned)]
    return found
