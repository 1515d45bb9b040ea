"""What a `data.path` names: files, folders, patterns, datasets of the hub; each becomes files of a known kind.

A dataset of the hub, or saved by `datasets`, is the Arrow files it lies in.
"""

import glob
import gzip
import hashlib
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
"""Suffix -> kind; a file with another suffix is read as JSON, which is told from JSON Lines by its content."""

PACKED = {".gz": "gzip", ".zst": "zstd", ".zstd": "zstd"}
_WHOLE_TABLES = ("parquet", "arrow")
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_SPLITS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing", "eval", "evaluation"),
    "heldout": ("heldout", "held_out"),
}
"""Split -> how the names of files spell it."""

_SPLIT_NAME = re.compile(rf"(?:\b|_)({'|'.join(name for names in _SPLITS.values() for name in names)})(?:\b|_)")
_SHARD = re.compile(r"-\d{5}-of-\d{5}.*")


@dataclass(frozen=True)
class DataFile:
    """One file of rows.

    Args:
        name: what messages and the ledger call it.
        path: where it lies.
        kind: json, csv, tsv, parquet or arrow.
        packing: gzip, zstd or empty.
    """

    name: str
    path: Path
    kind: str
    packing: str = ""

    @property
    def is_lines(self) -> bool:
        """Whether it is called JSON Lines."""
        return _inner_suffix(self.path) in (".jsonl", ".ndjson")

    @property
    def has_cells(self) -> bool:
        """Whether every value is a text, in which lists, numbers and messages stand as JSON."""
        return self.kind in ("csv", "tsv")

    @property
    def size(self) -> int:
        """Bytes on disk."""
        return self.path.stat().st_size

    def sha256(self) -> str:
        """Digest of the bytes on disk.

        Raises:
            InputNotFoundError: they cannot be read.
        """
        try:
            with self.path.open("rb") as stream:
                return hashlib.file_digest(stream, "sha256").hexdigest()
        except OSError as error:
            raise InputNotFoundError(f"{self.name}: cannot be read: {error.strerror}") from None


@dataclass(frozen=True)
class Dataset:
    """Where a dataset of `datasets` is looked for: split, configuration and revision, null for the only one."""

    split: str | None = None
    subset: str | None = None
    revision: str | None = None


def find_files(path: str, dataset: Dataset) -> list[DataFile]:
    """The files that one `data.path` names, in a fixed order.

    Args:
        path: a file, a folder, a pattern, a hub id, or builtin:NAME, which lies inside the package.
        dataset: for datasets of the hub, and folders laid out as one.
    Raises:
        InputNotFoundError: there is none.
        ConfigError: a dataset has no such split or subset, or more than one and none is named.
        UnreachableError: the hub cannot be reached.
        DataError: files of a kind that is not read.
    """
    check_there(path)
    found = _located(path)
    if found.is_dir():
        return _in_folder(found, path, dataset)
    if found.exists():
        return [data_file(found)]
    return _matching(found, path) if _is_pattern(path) else _from_datasets(path, dataset, None)


def check_there(path: str) -> None:
    """Raise InputNotFoundError where a path names nothing that can be there; a hub id is not asked for yet."""
    found = _located(path)
    try:
        kind = found.stat().st_mode
    except (FileNotFoundError, NotADirectoryError, ValueError):  # ValueError: a NUL byte
        pass
    except OSError as error:
        raise InputNotFoundError(f"{path}: {(error.strerror or type(error).__name__).lower()}") from None
    else:
        _refuse_unreadable(found, kind, path)
        return
    if _is_pattern(path):
        _matching(found, path)
    elif path.startswith("builtin:") or not _HUB_ID.fullmatch(path) or found.suffix.lower() in (*KINDS, *PACKED):
        raise InputNotFoundError(f"{path}: no such file")


def _refuse_unreadable(found: Path, kind: int, path: str) -> None:
    """A folder has to hold files of data; a pipe or a device has no end, or can be read only once."""
    if stat.S_ISDIR(kind):
        if not is_saved(found) and not any(is_data_file(entry) for entry in found.rglob("*")):
            raise InputNotFoundError(f"{path}: a folder without files of preferences ({', '.join(KINDS)})")
    elif not stat.S_ISREG(kind):
        raise InputNotFoundError(f"{path}: not a regular file; data=- reads a pipe, as in `... | orpo train data=-`")


def may_have_splits(path: str) -> bool:
    """Whether a path can name a dataset with splits: a folder, or something of the hub."""
    found = _located(path)
    return found.is_dir() or not (found.exists() or _is_pattern(path))


def _located(path: str) -> Path:
    if path.startswith("builtin:"):
        return Path(__file__).resolve().parents[2] / path.removeprefix("builtin:")
    try:
        return Path(path).expanduser()
    except RuntimeError:  # the home of a user there is none of
        return Path(path)


def _is_pattern(path: str) -> bool:
    return re.search(r"[*?\[]", path) is not None


