"""Find the files that a `data.path` names: a file, a folder, a pattern, or a dataset of the hub.

A dataset of the hub, or saved by `datasets`, is the Arrow files it lies in.
"""

import glob
import gzip
import hashlib
import os
import re
import stat
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa

from orpo_cli.data.rows import hub
from orpo_cli.data.rows.dataset_folders import arrow_files, chosen_split, is_saved
from orpo_cli.errors import ConfigError, DataError, InputNotFoundError, OrpoError
from orpo_cli.quoting import printable

KINDS = {
    ".json": "json",
    ".jsonl": "json",
    ".ndjson": "json",
    ".csv": "csv",
    ".tsv": "tsv",
    ".parquet": "parquet",
    ".arrow": "arrow",
}
"""Suffix -> kind; a file with another suffix is read as JSON or, by its content, as JSON Lines."""

PACKED = {".gz": "gzip", ".zst": "zstd", ".zstd": "zstd"}
_WHOLE_TABLES = ("parquet", "arrow")
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_SPLITS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing", "eval", "evaluation"),
    "heldout": ("heldout", "held_out"),
}
"""Split -> the words for it in the names of files."""

_SPLIT_NAME = re.compile(rf"(?:\b|_)({'|'.join(name for names in _SPLITS.values() for name in names)})(?:\b|_)")
_SHARD = re.compile(r"-\d{5}-of-\d{5}.*")


@dataclass(frozen=True)
class DataFile:
    """Describe one file of rows.

    Args:
        name: the name in messages and in the ledger.
        kind: json, csv, tsv, parquet or arrow.
        packing: gzip, zstd or empty.
    """

    name: str
    path: Path
    kind: str
    packing: str = ""

    @property
    def has_cells(self) -> bool:
        """Return whether every value is a text, and lists, numbers and messages stand in it as JSON."""
        return self.kind in ("csv", "tsv")

    @property
    def size(self) -> int:
        """Return the number of bytes on disk."""
        return self.path.stat().st_size

    def sha256(self) -> str:
        """Return the digest of the bytes on disk.

        Raises:
            InputNotFoundError: if they cannot be read.
        """
        try:
            with self.path.open("rb") as stream:
                return hashlib.file_digest(stream, "sha256").hexdigest()
        except OSError as error:
            raise InputNotFoundError(f"{self.name}: cannot be read: {error.strerror}") from None


@dataclass(frozen=True)
class DatasetChoice:
    """Choose the split, the configuration and the revision of a dataset; None for the only one."""

    split: str | None = None
    subset: str | None = None
    revision: str | None = None


def find_files(path: str, choice: DatasetChoice) -> list[DataFile]:
    """Return the files that one `data.path` names, in a fixed order.

    Args:
        path: a file, a folder, a pattern, a hub id, or builtin:NAME, which lies inside the package.
        choice: the part of a dataset of the hub, or of a folder laid out as one.
    Raises:
        InputNotFoundError: if there is none.
        ConfigError: if a dataset has no such split or subset, or more than one and none is named.
        UnreachableError: if the hub cannot be reached.
        DataError: if a file is of a kind that is not read.
    """
    check_exists(path)
    found = _located(path)
    if found.is_dir():
        return _in_folder(found, path, choice)
    if found.exists():
        return [data_file(found)]
    return _matching(found, path) if _is_pattern(path) else _from_datasets(path, choice, None)


def check_exists(path: str) -> None:
    """Raise InputNotFoundError if a path names nothing that can be read; the hub is not asked yet."""
    found = _located(path)
    try:
        kind = found.stat().st_mode
    except (FileNotFoundError, NotADirectoryError, ValueError):  # ValueError: a NUL byte
        if _is_pattern(path):
            _matching(found, path)
        elif path.startswith("builtin:") or not _HUB_ID.fullmatch(path) or found.suffix.lower() in (*KINDS, *PACKED):
            raise InputNotFoundError(f"{path}: no such file") from None
    except OSError as error:
        raise InputNotFoundError(f"{path}: {(error.strerror or type(error).__name__).lower()}") from None
    else:
        _refuse_unreadable(found, kind, path)


def _refuse_unreadable(found: Path, kind: int, path: str) -> None:
    """Refuse a folder without files of data, and what has no end or can be read only once: a pipe, a device."""
    if stat.S_ISDIR(kind):
        if not is_saved(found) and not any(is_data_file(entry) for entry in found.rglob("*")):
            raise InputNotFoundError(f"{path}: a folder without files of preferences ({', '.join(KINDS)})")
    elif not stat.S_ISREG(kind):
        raise InputNotFoundError(f"{path}: not a regular file; data=- reads a pipe, as in `... | orpo train data=-`")


def may_have_splits(path: str) -> bool:
    """Return whether a path can name a dataset with splits: a folder, or something of the hub."""
    found = _located(path)
    return found.is_dir() or not (found.exists() or _is_pattern(path))


def _located(path: str) -> Path:
    if path.startswith("builtin:"):
        return Path(__file__).resolve().parents[2] / path.removeprefix("builtin:")
    return Path(os.path.expanduser(path))  # noqa: PTH111 - which takes `~name` of no user for a name


def _is_pattern(path: str) -> bool:
    return re.search(r"[*?\[]", path) is not None


def data_file(path: Path) -> DataFile:
    """Return a file with the kind that its suffixes say.

    Raises:
        DataError: if it is a packed table.
    """
    packing = PACKED.get(path.suffix.lower(), "")
    kind = KINDS.get(_inner_suffix(path), "json")
    if packing and kind in _WHOLE_TABLES:
        raise DataError(f"{path}: a packed {kind} file; unpack it, {kind} files compress what they hold themselves")
    return DataFile(str(path), path, kind, packing)


