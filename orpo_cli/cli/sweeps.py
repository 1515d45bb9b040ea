"""A sweep: its jobs looked at together before one starts, run in processes of their own, and reported in a table."""

import re
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from orpo_cli.cli.arguments import Arguments
from orpo_cli.cli.compose import Composition, Job, config_of
from orpo_cli.cli.config_dir import LAUNCHER_OVERRIDE
from orpo_cli.cli.folders import FOLDER_KEYS, is_resume_of_named_run
from orpo_cli.cli.launchers import Launcher, launcher_of
from orpo_cli.cli.search import NOTED, Search
from orpo_cli.cli.shorthand import key_of
from orpo_cli.cli.sweep_jobs import DONE, EndedJob, PlannedJob, RunningJob, names_of
from orpo_cli.config.load import load_config
from orpo_cli.config.schema import AUTO
from orpo_cli.errors import CheckpointError, ConfigError, OrpoError, OutputError
from orpo_cli.files.untrusted import MAX_OWN_BYTES, read_json
from orpo_cli.files.writing import write_json
from orpo_cli.machine import processes
from orpo_cli.quoting import override_value, resume_command
from orpo_cli.runs.folder import SWEEP, RunFolder

if TYPE_CHECKING:
    from orpo_cli.reporting.sweep_screen import SweepScreen

_POLL_SECONDS = 0.1

_HYDRA_KEYS = re.compile(
    r"hydra\.sweep\.subdir=(?!.*\.\.)([^/\\$]|\$\{(hydra:)?[\w.]+\})*|hydra\.sweeper\.params\..+"
    rf"|hydra\.verbose=(?i:true|false)|{LAUNCHER_OVERRIDE}"
)
"""The overrides of Hydra that a sweep may have, whoever wrote them down: they name no folder outside its own."""


def run_sweep(
    composition: Composition,
    arguments: Arguments,
    is_resumed: bool = False,
    added: Sequence[str] = (),
    search: Search | None = None,
    at_once: int | None = None,
) -> int:
    """Run the jobs of a sweep until it is interrupted, and report them.

    Args:
        arguments: what was typed, all of it.
        is_resumed: whether the sweep is resumed by its folder.
        added: what was typed to resume it.
        search: what chooses further jobs, and ends those that are dominated.
        at_once: the most jobs that work at the same time, if that was typed.
    Returns:
        0 where every job finished or its time was up, the code of an interrupt, else 1.
    Raises:
        ConfigError: if no job can start, or one has no folder of its own.
        OutputError: if the folder holds something else.
    """
    assert composition.sweep is not None
    folder, jobs = composition.sweep, [_planned(job) for job in composition.jobs]
    _check_jobs(jobs, folder)
    from rich.console import Console

    console = Console(stderr=True)
    trainers = [job.config.trainer for job, planned in zip(composition.jobs, jobs, strict=True) if not planned.problem]
    launcher = launcher_of(composition, trainers, at_once, search is not None, is_shown=not console.is_terminal)
    if is_resumed:
        _check_names(jobs, folder)
    else:
        _write_down(jobs, folder, arguments)
    from orpo_cli.reporting.sweep_screen import SweepScreen

    with processes.passing_on_signals() as children, SweepScreen(console) as screen:
        ended = _run_jobs(jobs, arguments.flags, launcher, children, screen, search)
    left = len(jobs) - len(ended) + (0 if search is None else search.left)
    in_order = [ended[job.folder] for job in jobs if job.folder in ended]
    _report(in_order, jobs, left, folder, added, search)
    if children.asked is not None and (left or any(job.is_interrupted for job in in_order)):
        return 128 + children.asked
    return int(any(job.has_failed for job in in_order))


