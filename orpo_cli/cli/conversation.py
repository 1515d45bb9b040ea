"""`orpo chat`: a conversation with the model of a run, in a terminal or through a pipe."""

import contextlib
import re
import signal
import sys
from collections.abc import Callable, Iterator
from types import FrameType
from typing import TYPE_CHECKING

from orpo_cli.cli.answering import show_piece
from orpo_cli.cli.evaluated_run import generation_config
from orpo_cli.cli.keyboard import quiet_keys
from orpo_cli.config.keys import nearest
from orpo_cli.data.progress import OnProgress
from orpo_cli.errors import ConfigError, OrpoError, OutOfMemoryError
from orpo_cli.files.cache import cache_directory
from orpo_cli.machine.signals import Terminated, has_to_wait
from orpo_cli.machine.threads import choose_threads
from orpo_cli.quoting import harmless

if TYPE_CHECKING:
    from orpo_cli.cli.compose import Job
    from orpo_cli.runs.generate import Conversation

_HELP = """\
/base    what the model to compare with answers to your last message
/reset   forget what was said
/help    this list
/quit    end, as Ctrl-D does; Ctrl-C ends an answer"""

_COMMANDS = ("/base", "/help", "/quit", "/reset")
_MOST_LINES = 1000
"""Lines of earlier conversations that the arrow keys bring back."""


def talk(job: "Job") -> int:
    """Talk with the model of a configuration until standard input ends."""
    config, wanted = generation_config(job)
    if wanted.prompt is not None or wanted.prompts is not None:
        raise ConfigError("orpo chat asks what you type; orpo generate takes prompt= and prompts=")
    if sys.stdin is None:
        raise ConfigError("orpo chat reads what you type, and standard input is closed")
    sys.stdin.reconfigure(errors="replace")  # type: ignore[union-attr]  # so that a broken character ends nothing
    choose_threads()
    with quiet_keys(), _progress() as on_progress:
        on_progress("loading torch and transformers", 0, 0)
        from orpo_cli.runs.generate import Conversation

        conversation = Conversation(config, wanted, on_progress)
    print(f"{config.model.path}: type a message; {', '.join(_COMMANDS)}", file=sys.stderr)
    if not conversation.tuned.is_chat:
        print("! this model was trained on plain text: it continues what was said, without roles", file=sys.stderr)
    with _interrupts() as interrupts, _line_editing():
        screen = _Screen(conversation, interrupts)
        for line in _typed():
            if not screen.take(line.strip()):
                break
    return 0


class _Interrupts:
    """Takes Ctrl-C: it ends the answer that is being given; elsewhere, or twice, it raises as usual."""

    def __init__(self) -> None:
        self._is_answering = self._is_asked = False

    def __call__(self, number: int, frame: FrameType | None) -> None:
        if self._is_answering and not self._is_asked:
            self._is_asked = True
        elif not has_to_wait(number, frame):
            raise KeyboardInterrupt

    def is_asked(self) -> bool:
        """Return whether the answer that is being given is to end."""
        return self._is_asked

    @contextlib.contextmanager
    def ending_an_answer(self) -> Iterator[None]:
        """Wrap a block in which an answer is given."""
        self._is_answering, self._is_asked = True, False
        try:
            yield
        finally:
            self._is_answering = False


@contextlib.contextmanager
def _interrupts() -> Iterator[_Interrupts]:
    interrupts = _Interrupts()
    before = signal.signal(signal.SIGINT, interrupts)
    try:
        yield interrupts
    finally:
        signal.signal(signal.SIGINT, before)


class _Screen:
    """Takes what was typed, line by line, and shows what comes of it."""

    def __init__(self, conversation: "Conversation", interrupts: _Interrupts) -> None:
        self._conversation = conversation
        self._interrupts = interrupts

    def take(self, line: str) -> bool:
        """Answer a message, or obey a command. Returns whether the conversation goes on."""
        if line in ("/quit", "/exit"):
            return False
        try:
            if re.fullmatch(r"/[a-z]+", line):
                self._obey(line)
            elif line:
                self._show(lambda: self._conversation.say(line, show_piece, self._interrupts.is_asked))
        except (OutOfMemoryError, Terminated):
            raise
        except OrpoError as error:
            advice = "; /reset forgets what was said" if self._conversation.has_begun else ""
            print(f"! {harmless(str(error))}{advice}", file=sys.stderr)
        except KeyboardInterrupt:
            print("\n! stopped; the message is not kept", file=sys.stderr)
        return True

    def _obey(self, command: str) -> None:
        match command:
            case "/help":
                print(_HELP, file=sys.stderr)
            case "/reset":
                self._conversation.reset()
                print("the conversation begins anew", file=sys.stderr)
            case "/base" if not self._conversation.has_begun:
                print("! /base answers your last message; there is none yet", file=sys.stderr)
            case "/base":
                self._show_base()
            case _:
                print(f"! unknown command {command}: {nearest(command, _COMMANDS)}", file=sys.stderr)

    def _show_base(self) -> None:
        with quiet_keys(), _progress() as on_progress:
            base = self._conversation.base(on_progress)
        if base is None:
            print("! nothing says what this model began with; against=MODEL names another", file=sys.stderr)
            return
        print("base: ", end="")
        self._show(lambda: self._conversation.say_as(base, show_piece, self._interrupts.is_asked))

    def _show(self, answer: Callable[[], str]) -> None:
        with quiet_keys(), self._interrupts.ending_an_answer():
            said = answer()
        print("" if said else "(nothing)")
        if sys.stdin.isatty():
            print()


def _typed() -> Iterator[str]:
    """Yield what is typed, until Ctrl-D or the end of a pipe; Ctrl-C drops a line that has been begun."""
    if not sys.stdin.isatty():
        yield from sys.stdin
        return
    while True:
        try:
            yield input("> ")
        except EOFError:
            print()
            return
        except Terminated:
            raise
        except KeyboardInterrupt:
            print("\n(/quit or Ctrl-D ends)", file=sys.stderr)


@contextlib.contextmanager
def _progress() -> Iterator[OnProgress]:
    from rich.console import Console

    from orpo_cli.reporting.terminal import Terminal

    with Terminal(Console(stderr=True)) as screen:
        yield screen.progress


@contextlib.contextmanager
def _line_editing() -> Iterator[None]:
    """Let lines be edited, and earlier ones brought back, also those of earlier conversations."""
    try:
        import readline
    except ImportError:
        yield
        return
    path, is_typed = cache_directory() / "chat_history", sys.stdin.isatty()
    with contextlib.suppress(OSError):
        readline.read_history_file(path)
    try:
        yield
    finally:
        readline.set_history_length(_MOST_LINES)
        if is_typed:
            with contextlib.suppress(OSError):
                path.parent.mkdir(parents=True, exist_ok=True)
                readline.write_history_file(path)
