"""The commands: each takes what was typed after its name and returns its exit code.

A new command is a function here, a row in `COMMANDS`, a line in `USAGE` (cli/main.py), its help in cli/help_texts.py,
and what it does in runs/.
"""

import contextlib
import shlex
import signal
import sys
from argparse import ArgumentTypeError
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orpo_cli.cli.arguments import Arguments, Parser, parse
from orpo_cli.cli.completion import completion
from orpo_cli.cli.doctor import doctor
from orpo_cli.cli.export import export
from orpo_cli.cli.importing import import_settings
from orpo_cli.cli.init import init
from orpo_cli.cli.one_configuration import chat, check, evaluate, generate, say_what_is_hidden
from orpo_cli.cli.several_runs import compare, runs
from orpo_cli.cli.shorthand import key_of
from orpo_cli.errors import CheckpointError, ConfigError, DataError, InputNotFoundError, OutputError
from orpo_cli.machine.signals import Terminated
from orpo_cli.quoting import harmless

if TYPE_CHECKING:
    from orpo_cli.cli.compose import Job
    from orpo_cli.config.schema import RunConfig
    from orpo_cli.reporting.terminal import Terminal
    from orpo_cli.runs.folder import RunFolder

_FAIL_AGAIN = tuple(error.exit_code for error in (ConfigError, DataError, InputNotFoundError, OutputError))
"""Exit codes after which the same run would fail in the same way."""


def train(argv: Sequence[str]) -> int:
    """Run `orpo train`."""
    return _parsed(argv, shlex.join(["orpo", "train", *argv]))


def _parsed(argv: Sequence[str], command: str) -> int:
    from orpo_cli.cli.stdin import kept

    arguments = parse(argv)
    with arguments.entry.named():
        return _train(replace(arguments, overrides=kept(arguments.overrides)), command)


def _train(arguments: Arguments, command: str, is_resumed_sweep: bool = False, added: Sequence[str] = ()) -> int:
    from orpo_cli.cli.compose import compose_jobs, show
    from orpo_cli.cli.keyboard import quiet_keys
    from orpo_cli.cli.launchers import refuse_launcher_of_one_run, take_jobs
    from orpo_cli.cli.search import search_of
    from orpo_cli.cli.sweeps import run_sweep
    from orpo_cli.machine.processes import follow_parent, join_step_of_slurm
    from orpo_cli.machine.signals import signals_wait

    follow_parent()
    join_step_of_slurm()
    if arguments.cfg or arguments.info:
        if arguments.multirun:
            raise ConfigError("--cfg and --info show one configuration; leave -m out")
        show(arguments)
        return 0
    say_what_is_hidden(arguments)
    with signals_wait():  # raised inside Hydra or OmegaConf, what a signal asks for may be lost
        of_runs, at_once = take_jobs(arguments)
        search = search_of(of_runs)
        composition = compose_jobs(of_runs) if search is None else search.composition()
    with quiet_keys():
        if composition.sweep is None:
            refuse_launcher_of_one_run(arguments)
            return _run(composition.jobs[0], arguments, command)
        return run_sweep(composition, arguments, is_resumed_sweep, added, search, at_once)


def _run(job: "Job", arguments: Arguments, command: str) -> int:
    from orpo_cli.cli.compose import config_of
    from orpo_cli.cli.folders import placed
    from orpo_cli.machine.processes import INTERRUPTED, is_child, run_processes
    from orpo_cli.runs.folder import RunFolder, resolved
    from orpo_cli.runs.train import is_left_alone

    folder = RunFolder(resolved(job.folder))
    config = config_of(job, folder)
    if config.trainer.processes > 1 and not is_child() and not is_left_alone(config, folder):
        code = run_processes([*arguments.flags, *placed(job.overrides, folder.path)], config.trainer.processes)
        if code and code not in (*_FAIL_AGAIN, *INTERRUPTED):  # the failure of a process may leave nobody to say it
            _print_how_to_resume(config, folder)
        return code
    try:
        _run_here(config, folder, command, _unasked_demo(job))
    except KeyboardInterrupt as ended:
        ended.args = tuple(_how_to_resume(config, folder))
        raise
    return _print_model(folder)


