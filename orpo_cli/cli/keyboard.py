"""Keys that are typed while a screen is drawn: they are not shown in the middle of it, nor left to the shell."""

import contextlib
import os
import sys
import termios
from collections.abc import Iterator
from typing import Any

_LOCAL_MODES = 3
"""Where they are among the attributes of a terminal."""


@contextlib.contextmanager
def quiet_keys() -> Iterator[None]:
    """Show no key that is typed while the block runs, and drop it; Ctrl-C and Ctrl-Z work as ever.

    Nothing is changed where no terminal is read, or where this process is in its background and would be stopped.
    """
    before = _attributes()
    if before is None:
        yield
        return
    quiet = before[_LOCAL_MODES] & ~(termios.ECHO | termios.ICANON)
    _set(termios.TCSANOW, [*before[:_LOCAL_MODES], quiet, *before[_LOCAL_MODES + 1 :]])
    try:
        yield
    finally:
        if _attributes() is not None:
            _set(termios.TCSAFLUSH, before)


def _attributes() -> list[Any] | None:
    """Return the settings of the terminal that this process reads in its foreground; None where there is none."""
    try:
        descriptor = sys.stdin.fileno()
        return termios.tcgetattr(descriptor) if os.tcgetpgrp(descriptor) == os.getpgrp() else None
    except (AttributeError, OSError, ValueError, termios.error):
        return None


def _set(when: int, attributes: list[Any]) -> None:
    with contextlib.suppress(OSError, termios.error):  # the terminal may be gone by now
        termios.tcsetattr(sys.stdin.fileno(), when, attributes)
