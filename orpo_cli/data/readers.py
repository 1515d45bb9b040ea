"""A preference file to rows: JSON Lines or one JSON array, each value with the line it starts on.

The parser is the standard library's, told to refuse what JSON does not have or what would be lost silently: NaN and
Infinity, duplicate keys, nesting and integers without limit.
"""

import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orpo_cli.data import lines
from orpo_cli.data.pairs import Problem, Source
from orpo_cli.errors import DataError, InputNotFoundError


@dataclass(frozen=True)
class Row:
    """One parsed JSON value and where it starts."""

    source: Source
    value: Any


def read_rows(path: Path) -> Iterator[Row | Problem]:
    """Rows of a JSON array or of JSON Lines, told apart by content.

    Raises:
        InputNotFoundError: no such file.
        DataError: the file cannot be read row by row: another encoding, or a damaged array.
    """
    if path.is_dir():
        raise InputNotFoundError(f"{path}: is a directory; expected a JSON or JSON Lines file")
    if not path.is_file():
        raise InputNotFoundError(f"{path}: no such file")
    try:
        yield from _array_rows(path) if _is_array(path) else _line_rows(path)
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from None


def shortened(text: str, limit: int = 60) -> str:
    """`text` escaped and cut for a message."""
    cut = text if len(text) <= limit else text[: limit - 3] + "..."
    return json.dumps(cut)


def listed(keys: Iterable[str]) -> str:
    """The first few keys for a message."""
    return ", ".join(shortened(key, 30) for key in list(keys)[:8])


class _RefusedError(ValueError):
    """Valid for Python's parser, refused by ours."""


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        counts = Counter(key for key, _ in pairs)
        twice = next(key for key, count in counts.items() if count > 1)
        raise _RefusedError(f"{shortened(twice)}: key stands twice in one object")
    return found


def _no_constant(name: str) -> Any:
    raise _RefusedError(f"{name} is not JSON")


_DECODER = json.JSONDecoder(object_pairs_hook=_unique_keys, parse_constant=_no_constant)
_LENIENT = json.JSONDecoder(parse_int=str)
"""Refuses nothing but broken syntax, to find where a refused value ends."""


def _is_array(path: Path) -> bool:
    """Whether the file is one array: it starts with `[`, and its first line is not a whole value of JSON Lines."""
    with path.open("rb") as stream:
        head = lines.without_bom(stream.read(1 << 16)).lstrip()
    if not head.startswith(b"["):
        return False
    first_line = re.split(rb"[\r\n]", head, maxsplit=1)[0]
    if path.suffix not in (".jsonl", ".ndjson"):
        return True
    try:
        json.loads(first_line)
    except ValueError:
        return True
    except RecursionError:
        return False
    return False


def _line_rows(path: Path) -> Iterator[Row | Problem]:
    with path.open("rb") as stream:
        for found in lines.read_lines(stream, str(path)):
            yield found if isinstance(found, Problem) else _parsed_line(found, path)


def _parsed_line(line: lines.Line, path: Path) -> Row | Problem:
    source = Source(str(path), line.number)
    start = len(line.text) - len(line.text.lstrip())
    try:
        value, end = _DECODER.raw_decode(line.text, start)
    except json.JSONDecodeError as error:
        return Problem(source, _parse_fault(error, line.text) + _whole_file_hint(line, path), "not_json")
    except ValueError as error:
        return Problem(source, _parse_fault(error, line.text), "not_json")
    except RecursionError:
        return Problem(source, "nested too deeply", "not_json")
    rest = line.text[end:].lstrip()
    if rest:
        column = len(line.text) - len(rest) + 1
        return Problem(source, f"column {column}: unexpected text after the value: {shortened(rest)}", "not_json")
    return Row(source, value)


