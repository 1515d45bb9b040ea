"""Damage every kind of source: what is wrong is named with the file and the line or row, never passed over."""

import gzip
import json
import zlib
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from bad_rows import BAD_LINES, BAD_ROWS, GOOD, NEITHER, BadRow
from bad_rows import found_in as read
from matrix import rows
from written import as_lines, ipc, parquet, table_of, text_row, turns, write, zstd

from orpo_cli.data.pairs import Row
from orpo_cli.data.rows.readers import read_rows
from orpo_cli.data.rows.sources import DatasetChoice, data_file, find_files

BOM = b"\xef\xbb\xbf"
ROWS = [text_row(), text_row("q"), text_row("s")]
TABLE = table_of(ROWS)


# Rows of JSON, packed, in folders and by patterns

TEXT_SOURCES: dict[str, Callable[[Path, bytes], Path | str]] = {
    "x.jsonl.gz": lambda folder, raw: write(folder / "x.jsonl.gz", gzip.compress(raw)),
    "x.jsonl.zst": lambda folder, raw: write(folder / "x.jsonl.zst", zstd(raw)),
    "some/b.jsonl": lambda folder, raw: write(folder / "some" / "b.jsonl", raw).parent,
    "any/b.jsonl": lambda folder, raw: f"{write(folder / 'any' / 'b.jsonl', raw).parent}/*.jsonl",
}


DAILY = ("a missing value", "a list of integers", "duplicate key", "a Latin-1 byte")
"""One row for each place where a problem is found."""


@pytest.mark.parametrize("source", TEXT_SOURCES)
@pytest.mark.parametrize("bad", rows({bad.name: (bad,) for bad in BAD_ROWS + BAD_LINES}, *DAILY))
def test_a_bad_line_is_named_through_every_source_of_text(bad: BadRow, source: str, tmp_path: Path) -> None:
    path = TEXT_SOURCES[source](tmp_path, b"\n".join([GOOD, bad.line, GOOD]))
    pairs, problems = read(path)
    assert pairs == [1, 3]
    (problem,) = problems
    assert f"{source.rpartition('/')[2]}:2: " in problem
    assert bad.said in problem


@pytest.mark.parametrize("packed", [gzip.compress, zstd])
@pytest.mark.parametrize("bad", rows({bad.name: (bad,) for bad in BAD_ROWS}, *DAILY[:-1]))
def test_a_bad_element_is_named_in_a_packed_array(
    bad: BadRow, packed: Callable[[bytes], bytes], tmp_path: Path
) -> None:
    suffix = "gz" if packed is gzip.compress else "zst"
    raw = b"[\n" + b",\n".join([GOOD, bad.line, GOOD]) + b"\n]"
    pairs, problems = read(write(tmp_path / f"x.json.{suffix}", packed(raw)))
    assert pairs == ([2] if bad.ends_array else [2, 4])
    (problem,) = problems
    assert problem.startswith(f"x.json.{suffix}:3: " if bad.ends_array else f"x.json.{suffix}:3 row 2: ")
    assert bad.said in problem


@pytest.mark.parametrize("codec", rows({name: name for name in ("utf-16", "utf-16-le", "utf-32-be")}, "utf-16-le"))
@pytest.mark.parametrize("name", ["x.json.gz", "x.jsonl.zst", "x.csv", "x.tsv", "x.csv.gz", "x.jsonl"])
def test_utf16_is_recognised_in_every_file_of_text(name: str, codec: str, tmp_path: Path) -> None:
    raw = "prompt,chosen,rejected\np,c,r\n".encode(codec)
    packed = {".gz": gzip.compress, ".zst": zstd}.get(Path(name).suffix, bytes)(raw)
    named = codec.upper().replace("-LE", "LE").replace("-BE", "BE")
    how = f"most likely {named}; write it as UTF-8: iconv -f {named} -t UTF-8 FILE > NEW_FILE"
    assert read(write(tmp_path / name, packed)) == ([], [f"{name}:1: not UTF-8, {how}"])


