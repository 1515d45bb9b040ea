"""Read bytes as rows: every problem of a file is named with its line, and nothing else ever comes out."""

import io
import json
import re
import tempfile
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from bad_rows import BAD_LINES, BAD_ROWS, GOOD, BadRow, found_in, row
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from matrix import rows

from orpo_cli.data.pairs import Problem, Row
from orpo_cli.data.rows import text_lines
from orpo_cli.data.rows.readers import read_rows
from orpo_cli.data.rows.sources import DatasetChoice, data_file, find_files
from orpo_cli.data.shapes.conversion import to_pairs
from orpo_cli.data.shapes.shape import Shape
from orpo_cli.errors import DataError, InputNotFoundError

FIELDS = ("prompt", "chosen", "rejected")
SHAPE = Shape("pairs", {field: field for field in FIELDS}, pairs="all", min_score_gap=0.0, cells=False)
LATIN_1 = GOOD.replace(b"c", b"\xe9", 1)
BOM = b"\xef\xbb\xbf"


def read(path: Path, raw: bytes) -> tuple[list[int], list[str]]:
    path.write_bytes(raw)
    return found_in(path)


names = {"ids": lambda bad: bad.name if isinstance(bad, BadRow) else None}


@pytest.mark.parametrize("bad", BAD_ROWS + BAD_LINES, **names)
def test_a_bad_line_is_named_and_its_neighbours_are_kept(bad: BadRow, tmp_path: Path) -> None:
    pairs, problems = read(tmp_path / "x.jsonl", b"\n".join([GOOD, bad.line, GOOD]))
    assert pairs == [1, 3]
    assert len(problems) == 1
    assert problems[0].startswith("x.jsonl:2: ")
    assert bad.said in problems[0]


@pytest.mark.parametrize("bad", BAD_ROWS, **names)
def test_a_bad_element_is_named_and_its_neighbours_are_kept_where_they_can_be(bad: BadRow, tmp_path: Path) -> None:
    pairs, problems = read(tmp_path / "x.json", b"[\n" + b",\n".join([GOOD, bad.line, GOOD]) + b"\n]\n")
    assert pairs == ([2] if bad.ends_array else [2, 4])
    assert len(problems) == 1
    assert problems[0].startswith("x.json:3: " if bad.ends_array else "x.json:3 row 2: ")
    assert bad.said in problems[0]


@pytest.mark.parametrize("bad", [bad for bad in BAD_ROWS + BAD_LINES if bad.line[:1] != b"["], **names)
def test_the_first_line_may_be_the_bad_one(bad: BadRow, tmp_path: Path) -> None:
    pairs, problems = read(tmp_path / "x.jsonl", bad.line + b"\n" + GOOD)
    assert pairs == [2]
    assert len(problems) == 1
    assert problems[0].startswith("x.jsonl:1: ")


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        (b"[\n" + GOOD + b",\n" + GOOD, "x.json:3: expected `,` or `]` after an element, found the end of the file"),
        (b"[\n" + GOOD + b"\n" + GOOD + b"]", "x.json:3: expected `,` or `]` after an element"),
        (b"[\n" + GOOD + b",\n]", "x.json:3: column 1: invalid JSON"),
        (b"[\n" + GOOD + b"\n]\n]", 'x.json:4: unexpected text after the array: "]"'),
        (
            b"[\r\n" + GOOD + b",\r\n" + LATIN_1 + b"]",
            "x.json:3: not UTF-8: byte 0xe9 at byte 70",
        ),
        (b"[\r" + GOOD + b",\r" + LATIN_1 + b"]", "x.json:3: not UTF-8: byte 0xe9 at byte 68"),
        (BOM + b"[\n" + LATIN_1 + b"]", "x.json:2: not UTF-8: byte 0xe9 at byte 22"),
        (b"[\n" + GOOD.replace(b"p", b"a\0b", 1) + b"]", "x.json:2: NUL byte at byte"),
        (
            b"[\n" + GOOD + b",\n" + b"\0" * 50,
            "x.json:3: NUL bytes from byte 51 on: the file seems truncated by a crash",
        ),
        (b'[\r{"a" 1}]', "x.json:2: column 6: invalid JSON"),
        (b"\v[" + GOOD + b"]", "x.json:1: "),
        (b"\n\xa0[" + GOOD + b"]", "x.json:2: not UTF-8: byte 0xa0 at byte 1"),
    ],
)
def test_a_damaged_array_ends_with_its_line(raw: bytes, said: str, tmp_path: Path) -> None:
    pairs, problems = read(tmp_path / "x.json", raw)
    assert pairs in ([], [2], [2, 3])
    assert len(problems) == 1
    assert problems[0].startswith(said)


