"""The jobs of a sweep: what is known of one before and after it ran, and how it is run and shown."""

import sys
import time
from collections.abc import Container, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from orpo_cli.cli.folders import placed
from orpo_cli.cli.launchers import Launcher
from orpo_cli.cli.search import Search
from orpo_cli.cli.shorthand import key_of
from orpo_cli.errors import ConfigError
from orpo_cli.machine import processes
from orpo_cli.runs.folder import RunFolder

if TYPE_CHECKING:
    from orpo_cli.reporting.sweep_screen import SweepScreen
    from orpo_cli.runs.trials import Watch

_OUTCOMES = {
    2: "refused",
    65: "bad data, model or checkpoint",
    66: "no such input",
    69: "unreachable",
    71: "out of memory",
    73: "folder not usable",
    74: "write failed",
    76: "diverged",
}
_LAST_LINES = 20
"""The lines of a job that are shown where it failed and said nothing in the words of this tool."""

LOOK_SECONDS = 0.5
"""How often what a job has written is looked at."""

DONE = "done"
_UNFINISHED = "ended before its last step"


@dataclass(frozen=True)
class PlannedJob:
    """One job of a sweep that has not started.

    Args:
        is_limited: whether it has a time limit, after which it may end unfinished.
        resumes: whether it resumes the run in its folder, where there is one.
        problem: what is wrong with its configuration.
    """

    overrides: list[str]
    folder: Path
    is_limited: bool
    resumes: bool
    problem: ConfigError | None


@dataclass(frozen=True)
class EndedJob:
    """One job of a sweep that has ended.

    Args:
        stopped: why a search ended it before its last step.
        is_settled: whether a search counts it as it is, and does not resume it.
    """

    planned: PlannedJob
    exit_code: int
    stopped: str | None = None
    is_settled: bool = False

    @property
    def is_interrupted(self) -> bool:
        """Return whether a signal ended it after it had saved, and no search sent that."""
        return self.exit_code in processes.INTERRUPTED and self.stopped is None

    @property
    def has_failed(self) -> bool:
        """Return whether it did not do what it was asked for."""
        return self.stopped is None and (self.exit_code != 0 or self.outcome == _UNFINISHED)

    @property
    def outcome(self) -> str:
        """Return how it ended, in words."""
        if self.stopped is not None:
            return self.stopped
        if self.exit_code == 0:
            if RunFolder(self.planned.folder).is_finished:
                return DONE
            return "stopped at trainer.max_time" if self.planned.is_limited else _UNFINISHED
        if self.exit_code > 128:
            return f"ended by {processes.signal_name(self.exit_code - 128)}"
        return f"{_OUTCOMES.get(self.exit_code, 'failed')} (exit {self.exit_code})"


def names_of(jobs: Sequence[PlannedJob], search: Search | None) -> list[str]:
    """Return for each job the overrides that tell it from others; of a search, those that are searched."""
    if search is not None:
        return [" ".join(word for word in job.overrides if key_of(word) in search.space) for job in jobs]
    common: Container[str] = set.intersection(*(set(job.overrides) for job in jobs)) if len(jobs) > 1 else set()
    return [" ".join(word for word in job.overrides if word not in common) for job in jobs]


class RunningJob:
    """A job of a sweep at work.

    On a terminal it is shown by what it writes into its folder, and what it said where it failed stays on the screen.
    Elsewhere its own lines are printed: as they come where it is the only one at work, else once it has ended.

    Args:
        number: its place among the jobs.
        place: its place among those that work at the same time.
        watch: what ends it before its last step, in a search.
    """

    def __init__(
        self,
        number: int,
        planned: PlannedJob,
        flags: Sequence[str],
        launcher: Launcher,
        place: int,
        children: processes.Children,
        screen: "SweepScreen",
        watch: "Watch | None" = None,
    ) -> None:
        from orpo_cli.runs.watch import RunReader

        self.number = number
        self.planned = planned
        self.place = place
        self.watch = watch
        self._screen = screen
        self._reader = RunReader(planned.folder)
        self._looked = 0.0
        if screen.is_live:
            screen.begin(number, launcher.first_state)
        else:
            print(f"\n{planned.folder}: {' '.join(planned.overrides)}", file=sys.stderr, flush=True)
        arguments = [*flags, *placed(planned.overrides, planned.folder)]
        self._job = launcher.start(arguments, place, children)

    def exit_code(self) -> int | None:
        """Look at it; return its exit code once it has ended.

        A trial of a search that is dominated is asked to end.
        """
        code = self._job.exit_code()
        if code is not None or time.monotonic() > self._looked + LOOK_SECONDS:
            self._looked = time.monotonic()
            self._show()
            if code is None and self.watch is not None and self.watch.reason is None and self.watch.is_dominated():
                self._job.terminate()
        if code is not None:
            self._show_output(has_failed=code != 0 and (self.watch is None or self.watch.reason is None))
        return code

    def _show(self) -> None:
        """Show what it has written since; where it is not the screen's, its own lines say that."""
        if self._screen.is_live:
            for event in self._reader.new_events():
                self._screen.show(self.number, event)

    def _show_output(self, has_failed: bool) -> None:
        lines = self._job.output().splitlines()
        if not self._screen.is_live:
            for line in lines:
                print(line, file=sys.stderr, flush=True)
        elif has_failed:
            for line in [line for line in lines if line.startswith("orpo: ")] or lines[-_LAST_LINES:]:
                self._screen.say(f"{self.number}: {line}")
