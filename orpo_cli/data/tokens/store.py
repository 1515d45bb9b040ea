"""Keep tokenized rows on disk, written once for each content and setting.

Whole columns are copied out batch by batch; only ids are memory-mapped, and of these only those that are asked for
come into memory.
"""

import contextlib
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
from orpo_cli.files.writing import LEFTOVER

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
        ("turns", pa.int32()),
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
_ROWS, _NOTES = "rows.arrow", "notes.json"
_BATCH_ROWS, _HIGHEST_ID = "batch_rows", "highest_id"
_YOUNG_SECONDS = 60
"""A directory that young may belong to a process that is about to lock it."""


class StoredRow(NamedTuple):
    """Hold one pair of the input, or one row that gives none, whatever became of it.

    Args:
        line: the line of the row.
        pair: the place among the pairs of the row, from 0; only a ranking has more than one.
        row_class, boundary_merged, identical, control_tokens: as in `TokenizedRow`.
        weight: the weight in the objective; 0 for a pair that is not trained on.
        lengths: numbers of tokens before cutting.
        hashes: hashes of the whole texts of prompt, chosen and rejected, which tell equal ones however they were cut.
        ids: the tokens; None for a pair that is not trained on.
        turns: the number of the user's messages in the prompt; 0 where it is not known.
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
    turns: int = 0


def record_batch(rows: Sequence[StoredRow]) -> Any:
    """Return rows as one batch of Arrow."""
    columns = dict(zip(StoredRow._fields, zip(*rows, strict=True), strict=True)) if rows else {}
    for names, part in ((LENGTHS, "lengths"), (HASHES, "hashes")):
        columns |= zip(names, zip(*columns[part], strict=True), strict=True) if rows else ()
    for name, trained in zip(_IDS_COLUMNS, TRAINED, strict=True):
        columns[name] = tuple(getattr(row.ids, name) if row.ids else None for row in rows)
        columns[trained] = tuple(len(ids or ()) for ids in columns[name])
    return pa.record_batch([pa.array(columns.get(field.name, ()), field.type) for field in SCHEMA], schema=SCHEMA)


class EntryWriter:
    """Write one entry of the cache, which exists whole or not at all. Use as a context manager.

    Args:
        directory: the place of the entry; nothing is there before `publish` is called.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    @writing_to_the_cache()
    def __enter__(self) -> "EntryWriter":
        parent = self._directory.parent
        parent.mkdir(parents=True, exist_ok=True)
        remove_leftovers(parent)
        self._temporary = Path(tempfile.mkdtemp(dir=parent, prefix=LEFTOVER))
        self._file = (self._temporary / _ROWS).open("wb")
        fcntl.flock(self._file, fcntl.LOCK_EX)
        self._rows = pa.ipc.new_file(self._file, SCHEMA)
        self._batch_rows: list[int] = []
        self._highest_id = -1
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()
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
        """Put the entry in its place; where another process was first, its entry stays."""
        self._rows.close()
        _sync(self._file)
        with (self._temporary / _NOTES).open("w", encoding="utf-8") as stream:
            json.dump(notes | {_BATCH_ROWS: self._batch_rows, _HIGHEST_ID: self._highest_id}, stream)
            _sync(stream)
        try:
            self._temporary.rename(self._directory)
        except OSError:
            if open_entry(self._directory, "") is None:
                shutil.rmtree(self._directory, ignore_errors=True)
                self._temporary.rename(self._directory)


def _sync(stream: Any) -> None:
    stream.flush()
    os.fsync(stream.fileno())