@pytest.mark.parametrize("suffix", [".json", ".jsonl"])
@pytest.mark.parametrize("codec", ["utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-le", "utf-32-be"])
@pytest.mark.parametrize("text", rows({"a line": f"{GOOD.decode()}\n", "an array": f"[{GOOD.decode()}]"}, "an array"))
def test_utf16_is_recognised_with_and_without_a_mark(text: str, codec: str, suffix: str, tmp_path: Path) -> None:
    pairs, problems = read(tmp_path / f"x{suffix}", text.encode(codec))
    assert pairs == []
    named = codec.upper().replace("-LE", "LE").replace("-BE", "BE")
    how = f"most likely {named}; write it as UTF-8: iconv -f {named} -t UTF-8 FILE > NEW_FILE"
    assert problems == [f"x{suffix}:1: not UTF-8, {how}"]


@pytest.mark.parametrize("mark", ["\ufeff"])
@pytest.mark.parametrize("codec", ["utf-16-le", "utf-16-be", "utf-32-le", "utf-32-be"])
def test_a_byte_order_mark_of_either_end_is_recognised(codec: str, mark: str, tmp_path: Path) -> None:
    assert f"most likely {codec[:6].upper()};" in read(tmp_path / "x.jsonl", (mark + GOOD.decode()).encode(codec))[1][0]


def test_a_tail_of_nul_bytes_is_called_a_crash(tmp_path: Path) -> None:
    pairs, problems = read(tmp_path / "x.jsonl", GOOD + b"\n" + GOOD[:20] + b"\0" * 500)
    assert pairs == [1]
    assert problems == ["x.jsonl:2: NUL bytes from byte 68 on: the file seems truncated by a crash"]


@pytest.mark.parametrize("suffix", [".json", ".jsonl"])
@pytest.mark.parametrize("newline", [b"\n", b"\r\n", b"\r"])
@pytest.mark.parametrize("mark", [b"", BOM], ids=["plain", "bom"])
def test_newlines_and_the_utf8_mark_are_all_fine(mark: bytes, newline: bytes, suffix: str, tmp_path: Path) -> None:
    rows = newline.join([GOOD, GOOD, b"", GOOD])
    assert read(tmp_path / f"x{suffix}", mark + rows) == ([1, 2, 4], [])
    assert read(tmp_path / f"x{suffix}", mark + rows + newline) == ([1, 2, 4], [])
    array = newline.join([b"[", GOOD + b",", b"", GOOD, b"]"])
    assert read(tmp_path / f"x{suffix}", mark + array + newline) == ([2, 4], [])


def test_mixed_newlines_count_as_lines(tmp_path: Path) -> None:
    raw = GOOD + b"\r\n" + GOOD + b"\r" + GOOD + b"\n\r" + GOOD + b"\r\r\nx"
    pairs, problems = read(tmp_path / "x.jsonl", raw)
    assert pairs == [1, 2, 3, 5]
    assert problems[0].startswith("x.jsonl:7: ")


