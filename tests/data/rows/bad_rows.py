"""List rows that are wrong and what has to be said of each, and say what is found in a source."""

import json
from pathlib import Path
from typing import Any, NamedTuple

from orpo_cli.data.pairs import Problem
from orpo_cli.data.rows.readers import read_rows
from orpo_cli.data.rows.sources import DatasetChoice, find_files
from orpo_cli.data.shapes.conversion import to_pairs
from orpo_cli.data.shapes.shape import Shape
from orpo_cli.errors import DataError

NEITHER = "expected a text or a list of messages"
GOOD = b'{"prompt": "p", "chosen": "c", "rejected": "r"}'


def row(**fields: Any) -> bytes:
    return json.dumps({"prompt": "p", "chosen": "c", "rejected": "r"} | fields).encode()


class BadRow(NamedTuple):
    """Hold a line that stands between two good ones, and what must be said of it.

    `ends_array` tells that an array cannot be read further, since nobody knows where the next element starts.
    """

    name: str
    line: bytes
    said: str
    ends_array: bool = False


BAD_ROWS = [
    BadRow("invalid JSON in the middle", b'{"prompt": "p" "chosen": "c"}', "column 16: invalid JSON", True),
    BadRow("a missing value", b'{"prompt": }', "column 12: invalid JSON", True),
    BadRow("single quotes", b"{'prompt': 'p'}", "column 2: invalid JSON", True),
    BadRow("trailing comma", GOOD[:-1] + b",}", "invalid JSON", True),
    BadRow("a raw tab inside a string", GOOD.replace(b"p", b"\t", 1), "invalid JSON", True),
    BadRow("an integer as prompt", row(prompt=7), f'prompt: {NEITHER}, found a number ("7")'),
    BadRow("a float as chosen", row(chosen=0.5), f"chosen: {NEITHER}, found a number"),
    BadRow("true as rejected", row(rejected=True), f"rejected: {NEITHER}, found true or false"),
    BadRow("an object as prompt", row(prompt={"a": 1}), f"prompt: {NEITHER}, found an object"),
    BadRow(
        "a list of integers", row(chosen=[1]), 'chosen[0]: expected a text or a list of messages, found a number ("1")'
    ),
    BadRow("an empty list", row(chosen=[]), "chosen: an empty list of messages"),
    BadRow("missing key", b'{"prompt": "p", "chosen": "c"}', 'rejected: missing; the row has "prompt", "chosen"'),
    BadRow("no keys", b"{}", "prompt: missing; the row has no keys at all"),
    BadRow("null", row(rejected=None), f"rejected: {NEITHER}, found null"),
    BadRow("duplicate key", GOOD[:-1] + b', "prompt": "q"}', '"prompt": key stands twice in one object'),
    BadRow("duplicate key further in", row()[:-1] + b', "x": {"a": 1, "a": 2}}', '"a": key stands twice'),
    BadRow("a string", b'"prompt"', "row: expected an object with prompt, chosen and rejected, found a text"),
    BadRow("a list", b"[1, 2]", "row: expected an object with prompt, chosen and rejected, found a list"),
    BadRow("a number", b"3", "row: expected an object with prompt, chosen and rejected, found a number"),
    BadRow("a null", b"null", "row: expected an object with prompt, chosen and rejected, found null"),
    BadRow("NaN", GOOD[:-1] + b', "score": NaN}', "NaN is not JSON"),
    BadRow("Infinity", GOOD[:-1] + b', "score": -Infinity}', "-Infinity is not JSON"),
    BadRow("a lone surrogate", row(chosen="a\ud800"), "chosen: lone surrogate U+D800"),
    BadRow("an escaped NUL", row(chosen="ab\0"), "chosen: character U+0000 at position 3"),
    BadRow("5000 deep", b"[" * 5000 + b"]" * 5000, "nested too deeply", True),
    BadRow("5000 deep in objects", b'{"a":' * 5000 + b"1" + b"}" * 5000, "nested too deeply", True),
    BadRow("5000 digits", GOOD[:-1] + b', "n": ' + b"7" * 5000 + b"}", "an integer has too many digits"),
    BadRow("empty chosen", row(chosen=""), 'chosen: empty ("")'),
    BadRow("blank rejected", row(rejected=" \n"), 'rejected: empty (" \\n")'),
    BadRow("empty prompt", row(prompt=""), 'prompt: empty ("")'),
]
BAD_LINES = [
    BadRow("trailing garbage", GOOD + b" # good", 'column 49: unexpected text after the value: "# good"'),
    BadRow("two rows on a line", GOOD + GOOD, "column 48: unexpected text after the value"),
    BadRow("a line cut short", GOOD[:30], "invalid JSON"),
    BadRow("a Latin-1 byte", GOOD.replace(b"c", b"caf\xe9", 1), "not UTF-8: byte 0xe9"),
    BadRow("a raw NUL byte", GOOD.replace(b"p", b"a\0b", 1), "NUL byte at byte"),
]


_ONE = DatasetChoice()
_COLUMNS = {name: name for name in ("prompt", "chosen", "rejected", "system", "tools", "weight")}


def found_in(path: Path | str, dataset: DatasetChoice = _ONE) -> tuple[list[int], list[str]]:
    """Return the lines of the valid pairs that a path names, and all problems, without the folder of the file."""
    pairs, problems, folder = [], [], str(Path(path).parent)
    try:
        for file in find_files(str(path), dataset):
            shape = Shape("pairs", _COLUMNS, "all", 0.0, file.has_cells)
            for row in read_rows(file):
                found = row if isinstance(row, Problem) else to_pairs(row, shape)
                if isinstance(found, Problem):
                    problems.append(str(found))
                else:
                    pairs += [pair.source.line for pair in found]
    except DataError as error:
        problems.append(str(error))
    return pairs, [problem.replace(f"{folder}/", "") for problem in problems]
