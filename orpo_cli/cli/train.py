"""`orpo train`: one run, or a sweep whose jobs each have a process of their own."""

import contextlib
import re
import shlex
import sys
from collections.abc import Container, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orpo_cli.cli import processes
from orpo_cli.cli.manual import train_help
from orpo_cli.cli.shorthand import expand, quoted, split_flags
from orpo_cli.errors import CheckpointError, ConfigError, InputNotFoundError, OutputError

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from orpo_cli.cli.planning import JobPlanned
    from orpo_cli.config.schema import RunConfig


SWEEP = "sweep.json"
"""In the folder of a sweep: the arguments it was started with, and the directory in which they were typed."""

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


def main(argv: Sequence[str], is_noted: bool = False, added: Sequence[str] = ()) -> int:
    """Run `orpo train ARGV`. Returns the exit code.

    Args:
        is_noted: these are the arguments in the folder of a sweep.
        added: those of them that are not in it.
    """
    if "--help" in argv or "-h" in argv:
        print(train_help(), end="")
        return 0
    processes.follow_parent()
    from orpo_cli.cli import compose
    from orpo_cli.cli.planning import check_jobs, planned
    from orpo_cli.cli.stdin import kept
    from orpo_cli.config.schema import AUTO

    for word in argv:
        if not word.isprintable() and word != word.encode("utf-8", "replace").decode():
            raise ConfigError(f"{word!a}: is not UTF-8")
    arguments = kept(expand(argv))
    if any(word.lstrip("+") == f"resume={AUTO}" for word in arguments):
        _check_folder_is_given(arguments)
    failures: list[Exception] = []
    exit_codes: list[int] = []
    jobs: list[JobPlanned] = []

    def job(cfg: "DictConfig") -> None:
        if compose.is_sweep():
            jobs.append(planned(cfg, compose.job_overrides(), compose.run_dir()))
            return
        try:
            exit_codes.append(_run(cfg, arguments, compose.job_overrides(), compose.run_dir()))
        except Exception as error:  # kept from Hydra, which would print it in its own way
            failures.append(error)

    def sweep() -> None:
        check_jobs(jobs)
        if not is_noted:
            _note_sweep(jobs[0].folder.parent, arguments, jobs[0].goes_on)
        exit_codes.append(_run_jobs(arguments, jobs, added))

    compose.run(arguments, job, sweep=sweep)
    if failures:
        raise failures[0]
    return max(exit_codes, default=0)


