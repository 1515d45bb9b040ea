"""JSON Lines or one JSON array to rows, each value with the line it starts on.

The parser is the standard library's, told to refuse what JSON does not have or what would be lost silently: NaN and
Infinity, duplicate keys, nesting and integers without limit.
"""

import contextlib
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO

from orpo_cli.data.pairs import Problem, Source
from orpo_cli.data.rows import lines
from orpo_cli.data.shapes.fields import STRICT, RefusedError
from orpo_cli.errors import DataError
from orpo_cli.quoting import listed, shortened

_HEAD_BYTES = 1 << 16
_AHEAD = 60
"""Characters that are read beyond a place, to show them, and to see where a token ends, as in `1.` or `-Infin`."""

_SPACE = re.compile(r"[ \t\r\n]*")


@dataclass(frozen=True)
class Row:
    """One value of the data and where it starts."""

    source: Source
    value: Any


_LENIENT = json.JSONDecoder(parse_int=str)
"""Refuses nothing but broken syntax, to find where a refused value ends."""


def is_array(stream: BinaryIO, is_lines: bool) -> bool:
    """Whether a file is one array: it starts with `[`, and its first line is not a whole value of JSON Lines.

    Args:
        stream: at the start of the file; is read from.
        is_lines: whether the file is called JSON Lines.
    """
    head = lines.without_bom(stream.read(_HEAD_BYTES)).lstrip(b" \t\r\n")
    if not head.startswith(b"["):
        return False
    if not is_lines:
        return True
    first_line = re.split(rb"[\r\n]", head, maxsplit=1)[0]
    try:
        json.loads(first_line)
    except ValueError:
        return True
    except RecursionError:
        return False
    return False


def rows_of(block: lines.LineBlock, file: str) -> Iterator[Row | Problem]:
    """Rows of a block of JSON Lines."""
    for found in lines.lines_of(block, file):
        yield found if isinstance(found, Problem) else _parsed_line(found, file)


def _parsed_line(line: lines.Line, file: str) -> Row | Problem:
    source = Source(file, line.number)
    start = len(line.text) - len(line.text.lstrip())
    try:
        value, end = STRICT.raw_decode(line.text, start)
    except ValueError as error:
        return Problem(source, _parse_problem(error, line.text), "not_json")
    except RecursionError:
        return Problem(source, "nested too deeply", "not_json")
    rest = line.text[end:].lstrip()
    if rest:
        column = len(line.text) - len(rest) + 1
        return Problem(source, f"column {column}: unexpected text after the value: {shortened(rest)}", "not_json")
    return Row(source, value)


def _parse_problem(error: ValueError, text: str, before: int = 0) -> str:
    """What is wrong with a value; `before` counts the characters of the line that stood before `text`."""
    if isinstance(error, json.JSONDecodeError):
        near = text[error.pos : error.pos + _AHEAD]
        found = f"found {shortened(near, 40)}" if near else "the text ends here"
        line_break = max(text.rfind("\n", 0, error.pos), text.rfind("\r", 0, error.pos))
        column = error.pos - line_break + (before if line_break < 0 else 0)
        return f"column {column}: invalid JSON: {error.msg}; {found}"
    if isinstance(error, RefusedError):
        return str(error)
    return "an integer has too many digits"


def whole_file_hint(stream: BinaryIO) -> str:
    """A file that holds one pretty-printed object fails on its first line; say what is expected instead.

    Args:
        stream: at the start of the file; is read to its end, or to the limit of a line.
    """
    raw = lines.without_bom(stream.read(lines.MAX_LINE_BYTES))
    try:
        value = json.loads(raw)
    except (ValueError, RecursionError):
        return ""
    if not isinstance(value, dict) or not re.search(rb"[\r\n]", raw.strip()):
        return ""
    return f" (the file is one object with the keys {listed(value)}; expected an array, or one object a line)"


def array_rows(stream: BinaryIO, file: str) -> Iterator[Row | Problem]:
    """Elements of a top-level array, which is never held whole.

    Raises:
        DataError: a syntax error, which ends the file: what follows has no certain boundaries.
    """
    text = _Text(stream, file)
    text.skip_space()
    assert text.peek() == "["
    text.position += 1
    text.skip_space()
    if text.peek() == "]":
        text.position += 1
    else:
        yield from _elements(text)
    text.skip_space()
    if text.peek():
        raise text.problem(f"unexpected text after the array: {shortened(text.ahead(), 40)}")


