"""Hold preferences of every shape, and write the bytes of a file of every kind."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from orpo_cli.data.rows import text_lines

Values = Sequence[Mapping[str, Any]]


def turns(*contents: str) -> list[dict[str, Any]]:
    """Return messages of user and assistant, the user first."""
    return [{"role": ("user", "assistant")[place % 2], "content": text} for place, text in enumerate(contents)]


def answer(text: str) -> list[dict[str, Any]]:
    """Return one message of the assistant."""
    return [{"role": "assistant", "content": text}]


def text_row(prompt: str = "p", chosen: str = "c", rejected: str = "r") -> dict[str, Any]:
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected}


def scored(question: str, better: tuple[str, float], worse: tuple[str, float]) -> dict[str, Any]:
    """Return a row as UltraFeedback-binarized has it."""
    return {
        "prompt": question,
        "chosen": turns(question, better[0]),
        "rejected": turns(question, worse[0]),
        "score_chosen": better[1],
        "score_rejected": worse[1],
    }


LONG = "\n\nHuman: 1\n\nAssistant: 2\n\nHuman: 3\n\nAssistant:"
TOOL = {"name": "weather", "parameters": {"city": "text, é"}}
SHAPES: dict[str, Values] = {
    "pairs of texts": [
        text_row('Uma, é, 漢\n\n"two"', "c\r\nd", " r"),
        text_row("🙂\t\u2028", "'c'", "[1] r, {x}"),
    ],
    "pairs of messages": [
        {"prompt": turns("Hi", "Hello", "2 + 2?"), "chosen": answer("4"), "rejected": answer('a "5"\n')},
        {"prompt": turns("é"), "chosen": answer("漢, 1"), "rejected": answer("r")},
    ],
    "conversations": [
        {"chosen": turns("Hi", "Hello", "2 + 2?", "4"), "rejected": turns("Hi", "Hello", "2 + 2?", "5")},
        {"chosen": turns("é", "漢"), "rejected": turns("é", "r")},
    ],
    "hh": [
        {"chosen": '\n\nHuman: Hi\n\nAssistant: A, "b"', "rejected": "\n\nHuman: Hi\n\nAssistant: c"},
        {"chosen": f"{LONG} é", "rejected": f"{LONG} f"},
    ],
    "ultrafeedback": [scored("Why?", ("So", 8.5), ("No", 4.0)), scored("é", ("1", 1.0), ("2", 0.5))],
    "rankings by scores": [
        {"prompt": "p", "responses": ["a", "b", "c"], "scores": [1.0, 2.5, 2.5]},
        {"prompt": "é, 漢", "responses": ["\n1", '"2"'], "scores": [2.0, -1.0]},
    ],
    "rankings by ranks": [{"prompt": "p", "responses": [answer("a"), answer("b")], "ranking": [2, 1]}] * 2,
    "system column": [text_row() | {"system": "Be kind, é."}, text_row() | {"system": None}],
    "tools column": [text_row() | {"tools": [TOOL]}, text_row() | {"tools": None}],
    "weight column": [text_row() | {"weight": 0.25}, text_row() | {"weight": 0.0}, text_row() | {"weight": None}],
}


def as_lines(values: Values) -> bytes:
    return b"".join(json.dumps(value, ensure_ascii=False).encode() + b"\n" for value in values)


def as_array(values: Values) -> bytes:
    return b"[\n" + b",\n".join(json.dumps(value).encode() for value in values) + b"\n]"


def as_cells(values: Values, separator: str) -> tuple[bytes, list[int]]:
    """Return CSV with every cell quoted, and the line each row starts on; what is not a text stands there as JSON."""
    names = list(values[0])
    rows = [names] + [
        ["" if cell is None else cell if isinstance(cell, str) else json.dumps(cell) for cell in value.values()]
        for value in values
    ]
    written = [separator.join('"' + cell.replace('"', '""') + '"' for cell in row) + "\n" for row in rows]
    starts = [1 + text_lines.count_breaks("".join(written[:number]).encode()) for number in range(1, len(written))]
    return "".join(written).encode(), starts


def write(path: Path, raw: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(raw)
    return path


def zstd(raw: bytes) -> bytes:
    packed: bytes = pa.compress(raw, codec="zstd", asbytes=True)
    return packed


def ipc(table: Any, is_stream: bool) -> bytes:
    sink = pa.BufferOutputStream()
    with (pa.ipc.new_stream if is_stream else pa.ipc.new_file)(sink, table.schema) as writer:
        writer.write_table(table)
    raw: bytes = sink.getvalue().to_pybytes()
    return raw


def parquet(table: Any) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink)
    raw: bytes = sink.getvalue().to_pybytes()
    return raw


def table_of(values: Values) -> Any:
    return pa.Table.from_pylist([dict(value) for value in values])
