"""CSV, TSV, Parquet and Arrow files to rows. A row of a table is numbered from 1, one of a text file by its line."""

import csv
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from orpo_cli.data.pairs import Problem, Source
from orpo_cli.data.rows import lines
from orpo_cli.data.rows.json_rows import Row
from orpo_cli.data.rows.sources import DataFile
from orpo_cli.data.shapes.fields import FieldError, from_json
from orpo_cli.errors import DataError
from orpo_cli.quoting import listed, printable, shortened

_BATCH_ROWS = 1000


def csv_rows(stream: BinaryIO, file: DataFile) -> Iterator[Row | Problem]:
    """Rows of a CSV or TSV file with a header; each is a dict of texts, on the line it starts on.

    Raises:
        DataError: no header that can be read, a column that stands twice, or, since what follows has no certain
            boundaries, a quote that is never closed or a line over the limit.
    """
    source = _CsvLines(stream, file.name)
    reader = csv.reader(source, delimiter="\t" if file.kind == "tsv" else ",", strict=True)
    header: list[str] | None = None
    while True:
        source.begin()
        try:
            cells = next(reader, None)
        except csv.Error as error:
            problem = f"{file.name}:{source.started}: not a row of {file.kind.upper()}: {printable(str(error))}"
            raise DataError(str(source.problem or problem)) from None
        if cells is None:
            return
        if source.problem is not None and header is None:
            raise DataError(str(source.problem))
        if source.problem is not None:
            yield source.problem
        elif not cells:
            continue
        elif header is None:
            header = _header(cells, file.name, source.started)
        elif len(cells) != len(header):
            text = f"{len(cells)} cells where the header has {len(header)}"
            yield Problem(Source(file.name, source.started), text, "not_csv")
        else:
            yield Row(Source(file.name, source.started), dict(zip(header, cells, strict=True)))


def _header(cells: list[str], file: str, line: int) -> list[str]:
    twice = [name for name, count in Counter(cells).items() if count > 1]
    if twice:
        raise DataError(f"{file}:{line}: the column {shortened(twice[0])} stands twice in the header: {listed(cells)}")
    return cells


class _CsvLines:
    """Lines for the csv module, which wants them with their breaks; a row may span several.

    A line that is not text makes its row a problem, but keeps its quotes and separators, so that the reader goes on.
    """

    def __init__(self, stream: BinaryIO, file: str) -> None:
        csv.field_size_limit(lines.MAX_LINE_BYTES)
        self._lines = self._read(stream, file)
        self._fresh = True
        self.started = 1
        self.problem: Problem | None = None

    def begin(self) -> None:
        """The next line starts a row."""
        self._fresh, self.problem = True, None

    def __iter__(self) -> "_CsvLines":
        return self

    def __next__(self) -> str:
        number, text, problem = next(self._lines)
        if self._fresh:
            self.started, self._fresh = number, False
        self.problem = self.problem or problem
        return text

    @staticmethod
    def _read(stream: BinaryIO, file: str) -> Iterator[tuple[int, str, Problem | None]]:
        for block in lines.line_blocks(stream, file):
            if block.oversize:
                raise DataError(str(lines.too_long(Source(file, block.number), block.oversize)))
            for number, start, raw in lines.with_breaks(block):
                try:
                    yield number, lines.decode(raw, start), None
                except lines.UndecodableError as error:
                    problem = Problem(Source(file, number), str(error), "encoding")
                    yield number, raw.decode("utf-8", errors="replace"), problem


def table_rows(file: DataFile) -> Iterator[tuple[list[Row | Problem], float]]:
    """Rows of a Parquet or Arrow file in batches, and the share of the file that is read after each.

    Raises:
        DataError: the file is damaged.
    """
    try:
        first = 1
        for batch, done in _parquet_batches(file) if file.kind == "parquet" else _arrow_batches(file):
            _header(batch.schema.names, file.name, 1)
            for start in range(0, batch.num_rows, _BATCH_ROWS):
                part = batch.slice(start, _BATCH_ROWS)
                yield _rows_of(part, file.name, first + start), done
            first += batch.num_rows
    except (pa.ArrowException, OSError, EOFError, UnicodeDecodeError) as error:  # the last: in the name of a column
        text = printable(str(error)) or type(error).__name__
        raise DataError(f"{file.name}: damaged, or not {_NAMES[file.kind]}: {text}") from None


_NAMES = {"parquet": "Parquet", "arrow": "Arrow"}


def _rows_of(batch: Any, file: str, first: int) -> list[Row | Problem]:
    try:
        columns = {name: _values(name, batch.column(name)) for name in batch.schema.names}
    except _UNREADABLE:
        return [_row_of(batch.slice(place, 1), Source(file, first + place)) for place in range(batch.num_rows)]
    return [
        Row(Source(file, first + place), {name: values[place] for name, values in columns.items()})
        for place in range(batch.num_rows)
    ]


