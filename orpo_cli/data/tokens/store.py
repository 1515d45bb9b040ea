"""Tokenized rows on disk: written once for each content and setting, read from there from then on.

Whole columns are copied out batch by batch; only ids are memory-mapped, and of these only those that are asked for
come into memory.
"""

import fcntl
import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.ipc

from orpo_cli.data.pairs import Lengths, Source, TokenizedPair
from orpo_cli.files.cache import writing_to_the_cache

_IDS = pa.list_(pa.int32())
_IDS_COLUMNS = ("prompt_ids", "chosen_ids", "rejected_ids")
LENGTHS = ("prompt_tokens", "chosen_tokens", "rejected_tokens")
TRAINED = ("prompt_trained", "chosen_trained", "rejected_trained")
EDGES = ("double_bos", "double_eos", "missing_eos")
HASHES = ("prompt_hash", "chosen_hash", "rejected_hash")
SCHEMA = pa.schema(
    [
        ("line", pa.int64()),
        ("pair", pa.int32()),
        ("row_class", pa.string()),
        ("weight", pa.float32()),
        *((name, pa.int32()) for name in (*LENGTHS, *TRAINED)),
        ("boundary_merged", pa.bool_()),
        ("identical", pa.bool_()),
        ("control_tokens", pa.int32()),
        *((name, pa.uint64()) for name in HASHES),
        *((name, _IDS) for name in _IDS_COLUMNS),
    ]
)
_ROWS, _NOTES, _LOCK = "rows.arrow", "notes.json", ".lock"
_BATCH_ROWS, _HIGHEST_ID = "batch_rows", "highest_id"
_TEMPORARY = ".tmp-"
_YOUNG_SECONDS = 60
"""A directory that young may belong to a process that is about to lock it."""


class StoredRow(NamedTuple):
    """One pair of the input, or one row that gives none, whatever became of it.

    Args:
        line: of its row.
        pair: place among the pairs of its row, from 0; only a ranking has more than one.
        weight: in the objective; 0 where it is not trained on.
        lengths: tokens of prompt, chosen and rejected before cutting.
        boundary_merged, identical, control_tokens: as in `TokenizedRow`.
        hashes: of the whole texts of prompt, chosen and rejected, so that equal ones are known however they were cut.
        ids: None where it is not trained on.
    """

    line: int
    pair: int
    row_class: str
    weight: float
    lengths: Lengths
    boundary_merged: bool
    identical: bool
    control_tokens: int
    hashes: tuple[int, int, int]
    ids: TokenizedPair | None


def record_batch(rows: Sequence[StoredRow]) -> Any:
    """Rows as one batch of Arrow."""
    columns = dict(zip(StoredRow._fields, zip(*rows, strict=True), strict=True)) if rows else {}
    for names, part in ((LENGTHS, "lengths"), (HASHES, "hashes")):
        columns |= zip(names, zip(*columns[part], strict=True), strict=True) if rows else ()
    for name, trained in zip(_IDS_COLUMNS, TRAINED, strict=True):
        columns[name] = tuple(getattr(row.ids, name) if row.ids else None for row in rows)
        columns[trained] = tuple(len(ids or ()) for ids in columns[name])
    return pa.record_batch([pa.array(columns.get(field.name, ()), field.type) for field in SCHEMA], schema=SCHEMA)