def _unasked_demo(job: "Job") -> str | None:
    """Return what to say to somebody who gave no data."""
    is_demo = "data" in job.config and str(job.config.data.path).startswith("builtin:demo/")
    if not is_demo or {key_of(word) for word in job.overrides} & {"data", "data.path"}:
        return None
    return (
        "no data= was given, so the built-in demo is trained, which teaches a form (three numbered points) and no "
        "knowledge; data=FILE trains your preferences"
    )


def _run_here(config: "RunConfig", folder: "RunFolder", command: str, note: str | None) -> None:
    """Run in this process, and show it on the terminal, with a note at its start if there is one."""
    from rich.console import Console

    from orpo_cli.machine.processes import is_main
    from orpo_cli.machine.signals import StopRequest, stop_at_step_boundary
    from orpo_cli.reporting.terminal import Terminal
    from orpo_cli.runs.train import train as run
    from orpo_cli.training.events import AlreadyFinished, RunStarted

    stop = StopRequest()
    with contextlib.ExitStack() as stack:
        console = Console(stderr=True) if is_main() else Console(quiet=True, force_terminal=False)
        screen = stack.enter_context(Terminal(console, config.trainer.log_every))
        for event in run(config, folder, [screen], stop, command):
            if isinstance(event, RunStarted):
                stack.enter_context(stop_at_step_boundary(lambda number: _show_stop(screen, number), stop))
                if note:
                    screen.warn(note)
            if isinstance(event, AlreadyFinished):
                print(f"{folder.path}: finished already", file=sys.stderr)


def _show_stop(screen: "Terminal", number: int) -> None:
    again = "; another Ctrl-C stops without saving" if number == signal.SIGINT else ""
    screen.warn(f"{signal.Signals(number).name}: stopping after this step{again}")


def _how_to_resume(config: "RunConfig", folder: "RunFolder") -> Iterator[str]:
    if folder.has_begun:
        from orpo_cli.runs.resume import resume_command_with_changes

        yield f"resume with: {resume_command_with_changes(config, folder)}"


def _print_how_to_resume(config: "RunConfig", folder: "RunFolder") -> None:
    for line in _how_to_resume(config, folder):
        print(line, file=sys.stderr)


def _print_model(folder: "RunFolder") -> int:
    """Print the place of the model, where nobody reads standard output from a terminal. Returns 0."""
    from orpo_cli.machine.processes import is_main

    if folder.model.is_dir() and is_main() and sys.stdout is not None and not sys.stdout.isatty():
        print(folder.model)
    return 0


def resume(argv: Sequence[str]) -> int:
    """Run `orpo resume`."""
    from orpo_cli.cli.config_dir import is_of_launcher
    from orpo_cli.cli.folders import FOLDER_KEYS
    from orpo_cli.cli.sweeps import arguments_to_resume
    from orpo_cli.quoting import override_value
    from orpo_cli.runs.folder import SWEEP

    if not argv or "=" in argv[0] or argv[0].startswith("-"):
        raise ConfigError("orpo resume takes the folder of a run or a sweep: orpo resume RUN_DIR [KEY=VALUE ...]")
    folder, added = Path(argv[0]).expanduser(), argv[1:]
    if folder.is_file():
        raise InputNotFoundError(f"{folder}: is a file; orpo resume takes the folder of a run or a sweep")
    if not (folder / SWEEP).is_file():
        if parse(added).multirun:
            raise ConfigError("-m: a run is resumed with one value of each key")
        return _parsed([f"resume={override_value(str(folder))}", *added], shlex.join(["orpo", "resume", *argv]))
    for word in added:
        if key_of(word) in FOLDER_KEYS or (key_of(word).startswith("hydra") and not is_of_launcher(word)):
            raise ConfigError(f"{word}: a sweep is resumed in its own folder; leave it out")
    typed, directory = arguments_to_resume(folder.resolve())
    if any(map(is_of_launcher, added)):
        typed = [word for word in typed if not is_of_launcher(word)]
    if not directory.is_dir():
        raise InputNotFoundError(f"{directory}: no such directory; the sweep in {folder} was started there")
    with contextlib.chdir(directory):
        resumed = parse([*typed, *added])
        return _train(resumed, shlex.join(["orpo", "resume", *argv]), is_resumed_sweep=True, added=added)


