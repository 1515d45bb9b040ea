"""`orpo`: find the command, run it, turn errors into one message and an exit code."""

import contextlib
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import FrameType

from orpo_cli import __version__
from orpo_cli.cli import processes
from orpo_cli.config.load import nearest
from orpo_cli.errors import ConfigError, OrpoError, WriteError

USAGE = """\
orpo: fine-tune a language model on preferences with ORPO

  orpo train                                          the built-in model and preferences, a few minutes on a CPU
  orpo train model=DIR data=prefs.json lambda=0.1     your model, your preferences
  orpo train -m lambda=0.05,0.1,0.2 ...               a sweep: one folder for each value
  orpo resume RUN_DIR                                 go on with a run, or with a sweep, from what is saved
  orpo verify RUN_DIR                                 whether a run's checkpoints, records and model are whole
  orpo check data=prefs.json model=DIR                what is in the data and what training will make of it
  orpo train --help                                   every group, option and key
  orpo --version
"""


def _train(argv: Sequence[str]) -> int:
    from orpo_cli.cli import train

    return train.main(argv)


def _check(argv: Sequence[str]) -> int:
    from orpo_cli.cli import check

    return check.main(argv)


def _resume(argv: Sequence[str]) -> int:
    from orpo_cli.cli import train
    from orpo_cli.cli.shorthand import quoted

    if not argv or "=" in argv[0] or argv[0].startswith("-"):
        raise ConfigError("orpo resume takes the folder of a run or a sweep: orpo resume RUN_DIR [KEY=VALUE ...]")
    folder = Path(argv[0]).expanduser()
    if (folder / train.SWEEP).is_file():
        return train.main([*train.sweep_arguments(folder), *argv[1:]])
    return train.main([f"resume={quoted(str(folder))}", *argv[1:]])


def _verify(argv: Sequence[str]) -> int:
    from orpo_cli.cli import verify

    return verify.main(argv)


COMMANDS: dict[str, Callable[[Sequence[str]], int]] = {
    "train": _train, "resume": _resume, "verify": _verify, "check": _check,
}  # fmt: skip


def _dispatch(argv: Sequence[str]) -> int:
    if not argv or argv[0] in ("-h", "--help", "help"):
        print(USAGE, end="")
        return 0
    if argv[0] in ("-V", "--version"):
        print(f"orpo {__version__}")
        return 0
    if argv[0] not in COMMANDS:
        raise ConfigError(f"unknown command `{argv[0]}`: {nearest(argv[0], COMMANDS)}")
    return COMMANDS[argv[0]](argv[1:])


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of the console script. Returns the exit code; see `orpo_cli.errors`."""
    os.environ.setdefault("TQDM_DISABLE", "1")  # the bars of libraries, between the lines of the display
    logging.raiseExceptions = False  # a log that nobody reads any more ends nothing
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")  # a terminal that cannot show a character ends no run
    try:
        with _sigterm_raises():
            return _dispatch(sys.argv[1:] if argv is None else argv)
    except OrpoError as error:
        if processes.is_main():
            print_error(error)
        return error.exit_code
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        print(f"orpo: error: {error.filename or 'a file'}: {error.strerror or error}", file=sys.stderr)
        return WriteError.exit_code
    except _Terminated:
        print("orpo: ended by SIGTERM; nothing was lost that had been saved", file=sys.stderr)
        return 143
    except KeyboardInterrupt:
        print("orpo: interrupted", file=sys.stderr)
        return 130


class _Terminated(KeyboardInterrupt):
    """SIGTERM, where no run is at a step that could be finished and saved."""


@contextlib.contextmanager
def _sigterm_raises() -> Iterator[None]:
    """Outside the steps SIGTERM ends the program as SIGINT does, so that what is unfinished is cleaned up."""

    def on_signal(_number: int, _frame: FrameType | None) -> None:
        raise _Terminated

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, on_signal)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def print_error(error: OrpoError) -> None:
    """One message on stderr, no traceback, and nothing that the terminal would obey."""
    from orpo_cli.data.fields import harmless

    print(f"orpo: error: {harmless(str(error))}", file=sys.stderr)
