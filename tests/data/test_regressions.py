"""Read input that once went wrong without a word, or ended in a traceback."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
from preferences import chat_row, prepared, row, shared_tokenizer, written

from orpo_cli.data.rows.sources import check_exists
from orpo_cli.data.tokens import file_tokenizer
from orpo_cli.errors import DataError, InputNotFoundError


def test_a_file_that_changes_while_it_is_read_leaves_no_entry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = Path(written(tmp_path / "x.jsonl", [row("a"), row("b"), row("c")]))
    before, read = path.read_bytes(), file_tokenizer.read_blocks

    def replaced_meanwhile(file: Any) -> Any:
        written(path, [row("new")])
        return read(file)

    with monkeypatch.context() as patch:
        patch.setattr(file_tokenizer, "read_blocks", replaced_meanwhile)
        with pytest.raises(DataError, match="changed while it was read"):
            prepared(str(path))
    path.write_bytes(before)
    assert len(prepared(str(path)).train) == 3


@pytest.mark.timeout(20)
def test_what_is_no_file_is_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in ("/dev/zero", str(tmp_path / "pipe")):
        with pytest.raises(InputNotFoundError, match="not a regular file; data=- reads a pipe"):
            check_exists(path)


def test_messages_written_as_json_are_messages_in_any_file(tmp_path: Path) -> None:
    turns = [{"role": "user", "content": "why?"}]
    data = prepared(written(tmp_path / "x.jsonl", [row(json.dumps(turns))] * 3))
    assert data.uses_chat_template
    assert data.questions == [(0, "why?")]
    assert not prepared(written(tmp_path / "y.jsonl", [row('[1, 2] is a list, {"a": 1} an object')])).uses_chat_template


@pytest.mark.parametrize("nothing", ["", " ", "null", "NaN", "None"])
def test_an_empty_cell_is_no_system_message(nothing: str, tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text(f"prompt,chosen,rejected,system\np,c,r,{nothing}\n", encoding="utf-8")
    data = prepared(str(tmp_path / "x.csv"))
    assert not data.uses_chat_template
    assert shared_tokenizer().decode(data.train[0].prompt_ids) == "p"


@pytest.mark.parametrize("invisible", ["\u200b", "\u2060\ufeff", "\u0001", "\u00a0\t"])
def test_an_answer_without_a_visible_sign_is_empty(invisible: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="chosen: empty"):
        prepared(written(tmp_path / "x.jsonl", [row(), row(chosen=invisible)]))


def test_what_leaves_no_pair_is_counted(tmp_path: Path) -> None:
    rows = [row(weight=0), row(score_chosen=2, score_rejected=1), row(weight=0)]
    with pytest.raises(DataError, match="no pair is left: 2 dropped:zero_weight, 1 dropped:score_gap"):
        prepared(written(tmp_path / "x.jsonl", rows), min_score_gap=5.0)


def test_keys_of_a_part_are_not_lost(tmp_path: Path) -> None:
    part = {"type": "text", "text": "q", "cache_control": {"type": "ephemeral"}}
    with pytest.raises(DataError, match=r'prompt\[0\].content: "cache_control" would be lost'):
        prepared(written(tmp_path / "x.jsonl", [row([{"role": "user", "content": [part]}])]))


def test_the_lost_keys_of_all_rows_are_one_problem(tmp_path: Path) -> None:
    """Also among others, and where no row is valid: one setting accepts them, and names what is typed once."""

    def lost(*keys: str) -> dict[str, Any]:
        return row([{"role": "user", "content": "q"} | dict.fromkeys(keys, 1)], [{"role": "assistant", "content": "c"}])

    rows = [lost("a"), row(chosen=""), lost("b", "a"), lost("c d")]
    advice = r'model, data.ignore_keys=\[a,b,"c d"\] leaves them out \(2 more: line 3, 4\)'
    for first in ([], [chat_row("q")]):
        path = written(tmp_path / "x.jsonl", [*rows, *first])
        with pytest.raises(DataError, match=advice) as raised:
            prepared(path)
        assert "x.jsonl:2: chosen: empty" in str(raised.value)
        assert len(str(raised.value).splitlines()) == 3
    assert len(prepared(path, on_bad_row="skip", ignore_keys=["a", "b", "c d"]).train) == 4


@pytest.mark.parametrize(
    ("head", "said"),
    [
        (b"\x1f\x8b\x08", "packed with gzip; name it .gz"),
        (b"\x28\xb5\x2f\xfd", "packed with zstd; name it .zst"),
        (b"PAR1", "a Parquet file; name it .parquet"),
        (b"BZh9", "packed with bzip2; unpack it"),
        (b"PK\x03\x04", "a zip archive; unpack it, or save the sheet as CSV if it is one of Excel"),
    ],
)
def test_a_file_under_a_wrong_name_is_recognised(head: bytes, said: str, tmp_path: Path) -> None:
    (tmp_path / "x.jsonl").write_bytes(head + b"\xff" * 20)
    with pytest.raises(DataError, match=f"x.jsonl:1: looks like {said}"):
        prepared(str(tmp_path / "x.jsonl"))


def test_a_template_that_drops_an_earlier_answer_is_refused(tmp_path: Path) -> None:
    from orpo_cli.models.builtin import byte_tokenizer

    tokenizer = byte_tokenizer()
    tokenizer.chat_template = (
        "{% for m in messages %}{% if m.role != 'assistant' or loop.last %}<|{{ m.role }}|>{{ m.content }}<|end|>"
        "{% endif %}{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
    )
    turns = [{"role": name, "content": text} for name, text in (("user", "a"), ("assistant", "b"), ("user", "c"))]
    with pytest.raises(DataError, match="the chat template leaves it out"):
        prepared(written(tmp_path / "x.jsonl", [row(turns)]), tokenizer)


def test_a_file_name_cannot_speak_to_the_terminal(tmp_path: Path) -> None:
    path = written(tmp_path / "esc\x1b[31m\nred.jsonl", [row(), b"{"])
    with pytest.raises(DataError) as refusal:
        prepared(path)
    assert r"esc\x1b[31m\nred.jsonl:2: " in str(refusal.value)
    assert "\x1b" not in str(refusal.value)