@pytest.mark.parametrize("separator", ["\u2028", "\u2029", "\u0085"])
@pytest.mark.parametrize("wrap", [lambda raw: raw, lambda raw: b"[" + raw + b"]"], ids=["lines", "array"])
def test_line_separators_inside_a_string_are_text(wrap: Any, separator: str, tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    path.write_bytes(wrap(json.dumps({"prompt": f"a{separator}b"}, ensure_ascii=False).encode()))
    assert [(found.source.line, found.value) for found in read_rows(data_file(path))] == [
        (1, {"prompt": f"a{separator}b"})
    ]


def test_only_the_first_mark_of_a_file_is_dropped(tmp_path: Path) -> None:
    pairs, problems = read(tmp_path / "x.jsonl", BOM + GOOD + b"\n" + BOM + GOOD)
    assert pairs == [1]
    assert problems[0].startswith("x.jsonl:2: column 1: invalid JSON")


@pytest.mark.parametrize("raw", [b"", b"\n\n", b" ", BOM, b"[]", b"[\n]\n", b" [ ] "])
def test_an_empty_file_has_no_rows(raw: bytes, tmp_path: Path) -> None:
    assert read(tmp_path / "x.json", raw) == ([], [])


@pytest.mark.parametrize("newline", rows({"LF": b"\n", "CR": b"\r", "CR LF": b"\r\n"}, "CR LF"))
def test_a_line_over_the_limit_is_named_with_its_size(newline: bytes, tmp_path: Path) -> None:
    long = row(prompt="a" * 12_000_000)
    pairs, problems = read(tmp_path / "x.jsonl", newline.join([GOOD, long, GOOD]))
    assert pairs == [1, 3]
    assert problems == [f"x.jsonl:2: line of {len(long):,} bytes; the limit is 10,000,000"]


@pytest.mark.parametrize(
    ("before", "size"),
    rows(
        {
            f"{before} {size}": (before, size)
            for before in (0, 486_239, 486_240)
            for size in (9_999_999, 10_000_000, 10_000_001)
        },
        *("0 10000000", "486239 10000001"),
    ),
)
def test_the_limit_is_exact_wherever_the_line_stands(before: int, size: int, tmp_path: Path) -> None:
    """10,000,000 + 485,760 is a number of whole blocks, so that the break also lies on a block's border."""
    first = b" " * before + b"\r\n" if before else b""
    line = row(prompt="")
    line = line.replace(b'""', b'"' + b"a" * (size - len(line)) + b'"', 1)
    pairs, problems = read(tmp_path / "x.jsonl", first + line + b"\r\n" + GOOD)
    number = 2 if before else 1
    assert pairs == ([number, number + 1] if size <= 10_000_000 else [number + 1])
    assert len(problems) == (size > 10_000_000)


@pytest.mark.parametrize("extra", rows({str(extra): extra for extra in (-2, -1, 0, 1)}, "-1"))
def test_a_carriage_return_on_a_block_border_still_ends_a_long_line(extra: int, tmp_path: Path) -> None:
    long = b"x" * (10 * (1 << 20) + extra)
    pairs, problems = read(tmp_path / "x.jsonl", long + b"\r" + GOOD + b"\r" + GOOD)
    assert pairs == [2, 3]
    assert problems == [f"x.jsonl:1: line of {len(long):,} bytes; the limit is 10,000,000"]


def test_a_file_without_lines_is_not_held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text_lines, "BLOCK_BYTES", 64)
    monkeypatch.setattr(text_lines, "_HELD_BYTES", 1000)
    for suffix in (".jsonl", ".csv"):
        pairs, problems = read(tmp_path / f"x{suffix}", b"prompt,chosen,rejected\n" + b"x" * 5000)
        assert pairs == []
        assert problems[-1] == f"x{suffix}:2: line of more than 1,000 bytes; the limit is 10,000,000"


def test_an_object_around_the_rows_is_explained(tmp_path: Path) -> None:
    pairs, problems = read(tmp_path / "x.json", b'{"good": [' + GOOD + b"]}")
    said = 'x.json:1: prompt: missing; the row has "good"; data.columns.prompt=NAME reads another column'
    assert (pairs, problems) == ([], [said])
    _, problems = read(tmp_path / "x.json", b'{\n "good": [\n ' + GOOD + b",\n ]\n}")
    hint = "(an object over several lines? expected an array, or one object a line)"
    assert problems[0].endswith(hint)
    assert not any(hint in problem for problem in problems[1:])
    for line in (b'{"prompt": NaN}', b'{"prompt": "a"', GOOD[:30]):
        assert hint not in read(tmp_path / "x.jsonl", line + b"\n" + GOOD)[1][0]


def test_a_pretty_printed_array_gives_the_line_each_object_starts_on(tmp_path: Path) -> None:
    text = json.dumps([json.loads(GOOD)] * 3, indent=2).encode()
    for suffix in (".json", ".jsonl"):
        assert read(tmp_path / f"x{suffix}", text) == ([2, 7, 12], [])
    assert read(tmp_path / "x.json", b"[" + GOOD + b"," + GOOD + b",\n" + GOOD + b"]") == ([1, 1, 2], [])


