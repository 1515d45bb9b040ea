"""Files to stores: every row is accounted for, no prompt is on both sides, and the cache never lies."""

import json
import os
import random
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, trainers
from transformers import PreTrainedTokenizerFast

from orpo_cli.config.schema import DataConfig
from orpo_cli.data import prepare as preparation
from orpo_cli.data import store
from orpo_cli.data.pairs import Source, TokenizedPair
from orpo_cli.data.prepare import PreparedData, locate
from orpo_cli.data.store import StoredRow, TokenizedFile, write_rows
from orpo_cli.errors import DataError, InputNotFoundError
from orpo_cli.models.builtin import CHATML, byte_tokenizer

BYTES = byte_tokenizer()


def row(prompt: Any = "p", chosen: Any = "c", rejected: Any = "r", **others: Any) -> dict[str, Any]:
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected, **others}


def chat_row(text: str) -> dict[str, Any]:
    return row([{"role": "user", "content": text}])


def written(path: Path, rows: list[Any]) -> str:
    """The path of a file with these rows, one a line; a row that is bytes stands as it is."""
    path.write_bytes(
        b"".join((item if isinstance(item, bytes) else json.dumps(item).encode()) + b"\n" for item in rows)
    )
    return str(path)


def prepared(path: str, tokenizer: Any = BYTES, max_length: int = 200, seed: int = 0, **changed: Any) -> PreparedData:
    fields: dict[str, Any] = {"eval_path": None, "eval_fraction": 0.0, "length_policy": "drop"}
    fields |= {"chat_template": None, "on_bad_row": "error", "max_length": max_length} | changed
    return preparation.prepare(DataConfig(path=path, **fields), tokenizer, max_length, seed, lambda *_: None)


def sources(data: PreparedData) -> list[int]:
    return [data.train.source(index).line for index in range(len(data.train))]


def entries(cache: Path) -> set[Path]:
    return set((cache / "tokens").iterdir())


def test_pairs_come_out_as_they_went_in(tmp_path: Path) -> None:
    path = written(tmp_path / "x.jsonl", [row("ab", "cd", "ef"), row("g", "h", "i")])
    data = prepared(path)
    ids = {text: BYTES(text)["input_ids"] for text in ("ab", "cd", "ef")}
    end = BYTES.eos_token_id
    assert data.train[0] == TokenizedPair(ids["ab"], [*ids["cd"], end], [*ids["ef"], end])
    assert [vars(length) for length in data.train.lengths] == [
        {"prompt": 2, "chosen": 3, "rejected": 3},
        {"prompt": 1, "chosen": 2, "rejected": 2},
    ]
    assert data.train.source(1) == Source(path, 2)
    assert data.classes == {("train", "kept"): 2}
    assert (len(data.evaluation), data.notes, data.uses_chat_template) == (0, [], False)


# The ledger


def test_every_row_ends_in_one_class(tmp_path: Path) -> None:
    rows = [row(), b"{", row("p" * 300), row(chosen="c" * 300), row(chosen=""), b"", row(), row(prompt=3)]
    path = written(tmp_path / "x.jsonl", rows)
    data = prepared(path, on_bad_row="skip")
    assert data.classes == {
        ("train", "kept"): 2,
        ("train", "invalid:not_json"): 1,
        ("train", "dropped:prompt_too_long"): 1,
        ("train", "dropped:too_long"): 1,
        ("train", "invalid:empty_field"): 1,
        ("train", "invalid:wrong_type"): 1,
    }
    assert [record["line"] for record in data.ledger] == [1, 2, 3, 4, 5, 7, 8]
    assert data.ledger[2] == {
        "file": path,
        "line": 3,
        "class": "dropped:prompt_too_long",
        "split": "train",
        "prompt_tokens": 300,
        "chosen_tokens": 2,
        "rejected_tokens": 2,
        "boundary_merged": False,
        "identical": False,
    }
    assert sources(data) == [1, 7]
    assert [note.removeprefix(f"skipped {path}") for note in data.notes] == [
        ":2: column 2: invalid JSON: Expecting property name enclosed in double quotes; the text ends here",
        ':5: chosen: empty ("")',
        ':8: prompt: expected a text or a list of messages, found a number ("3")',
    ]