def _parse_fault(error: ValueError, text: str) -> str:
    if isinstance(error, json.JSONDecodeError):
        near = text[error.pos : error.pos + 60]
        found = f"found {shortened(near, 40)}" if near else "the text ends here"
        line_break = max(text.rfind("\n", 0, error.pos), text.rfind("\r", 0, error.pos))
        return f"column {error.pos - line_break}: invalid JSON: {error.msg}; {found}"
    if isinstance(error, _RefusedError):
        return str(error)
    return "an integer has too many digits"


def _whole_file_hint(line: lines.Line, path: Path) -> str:
    """A file that holds one pretty-printed object fails on its first line; say what is expected instead."""
    if line.number == 1 and line.text.lstrip().startswith("{") and path.stat().st_size < lines.MAX_LINE_BYTES:
        try:
            value = json.loads(lines.without_bom(path.read_bytes()))
        except (ValueError, RecursionError):
            return ""
        return f" (the file is one object with the keys {listed(value)}; expected an array, or one object a line)"
    return ""


def _array_rows(path: Path) -> Iterator[Row | Problem]:
    """Elements of a top-level array. A syntax error ends the file: what follows has no certain boundaries."""
    raw = path.read_bytes()
    lines.refuse_utf16(raw[:8], str(path))
    text = _decoded_file(raw, path)
    cursor = _Cursor(text, str(path))
    cursor.position = text.index("[") + 1
    cursor.skip_space()
    if cursor.peek() == "]":
        cursor.position += 1
    else:
        yield from _elements(cursor)
    cursor.skip_space()
    if cursor.peek():
        raise cursor.fault(f"unexpected text after the array: {shortened(text[cursor.position :], 40)}")


def _decoded_file(raw: bytes, path: Path) -> str:
    start = len(raw) - len(lines.without_bom(raw))
    try:
        return lines.decode(raw[start:], start)
    except lines.UndecodableError as error:
        line = len(re.findall(rb"\r\n|\n|\r", raw[: error.place])) + 1
        raise DataError(f"{path}:{line}: {error}") from None


@dataclass
class _Cursor:
    """A place in a text, and the line that place is on, counted as it moves forward."""

    text: str
    file: str
    position: int = 0
    _counted: int = 0
    _line: int = 1

    def peek(self) -> str:
        return self.text[self.position : self.position + 1]

    def skip_space(self) -> None:
        found = re.compile(r"[ \t\r\n]*").match(self.text, self.position)
        assert found is not None
        self.position = found.end()

    def source(self) -> Source:
        passed = self.text[self._counted : self.position]
        self._line += len(re.findall(r"\r\n|\n|\r", passed))
        self._counted = self.position
        return Source(self.file, self._line)

    def fault(self, text: str) -> DataError:
        return DataError(str(Problem(self.source(), text, "not_json")))


def _elements(cursor: _Cursor) -> Iterator[Row | Problem]:
    while True:
        cursor.skip_space()
        yield _element(cursor)
        cursor.skip_space()
        separator = cursor.peek()
        cursor.position += 1
        if separator == "]":
            return
        if separator != ",":
            cursor.position -= 1
            found = (
                shortened(cursor.text[cursor.position : cursor.position + 40], 40)
                if separator
                else "the end of the file"
            )
            raise cursor.fault(f"expected `,` or `]` after an element, found {found}")


def _element(cursor: _Cursor) -> Row | Problem:
    """The value at the cursor; one that is refused is a problem of its own, since where it ends is certain."""
    source = cursor.source()
    try:
        return Row(source, _value(_DECODER, cursor))
    except ValueError as refusal:
        fault = _parse_fault(refusal, cursor.text)
    _value(_LENIENT, cursor)
    return Problem(source, fault, "not_json")


def _value(decoder: json.JSONDecoder, cursor: _Cursor) -> Any:
    try:
        value, cursor.position = decoder.raw_decode(cursor.text, cursor.position)
    except json.JSONDecodeError as error:
        cursor.position = error.pos
        raise cursor.fault(_parse_fault(error, cursor.text)) from None
    except RecursionError:
        raise cursor.fault("nested too deeply") from None
    return value
