"""A sweep: what was typed, its jobs in processes of their own, and the table at its end."""

import re
import sys
from collections.abc import Container, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orpo_cli.cli.arguments import go_on, placed, quoted, split_flags
from orpo_cli.errors import CheckpointError, ConfigError, OutputError
from orpo_cli.machine import processes

if TYPE_CHECKING:
    from orpo_cli.cli.planning import JobPlanned


SWEEP = "sweep.json"
"""In the folder of a sweep: the arguments it was started with, the directory in which they were typed, its jobs."""

FOLDER_KEYS = ("output_dir", "hydra.run.dir", "hydra.sweep.dir", "resume")
"""Keys that say where a sweep goes, or goes on."""

_HYDRA_KEYS = re.compile(
    r"hydra\.sweep\.subdir=(?!.*\.\.)([^/\\$]|\$\{(hydra:)?[\w.]+\})*|hydra\.sweeper\.params\..+"
    r"|hydra\.verbose=(?i:true|false)"
)
"""Those of Hydra that a sweep may have, whoever wrote it down: no folder outside its own."""

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
_UNFINISHED = "ended before its last step"


@dataclass(frozen=True)
class JobDone:
    """One job of a sweep that has ended; `is_limited` in time, after which it may end unfinished."""

    overrides: list[str]
    exit_code: int
    folder: Path
    is_limited: bool

    @property
    def has_failed(self) -> bool:
        """Whether it did not do what it was asked for."""
        return self.exit_code != 0 or self.outcome == _UNFINISHED

    @property
    def outcome(self) -> str:
        """In words, for the table."""
        from orpo_cli.reporting.records import is_finished

        if self.exit_code == 0:
            if is_finished(self.folder):
                return "done"
            return "stopped at trainer.max_time" if self.is_limited else _UNFINISHED
        if self.exit_code > 128:
            return f"ended by {processes.signal_name(self.exit_code - 128)}"
        return f"{_OUTCOMES.get(self.exit_code, 'failed')} (exit {self.exit_code})"


def run_jobs(arguments: Sequence[str], jobs: Sequence["JobPlanned"], added: Sequence[str]) -> int:
    """Run the jobs of a sweep one after another, until one is interrupted, and report them.

    Args:
        added: what was typed to go on with it.
    Returns:
        0 where every job finished or its time was up, the code of an interrupt, else 1.
    """
    done: list[JobDone] = []
    with processes.passing_on_signals() as children:
        for job in jobs:
            exit_code = _in_own_process(arguments, job.overrides, job.folder, children)
            done.append(JobDone(job.overrides, exit_code, job.folder, job.is_limited))
            if exit_code in processes.INTERRUPTED or children.asked is not None:
                break
    left = len(jobs) - len(done)
    common = set.intersection(*(set(job.overrides) for job in jobs)) if len(jobs) > 1 else set()
    _report_jobs(done, common, added, to_go_on=left > 0)
    if done[-1].exit_code in processes.INTERRUPTED:
        return done[-1].exit_code
    if children.asked is not None and left:
        return 128 + children.asked
    return int(any(job.has_failed for job in done))


def _in_own_process(arguments: Sequence[str], overrides: list[str], folder: Path, children: processes.Children) -> int:
    """Run one job of a sweep so that its death takes no other with it. Returns its exit code."""
    flags = [flag for flag in split_flags(arguments)[0] if flag != "--multirun"]
    print(f"\n{folder}: {' '.join(overrides)}", file=sys.stderr, flush=True)
    return processes.run_alone([*flags, *placed(overrides, folder)], children)