def _run_jobs(
    jobs: list[PlannedJob],
    flags: Sequence[str],
    launcher: Launcher,
    children: processes.Children,
    screen: "SweepScreen",
    search: Search | None,
) -> dict[Path, EndedJob]:
    """Run all jobs, as many at a time as the launcher has room for; once a signal came, no other one begins.

    Args:
        jobs: those that are known; a search adds to them.
    Returns:
        How those ended that began, by their folders.
    """
    ended: dict[Path, EndedJob] = {}
    waiting = iter(jobs) if search is None else _trials(search, jobs, ended)
    running: list[RunningJob] = []
    free = list(range(launcher.at_once))
    while True:
        while free and children.asked is None and (job := next(waiting, None)) is not None:
            screen.plan(names_of(jobs, search), 0 if search is None else search.left)
            watch = None if search is None else search.watch(job.folder)
            place, number = free.pop(0), jobs.index(job)
            running.append(RunningJob(number, job, flags, launcher, place, children, screen, watch))
        if not running:
            return ended
        for at_work in list(running):
            if (code := at_work.exit_code()) is not None:
                running.remove(at_work)
                free.append(at_work.place)
                ended[at_work.planned.folder] = _ended(at_work, code, children, screen, search)
        if running:
            time.sleep(_POLL_SECONDS)


def _ended(
    at_work: RunningJob, code: int, children: processes.Children, screen: "SweepScreen", search: Search | None
) -> EndedJob:
    """Show how a job ended, and tell the search."""
    job, watch = at_work.planned, at_work.watch
    is_asked_by_search = watch is not None and code in processes.INTERRUPTED and children.asked is None
    ended = EndedJob(job, code, watch.reason if watch is not None and is_asked_by_search else None)
    if ended.stopped is not None and not screen.is_live:
        print(f"{job.folder}: {ended.stopped}", file=sys.stderr, flush=True)
    if search is not None and not ended.is_interrupted:
        search.end(job.folder, code, ended.stopped)
    screen.end(at_work.number, ended.outcome)
    return ended


def _trials(search: Search, jobs: list[PlannedJob], ended: dict[Path, EndedJob]) -> Iterator[PlannedJob]:
    """Yield the trials of a search that are not settled, and add those that are to `ended`, new ones to `jobs`."""
    for job in list(jobs):
        settled = search.settled(job.folder)
        if settled is None:
            yield job
        else:
            ended[job.folder] = EndedJob(job, settled.exit_code, settled.stopped, is_settled=True)
    while (following := search.next_job()) is not None:
        jobs.append(_planned(following))
        yield jobs[-1]


def _planned(job: Job) -> PlannedJob:
    problem = None
    if not is_resume_of_named_run(job.config):  # whose configuration is not known yet
        try:
            _refuse_other_run(job)
        except ConfigError as error:
            problem = error
    is_limited = problem is None and job.config.trainer.get("max_time") is not None
    return PlannedJob(job.overrides, job.folder, is_limited, job.config.get("resume") == AUTO, problem)


def _refuse_other_run(job: Job) -> None:
    """Compare a job with the run in its folder, in all but the places of data and model."""
    from orpo_cli.runs.resume import identity, refuse_changes, without_places

    load_config(job.config)
    folder = RunFolder(job.folder)
    try:
        then = identity(folder.config)
    except OrpoError:  # there is none, or the job itself says what is wrong with it
        return
    if job.config.resume == AUTO:
        refuse_changes(without_places(then), without_places(identity(config_of(job, folder))))


def _check_jobs(jobs: Sequence[PlannedJob], folder: Path) -> None:
    numbers: dict[Path, int] = {}
    for number, job in enumerate(jobs):
        if job.folder.parent.resolve() != folder.resolve():
            raise ConfigError(
                f"job {number}, in {job.folder}: its folder is not directly in that of the sweep, {folder}"
            )
        if (first := numbers.setdefault(job.folder, number)) < number:
            raise ConfigError(f"job {number}, in {job.folder}: job {first} has it too; each needs a folder of its own")
    for number, job in enumerate(jobs):
        if job.problem is not None and job.resumes and RunFolder(job.folder).has_begun:
            raise ConfigError(f"job {number}, in {job.folder}: {job.problem}")
    problems = [job.problem for job in jobs if job.problem is not None]
    if len(problems) == len(jobs):
        raise problems[0]