def remove_leftovers(parent: Path) -> None:
    """Remove what processes that were killed left unfinished; one that still writes holds its lock."""
    for left in parent.glob(f"{LEFTOVER}*"):
        with contextlib.suppress(OSError):
            if time.time() - left.stat().st_mtime > _YOUNG_SECONDS:
                with (left / _ROWS).open("a") as rows:
                    fcntl.flock(rows, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    shutil.rmtree(left, ignore_errors=True)


def open_entry(directory: Path, file: str) -> "TokenizedFile | None":
    """Return the rows of an entry, or None where there is none, or a damaged one."""
    try:
        return TokenizedFile(directory, file)
    except (OSError, pa.ArrowInvalid, ValueError):
        return None


class TokenizedFile:
    """Read one tokenized preference file from the disk.

    Args:
        directory: the entry that `EntryWriter` wrote.
        file: the name of the preference file, for messages.
    Raises:
        OSError, ArrowInvalid, ValueError: if there is no entry, or it is damaged.
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
        """Return all values of a column, which may be any but the ids and the class, as an array of numpy."""
        found = np.empty(len(self), SCHEMA.field(name).type.to_pandas_dtype())
        for start, values in self._read(name):
            found[start : start + len(values)] = values.to_numpy(zero_copy_only=False)
        return found

    def _read(self, name: str) -> Iterator[tuple[int, Any]]:
        """Yield a column batch by batch, each with the row it starts at; nothing else is read, and nothing is kept."""
        options = pa.ipc.IpcReadOptions(included_fields=[SCHEMA.get_field_index(name)], use_threads=False)
        reader = pa.ipc.open_file(self._stream, options=options)
        for place in range(reader.num_record_batches):
            yield int(self._starts[place]), reader.get_batch(place).column(0)

    def classes(self) -> tuple[Any, list[str]]:
        """Return the class of each row as a code (N,), and the names of the codes."""
        codes, names = np.empty(len(self), np.int32), list[str]()
        for start, values in self._read("row_class"):
            encoded = values.dictionary_encode()
            of_batch = encoded.dictionary.to_pylist()
            names += [name for name in of_batch if name not in names]
            places = np.array([names.index(name) for name in of_batch], np.int32)
            codes[start : start + len(values)] = places[encoded.indices.to_numpy()]
        return codes, names

    def trainable(self) -> Any:
        """Return the rows that hold a pair to train on, in the order of the file."""
        return np.flatnonzero(self.column("chosen_trained"))

    def trained_lengths(self) -> Any:
        """Return (N, 3) int32 lengths after the length policy; 0 where nothing is trained."""
        return np.stack([self.column(name) for name in TRAINED], axis=1)

    def highest_id(self) -> int:
        """Return the highest token id of any trainable row, or -1 where there is none."""
        return int(self.notes[_HIGHEST_ID])

    def edges(self, bos_id: int | None, end_id: int) -> dict[str, Any]:
        """Return flags (N,) by the names in `EDGES`, of rows whose ids begin or end oddly."""
        parts = [
            _edges(self._mapped.get_batch(place), bos_id, end_id) for place in range(self._mapped.num_record_batches)
        ]
        return {name: np.concatenate([np.empty(0, bool), *(part[name] for part in parts)]) for name in EDGES}

    def ordinal(self, row: int) -> int:
        """Return the place of a record's row among the rows of the file, from 0; several may stand on one line."""
        return int((self.column("pair")[: row + 1] == 0).sum()) - 1

    def pair(self, row: int) -> TokenizedPair:
        """Return the pair of a trainable row."""
        batch, within = self._batch_of(row)
        return TokenizedPair(*(batch.column(name)[within].as_py() for name in _IDS_COLUMNS))

    def source(self, row: int) -> Source:
        """Return the file and line of a row, and its number where rows may share a line."""
        batch, within = self._batch_of(row)
        number = self.ordinal(row) + 1 if self.notes.get("numbered") else 0
        return Source(self.file, batch.column("line")[within].as_py(), number)

    def _batch_of(self, row: int) -> tuple[Any, int]:
        """Return the batch that holds a row, and the row's place in it."""
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
    """Return all ids of the valid lists of a column, and where each list starts and ends; none is empty."""
    lengths = pc.list_value_length(lists.drop_null()).to_numpy(zero_copy_only=False)
    ends = np.cumsum(lengths)
    return lists.drop_null().flatten().to_numpy(zero_copy_only=False), ends - lengths, ends


def combined_hash(first: Any, second: Any, third: Any) -> Any:
    """Return one hash (N,) for three, whose order matters."""
    with np.errstate(over="ignore"):
        return (first * np.uint64(3) + second) * np.uint64(0x9E3779B97F4A7C15) + third


class PairStore:
    """Select pairs of some files, to train on or to evaluate on.

    Args:
        parts: (file, trainable rows of it) one after the other.
        files_of_paths: the number of files of each path of the configuration; all belong to one where not given.
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

    def column(self, name: str) -> Any:
        """Return the values (pairs,) of a column, which may be any but the ids and the class."""
        empty = np.empty(0, SCHEMA.field(name).type.to_pandas_dtype())
        return np.concatenate([empty, *(file.column(name)[rows] for file, rows in self._parts)])

    def edges(self, bos_id: int | None, end_id: int) -> dict[str, Any]:
        """Return flags (pairs,) by the names in `EDGES`, of pairs whose ids begin or end oddly."""
        parts = [(file.edges(bos_id, end_id), rows) for file, rows in self._parts]
        return {
            name: np.concatenate([np.empty(0, bool), *(flags[name][rows] for flags, rows in parts)]) for name in EDGES
        }

    @property
    def sizes(self) -> list[int]:
        """Return the number of pairs of each path."""
        ends = np.cumsum([0, *self._files_of_paths])
        return [int(size) for size in np.diff(self._starts[ends])]

    def part(self, pairs: Any) -> "PairStore":
        """Return some of the pairs, given by their places in order."""
        parts = []
        for (file, rows), start, end in zip(self._parts, self._starts[:-1], self._starts[1:], strict=True):
            parts.append((file, rows[pairs[(start <= pairs) & (pairs < end)] - start]))
        return PairStore(parts)

    @property
    def files(self) -> list[str]:
        """Return the names of the files."""
        return [file.file for file, _ in self._parts]

    @property
    def rows(self) -> Any:
        """Return the number of each pair's file and its row there, (pairs, 2) int64; the same for any tokenizer."""
        numbers = [np.stack([np.full_like(rows, number), rows], 1) for number, (_, rows) in enumerate(self._parts)]
        return np.concatenate([np.empty((0, 2), np.int64), *numbers])

    def lengths(self, index: int) -> Lengths:
        """Return the lengths of a pair."""
        return Lengths(*self.token_counts[index].tolist())

    def shortest(self) -> int:
        """Return a pair with the fewest tokens."""
        return int(self.token_counts.sum(1).argmin())

    def longest(self) -> int:
        """Return a pair with the most tokens."""
        return int(self.token_counts.sum(1).argmax())

    def source(self, index: int) -> Source:
        """Return the file and line of a pair."""
        file, row = self.place(index)
        return file.source(row)

    def place(self, index: int) -> tuple[TokenizedFile, int]:
        """Return the file of a pair, and its row there."""
        if not 0 <= index < len(self):
            raise IndexError(index)
        part = int(np.searchsorted(self._starts, index, side="right")) - 1
        file, rows = self._parts[part]
        return file, int(rows[index - int(self._starts[part])])
