"""SIGINT and SIGTERM end a run at the next step boundary, where its state can be saved exactly."""

import contextlib
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from types import FrameType


@dataclass
class StopRequest:
    """The signal that asked for the end, once there was one."""

    signal_number: int | None = None


@contextlib.contextmanager
def stop_at_step_boundary() -> Iterator[StopRequest]:
    """While the block runs, the first signal only sets the request; a second SIGINT interrupts at once."""
    request = StopRequest()

    def on_signal(number: int, _frame: FrameType | None) -> None:
        if request.signal_number is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        request.signal_number = number

    before = {number: signal.signal(number, on_signal) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
