"""Directories that are whole or not there, and the manifest that says what whole means.

A directory is written beside its place, every file and the directory flushed to disk, then renamed, and the parent
flushed; what stood there before is moved aside by a rename and goes last. The manifest lists every file with its size
and checksum: a flipped bit in a tensor loads without an error.
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
"""How the names begin of those that hold what another directory is to replace; until it does, that is still needed."""


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


_UMASK = _umask()
"""Asked for once: it can only be asked for by setting it, for all threads."""


class StagedDirectory:
    """A directory that is being written beside its place.

    Args:
        final: where it will be.
        needed: bytes that will be written, about; for the message where they could not be.
    Raises:
        WriteError: it cannot be made; what was there before is untouched, here and in every method.
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
        """A block that writes files into the draft; where it fails, nothing of the draft stays."""
        with self._errors_named():
            try:
                yield self.path
            except BaseException:
                shutil.rmtree(self.path, ignore_errors=True)
                raise

    def publish(self) -> None:
        """Put every file on the disk and the directory in its place."""
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
    """Remove a directory so that a half of it never stands in its place; a link is not followed."""
    with _moved_aside(directory, LEFTOVER):
        pass


@contextlib.contextmanager
def _moved_aside(directory: Path, prefix: str) -> Iterator[None]:
    """While the block runs, what stands at `directory` has the name of a leftover; then it is removed, as far as it
    can be: the next start removes leftovers. Where the block fails before it has put something else there, it is back.
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
    """Remove what a dead run left unfinished in a directory that this run has for its own.

    What it had moved aside and not yet replaced goes back to its place.
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
    """mkdtemp and safetensors create files for their owner only; give them the permissions any new file gets."""
    directory.chmod(0o777 & ~_UMASK)
    for path in directory.rglob("*"):
        path.chmod((0o777 if path.is_dir() else 0o666) & ~_UMASK)