@pytest.mark.parametrize("name", ["x.json", "x.jsonl", "x.json.gz", "x.jsonl.zst", "x.csv", "x.tsv", "x.csv.gz", "x"])
@pytest.mark.parametrize("raw", [b"", b"\n\n", BOM])
def test_an_empty_file_of_text_has_no_rows(raw: bytes, name: str, tmp_path: Path) -> None:
    packed = {".gz": gzip.compress, ".zst": zstd}.get(Path(name).suffix, bytes)(raw)
    assert read(write(tmp_path / name, packed)) == ([], [])


@pytest.mark.parametrize("name", ["x.JSONL", "x.Json", "x.JSON.GZ", "x.CSV", "x.jsonl.ZST"])
def test_suffixes_may_be_in_capitals(name: str, tmp_path: Path) -> None:
    raw = b"prompt,chosen,rejected\np,c,r\n" if "CSV" in name else b" \n" + GOOD
    packed = {".gz": gzip.compress, ".zst": zstd}.get(Path(name).suffix.lower(), bytes)(raw)
    assert read(write(tmp_path / name, packed)) == ([2], [])


# Packed files

MANY = as_lines([text_row(str(number) * 50) for number in range(3000)])


def gzipped(raw: bytes) -> bytes:
    return gzip.compress(raw, mtime=0)


@pytest.mark.parametrize(("packed", "name"), [(gzipped, "x.jsonl.gz"), (zstd, "x.jsonl.zst")])
def test_several_packed_parts_are_one_file(packed: Callable[[bytes], bytes], name: str, tmp_path: Path) -> None:
    parts = [MANY[:10_000], MANY[10_000:10_001], b"", MANY[10_001:]]
    path = write(tmp_path / name, b"".join(map(packed, parts)))
    assert read(path) == (list(range(1, 3001)), [])
    (tmp_path / "zeros").mkdir()
    if packed is gzipped:  # zeros behind the last part, as tapes and block devices leave them
        assert read(write(tmp_path / "zeros" / name, path.read_bytes() + bytes(512)))[0] == list(range(1, 3001))


DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "a byte short": lambda raw: raw[:-1],
    "half of it": lambda raw: raw[: len(raw) // 2],
    "the first bytes": lambda raw: raw[:3],
    "not packed": lambda _: MANY,
    "something behind it": lambda raw: raw + b"more",
    "a second part cut short": lambda raw: raw + raw[: len(raw) // 2],
    "its first byte": lambda raw: b"\xff" + raw[1:],
}


@pytest.mark.parametrize(("packed", "name"), [(gzipped, "x.jsonl.gz"), (zstd, "x.json.zst"), (gzipped, "x.csv.gz")])
@pytest.mark.parametrize("damage", rows({name: name for name in DAMAGES}, "half of it", "its first byte"))
def test_a_damaged_packed_file_ends_with_its_name(
    damage: str, packed: Callable[[bytes], bytes], name: str, tmp_path: Path
) -> None:
    content = b"prompt,chosen,rejected\n" + b"p,c,r\n" * 3000 if "csv" in name else MANY
    path = write(tmp_path / name, DAMAGES[damage](packed(content)))
    _, problems = read(path)
    assert problems[-1].startswith(f"{name}: the packed file is damaged or cut short: ")
    assert "\n" not in problems[-1]


def test_a_flipped_bit_of_gzip_is_found_by_its_checksum(tmp_path: Path) -> None:
    raw = gzipped(MANY)
    for place in range(12, len(raw), 499):
        damaged = raw[:place] + bytes([raw[place] ^ 16]) + raw[place + 1 :]
        with pytest.raises((EOFError, OSError, zlib.error)):
            gzip.decompress(damaged)
        _, problems = read(write(tmp_path / "x.jsonl.gz", damaged))
        assert problems[-1].startswith("x.jsonl.gz")


def test_the_first_problem_of_a_file_that_is_damaged_further_on_comes_first(tmp_path: Path) -> None:
    raw = b"{\n" + MANY + b"x" * 600_000
    packed = gzip.compress(raw, 0)[:-9]
    pairs, problems = read(write(tmp_path / "x.jsonl.gz", packed))
    assert pairs[:2] == [2, 3]
    assert problems[0].startswith("x.jsonl.gz:1: column 2: invalid JSON")
    assert problems[-1].startswith("x.jsonl.gz: the packed file is damaged")


def test_a_packed_table_is_refused_with_the_reason(tmp_path: Path) -> None:
    for kind in ("parquet", "arrow"):
        _, problems = read(write(tmp_path / f"x.{kind}.gz", gzip.compress(b"")))
        assert problems == [
            f"x.{kind}.gz: a packed {kind} file; unpack it, {kind} files compress what they hold themselves"
        ]


# CSV and TSV

HEAD = b"prompt,chosen,rejected\n"


@pytest.mark.parametrize(
    ("raw", "lines", "said"),
    [
        (HEAD + b'p,c,"r\np,c,r\n', [], "x.csv:2: not a row of CSV: unexpected end of data"),
        (HEAD + b'p,c,r\np,"c"x,r\n', [2], "x.csv:3: not a row of CSV: ',' expected after '\"'"),
        (HEAD + b'p,c,"r\nmore",x\np,c,r\n', [4], "x.csv:2: 4 cells where the header has 3"),
        (HEAD + b"p,c\np,c,r\n", [3], "x.csv:2: 2 cells where the header has 3"),
        (HEAD + b"p,c,r,\np,c,r\n", [3], "x.csv:2: 4 cells where the header has 3"),
        (
            b"prompt,chosen,prompt\np,c,r\n",
            [],
            'x.csv:1: the column "prompt" stands twice in the header: "prompt", "cho',
        ),
        (b"\n\nprompt,chosen,prompt\n", [], 'x.csv:3: the column "prompt" stands twice'),
        (HEAD + b"p,caf\xe9,r\np,c,r\n", [3], "x.csv:2: not UTF-8: byte 0xe9 at byte 28 of the file"),
        (HEAD + b'p,"a\ncaf\xe9\nb",r\np,c,r\n', [5], "x.csv:3: not UTF-8: byte 0xe9 at byte 31 of the file"),
        (HEAD + b'p,"caf\xe9\nb",r\np,c,r\n', [4], "x.csv:2: not UTF-8: byte 0xe9 at byte 29 of the file"),
        (HEAD + b'p,"a\ncaf\xe9",r\np,c,r\n', [4], "x.csv:3: not UTF-8: byte 0xe9 at byte 31 of the file"),
        (b"prompt,caf\xe9,rejected\np,c,r\nprompt,chosen,rejected\n", [], "x.csv:1: not UTF-8: byte 0xe9 at byte 10"),
        (HEAD + b"p,c\0,r\np,c,r\n", [3], "x.csv:2: NUL byte at byte 26"),
        (
            HEAD + b"p,c,r\np" + bytes(99),
            [2],
            "x.csv:3: NUL bytes from byte 30 on: the file seems truncated by a crash",
        ),
        (
            HEAD + b'p,c,r\n"p' + bytes(9),
            [2],
            "x.csv:3: NUL bytes from byte 31 on: the file seems truncated by a crash",
        ),
        (HEAD + b'"a\n\nb",c,r\n p,,r\n', [2], 'x.csv:5: chosen: empty ("")'),
        (HEAD.replace(b"\n", b"\r") + b'p,"c\rd",r\rp,,r', [2], 'x.csv:4: chosen: empty ("")'),
        (HEAD.replace(b"\n", b"\r\n") + b'p,"c\r\nd",r\r\n\r\np,,r', [2], 'x.csv:5: chosen: empty ("")'),
        (BOM + HEAD + b"p,,r\n", [], 'x.csv:2: chosen: empty ("")'),
        (
            b"prompt,chosen,extra\np,c,r\n",
            [],
            'x.csv:2: rejected: missing; the row has "prompt", "chosen", "extra"; data',
        ),
        (b"question\np\n", [], 'x.csv:2: prompt: missing; the row has "question"'),
        (HEAD + b" \np,c,r\n", [3], "x.csv:2: 1 cells where the header has 3"),
    ],
)
def test_problems_of_csv(raw: bytes, lines: list[int], said: str, tmp_path: Path) -> None:
    pairs, problems = read(write(tmp_path / "x.csv", raw))
    assert pairs == lines
    (problem,) = problems
    assert problem.startswith(said)
    packed = read(write(tmp_path / "x.csv.gz", gzip.compress(raw)))
    assert (packed[0], [text.replace("x.csv.gz", "x.csv") for text in packed[1]]) == (pairs, problems)
    pairs, (problem,) = read(write(tmp_path / "x.tsv", raw.replace(b",", b"\t")))
    assert pairs == lines
    assert problem.startswith(said.replace("x.csv", "x.tsv").replace("CSV", "TSV").replace("','", "'\\t'"))


@pytest.mark.parametrize("raw", [HEAD, HEAD.strip(), BOM + HEAD, b"\n\n" + HEAD + b"\n\n"])
def test_a_header_alone_has_no_rows(raw: bytes, tmp_path: Path) -> None:
    assert read(write(tmp_path / "x.csv", raw)) == ([], [])


def test_newlines_of_a_cell_are_kept(tmp_path: Path) -> None:
    path = write(tmp_path / "x.csv", BOM + b'prompt\r\n"a\r\nb\rc\n\nd"\r\n\r\ne\r\n')
    found = [(row.source.line, row.value) for row in read_rows(data_file(path)) if isinstance(row, Row)]
    assert found == [(2, {"prompt": "a\r\nb\rc\n\nd"}), (8, {"prompt": "e"})]


def test_a_cell_may_be_as_long_as_a_line(tmp_path: Path) -> None:
    """Beyond that nobody knows where the next row starts: the closing quote may be on the line that is not held."""
    good = HEAD + b"p," + b"c" * 9_000_000 + b",r\np,c,r\n"
    assert read(write(tmp_path / "x.csv", good)) == ([2, 3], [])
    for cell in (b"c" * 12_000_000, b'"' + b"c" * 12_000_000 + b'"'):
        line = b"p," + cell + b",r"
        pairs, problems = read(write(tmp_path / "x.csv", HEAD + b"p,c,r\n" + line + b"\np,c,r\n"))
        assert (pairs, problems) == ([2], [f"x.csv:3: line of {len(line):,} bytes; the limit is 10,000,000"])
    cell = b'"' + (b"c" * 999 + b"\n") * 12_000 + b'"'
    pairs, problems = read(write(tmp_path / "x.csv", HEAD + b"p,c,r\np," + cell + b",r\n"))
    assert (pairs, problems) == ([2], ["x.csv:3: not a row of CSV: field larger than field limit (10000000)"])


# Parquet and Arrow

TABLE_SOURCES: dict[str, Callable[[Path, Any], Path]] = {
    "x.parquet": lambda folder, table: write(folder / "x.parquet", parquet(table)),
    "x.arrow": lambda folder, table: write(folder / "x.arrow", ipc(table, is_stream=False)),
    "y.arrow": lambda folder, table: write(folder / "y.arrow", ipc(table, is_stream=True)),
    "z": lambda folder, table: saved(folder / "z", table),
}


def saved(folder: Path, table: Any) -> Path:
    """Save a dataset as `datasets` does, but by hand, so that it may hold what `datasets` would not write."""
    write(folder / "data-00000-of-00001.arrow", ipc(table, is_stream=True))
    write(folder / "state.json", json.dumps(STATE).encode())
    write(folder / "dataset_info.json", b"{}")
    return folder


STATE = {
    "_data_files": [{"filename": "data-00000-of-00001.arrow"}],
    "_fingerprint": "0",
    "_format_columns": None,
    "_format_kwargs": {},
    "_format_type": None,
    "_output_all_columns": False,
    "_split": None,
}


def replaced(column: str, values: Any, **names: str) -> Any:
    """Return the table with another column in the place of one."""
    place = TABLE.schema.get_field_index(column)
    return TABLE.set_column(place, names.get("name", column), values)


def not_utf8(*raw: bytes) -> Any:
    """Return a column of texts that are not UTF-8."""
    offsets = [0]
    for text in raw:
        offsets.append(offsets[-1] + len(text))
    buffers = [
        None,
        pa.py_buffer(b"".join(offset.to_bytes(4, "little") for offset in offsets)),
        pa.py_buffer(b"".join(raw)),
    ]
    return pa.Array.from_buffers(pa.string(), len(raw), buffers)


MOMENT = datetime(2026, 1, 31, tzinfo=UTC)
WRONG_TYPES = [
    ("prompt", pa.array([7, 8, 9]), 1, f'prompt: {NEITHER}, found a number ("7")'),
    ("prompt", pa.array([True, False, True]), 1, f"prompt: {NEITHER}, found true or false"),
    ("chosen", pa.array([0.5, 1, 2]), 1, f"chosen: {NEITHER}, found a number"),
    ("chosen", pa.array([b"a", b"b", b"c"]), 1, f"chosen: {NEITHER}, found bytes"),
    ("chosen", pa.array([MOMENT] * 3), 1, f"chosen: {NEITHER}, found datetime"),
    ("chosen", pa.array([None] * 3), 1, f"chosen: {NEITHER}, found null"),
    ("rejected", pa.array(["a", None, "c"]), 2, f"rejected: {NEITHER}, found null"),
    ("rejected", pa.array(["a", "", "c"]), 2, 'rejected: empty ("")'),
    ("rejected", pa.array(["a", "b\0", "c"]), 2, "rejected: character U+0000 at position 2"),
    ("rejected", not_utf8(b"a", b"caf\xe9", b"c"), 2, "rejected: not UTF-8: byte 0xe9"),
    ("rejected", not_utf8(b"a", b"\xed\xa0\x80", b"c"), 2, "rejected: not UTF-8: byte 0xed"),
    (
        "rejected",
        pa.array([[1], [2], [3]]),
        1,
        'rejected[0]: expected a text or a list of messages, found a number ("1")',
    ),
    ("rejected", pa.array([[]] * 3, pa.list_(pa.string())), 1, "rejected: an empty list of messages"),
    ("rejected", pa.array([{"a": 1}] * 3), 1, f"rejected: {NEITHER}, found an object"),
    (
        "rejected",
        pa.array([turns("a")] * 3),
        1,
        "rejected: expected one message of the assistant, found the roles user",
    ),
]


@pytest.mark.parametrize("source", TABLE_SOURCES)
@pytest.mark.parametrize(
    ("column", "values", "row", "said"), WRONG_TYPES, ids=lambda value: value if isinstance(value, str) else ""
)
def test_a_wrong_value_of_a_table_is_named_with_its_row(
    column: str, values: Any, row: int, said: str, source: str, tmp_path: Path
) -> None:
    path = TABLE_SOURCES[source](tmp_path, replaced(column, values))
    pairs, problems = read(path)
    assert problems[0].startswith(f"{source}:{row}: {said}")
    if row == 2:
        assert (pairs, len(problems)) == ([1, 3], 1)
    else:
        assert (pairs, len(problems)) == ([], 3)


@pytest.mark.parametrize("source", TABLE_SOURCES)
def test_a_missing_column_of_a_table_is_named(source: str, tmp_path: Path) -> None:
    path = TABLE_SOURCES[source](tmp_path, replaced("rejected", pa.array(["a", "b", "c"]), name="worse"))
    _, problems = read(path)
    assert problems[0].startswith(
        f'{source}:1: rejected: missing; the row has "prompt", "chosen", "worse"; data.columns'
    )
    assert len(problems) == 3


@pytest.mark.parametrize("source", ["x.parquet", "x.arrow", "y.arrow"])
def test_a_column_that_stands_twice_is_refused(source: str, tmp_path: Path) -> None:
    table = replaced("rejected", pa.array(["a", "b", "c"]), name="chosen")
    said = 'the column "chosen" stands twice in the header: "prompt", "chosen", "chosen"'
    assert read(TABLE_SOURCES[source](tmp_path, table)) == ([], [f"{source}:1: {said}"])


@pytest.mark.parametrize("source", TABLE_SOURCES)
def test_a_table_without_rows_has_none(source: str, tmp_path: Path) -> None:
    assert read(TABLE_SOURCES[source](tmp_path, TABLE.slice(0, 0))) == ([], [])


def test_a_text_deep_inside_that_is_not_utf8_is_named_with_its_row(tmp_path: Path) -> None:
    roles = pa.array(["assistant"] * 3)
    messages = pa.StructArray.from_arrays([roles, not_utf8(b"a", b"b", b"caf\xe9")], ["role", "content"])
    column = pa.ListArray.from_arrays(pa.array([0, 1, 2, 3], pa.int32()), messages)
    for source in ("x.parquet", "x.arrow", "y.arrow"):
        pairs, problems = read(TABLE_SOURCES[source](tmp_path, replaced("chosen", column)))
        assert (pairs, problems) == ([1, 2], [f"{source}:3: chosen: not UTF-8: byte 0xe9"])


@pytest.mark.parametrize("source", TABLE_SOURCES)
@pytest.mark.parametrize(
    "kind",
    [
        pa.large_string(),
        pa.string_view(),
        pa.dictionary(pa.int32(), pa.string()),
    ],
    ids=str,
)
def test_texts_may_be_of_any_type_of_text(kind: Any, source: str, tmp_path: Path) -> None:
    table = TABLE.cast(pa.schema([(name, kind) for name in TABLE.schema.names]))
    assert read(TABLE_SOURCES[source](tmp_path, table)) == ([1, 2, 3], [])


@pytest.mark.parametrize("source", ["x.parquet", "x.arrow", "y.arrow"])
def test_columns_that_nobody_reads_may_hold_anything(source: str, tmp_path: Path) -> None:
    others = {
        "moment": pa.array([MOMENT] * 3, pa.timestamp("us", "Europe/Rome")),
        "nanoseconds": pa.array([1, 2, 3], pa.timestamp("ns")),
        "bytes": pa.array([b"\xff", None, b""]),
        "embedding": pa.array([[0.5] * 4] * 3, pa.list_(pa.float32(), 4)),
        "map": pa.array([[("a", 1)], None, []], pa.map_(pa.string(), pa.int64())),
        "price": pa.array([1, 2, 3]).cast(pa.decimal128(30, 2)),
        "nothing": pa.nulls(3),
    }
    table = TABLE
    for name, column in others.items():
        table = table.append_column(name, column)
    assert read(TABLE_SOURCES[source](tmp_path, table)) == ([1, 2, 3], [])


@pytest.mark.parametrize("source", TABLE_SOURCES)
def test_a_value_that_python_does_not_have_is_named_with_its_column(source: str, tmp_path: Path) -> None:
    """A value has to be converted to know the row, as a line of JSON has to be parsed."""
    moments = pa.array([0, 2**50, 1], pa.timestamp("ms"))
    pairs, problems = read(TABLE_SOURCES[source](tmp_path, TABLE.append_column("moment", moments)))
    assert pairs == [1, 3]
    assert [problem.split("read: ")[0] for problem in problems] == [f"{source}:2: moment: a value that cannot be "]


def json_column(*values: Any) -> Any:
    return pa.array([None if value is None else json.dumps(value) for value in values], pa.json_())


@pytest.mark.parametrize("source", TABLE_SOURCES)
def test_values_that_a_table_holds_as_json_are_read(source: str, tmp_path: Path) -> None:
    """`datasets` writes a column of mixed types this way; a text would be trained on with its quotes."""
    table = replaced("chosen", json_column("c", turns("", "c")[1:], 7))
    messages = pa.ListArray.from_arrays(pa.array([0, 1, 1, 2], pa.int32()), json_column(*turns("q"), *turns("q")))
    table = table.set_column(0, "prompt", messages)
    path = TABLE_SOURCES[source](tmp_path, table)
    (file,) = find_files(str(path), DatasetChoice())
    values = [row.value for row in read_rows(file) if isinstance(row, Row)]
    assert [value["chosen"] for value in values] == ["c", turns("", "c")[1:], 7]
    assert [value["prompt"] for value in values] == [turns("q"), [], turns("q")]
    _, problems = read(path)
    assert [problem.partition(": ")[2] for problem in problems] == [
        "prompt: an empty list of messages",
        f'chosen: {NEITHER}, found a number ("7")',
    ]
    if source == "x.arrow":
        broken = replaced("chosen", pa.array(['"c"', "{", '{"a": 1, "a": 2}'], pa.json_()))
        pairs, problems = read(TABLE_SOURCES[source](tmp_path, broken))
        assert pairs == [1]
        assert problems == [
            'x.arrow:2: chosen: expected JSON, found "{"',
            'x.arrow:3: chosen: "a": key stands twice in one object',
        ]


@pytest.mark.parametrize("source", ["x.parquet", "x.arrow", "y.arrow"])
@pytest.mark.parametrize("cut", rows({str(cut): cut for cut in (0, 1, 8, 0.3, 0.6, -9, -1)}, "0", "0.6", "-1"))
def test_a_table_that_is_cut_short_ends_with_its_name(cut: float, source: str, tmp_path: Path) -> None:
    table = pa.concat_tables([TABLE] * 5000).combine_chunks()
    path = TABLE_SOURCES[source](tmp_path, table)
    raw = path.read_bytes()
    path.write_bytes(raw[: int(len(raw) * cut) if isinstance(cut, float) else cut])
    pairs, (problem,) = read(path)
    assert pairs == (list(range(1, 15_001)) if source == "y.arrow" and cut == -1 else [])
    assert problem.startswith(f"{source}: damaged, or not {'Parquet' if source == 'x.parquet' else 'Arrow'}: ")
    assert "\n" not in problem


@pytest.mark.parametrize("source", ["x.parquet", "x.arrow"])
@pytest.mark.parametrize(
    "raw", [b"garbage" * 1000, GOOD, b"PAR1", b"PAR1" * 9, b"ARROW1\0\0" * 9, bytes(5000), b"\xff" * 64]
)
def test_a_table_that_is_none_ends_with_its_name(raw: bytes, source: str, tmp_path: Path) -> None:
    pairs, (problem,) = read(write(tmp_path / source, raw))
    assert pairs == []
    assert problem.startswith(f"{source}: damaged, or not ")


def test_a_stream_that_ends_between_two_batches_is_cut_short(tmp_path: Path) -> None:
    """The last eight bytes say that it ends; nothing else would tell that a batch is missing."""
    one, two = (ipc(pa.concat_tables([TABLE] * count), is_stream=True) for count in (1, 2))
    said = "x.arrow: damaged, or not Arrow: "
    for raw in (one[:-8], two[:-8], two[: len(one) - 8]):
        pairs, problems = read(write(tmp_path / "x.arrow", raw))
        assert problems == [f"{said}the stream has no end; it is cut short, or still being written"]
        assert len(pairs) in (3, 6)
    pairs, problems = read(write(tmp_path / "x.arrow", one + two))
    assert (pairs, problems) == ([1, 2, 3], [f"{said}{len(two)} bytes follow the end of the stream"])


def test_rows_of_a_table_are_numbered_through_its_batches(tmp_path: Path) -> None:
    batches = [
        *TABLE.to_batches(),
        *TABLE.slice(0, 0).to_batches(),
        *replaced("chosen", pa.array(["", "b", ""])).to_batches(),
    ]
    path = write(tmp_path / "x.arrow", ipc(pa.Table.from_batches(batches), is_stream=False))
    assert read(path) == ([1, 2, 3, 5], ['x.arrow:4: chosen: empty ("")', 'x.arrow:6: chosen: empty ("")'])
    many = table_of([text_row(chosen="" if number in (1000, 2500) else "c") for number in range(3000)])
    for source in ("x.parquet", "x.arrow", "y.arrow"):
        _, problems = read(TABLE_SOURCES[source](tmp_path, many))
        assert [problem.split(": ")[0] for problem in problems] == [f"{source}:1001", f"{source}:2501"]
