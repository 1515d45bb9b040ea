"""`orpo`: find the command, run it, turn errors into one message and an exit code."""

import logging
import os
import sys
import threading
from collections.abc import Sequence

from orpo_cli import __version__
from orpo_cli.cli.streams import lasting_streams
from orpo_cli.errors import ConfigError, InterruptedRunError, OrpoError, OutOfMemoryError, WriteError, is_out_of_memory
from orpo_cli.machine.signals import Terminated, ignore_signals_at_exit, signals_end_the_program
from orpo_cli.quoting import harmless

USAGE = """\
orpo: fine-tune a language model on preferences with ORPO

  orpo train                                          the built-in model and preferences, a few minutes on a CPU
  orpo train model=DIR data=prefs.json lambda=0.1     your model, your preferences
  orpo train my.yaml lambda=0.1                       the same keys from a file
  orpo train -m lambda=0.05,0.1,0.2 ...               a sweep: one folder for each value
  orpo resume RUN_DIR                                 resume a run, or a sweep, from what is saved
  orpo verify RUN_DIR                                 whether a run's checkpoints, records and model are whole
  orpo check data=prefs.json model=DIR                what is in the data and what training will make of it
  orpo evaluate model=RUN_DIR                         how the model scores held-out pairs, before and after training
  orpo generate model=RUN_DIR prompt="..."            what the model answers, before and after
  orpo chat RUN_DIR                                   a conversation with the model
  orpo compare DIR...                                 runs and sweeps side by side, and which of them a test tells apart
  orpo runs [DIR]                                     the runs below DIR, with their state and result
  orpo report DIR                                     the page of a run or a sweep, report.html, written again
  orpo watch RUN_DIR                                  the screen of a run, while it trains or afterwards
  orpo export RUN_DIR to=DIR                          files for other programs: merged, rounded, as GGUF, or on the hub
  orpo doctor                                         whether this machine is ready, and what each part means
  orpo init DIR                                       a working folder to begin in: settings, preferences, an experiment
  orpo import FILE                                    run.yaml from the settings of TRL, axolotl or LLaMA-Factory
  orpo COMMAND --help                                 its flags and keys; orpo train --help lists every group and option
  orpo help metrics | objectives | exit-codes         what these mean
  orpo completion bash|zsh|fish                       a script for the shell: eval "$(orpo completion bash)"
  orpo --version
"""


_INTERRUPTED = 130


def _dispatch(argv: Sequence[str]) -> int:
    if not argv or argv[0] in ("-h", "--help") or list(argv) == ["help"]:
        print(USAGE, end="")
        return 0
    if argv[0] == "help":
        return _help(argv[1:])
    if argv[0] in ("-V", "--version"):
        print(f"orpo {__version__}")
        return 0
    from orpo_cli.cli.commands import COMMANDS
    from orpo_cli.cli.help import COMPOSED, command_help, composed
    from orpo_cli.config.keys import nearest

    name, words = argv[0], argv[1:]
    if name not in COMMANDS:
        raise ConfigError(f"unknown command `{name}`: {nearest(name, COMMANDS)}")
    if "--help" in words or "-h" in words:
        print(command_help(name, composed(name, words) if name in COMPOSED else None), end="")
        return 0
    return COMMANDS[name](words)


def _help(words: Sequence[str]) -> int:
    """Print the help of a command, or a topic."""
    from orpo_cli.cli.commands import COMMANDS
    from orpo_cli.cli.topics import TOPICS, topic
    from orpo_cli.config.keys import nearest

    name = words[0]
    if name in COMMANDS:
        return _dispatch([*words, "--help"])
    if name not in TOPICS:
        raise ConfigError(f"no command or topic `{name}`: {nearest(name, [*COMMANDS, *TOPICS])}")
    print(topic(name), end="")
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Run the console script and return its exit code; see `orpo_cli.errors`."""
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
        ignore_signals_at_exit()
        if code == _INTERRUPTED and _is_something_on_its_way():
            os._exit(code)
    return code


def _is_something_on_its_way() -> bool:
    """Return whether Python would wait for a thread: after Ctrl-C twice, a checkpoint may still be on its way."""
    main_thread = threading.main_thread()
    return any(not thread.daemon for thread in threading.enumerate() if thread is not main_thread)


def _exit_code(argv: Sequence[str] | None) -> int:
    """Run the command, say what ended it, and return the exit code."""
    try:
        with signals_end_the_program(for_good=argv is None):
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
    except Terminated as ended:
        name = ended.signal_number.name
        print(f"orpo: ended by {name}; nothing was lost that had been saved{_how_to_resume(ended)}", file=sys.stderr)
        return 128 + ended.signal_number
    except KeyboardInterrupt as ended:
        print(f"orpo: interrupted{_how_to_resume(ended)}", file=sys.stderr)
        return _INTERRUPTED


def _how_to_resume(ended: KeyboardInterrupt) -> str:
    return f"; {ended}" if str(ended) else ""


def print_error(error: OrpoError) -> None:
    """Print one message on stderr: no traceback, and nothing that the terminal would obey."""
    kind = "" if isinstance(error, InterruptedRunError) else "error: "
    print(f"orpo: {kind}{harmless(str(error))}", file=sys.stderr)