class _Text:
    """A file's text as far as it is needed, a place in it, and the line that place is on.

    What lies behind the place is forgotten when more is read. Bytes that are not text are a problem once the place gets
    there, so that what stands before them comes first, wherever the blocks of the file end.
    """

    def __init__(self, stream: BinaryIO, file: str) -> None:
        self._stream = stream
        self._file = file
        self._pending = stream.read(lines.BLOCK_BYTES)
        lines.refuse_other_kinds(self._pending[:8], file)
        self._offset = len(self._pending) - len(lines.without_bom(self._pending))
        self._pending = self._pending[self._offset :]
        self._breaks_read = 0
        self._breaks_passed = 0
        self._counted = 0
        self.before = 0
        self._problem: DataError | None = None
        self.ended = False
        self.text = ""
        self.position = 0

    def more(self, at_least: int = 0) -> bool:
        """Read on. Returns False at the end of the file.

        Raises:
            DataError: what follows is not text.
        """
        if self._problem is not None:
            raise self._problem
        if self.ended:
            return False
        self._forget()
        size = max(at_least, lines.BLOCK_BYTES)
        further = self._stream.read(size)
        raw = self._pending + further
        while further and raw.endswith(b"\0") and not raw[raw.index(b"\0") :].strip(b"\0"):
            further = self._stream.read(size)  # a tail of NUL bytes is told from a single one, and not held
            raw += further if further.strip(b"\0") else b""
        self.ended = not further
        whole = len(raw) if self.ended else _whole_characters(raw)
        self.text += self._decoded(raw[:whole])
        self._pending = raw[whole:]
        return True

    def _forget(self) -> None:
        self._count()
        passed = self.text[: self.position]
        line_break = max(passed.rfind("\n"), passed.rfind("\r"))
        self.before = len(passed) - line_break - 1 + (self.before if line_break < 0 else 0)
        self.text, self.position, self._counted = self.text[self.position :], 0, 0

    def _decoded(self, raw: bytes) -> str:
        """The text of bytes, up to the first that is none."""
        try:
            text = lines.decode(raw, self._offset)
        except lines.UndecodableError as error:
            valid, self.ended = raw[: error.place - self._offset], False
            self._problem = DataError(f"{self._file}:{self._breaks_read + lines.count_breaks(valid) + 1}: {error}")
            return valid.decode()
        self._offset += len(raw)
        self._breaks_read += lines.count_breaks(raw)
        return text

    def holds(self, end: int) -> bool:
        """Whether a value that ends at `end` cannot be the start of a longer one."""
        return self.ended or self._problem is not None or end < len(self.text) - _AHEAD

    def peek(self) -> str:
        """The character at the place; empty at the end of the file."""
        while self.position >= len(self.text) and self.more():
            pass
        return self.text[self.position : self.position + 1]

    def ahead(self) -> str:
        """The next characters, for a message."""
        with contextlib.suppress(DataError):
            while len(self.text) - self.position < _AHEAD and self.more():
                pass
        return self.text[self.position : self.position + _AHEAD]

    def skip_space(self) -> None:
        """Go on to the next character that is not white space."""
        while self.peek() and (found := _SPACE.match(self.text, self.position)) and found.group():
            self.position = found.end()

    def _count(self) -> None:
        self._breaks_passed += len(re.findall(r"\r\n|\n|\r", self.text[self._counted : self.position]))
        self._counted = self.position

    def source(self) -> Source:
        """The file and the line of the place."""
        self._count()
        return Source(self._file, self._breaks_passed + 1)

    def problem(self, text: str) -> DataError:
        """What is wrong at the place."""
        return DataError(str(Problem(self.source(), text, "not_json")))


def _whole_characters(raw: bytes) -> int:
    """Bytes of `raw` without a character, or a line break, that may be cut in two at its end."""
    for back in (1, 2, 3):
        lead = raw[-back] if back <= len(raw) else 0
        if lead >= 0xC0:
            needed = 2 if lead < 0xE0 else 3 if lead < 0xF0 else 4
            return len(raw) - back if back < needed else len(raw)
        if lead < 0x80:
            break
    return len(raw) - raw.endswith(b"\r")


def _elements(text: _Text) -> Iterator[Row | Problem]:
    while True:
        text.skip_space()
        yield _element(text)
        text.skip_space()
        separator = text.peek()
        if separator not in ("]", ","):
            near = text.ahead()
            found = shortened(near, 40) if near else "the end of the file"
            raise text.problem(f"expected `,` or `]` after an element, found {found}")
        text.position += 1
        if separator == "]":
            return


def _element(text: _Text) -> Row | Problem:
    """The value at the place; one that is refused is a problem of its own, since where it ends is certain."""
    source = text.source()
    try:
        return Row(source, _value(STRICT, text))
    except ValueError as refusal:
        problem = _parse_problem(refusal, text.text, text.before)
    _value(_LENIENT, text)
    return Problem(source, problem, "not_json")


def _value(decoder: json.JSONDecoder, text: _Text) -> Any:
    """The value at the place, which is then behind it.

    Raises:
        DataError: it is not JSON, or over the limit of a line.
        ValueError: `decoder` refuses it.
    """
    while True:
        end = None
        try:
            value, end = decoder.raw_decode(text.text, text.position)
        except json.JSONDecodeError as error:
            if not _may_go_on(error, text):
                text.position = error.pos
                raise text.problem(_parse_problem(error, text.text, text.before)) from None
        except RecursionError:
            raise text.problem("nested too deeply") from None
        if end is not None and text.holds(end):
            _check_size(end - text.position, text)
            text.position = end
            return value
        held = len(text.text) - text.position
        _check_size(held - _AHEAD, text)
        text.more(held)  # twice as much each time, so that a long value is not parsed once for every block of it


def _check_size(size: int, text: _Text) -> None:
    if size > lines.MAX_LINE_BYTES:
        raise text.problem(f"an element of more than {lines.MAX_LINE_BYTES:,} characters")


def _may_go_on(error: json.JSONDecodeError, text: _Text) -> bool:
    """Whether the problem is that the value is not read to its end yet."""
    cut = error.msg.startswith("Unterminated string") or error.pos > len(text.text) - _AHEAD
    return cut and not text.ended