def data_file(path: Path) -> DataFile:
    """A file by its suffixes.

    Raises:
        DataError: it is of a kind that is not read.
    """
    packing = PACKED.get(path.suffix.lower(), "")
    kind = KINDS.get(_inner_suffix(path), "json")
    if packing and kind in _WHOLE_TABLES:
        raise DataError(f"{path}: a packed {kind} file; unpack it, {kind} files compress what they hold themselves")
    return DataFile(str(path), path, kind, packing)


def is_data_file(path: Path) -> bool:
    """Whether a file of a folder holds rows, by its suffix."""
    return _inner_suffix(path) in KINDS and path.is_file() and not path.name.startswith((".", "_"))


def _inner_suffix(path: Path) -> str:
    """The suffix that tells the kind, in front of the one that tells the packing."""
    return (Path(path.stem).suffix if path.suffix.lower() in PACKED else path.suffix).lower()


def _matching(pattern: Path, path: str) -> list[DataFile]:
    """Files that a pattern matches; `*` means no name that begins with a dot, which `Path.glob` would take."""
    names = glob.glob(str(pattern), recursive=True)  # noqa: PTH207
    found = sorted(match for name in names if (match := Path(name)).is_file())
    if not found:
        raise InputNotFoundError(f"{path}: no file matches this pattern")
    return [data_file(match) for match in found]


def _in_folder(folder: Path, path: str, dataset: Dataset) -> list[DataFile]:
    """Data files of a folder itself, or of a dataset that is laid out in it."""
    try:
        files = sorted(entry for entry in folder.iterdir() if is_data_file(entry) and entry.name not in _DESCRIPTIONS)
    except OSError as error:
        raise InputNotFoundError(f"{path}: cannot be read: {error.strerror}") from None
    if is_saved(folder):
        return _arrow_files(path, *arrow_files(folder, path, dataset.split))
    if _is_repository(folder) or dataset.subset is not None or not files:
        return _from_datasets(path, dataset, folder.absolute())
    return [data_file(entry) for entry in _of_split(files, path, dataset.split)]


_DESCRIPTIONS = ("dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json")


def _is_repository(folder: Path) -> bool:
    """Whether a README says which files are which split, as in a repository of the hub."""
    try:
        head = (folder / "README.md").read_text("utf-8", errors="replace")[:100_000]
    except OSError:
        return False
    return head.startswith("---") and "\nconfigs:" in head.partition("\n---")[0]


def _of_split(files: Sequence[Path], path: str, split: str | None) -> Sequence[Path]:
    """The files of a folder that belong to a split; all of them where none is asked for and none could be meant.

    Raises:
        ConfigError: there are several splits and none is named, or none of that name.
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


def _from_datasets(path: str, dataset: Dataset, folder: Path | None) -> list[DataFile]:
    """The Arrow files of a dataset, fetched and converted by `datasets` where they are not there yet.

    Args:
        folder: where it lies; None for one of the hub.
    """
    splits = _loaded(path, dataset, folder)
    taken = chosen_split(list(splits), path, dataset.split)
    return _arrow_files(path, taken, [Path(entry["filename"]) for entry in splits[taken].cache_files])


def _arrow_files(path: str, split: str, files: Sequence[Path]) -> list[DataFile]:
    if not files:
        raise DataError(f"{path}: no rows")
    shown = f"{path}[{split}]" if split else path
    names = [shown] if len(files) == 1 else [f"{shown}/{file.name}" for file in files]
    return [DataFile(name, file, "arrow") for name, file in zip(names, files, strict=True)]


def _loaded(path: str, dataset: Dataset, folder: Path | None) -> Any:
    import datasets

    datasets.disable_progress_bars()
    try:
        if folder is None:
            return hub.load(path, dataset.subset, dataset.revision)
        return datasets.load_dataset(str(folder), dataset.subset)
    except OrpoError:
        raise
    except Exception as error:  # `datasets` reads what others wrote, and fails in any way
        if isinstance(error, ValueError) and re.match("BuilderConfig|Config name", str(error)):
            text = printable(" ".join(str(error).split()), 300)
            raise ConfigError(f"data.path={path}: data.subset={dataset.subset}: {text}") from None
        raise DataError(f"{path}: `datasets` cannot read it: {_words(error.__cause__ or error)}") from None


def _words(error: BaseException) -> str:
    return printable(str(error), 300) or type(error).__name__


@contextmanager
def opened(file: DataFile) -> Iterator[tuple[BinaryIO, BinaryIO]]:
    """The unpacked bytes of a file, and the bytes on disk, whose place tells how far the reading is.

    Raises:
        DataError: it cannot be read, or its packing is damaged; on reading, too.
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
    except (EOFError, zlib.error) as error:
        raise DataError(f"{file.name}: the packed file is damaged or cut short: {_words(error)}") from None
    except OSError as error:
        if file.packing and (error.strerror is None or isinstance(error, gzip.BadGzipFile)):
            raise DataError(f"{file.name}: the packed file is damaged or cut short: {_words(error)}") from None
        raise DataError(f"{file.name}: cannot be read: {error.strerror or _words(error)}") from None


def total_size(files: Sequence[DataFile]) -> int:
    """Bytes on disk of several files."""
    return sum(file.size for file in files)
