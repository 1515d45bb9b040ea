"""Directories that are whole or not there, and the manifest that says what whole means.

A directory is written beside its place, every file and the directory flushed to disk, then renamed, and the parent
flushed; what stood there before is moved aside by a rename and goes last. The manifest has size and checksum of every
file: a flipped bit in a tensor loads without an error.
"""

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import xxhash
from safetensors import SafetensorError

from orpo_cli.errors import CheckpointError, WriteError

MANIFEST = "manifest.json"
LEFTOVER = ".tmp-"
"""How names of unfinished things begin; a run removes those of a dead one."""

_CHECKSUMS: dict[str, Callable[[], Any]] = {"xxh128": xxhash.xxh3_128, "sha256": hashlib.sha256}
"""By its key in a manifest. XXH3 finds damage as surely as SHA-256, ten times as fast; version 2 had the latter."""

_CHUNK = 1 << 22


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
    Raises:
        WriteError: it cannot be made; what was there before is untouched, here and in every method.
    """

    def __init__(self, final: Path) -> None:
        self.final = final
        with self._errors_named():
            final.parent.mkdir(parents=True, exist_ok=True)
            self.path = Path(tempfile.mkdtemp(dir=final.parent, prefix=LEFTOVER))

    @contextlib.contextmanager
    def writing(self) -> Iterator[Path]:
        """A block that writes files into the draft; where it fails, nothing of the draft stays."""
        try:
            with self._errors_named():
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
            with _moved_aside(self.final):
                self.path.rename(self.final)
                fsync(self.final.parent)

    @contextlib.contextmanager
    def _errors_named(self) -> Iterator[None]:
        try:
            yield
        except (OSError, SafetensorError) as error:
            free = ""
            with contextlib.suppress(OSError):
                free = f" ({shutil.disk_usage(self.final.parent).free:,} bytes free)"
            raise WriteError(f"{self.final}: not written: {error}{free}; what was saved before is untouched") from error


def write_manifest(directory: Path) -> None:
    """List every file of a directory."""
    files = {
        path.relative_to(directory).as_posix(): {"size": path.stat().st_size, "xxh128": _checksum(path, "xxh128")}
        for path in sorted(directory.rglob("*"))
        if path.is_file()
    }
    (directory / MANIFEST).write_text(json.dumps({"files": files}, indent=2), encoding="utf-8")


def check_manifest(directory: Path, required: set[str]) -> None:
    """Compare every file with the manifest, and every file that is there with its list.

    Args:
        required: files without which the directory is not what it should be.
    Raises:
        CheckpointError: a file is missing, unknown, has another size, or another checksum.
    """
    listed = _listed(directory)
    if missing := sorted(required - set(listed)):
        raise CheckpointError(f"{directory}: {MANIFEST} does not list {', '.join(missing)}")
    there = {path.relative_to(directory).as_posix() for path in directory.rglob("*") if not path.is_dir()}
    if unknown := sorted(there - {MANIFEST} - set(listed)):
        raise CheckpointError(f"{directory}: {MANIFEST} does not list {', '.join(unknown[:3])}")
    for name, (size, kind, checksum) in listed.items():
        path = directory / name
        if name not in there or path.is_symlink() or not path.is_file():
            raise CheckpointError(f"{directory}: {name} is missing")
        if path.stat().st_size != size:
            raise CheckpointError(f"{path}: {path.stat().st_size} bytes, expected {size}")
        if _checksum(path, kind) != checksum:
            raise CheckpointError(f"{path}: its checksum is not that of the manifest")


def _listed(directory: Path) -> dict[str, tuple[int, str, str]]:
    """Size, kind of checksum and checksum of each file, by its path inside the directory."""
    try:
        manifest = json.loads((directory / MANIFEST).read_text(encoding="utf-8"))
        listed = {}
        for name, entry in manifest["files"].items():
            (kind,) = entry.keys() & _CHECKSUMS.keys()
            listed[str(name)] = int(entry["size"]), kind, str(entry[kind])
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise CheckpointError(f"{directory}: {MANIFEST} is missing or damaged") from None
    return listed


def point(pointer: Path, name: str) -> None:
    """Make a small file say `name`, or what it said before.

    Raises:
        WriteError: it still says what it said before.
    """
    temporary = pointer.with_name(f"{LEFTOVER}{pointer.name}")
    try:
        temporary.write_text(name + "\n", encoding="utf-8")
        fsync(temporary)
        temporary.replace(pointer)
        fsync(pointer.parent)
    except OSError as error:
        raise WriteError(f"{pointer}: not written: {error}") from error


def remove(directory: Path) -> None:
    """Remove a directory so that a half of it never stands in its place; a link is not followed."""
    with _moved_aside(directory):
        pass


@contextlib.contextmanager
def _moved_aside(directory: Path) -> Iterator[None]:
    """While the block runs, what stands at `directory` has the name of a leftover; then it is removed."""
    if not directory.exists():
        yield
        return
    aside = Path(tempfile.mkdtemp(dir=directory.parent, prefix=LEFTOVER))
    directory.rename(aside / directory.name)
    yield
    shutil.rmtree(aside)


def remove_leftovers(directory: Path) -> None:
    """Remove what a dead run left unfinished in a directory that this run has for its own."""
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


def _share_as_umask_says(directory: Path) -> None:
    """mkdtemp and safetensors create files for their owner only; give them the permissions any new file gets."""
    directory.chmod(0o777 & ~_UMASK)
    for path in directory.rglob("*"):
        path.chmod((0o777 if path.is_dir() else 0o666) & ~_UMASK)


def _checksum(path: Path, kind: str) -> str:
    digest = _CHECKSUMS[kind]()
    with path.open("rb") as stream:
        while chunk := stream.read(_CHUNK):
            digest.update(chunk)
    return str(digest.hexdigest())