def test_a_file_that_starts_with_a_deep_list_is_caught(tmp_path: Path) -> None:
    for suffix in (".json", ".jsonl"):
        _, problems = read(tmp_path / f"x{suffix}", b"[" * 100_000)
        assert problems == [f"x{suffix}:1: nested too deeply"]


def test_a_path_that_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(InputNotFoundError, match="no such file"):
        find_files(str(tmp_path / "none.json"), DatasetChoice())
    with pytest.raises(InputNotFoundError, match="a folder without files of preferences"):
        find_files(str(tmp_path), DatasetChoice())
    with pytest.raises(DataError, match=r"none.json: cannot be read: No such file"):
        list(read_rows(data_file(tmp_path / "none.json")))


def test_messages_can_be_printed_whatever_the_keys_are(tmp_path: Path) -> None:
    raw = b'{"\\ud800": 1,\n"' + b"k" * 5000 + b'": 2}'
    for problem in read(tmp_path / "x.jsonl", raw)[1]:
        assert len(problem.encode()) < 300


GARBAGE = {
    "open objects": b"{\n" * 100_000,
    "open lists": b"[" * 1_000_000,
    "list of bad rows": b"[{]}\n" * 200_000,
    "quotes": b'"' * 1_000_000,
    "escapes": b'"\\ud800' * 140_000,
    "nested keys": b'{"a":' * 200_000,
    "one key twice, at the end": b"{" + b"".join(b'"%d":1,' % key for key in range(110_000)) + b'"109999":1}',
    "carriage returns": b"\r" * 1_000_000,
    "NUL": b"\0" * 1_000_000,
    "digits": b"7" * 1_000_000,
    "high bytes": bytes(range(128, 256)) * 8_000,
    "blanks": b" " * 1_000_000,
}


@pytest.mark.timeout(20)
@pytest.mark.parametrize(
    ("head", "name"),
    rows(
        {f"{kind} of {name}": (head, name) for kind, head in (("lines", b""), ("array", b"[")) for name in GARBAGE},
        *("lines of one key twice, at the end", "lines of escapes", "array of list of bad rows", "array of quotes"),
    ),
)
def test_garbage_of_a_megabyte_does_not_hang(head: bytes, name: str, tmp_path: Path) -> None:
    """A second or three at most; a quadratic step would take minutes."""
    read(tmp_path / "x.json", head + GARBAGE[name])


texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=30)
valid_texts = texts.filter(lambda text: text.strip())
valid_rows = st.fixed_dictionaries(dict.fromkeys(FIELDS, valid_texts))
newlines = st.sampled_from(["\n", "\r\n", "\r"])


def values(raw: bytes, suffix: str) -> list[Row | Problem]:
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / f"x{suffix}"
        path.write_bytes(raw)
        return list(read_rows(data_file(path)))


@given(st.lists(valid_rows, max_size=6), newlines, st.booleans(), st.booleans(), st.booleans(), st.booleans())
@settings(deadline=None)
def test_what_is_written_is_read(
    rows: list[dict[str, str]], newline: str, mark: bool, array: bool, final: bool, ascii_only: bool
) -> None:
    encoded = [json.dumps(item, ensure_ascii=ascii_only) for item in rows]
    text = f"[{newline}{f',{newline}'.join(encoded)}{newline}]" if array else newline.join(encoded)
    raw = (BOM if mark else b"") + (text + newline * final).encode()
    found = values(raw, ".json" if array else ".jsonl")
    assert [item.value for item in found if isinstance(item, Row)] == rows
    assert [item.source.line for item in found] == list(range(1 + array, 1 + array + len(rows)))


PIECES = b"""[ ] { } , : " \\ \\u d800 1 - e9 NaN null "prompt" "chosen" "rejected" "role" "content" """
OTHER_PIECES = [
    b"\xff",
    b"\xfe",
    b"\xef",
    b"\xbb\xbf",
    b"\0",
    b"\xe2\x80\xa8",
    b"\n",
    b"\r",
    b" ",
    GOOD,
    b"[" * 1100,
    b"9" * 4400,
]
json_bytes = st.lists(st.sampled_from(PIECES.split() + OTHER_PIECES), max_size=40).map(b"".join)


