"""Bytes of a file to numbered lines of text, with every problem of encoding named.

Lines end at CR LF, LF or CR, never at the other characters that `str.splitlines` would take (U+2028 is legal inside a
JSON string). A file is cut into blocks of whole lines first, so that several processes can share it.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

from orpo_cli.data.pairs import Problem, Source
from orpo_cli.errors import DataError

MAX_LINE_BYTES = 10_000_000
BLOCK_BYTES = 1 << 19
_BREAK = re.compile(rb"\r\n|\n|\r")


class UndecodableError(ValueError):
    """Bytes that are not UTF-8 text; `place` is where in the file, 0-based."""

    def __init__(self, place: int, text: str) -> None:
        super().__init__(text)
        self.place = place


@dataclass(frozen=True)
class Line:
    """One line: its 1-based number, and its text without the line break."""

    number: int
    text: str


@dataclass(frozen=True)
class LineBlock:
    """Whole lines of a file.

    Args:
        number: of the first line.
        offset: of its first byte in the file.
        raw: the bytes; for one line over the limit nothing.
        oversize: bytes of that line, else 0.
    """

    number: int
    offset: int
    raw: bytes
    oversize: int = 0


def line_blocks(stream: BinaryIO, file: str) -> Iterator[LineBlock]:
    """A file as blocks of about half a megabyte; a line over the limit is passed over without being held.

    Raises:
        DataError: the whole file is in another encoding.
    """
    rest = stream.read(BLOCK_BYTES)
    refuse_other_kinds(rest[:8], file)
    offset = len(rest) - len(without_bom(rest))
    number, rest, passed = 1, rest[offset:], 0  # passed: bytes of a line over the limit that are not held any more
    while True:
        if passed and (found := _first_break(rest)):
            yield LineBlock(number, offset, b"", passed + found.start())
            number, offset, rest, passed = number + 1, offset + passed + found.end(), rest[found.end() :], 0
        if not passed and (end := _last_break(rest)):
            yield LineBlock(number, offset, rest[:end])
            number, offset, rest = number + count_breaks(rest[:end]), offset + end, rest[end:]
        if passed or len(rest) > MAX_LINE_BYTES + 1:
            passed, rest = passed + len(rest) - 1, rest[-1:]  # the last byte may be the CR that ends this line
        chunk = stream.read(BLOCK_BYTES)
        if not chunk:
            break
        rest += chunk
    if passed:
        yield LineBlock(number, offset, b"", passed + len(rest.removesuffix(b"\r")))
    elif rest:
        yield LineBlock(number, offset, rest)


def _first_break(raw: bytes) -> re.Match[bytes] | None:
    """The first line break that is certainly whole: a CR at the end may be half of CR LF."""
    found = _BREAK.search(raw)
    return None if found and found.group() == b"\r" and found.end() == len(raw) else found


def _last_break(raw: bytes) -> int:
    """Where the last line that certainly ends in `raw` ends; 0 where none does."""
    return max(raw.rfind(b"\n"), raw.rfind(b"\r", 0, len(raw) - 1)) + 1


def count_breaks(raw: bytes) -> int:
    """Line breaks in `raw`."""
    return raw.count(b"\n") if b"\r" not in raw else len(_BREAK.findall(raw))


def lines_of(block: LineBlock, file: str) -> Iterator[Line | Problem]:
    """Lines of a block that are not blank, or the problem that stands in their place."""
    if block.oversize:
        yield too_long(Source(file, block.number), block.oversize)
        return
    for number, start, raw in with_breaks(block):
        yield from _line(file, number, start, raw.rstrip(b"\r\n"))


def with_breaks(block: LineBlock) -> Iterator[tuple[int, int, bytes]]:
    """(number, place in the file, bytes with the line break) of each line of a block."""
    number, start = block.number, 0
    for match in _BREAK.finditer(block.raw):
        yield number, block.offset + start, block.raw[start : match.end()]
        number, start = number + 1, match.end()
    if start < len(block.raw):
        yield number, block.offset + start, block.raw[start:]


def read_lines(stream: BinaryIO, file: str) -> Iterator[Line | Problem]:
    """Lines of a whole file.

    Raises:
        DataError: the whole file is in another encoding.
    """
    for block in line_blocks(stream, file):
        yield from lines_of(block, file)


def _line(file: str, number: int, start: int, raw: bytes) -> Iterator[Line | Problem]:
    source = Source(file, number)
    if len(raw) > MAX_LINE_BYTES:
        yield too_long(source, len(raw))
    elif raw.strip():
        try:
            yield Line(number, decode(raw, start))
        except UndecodableError as error:
            yield Problem(source, str(error), "encoding")


def too_long(source: Source, size: int) -> Problem:
    """The problem that stands in the place of a line over the limit."""
    return Problem(source, f"line of {size:,} bytes; the limit is {MAX_LINE_BYTES:,}", "too_large")


def decode(raw: bytes, offset: int = 0) -> str:
    """UTF-8 text of `raw`.

    Args:
        offset: place of `raw` in the file, for the message.
    Raises:
        UndecodableError: not UTF-8, or a NUL byte.
    """
    try:
        text, whole = raw.decode("utf-8"), len(raw)
    except UnicodeDecodeError as error:
        text, whole = "", error.start
    if 0 <= (nul := raw.find(b"\0")) < whole:
        place = offset + nul
        if not raw[nul:].strip(b"\0"):
            raise UndecodableError(place, f"NUL bytes from byte {place} on: the file seems truncated by a crash")
        raise UndecodableError(place, f"NUL byte at byte {place}")
    if whole < len(raw):
        place = offset + whole
        raise UndecodableError(place, f"not UTF-8: byte 0x{raw[whole]:02x} at byte {place} of the file")
    return text


_OTHER_KINDS = {
    b"\x1f\x8b": "packed with gzip; name it .gz",
    b"\x28\xb5\x2f\xfd": "packed with zstd; name it .zst",
    b"\xfd7zXZ": "packed with xz; unpack it",
    b"BZh": "packed with bzip2; unpack it",
    b"PK\x03\x04": "a zip archive; unpack it",
    b"PAR1": "a Parquet file; name it .parquet",
    b"ARROW1": "an Arrow file; name it .arrow",
}
"""How files begin that are no text."""


def refuse_other_kinds(head: bytes, file: str) -> None:
    """Raise DataError if the first bytes of a file are no UTF-8 text: UTF-16 (or UTF-32), packed, or a table."""
    for start, kind in _OTHER_KINDS.items():
        if head.startswith(start):
            raise DataError(f"{file}:1: looks like {kind}")
    has_mark = head.startswith((b"\xff\xfe", b"\xfe\xff", b"\0\0\xfe\xff"))
    every_other = len(head) >= 4 and (set(head[0:8:2]) == {0} or set(head[1:8:2]) == {0}) and any(head[:8])
    if has_mark or every_other:
        raise DataError(f"{file}:1: looks like UTF-16; save it as UTF-8")


def without_bom(raw: bytes) -> bytes:
    """`raw` without the UTF-8 byte order mark that some editors put first."""
    return raw.removeprefix(b"\xef\xbb\xbf")
