"""Recognise how rows lie in a JSON file by its beginning, and read those that lie inside one object or a list of lists.

| layout | a file begins with | the rows |
|---|---|---|
| lines | an object that ends on its line, and more | one a line |
| values | an object over several lines | objects one after another |
| array | `[` | its elements |
| nested | `[[{` | the elements of its elements |
| object | `{"data": [{`, also behind other keys | of the list |
| object | `{"columns": [...], "data": [[` (pandas: split) | of the list, whose values get the names of the columns |
| object | `{"0": {` (pandas: index) | the values of the object |

A table column by column, and one without the names of its columns, are refused with the call that writes rows.
"""

import json
import re
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, BinaryIO

from orpo_cli.data.pairs import Problem, Row
from orpo_cli.data.rows import text_lines
from orpo_cli.data.rows.json_rows import element, elements, expect_end
from orpo_cli.data.rows.json_text import LENIENT, JsonText, parsed
from orpo_cli.errors import DataError

_LISTS = {
    "data", "rows", "train", "dataset", "examples", "instances", "items", "pairs", "preferences", "records", "samples",
}  # fmt: skip
"""Keys of an object under which a list of rows lies."""

_LONGEST_TOKEN = 60
"""Characters from its beginning at which a token that is cut is refused, beyond what occurs."""

_OF_A_ROW = {"prompt", "chosen", "rejected", "messages", "conversations"}
"""Keys by which an object is a row itself, whatever lists it holds besides."""

_OF_EACH_ROW = {"system", "system_prompt", "tools", "prompt", "instruction"}
"""Keys that say something about each row, which have to stand in it."""

_BY_COLUMNS = "a table column by column, as pandas writes it by default, in which no row ends before the file does"
_WITHOUT_NAMES = "rows without the names of their columns"
_ADVICE = 'write row by row: df.to_json(path, orient="records", lines=True)'


def layout_of(head: bytes, file: str, is_whole: bool) -> str:
    """Return the layout of a file by its first bytes.

    Args:
        is_whole: whether there are no more.
    Raises:
        DataError: if it is a table by columns, or has no names of columns.
    """
    text = text_lines.without_bom(head).decode("utf-8", "ignore").lstrip(" \t\r\n")
    if re.match(r'\[\s*\[\s*"', text):
        raise DataError(f"{file}:1: {_WITHOUT_NAMES}; {_ADVICE}")
    if text.startswith("["):
        return "nested" if re.match(r"\[\s*\[\s*\{", text) else "array"
    end = _end_of_object(text, is_whole)
    is_one_line = re.search(r"[\r\n]", text[:end]) is None
    if is_one_line and end is not None and text[end:].strip():
        return "lines"
    if text.startswith("{") and _holds_rows(text, file):
        return "object"
    return "lines" if is_one_line or end is None else "values"


def _end_of_object(text: str, is_whole: bool) -> int | None:
    """Return the end of the first object, which may be that of the text; None where it is broken."""
    try:
        return LENIENT.raw_decode(text)[1]
    except json.JSONDecodeError as error:
        is_cut = error.msg.startswith("Unterminated string") or error.pos > len(text) - _LONGEST_TOKEN
        return len(text) if is_cut and not is_whole else None
    except RecursionError:
        return None


def _holds_rows(text: str, file: str) -> bool:
    """Return whether the rows lie inside the object that a text begins with."""
    for number, (key, rest) in enumerate(_members(text)):
        if number == 0 and key.isdecimal() and rest.startswith("{"):
            return True
        by_columns = number == 0 and re.match(r'\{\s*"\d+"\s*:', rest)
        if by_columns or (key in _OF_A_ROW and re.match(r'\[\s*"', rest)):
            raise DataError(f"{file}:1: {_BY_COLUMNS}; {_ADVICE}")
        if key in _OF_A_ROW:
            return False
        if key in _LISTS and re.match(r"\[\s*[\[{\]]", rest):
            return True
    return False


