"""Bytes of a file to numbered lines of text, with every fault of encoding named.

Lines end at CR LF, LF or CR, never at the other characters that `str.splitlines` would take (U+2028 is legal inside a
JSON string).
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

from orpo_cli.data.pairs import Problem, Source
from orpo_cli.errors import DataError

MAX_LINE_BYTES = 10_000_000
_CHUNK_BYTES = 1 << 20
_BREAK = re.compile(rb"\r\n|\n|\r(?=[\s\S])")  # a CR that ends the buffer may be half of CR LF


class UndecodableError(ValueError):
    """Bytes that are not UTF-8 text; `place` is where in the file, 0-based."""

    def __init__(self, place: int, text: str) -> None:
        super().__init__(text)
        self.place = place


@dataclass(frozen=True)
class Line:
    """One line: its 1-based number, its text without the line break, and where it starts in the file."""

    number: int
    text: str


def read_lines(stream: BinaryIO, file: str) -> Iterator[Line | Problem]:
    """Lines that are not blank, or the problem that stands in their place.

    Raises:
        DataError: the whole file is in another encoding.
    """
    for number, offset, raw in _raw_lines(stream, file):
        source = Source(file, number)
        if isinstance(raw, int):
            yield Problem(source, f"line of {raw:,} bytes; the limit is {MAX_LINE_BYTES:,}", "too_large")
        elif raw.strip():
            yield _decoded(raw, offset, source)


def decode(raw: bytes, offset: int = 0) -> str:
    """UTF-8 text of `raw`.

    Args:
        offset: place of `raw` in the file, for the message.
    Raises:
        UndecodableError: not UTF-8, or a NUL byte.
    """
    if b"\0" in raw:
        place = offset + raw.index(b"\0")
        if not raw[place - offset :].strip(b"\0"):
            raise UndecodableError(place, f"NUL bytes from byte {place} on: the file seems truncated by a crash")
        raise UndecodableError(place, f"NUL byte at byte {place}")
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        place = offset + error.start
        text = f"not UTF-8: byte 0x{raw[error.start]:02x} at byte {place} of the file"
        raise UndecodableError(place, text) from None


def refuse_utf16(head: bytes, file: str) -> None:
    """Raise DataError if the first bytes of a file are UTF-16 (or UTF-32) text."""
    has_mark = head.startswith((b"\xff\xfe", b"\xfe\xff", b"\0\0\xfe\xff"))
    every_other = len(head) >= 4 and (set(head[0:8:2]) == {0} or set(head[1:8:2]) == {0}) and any(head[:8])
    if has_mark or every_other:
        raise DataError(f"{file}:1: looks like UTF-16; save it as UTF-8")


def without_bom(raw: bytes) -> bytes:
    """`raw` without the UTF-8 byte order mark that some editors put first."""
    return raw.removeprefix(b"\xef\xbb\xbf")


def _decoded(raw: bytes, offset: int, source: Source) -> Line | Problem:
    try:
        return Line(source.line, decode(raw, offset))
    except UndecodableError as error:
        return Problem(source, str(error), "encoding")


def _raw_lines(stream: BinaryIO, file: str) -> Iterator[tuple[int, int, bytes | int]]:
    """(number, byte offset, bytes); for a line over the limit its size instead of its bytes."""
    first = stream.read(_CHUNK_BYTES)
    refuse_utf16(first[:8], file)
    rest = without_bom(first)
    offset, number, oversize = len(first) - len(rest), 0, 0
    while True:
        start = 0
        for match in _BREAK.finditer(rest):
            number += 1
            piece = rest[start : match.start()]
            yield number, offset + start, oversize + len(piece) if _too_long(oversize, piece) else piece
            oversize, start = 0, match.end()
        rest, offset = rest[start:], offset + start
        if len(rest) > MAX_LINE_BYTES + 1:
            passed = len(rest) - 1  # the last byte may be the CR that ends this line
            oversize, offset, rest = oversize + passed, offset + passed, rest[passed:]
        chunk = stream.read(_CHUNK_BYTES)
        if not chunk:
            break
        rest += chunk
    if rest or oversize:
        last = rest.removesuffix(b"\r")
        yield number + 1, offset, oversize + len(last) if _too_long(oversize, last) else last


def _too_long(oversize: int, piece: bytes) -> bool:
    return oversize + len(piece) > MAX_LINE_BYTES