def is_data_file(path: Path) -> bool:
    """Return whether the name of a file in a folder says that it holds rows."""
    return _inner_suffix(path) in KINDS and path.is_file() and not path.name.startswith((".", "_"))


def _inner_suffix(path: Path) -> str:
    """Return the suffix that tells the kind, which stands before the one that tells the packing."""
    return (Path(path.stem).suffix if path.suffix.lower() in PACKED else path.suffix).lower()


def _matching(pattern: Path, path: str) -> list[DataFile]:
    """Return the files that a pattern matches; `*` matches no hidden name, unlike in `Path.glob`."""
    names = glob.glob(str(pattern), recursive=True)  # noqa: PTH207
    found = sorted(match for name in names if (match := Path(name)).is_file())
    if not found:
        raise InputNotFoundError(f"{path}: no file matches this pattern")
    return [data_file(match) for match in found]


def _in_folder(folder: Path, path: str, choice: DatasetChoice) -> list[DataFile]:
    """Return the data files of a folder itself, or of the dataset that is laid out in it."""
    files = sorted(entry for entry in folder.iterdir() if is_data_file(entry) and entry.name not in _DESCRIPTIONS)
    if is_saved(folder):
        return _arrow_files(path, *arrow_files(folder, path, choice.split))
    if _is_repository(folder) or choice.subset is not None or not files:
        return _from_datasets(path, choice, folder.absolute())
    return [data_file(entry) for entry in _of_split(files, path, choice.split)]


_DESCRIPTIONS = ("dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json")


def _is_repository(folder: Path) -> bool:
    """Return whether a README says which files are which split, as in a repository of the hub."""
    try:
        head = (folder / "README.md").read_text("utf-8", errors="replace")[:100_000]
    except OSError:
        return False
    return head.startswith("---") and "\nconfigs:" in head.partition("\n---")[0]


def _of_split(files: Sequence[Path], path: str, split: str | None) -> Sequence[Path]:
    """Return the files of a folder that belong to a split; all where none is asked for and no two are there.

    Raises:
        ConfigError: if there are several splits and none is named, or none of that name.
    """
    marks = {file: match[1] for file in files if (match := _SPLIT_NAME.search(file.stem.lower()))}
    there = ", ".join(sorted(set(marks.values()))) or "none"
    if split is None:
        if len({_split_of(mark) for mark in marks.values()}) > 1:
            raise ConfigError(
                f"data.path={path}: the folder's files are named after splits ({there}); "
                "data.split=train takes one of them, or name the files"
            )
        return files
    exact = [file for file in files if _SHARD.sub("", file.name.partition(".")[0]) == split]
    wanted = exact or [file for file in marks if _split_of(marks[file]) == _split_of(split.lower())]
    if not wanted:
        raise ConfigError(
            f"data.path={path}: has no split {split}: no file is named after it; choose one with data.split: {there}"
        )
    return wanted


def _split_of(name: str) -> str:
    return next((split for split, names in _SPLITS.items() if name in names), name)


def _from_datasets(path: str, choice: DatasetChoice, folder: Path | None) -> list[DataFile]:
    """Return the Arrow files of a dataset, fetched and converted by `datasets` where they are not there yet.

    Args:
        folder: the folder of the dataset, or None for one of the hub.
    """
    splits = _loaded(path, choice, folder)
    taken = chosen_split(list(splits), path, choice.split)
    return _arrow_files(path, taken, [Path(entry["filename"]) for entry in splits[taken].cache_files])


def _arrow_files(path: str, split: str, files: Sequence[Path]) -> list[DataFile]:
    if not files:
        raise DataError(f"{path}: no rows")
    shown = f"{path}[{split}]" if split else path
    names = [shown] if len(files) == 1 else [f"{shown}/{file.name}" for file in files]
    return [DataFile(name, file, "arrow") for name, file in zip(names, files, strict=True)]


def _loaded(path: str, choice: DatasetChoice, folder: Path | None) -> Any:
    import datasets

    datasets.disable_progress_bars()
    try:
        if folder is None:
            return hub.load(path, choice.subset, choice.revision)
        return datasets.load_dataset(str(folder), choice.subset)
    except OrpoError:
        raise
    except Exception as error:  # `datasets` may fail in any way at what others wrote
        if isinstance(error, ValueError) and re.match("BuilderConfig|Config name", str(error)):
            text = printable(" ".join(str(error).split()), 300)
            raise ConfigError(f"data.path={path}: data.subset={choice.subset}: {text}") from None
        raise DataError(f"{path}: `datasets` cannot read it: {_reason(error.__cause__ or error)}") from None


def _reason(error: BaseException) -> str:
    return printable(str(error), 300) or type(error).__name__


@contextmanager
def opened(file: DataFile) -> Iterator[tuple[BinaryIO, BinaryIO]]:
    """Open a file as a stream of its unpacked bytes, and one of the bytes on disk, whose place tells the progress.

    Raises:
        DataError: if the file cannot be read, or its packing is damaged; also while the block reads it.
    """
    try:
        with file.path.open("rb") as raw:
            if file.packing == "gzip":
                with gzip.open(raw, "rb") as stream:
                    yield stream, raw  # type: ignore[misc]
            elif file.packing == "zstd":
                with pa.CompressedInputStream(pa.PythonFile(raw, "r"), "zstd") as stream:
                    yield stream, raw
            else:
                yield raw, raw
    except (EOFError, zlib.error, OSError) as error:
        if reason := getattr(error, "strerror", None):
            raise DataError(f"{file.name}: cannot be read: {reason}") from None
        raise DataError(f"{file.name}: the packed file is damaged or cut short: {_reason(error)}") from None