kinds = st.sampled_from(
    [row(), row("q"), row("p" * 40), row(chosen="c" * 40), row(rejected=""), row(prompt=None), row("s", "t", "t"), b"{"]
)


@given(
    st.lists(kinds, min_size=1, max_size=30),
    st.sampled_from(["drop", "truncate_prompt", "truncate_response"]),
    st.sampled_from([0.0, 0.3]),
    st.integers(0, 9),
)
@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_the_ledger_adds_up(tmp_path: Path, rows: list[Any], policy: str, fraction: float, seed: int) -> None:
    rows = [row("one"), row("other"), *rows]
    path = written(tmp_path / "x.jsonl", rows)
    data = prepared(path, max_length=20, seed=seed, length_policy=policy, on_bad_row="skip", eval_fraction=fraction)
    assert sum(data.classes.values()) == len(data.ledger) == len(rows)
    assert [record["line"] for record in data.ledger] == list(range(1, len(rows) + 1))
    assert Counter((record["split"], record["class"]) for record in data.ledger) == data.classes
    trained = [count for (_, name), count in data.classes.items() if not name.startswith(("dropped", "invalid"))]
    assert sum(trained) == len(data.train) + len(data.evaluation)


# Errors


@pytest.mark.parametrize(
    ("count", "first"),
    [
        (1, "1 invalid row; data.on_bad_row=skip"),
        (20, "20 invalid rows; data.on_bad_row=skip"),
        (37, "37 invalid rows (the first 20 are shown); data.on_bad_row=skip"),
    ],
)
def test_the_first_twenty_problems_and_their_number_are_shown(count: int, first: str, tmp_path: Path) -> None:
    path = written(tmp_path / "x.jsonl", [row(), *[row(chosen="")] * count])
    with pytest.raises(DataError) as refusal:
        prepared(path)
    assert refusal.value.exit_code == 65
    head, *shown = str(refusal.value).split("\n")
    assert head.startswith(first)
    assert shown == [f'{path}:{line}: chosen: empty ("")' for line in range(2, 2 + min(count, 20))]


def test_no_more_than_twenty_skipped_rows_are_listed(tmp_path: Path) -> None:
    data = prepared(written(tmp_path / "x.jsonl", [row(), *[b"{"] * 37]), on_bad_row="skip")
    assert len(data.notes) == 20
    assert data.classes[("train", "invalid:not_json")] == 37


