"""Read any file of preferences as rows, in blocks that can be worked on one by one, in any process."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import BinaryIO

from orpo_cli.data.pairs import Problem, Row
from orpo_cli.data.rows import json_layouts, json_rows, tables, text_lines
from orpo_cli.data.rows.sources import DataFile, opened
from orpo_cli.errors import DataError

_BLOCK_ROWS = 500
_HEAD_BYTES = 1 << 16


@dataclass(frozen=True)
class RowBlock:
    """Hold rows that had to be read to know where they end."""

    rows: list[Row | Problem]


Block = text_lines.LineBlock | RowBlock


def read_blocks(file: DataFile) -> Iterator[tuple[Block, int]]:
    """Yield the blocks of a file in their order, each with the number of bytes on disk that are read after it.

    Raises:
        DataError: if the file cannot be read row by row: another encoding, a damaged array, table or packing.
    """
    if file.kind in ("parquet", "arrow"):
        for batch, share in tables.table_rows(file):
            yield RowBlock(batch), int(share * file.size)
        return
    layout = _layout(file) if file.kind == "json" else file.kind
    with opened(file) as (stream, raw):
        if layout == "lines":
            for block in text_lines.line_blocks(stream, file.name):
                yield block, raw.tell()
        else:
            rows = _READERS[layout](stream, file.name) if layout in _READERS else tables.csv_rows(stream, file)
            for part in _blocks(rows):
                yield part, raw.tell()


_READERS: dict[str, Callable[[BinaryIO, str], Iterator[Row | Problem]]] = {
    "array": json_rows.array_rows,
    "values": json_rows.value_rows,
    "nested": json_layouts.nested_rows,
    "object": json_layouts.object_rows,
}
"""Layout of a JSON file -> what yields its rows."""


def _blocks(rows: Iterable[Row | Problem]) -> Iterator[RowBlock]:
    """Gather rows into blocks; those before an error that ends the file come before it."""
    block: list[Row | Problem] = []
    try:
        for row in rows:
            block.append(row)
            if len(block) == _BLOCK_ROWS:
                yield RowBlock(block)
                block = []
    except DataError:
        if block:
            yield RowBlock(block)
        raise
    if block:
        yield RowBlock(block)


def _layout(file: DataFile) -> str:
    with opened(file) as (stream, _):
        head = stream.read(_HEAD_BYTES)
        return json_layouts.layout_of(head, file.name, is_whole=len(head) < _HEAD_BYTES)


def rows_of(block: Block, file: str) -> Iterator[Row | Problem]:
    """Yield the rows of a block, or the problems that stand in their place."""
    yield from block.rows if isinstance(block, RowBlock) else json_rows.line_rows(block, file)


def read_rows(file: DataFile) -> Iterator[Row | Problem]:
    """Yield all rows of a file, or the problems that stand in their place.

    Raises:
        DataError: as `read_blocks` does.
    """
    for block, _ in read_blocks(file):
        yield from rows_of(block, file.name)
