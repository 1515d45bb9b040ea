"""Any file of preferences to rows, in blocks that can be worked on one by one, in any process."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

from orpo_cli.data.pairs import Problem
from orpo_cli.data.rows import json_rows, lines, tables
from orpo_cli.data.rows.json_rows import Row
from orpo_cli.data.rows.lines import LineBlock
from orpo_cli.data.rows.sources import DataFile, opened
from orpo_cli.errors import DataError

_BLOCK_ROWS = 500


@dataclass(frozen=True)
class RowBlock:
    """Rows that had to be read to know where they end."""

    rows: list[Row | Problem]


Block = LineBlock | RowBlock


def read_blocks(file: DataFile) -> Iterator[tuple[Block, int]]:
    """The blocks of a file in their order, and the bytes on disk that are read after each.

    Raises:
        DataError: the file cannot be read row by row: another encoding, a damaged array, table or packing.
    """
    if file.kind in ("parquet", "arrow"):
        for batch, share in tables.table_rows(file):
            yield RowBlock(batch), int(share * file.size)
        return
    is_array = file.kind == "json" and _is_array(file)
    with opened(file) as (stream, raw):
        if file.kind == "json" and not is_array:
            for block in lines.line_blocks(stream, file.name):
                yield block, raw.tell()
        else:
            rows = json_rows.array_rows(stream, file.name) if is_array else tables.csv_rows(stream, file)
            for part in _blocks(rows):
                yield part, raw.tell()


def _blocks(rows: Iterable[Row | Problem]) -> Iterator[RowBlock]:
    """Rows in blocks; those in front of a problem that ends the file come before it."""
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


def _is_array(file: DataFile) -> bool:
    with opened(file) as (stream, _):
        return json_rows.is_array(stream, file.is_lines)


def rows_of(block: Block, file: str) -> Iterator[Row | Problem]:
    """The rows of a block, or the problems that stand in their place."""
    yield from block.rows if isinstance(block, RowBlock) else json_rows.rows_of(block, file)


def read_rows(file: DataFile) -> Iterator[Row | Problem]:
    """All rows of a file.

    Raises:
        DataError: see `read_blocks`.
    """
    for block, _ in read_blocks(file):
        for found in rows_of(block, file.name):
            yield explained(found, file) if isinstance(found, Problem) else found


def explained(problem: Problem, file: DataFile) -> Problem:
    """The problem of a file's first line, with what the file seems to be instead of JSON Lines."""
    if problem.source.line != 1 or problem.reason != "not_json" or file.kind != "json":
        return problem
    try:
        with opened(file) as (stream, _):
            return replace(problem, text=problem.text + json_rows.whole_file_hint(stream))
    except DataError:  # damaged further on, which is said when the reading gets there
        return problem
