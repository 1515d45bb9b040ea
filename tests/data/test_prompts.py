"""Prompts from files: lines of text, and rows that hold a text or a conversation."""

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from orpo_cli.data.pairs import Message
from orpo_cli.data.prompts import Prompt, prompts_of, read_prompts
from orpo_cli.errors import DataError, InputNotFoundError

TURNS = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}, {"role": "user", "content": "c"}]
TALK = Prompt((Message("user", "a"), Message("assistant", "b"), Message("user", "c")))
TOOL = {"type": "function", "function": {"name": "f"}}


def lines(*rows: Any) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("p.txt", 'Why?\n\n  two words \r\n{"prompt": 1}\n', ["Why?", "  two words ", '{"prompt": 1}']),
        ("p", "\ufeffWhy?\nÜber", ["Why?", "Über"]),
        ("p", "[INST] Why? [/INST]", ["[INST] Why? [/INST]"]),
        ("p", lines({"prompt": "Why?"}), ["Why?"]),
        ("p.jsonl", lines({"prompt": "Why?", "chosen": "c"}, "How?", {"prompt": TURNS}), ["Why?", "How?", TALK]),
        ("p.json", json.dumps([{"messages": TURNS}, {"prompt": "Why?", "messages": None}]), [TALK, "Why?"]),
        ("p.json", json.dumps({"prompt": TURNS, "tools": [TOOL]}), [Prompt(TALK.given, (TOOL,))]),
        ("p.csv", 'id,prompt\n1,"Why,\nso?"\n2,How?\n', ["Why,\nso?", "How?"]),
        ("p.csv", f'prompt\n"{json.dumps(TURNS).replace(chr(34), chr(34) * 2)}"\n', [TALK]),
    ],
)
def test_what_a_file_holds(name: str, text: str, expected: list[Any], tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_text(text, encoding="utf-8")
    assert read_prompts(path) == [Prompt(one) if isinstance(one, str) else one for one in expected]


def test_packed_lines_and_another_column(tmp_path: Path) -> None:
    (tmp_path / "p.txt.gz").write_bytes(gzip.compress(b"Why?\nHow?\n"))
    assert [prompt.given for prompt in read_prompts(tmp_path / "p.txt.gz")] == ["Why?", "How?"]
    (tmp_path / "q.jsonl").write_text(lines({"question": "Why?", "prompt": "not this"}), encoding="utf-8")
    assert read_prompts(tmp_path / "q.jsonl", "question") == [Prompt("Why?")]


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("p.txt", " \n\n", "p.txt: no prompts"),
        (
            "p.jsonl",
            lines({"prompt": "a"}, {"answer": "b", "id": 3}),
            'p.jsonl:2: expected prompt or messages, found "an',
        ),
        ("p.jsonl", lines({"prompt": 7}), "p.jsonl:1: prompt: expected a text or messages, found a number"),
        ("p.jsonl", lines({"prompt": TURNS[:2]}), "p.jsonl:1: prompt: its last message is the assistant's"),
        ("p.json", json.dumps([TURNS, TURNS]), 'a message by itself; a conversation is written as {"messages": [...]}'),
        ("p.jsonl", lines({"prompt": " "}), "p.jsonl:1: prompt"),
        ("p.jsonl", '{"prompt": \n', "p.jsonl:1"),
        ("p.jsonl", lines(*[{"no": 1}] * 9), "(4 more)"),
    ],
)
def test_what_is_no_prompt_is_named_with_its_place(name: str, text: str, said: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_text(text, encoding="utf-8")
    with pytest.raises(DataError) as refused:
        read_prompts(path)
    assert said in str(refused.value)


def test_other_bytes_and_other_places(tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_bytes(b"Why?\n\xff\n")
    with pytest.raises(DataError, match=r"p\.txt:2: not UTF-8: byte 0xff"):
        read_prompts(tmp_path / "p.txt")
    with pytest.raises(DataError, match=r"^standard input:2: not UTF-8"):
        read_prompts(tmp_path / "p.txt", name="standard input")
    with pytest.raises(InputNotFoundError, match="no such file"):
        read_prompts(tmp_path / "q.txt")


def test_values_of_python() -> None:
    made = prompts_of(["Why?", TURNS, {"messages": TURNS}])
    assert made == [Prompt("Why?"), TALK, TALK]
    assert [prompt.as_json for prompt in made] == ["Why?", TURNS, TURNS]
    assert [prompt.text for prompt in made] == ["Why?", "a\n\nb\n\nc", "a\n\nb\n\nc"]
    with pytest.raises(DataError, match="prompts: prompt: expected a text or messages, found a number"):
        prompts_of([3])
