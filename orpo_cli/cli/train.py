"""`orpo train`: one run, or a sweep whose jobs each have a process of their own."""

import contextlib
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from orpo_cli.cli.arguments import expand, placed
from orpo_cli.cli.manual import train_help
from orpo_cli.cli.sweeps import FOLDER_KEYS, SWEEP, check_noted, note_sweep, run_jobs, sweep_arguments
from orpo_cli.errors import ConfigError, DataError, InputNotFoundError, OutputError
from orpo_cli.machine import processes
from orpo_cli.reporting.records import MODEL

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from orpo_cli.cli.planning import JobPlanned
    from orpo_cli.config.schema import RunConfig


_HOPELESS = tuple(error.exit_code for error in (ConfigError, DataError, InputNotFoundError, OutputError))
"""Exit codes after which the same run would fail in the same way."""


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

    for word in argv:
        if not word.isprintable() and word != word.encode("utf-8", "replace").decode():
            raise ConfigError(f"{word!a}: is not UTF-8")
    arguments = kept(expand(argv))
    failures: list[Exception] = []
    exit_codes: list[int] = []
    jobs: list[JobPlanned] = []

    def job(cfg: "DictConfig") -> None:
        if compose.is_sweep():
            jobs.append(planned(cfg, compose.job_overrides(), compose.run_dir(), compose.sweep_dir()))
            return
        try:
            exit_codes.append(_run(cfg, arguments, compose.job_overrides(), compose.run_dir()))
        except Exception as error:  # kept from Hydra, which would print it in its own way
            failures.append(error)

    def sweep() -> None:
        if any(job.goes_on for job in jobs):
            _check_folder_is_given(arguments, "hydra.sweep.dir")
        check_jobs(jobs)
        if is_noted:
            check_noted(jobs)
        else:
            note_sweep(jobs, arguments)
        exit_codes.append(run_jobs(arguments, jobs, added))

    compose.run(arguments, job, sweep=sweep)
    if failures:
        raise failures[0]
    return max(exit_codes, default=0)


def _run(cfg: "DictConfig", arguments: Sequence[str], overrides: list[str], folder: Path) -> int:
    from rich.console import Console

    from orpo_cli.cli.compose import with_overrides
    from orpo_cli.config.load import load_config
    from orpo_cli.config.saved import portable_yaml, read_saved_config
    from orpo_cli.config.schema import AUTO
    from orpo_cli.data.rows.sources import check_there
    from orpo_cli.machine.threads import choose_threads
    from orpo_cli.reporting.records import claim
    from orpo_cli.reporting.terminal import Terminal

    resume = cfg.get("resume")
    if resume and resume != AUTO:
        cfg = with_overrides(read_saved_config(Path(str(resume))), overrides)
    config = load_config(cfg)
    folder = folder.resolve()
    if resume == AUTO:
        _check_folder_is_given(arguments, "hydra.run.dir")
    if resume and _is_finished(config, folder):
        print(f"{folder}: finished already", file=sys.stderr)
        return _leave_model(folder)
    for path in (*config.data.paths, *config.data.eval_paths):
        check_there(path)
    if config.trainer.processes > 1 and not processes.is_child():
        return _in_several_processes(arguments, config, folder)
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


def _in_several_processes(arguments: Sequence[str], config: "RunConfig", folder: Path) -> int:
    """Run the processes of a run. A failure of one of them may leave nobody who says how to go on."""
    code = processes.run_processes(placed(arguments, folder), config.trainer.processes)
    if code and code not in (*processes.INTERRUPTED, *_HOPELESS) and (folder / "config.yaml").exists():
        from orpo_cli.cli.resume import way_on

        print(f"go on with: {way_on(config, folder)}", file=sys.stderr)
    return code


def _is_finished(config: "RunConfig", folder: Path) -> bool:
    if not (folder / MODEL).is_dir():
        return False  # without the second it takes to import what reads checkpoints
    from orpo_cli.cli.finished import finished

    return finished(config, folder)


def _check_folder_is_given(arguments: Sequence[str], of_hydra: str) -> None:
    keys = {word.lstrip("+").partition("=")[0] for word in arguments}
    if keys.isdisjoint({"output_dir", of_hydra}):
        raise ConfigError(
            "resume=auto goes on with what is in output_dir, whose default is a new folder each time; "
            "give it: output_dir=FOLDER"
        )


def _leave_model(folder: Path) -> int:
    """The one line of standard output, where nobody reads it from a terminal: where the model lies. Returns 0."""
    there = (folder / MODEL).is_dir()
    if there and processes.is_main() and sys.stdout is not None and not sys.stdout.isatty():
        print(folder / MODEL)
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
        if key in FOLDER_KEYS or key.startswith("hydra"):
            raise ConfigError(f"{word}: a sweep goes on in its own folder; leave it out")
    directory = Path(str(read_json(folder / SWEEP).get("directory")))
    arguments = [*sweep_arguments(folder), *more]
    if not directory.is_dir():
        raise InputNotFoundError(f"{directory}: no such directory; the sweep in {folder} was started there")
    with contextlib.chdir(directory):
        return main(arguments, is_noted=True, added=more)