_UNREADABLE = (ArithmeticError, LookupError, ValueError)
"""What Arrow raises at a value that Python does not have: the year 30,000, a zone nobody knows, a text that is none."""


def _row_of(row: Any, source: Source) -> Row | Problem:
    """A row on its own, where some of its batch cannot be read."""
    value = {}
    for name in row.schema.names:
        try:
            (value[name],) = _values(name, row.column(name))
        except FieldError as error:
            return Problem(source, str(error), error.reason)
        except UnicodeDecodeError as error:
            return Problem(
                source, f"{printable(name, 60)}: not UTF-8: byte 0x{error.object[error.start]:02x}", "encoding"
            )
        except _UNREADABLE as error:
            return Problem(
                source, f"{printable(name, 60)}: a value that cannot be read: {printable(str(error))}", "wrong_type"
            )
    return Row(source, value)


def _values(name: str, column: Any) -> list[Any]:
    """The values of a column, those of Arrow's type JSON parsed.

    Raises:
        FieldError: one of them is not JSON.
        ArithmeticError, LookupError, ValueError: Python cannot hold one.
    """
    parse = _parser(name, column.type)
    return [parse(value) for value in column.to_pylist()] if parse else column.to_pylist()


def _parser(name: str, kind: Any) -> Callable[[Any], Any] | None:
    """What turns a value into one without JSON texts inside; `datasets` writes values of mixed types as such texts."""
    if isinstance(kind, pa.JsonType):
        return lambda value: None if value is None else from_json(printable(name, 60), value)
    if pa.types.is_struct(kind):
        parsers = {field.name: parse for field in kind if (parse := _parser(name, field.type))}
        if not parsers:
            return None
        return lambda value: value and value | {key: parse(value[key]) for key, parse in parsers.items()}
    inner = _parser(name, kind.value_type) if _is_list(kind) else None
    return (lambda value: value and [inner(item) for item in value]) if inner else None


def _is_list(kind: Any) -> bool:
    return any(is_list(kind) for is_list in (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list))


def _check_layout(batch: Any) -> None:
    """Raise ArrowInvalid where the bytes of a batch would be read outside their bounds.

    Texts are checked as bytes; those that are not UTF-8 are a problem of their row.
    """
    batch.validate()
    for column in batch.columns:
        column.cast(_as_bytes(column.type)).validate(full=True)


_BYTES = {pa.string(): pa.binary(), pa.large_string(): pa.large_binary(), pa.string_view(): pa.binary_view()}


def _as_bytes(kind: Any) -> Any:
    """A type with bytes for every text inside, where Arrow can exchange the two without looking at them."""
    if pa.types.is_struct(kind):
        return pa.struct([field.with_type(_as_bytes(field.type)) for field in kind])
    for is_list, of in _LISTS:
        if is_list(kind):
            return of(kind.value_field.with_type(_as_bytes(kind.value_type)))
    return _BYTES.get(kind, kind)


_LISTS = ((pa.types.is_list, pa.list_), (pa.types.is_large_list, pa.large_list))


def _parquet_batches(file: DataFile) -> Iterator[tuple[Any, float]]:
    with pq.ParquetFile(file.path) as parquet:
        total, done = max(1, parquet.metadata.num_rows), 0
        for batch in parquet.iter_batches(_BATCH_ROWS):
            done += batch.num_rows
            yield batch, done / total


def _arrow_batches(file: DataFile) -> Iterator[tuple[Any, float]]:
    """Batches of an Arrow file in either of its two formats."""
    with pa.memory_map(str(file.path)) as source:
        try:
            reader = pa.ipc.open_file(source)
        except pa.ArrowInvalid:
            source.seek(0)
            yield from _streamed_batches(source)
            return
        for place in range(reader.num_record_batches):
            batch = reader.get_batch(place)
            _check_layout(batch)
            yield batch, (place + 1) / reader.num_record_batches


def _streamed_batches(source: Any) -> Iterator[tuple[Any, float]]:
    """Batches of a stream, whose last bytes say that it ends, since a cut between two batches would not be seen."""
    stream = pa.ipc.open_stream(source)
    before = source.tell()
    for batch in stream:
        _check_layout(batch)
        before = source.tell()
        yield batch, before / source.size()
    if source.tell() == before:
        raise EOFError("the stream has no end; it is cut short, or still being written")
    if source.tell() < source.size():
        raise EOFError(f"{source.size() - source.tell():,} bytes follow the end of the stream")
