"""Tokenized rows on disk: written once for each content and setting, memory-mapped from then on."""

import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.ipc

from orpo_cli.data.collation import Lengths
from orpo_cli.data.pairs import Source, TokenizedPair

_IDS = pa.list_(pa.int32())
_IDS_COLUMNS = ("prompt_ids", "chosen_ids", "rejected_ids")
_LENGTHS = ("prompt_tokens", "chosen_tokens", "rejected_tokens")
SCHEMA = pa.schema(
    [
        ("line", pa.int64()),
        ("row_class", pa.string()),
        *((name, pa.int32()) for name in _LENGTHS),
        ("boundary_merged", pa.bool_()),
        ("identical", pa.bool_()),
        ("prompt_digest", pa.binary()),
        *((name, _IDS) for name in _IDS_COLUMNS),
    ]
)


@dataclass(frozen=True)
class StoredRow:
    """One row of the input, whatever became of it.

    Args:
        lengths: tokens of prompt, chosen and rejected before cutting.
        prompt_digest: of the prompt's whole text, so that two rows with one prompt are known however they were cut.
        pair: None for a row that is not trained on.
    """

    line: int
    row_class: str
    lengths: tuple[int, int, int]
    boundary_merged: bool
    identical: bool
    prompt_digest: bytes
    pair: TokenizedPair | None


def cache_directory() -> Path:
    """`$ORPO_CACHE`, or the user's cache directory."""
    import platformdirs

    chosen = os.environ.get("ORPO_CACHE")
    return Path(chosen).expanduser() if chosen else Path(platformdirs.user_cache_dir("orpo"))


def write_rows(path: Path, batches: Sequence[Sequence[StoredRow]], notes: dict[str, str]) -> None:
    """Write rows so that `path` either exists whole or not at all.

    Args:
        notes: kept as the file's metadata.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=".tmp-")
    temporary = Path(name)
    try:
        schema = SCHEMA.with_metadata(notes)
        with os.fdopen(handle, "wb") as raw, pa.ipc.new_file(raw, schema) as writer:
            for rows in batches:
                writer.write_table(pa.table(_columns(rows), schema=schema))
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _columns(rows: Sequence[StoredRow]) -> dict[str, Any]:
    columns: dict[str, Any] = {
        "line": [row.line for row in rows],
        "row_class": [row.row_class for row in rows],
        **{name: [row.lengths[place] for row in rows] for place, name in enumerate(_LENGTHS)},
        "boundary_merged": [row.boundary_merged for row in rows],
        "identical": [row.identical for row in rows],
        "prompt_digest": [row.prompt_digest for row in rows],
    }
    for name in _IDS_COLUMNS:
        columns[name] = [getattr(row.pair, name) if row.pair else None for row in rows]
    return columns


class TokenizedFile:
    """One tokenized preference file, memory-mapped.

    Args:
        path: as written by `write_rows`.
        file: the name of the preference file, for messages.
    """

    def __init__(self, path: Path, file: str) -> None:
        self.file = file
        table = pa.ipc.open_file(pa.memory_map(str(path))).read_all()
        metadata = table.schema.metadata or {}
        self.notes = {key.decode(): value.decode() for key, value in metadata.items()}
        self._columns: dict[str, Any] = {name: table.column(name).combine_chunks() for name in table.column_names}

    def __len__(self) -> int:
        return len(self._columns["line"])

    def column(self, name: str) -> list[Any]:
        """All values of a column but the ids."""
        values: list[Any] = self._columns[name].to_pylist()
        return values

    def trainable(self) -> list[int]:
        """Rows that hold a pair, in the order of the file."""
        return [row for row, ids in enumerate(self._columns["chosen_ids"].is_valid().to_pylist()) if ids]

    def trained_lengths(self, rows: Sequence[int]) -> list[Lengths]:
        """Tokens of trainable rows, after the length policy."""
        counts = [pc.list_value_length(self._columns[name]).to_pylist() for name in _IDS_COLUMNS]
        return [Lengths(*(count[row] for count in counts)) for row in rows]

    def highest_id(self) -> int:
        """The highest token id of any trainable row; -1 where there is none."""
        highest = [pc.max(self._columns[name].flatten()).as_py() for name in _IDS_COLUMNS]
        return max((token for token in highest if token is not None), default=-1)

    def pair(self, row: int) -> TokenizedPair:
        """The pair of a trainable row."""
        return TokenizedPair(*(self._columns[name][row].as_py() for name in _IDS_COLUMNS))


class PairStore:
    """A selection of the pairs of one file: what is trained on, or what is evaluated on."""

    def __init__(self, file: TokenizedFile, rows: Sequence[int]) -> None:
        self._file = file
        self._rows = list(rows)
        self._lines = file.column("line")
        self.lengths = file.trained_lengths(self._rows)

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> TokenizedPair:
        return self._file.pair(self._rows[index])

    @property
    def file(self) -> str:
        """The preference file."""
        return self._file.file

    def row(self, index: int) -> int:
        """Place of a pair among the valid rows of the file, from 0."""
        return self._rows[index]

    def source(self, index: int) -> Source:
        """File and line of a pair."""
        return Source(self._file.file, self._lines[self._rows[index]])
