"""Account for the input: the ledger has a record for each pair, and for each row that gives none, with its class.

How many pairs a row gives follows from its shape (one, but for rankings), so that the records add up to the input
whatever becomes of them. A record names its row by `file`, `line` and `row`, as the messages do: the line that the row
starts on, and its 1-based number among the rows of the file, which finds it in a JSON array.
"""

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from orpo_cli.data.tokens.store import HASHES, LENGTHS, TokenizedFile, combined_hash

_RECORDS_AT_ONCE = 10_000


@dataclass(frozen=True)
class LedgerPart:
    """Hold one file of the ledger.

    Args:
        split: train or eval, for which the file was given.
        held_out: the rows of a file to train on that are evaluated on instead.
    """

    file: TokenizedFile
    split: str
    held_out: Any


@dataclass(frozen=True)
class Ledger:
    """Record what became of every row."""

    parts: Sequence[LedgerPart]

    @cached_property
    def rows(self) -> int:
        """Return the number of rows of the input."""
        return sum(int((part.file.column("pair") == 0).sum()) for part in self.parts)

    @cached_property
    def classes(self) -> dict[tuple[str, str], int]:
        """Return the number of records by split and class, such as ("train", "kept")."""
        totals: Counter[tuple[str, str]] = Counter()
        for part in self.parts:
            codes, names = part.file.classes()
            held_out = np.bincount(codes[part.held_out], minlength=len(names))
            for name, everywhere, held in zip(names, np.bincount(codes, minlength=len(names)), held_out, strict=True):
                totals[part.split, name] += int(everywhere - held)
                totals["eval", name] += int(held)
        keys = sorted(totals, key=lambda key: (key[0] != "train", key[1]))
        return {key: totals[key] for key in keys if totals[key]}

    def lines(self) -> Iterator[bytes]:
        """Yield the records as JSON Lines, many at a time."""
        files = [part.file.file for part in self.parts]
        names = [json.dumps(file, ensure_ascii=not file.isprintable()) for file in files]  # not all names are UTF-8
        for name, part, duplicates in zip(names, self.parts, _duplicates(self.parts, names), strict=True):
            columns = _columns(part) | {"duplicate_of": duplicates}
            for start in range(0, len(part.file), _RECORDS_AT_ONCE):
                yield _json_lines(
                    name, {field: column.slice(start, _RECORDS_AT_ONCE) for field, column in columns.items()}
                )


def _duplicates(parts: Sequence[LedgerPart], names: Sequence[str]) -> list[Any]:
    """Return `duplicate_of` of each part as JSON: null, or the place of the first row with the same three texts."""
    hashes = [np.concatenate([part.file.column(name) for part in parts]) for name in HASHES]
    lines = np.concatenate([part.file.column("line") for part in parts])
    numbers = np.concatenate([_row_numbers(part.file) for part in parts])
    ends = np.cumsum([len(part.file) for part in parts])
    _, first, place = np.unique(combined_hash(*hashes), return_index=True, return_inverse=True)
    texts = np.full(len(lines), "null", dtype=object)
    for row in np.flatnonzero((first[place] != np.arange(len(lines))) & (hashes[0] != 0)):  # 0: no texts
        same = first[place[row]]
        file = names[np.searchsorted(ends, same, side="right")]
        texts[row] = f'{{"file": {file}, "line": {lines[same]}, "row": {numbers[same]}}}'
    return [pa.array(of_part, pa.string()) for of_part in np.split(texts, ends[:-1])]


def _row_numbers(file: TokenizedFile) -> Any:
    """Return the number of each record's row in the file (N,), from 1; the pairs of one row have the same."""
    return np.cumsum(file.column("pair") == 0)


def _columns(part: LedgerPart) -> dict[str, Any]:
    """Return the fields of a part's records but file and duplicate_of."""
    codes, classes = part.file.classes()
    held_out = np.zeros(len(codes), np.int8)
    held_out[part.held_out] = 1
    rendered = ["chat_template" if part.file.notes["chat"] else "plain_text"]
    named = {
        "class": _quoted(codes, classes),
        "split": _quoted(held_out, [part.split, "eval"]),
        "rendered": _quoted(np.zeros(len(codes), np.int8), rendered),
        "row": pa.array(_row_numbers(part.file)),
    }
    order = (
        "line",
        "row",
        "pair",
        "class",
        "split",
        "rendered",
        *LENGTHS,
        "weight",
        "boundary_merged",
        "identical",
        "control_tokens",
    )
    return {field: named[field] if field in named else pa.array(part.file.column(field)) for field in order}


def _quoted(codes: Any, names: Sequence[str]) -> Any:
    """Return names of classes and splits, which hold nothing that JSON escapes, by their codes."""
    return pa.DictionaryArray.from_arrays(pa.array(codes), pa.array([f'"{name}"' for name in names], pa.string()))


def _json_lines(name: str, columns: Mapping[str, Any]) -> bytes:
    """Build records column by column, ten times as fast as `json.dumps` writes them."""
    parts: list[Any] = [f'{{"file": {name}']
    for field, column in columns.items():
        parts += [f', "{field}": ', pc.cast(column, pa.string())]
    lines = pc.binary_join_element_wise(*parts, "}\n", "")
    return "".join(lines.to_pylist()).encode()
