"""The directory that keeps tokenized files and built-in models between runs."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from orpo_cli.errors import OrpoError, WriteError, is_failed_write, is_out_of_memory


def cache_directory() -> Path:
    """Return `$ORPO_CACHE`, or the user's cache directory."""
    import platformdirs

    chosen = os.environ.get("ORPO_CACHE")
    return Path(chosen).expanduser() if chosen else Path(platformdirs.user_cache_dir("orpo"))


@contextlib.contextmanager
def writing_to_the_cache() -> Iterator[None]:
    """Wrap a block, or a function, that writes into the cache.

    Raises:
        WriteError: if it cannot be written; the message says how to move the cache.
    """
    try:
        yield
    except OrpoError:
        raise
    except Exception as error:
        if is_out_of_memory(error) or not is_failed_write(error):
            raise
        reason = getattr(error, "strerror", None) or error
        raise WriteError(
            f"{cache_directory()}: the cache cannot be written: {reason}; ORPO_CACHE=DIR moves it"
        ) from error