@given(st.binary(max_size=200) | json_bytes, st.sampled_from([".json", ".jsonl"]))
@settings(max_examples=300, deadline=None)
def test_any_bytes_end_in_rows_or_in_a_line_of_the_file(raw: bytes, suffix: str) -> None:
    line_count = len(re.findall(rb"\r\n|\r|\n", raw)) + 1
    with tempfile.TemporaryDirectory() as directory:
        pairs, problems = read(Path(directory) / f"x{suffix}", raw)
    stated = [re.match(rf"x{suffix}:(\d+)(?: row \d+)?: .", problem) for problem in problems]
    numbers = [int(match.group(1)) for match in stated if match]
    assert len(numbers) == len(problems)
    assert all(1 <= number <= line_count for number in pairs + numbers)
    assert "".join(problems).encode() or not problems


@given(
    st.lists(valid_rows, min_size=1, max_size=6),
    st.data(),
    newlines,
    st.sampled_from([b"{", b'{"a":NaN}', b"\xff", b"a\0b"]),
)
@settings(deadline=None)
def test_one_bad_line_is_reported_and_nothing_else(
    rows: list[dict[str, str]], data: st.DataObject, newline: str, bad: bytes
) -> None:
    place = data.draw(st.integers(0, len(rows)))
    encoded = [json.dumps(item).encode() for item in rows]
    found = values(newline.encode().join([*encoded[:place], bad, *encoded[place:]]), ".jsonl")
    assert [item.source.line for item in found if isinstance(item, Problem)] == [place + 1]
    assert [item.value for item in found if isinstance(item, Row)] == rows


@given(valid_rows, st.permutations(FIELDS))
@settings(deadline=None)
def test_the_order_of_keys_does_not_matter(item: dict[str, str], order: list[str]) -> None:
    (first,) = values(json.dumps(item).encode(), ".jsonl")
    (second,) = values(json.dumps({key: item[key] for key in order}).encode(), ".jsonl")
    assert isinstance(first, Row)
    assert isinstance(second, Row)
    assert str(to_pairs(first, SHAPE)).replace(first.source.file, "x") == str(to_pairs(second, SHAPE)).replace(
        second.source.file, "x"
    )


@given(st.binary(max_size=300).filter(lambda raw: b"\0" not in raw))
@settings(max_examples=200, deadline=None)
def test_lines_are_those_of_the_whole_file(raw: bytes) -> None:
    """Compare with a reference that splits the whole text at once, where it is UTF-8."""
    try:
        text = raw.removeprefix(BOM).decode()
        blocks = text_lines.line_blocks(io.BytesIO(raw), "x")
        read_back = [line for block in blocks for line in text_lines.lines_of(block, "x")]
    except (UnicodeDecodeError, DataError):
        return
    expected = [(number, line) for number, line in enumerate(re.split("\r\n|\r|\n", text), 1) if line.encode().strip()]
    assert [(line.number, line.text) for line in read_back if isinstance(line, text_lines.Line)] == expected


# Borders between the blocks that a file is read in

A_BLOCK = 1 << 19
"""Every example below fits in one of these."""

scalars = st.sampled_from([0, -7, 12345678901234567890, 1.5, -2.5e-300, 1e25, True, False, None, "", "\u2028", "🙂é漢"])
elements = st.recursive(
    scalars | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text('aé🙂\\"\n', max_size=4), inner, max_size=3),
    max_leaves=8,
)


LISTS_OF_ROWS = re.compile(r'\[\s*\[\s*[{"]')
"""Arrays that are no list of rows; see test_json_layouts.py."""


@st.composite
def arrays(draw: st.DrawFn, newline: st.SearchStrategy[str] = newlines) -> str:
    """Draw the text of an array, on one line or on many."""
    array = draw(st.lists(elements | valid_rows, max_size=5))
    options = {"ensure_ascii": draw(st.booleans()), "indent": draw(st.sampled_from([None, 0, 1]))}
    return json.dumps(array, **options).replace("\n", draw(newline))


def in_blocks(size: int, raw: bytes, suffix: str) -> tuple[list[tuple[int, Any]], str]:
    """Return (line, value or problem) of each row, and the error that ends them, where a block has `size` bytes.

    Problems are without the encoding that is likely, for which the block around is looked at.
    """
    found: list[tuple[int, Any]] = []
    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory() as directory:
        patch.setattr(text_lines, "BLOCK_BYTES", size)
        path = Path(directory) / f"x{suffix}"
        path.write_bytes(raw)
        try:
            for item in read_rows(data_file(path)):
                text = item.value if isinstance(item, Row) else item.text.partition(", most likely")[0]
                found.append((item.source.line, text))
        except DataError as error:
            return found, str(error).removeprefix(f"{directory}/").partition(", most likely")[0]
    return found, ""