def note_sweep(jobs: Sequence["JobPlanned"], arguments: Sequence[str]) -> None:
    """Keep what was typed, so that `orpo resume` can start the sweep again.

    Raises:
        ConfigError: it could not be started again.
        OutputError: there is a run in the folder, or a sweep, and it is not this one that goes on.
    """
    from orpo_cli.config.schema import AUTO
    from orpo_cli.reporting.records import write_json

    if word := _not_to_go_on(arguments):
        raise ConfigError(f"{word}: cannot be set of a sweep, which could not go on")
    folder = jobs[0].sweep
    if (folder / "config.yaml").exists():
        raise OutputError(f"{folder}: holds a run; choose another output_dir for a sweep")
    if (folder / SWEEP).exists() and not jobs[0].goes_on:
        raise OutputError(
            f"{folder}: holds a sweep; choose another output_dir, or resume={AUTO} to go on with the sweep in it"
        )
    names = [job.folder.name for job in jobs]
    write_json(folder / SWEEP, {"arguments": list(arguments), "directory": str(Path.cwd()), "jobs": names})


def _not_to_go_on(arguments: Sequence[str]) -> str | None:
    """An argument that a sweep which goes on must not have."""
    of_hydra = [word.lstrip("+") for word in arguments if word.lstrip("+~").startswith("hydra")]
    elsewhere = [word for word in of_hydra if word.partition("=")[0] not in FOLDER_KEYS]
    return next((word for word in elsewhere if not _HYDRA_KEYS.fullmatch(word)), None)


def check_noted(jobs: Sequence["JobPlanned"]) -> None:
    """Compare with the jobs that the sweep had: those are to go on.

    Raises:
        ConfigError: one of them would not, for it would be in another folder.
    """
    from orpo_cli.reporting.records import read_json

    folder, names = jobs[0].sweep, [job.folder.name for job in jobs]
    noted = read_json(folder / SWEEP).get("jobs")
    gone = [name for name in noted if name not in names] if isinstance(noted, list) else []
    if gone:
        raise ConfigError(
            f"{folder}: its job {gone[0]} would not go on; as it is typed now, its jobs are {', '.join(names[:3])}"
        )


def sweep_arguments(folder: Path) -> list[str]:
    """The arguments that go on with the sweep in a folder: its finished jobs are skipped, broken ones resumed.

    Raises:
        CheckpointError: the file is damaged, or would have the sweep elsewhere.
    """
    from orpo_cli.reporting.records import read_json

    typed = read_json(folder / SWEEP).get("arguments")
    if not isinstance(typed, list) or not all(isinstance(word, str) for word in typed) or "--multirun" not in typed:
        raise CheckpointError(f"{folder / SWEEP}: damaged: expected the arguments of a sweep")
    kept = [word for word in typed if word.lstrip("+").partition("=")[0] not in FOLDER_KEYS]
    if word := _not_to_go_on(kept):
        raise CheckpointError(f"{folder / SWEEP}: {word}: cannot be set of a sweep that goes on")
    return [*kept, f"output_dir={quoted(str(folder))}", "resume=auto"]


def _report_jobs(jobs: Sequence[JobDone], common: Container[str], added: Sequence[str], to_go_on: bool) -> None:
    """The table at the end of a sweep, and how to go on where that makes sense.

    Args:
        common: overrides that all jobs have.
        to_go_on: there are jobs that did not begin.
    """
    from rich.console import Console

    from orpo_cli.reporting.terminal import sweep_table

    rows = [
        (
            " ".join(word for word in job.overrides if word not in common),
            job.outcome,
            _accuracy(job.folder) if job.outcome == "done" else "",
            str(job.folder),
        )
        for job in jobs
    ]
    Console(stderr=True).print(sweep_table(rows))
    if to_go_on or any(job.outcome != "done" and job.exit_code != ConfigError.exit_code for job in jobs):
        print(f"go on with: {go_on(jobs[0].folder.parent, added)}", file=sys.stderr)


def _accuracy(folder: Path) -> str:
    from orpo_cli.reporting.records import METRICS, read_records

    evaluations: list[dict[str, Any]] = [
        record for record in read_records(folder / METRICS) if record["kind"] == "eval"
    ]
    return f"{evaluations[-1]['accuracy']:.3f}" if evaluations else ""
