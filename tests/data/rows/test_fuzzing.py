"""Read any bytes under any name: they end in rows, in problems with a line of the file, or in a typed error."""

import gzip
import random
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import yaml
from bad_rows import BAD_LINES, BAD_ROWS, GOOD
from hypothesis import given, settings
from hypothesis import strategies as st
from written import SHAPES, as_array, as_cells, as_lines, ipc, parquet, table_of, write, zstd

from orpo_cli.config.data import FORMATS, ColumnsConfig, DataConfig
from orpo_cli.config.keys import builtin_configs
from orpo_cli.data.pairs import Problem, Row
from orpo_cli.data.rows.readers import read_rows
from orpo_cli.data.rows.sources import DataFile, DatasetChoice, find_files
from orpo_cli.data.rows.text_lines import count_breaks
from orpo_cli.data.shapes.conversion import extra_keys, to_pairs
from orpo_cli.data.shapes.recognition import find_shape
from orpo_cli.errors import ConfigError, DataError, InputNotFoundError

DEFAULTS = yaml.safe_load((builtin_configs() / "data" / "file.yaml").read_text())
COLUMNS = ColumnsConfig(**DEFAULTS["columns"])
SHAPE_ROWS = 20


def config(name: str) -> DataConfig:
    return DataConfig(**DEFAULTS | {"path": "x", "columns": COLUMNS, "format": name})


CONFIGS = {name: config(name) for name in ("auto", *FORMATS)}


def read(path: Path, dataset: DatasetChoice, name: str) -> tuple[int, str]:
    """Return how many rows a path holds, and the typed error that ends them; check everything they say."""
    count = 0
    try:
        for file in find_files(str(path), dataset):
            head: list[Row] = []
            for item in read_rows(file):
                count += 1
                check_place(item, file)
                if isinstance(item, Row) and len(head) < SHAPE_ROWS:
                    head.append(item)
            shape = find_shape(head, CONFIGS[name], file.has_cells)
            for row in head:
                made = to_pairs(row, shape)
                assert made
                assert all(key.encode("utf-8", "surrogatepass") for key in extra_keys(row, shape) if key)
                if isinstance(made, Problem):
                    check_place(made, file)
    except (DataError, InputNotFoundError, ConfigError) as error:
        check_text(str(error), path)
        return count, type(error).__name__
    return count, ""


def check_place(item: Row | Problem, file: DataFile) -> None:
    assert item.source.file == file.name
    assert 1 <= item.source.line <= last_line(file)
    if isinstance(item, Problem):
        check_text(str(item), file.path.parent)


def check_text(text: str, path: Path) -> None:
    """Check that a message fits on a screen, can be printed, and names the file."""
    assert text.isprintable()
    assert text.encode()
    assert len(text.replace(str(path), "")) < 700
    assert str(path) in text


def last_line(file: DataFile) -> int:
    """Count the lines of a file of text; no table here has more rows than this."""
    if file.kind in ("parquet", "arrow"):
        return 100_000
    if file.packing:
        return 10_000_000  # what a damaged file holds nobody knows
    return count_breaks(file.path.read_bytes()) + 1


def packed(raw: bytes, name: str) -> bytes:
    return {".gz": lambda raw: gzip.compress(raw, mtime=0), ".zst": zstd}.get(Path(name).suffix, bytes)(raw)


NAMES = [
    "x.json",
    "x.jsonl",
    "x.ndjson",
    "x.csv",
    "x.tsv",
    "x.txt",
    "x",
    "x.json.gz",
    "x.csv.gz",
    "x.jsonl.zst",
    "x.gz",
]
NAMES += ["x.parquet", "x.arrow", "x.parquet.gz", "x.csv.zstd"]

PIECES = (
    b"""[ ] { } , : " \\ \\u d800 1 - e9 . NaN null true "prompt" "chosen" "rejected" "responses" "scores" "role" """
)
PIECES += b""" "content" "from" "value" "user" "assistant" prompt chosen weight Human: Assistant: PAR1 ARROW1 """
BYTES = [
    b"\xff",
    b"\xfe",
    b"\xef\xbb\xbf",
    b"\0",
    b"\xe2\x80\xa8",
    b"\n",
    b"\r",
    b"\t",
    b"\v",
    b" ",
    b"\n\n",
    b'""',
    b"[" * 1100,
    b"9" * 4400,
]
pieces = st.lists(st.sampled_from(PIECES.split() + BYTES + [bad.line for bad in BAD_ROWS + BAD_LINES]), max_size=25)
some_bytes = st.binary(max_size=300) | pieces.map(b"".join)


@given(some_bytes, st.sampled_from(NAMES), st.sampled_from(list(CONFIGS)), st.booleans())
@settings(max_examples=600, deadline=None)
def test_any_bytes_end_in_rows_or_a_typed_error(raw: bytes, name: str, format_: str, is_packed: bool) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = write(Path(folder) / name, packed(raw, name) if is_packed else raw)
        read(path, DatasetChoice(), format_)


# Valid files that are damaged a little


def cells(separator: str) -> Callable[[Any], bytes]:
    return lambda values: as_cells(values, separator)[0]


