"""What ends a run early, at the next step boundary, where its state can be saved exactly: a signal, or its time."""

import contextlib
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import FrameType

_HELD_SECONDS = 0.05
HEARD = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@dataclass
class StopRequest:
    """The signal that asked for the end, once there was one; and whether Ctrl-C came twice, which waits for nothing."""

    signal_number: int | None = None
    at_once: bool = False


def hear_no_more() -> None:
    """The program ends already, and no other signal interrupts that."""

    def ignored(_number: int, _frame: FrameType | None) -> None:
        pass  # where SIG_IGN would be told of a signal that came just before, on stderr

    for number in HEARD:
        signal.signal(number, ignored)


def ignore_to_the_end() -> None:
    """The exit code is decided: the interpreter, which ends by taking back all functions, leaves ignored signals so."""
    for number in HEARD:
        signal.signal(number, signal.SIG_IGN)


def heard() -> list[signal.Signals]:
    """Signals that whoever started this process has not told it to ignore."""
    return [number for number in HEARD if signal.getsignal(number) != signal.SIG_IGN]


_held: list[int] = []
_waits_until = 0.0
_LONGEST_WAIT = 10.0


@contextlib.contextmanager
def signals_wait(wait: bool = True) -> Iterator[None]:
    """While the block runs, signals wait for its end, but not for long; in a block inside it, `wait=False` lets them
    through."""
    global _waits_until
    before, _waits_until = _waits_until, time.monotonic() + _LONGEST_WAIT if wait else 0.0
    try:
        if not wait:
            send_held()
        yield
    finally:
        _waits_until = before
        if not before:
            send_held()


def is_held(number: int, frame: FrameType | None) -> bool:
    """Whether a signal has to wait, where it is asked to (`signals_wait`) or came during an import: a module left half
    done, torch above all, can end the process with a dump, or have it go on without. Such a signal comes again a moment
    later, or where `send_held` is called."""
    waits = time.monotonic() < _waits_until
    while not waits and frame is not None and frame.f_code.co_filename != "<frozen importlib._bootstrap>":
        frame = frame.f_back
    if frame is None:
        return False
    _held.append(number)
    again = threading.Timer(_HELD_SECONDS, send_held)
    again.daemon = True
    again.start()
    return True


def send_held() -> None:
    """Send the signals again that had to wait: before this process does something in which it would not hear them."""
    main = threading.main_thread().ident
    with contextlib.suppress(IndexError):  # another thread may send them too
        while main is not None:
            signal.pthread_kill(main, _held.pop())  # wakes it, whatever it waits for


@contextlib.contextmanager
def stop_at_step_boundary(on_first: Callable[[int], None]) -> Iterator[StopRequest]:
    """While the block runs, the first signal only sets the request; a second SIGINT interrupts at once.

    Args:
        on_first: called with the number of the first signal, when it comes.
    """
    request = StopRequest()

    def on_signal(number: int, _frame: FrameType | None) -> None:
        if request.signal_number is not None:
            if number == signal.SIGINT:
                request.at_once = True
                hear_no_more()
                raise KeyboardInterrupt
            return
        request.signal_number = number
        with contextlib.suppress(RuntimeError, OSError):  # the display may be in the middle of a line, or be gone
            on_first(number)

    before = {number: signal.signal(number, on_signal) for number in heard()}
    try:
        yield request
    finally:
        for number, handler in before.items():
            if signal.getsignal(number) is on_signal:
                signal.signal(number, handler)