@given(arrays(), st.integers(8, 60), st.booleans())
@settings(max_examples=120, deadline=None)
def test_an_array_is_the_same_wherever_its_blocks_end(text: str, size: int, mark: bool) -> None:
    assume(not LISTS_OF_ROWS.match(text))
    raw = (BOM if mark else b"") + text.encode()
    found, ending = in_blocks(size, raw, ".json")
    assert ([value for _, value in found], ending) == (json.loads(text), "")
    assert (found, ending) == in_blocks(A_BLOCK, raw, ".json")


@st.composite
def damaged(draw: st.DrawFn, valid: st.SearchStrategy[bytes]) -> bytes:
    """Draw the bytes of a valid file of which a few are replaced, left out or put in."""
    raw = bytearray(draw(valid))
    for _ in range(draw(st.integers(1, 3))):
        start = draw(st.integers(0, len(raw)))
        stop = start + draw(st.integers(0, 2))
        raw[start:stop] = draw(
            st.sampled_from([b"", b'"', b"]", b",", b"{", b"1.", b"NaN", b"\r", b"\n", b"\xff", b"\0"])
        )
    return bytes(raw)


@given(damaged(arrays().map(str.encode)), st.integers(8, 60), st.sampled_from([".json", ".jsonl"]))
@settings(max_examples=200, deadline=None)
def test_problems_are_the_same_wherever_blocks_end(raw: bytes, size: int, suffix: str) -> None:
    assert in_blocks(size, raw, suffix) == in_blocks(A_BLOCK, raw, suffix)


cells = st.text('a,"\t\r\né🙂', max_size=6).map(lambda text: '"' + text.replace('"', '""') + '"') | st.text(
    "bé", max_size=3
)
csv_files = st.lists(st.tuples(cells, cells).map(",".join), max_size=5).flatmap(
    lambda rows: newlines.map(lambda newline: newline.join(["a,b", *rows]).encode())
)


@given(damaged(csv_files), st.integers(8, 60))
@settings(max_examples=120, deadline=None)
def test_rows_of_csv_are_the_same_wherever_blocks_end(raw: bytes, size: int) -> None:
    assert in_blocks(size, raw, ".csv") == in_blocks(A_BLOCK, raw, ".csv")


@given(arrays(st.just("\n")), st.data(), st.integers(8, 60))
@settings(max_examples=150, deadline=None)
def test_the_line_of_a_syntax_error_is_the_one_of_the_whole_text(text: str, data: st.DataObject, size: int) -> None:
    """Compare with the standard library's parser, given the whole text at once."""
    place = data.draw(st.integers(1, len(text)))
    text = text[:place] + data.draw(st.sampled_from(["", '"', "]", ",", "{", "x"])) + text[place + 1 :]
    try:
        json.loads(text)
        return
    except json.JSONDecodeError as error:
        line, column = error.lineno, error.colno
    assume(not LISTS_OF_ROWS.match(text))
    _, ending = in_blocks(size, text.encode(), ".json")
    assert ending.startswith(f"x.json:{line}: ")
    if stated := re.search(r": column (\d+): ", ending):
        assert int(stated.group(1)) == column


@pytest.mark.parametrize("number", ["1.5", "-1", "1e5", "1E+5", "-0.25e-17", "12345678901234567890123"])
def test_a_number_is_not_cut_in_two_by_the_border_of_a_block(number: str) -> None:
    raw = f"[{number}, {number},{number}]".encode()
    for size in range(8, len(raw) + 2):
        assert in_blocks(size, raw, ".json") == ([(1, json.loads(number))] * 3, "")


def test_every_border_inside_a_character_or_a_line_break() -> None:
    text = '[\r\n"é漢🙂\u0800\U00010000",\r\n\r"é🙂",\r\r\n"漢"\r\n]\r\n'
    expected = [(2, "é漢🙂\u0800\U00010000"), (4, "é🙂"), (6, "漢")]
    for size in range(8, len(text.encode()) + 1):
        assert in_blocks(size, text.encode(), ".json") == (expected, "")