def _run_jobs(arguments: Sequence[str], jobs: Sequence["JobPlanned"], added: Sequence[str]) -> int:
    """Run the jobs of a sweep one after another, until one is interrupted, and report them.

    Args:
        added: what was typed to go on with it.
    Returns:
        0 where every job finished, the code of an interrupt, else 1.
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


def _run(cfg: "DictConfig", arguments: Sequence[str], overrides: list[str], folder: Path) -> int:
    from rich.console import Console

    from orpo_cli.cli.compose import with_overrides
    from orpo_cli.config.load import load_config, portable_yaml, read_saved_config
    from orpo_cli.config.schema import AUTO
    from orpo_cli.data.sources import check_there
    from orpo_cli.reporting.records import claim
    from orpo_cli.reporting.terminal import Terminal
    from orpo_cli.training.threads import choose_threads

    resume = cfg.get("resume")
    if resume and resume != AUTO:
        cfg = with_overrides(read_saved_config(Path(str(resume))), overrides)
    config = load_config(cfg)
    folder = folder.resolve()
    if resume == AUTO:
        _check_folder_is_given(arguments)
    if resume and _is_finished(config, folder):
        print(f"{folder}: finished already", file=sys.stderr)
        return _leave_model(folder)
    for path in (*config.data.paths, *config.data.eval_paths):
        check_there(path)
    if config.trainer.processes > 1 and not processes.is_child():
        return _in_several_processes(arguments, config.trainer.processes, folder)
    resuming = (folder / "config.yaml").exists() if resume == AUTO else resume is not None
    lock = claim(folder, resuming) if processes.is_main() else contextlib.nullcontext()
    console = Console(stderr=True) if processes.is_main() else Console(quiet=True, force_terminal=False)
    with lock, _leaves_nothing_unless_begun(folder), Terminal(console, config.trainer.log_every) as screen:
        if processes.is_main():
            screen.log_to(folder / "train.log")
        screen.progress("loading torch and transformers", 0, 0)
        choose_threads()
        from orpo_cli.cli.job import train

        train(config, portable_yaml(cfg, folder), folder, screen)
    return _leave_model(folder)


def _in_several_processes(arguments: Sequence[str], count: int, folder: Path) -> int:
    """Run the processes of a run. A failure of one of them may leave nobody who says how to go on."""
    code = processes.run_processes(_placed(arguments, folder), count)
    if code and code not in processes.INTERRUPTED and (folder / "config.yaml").exists():
        print(f"go on with: orpo resume {shlex.quote(str(folder))}", file=sys.stderr)
    return code


def _is_finished(config: "RunConfig", folder: Path) -> bool:
    if not (folder / "model").is_dir():
        return False  # without the second it takes to import what reads checkpoints
    from orpo_cli.cli.resume import finished

    return finished(config, folder)


def _check_folder_is_given(arguments: Sequence[str]) -> None:
    if not any(word.lstrip("+").startswith(("output_dir=", "hydra.run.dir=")) for word in arguments):
        raise ConfigError(
            "resume=auto goes on with what is in output_dir, whose default is a new folder each time; "
            "give it: output_dir=FOLDER"
        )


def _leave_model(folder: Path) -> int:
    """The one line of standard output, where nobody reads it from a terminal: where the model lies. Returns 0."""
    there = (folder / "model").is_dir()
    if there and processes.is_main() and sys.stdout is not None and not sys.stdout.isatty():
        print(folder / "model")
    return 0


@contextlib.contextmanager
def _leaves_nothing_unless_begun(folder: Path) -> Iterator[None]:
    """A run that fails before its configuration is written can be started again in the same folder."""
    from orpo_cli.reporting.records import LOCK

    try:
        yield
    finally:
        if processes.is_main() and not (folder / "config.yaml").exists():
            for name in ("train.log", LOCK):
                (folder / name).unlink(missing_ok=True)


def _in_own_process(arguments: Sequence[str], overrides: list[str], folder: Path, children: processes.Children) -> int:
    """Run one job of a sweep so that its death takes no other with it. Returns its exit code."""
    flags = [flag for flag in split_flags(arguments)[0] if flag != "--multirun"]
    print(f"\n{folder}: {' '.join(overrides)}", file=sys.stderr, flush=True)
    return processes.run_alone([*flags, *_placed(overrides, folder)], children)


def _placed(words: Sequence[str], folder: Path) -> list[str]:
    """Arguments of a run in a folder, whatever folder is in them."""
    place = quoted(str(folder))
    keys = [word.partition("=")[0] for word in words]
    placed = [
        f"{key}={place}" if key.lstrip("+") == "output_dir" else word for key, word in zip(keys, words, strict=True)
    ]
    return [*placed, f"hydra.run.dir={place}"]


def _note_sweep(folder: Path, arguments: Sequence[str], resuming: bool) -> None:
    """Keep what was typed, so that `orpo resume` can start the sweep again.

    Raises:
        OutputError: there is a run in the folder, or a sweep, and it is not this one that goes on.
    """
    from orpo_cli.config.schema import AUTO
    from orpo_cli.reporting.records import write_json

    if (folder / "config.yaml").exists():
        raise OutputError(f"{folder}: holds a run; choose another output_dir for a sweep")
    if (folder / SWEEP).exists() and not resuming:
        raise OutputError(
            f"{folder}: holds a sweep; choose another output_dir, or resume={AUTO} to go on with the sweep in it"
        )
    write_json(folder / SWEEP, {"arguments": list(arguments), "directory": str(Path.cwd())})


def resume_sweep(folder: Path, more: Sequence[str]) -> int:
    """Go on with the sweep in a folder, as if it were typed again where it was. Returns the exit code.

    Raises:
        CheckpointError: what is known of it is damaged.
        ConfigError: it should go on elsewhere.
        InputNotFoundError: the directory in which it was started is gone, and with it what its paths mean.
    """
    from orpo_cli.reporting.records import read_json

    for word in more:
        key = word.lstrip("+").partition("=")[0]
        if key in _PLACES or key.startswith("hydra"):
            raise ConfigError(f"{word}: a sweep goes on in its own folder; leave it out")
    directory = Path(str(read_json(folder / SWEEP).get("directory")))
    arguments = [*sweep_arguments(folder), *more]
    if not directory.is_dir():
        raise InputNotFoundError(f"{directory}: no such directory; the sweep in {folder} was started there")
    with contextlib.chdir(directory):
        return main(arguments, is_noted=True, added=more)


def sweep_arguments(folder: Path) -> list[str]:
    """The arguments that go on with the sweep in a folder: its finished jobs are skipped, broken ones resumed.

    Raises:
        CheckpointError: the file is damaged, or would have the sweep elsewhere.
    """
    from orpo_cli.reporting.records import read_json

    typed = read_json(folder / SWEEP).get("arguments")
    if not isinstance(typed, list) or not all(isinstance(word, str) for word in typed) or "--multirun" not in typed:
        raise CheckpointError(f"{folder / SWEEP}: damaged: expected the arguments of a sweep")
    kept = [word for word in typed if word.lstrip("+").partition("=")[0] not in _PLACES]
    for word in kept:
        if word.lstrip("+~").startswith("hydra") and not _PLAIN_SUBDIR.fullmatch(word):
            raise CheckpointError(f"{folder / SWEEP}: {word}: cannot be set of a sweep that goes on")
    return [*kept, f"output_dir={quoted(str(folder))}", "resume=auto"]


_PLACES = ("output_dir", "hydra.run.dir", "hydra.sweep.dir", "resume")
_PLAIN_SUBDIR = re.compile(r"hydra\.sweep\.subdir=[\w=,-]*(\$\{[\w.]+\})?[\w=,-]*|hydra\.sweeper\.params\..+")
"""Keys of Hydra that a sweep may have, whoever wrote it down: no folder outside its own."""


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
        print(f"go on with: orpo resume {shlex.join([str(jobs[0].folder.parent), *added])}", file=sys.stderr)


def _accuracy(folder: Path) -> str:
    from orpo_cli.reporting.records import METRICS, read_records

    evaluations: list[dict[str, Any]] = [
        record for record in read_records(folder / METRICS) if record["kind"] == "eval"
    ]
    return f"{evaluations[-1]['accuracy']:.3f}" if evaluations else ""
