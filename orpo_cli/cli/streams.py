"""Let a run continue when nobody reads its output any more: `orpo train ... | head -1` ends with its own exit code."""

import contextlib
import os
import sys
from collections.abc import Callable, Iterator
from typing import Any, TextIO, TypeVar

T = TypeVar("T")


class Lasting:
    """A stream that turns into /dev/null where writing fails.

    Args:
        stream: standard output or error.
        errors: the errors at which it does; others are raised.
    """

    def __init__(self, stream: TextIO, errors: type[OSError]) -> None:
        self._stream, self._errors = stream, errors

    def write(self, text: str) -> int:
        """Write, or lose the text."""
        self._tried(lambda: self._stream.write(text))
        return len(text)

    def writelines(self, lines: list[str]) -> None:
        """Write, or lose the lines."""
        self._tried(lambda: self._stream.writelines(lines))

    def flush(self) -> None:
        """Flush, or lose what is not flushed."""
        self._tried(self._stream.flush)

    def _tried(self, write: Callable[[], T]) -> None:
        try:
            write()
        except self._errors:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self._stream.fileno())
            os.close(nowhere)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextlib.contextmanager
def lasting_streams() -> Iterator[None]:
    """Lose messages that nobody reads while the block runs; a result that cannot be written is still an error."""
    with contextlib.ExitStack() as stack:
        if sys.stdout is not None:
            stack.enter_context(contextlib.redirect_stdout(Lasting(sys.stdout, BrokenPipeError)))
        if sys.stderr is not None:
            stack.enter_context(contextlib.redirect_stderr(Lasting(sys.stderr, OSError)))
        yield
