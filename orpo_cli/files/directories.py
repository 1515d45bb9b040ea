"""Write directories that are either complete or not there at all.

A directory is written beside its place; each file and the directory are flushed to disk; then it is renamed and its
parent flushed. What stood in its place is moved aside by a rename first and removed last.
"""

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from orpo_cli.errors import OrpoError, WriteError, is_failed_write
from orpo_cli.files.writing import LEFTOVER, fsync

_REPLACED = f"{LEFTOVER}replaced-"
"""Prefix of the names of directories that hold what is being replaced; it is still needed until that has happened."""


_UMASK = os.umask(0)
"""Read once, at import: it can only be read by setting it, which every thread would notice."""
os.umask(_UMASK)


class StagedDirectory:
    """A directory that is written beside its place and then published.

    Args:
        final: the place where it will be.
        needed: the approximate number of bytes that will be written, for the message if writing fails.
    Raises:
        WriteError: if it cannot be written, here or in any method; what was there before is untouched.
    """

    def __init__(self, final: Path, needed: int) -> None:
        self.final = final
        self._needed = needed
        with self._errors_named():
            if not final.parent.is_dir():
                final.parent.mkdir(parents=True)
                fsync(final.parent.parent)
            self.path = Path(tempfile.mkdtemp(dir=final.parent, prefix=LEFTOVER))

    @contextlib.contextmanager
    def writing(self) -> Iterator[Path]:
        """Wrap a block that writes files into the directory; if it fails, everything written so far is removed."""
        with self._errors_named():
            try:
                yield self.path
            except BaseException:
                shutil.rmtree(self.path, ignore_errors=True)
                raise

    def publish(self) -> None:
        """Flush every file to disk and move the directory into its place."""
        with self.writing():
            _share_as_umask_says(self.path)
            for path in [*self.path.rglob("*"), self.path]:
                fsync(path)
            with _moved_aside(self.final, _REPLACED):
                self.path.rename(self.final)
                fsync(self.final.parent)

    @contextlib.contextmanager
    def _errors_named(self) -> Iterator[None]:
        try:
            yield
        except OrpoError:
            raise
        except Exception as error:
            if not is_failed_write(error):
                raise
            room = f"about {self._needed:,} bytes are needed"
            with contextlib.suppress(OSError):
                room += f", {shutil.disk_usage(self.final.parent).free:,} are free"
            raise WriteError(
                f"{self.final}: not written: {error} ({room}); what was saved before is untouched"
            ) from error


def remove(directory: Path) -> None:
    """Remove a directory so that it never stands half removed in its place; a link is removed, not followed."""
    with _moved_aside(directory, LEFTOVER):
        pass


@contextlib.contextmanager
def _moved_aside(directory: Path, prefix: str) -> Iterator[None]:
    """Move what stands at `directory` aside while the block runs, and remove it afterwards.

    If the block fails before it has put something else there, it is moved back. What cannot be removed is left to
    `remove_leftovers`.
    """
    if not os.path.lexists(directory):
        yield
        return
    aside = Path(tempfile.mkdtemp(dir=directory.parent, prefix=prefix))
    try:
        directory.rename(aside / directory.name)
        yield
    except BaseException:
        if not os.path.lexists(directory):
            (aside / directory.name).rename(directory)
        with contextlib.suppress(OSError):
            aside.rmdir()
        raise
    shutil.rmtree(aside, ignore_errors=True)


def remove_leftovers(directory: Path) -> None:
    """Remove what a killed run left unfinished; only the run that owns `directory` may call this.

    What that run had moved aside and not yet replaced goes back to its place.
    """
    for path in directory.glob(f"{_REPLACED}*/*"):
        if not os.path.lexists(directory / path.name):
            path.rename(directory / path.name)
    for path in directory.glob(f"{LEFTOVER}*"):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()


def _share_as_umask_says(directory: Path) -> None:
    """Give the files the permissions that any new file gets: mkdtemp and safetensors create them for their owner."""
    directory.chmod(0o777 & ~_UMASK)
    for path in directory.rglob("*"):
        path.chmod((0o777 if path.is_dir() else 0o666) & ~_UMASK)
