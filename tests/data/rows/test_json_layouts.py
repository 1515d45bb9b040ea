"""Rows that lie in a JSON file in another way than as lines or one array are the same rows, or are named."""

import json
import re
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from preferences import prepared

from orpo_cli.data.pairs import Row
from orpo_cli.data.rows import text_lines
from orpo_cli.data.rows.readers import read_rows
from orpo_cli.data.rows.sources import data_file
from orpo_cli.errors import DataError

ROWS = [
    {"prompt": "Name a tree.", "chosen": "Oak, \"beech\" or {elm}.", "rejected": "No."},
    {"prompt": "Nenne einen Baum: ü", "chosen": "[Eiche]", "rejected": "", "tags": [{"data": [1]}, None]},
    {"prompt": "", "chosen": {"0": "x"}, "rejected": 3},
]  # fmt: skip
Written = Callable[[list[dict[str, Any]]], str]

LAYOUTS: dict[str, Written] = {
    "an array": json.dumps,
    "an indented array": lambda rows: json.dumps(rows, indent=4, ensure_ascii=False),
    "lists in a list": lambda rows: json.dumps([[row] for row in rows]),
    "one list in a list": lambda rows: json.dumps([rows], indent=1),
    "wrapped": lambda rows: json.dumps({"data": rows}),
    "wrapped, indented": lambda rows: json.dumps({"data": rows}, indent=2),
    "wrapped behind other keys": lambda rows: json.dumps({"version": "1", "info": {"data": [{}]}, "train": rows}),
    "by index": lambda rows: json.dumps({str(number): row for number, row in enumerate(rows)}),
    "by index, indented": lambda rows: json.dumps({str(number): row for number, row in enumerate(rows, 7)}, indent=2),
}  # fmt: skip
BEHIND_EACH_OTHER: dict[str, Written] = {
    "lines": lambda rows: "\n".join(map(json.dumps, rows)),
    "indented": lambda rows: "\n".join(json.dumps(row, indent=2) for row in rows),
    "indented, without breaks between": lambda rows: "".join(json.dumps(row, indent=2) for row in rows),
}


def values(text: str, block: int = text_lines.BLOCK_BYTES, mark: str = "") -> list[tuple[int, Any]]:
    """(number, value) of each row, or (number, problem)."""
    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory() as directory:
        patch.setattr(text_lines, "BLOCK_BYTES", block)
        path = Path(directory) / "x.json"
        path.write_text(mark + text, encoding="utf-8")
        found = list(read_rows(data_file(path)))
    return [(item.source.row, item.value if isinstance(item, Row) else item.text) for item in found]


