"""Write down the size and checksum of every file of a directory, and compare them later.

A flipped bit in a tensor loads without an error; only a checksum finds it.
"""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import xxhash

from orpo_cli.errors import CheckpointError
from orpo_cli.files.untrusted import read_json

MANIFEST = "manifest.json"

_CHECKSUMS: dict[str, Callable[[], Any]] = {"xxh128": xxhash.xxh3_128, "sha256": hashlib.sha256}
"""Checksums by their key in a manifest. Checkpoints of format 2 have SHA-256; XXH3 is ten times as fast."""


def list_files(directory: Path) -> dict[str, dict[str, Any]]:
    """Return size and checksum of every file of a directory, by its path inside."""
    files = [path for path in sorted(directory.rglob("*")) if path.is_file()]
    return {path.relative_to(directory).as_posix(): size_and_checksum(path) for path in files}


def size_and_checksum(path: Path) -> dict[str, Any]:
    """Return the entry of one file in a list of files."""
    return {"size": path.stat().st_size, "xxh128": _checksum(path, "xxh128")}


def write_manifest(directory: Path) -> None:
    """List every file of a directory in a file beside them."""
    (directory / MANIFEST).write_text(json.dumps({"files": list_files(directory)}, indent=2), encoding="utf-8")


def check_manifest(directory: Path, required: set[str]) -> None:
    """Compare a directory with its manifest, in both directions.

    Args:
        required: the files that the manifest must list.
    Raises:
        CheckpointError: if the manifest is damaged, or a file is missing, not listed, a link, unreadable, or of another
            size or checksum.
    """
    found = sorted(directory.rglob("*"))
    if links := [path for path in found if path.is_symlink()]:
        raise CheckpointError(f"{directory}: {links[0].name} is a link, which is not followed")
    there = {path.relative_to(directory).as_posix() for path in found if not path.is_dir()}
    try:
        files = read_json(directory / MANIFEST)["files"]
        listed = set(files)
    except (OSError, ValueError, KeyError, TypeError):
        raise CheckpointError(f"{directory}: {MANIFEST} is missing or damaged") from None
    if missing := sorted(required - listed):
        raise CheckpointError(f"{directory}: {MANIFEST} does not list {', '.join(missing)}")
    if unknown := sorted(there - {MANIFEST} - listed):
        raise CheckpointError(f"{directory}: {MANIFEST} does not list {', '.join(unknown[:3])}")
    check_listed(directory, files, MANIFEST)


def check_listed(directory: Path, files: Any, source: str) -> None:
    """Compare files with a list of `list_files`; other files may lie beside them.

    Args:
        files: the list as it was read, which may be damaged.
        source: the name of the file that holds the list.
    Raises:
        CheckpointError: if the list is damaged, or a file is missing, unreadable, or of another size or checksum.
    """
    for name, size, kind, checksum in _entries(directory, files, source):
        path = directory / name
        try:
            if ".." in Path(name).parts or not path.is_relative_to(directory) or not path.is_file():
                raise CheckpointError(f"{directory}: {name} is missing")
            if path.stat().st_size != size:
                raise CheckpointError(f"{path}: {path.stat().st_size} bytes, expected {size}")
            if _checksum(path, kind) != checksum:
                raise CheckpointError(f"{path}: its checksum is not that of {source}")
        except OSError as error:
            raise CheckpointError(f"{error.filename or path}: cannot be read: {error.strerror}") from error


def _entries(directory: Path, files: Any, source: str) -> list[tuple[str, int, str, str]]:
    """Return path, size, kind of checksum and checksum of each listed file."""
    entries = []
    try:
        for name, entry in files.items():
            (kind,) = entry.keys() & _CHECKSUMS.keys()
            entries.append((str(name), int(entry["size"]), kind, str(entry[kind])))
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError):
        entries = []
    if not entries:
        raise CheckpointError(f"{directory}: {source} is missing or damaged")
    return entries


def _checksum(path: Path, kind: str) -> str:
    with path.open("rb") as stream:
        return str(hashlib.file_digest(stream, _CHECKSUMS[kind]).hexdigest())
