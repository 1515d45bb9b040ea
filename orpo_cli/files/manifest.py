"""Size and checksum of every file of a directory, written down and compared.

A flipped bit in a tensor loads without an error; a manifest finds it.
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
"""By its key in a manifest. XXH3 finds damage as surely as SHA-256, ten times as fast; version 2 had the latter."""


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


def _checksum(path: Path, kind: str) -> str:
    with path.open("rb") as stream:
        return str(hashlib.file_digest(stream, _CHECKSUMS[kind]).hexdigest())