@pytest.mark.parametrize("size", range(8, 30))
def test_a_tail_of_nul_bytes_is_called_a_crash_in_an_array_too(size: int) -> None:
    raw = b"[\n" + GOOD + b",\n" + b"\0" * 100
    found, ending = in_blocks(size, raw, ".json")
    assert [line for line, _ in found] == [2]
    assert ending == "x.json:3: NUL bytes from byte 51 on: the file seems truncated by a crash"
    _, ending = in_blocks(size, raw + b"x", ".json")
    assert ending == "x.json:3: NUL byte at byte 51"


@pytest.mark.parametrize("size", [9_999_999, 10_000_000, 10_000_001])
def test_the_limit_of_an_element_is_exact(size: int, tmp_path: Path) -> None:
    element = row(prompt="")
    element = element.replace(b'""', b'"' + b"a" * (size - len(element)) + b'"', 1)
    pairs, problems = read(tmp_path / "x.json", b"[\n" + GOOD + b",\n" + element + b",\n" + GOOD + b"]")
    if size <= text_lines.MAX_LINE_BYTES:
        assert (pairs, problems) == ([2, 3, 4], [])
    else:
        assert (pairs, problems) == ([2], ["x.json:3: an element of more than 10,000,000 characters"])


def test_a_string_that_is_never_closed_is_not_read_beyond_the_limit(tmp_path: Path) -> None:
    raw = b"[\n" + GOOD + b',\n{"prompt": "' + b"a" * 25_000_000
    pairs, problems = read(tmp_path / "x.json", raw)
    assert (pairs, problems) == ([2], ["x.json:3: an element of more than 10,000,000 characters"])


def test_an_array_of_three_megabytes_on_one_line(tmp_path: Path) -> None:
    count, long = 12_000, "é" * 120
    text = "[" + ", ".join(f'{{"prompt": "{number}", "chosen": "{long}"}}' for number in range(count))
    for suffix in (".json", ".jsonl"):
        path = tmp_path / f"x{suffix}"
        path.write_text(text + "]", "utf-8")
        found = list(read_rows(data_file(path)))
        assert [item.value["prompt"] for item in found if isinstance(item, Row)] == [str(n) for n in range(count)]
        assert {item.source.line for item in found} == {1}
    (tmp_path / "x.json").write_text(text + ' {"a": 1}]', "utf-8")
    with pytest.raises(DataError) as caught:
        list(read_rows(data_file(tmp_path / "x.json")))
    assert 'x.json:1: expected `,` or `]` after an element, found "{\\"a\\": 1}]"' in str(caught.value)
    (tmp_path / "x.json").write_text(text + ", {'a': 1}]", "utf-8")
    with pytest.raises(DataError, match=rf"x.json:1: column {len(text) + 4}: invalid JSON: Expecting property name"):
        list(read_rows(data_file(tmp_path / "x.json")))


@pytest.mark.timeout(20)
def test_a_long_element_is_not_parsed_once_for_every_block(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """With blocks of 64 bytes that would be 40,000 times a megabyte."""
    monkeypatch.setattr(text_lines, "BLOCK_BYTES", 64)
    element = row(prompt=["a" * 50] * 50_000)
    assert read(tmp_path / "x.json", b"[" + element + b"," + GOOD + b"]")[0] == [1]


@pytest.mark.parametrize("kind", ["array", "lines", "csv"])
def test_memory_does_not_grow_with_the_file(kind: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A few blocks of 64 kB and 500 rows of 500 bytes are held, of files of 2 and of 6 MB."""
    monkeypatch.setattr(text_lines, "BLOCK_BYTES", 1 << 16)
    long = "p" * 470
    one = f'"{long}","c","r"' if kind == "csv" else json.dumps({"prompt": long, "chosen": "c", "rejected": "r"})
    begin, between, end = {"array": ("[", ",\n", "]"), "lines": ("", "\n", ""), "csv": ("a,b,c\n", "\n", "")}[kind]
    peaks = []
    for count in (4_000, 12_000):
        path = tmp_path / ("x.csv" if kind == "csv" else "x.json")
        path.write_text(begin + between.join([one] * count) + end)
        tracemalloc.start()
        read_back = sum(1 for _ in read_rows(data_file(path)))
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert read_back == count
    assert peaks[1] < 1.1 * peaks[0] < 2_000_000
