"""Signals: the first asks a run to save and end after its step; where one would do harm, it has to wait."""

import contextlib
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import FrameType

_WAIT_SECONDS = 0.05
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@dataclass
class StopRequest:
    """The request to save and end.

    Args:
        signal_number: the signal that made it, if any.
        at_once: whether Ctrl-C came twice, to end without saving.
        comes_too_late: whether the run has done all it had to, so that signals change nothing any more.
    """

    signal_number: int | None = None
    at_once: bool = False
    comes_too_late: bool = False


def ignore_signals() -> None:
    """Let no other signal interrupt a program that is ending already."""

    def ignored(_number: int, _frame: FrameType | None) -> None:
        pass  # where SIG_IGN would be told of a signal that came just before, on stderr

    for number in SIGNALS:
        signal.signal(number, ignored)


def ignore_signals_at_exit() -> None:
    """Ignore signals while the interpreter ends: it takes back all handlers that are functions, but not SIG_IGN."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def handled_signals() -> list[signal.Signals]:
    """Return the signals that whoever started this process has not told it to ignore."""
    return [number for number in SIGNALS if signal.getsignal(number) != signal.SIG_IGN]


_waiting: list[int] = []
_waits_until = 0.0
_LONGEST_WAIT = 10.0


@contextlib.contextmanager
def signals_wait() -> Iterator[None]:
    """Let signals wait for the end of the block, ten seconds at most."""
    global _waits_until
    _waits_until = time.monotonic() + _LONGEST_WAIT
    try:
        yield
    finally:
        _waits_until = 0.0
        send_waiting()


def has_to_wait(number: int, frame: FrameType | None) -> bool:
    """Return whether a signal has to wait: in a `signals_wait` block, or during an import.

    A module that is left half imported, torch above all, can crash the process or let it continue without it. The
    signal is sent again a moment later, or where `send_waiting` is called.
    """
    waits = time.monotonic() < _waits_until
    while not waits and frame is not None and frame.f_code.co_filename != "<frozen importlib._bootstrap>":
        frame = frame.f_back
    if frame is None:
        return False
    _waiting.append(number)
    again = threading.Timer(_WAIT_SECONDS, send_waiting)
    again.daemon = True
    again.start()
    return True


def send_waiting() -> None:
    """Send the signals again that had to wait, before this process does something in which it would miss them."""
    main = threading.main_thread().ident
    with contextlib.suppress(IndexError):  # another thread may send them too
        while main is not None:
            signal.pthread_kill(main, _waiting.pop())  # wakes it, whatever it waits for


@contextlib.contextmanager
def stop_at_step_boundary(on_first: Callable[[int], None], request: StopRequest) -> Iterator[None]:
    """While the block runs, let the first signal only set the request; a second SIGINT interrupts at once.

    Args:
        on_first: called with the number of the first signal, when it comes.
    """

    def on_signal(number: int, _frame: FrameType | None) -> None:
        if request.comes_too_late:
            return
        if request.signal_number is not None:
            if number == signal.SIGINT:
                request.at_once = True
                ignore_signals()
                raise KeyboardInterrupt
            return
        request.signal_number = number
        with contextlib.suppress(RuntimeError, OSError):  # the display may be in the middle of a line, or be gone
            on_first(number)

    before = {number: signal.signal(number, on_signal) for number in handled_signals()}
    try:
        yield
    finally:
        for number, handler in before.items():
            if signal.getsignal(number) is on_signal:
                signal.signal(number, handler)


class Terminated(KeyboardInterrupt):
    """SIGTERM or SIGHUP came where no run is at a step that could be finished and saved."""

    def __init__(self, signal_number: signal.Signals) -> None:
        super().__init__()
        self.signal_number = signal_number


@contextlib.contextmanager
def signals_end_the_program(for_good: bool) -> Iterator[None]:
    """Raise at the first signal while the block runs, so that unfinished files are cleaned up; ignore later signals.

    If a library catches the exception and something else fails because of that, the signal is still what is raised.

    Args:
        for_good: whether the program ends after the block, and so ignores signals until then.
    """
    asked: KeyboardInterrupt | None = None

    def on_signal(number: int, frame: FrameType | None) -> None:
        nonlocal asked
        if has_to_wait(number, frame):
            return
        ignore_signals()
        asked = KeyboardInterrupt() if number == signal.SIGINT else Terminated(signal.Signals(number))
        raise asked

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, on_signal) for number in handled_signals()}
    try:
        yield
    except Exception as error:
        if asked is None:
            raise
        raise asked from error
    finally:
        if for_good:
            ignore_signals()
        else:
            for number, handler in before.items():
                signal.signal(number, handler)
