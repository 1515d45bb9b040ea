"""The jobs of a sweep: what is known of one before and after it ran, and how it is run and shown."""

import sys
from collections.abc import Container, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryFile
from typing import TYPE_CHECKING

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


def run_job(
    number: int,
    job: PlannedJob,
    command: Sequence[str],
    children: processes.Children,
    screen: "SweepScreen",
    watch: "Watch | None" = None,
) -> int:
    """Run a job in its own process, show it, and return its exit code.

    On a terminal it is shown by what it writes into its folder, and what it said where it failed stays on the screen;
    elsewhere its own lines are printed as they come.

    Args:
        number: its place among the jobs.
        command: the arguments of its `orpo train`.
        watch: what ends it before its last step, in a search.
    """
    if not screen.is_live:
        print(f"\n{job.folder}: {' '.join(job.overrides)}", file=sys.stderr, flush=True)
        if watch is None:
            return processes.run_alone(command, children)
        return processes.run_alone(command, children, watch.is_dominated)
    from orpo_cli.runs.watch import RunReader

    reader = RunReader(job.folder)

    def look() -> bool:
        for event in reader.new_events():
            screen.show(number, event)
        return watch is not None and watch.is_dominated()

    screen.begin(number)
    with TemporaryFile() as said:
        code = processes.run_alone(command, children, look, said)
        look()
        if code and (watch is None or watch.reason is None):
            said.seek(0)
            lines = said.read().decode(errors="replace").splitlines()
            for line in [line for line in lines if line.startswith("orpo: ")] or lines[-_LAST_LINES:]:
                screen.say(f"{number}: {line}")
    return code