class EntryWriter:
    """Writes one entry of the cache, which exists whole or not at all. Use as a context manager.

    Args:
        directory: of the entry; made when `publish` is called.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    @writing_to_the_cache()
    def __enter__(self) -> "EntryWriter":
        parent = self._directory.parent
        parent.mkdir(parents=True, exist_ok=True)
        sweep(parent)
        self._temporary = Path(tempfile.mkdtemp(dir=parent, prefix=_TEMPORARY))
        self._lock = (self._temporary / _LOCK).open("w")
        fcntl.flock(self._lock, fcntl.LOCK_EX)
        self._file = (self._temporary / _ROWS).open("wb")
        self._rows = pa.ipc.new_file(self._file, SCHEMA)
        self._batch_rows: list[int] = []
        self._highest_id = -1
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()
        self._lock.close()
        shutil.rmtree(self._temporary, ignore_errors=True)

    @writing_to_the_cache()
    def write(self, batch: Any) -> None:
        """Add a batch of rows."""
        self._rows.write_batch(batch)
        self._batch_rows.append(batch.num_rows)
        highest = (pc.max(batch.column(name).values).as_py() for name in _IDS_COLUMNS)
        self._highest_id = max(self._highest_id, *(-1 if token is None else token for token in highest))

    @writing_to_the_cache()
    def publish(self, notes: dict[str, Any]) -> None:
        """End the entry. Where another process was first, its entry stays."""
        self._rows.close()
        _synced(self._file)
        with (self._temporary / _NOTES).open("w", encoding="utf-8") as stream:
            json.dump(notes | {_BATCH_ROWS: self._batch_rows, _HIGHEST_ID: self._highest_id}, stream)
            _synced(stream)
        with (self._directory.parent / _LOCK).open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # nobody takes another's new entry for the damaged one it replaces
            if is_entry(self._directory):
                return
            shutil.rmtree(self._directory, ignore_errors=True)
            self._temporary.rename(self._directory)
        (self._directory / _LOCK).unlink(missing_ok=True)


def _synced(stream: Any) -> None:
    stream.flush()
    os.fsync(stream.fileno())


def sweep(parent: Path) -> None:
    """Remove what processes that were killed left unfinished; one that still writes holds its lock."""
    for left in parent.glob(f"{_TEMPORARY}*"):
        try:
            if time.time() - left.stat().st_mtime < _YOUNG_SECONDS:
                continue
            with (left / _LOCK).open("a") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(left, ignore_errors=True)
        except OSError:
            continue


def is_entry(directory: Path) -> bool:
    """Whether a whole entry is there."""
    try:
        TokenizedFile(directory, "")
    except (OSError, pa.ArrowInvalid, ValueError):
        return False
    return True


class TokenizedFile:
    """One tokenized preference file on disk.

    Args:
        directory: as written by `EntryWriter`.
        file: the name of the preference file, for messages.

    Raises:
        OSError, ArrowInvalid, ValueError: there is none, or it is damaged.
    """

    def __init__(self, directory: Path, file: str) -> None:
        self.file = file
        self.notes: dict[str, Any] = json.loads((directory / _NOTES).read_text(encoding="utf-8"))
        self._stream = pa.OSFile(str(directory / _ROWS))
        self._mapped = pa.ipc.open_file(pa.memory_map(str(directory / _ROWS)))
        if self._mapped.schema != SCHEMA or len(self.notes[_BATCH_ROWS]) != self._mapped.num_record_batches:
            raise ValueError(f"{directory}: rows of another format")
        self._starts = np.cumsum([0, *self.notes[_BATCH_ROWS]])

    def __len__(self) -> int:
        return int(self._starts[-1])

    def column(self, name: str) -> Any:
        """All values of a column but the ids and the class, as an array of numpy."""
        found = np.empty(len(self), SCHEMA.field(name).type.to_pandas_dtype())
        for start, values in self._read(name):
            found[start : start + len(values)] = values.to_numpy(zero_copy_only=False)
        return found

    def _read(self, name: str) -> Iterator[tuple[int, Any]]:
        """A column batch by batch, each with the row it starts at; nothing else is read, and nothing is kept."""
        options = pa.ipc.IpcReadOptions(included_fields=[SCHEMA.get_field_index(name)], use_threads=False)
        reader = pa.ipc.open_file(self._stream, options=options)
        for place in range(reader.num_record_batches):
            yield int(self._starts[place]), reader.get_batch(place).column(0)

    def classes(self) -> tuple[Any, list[str]]:
        """The class of each row as a code (N,), and the names of the codes."""
        codes, names = np.empty(len(self), np.int32), list[str]()
        for start, values in self._read("row_class"):
            encoded = values.dictionary_encode()
            of_batch = encoded.dictionary.to_pylist()
            names += [name for name in of_batch if name not in names]
            places = np.array([names.index(name) for name in of_batch], np.int32)
            codes[start : start + len(values)] = places[encoded.indices.to_numpy()]
        return codes, names

    def trainable(self) -> Any:
        """Rows that hold a pair, in the order of the file."""
        return np.flatnonzero(self.column("chosen_trained"))

    def trained_lengths(self) -> Any:
        """(N, 3) int32: tokens of prompt, chosen and rejected after the length policy; 0 where nothing is trained."""
        return np.stack([self.column(name) for name in TRAINED], axis=1)

    def highest_id(self) -> int:
        """The highest token id of any trainable row; -1 where there is none."""
        return int(self.notes[_HIGHEST_ID])

    def edges(self, bos_id: int | None, end_id: int) -> dict[str, Any]:
        """Flags (N,) by name of rows whose ids begin or end oddly: double_bos, double_eos, missing_eos."""
        parts = [
            _edges(self._mapped.get_batch(place), bos_id, end_id) for place in range(self._mapped.num_record_batches)
        ]
        return {name: np.concatenate([np.empty(0, bool), *(part[name] for part in parts)]) for name in EDGES}

    def ordinal(self, row: int) -> int:
        """Place of a record's row among the rows of the file, from 0; several may stand on one line."""
        return int((self.column("pair")[: row + 1] == 0).sum()) - 1

    def pair(self, row: int) -> TokenizedPair:
        """The pair of a trainable row."""
        batch, within = self._batch_of(row)
        return TokenizedPair(*(batch.column(name)[within].as_py() for name in _IDS_COLUMNS))

    def source(self, row: int) -> Source:
        """File and line of a row."""
        batch, within = self._batch_of(row)
        return Source(self.file, batch.column("line")[within].as_py())

    def _batch_of(self, row: int) -> tuple[Any, int]:
        """The batch that holds a row, and the row's place in it."""
        place = int(np.searchsorted(self._starts, row, side="right")) - 1
        return self._mapped.get_batch(place), row - int(self._starts[place])


