"""Rows that are wrong, and what has to be said of each."""

import json
from typing import Any, NamedTuple

NEITHER = "expected a text or a list of messages"
GOOD = b'{"prompt": "p", "chosen": "c", "rejected": "r"}'


def row(**fields: Any) -> bytes:
    return json.dumps({"prompt": "p", "chosen": "c", "rejected": "r"} | fields).encode()


class Fault(NamedTuple):
    """A line that stands between two good ones, and what must be said of it.

    `ends_array` tells that an array cannot be read further, since nobody knows where the next element starts.
    """

    name: str
    line: bytes
    said: str
    ends_array: bool = False


FAULTS = [
    Fault("invalid JSON in the middle", b'{"prompt": "p" "chosen": "c"}', "column 16: invalid JSON", True),
    Fault("a missing value", b'{"prompt": }', "column 12: invalid JSON", True),
    Fault("single quotes", b"{'prompt': 'p'}", "column 2: invalid JSON", True),
    Fault("trailing comma", GOOD[:-1] + b",}", "invalid JSON", True),
    Fault("a raw tab inside a string", GOOD.replace(b"p", b"\t", 1), "invalid JSON", True),
    Fault("an integer as prompt", row(prompt=7), f'prompt: {NEITHER}, found a number ("7")'),
    Fault("a float as chosen", row(chosen=0.5), f"chosen: {NEITHER}, found a number"),
    Fault("true as rejected", row(rejected=True), f"rejected: {NEITHER}, found true or false"),
    Fault("an object as prompt", row(prompt={"a": 1}), f"prompt: {NEITHER}, found an object"),
    Fault("a list of integers", row(chosen=[1]), 'chosen[0]: expected a message with role and content, found "1"'),
    Fault("an empty list", row(chosen=[]), "chosen: an empty list of messages"),
    Fault("missing key", b'{"prompt": "p", "chosen": "c"}', 'rejected: missing; the row has "prompt", "chosen"'),
    Fault("no keys", b"{}", "prompt: missing; the row has no keys at all"),
    Fault("null", row(rejected=None), f"rejected: {NEITHER}, found null"),
    Fault("duplicate key", GOOD[:-1] + b', "prompt": "q"}', '"prompt": key stands twice in one object'),
    Fault("duplicate key further in", row()[:-1] + b', "x": {"a": 1, "a": 2}}', '"a": key stands twice'),
    Fault("a string", b'"prompt"', "row: expected an object with prompt, chosen and rejected, found a text"),
    Fault("a list", b"[1, 2]", "row: expected an object with prompt, chosen and rejected, found a list"),
    Fault("a number", b"3", "row: expected an object with prompt, chosen and rejected, found a number"),
    Fault("a null", b"null", "row: expected an object with prompt, chosen and rejected, found null"),
    Fault("NaN", GOOD[:-1] + b', "score": NaN}', "NaN is not JSON"),
    Fault("Infinity", GOOD[:-1] + b', "score": -Infinity}', "-Infinity is not JSON"),
    Fault("a lone surrogate", row(chosen="a\ud800"), "chosen: lone surrogate U+D800"),
    Fault("an escaped NUL", row(chosen="ab\0"), "chosen: character U+0000 at position 3"),
    Fault("5000 deep", b"[" * 5000 + b"]" * 5000, "nested too deeply", True),
    Fault("5000 deep in objects", b'{"a":' * 5000 + b"1" + b"}" * 5000, "nested too deeply", True),
    Fault("5000 digits", GOOD[:-1] + b', "n": ' + b"7" * 5000 + b"}", "an integer has too many digits"),
    Fault("empty chosen", row(chosen=""), 'chosen: empty ("")'),
    Fault("blank rejected", row(rejected=" \n"), 'rejected: empty (" \\n")'),
    Fault("empty prompt", row(prompt=""), 'prompt: empty ("")'),
]
LINE_FAULTS = [
    Fault("trailing garbage", GOOD + b" # good", 'column 49: unexpected text after the value: "# good"'),
    Fault("two rows on a line", GOOD + GOOD, "column 48: unexpected text after the value"),
    Fault("a line cut short", GOOD[:30], "invalid JSON"),
    Fault("a Latin-1 byte", GOOD.replace(b"c", b"caf\xe9", 1), "not UTF-8: byte 0xe9"),
    Fault("a raw NUL byte", GOOD.replace(b"p", b"a\0b", 1), "NUL byte at byte"),
]
