"""Read rows from JSON Lines, from one JSON array, or from values one after another, each with the line it starts on."""

import itertools
from collections.abc import Iterator
from typing import BinaryIO

from orpo_cli.data.pairs import Problem, Row, Source
from orpo_cli.data.rows import text_lines
from orpo_cli.data.rows.json_text import LENIENT, JsonText, parsed, what_is_wrong
from orpo_cli.data.rows.strict_json import STRICT
from orpo_cli.quoting import shortened


def line_rows(block: text_lines.LineBlock, file: str) -> Iterator[Row | Problem]:
    """Yield the rows of a block of JSON Lines."""
    for found in text_lines.lines_of(block, file):
        yield found if isinstance(found, Problem) else _parsed_line(found, file)


def _parsed_line(line: text_lines.Line, file: str) -> Row | Problem:
    source = Source(file, line.number)
    start = len(line.text) - len(line.text.lstrip())
    try:
        value, end = STRICT.raw_decode(line.text, start)
    except ValueError as error:
        is_open = line.number == 1 and line.text.rstrip().endswith(("{", "["))
        hint = " (an object over several lines? expected an array, or one object a line)" if is_open else ""
        return Problem(source, what_is_wrong(error, line.text) + hint, "not_json")
    except RecursionError:
        return Problem(source, "nested too deeply", "not_json")
    rest = line.text[end:].lstrip()
    if rest:
        column = len(line.text) - len(rest) + 1
        return Problem(source, f"column {column}: unexpected text after the value: {shortened(rest)}", "not_json")
    return Row(source, value)


def array_rows(stream: BinaryIO, file: str) -> Iterator[Row | Problem]:
    """Yield the elements of a top-level array, which is never held whole.

    Raises:
        DataError: if there is a syntax error; the boundaries of what follows are not certain.
    """
    text = JsonText(stream, file)
    text.skip_space()
    yield from elements(text)
    expect_end(text, "the array")


def value_rows(stream: BinaryIO, file: str) -> Iterator[Row | Problem]:
    """Yield values that stand one after another and may be written over several lines.

    Raises:
        DataError: if there is a syntax error.
    """
    text = JsonText(stream, file)
    text.skip_space()
    while text.peek():
        yield element(text, 0)
        text.skip_space()


def elements(text: JsonText) -> Iterator[Row | Problem]:
    """Yield the elements of the array at the place, and move behind it.

    Raises:
        DataError: if there is a syntax error.
    """
    text.position += 1  # the opening bracket
    text.skip_space()
    if text.peek() == "]":
        text.position += 1
        return
    for number in itertools.count(1):
        text.skip_space()
        yield element(text, number)
        text.skip_space()
        separator = text.peek()
        if separator not in ("]", ","):
            raise text.error(f"expected `,` or `]` after an element, found {text.found()}")
        text.position += 1
        if separator == "]":
            return


def element(text: JsonText, number: int) -> Row | Problem:
    """Return the value at the place, or its problem where it is refused but ends at a certain place.

    Args:
        number: the number of the row, or 0 where its line is enough.
    """
    source = text.source(number)
    try:
        return Row(source, parsed(STRICT, text))
    except ValueError as error:
        problem = Problem(source, what_is_wrong(error, text.text, text.before), "not_json")
    parsed(LENIENT, text)
    return problem


def expect_end(text: JsonText, behind: str) -> None:
    """Raise DataError if something follows in the file."""
    text.skip_space()
    if text.peek():
        raise text.error(f"unexpected text after {behind}: {shortened(text.ahead(), 40)}")
