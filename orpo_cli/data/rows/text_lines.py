"""Cut the bytes of a file into numbered lines of text, and name every problem of encoding.

Lines end at CR LF, LF or CR, never at the other characters that `str.splitlines` would take (U+2028 is legal inside a
JSON string). A file is cut into blocks of whole lines first, so that several processes can share it.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

from orpo_cli.data.pairs import Problem, Source
from orpo_cli.data.rows.encodings import how_to_convert, likely_encoding, wide_encoding
from orpo_cli.errors import DataError

MAX_LINE_BYTES = 10_000_000
BLOCK_BYTES = 1 << 19
_HELD_BYTES = 100_000_000
"""Bytes of one line beyond which a file is not taken for text in lines."""

_BREAK = re.compile(rb"\r\n|\n|\r")


class UndecodableError(ValueError):
    """Raised at bytes that are not UTF-8 text.

    Args:
        place: the 0-based place in the file.
    """

    def __init__(self, place: int, text: str) -> None:
        super().__init__(text)
        self.place = place


@dataclass(frozen=True)
class Line:
    """Hold one line: its 1-based number, and its text without the line break."""

    number: int
    text: str


@dataclass(frozen=True)
class LineBlock:
    """Hold whole lines of a file.

    Args:
        number: the number of the first line.
        offset: the place of the first byte in the file.
    """

    number: int
    offset: int
    raw: bytes


def line_blocks(stream: BinaryIO, file: str) -> Iterator[LineBlock]:
    """Cut a file into blocks of about half a megabyte, or of one longer line.

    Raises:
        DataError: if the file is packed, a table, text in another encoding, or has no lines.
    """
    rest = stream.read(BLOCK_BYTES)
    refuse_other_kinds(rest[:8], file)
    offset = len(rest) - len(without_bom(rest))
    number, rest = 1, rest[offset:]
    while True:
        if end := _last_break(rest):
            yield LineBlock(number, offset, rest[:end])
            number, offset, rest = number + count_breaks(rest[:end]), offset + end, rest[end:]
        if len(rest) > _HELD_BYTES:
            problem = f"line of more than {_HELD_BYTES:,} bytes; the limit is {MAX_LINE_BYTES:,}"
            raise DataError(str(Problem(Source(file, number), problem, "too_large")))
        chunk = stream.read(BLOCK_BYTES)
        if not chunk:
            break
        rest += chunk
    if rest:
        yield LineBlock(number, offset, rest)


def _last_break(raw: bytes) -> int:
    """Return the end of the last line that certainly ends in `raw`, or 0 where none does."""
    return max(raw.rfind(b"\n"), raw.rfind(b"\r", 0, len(raw) - 1)) + 1


def count_breaks(raw: bytes) -> int:
    """Count the line breaks in `raw`."""
    return raw.count(b"\n") if b"\r" not in raw else len(_BREAK.findall(raw))


def lines_of(block: LineBlock, file: str) -> Iterator[Line | Problem]:
    """Yield the lines of a block that are not blank, or the problem that stands in their place."""
    added: str | None = None
    for number, start, with_break in with_breaks(block):
        raw = with_break.rstrip(b"\r\n")
        if problem := too_long(raw, Source(file, number)):
            yield problem
        elif raw.strip():
            try:
                yield Line(number, decode(raw, start))
            except UndecodableError as error:
                added = advice(block.raw, error.place - block.offset) if added is None else added
                yield Problem(Source(file, number), f"{error}{added}", "encoding")


def with_breaks(block: LineBlock) -> Iterator[tuple[int, int, bytes]]:
    """Yield the number, the place in the file and the bytes with the line break of each line of a block."""
    number, start = block.number, 0
    for match in _BREAK.finditer(block.raw):
        yield number, block.offset + start, block.raw[start : match.end()]
        number, start = number + 1, match.end()
    if start < len(block.raw):
        yield number, block.offset + start, block.raw[start:]


def too_long(line: bytes, source: Source) -> Problem | None:
    """Return the problem of a line over the limit."""
    if len(line) <= MAX_LINE_BYTES:
        return None
    return Problem(source, f"line of {len(line):,} bytes; the limit is {MAX_LINE_BYTES:,}", "too_large")


def decode(raw: bytes, offset: int = 0) -> str:
    """Return the text of some bytes.

    Args:
        offset: the place of `raw` in the file, for the message.
    Raises:
        UndecodableError: if the bytes are not UTF-8, or one of them is NUL.
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


def advice(raw: bytes, place: int) -> str:
    """Return what to add to the message of an `UndecodableError` about `raw[place]`; it costs a millisecond."""
    encoding = likely_encoding(raw, place)
    return f", {how_to_convert(encoding)}" if encoding else ""


_OTHER_KINDS = {
    b"\x1f\x8b": "packed with gzip; name it .gz",
    b"\x28\xb5\x2f\xfd": "packed with zstd; name it .zst",
    b"\xfd7zXZ": "packed with xz; unpack it",
    b"BZh": "packed with bzip2; unpack it",
    b"PK\x03\x04": "a zip archive; unpack it, or save the sheet as CSV if it is one of Excel",
    b"PAR1": "a Parquet file; name it .parquet",
    b"ARROW1": "an Arrow file; name it .arrow",
}
"""The first bytes of files that are not text, and what to do with such a file."""


def refuse_other_kinds(head: bytes, file: str) -> None:
    """Raise DataError if a file that begins with these 8 bytes is UTF-16 or UTF-32, packed, or a table."""
    for start, kind in _OTHER_KINDS.items():
        if head.startswith(start):
            raise DataError(f"{file}:1: looks like {kind}")
    if encoding := wide_encoding(head):
        raise DataError(f"{file}:1: not UTF-8, {how_to_convert(encoding)}")


def without_bom(raw: bytes) -> bytes:
    """Return `raw` without the UTF-8 byte order mark that some editors put first."""
    return raw.removeprefix(b"\xef\xbb\xbf")
