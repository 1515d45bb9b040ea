"""Directories that are whole or not there, and the manifest that says what whole means.

A directory is written beside its place, every file and the directory flushed to disk, then renamed, and the parent
flushed; what stood there before is moved aside by a rename and goes last. The manifest lists every file with its size
and checksum: a flipped bit in a tensor loads without an error.
"""

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import xxhash

from orpo_cli.config.plain import read_json
from orpo_cli.errors import CheckpointError, OrpoError, WriteError, is_failed_write

MANIFEST = "manifest.json"
LEFTOVER = ".tmp-"
"""How names of unfinished things begin; a run removes those of a dead one."""

_REPLACED = f"{LEFTOVER}replaced-"
"""How the names begin of those that hold what another directory is to replace; until it does, that is still needed."""

_CHECKSUMS: dict[str, Callable[[], Any]] = {"xxh128": xxhash.xxh3_128, "sha256": hashlib.sha256}
"""By its key in a manifest. XXH3 finds damage as surely as SHA-256, ten times as fast; version 2 had the latter."""


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


_UMASK = _umask()
"""Asked for once: it can only be asked for by setting it, for all threads."""


class Draft:
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


def listed(directory: Path) -> dict[str, dict[str, Any]]:
    """Size and checksum of every file of a directory, by its path inside."""
    files = [path for path in sorted(directory.rglob("*")) if path.is_file()]
    return {path.relative_to(directory).as_posix(): size_and_checksum(path) for path in files}


def size_and_checksum(path: Path) -> dict[str, Any]:
    """What is listed of a file."""
    return {"size": path.stat().st_size, "xxh128": _checksum(path, "xxh128")}


def write_manifest(directory: Path) -> None:
    """List every file of a directory in a file beside them."""
    (directory / MANIFEST).write_text(json.dumps({"files": listed(directory)}, indent=2), encoding="utf-8")


def check_manifest(directory: Path, required: set[str]) -> None:
    """Compare every file with the manifest, and every file that is there with its list.

    Args:
        required: files without which the directory is not what it should be.
    Raises:
        CheckpointError: a file is missing, unknown, a link, cannot be read, has another size, or another checksum.
    """
    found = sorted(directory.rglob("*"))
    if links := [path for path in found if path.is_symlink()]:
        raise CheckpointError(f"{directory}: {links[0].name} is missing: there is a link, which is not followed")
    there = {path.relative_to(directory).as_posix() for path in found if not path.is_dir()}
    try:
        files = read_json(directory / MANIFEST)["files"]
    except (OSError, ValueError, KeyError):
        files = None
    if not isinstance(files, dict):
        raise CheckpointError(f"{directory}: {MANIFEST} is missing or damaged")
    if missing := sorted(required - set(files)):
        raise CheckpointError(f"{directory}: {MANIFEST} does not list {', '.join(missing)}")
    if unknown := sorted(there - {MANIFEST} - set(files)):
        raise CheckpointError(f"{directory}: {MANIFEST} does not list {', '.join(unknown[:3])}")
    check_listed(directory, files, MANIFEST)


def check_listed(directory: Path, files: Any, source: str) -> None:
    """Compare files with what `listed` said of them; others may lie beside them.

    Args:
        files: what it said, as it was read.
        source: from where.
    Raises:
        CheckpointError: that is damaged, or a file is missing, cannot be read, has another size or another checksum.
    """
    entries = _entries(files)
    if not entries:
        raise CheckpointError(f"{directory}: {source} is missing or damaged")
    for name, size, kind, checksum in entries:
        path = directory / name
        try:
            leads_out = Path(name).is_absolute() or ".." in Path(name).parts
            if leads_out or not path.is_file():
                raise CheckpointError(f"{directory}: {name} is missing")
            if path.stat().st_size != size:
                raise CheckpointError(f"{path}: {path.stat().st_size} bytes, expected {size}")
            if _checksum(path, kind) != checksum:
                raise CheckpointError(f"{path}: its checksum is not that of {source}")
        except OSError as error:
            raise CheckpointError(f"{error.filename or path}: cannot be read: {error.strerror}") from error


def _entries(files: Any) -> list[tuple[str, int, str, str]]:
    """Path, size, kind of checksum and checksum of each file; none where they are damaged."""
    try:
        entries = []
        for name, entry in files.items():
            (kind,) = entry.keys() & _CHECKSUMS.keys()
            entries.append((str(name), int(entry["size"]), kind, str(entry[kind])))
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError):
        return []
    return entries


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


def _share_as_umask_says(directory: Path) -> None:
    """mkdtemp and safetensors create files for their owner only; give them the permissions any new file gets."""
    directory.chmod(0o777 & ~_UMASK)
    for path in directory.rglob("*"):
        path.chmod((0o777 if path.is_dir() else 0o666) & ~_UMASK)


def _checksum(path: Path, kind: str) -> str:
    with path.open("rb") as stream:
        return str(hashlib.file_digest(stream, _CHECKSUMS[kind]).hexdigest())