@pytest.mark.parametrize("mark", ["", "\ufeff"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_gives_the_same_rows_with_their_numbers(layout: str, mark: str) -> None:
    assert values(LAYOUTS[layout](ROWS), mark=mark) == list(enumerate(ROWS, 1))


@pytest.mark.parametrize("layout", BEHIND_EACH_OTHER)
@pytest.mark.parametrize("count", [1, 3])
def test_objects_behind_each_other_have_lines(layout: str, count: int) -> None:
    assert values(BEHIND_EACH_OTHER[layout](ROWS[:count])) == [(0, row) for row in ROWS[:count]]


row_values = st.recursive(st.none() | st.booleans() | st.integers() | st.text(), st.lists, max_leaves=4)
some_rows = st.lists(st.dictionaries(st.sampled_from(["chosen", "data", "0", "x"]), row_values), min_size=1, max_size=5)


@given(
    some_rows,
    st.sampled_from([*LAYOUTS.values(), *BEHIND_EACH_OTHER.values()]),
    st.integers(8, 90),
)
@settings(max_examples=200, deadline=None)
def test_they_are_the_same_wherever_blocks_end(rows: list[dict[str, Any]], written: Written, block: int) -> None:
    rows = [{"prompt": "p", **row} for row in rows]
    assert [value for _, value in values(written(rows), block)] == rows


FRAME = pd.DataFrame({"prompt": ["Name a tree.", "p"], "chosen": ["Oak.", "c"], "rejected": ["No.", "r"]})
AS_ROWS = FRAME.to_dict("records")
HOW = 'write row by row: df.to_json(path, orient="records", lines=True)'
BY_COLUMNS = (
    "x.json:1: a table column by column, as pandas writes it by default, in which no row ends before the file does; "
    + HOW
)


@pytest.mark.parametrize(
    ("orientation", "indent", "extra"),
    [
        ("records", None, False), ("records", 2, False), ("index", None, False), ("index", 2, False),
        ("split", None, False), ("split", 2, False), ("table", None, True), ("table", 2, True),
    ],
)  # fmt: skip
def test_what_pandas_writes_is_read(orientation: Any, indent: int | None, extra: bool) -> None:
    expected = [row | ({"index": number} if extra else {}) for number, row in enumerate(AS_ROWS)]
    assert values(FRAME.to_json(orient=orientation, indent=indent)) == list(enumerate(expected, 1))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (FRAME.to_json(), BY_COLUMNS),
        (FRAME.to_json(orient="columns", indent=2), BY_COLUMNS),
        (FRAME[1:].to_json(), BY_COLUMNS),
        (json.dumps(FRAME.to_dict("list")), BY_COLUMNS),
        (FRAME.to_json(orient="values"), f"x.json:1: rows without the names of their columns; {HOW}"),
        (json.dumps({"train": ROWS, "validation": ROWS}), "x.json:1: rows under `train` and under `validation`; write"),
        (json.dumps({"test": ROWS, "train": ROWS}), "x.json:1: rows under `train` and under `test`; write one"),
        (json.dumps({"data": ROWS, "train": ROWS}), "x.json:1: rows under `data` and under `train`; write one"),
        ('{"data": [{"prompt": "p"}', "x.json:1: expected `,` or `]` after an element, found the end of the file"),
        ('{"data": [{"prompt": "p"}]', "x.json:1: expected `,` or `}` after a value, found the end of the file"),
        ('{"data": [{"prompt": "p"}], 3}', 'x.json:1: expected a key in quotes, found "3}"'),
        ('{"data": [{"prompt": "p"}], "n" 3}', 'x.json:1: expected `:` after a key, found "3}"'),
        ('{\n"data": [{"prompt": "p"}]\n}\n7', 'x.json:4: unexpected text after the object: "7"'),
        ('{\n"prompt": "p"\n}\n{"prompt": }', "x.json:4: column 12: invalid JSON: Expecting value; found"),
    ],
)  # fmt: skip
def test_what_cannot_be_read_is_named(text: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("x.json").write_text(text)
    with pytest.raises(DataError) as refusal:
        list(read_rows(data_file(Path("x.json"))))
    assert str(refusal.value).startswith(said)


def test_a_comma_behind_the_last_row_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Python says so itself from 3.13 on."""
    monkeypatch.chdir(tmp_path)
    Path("x.json").write_text('[{"prompt": "p"},\n]')
    with pytest.raises(DataError, match="comma"):
        list(read_rows(data_file(Path("x.json"))))


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ('{"data": []}', []),
        (
            '{"columns": ["a", "b"], "data": [[1, 2], [3]]}',
            [(1, {"a": 1, "b": 2}), (2, "1 values where `columns` has 2")],
        ),
        ('{"data": [[1, 2]]}', [(1, f"rows without the names of their columns; {HOW}")]),
        ('{"data": [{"a": NaN}, {"a": 2}]}', [(1, "NaN is not JSON"), (2, {"a": 2})]),
        ('[[{"a": 1}, 7], 8, [{"a": NaN}]]', [(1, {"a": 1}), (2, 7), (3, 8), (4, "NaN is not JSON")]),
        # a row is a row, whatever lists it holds
        ('{"prompt": "p", "data": [{"a": 1}]}', [(0, {"prompt": "p", "data": [{"a": 1}]})]),
        ('{"data": [{"a": 1}]}\n{"data": [{"a": 2}]}', [(0, {"data": [{"a": 1}]}), (0, {"data": [{"a": 2}]})]),
        ('{"data": ["x"]}', [(0, {"data": ["x"]})]),
        ('{"chosen": [{"role": "user"}]}', [(0, {"chosen": [{"role": "user"}]})]),
    ],
)  # fmt: skip
def test_rows_inside_and_rows_themselves(text: str, found: list[Any]) -> None:
    assert values(text) == found


def test_a_first_object_longer_than_what_is_looked_at() -> None:
    long = {"prompt": "p" * 100_000, "chosen": "c", "rejected": "r"}
    for layout in (*LAYOUTS.values(), *BEHIND_EACH_OTHER.values()):
        assert [value for _, value in values(layout([long, *ROWS[:1]]))] == [long, *ROWS[:1]]


def test_a_wrapped_file_is_never_held_whole(tmp_path: Path) -> None:
    """30 MB: what Python holds at its peak is some blocks."""
    import tracemalloc

    path = tmp_path / "x.json"
    row = json.dumps({"prompt": "p" * 1000, "chosen": "c", "rejected": "r"})
    with path.open("w") as stream:
        stream.write('{"version": 1, "data": [')
        for _ in range(30):
            stream.write(",\n".join([row] * 1000) + ",\n")
        stream.write(row + "]}")
    tracemalloc.start()
    assert sum(1 for _ in read_rows(data_file(path))) == 30_001
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 8 * text_lines.BLOCK_BYTES


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({"system": "SECRET", "data": [{"prompt": "p"}]}, "`system` beside a list of rows, where nothing reads it"),
        ({"columns": ["prompt", "prompt"], "data": [["a", "b"]]}, "`columns` names prompt twice"),
    ],
)
def test_nothing_beside_the_rows_or_in_them_is_lost(content: dict[str, Any], said: str, tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    path.write_text(json.dumps(content))
    with pytest.raises(DataError, match=re.escape(said)):
        prepared(str(path))
