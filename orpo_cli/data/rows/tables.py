"""Read rows from CSV, TSV, Parquet and Arrow files.

A row of Parquet or Arrow is numbered from 1, one of a text file by the line it starts on.
"""

import csv
import itertools
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from orpo_cli.data.pairs import Problem, ProblemError, Row, Source
from orpo_cli.data.rows import text_lines
from orpo_cli.data.rows.sources import DataFile
from orpo_cli.data.rows.strict_json import from_json
from orpo_cli.errors import DataError
from orpo_cli.quoting import listed, printable, shortened

_BATCH_ROWS = 1000


def csv_rows(stream: BinaryIO, file: DataFile) -> Iterator[Row | Problem]:
    """Yield the rows of a CSV or TSV file with a header, each a dict of texts; the header tells `,` from `;`.

    Raises:
        DataError: if the header cannot be read or names a column twice, or if nobody knows where the next row starts:
            at a quote that is never closed, or a line over the limit.
    """
    csv.field_size_limit(text_lines.MAX_LINE_BYTES)
    problems: list[Problem] = []
    delimiter, texts = _delimited(_csv_lines(stream, file.name, problems), file.kind)
    reader = csv.reader(texts, delimiter=delimiter, strict=True)
    header: list[str] | None = None
    while True:
        source = Source(file.name, reader.line_num + 1)
        try:
            cells = next(reader, None)
        except csv.Error as error:
            text = f"{source}: not a row of {file.kind.upper()}: {printable(str(error))}"
            raise DataError(str(problems[0]) if problems else text) from None
        found, problems[:] = problems[:], []
        if cells is None:
            return
        if found and header is None:
            raise DataError(str(found[0]))
        if found:
            yield found[0]
        elif not cells:
            continue
        elif header is None:
            header = cells
            _refuse_repeated(header, source)
        elif len(cells) != len(header):
            yield Problem(source, f"{len(cells)} cells where the header has {len(header)}", "not_csv")
        else:
            yield Row(source, dict(zip(header, cells, strict=True)))


def _delimited(texts: Iterator[str], kind: str) -> tuple[str, Iterator[str]]:
    """Return what separates the cells, by the header, and all the lines again: spreadsheets also write `;` and tabs."""
    head = list[str]()
    for text in texts:
        head.append(text)
        if text.strip():
            break
    unquoted = _QUOTED.sub("", "".join(head))
    return "\t" if kind == "tsv" else max(",;\t", key=unquoted.count), itertools.chain(head, texts)


_QUOTED = re.compile(r'"[^"]*"')


def _csv_lines(stream: BinaryIO, file: str, problems: list[Problem]) -> Iterator[str]:
    """Yield all lines of a file with their breaks, as the csv module wants them.

    A line that is not text adds to `problems`, but keeps its quotes and separators, so that the reader can go on.
    """
    for block in text_lines.line_blocks(stream, file):
        advice: str | None = None
        for number, start, raw in text_lines.with_breaks(block):
            source = Source(file, number)
            if problem := text_lines.too_long(raw.rstrip(b"\r\n"), source):
                raise DataError(str(problem))
            try:
                yield text_lines.decode(raw, start)
            except text_lines.UndecodableError as error:
                advice = text_lines.advice(block.raw, error.place - block.offset) if advice is None else advice
                problems.append(Problem(source, f"{error}{advice}", "encoding"))
                yield raw.decode("utf-8", errors="replace")


def _refuse_repeated(columns: Sequence[str], source: Source) -> None:
    for name, count in Counter(columns).items():
        if count > 1:
            raise DataError(f"{source}: the column {shortened(name)} stands twice in the header: {listed(columns)}")


def table_rows(file: DataFile) -> Iterator[tuple[list[Row | Problem], float]]:
    """Yield the rows of a Parquet or Arrow file in batches, each with the share of the file that is read after it.

    Raises:
        DataError: if the file is damaged.
    """
    name, batches = ("Parquet", _parquet_batches) if file.kind == "parquet" else ("Arrow", _arrow_batches)
    try:
        first = 1
        for batch, done in batches(file):
            _refuse_repeated(batch.schema.names, Source(file.name, 1))
            for start in range(0, batch.num_rows, _BATCH_ROWS):
                yield _rows_of(batch.slice(start, _BATCH_ROWS), file.name, first + start), done
            first += batch.num_rows
    except (pa.ArrowException, OSError, EOFError, UnicodeDecodeError) as error:  # the last: in the name of a column
        text = printable(str(error)) or type(error).__name__
        raise DataError(f"{file.name}: damaged, or not {name}: {text}") from None