def _members(text: str) -> Iterator[tuple[str, str]]:
    """Yield the keys of an object with the text that begins with their values, as far as both can be read."""
    place = 1
    try:
        while opened := re.compile(r'\s*(?=")').match(text, place):
            key, place = LENIENT.raw_decode(text, opened.end())
            colon = re.compile(r"\s*:\s*").match(text, place)
            if colon is None:
                return
            yield key, text[colon.end() :]
            _, place = LENIENT.raw_decode(text, colon.end())
            comma = re.compile(r"\s*,").match(text, place)
            place = comma.end() if comma else len(text)
    except (json.JSONDecodeError, RecursionError):
        return


def nested_rows(stream: BinaryIO, file: str) -> Iterator[Row | Problem]:
    """Yield the elements of the lists in a list, or of the list itself where they are no lists.

    Raises:
        DataError: if there is a syntax error.
    """
    text = JsonText(stream, file)
    text.skip_space()
    number = 0
    for outer in elements(text):
        inner = outer.value if isinstance(outer, Row) else None
        for row in [Row(outer.source, value) for value in inner] if isinstance(inner, list) else [outer]:
            number += 1
            yield replace(row, source=row.source._replace(row=number))
    expect_end(text, "the array")


def object_rows(stream: BinaryIO, file: str) -> Iterator[Row | Problem]:
    """Yield the rows inside one object; what else it holds is passed over.

    Raises:
        DataError: if there is a syntax error, or two lists of rows.
    """
    text = JsonText(stream, file)
    text.skip_space()
    columns: Any = None
    read_from, number = "", 0
    alike: dict[str, set[str]] = {}
    for key in _keys(text):
        if key in _LISTS and text.peek() == "[":
            if read_from:
                raise text.error(f"rows under `{read_from}` and under `{key}`; write one file for each")
            read_from = key
            for row in elements(text):
                alike.setdefault(key, _names(row.value) if isinstance(row, Row) else set())
                yield _named(row, columns)
        elif key.isdecimal() and text.peek() == "{":
            number += 1
            yield element(text, number)
        elif key == "index" and text.peek() == "[":
            for _ in elements(text):
                pass  # as long as the rows, so that it is not held
        else:
            value = parsed(LENIENT, text)
            columns = value if key == "columns" else columns
            if key in _OF_EACH_ROW and value not in (None, "", [], {}):
                raise text.error(f"`{key}` beside a list of rows, where nothing reads it; write it into each row")
            if isinstance(value, list) and value and (names := _names(value[0])):
                alike[key] = names
    for other, names in alike.items():
        if read_from not in ("", other) and len(names & alike.get(read_from, set())) > 1:
            raise text.error(f"rows under `{read_from}` and under `{other}`; write one file for each")
    expect_end(text, "the object")


def _names(value: Any) -> set[str]:
    return set(value) if isinstance(value, dict) else set()


def _named(row: Row | Problem, columns: Any) -> Row | Problem:
    """Return a row with the names of its columns, where it is a list of values."""
    if isinstance(row, Problem) or not isinstance(row.value, list):
        return row
    if not isinstance(columns, list):
        return Problem(row.source, f"{_WITHOUT_NAMES}; {_ADVICE}", "wrong_type")
    if twice := next((name for name in columns if columns.count(name) > 1), None):
        return Problem(row.source, f"`columns` names {twice} twice", "wrong_type")
    if len(columns) != len(row.value):
        return Problem(row.source, f"{len(row.value)} values where `columns` has {len(columns)}", "wrong_type")
    return Row(row.source, dict(zip(map(str, columns), row.value, strict=True)))


def _keys(text: JsonText) -> Iterator[str]:
    """Yield the keys of the object at the place, which is moved to their values and has to be moved behind each.

    Raises:
        DataError: if there is a syntax error.
    """
    separator = text.peek()
    while separator != "}":
        text.position += 1  # the opening brace, or a comma
        text.skip_space()
        if text.peek() != '"':
            raise text.error(f"expected a key in quotes, found {text.found()}")
        key = parsed(LENIENT, text)
        text.skip_space()
        if text.peek() != ":":
            raise text.error(f"expected `:` after a key, found {text.found()}")
        text.position += 1
        text.skip_space()
        yield str(key)
        text.skip_space()
        separator = text.peek()
        if separator not in ("}", ","):
            raise text.error(f"expected `,` or `}}` after a value, found {text.found()}")
    text.position += 1
