"""`orpo`: find the command, run it, turn errors into one message and an exit code."""

import logging
import os
import sys
from collections.abc import Callable, Sequence

from orpo_cli import __version__
from orpo_cli.cli import processes
from orpo_cli.config.load import nearest
from orpo_cli.errors import ConfigError, OrpoError, WriteError

USAGE = """\
orpo: fine-tune a language model on preferences with ORPO

  orpo train                                          the built-in model and preferences, a few minutes on a CPU
  orpo train model=DIR data=prefs.json lambda=0.1     your model, your preferences
  orpo train -m lambda=0.05,0.1,0.2 ...               a sweep: one folder for each value
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


COMMANDS: dict[str, Callable[[Sequence[str]], int]] = {"train": _train, "check": _check}


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
    except KeyboardInterrupt:
        print("orpo: interrupted", file=sys.stderr)
        return 130


def print_error(error: OrpoError) -> None:
    """One message on stderr, no traceback, and nothing that the terminal would obey."""
    from orpo_cli.data.fields import harmless

    print(f"orpo: error: {harmless(str(error))}", file=sys.stderr)
