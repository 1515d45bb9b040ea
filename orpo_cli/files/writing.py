"""Files that are whole or not there, and what it takes to have them on the disk."""

import contextlib
import os
from collections.abc import Iterable
from pathlib import Path

from orpo_cli.errors import WriteError

LEFTOVER = ".tmp-"
"""How names of unfinished things begin; a run removes those of a dead one."""


def point(pointer: Path, name: str) -> None:
    """Make a small file say `name`, or what it said before.

    Raises:
        WriteError: it says what it said before; where only its directory could not be put on the disk, it may say
            either after a power cut.
    """
    try:
        _replace(pointer, f"{name}\n".encode())
        fsync(pointer.parent)
    except OSError as error:
        raise WriteError(f"{pointer}: not written: {error}") from error


def _replace(path: Path, content: bytes) -> None:
    """Make a file hold `content`; whatever happens, it holds that or what it held before."""
    temporary = path.with_name(f"{LEFTOVER}{path.name}")
    try:
        temporary.unlink(missing_ok=True)  # it may be a link to something else
        temporary.write_bytes(content)
        fsync(temporary)
        temporary.replace(path)
    except OSError:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise


def fsync(path: Path) -> None:
    """Put a file or a directory on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


_doubtful: set[Path] = set()
"""Files that failed to reach the disk. The system may drop what it could not write, and say nothing the next time."""


def fsync_growing(path: Path) -> None:
    """Put a file on the disk that other lines will be added to; see `rewrite_doubtful`."""
    try:
        fsync(path)
    except FileNotFoundError:
        return  # no line was due yet
    except OSError:
        _doubtful.add(path)
        raise


def rewrite_doubtful(paths: Iterable[Path]) -> None:
    """Write those files anew for which `fsync_growing` failed, while nothing adds to them."""
    for path in _doubtful & set(paths):
        _replace(path, path.read_bytes())
        _doubtful.discard(path)