def _write_down(jobs: Sequence[PlannedJob], folder: Path, arguments: Arguments) -> None:
    """Keep what was typed, so that `orpo resume` can start the sweep again."""
    typed = ["--multirun", *arguments.flags, *arguments.overrides]
    if word := _unresumable(typed):
        raise ConfigError(f"{word}: cannot be set in a sweep, which could not be resumed")
    if RunFolder(folder).has_begun:
        raise OutputError(f"{folder}: holds a run; choose another output_dir for a sweep")
    if (folder / SWEEP).exists() and not jobs[0].resumes:
        raise OutputError(
            f"{folder}: holds a sweep; choose another output_dir, or resume={AUTO} to resume the sweep in it"
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
        names = [job.folder.name for job in jobs]
        kept = {key: value for key, value in _noted(folder).items() if key == NOTED}  # of a search typed again
        write_json(folder / SWEEP, {"arguments": typed, "directory": str(Path.cwd()), "jobs": names, **kept})
    except OSError as error:
        raise OutputError(f"cannot create the folder {error.filename or folder}: {error.strerror}") from None


def _unresumable(words: Sequence[str]) -> str | None:
    """Return an override that a resumed sweep must not have."""
    of_hydra = [word.lstrip("+") for word in words if word.lstrip("+~").startswith("hydra")]
    elsewhere = [word for word in of_hydra if word.partition("=")[0] not in FOLDER_KEYS]
    return next((word for word in elsewhere if not _HYDRA_KEYS.fullmatch(word)), None)


def _check_names(jobs: Sequence[PlannedJob], folder: Path) -> None:
    names, noted = [job.folder.name for job in jobs], _noted(folder).get("jobs")
    gone = [name for name in noted if name not in names] if isinstance(noted, list) else []
    if gone:
        raise ConfigError(
            f"{folder}: its job {gone[0]} would not be resumed; as it is typed now, its jobs are {', '.join(names[:3])}"
        )


def _noted(folder: Path) -> dict[str, object]:
    try:
        return read_json(folder / SWEEP, MAX_OWN_BYTES)
    except (OSError, ValueError):
        return {}


def arguments_to_resume(folder: Path) -> tuple[list[str], Path]:
    """Return the arguments that resume the sweep in a folder, and the directory in which they were typed.

    Raises:
        CheckpointError: if its file is damaged, or would have the sweep elsewhere.
    """
    noted = _noted(folder)
    typed = noted.get("arguments")
    if not isinstance(typed, list) or not all(isinstance(word, str) for word in typed) or "--multirun" not in typed:
        raise CheckpointError(f"{folder / SWEEP}: damaged: expected the arguments of a sweep")
    kept = [word for word in typed if key_of(word) not in FOLDER_KEYS]
    if word := _unresumable(kept):
        raise CheckpointError(f"{folder / SWEEP}: {word}: cannot be set when a sweep is resumed")
    arguments = [*kept, f"output_dir={override_value(str(folder))}", f"resume={AUTO}"]
    return arguments, Path(str(noted.get("directory")))


def _report(
    ended: Sequence[EndedJob],
    jobs: Sequence[PlannedJob],
    left: int,
    folder: Path,
    added: Sequence[str],
    search: Search | None,
) -> None:
    """Print the leaderboard at the end of a sweep, and how to resume it where that makes sense.

    Args:
        left: how many jobs have not been run.
    """
    from rich.console import Console

    from orpo_cli.reporting.leaderboard import print_leaderboard
    from orpo_cli.runs.compare import JobOutcome, compare
    from orpo_cli.runs.comparison_page import sweep_report_in_words

    names = {job.folder: name for job, name in zip(jobs, names_of(jobs, search), strict=True)}
    outcomes = {
        job.planned.folder.absolute(): JobOutcome(
            names[job.planned.folder], None if job.outcome == DONE else job.outcome
        )
        for job in ended
    }
    print(file=sys.stderr)
    board = compare(list(outcomes), outcomes=outcomes)
    print_leaderboard(board, Console(stderr=True))
    print(sweep_report_in_words(folder.absolute(), board), file=sys.stderr)
    can_resume = any(
        job.outcome != DONE and job.exit_code != ConfigError.exit_code and job.stopped is None and not job.is_settled
        for job in ended
    )
    if can_resume or left:
        print(f"resume with: {resume_command(folder, added)}", file=sys.stderr)