def _edges(batch: Any, bos_id: int | None, end_id: int) -> dict[str, Any]:
    flags = {name: np.zeros(batch.num_rows, bool) for name in EDGES}
    rows = np.flatnonzero(batch.column("chosen_ids").is_valid().to_numpy(zero_copy_only=False))
    if not len(rows):
        return flags
    ids, starts, ends = _flat(batch.column("prompt_ids"))
    second = np.minimum(starts + 1, len(ids) - 1)
    flags["double_bos"][rows] = (ends - starts > 1) & (ids[starts] == ids[second]) & (ids[starts] == bos_id)
    for name in ("chosen_ids", "rejected_ids"):
        ids, starts, ends = _flat(batch.column(name))
        last = ids[ends - 1] == end_id
        flags["missing_eos"][rows] |= ~last
        flags["double_eos"][rows] |= np.add.reduceat((ids == end_id).astype(np.int64), starts) > last
    return flags


def _flat(lists: Any) -> tuple[Any, Any, Any]:
    """All ids of the valid lists of a column, and where each list starts and ends; none is empty."""
    lengths = pc.list_value_length(lists.drop_null()).to_numpy(zero_copy_only=False)
    ends = np.cumsum(lengths)
    return lists.drop_null().flatten().to_numpy(zero_copy_only=False), ends - lengths, ends


def mixed(first: Any, second: Any, third: Any) -> Any:
    """One hash (N,) for three; their order matters."""
    with np.errstate(over="ignore"):
        return (first * np.uint64(3) + second) * np.uint64(0x9E3779B97F4A7C15) + third


class PairStore:
    """A selection of the pairs of some files: what is trained on, or what is evaluated on.

    Args:
        parts: (file, trainable rows of it) one after the other.
        files_of_paths: how many of the files belong to each path of the configuration; all to one where not given.
    """

    def __init__(self, parts: Sequence[tuple[TokenizedFile, Any]], files_of_paths: Sequence[int] | None = None) -> None:
        self._parts = [(file, np.asarray(rows, dtype=np.int64)) for file, rows in parts]
        self._files_of_paths = list(files_of_paths) if files_of_paths is not None else [len(self._parts)]
        self._starts = np.cumsum([0] + [len(rows) for _, rows in self._parts])
        lengths = (file.trained_lengths()[rows] for file, rows in self._parts)
        self.token_counts = np.concatenate([np.empty((0, 3), np.int32), *lengths])
        self.weights = self.column("weight")

    def __len__(self) -> int:
        return int(self._starts[-1])

    def __getitem__(self, index: int) -> TokenizedPair:
        file, row = self.place(index)
        return file.pair(row)

    def __iter__(self) -> Iterator[TokenizedPair]:
        return (self[index] for index in range(len(self)))

    def column(self, name: str) -> Any:
        """The values of a column but the ids and the class, (pairs,)."""
        empty = np.empty(0, SCHEMA.field(name).type.to_pandas_dtype())
        return np.concatenate([empty, *(file.column(name)[rows] for file, rows in self._parts)])

    def edges(self, bos_id: int | None, end_id: int) -> dict[str, Any]:
        """Flags (pairs,) by name of pairs whose ids begin or end oddly: double_bos, double_eos, missing_eos."""
        parts = [(file.edges(bos_id, end_id), rows) for file, rows in self._parts]
        return {
            name: np.concatenate([np.empty(0, bool), *(flags[name][rows] for flags, rows in parts)]) for name in EDGES
        }

    @property
    def sizes(self) -> list[int]:
        """Pairs of each path."""
        ends = np.cumsum([0, *self._files_of_paths])
        return [int(size) for size in np.diff(self._starts[ends])]

    def lengths(self, index: int) -> Lengths:
        """Tokens of a pair."""
        return Lengths(*self.token_counts[index].tolist())

    def shortest(self) -> int:
        """A pair with the fewest tokens."""
        return int(self.token_counts.sum(1).argmin())

    def longest(self) -> int:
        """A pair with the most tokens."""
        return int(self.token_counts.sum(1).argmax())

    def source(self, index: int) -> Source:
        """File and line of a pair."""
        file, row = self.place(index)
        return file.source(row)

    def place(self, index: int) -> tuple[TokenizedFile, int]:
        """The file of a pair, and its row there."""
        if not 0 <= index < len(self):
            raise IndexError(index)
        part = int(np.searchsorted(self._starts, index, side="right")) - 1
        file, rows = self._parts[part]
        return file, int(rows[index - int(self._starts[part])])