@pytest.mark.parametrize("content", ["", "\n\n", "[]"])
def test_a_file_without_rows(content: str, tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text(content)
    with pytest.raises(DataError, match=r"x\.json: no rows$"):
        prepared(str(tmp_path / "x.json"))


def test_a_file_without_a_valid_row(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no valid rows\n.*x\.jsonl:1: row: expected an object"):
        prepared(written(tmp_path / "x.jsonl", [[]]), on_bad_row="skip")


def test_no_pair_within_the_limit(tmp_path: Path) -> None:
    path = written(tmp_path / "x.jsonl", [row("p" * 30), row(chosen="c" * 30)])
    with pytest.raises(
        DataError, match=r"no pair left.*1 dropped:prompt_too_long, 1 dropped:too_long; raise data.max_l"
    ):
        prepared(path, max_length=20)


def test_text_and_messages_in_one_file(tmp_path: Path) -> None:
    path = written(tmp_path / "x.jsonl", [row(), row(), chat_row("hi")])
    with pytest.raises(
        DataError, match=r"x\.jsonl:3: plain text and chat messages in one file \(1 of 3 rows are chat\)"
    ):
        prepared(path)
    assert prepared(path, chat_template=True).uses_chat_template
    assert not prepared(path, chat_template=False).uses_chat_template


def test_a_path_that_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(InputNotFoundError, match=r"none\.json: no such file"):
        prepared(str(tmp_path / "none.json"))
    with pytest.raises(InputNotFoundError, match="is a directory"):
        locate(str(tmp_path))
    assert locate("builtin:demo/train.jsonl").is_file()


# Notes


def test_keys_nobody_reads_are_noted_once(tmp_path: Path) -> None:
    path = written(tmp_path / "x.jsonl", [row(score=1, source="a"), row(score=2)])
    assert prepared(path).notes == ['x.jsonl: not read: "score" (2 rows), "source" (1 rows)']


def test_many_or_strange_keys_make_one_short_note(tmp_path: Path) -> None:
    path = written(
        tmp_path / "x.jsonl", [row(**{f"key{number}": 1, "\ud800": 1, "k" * 999: 1}) for number in range(20)]
    )
    (note,) = prepared(path).notes
    assert len(note.encode()) < 300
    assert note.endswith("and 14 more keys")


def test_identical_pairs_are_noted_and_kept(tmp_path: Path) -> None:
    data = prepared(written(tmp_path / "x.jsonl", [row("p", "same", "same"), row()]))
    assert data.notes == ["x.jsonl: 1 pairs have the same chosen and rejected; their preference term is constant"]
    assert len(data.train) == 2


def test_merges_over_the_boundary_are_noted(tmp_path: Path) -> None:
    core = Tokenizer(models.BPE())
    core.train_from_iterator(
        ["foobar" * 9], trainers.BpeTrainer(special_tokens=["</s>"], max_token_length=6, show_progress=False)
    )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, eos_token="</s>")
    path = written(tmp_path / "x.jsonl", [row("foo", "bar", "f"), row("bar", "foo", "r")])
    data = prepared(path, tokenizer)
    assert [record["boundary_merged"] for record in data.ledger] == [True, False]
    (note,) = data.notes
    assert note.startswith("x.jsonl: in 1 pairs a token would span prompt and response")


# Evaluation


def many(prompts: int, pairs: int) -> list[dict[str, Any]]:
    draw = random.Random(0)
    return [
        row(f"prompt {draw.randrange(prompts)}", f"c{number}", "r" * draw.randrange(1, 9)) for number in range(pairs)
    ]


@pytest.mark.parametrize("policy", ["drop", "truncate_prompt"])
@pytest.mark.parametrize("seed", range(3))
def test_no_prompt_is_on_both_sides(seed: int, policy: str, tmp_path: Path) -> None:
    """Under truncate_prompt the same prompt is cut differently beside a longer response, and is still one prompt."""
    rows = many(30, 120)
    data = prepared(
        written(tmp_path / "x.jsonl", rows), max_length=14, seed=seed, eval_fraction=0.25, length_policy=policy
    )
    trained_or_held = [record for record in data.ledger if not record["class"].startswith("dropped")]
    sides = {
        split: {rows[record["line"] - 1]["prompt"] for record in trained_or_held if record["split"] == split}
        for split in ("train", "eval")
    }
    assert sides["train"]
    assert sides["eval"]
    assert not sides["train"] & sides["eval"]
    assert policy == "drop" or data.classes["train", "prompt_truncated"] > 10


def test_the_held_out_share_is_close_and_follows_the_seed(tmp_path: Path) -> None:
    path = written(tmp_path / "x.jsonl", many(100, 400))
    held = [
        [data.evaluation.source(index).line for index in range(len(data.evaluation))]
        for data in (prepared(path, seed=seed, eval_fraction=0.1) for seed in (0, 0, 1))
    ]
    assert held[0] == held[1] != held[2]
    assert all(abs(len(lines) - 40) <= 5 for lines in held)


def test_the_order_of_the_file_does_not_decide_who_is_held_out(tmp_path: Path) -> None:
    rows = many(100, 200)
    held = []
    for name, order in (("x", rows), ("y", rows[::-1])):
        data = prepared(written(tmp_path / f"{name}.jsonl", order), eval_fraction=0.2)
        held.append({order[data.evaluation.source(index).line - 1]["chosen"] for index in range(len(data.evaluation))})
    assert held[0] == held[1]


def test_a_single_prompt_cannot_be_split(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"every pair is held out for evaluation; lower data\.eval_fraction"):
        prepared(written(tmp_path / "x.jsonl", [row()] * 9), eval_fraction=0.1)


def test_a_second_file_is_only_evaluated_on(tmp_path: Path) -> None:
    train = written(tmp_path / "train.jsonl", [row("a"), row("b"), row("c")])
    held = written(tmp_path / "held.jsonl", [row("b"), row("d"), row("p" * 300)])
    data = prepared(train, eval_path=held)
    assert (len(data.train), len(data.evaluation)) == (3, 2)
    assert data.classes == {("train", "kept"): 3, ("eval", "kept"): 2, ("eval", "dropped:prompt_too_long"): 1}
    assert set(data.sha256) == {train, held}
    assert data.notes == ["1 evaluation pairs have a prompt that is also trained on"]
    assert [(record["file"], record["split"]) for record in data.ledger] == [(train, "train")] * 3 + [
        (held, "eval")
    ] * 3


def test_both_files_are_rendered_the_same_way(tmp_path: Path) -> None:
    train, held = written(tmp_path / "train.jsonl", [chat_row("a")]), written(tmp_path / "held.jsonl", [row("b")])
    with pytest.raises(DataError, match=r"held\.jsonl: plain text, but .*train\.jsonl is chat messages"):
        prepared(train, eval_path=held)
    assert len(prepared(train, eval_path=held, chat_template=True).evaluation) == 1


# The cache


@pytest.fixture
def readings(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Files whose JSON was read."""
    read: list[Path] = []
    original = preparation.read_rows

    def counted(path: Path) -> Any:
        read.append(path)
        return original(path)

    monkeypatch.setattr(preparation, "read_rows", counted)
    return read


def test_a_second_start_reads_no_json_and_says_the_same(tmp_path: Path, readings: list[Path]) -> None:
    rows = [row(extra=1), row("p", "s", "s"), b"{", *many(9, 20)]
    path = written(tmp_path / "x.jsonl", rows)
    first, second = (prepared(path, on_bad_row="skip", eval_fraction=0.2) for _ in range(2))
    assert len(readings) == 1
    for name in ("classes", "notes", "sha256", "uses_chat_template", "ledger"):
        assert getattr(first, name) == getattr(second, name)
    assert [first.train[index] for index in range(len(first.train))] == [
        second.train[index] for index in range(len(second.train))
    ]


def test_touching_or_moving_a_file_changes_nothing(tmp_path: Path, readings: list[Path]) -> None:
    path = written(tmp_path / "x.jsonl", [row(), b"{"])
    prepared(path, on_bad_row="skip")
    os.utime(path, (1, 1))
    prepared(path, on_bad_row="skip")
    moved = (tmp_path / "x.jsonl").rename(tmp_path / "y.jsonl")
    data = prepared(str(moved), on_bad_row="skip")
    assert len(readings) == 1
    assert data.notes[0].startswith(f"skipped {moved}:2: ")
    assert data.train.source(0) == Source(str(moved), 1)
    assert data.ledger[0]["file"] == str(moved)


def test_what_matters_makes_another_entry(tmp_path: Path, cache: Path) -> None:
    path = tmp_path / "x.jsonl"
    written(path, [row()])
    other = byte_tokenizer()
    other.chat_template = CHATML + " "
    larger = byte_tokenizer()
    larger.add_special_tokens({"extra_special_tokens": ["<|more|>"]})
    ways: list[dict[str, Any]] = [{}, {"max_length": 100}, {"tokenizer": other}, {"tokenizer": larger}]
    ways += [{"length_policy": "truncate_prompt"}, {"chat_template": True}, {"on_bad_row": "skip"}]
    for number, way in enumerate(ways, 1):
        prepared(str(path), **way)
        assert len(entries(cache)) == number, way
    written(path, [row("q")])
    assert prepared(str(path)).train[0].prompt_ids == BYTES("q")["input_ids"]
    assert len(entries(cache)) == len(ways) + 1
    for way in ({"seed": 5}, {"eval_fraction": 0.0}):
        prepared(str(path), **way)
    assert len(entries(cache)) == len(ways) + 1


@pytest.mark.parametrize("damage", [b"", b"ARROW1", None], ids=["empty", "head only", "cut in half"])
def test_a_damaged_entry_is_made_again(damage: bytes | None, tmp_path: Path, cache: Path, readings: list[Path]) -> None:
    path = written(tmp_path / "x.jsonl", many(9, 20))
    first = prepared(path)
    (entry,) = entries(cache)
    raw = entry.read_bytes()
    entry.unlink()
    entry.write_bytes(raw[: len(raw) // 2] if damage is None else damage)
    second = prepared(path)
    assert len(readings) == 2
    assert second.ledger == first.ledger
    assert entry.read_bytes() == raw


def test_an_error_leaves_no_entry(tmp_path: Path, cache: Path) -> None:
    with pytest.raises(DataError):
        prepared(written(tmp_path / "x.jsonl", [row(), b"{"]))
    assert not (cache / "tokens").exists()


class KilledError(BaseException):
    """What a signal handler would raise in the middle of a write."""


def test_a_write_that_stops_half_way_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [StoredRow(1, "kept", (1, 1, 1), False, False, b"", TokenizedPair([1], [2], [3]))]
    path = tmp_path / "entry" / "x.arrow"
    write_rows(path, [rows], {"a": "first"})
    before = path.read_bytes()
    original = store._columns

    def stopping(batch: Any) -> Any:
        if batch is last:
            raise KilledError
        return original(batch)

    last = list(rows)
    monkeypatch.setattr(store, "_columns", stopping)
    with pytest.raises(KilledError):
        write_rows(path, [rows, last], {"a": "second"})
    assert list(path.parent.iterdir()) == [path]
    assert path.read_bytes() == before


def test_a_store_gives_back_what_was_written(tmp_path: Path) -> None:
    kept = StoredRow(4, "kept", (2, 1, 1), True, False, b"\1", TokenizedPair([1, 2], [3], [4]))
    dropped = StoredRow(9, "dropped:too_long", (5, 6, 7), False, True, b"\2", None)
    write_rows(tmp_path / "x.arrow", [[kept], [dropped], []], {"note": "ü"})
    file = TokenizedFile(tmp_path / "x.arrow", "x.jsonl")
    assert (len(file), file.notes, file.trainable()) == (2, {"note": "ü"}, [0])
    assert [
        file.column(name) for name in ("line", "row_class", "prompt_tokens", "boundary_merged", "prompt_digest")
    ] == [
        [4, 9],
        ["kept", "dropped:too_long"],
        [2, 5],
        [True, False],
        [b"\1", b"\2"],
    ]
    assert file.pair(0) == kept.pair
    with pytest.raises((OSError, pa.ArrowInvalid)):
        TokenizedFile(tmp_path / "none.arrow", "x.jsonl")


@pytest.mark.timeout(60)
def test_fifty_thousand_rows_are_a_matter_of_seconds(tmp_path: Path) -> None:
    """The limit only catches a step whose cost grows with the square of the rows."""
    path = written(tmp_path / "x.jsonl", [row(f"prompt {number // 2}", f"c{number}", "r") for number in range(50_000)])
    data = prepared(path, eval_fraction=0.1)
    assert len(data.train) + len(data.evaluation) == 50_000
    assert len(data.evaluation) == 5_000