def compressed(table: Any) -> bytes:
    """Return an Arrow file whose buffers are compressed."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, table.schema, options=pa.ipc.IpcWriteOptions(compression="zstd")) as writer:
        writer.write_table(table)
    raw: bytes = sink.getvalue().to_pybytes()
    return raw


def with_other_types(values: Any) -> Any:
    """Return a table with more types than texts: dictionaries, maps, views, decimals, moments, JSON."""
    table = table_of(values)
    count = table.num_rows
    others = {
        "dictionary": pa.array(["a", "b"] * count)[:count].dictionary_encode(),
        "map": pa.array([[("a", 1), ("b", 2)]] * count, pa.map_(pa.string(), pa.int64())),
        "view": pa.array(["long enough not to be inlined"] * count, pa.string_view()),
        "large": pa.array([["a", "é"]] * count, pa.large_list(pa.large_string())),
        "fixed": pa.array([[0.5, 1.5]] * count, pa.list_(pa.float32(), 2)),
        "price": pa.array([1] * count).cast(pa.decimal128(30, 2)),
        "moment": pa.array([1] * count, pa.timestamp("us", "UTC")),
        "day": pa.array([1] * count, pa.date32()),
        "json": pa.array(['{"a": [1]}'] * count, pa.json_()),
        "flag": pa.array([True, None] * count)[:count],
    }
    for name, column in others.items():
        table = table.append_column(name, column)
    return table


WRITERS: Mapping[str, Callable[[Any], bytes]] = {
    "x.json": as_array,
    "x.jsonl": as_lines,
    "x.json.gz": lambda values: packed(as_array(values), "x.gz"),
    "x.jsonl.zst": lambda values: zstd(as_lines(values)),
    "x.csv": cells(","),
    "x.tsv": cells("\t"),
    "x.csv.gz": lambda values: packed(as_cells(values, ",")[0], "x.gz"),
    "x.parquet": lambda values: parquet(table_of(values)),
    "y.parquet": lambda values: parquet(with_other_types(values)),
    "x.arrow": lambda values: ipc(table_of(values), is_stream=False),
    "y.arrow": lambda values: ipc(with_other_types(values), is_stream=True),
    "z.arrow": lambda values: compressed(with_other_types(values)),
    "a/x.jsonl": as_lines,
    "saved/data-00000-of-00001.arrow": lambda values: ipc(table_of(values), is_stream=True),
    "saved/state.json": lambda _: b'{"_data_files": [{"filename": "data-00000-of-00001.arrow"}], "_split": null}',
}


def damaged(raw: bytes, luck: random.Random) -> bytes:
    """Flip a few bits, cut out, double, put in or zero a piece, or cut off the end."""
    changed = bytearray(raw)
    for _ in range(luck.choice([1, 1, 1, 2, 5, 30])):
        place = luck.randrange(len(changed) + 1)
        size = luck.choice([1, 1, 2, 4, 8, luck.randrange(1 + len(changed))])
        kind = luck.randrange(8)
        if kind < 3 and place < len(changed):
            changed[place] ^= 1 << luck.randrange(8)
        elif kind == 3:
            del changed[place : place + size]
        elif kind == 4:
            changed[place:place] = changed[place : place + size]
        elif kind == 5:
            changed[place:place] = luck.choice(BYTES + PIECES.split() + [luck.randbytes(4), GOOD])
        elif kind == 6:
            changed[place : place + size] = luck.choice([b"\0", b"\xff"]) * min(size, len(changed) - place)
        else:
            del changed[place:]
    return bytes(changed)


def one_damaged_file(seed: int, folder: Path) -> tuple[int, str]:
    """Damage one file of one kind and shape, and read it. The seed decides all."""
    luck = random.Random(seed)
    values = luck.choice(list(SHAPES.values()))
    name = luck.choice(list(WRITERS))
    for other, writer in WRITERS.items():
        if other == name or (other.startswith("saved/") and name.startswith("saved/")):
            raw = writer(values)
            write(folder / other, damaged(raw, luck) if other == name else raw)
    path = folder / (name.partition("/")[0] if "/" in name else name)
    return read(path, DatasetChoice(), luck.choice(list(CONFIGS)))


@given(st.integers(0, 2**64))
@settings(max_examples=400, deadline=None)
def test_a_damaged_file_ends_in_rows_or_a_typed_error(seed: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        one_damaged_file(seed, Path(folder))


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_damaged_files_of_half_a_minute_end_in_rows_or_a_typed_error(tmp_path: Path) -> None:
    """Prints the seed of what fails: `one_damaged_file(seed, folder)` does it again."""
    begin, seed = time.monotonic(), int(time.time()) * 1_000_000
    ends: dict[str, int] = {}
    while time.monotonic() < begin + 30:
        seed += 1
        with tempfile.TemporaryDirectory(dir=tmp_path) as folder:
            print(f"one_damaged_file({seed}, folder)")
            _, end = one_damaged_file(seed, Path(folder))
        ends[end] = ends.get(end, 0) + 1
    assert ends[""] > 100
    assert ends["DataError"] > 100
