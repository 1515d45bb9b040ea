"""Read the text of a JSON file value by value; it is held only as far as it is needed."""

import codecs
import contextlib
import json
import re
from typing import Any, BinaryIO

from orpo_cli.data.pairs import ProblemError, Source
from orpo_cli.data.rows import text_lines
from orpo_cli.errors import DataError
from orpo_cli.quoting import shortened

_AHEAD = 60
"""Characters to read beyond a place, to show them, and to see where a token such as `1.` or `-Infin` ends."""

_SPACE = re.compile(r"[ \t\r\n]*")
_BREAK = re.compile(r"\r\n|\n|\r")

LENIENT = json.JSONDecoder(parse_int=str)
"""A parser that refuses nothing but broken syntax, to find where a refused value ends."""


def what_is_wrong(error: ValueError, text: str, before: int = 0) -> str:
    """Say why a parser refused a value in `text`; `before` characters of its first line stood in front of it."""
    if isinstance(error, json.JSONDecodeError):
        near = text[error.pos : error.pos + _AHEAD]
        found = f"found {shortened(near, 40)}" if near else "the text ends here"
        if near[:1] in ("]", "}") and text[: error.pos].rstrip().endswith(","):
            found += "; there must be no comma before it"
        line_break = _last_break(text[: error.pos])
        column = error.pos - line_break + (before if line_break < 0 else 0)
        return f"column {column}: invalid JSON: {error.msg}; {found}"
    return str(error) if isinstance(error, ProblemError) else "an integer has too many digits"


def _last_break(text: str) -> int:
    return max(text.rfind("\n"), text.rfind("\r"))


class JsonText:
    """Hold the text of a file as far as it is needed, and a place in it.

    What lies before the place is forgotten when more is read. Bytes that are not text are an error only once the place
    gets there, so that the rows before them come first, wherever the blocks of the file end.
    """

    def __init__(self, stream: BinaryIO, file: str) -> None:
        self._stream = stream
        self._file = file
        self._pending = stream.read(text_lines.BLOCK_BYTES)
        text_lines.refuse_other_kinds(self._pending[:8], file)
        self._offset = len(self._pending) - len(text_lines.without_bom(self._pending))
        self._pending = self._pending[self._offset :]
        self._line = 1
        self._counted = 0  # `_line` is the line of this place
        self._undecodable: text_lines.UndecodableError | None = None
        self.before = 0
        self.ended = False
        self.text = ""
        self.position = 0

    def more(self, at_least: int = 0) -> bool:
        """Read on; return False at the end of the file.

        Raises:
            DataError: if what follows is not text.
        """
        if self._undecodable is not None:
            line = self.source().line + len(_BREAK.findall(self.text, self.position))
            raise DataError(f"{self._file}:{line}: {self._undecodable}")
        if self.ended:
            return False
        self._forget()
        size = max(at_least, text_lines.BLOCK_BYTES)
        further = self._stream.read(size)
        raw = self._pending + further
        while further and raw.endswith(b"\0") and not raw[raw.index(b"\0") :].strip(b"\0"):
            further = self._stream.read(size)  # tells a tail of NUL bytes from a single one, without holding it
            raw += further if further.strip(b"\0") else b""
        self.ended = not further
        whole = len(raw) if self.ended else _whole_characters(raw)
        self.text += self._decoded(raw[:whole])
        self._offset += whole
        self._pending = raw[whole:]
        return True

    def _forget(self) -> None:
        self.source()
        passed = self.text[: self.position]
        line_break = _last_break(passed)
        self.before = len(passed) - line_break - 1 + (self.before if line_break < 0 else 0)
        self.text, self.position, self._counted = self.text[self.position :], 0, 0

    def _decoded(self, raw: bytes) -> str:
        try:
            return text_lines.decode(raw, self._offset)
        except text_lines.UndecodableError as error:
            place = error.place - self._offset
            self._undecodable = text_lines.UndecodableError(error.place, f"{error}{text_lines.advice(raw, place)}")
            self.ended = False
            return raw[:place].decode()

    def is_whole(self, end: int) -> bool:
        """Return whether a value that ends at `end` cannot be the start of a longer one."""
        return self.ended or self._undecodable is not None or end < len(self.text) - _AHEAD

    def peek(self) -> str:
        """Return the character at the place, or nothing at the end of the file."""
        while self.position >= len(self.text) and self.more():
            pass
        return self.text[self.position : self.position + 1]

    def ahead(self) -> str:
        """Return the next characters, for a message."""
        with contextlib.suppress(DataError):
            while len(self.text) - self.position < _AHEAD and self.more():
                pass
        return self.text[self.position : self.position + _AHEAD]

    def found(self) -> str:
        """Return what stands at the place, for a message."""
        near = self.ahead()
        return shortened(near, 40) if near else "the end of the file"

    def skip_space(self) -> None:
        """Move to the next character that is not white space."""
        while self.peek() and (found := _SPACE.match(self.text, self.position)) and found.group():
            self.position = found.end()

    def source(self, row: int = 0) -> Source:
        """Return the file and the line of the place, for the row of a number."""
        self._line += len(_BREAK.findall(self.text, self._counted, self.position))
        self._counted = self.position
        return Source(self._file, self._line, row)

    def error(self, text: str) -> DataError:
        """Return an error that names the place."""
        return DataError(f"{self.source()}: {text}")


def _whole_characters(raw: bytes) -> int:
    """Count the bytes of `raw` without a character, or a line break, that may be cut in two at its end."""
    try:
        _, whole = codecs.utf_8_decode(raw, "strict", False)
    except UnicodeDecodeError:
        return len(raw)
    return whole - raw[:whole].endswith(b"\r")


def parsed(decoder: json.JSONDecoder, text: JsonText) -> Any:
    """Return the value at the place, and move behind it.

    Raises:
        DataError: if it is not JSON, or over the limit of a line.
        ValueError: if `decoder` refuses it.
    """
    while True:
        end = None
        try:
            value, end = decoder.raw_decode(text.text, text.position)
        except json.JSONDecodeError as error:
            if text.ended or not _may_be_cut(error, text):
                text.position = error.pos
                raise text.error(what_is_wrong(error, text.text, text.before)) from None
        except RecursionError:
            raise text.error("nested too deeply") from None
        if end is not None and text.is_whole(end):
            _check_size(end - text.position, text)
            text.position = end
            return value
        held = len(text.text) - text.position
        _check_size(held - _AHEAD, text)
        text.more(held)  # twice as much each time, so that a long value is not parsed once for every block of it


def _check_size(size: int, text: JsonText) -> None:
    if size > text_lines.MAX_LINE_BYTES:
        raise text.error(f"an element of more than {text_lines.MAX_LINE_BYTES:,} characters")


def _may_be_cut(error: json.JSONDecodeError, text: JsonText) -> bool:
    return error.msg.startswith("Unterminated string") or error.pos > len(text.text) - _AHEAD