def _rows_of(batch: Any, file: str, first: int) -> list[Row | Problem]:
    """Return the rows of a batch; where one cannot be read, each is read alone to find it."""
    places = range(batch.num_rows)
    try:
        columns = {name: _values(printable(name, 60), batch.column(name)) for name in batch.schema.names}
    except ProblemError as error:
        if len(places) == 1:
            return [error.problem(Source(file, first))]
        return [row for place in places for row in _rows_of(batch.slice(place, 1), file, first + place)]
    return [
        Row(Source(file, first + place), {name: values[place] for name, values in columns.items()}) for place in places
    ]


def _values(name: str, column: Any) -> list[Any]:
    """Return the values of a column, with those of Arrow's type JSON parsed.

    Raises:
        ProblemError: if one of them is not JSON, or Python cannot hold it.
    """
    parse = _parser(name, column.type)
    try:
        return [parse(value) for value in column.to_pylist()] if parse else column.to_pylist()
    except ProblemError:
        raise
    except UnicodeDecodeError as error:
        raise ProblemError(f"{name}: not UTF-8: byte 0x{error.object[error.start]:02x}", "encoding") from None
    except (ArithmeticError, LookupError, ValueError) as error:  # a date beyond the year 9999, an unknown time zone
        raise ProblemError(f"{name}: a value that cannot be read: {printable(str(error))}", "wrong_type") from None


def _parser(name: str, kind: Any) -> Callable[[Any], Any] | None:
    """Return what parses the JSON inside a value; `datasets` writes a column of mixed types as texts of JSON."""
    if isinstance(kind, pa.JsonType):
        return lambda value: None if value is None else from_json(name, value)
    if pa.types.is_struct(kind):
        parsers = {field.name: parse for field in kind if (parse := _parser(name, field.type))}
        if not parsers:
            return None
        return lambda value: value and value | {key: parse(value[key]) for key, parse in parsers.items()}
    is_list = pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
    inner = _parser(name, kind.value_type) if is_list else None
    return (lambda value: value and [inner(item) for item in value]) if inner else None


def _parquet_batches(file: DataFile) -> Iterator[tuple[Any, float]]:
    with pq.ParquetFile(file.path) as parquet:
        total, done = max(1, parquet.metadata.num_rows), 0
        for batch in parquet.iter_batches(_BATCH_ROWS):
            done += batch.num_rows
            yield batch, done / total


def _arrow_batches(file: DataFile) -> Iterator[tuple[Any, float]]:
    with pa.memory_map(str(file.path)) as source:
        try:
            reader = pa.ipc.open_file(source)
        except pa.ArrowInvalid:
            source.seek(0)
            batches = _streamed_batches(source)
        else:
            count = reader.num_record_batches
            batches = ((reader.get_batch(place), (place + 1) / count) for place in range(count))
        for batch, done in batches:
            _check_layout(batch)
            yield batch, done


def _check_layout(batch: Any) -> None:
    """Raise ArrowInvalid if the bytes of a batch would be read outside their bounds.

    Texts are checked as bytes; one that is not UTF-8 is a problem of its row.
    """
    batch.validate()
    for column in batch.columns:
        column.cast(_as_bytes(column.type)).validate(full=True)


def _as_bytes(kind: Any) -> Any:
    """Return a type with bytes for every text inside, where Arrow can exchange the two without looking at them."""
    if pa.types.is_struct(kind):
        return pa.struct([field.with_type(_as_bytes(field.type)) for field in kind])
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        of = pa.list_ if pa.types.is_list(kind) else pa.large_list
        return of(kind.value_field.with_type(_as_bytes(kind.value_type)))
    return _BYTES.get(kind, kind)


_BYTES = {pa.string(): pa.binary(), pa.large_string(): pa.large_binary(), pa.string_view(): pa.binary_view()}


def _streamed_batches(source: Any) -> Iterator[tuple[Any, float]]:
    """Yield the batches of a stream. Its last bytes have to say that it ends; nothing else shows a cut after one."""
    stream = pa.ipc.open_stream(source)
    before = source.tell()
    for batch in stream:
        before = source.tell()
        yield batch, before / source.size()
    if source.tell() == before:
        raise EOFError("the stream has no end; it is cut short, or still being written")
    if source.tell() < source.size():
        raise EOFError(f"{source.size() - source.tell():,} bytes follow the end of the stream")