def verify(argv: Sequence[str]) -> int:
    """Run `orpo verify`."""
    from orpo_cli.runs.folder import SWEEP, RunFolder

    parser = Parser(usage="orpo verify RUN_DIR [--replay N]", add_help=False, allow_abbrev=False)
    parser.add_argument("folder", type=Path, metavar="RUN_DIR")
    parser.add_argument("--replay", type=_steps, default=0, metavar="N")
    given = parser.parse_args(argv)
    folder = given.folder.expanduser()
    if (folder / SWEEP).is_file():
        raise ConfigError(f"{folder}: is a sweep; verify its jobs one by one: orpo verify {shlex.quote(f'{folder}/0')}")
    problems = 0
    for inspected in _inspected(RunFolder(folder), given.replay):
        print(f"{'ok     ' if inspected.problem is None else 'PROBLEM'}  {inspected.what}", flush=True)
        if inspected.problem is not None:
            problems += 1
            print(f"         {harmless(inspected.problem)}", flush=True)
    if problems:
        raise CheckpointError(f"{folder}: {problems} of the above {'is' if problems == 1 else 'are'} damaged or wrong")
    return 0


def _steps(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise ArgumentTypeError(f"{text}: expected a number of steps, 1 or more")
    return int(text)


def _inspected(folder: "RunFolder", replayed: int) -> Iterator[Any]:
    from orpo_cli.runs.verify import verify as inspect

    yield from inspect(folder)
    if replayed:
        from rich.console import Console

        from orpo_cli.reporting.terminal import Terminal
        from orpo_cli.runs.replay import replay

        with Terminal(Console(stderr=True)) as screen:
            yield from replay(folder, replayed, screen.progress)


def report(argv: Sequence[str]) -> int:
    """Run `orpo report`: write the page of a run or of a sweep, and print its path."""
    parser = Parser(usage="orpo report DIR", add_help=False, allow_abbrev=False)
    parser.add_argument("folder", type=Path, metavar="DIR")
    folder = parser.parse_args(argv).folder.expanduser()
    from orpo_cli.runs.report import write_report_of

    print(write_report_of(folder.resolve()))
    return 0


def watch(argv: Sequence[str]) -> int:
    """Run `orpo watch`: it ends with the run, or with Ctrl-C, which the run does not hear of."""
    parser = Parser(usage="orpo watch RUN_DIR", add_help=False, allow_abbrev=False)
    parser.add_argument("folder", type=Path, metavar="RUN_DIR")
    folder = parser.parse_args(argv).folder.expanduser()
    try:
        _watch(folder)
    except Terminated:
        raise
    except KeyboardInterrupt:
        pass
    return 0


def _watch(folder: Path) -> None:
    from rich.console import Console

    from orpo_cli.cli.keyboard import quiet_keys
    from orpo_cli.reporting.terminal import Terminal
    from orpo_cli.runs.folder import SWEEP, resolved
    from orpo_cli.runs.watch import watch as look

    if (folder / SWEEP).is_file():
        raise ConfigError(f"{folder}: is a sweep; watch its jobs one by one: orpo watch {shlex.quote(f'{folder}/0')}")
    with quiet_keys(), Terminal(Console()) as screen:
        for event in look(resolved(folder)):
            screen.show(event)
        screen.leave_numbers()


COMMANDS: dict[str, Callable[[Sequence[str]], int]] = {
    "train": train, "resume": resume, "verify": verify, "check": check, "evaluate": evaluate,
    "generate": generate, "chat": chat, "export": export, "compare": compare, "runs": runs, "watch": watch,
    "report": report, "doctor": doctor, "init": init, "import": import_settings,
    "completion": lambda argv: completion(argv, list(COMMANDS)),
}  # fmt: skip
