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
from orpo_cli.cli.streams import lasting_streams
from orpo_cli.errors import ConfigError, InputNotFoundError, OrpoError, OutOfMemoryError, WriteError, is_out_of_memory
from orpo_cli.machine.signals import hear_no_more, heard, ignore_to_the_end, is_held

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
    from orpo_cli.cli.arguments import quoted
    from orpo_cli.cli.manual import RESUME_HELP
    from orpo_cli.cli.sweeps import SWEEP

    if "--help" in argv or "-h" in argv:
        print(RESUME_HELP, end="")
        return 0
    if not argv or "=" in argv[0] or argv[0].startswith("-"):
        raise ConfigError("orpo resume takes the folder of a run or a sweep: orpo resume RUN_DIR [KEY=VALUE ...]")
    folder = Path(argv[0]).expanduser()
    if folder.is_file():
        raise InputNotFoundError(f"{folder}: is a file; orpo resume takes the folder of a run or a sweep")
    if (folder / SWEEP).is_file():
        return train.resume_sweep(folder.resolve(), argv[1:])
    return train.main([f"resume={quoted(str(folder))}", *argv[1:]])


def _verify(argv: Sequence[str]) -> int:
    from orpo_cli.cli import verify

    return verify.main(argv)


_INTERRUPTED = 130

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
        from orpo_cli.config.keys import nearest

        raise ConfigError(f"unknown command `{argv[0]}`: {nearest(argv[0], COMMANDS)}")
    return COMMANDS[argv[0]](argv[1:])


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of the console script. Returns the exit code; see `orpo_cli.errors`."""
    os.environ.setdefault("TQDM_DISABLE", "1")  # the bars of libraries, between the lines of the display
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "FATAL")  # stacks of a process that waits for another
    if os.environ.get("COLUMNS") == "0":
        del os.environ["COLUMNS"]  # rich would write lines of no width
    logging.raiseExceptions = False  # a log that nobody reads any more ends nothing
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")  # a terminal that cannot show a character ends no run
    with lasting_streams():
        code = _exit_code(argv)
    if argv is None and threading.current_thread() is threading.main_thread():
        ignore_to_the_end()
        if code == _INTERRUPTED and _is_something_on_its_way():
            os._exit(code)
    return code


def _is_something_on_its_way() -> bool:
    """Whether Python would wait for a thread: Ctrl-C came twice, and a checkpoint is being written all the same."""
    main_thread = threading.main_thread()
    return any(not thread.daemon for thread in threading.enumerate() if thread is not main_thread)


def _exit_code(argv: Sequence[str] | None) -> int:
    """Run the command; say what ended it."""
    try:
        with _signals_end_the_program(for_good=argv is None):
            code = _dispatch(sys.argv[1:] if argv is None else argv)
        if sys.stdout is not None:
            sys.stdout.flush()
        return code
    except OrpoError as error:
        print_error(error)
        return error.exit_code
    except OSError as error:
        print(f"orpo: error: {error.filename or 'output'}: {error.strerror or error}", file=sys.stderr)
        return OutOfMemoryError.exit_code if is_out_of_memory(error) else WriteError.exit_code
    except _Terminated as ended:
        name = ended.signal_number.name
        print(f"orpo: ended by {name}; nothing was lost that had been saved{_how_to_go_on(ended)}", file=sys.stderr)
        return 128 + ended.signal_number
    except KeyboardInterrupt as ended:
        print(f"orpo: interrupted{_how_to_go_on(ended)}", file=sys.stderr)
        return _INTERRUPTED


class _Terminated(KeyboardInterrupt):
    """SIGTERM or SIGHUP, where no run is at a step that could be finished and saved."""

    def __init__(self, signal_number: signal.Signals) -> None:
        super().__init__()
        self.signal_number = signal_number


def _how_to_go_on(ended: KeyboardInterrupt) -> str:
    return f"; {ended}" if str(ended) else ""


@contextlib.contextmanager
def _signals_end_the_program(for_good: bool) -> Iterator[None]:
    """Outside the steps the first signal raises, so that what is unfinished is cleaned up; others do not disturb that.

    Where a library has caught it, and something else fails for that, it is still the end that the signal asked for.

    Args:
        for_good: the program ends after the block, and hears no signal until then.
    """
    asked: KeyboardInterrupt | None = None

    def on_signal(number: int, frame: FrameType | None) -> None:
        nonlocal asked
        if is_held(number, frame):
            return
        hear_no_more()
        asked = KeyboardInterrupt() if number == signal.SIGINT else _Terminated(signal.Signals(number))
        raise asked

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, on_signal) for number in heard()}
    try:
        yield
    except Exception as error:
        if asked is None:
            raise
        raise asked from error
    finally:
        if for_good:
            hear_no_more()
        else:
            for number, handler in before.items():
                signal.signal(number, handler)


def print_error(error: OrpoError) -> None:
    """One message on stderr, no traceback, and nothing that the terminal would obey."""
    from orpo_cli.quoting import harmless

    print(f"orpo: error: {harmless(str(error))}", file=sys.stderr)
