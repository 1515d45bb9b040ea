"""The same rows give the same token ids, whatever the file that holds them."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Dataset
from matrix import rows
from preferences import prepared
from small_tokenizers import small_tokenizer

TEMPLATE = Path(__file__).parent / "templates" / "qwen25.jinja"
QUESTION = {"role": "user", "content": "When is high tide?"}
GOOD, BAD = ({"role": "assistant", "content": text} for text in ("At two.", "No."))
TOOLS: list[dict[str, Any]] = [
    {"type": "function", "function": {"name": "tide", "parameters": {"properties": {"harbour": {"type": "string"}}}}},
    {"type": "function", "function": {"name": "sum", "parameters": {"properties": {"a": {"type": "number"}}}}},
]
CALLS = [
    {"type": "function", "function": {"name": "tide", "arguments": {"harbour": "Dover"}}},
    {"type": "function", "function": {"name": "sum", "arguments": {"a": 2, "b": 3}}},
]
ROWS = [
    {
        "prompt": [
            QUESTION,
            {"role": "assistant", "content": "", "tool_calls": [call]},
            {"role": "tool", "content": "14:07"},
        ],
        "chosen": [GOOD],
        "rejected": [BAD],
        "tools": TOOLS[: place + 1],
        "weight": place + 0.5,
    }
    for place, call in enumerate(CALLS)
]


def as_json(path: Path) -> None:
    path.write_text(json.dumps(ROWS), encoding="utf-8")


def as_parquet(path: Path) -> None:
    pq.write_table(pa.Table.from_pylist(ROWS), path)


def as_arrow(path: Path) -> None:
    table = pa.Table.from_pylist(ROWS)
    with pa.ipc.new_file(path, table.schema) as writer:
        writer.write_table(table)


def as_dataset(path: Path) -> None:
    Dataset.from_list(ROWS).save_to_disk(path)


WRITERS: dict[str, Callable[[Path], None]] = {
    "x.json": as_json,
    "x.parquet": as_parquet,
    "x.arrow": as_arrow,
    "folder": as_dataset,
}


@pytest.mark.usefixtures("datasets_cache")
@pytest.mark.parametrize("name", rows({name: name for name in WRITERS}, "x.parquet", "folder"))
def test_calls_and_tools_have_the_same_ids_in_every_container(name: str, tmp_path: Path) -> None:
    """Arrow fills the keys that other rows have with nulls, which are no arguments."""
    tokenizer = small_tokenizer("gpt2", ("<|im_start|>", "<|endoftext|>"), "<s>", "<|im_end|>", TEMPLATE.read_text())
    lines = tmp_path / "x.jsonl"
    lines.write_text("".join(json.dumps(row) + "\n" for row in ROWS), encoding="utf-8")
    WRITERS[name](tmp_path / name)
    expected, found = (prepared(str(path), tokenizer, 2000).train for path in (lines, tmp_path / name))
    assert [found[index] for index in range(2)] == [expected[index] for index in range(2)]
    assert found.weights.tolist() == expected.weights.tolist()
    prompts = [tokenizer.decode(expected[index].prompt_ids) for index in range(2)]
    assert '"arguments": {"harbour": "Dover"}' in prompts[0]
    assert '"arguments": {"a": 2, "b": 3}' in prompts[1]
    assert not any("null" in prompt or "None" in prompt for prompt in prompts)
