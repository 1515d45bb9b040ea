"""Write small files so that they hold the old content or the new, and make sure that files are on the disk."""

import contextlib
import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any

from orpo_cli.errors import WriteError

LEFTOVER = ".tmp-"
"""Prefix of the names of unfinished files and directories; a run removes those of a killed one."""


def point(pointer: Path, name: str) -> None:
    """Make a small file hold `name`.

    Raises:
        WriteError: if that fails; the file holds what it held before. If only its directory could not be flushed, it
            may hold either after a power cut.
    """
    try:
        write_text(pointer, f"{name}\n")
        fsync(pointer.parent)
    except OSError as error:
        raise WriteError(f"{pointer}: not written: {error}") from error


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[IO[bytes]]:
    """Open a stream whose content takes the place of a file, whole and on the disk, when the block ends well.

    Raises:
        OSError: if it cannot be written; the file then holds what it held before.
    """
    temporary = path.with_name(f"{LEFTOVER}{path.name}")
    try:
        temporary.unlink(missing_ok=True)  # it may be a link to something else
        with temporary.open("xb") as stream:
            yield stream
        fsync(temporary)
        temporary.replace(path)
    except OSError as error:
        error.filename = error.filename or str(path)  # an error of write() has none
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise


def write_text(path: Path, text: str) -> None:
    """Replace a file as a whole."""
    with replacing(path) as stream:
        stream.write(text.encode("utf-8"))


def write_json(path: Path, value: Any) -> None:
    """Replace a file of JSON as a whole."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def fsync(path: Path) -> None:
    """Flush a file or a directory to disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


_doubtful: set[Path] = set()
"""Files whose flush failed. The system may drop what it could not write, and report success the next time."""


def fsync_growing(path: Path) -> None:
    """Flush a file that more lines will be added to; if that fails, `rewrite_doubtful` writes it anew."""
    try:
        fsync(path)
    except FileNotFoundError:
        return  # no line was due yet
    except OSError:
        _doubtful.add(path)
        raise


def rewrite_doubtful(paths: Iterable[Path]) -> None:
    """Write the files anew whose `fsync_growing` failed; nothing may add to them meanwhile."""
    for path in _doubtful & set(paths):
        content = path.read_bytes()
        with replacing(path) as stream:
            stream.write(content)
        _doubtful.discard(path)
