"""The ledger: one record for each pair of the input, and for each row that gives none, with the class it ended in.

A row gives as many pairs as its shape says, one but for rankings, so the records add up to the input whatever becomes
of them.
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

from orpo_cli.data.tokens.store import HASHES, LENGTHS, TokenizedFile, mixed

_RECORDS_AT_ONCE = 10_000


@dataclass(frozen=True)
class LedgerPart:
    """One file of the ledger.

    Args:
        split: train or eval, as the file was given.
        held_out: rows of it that are evaluated on instead.
    """

    file: TokenizedFile
    split: str
    held_out: Any


@dataclass(frozen=True)
class Ledger:
    """What became of every row."""

    parts: Sequence[LedgerPart]

    @cached_property
    def rows(self) -> int:
        """Rows of the input."""
        return sum(int((part.file.column("pair") == 0).sum()) for part in self.parts)

    @cached_property
    def classes(self) -> dict[tuple[str, str], int]:
        """Records by split and class, such as ("train", "kept")."""
        totals: Counter[tuple[str, str]] = Counter()
        for part in self.parts:
            codes, names = part.file.classes()
            held_out = np.bincount(codes[part.held_out], minlength=len(names))
            for name, everywhere, held in zip(names, np.bincount(codes, minlength=len(names)), held_out, strict=True):
                totals[part.split, name] += int(everywhere - held)
                totals["eval", name] += int(held)
        return {key: count for key, count in sorted(totals.items(), key=_train_first) if count}

    def lines(self) -> Iterator[bytes]:
        """The records as JSON Lines, many at a time."""
        firsts = _first_of_equals(self.parts)
        names = [_json_text(part.file.file) for part in self.parts]
        lines = [part.file.column("line") for part in self.parts]
        for place, part in enumerate(self.parts):
            columns = _columns(part)
            for start in range(0, len(part.file), _RECORDS_AT_ONCE):
                equal = _same_as(firsts[place][start : start + _RECORDS_AT_ONCE], names, lines, place, start)
                chunk = {field: column.slice(start, _RECORDS_AT_ONCE) for field, column in columns.items()}
                yield _json_lines(names[place], chunk | {"duplicate_of": equal})

    def records(self) -> Iterator[dict[str, Any]]:
        """The records one by one."""
        for chunk in self.lines():
            yield from map(json.loads, chunk.splitlines())


def _train_first(item: tuple[tuple[str, str], int]) -> tuple[bool, str]:
    (split, name), _ = item
    return split != "train", name


def _first_of_equals(parts: Sequence[LedgerPart]) -> list[Any]:
    """For each row, the place among all rows of the first with the same three texts; its own where it is the first."""
    hashes = [np.concatenate([part.file.column(name) for part in parts]) for name in HASHES]
    if not parts or not len(hashes[0]):
        return [np.empty(0, np.int64) for _ in parts]
    _, first, place = np.unique(mixed(*hashes), return_index=True, return_inverse=True)
    found = first[place]
    found[hashes[0] == 0] = np.flatnonzero(hashes[0] == 0)  # rows without texts
    ends = np.cumsum([len(part.file) for part in parts])
    return np.split(found, ends[:-1])


def _same_as(first: Any, names: Sequence[str], lines: Sequence[Any], place: int, start: int) -> Any:
    """JSON of `duplicate_of` for a slice of one part: null, or the file and line of the first of the equal rows."""
    offsets = np.cumsum([0, *(len(part) for part in lines)])
    texts = np.full(len(first), "null", dtype=object)
    own = np.arange(len(first)) + start + offsets[place]
    for row in np.flatnonzero(first != own):
        part = int(np.searchsorted(offsets, first[row], side="right")) - 1
        line = int(lines[part][first[row] - offsets[part]])
        texts[row] = f'{{"file": {names[part]}, "line": {line}}}'
    return pa.array(texts, pa.string())


def _columns(part: LedgerPart) -> dict[str, Any]:
    """The fields of a part's records but file and duplicate_of."""
    codes, classes = part.file.classes()
    held_out = np.zeros(len(codes), np.int8)
    held_out[part.held_out] = 1
    named = {"class": _quoted(codes, classes), "split": _quoted(held_out, [part.split, "eval"])}
    order = ("line", "pair", "class", "split", *LENGTHS, "weight", "boundary_merged", "identical", "control_tokens")
    return {field: named[field] if field in named else pa.array(part.file.column(field)) for field in order}


def _quoted(codes: Any, names: Sequence[str]) -> Any:
    """Names of classes and splits, which hold nothing that JSON escapes, by their codes."""
    return pa.DictionaryArray.from_arrays(pa.array(codes), pa.array([f'"{name}"' for name in names], pa.string()))


def _json_text(text: str) -> str:
    """A text as JSON that can be written as UTF-8, which the name of a file need not be."""
    try:
        return json.dumps(text, ensure_ascii=False).encode().decode()
    except UnicodeEncodeError:
        return json.dumps(text)


def _json_lines(name: str, columns: Mapping[str, Any]) -> bytes:
    """Built column by column, ten times as fast as `json.dumps` writes records."""
    parts: list[Any] = [f'{{"file": {name}']
    for field, column in columns.items():
        parts += [f', "{field}": ', pc.cast(column, pa.string())]
    lines = pc.binary_join_element_wise(*parts, "}\n", "")
    return "".join(lines.to_pylist()).encode()
