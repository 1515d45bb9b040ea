"""Prepare files: every row is accounted for, no prompt is on both sides, and the cache never lies."""

import json
import os
import random
from pathlib import Path
from typing import Any

import pytest
from preferences import chat_row, entries, ledger_records, lines_of, prepared, ranking, row, shared_tokenizer, written

from orpo_cli.data.pairs import Lengths, Source, TokenizedPair
from orpo_cli.data.prepare import PreparedData
from orpo_cli.data.rows.sources import DataFile, DatasetChoice, find_files
from orpo_cli.data.tokens import file_tokenizer
from orpo_cli.errors import ConfigError, DataError, InputNotFoundError


def test_pairs_come_out_as_they_went_in(tmp_path: Path) -> None:
    path = written(tmp_path / "x.jsonl", [row("ab", "cd", "ef"), row("g", "h", "i")])
    data = prepared(path)
    ids = {text: shared_tokenizer()(text)["input_ids"] for text in ("ab", "cd", "ef")}
    end = shared_tokenizer().eos_token_id
    assert data.train[0] == TokenizedPair(ids["ab"], [*ids["cd"], end], [*ids["ef"], end])
    assert [data.train.lengths(index) for index in range(2)] == [Lengths(2, 3, 3), Lengths(1, 2, 2)]
    assert data.train.token_counts.tolist() == [[2, 3, 3], [1, 2, 2]]
    assert data.train.weights.tolist() == [1, 1]
    assert data.train.source(1) == Source(path, 2)
    assert data.ledger.classes == {("train", "kept"): 2}
    assert (data.formats, data.highest_token_id) == ({path: "pairs"}, end)
    assert (len(data.evaluation), data.notes, data.uses_chat_template) == (0, [], False)


def test_every_row_ends_in_one_class(tmp_path: Path) -> None:
    rows = [row(), b"{", row("p" * 300), row(chosen="c" * 300), row(chosen=""), b"", row(), row(prompt=3)]
    path = written(tmp_path / "x.jsonl", rows)
    data = prepared(path, on_bad_row="skip")
    assert data.ledger.rows == 7
    assert data.ledger.classes == {
        ("train", "kept"): 2,
        ("train", "invalid:not_json"): 1,
        ("train", "dropped:prompt_too_long"): 1,
        ("train", "dropped:too_long"): 1,
        ("train", "invalid:empty_field"): 1,
        ("train", "invalid:wrong_type"): 1,
    }
    records = ledger_records(data)
    assert [record["line"] for record in records] == [1, 2, 3, 4, 5, 7, 8]
    assert records[2] == {
        "file": path,
        "line": 3,
        "row": 3,
        "pair": 0,
        "class": "dropped:prompt_too_long",
        "split": "train",
        "rendered": "plain_text",
        "prompt_tokens": 300,
        "chosen_tokens": 2,
        "rejected_tokens": 2,
        "weight": 0,
        "boundary_merged": False,
        "identical": False,
        "control_tokens": 0,
        "duplicate_of": None,
    }
    assert lines_of(data.train) == [1, 7]
    assert [note.removeprefix(f"skipped {path}") for note in data.notes] == [
        ":2: column 2: invalid JSON: Expecting property name enclosed in double quotes; the text ends here",
        ':5: chosen: empty ("")',
        ':8: prompt: expected a text or a list of messages, found a number ("3")',
    ]


def test_rows_on_one_line_are_rows_of_their_own(tmp_path: Path) -> None:
    """`json.dump` writes an array on one line. Each row has the weight of a row, and the ledger counts each."""
    path = tmp_path / "x.json"
    path.write_text(json.dumps([row("one"), row(""), row("two", weight=3), ranking("three", 3, 2, 1), row("four")]))
    data = prepared(str(path), on_bad_row="skip", format="pairs", columns={"responses": None})
    assert data.ledger.rows == 5
    assert [(record["line"], record["pair"]) for record in ledger_records(data)] == [(1, 0)] * 5
    assert data.train.weights.tolist() == [1, 3, 1]
    assert data.questions == [(0, "one"), (1, "two"), (2, "four")]


def test_rankings_on_one_line_share_the_weight_of_their_row_only(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    path.write_text(json.dumps([ranking("one", 3, 2, 1), ranking("two", 1, 2), ranking("three", 1, 1)]))
    data = prepared(str(path))
    assert data.ledger.rows == 3
    assert [record["pair"] for record in ledger_records(data)] == [0, 1, 2, 0, 0]
    assert data.train.weights.tolist() == pytest.approx([1 / 3, 1 / 3, 1 / 3, 1], rel=1e-6)  # fp32
    assert data.ledger.classes == {("train", "dropped:tie"): 1, ("train", "kept"): 4}


def words(data: PreparedData) -> list[str]:
    return [text for _, text in data.questions]


def test_the_questions_are_prompts_of_evaluated_pairs(tmp_path: Path) -> None:
    """It may stand on one line with others, behind rows that give nothing, or behind a tie of its ranking."""
    train = written(tmp_path / "train.jsonl", [row("trained")])
    held = tmp_path / "held.json"
    held.write_text(json.dumps([ranking("a", 1, 1), {"prompt": ""}, ranking("b", 2, 2, 1), ranking("c", 1, 2)]))
    assert prepared(train, eval_path=str(held), on_bad_row="skip").questions == [(0, "b"), (2, "c")]
    assert words(prepared(train)) == ["trained"]
    turns = [{"role": "system", "content": "s"}, {"role": "user", "content": "words"}]
    assert words(prepared(written(tmp_path / "chat.jsonl", [row(turns)]))) == ["words"]
    many = written(tmp_path / "many.jsonl", [row(str(number // 2)) for number in range(30)])
    assert prepared(many).questions == [(2 * number, str(number)) for number in range(8)]


# Errors


@pytest.mark.parametrize(
    ("count", "first"),
    [
        (1, "1 invalid row; data.on_bad_row=skip"),
        (20, "20 invalid rows; data.on_bad_row=skip"),
        (37, "37 invalid rows (the first 20 problems are shown); data.on_bad_row=skip"),
    ],
)
def test_the_first_twenty_problems_and_their_number_are_shown(count: int, first: str, tmp_path: Path) -> None:
    path = written(tmp_path / "x.jsonl", [row(), *(row(weight="x" * number) for number in range(1, count + 1))])
    with pytest.raises(DataError) as refusal:
        prepared(path)
    assert refusal.value.exit_code == 65
    head, *shown = str(refusal.value).split("\n")
    assert head.startswith(first)
    assert shown == [
        f'{path}:{number + 1}: weight: expected a number, found a text ("{"x" * number}")'
        for number in range(1, 1 + min(count, 20))
    ]


SAME = [row(), row(chosen=""), row(weight="x"), *[row(chosen="")] * 2, *[row(rejected=7)] * 9]


@pytest.mark.parametrize(("kind", "places"), [("jsonl", ("line", ":{}")), ("json", ("row", ":1 row {}"))])
def test_the_same_problem_is_shown_once_with_a_count(kind: str, places: tuple[str, str], tmp_path: Path) -> None:
    """A row of an array that stands on one line is found by its number."""
    path = tmp_path / f"x.{kind}"
    path.write_text(json.dumps(SAME) if kind == "json" else "".join(json.dumps(item) + "\n" for item in SAME))
    word, place = places
    expected = [
        f'{path}{place.format(2)}: chosen: empty ("") (2 more: {word} 4, 5)',
        f'{path}{place.format(3)}: weight: expected a number, found a text ("x")',
        f'{path}{place.format(6)}: rejected: expected a text or a list of messages, found a number ("7")'
        f" (8 more: {word} 7, 8, 9, ...)",
    ]
    with pytest.raises(DataError) as refusal:
        prepared(str(path))
    head, *shown = str(refusal.value).split("\n")
    assert (head.split(";")[0], shown) == ("13 invalid rows", expected)
    for _ in ("made", "from the cache"):
        data = prepared(str(path), on_bad_row="skip")
        assert [note.removeprefix("skipped ") for note in data.notes] == expected
        assert str(data.train.source(0)) == f"{path}{place.format(1)}"


@pytest.mark.parametrize("content", ["", "\n\n", "[]"])
def test_a_file_without_rows(content: str, tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text(content)
    with pytest.raises(DataError, match=r"x\.json: no rows$"):
        prepared(str(tmp_path / "x.json"))


def test_a_file_without_a_valid_row(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no valid rows\n.*x\.jsonl:1: row: expected an object"):
        prepared(written(tmp_path / "x.jsonl", [7]), on_bad_row="skip")


def test_no_pair_within_the_limit(tmp_path: Path) -> None:
    path = written(tmp_path / "x.jsonl", [row("p" * 30), row(chosen="c" * 30)])
    with pytest.raises(
        DataError, match=r"no pair left.*1 dropped:prompt_too_long, 1 dropped:too_long; raise data.max_l"
    ):
        prepared(path, max_length=20)


def test_text_and_messages_in_one_file(tmp_path: Path) -> None:
    path = written(tmp_path / "x.jsonl", [row(), row(), chat_row("hi")])
    with pytest.raises(
        DataError, match=r"x\.jsonl:3: chat messages, but the rows before are plain text; data\.chat_template=true"
    ):
        prepared(path)
    assert prepared(path, chat_template=True).uses_chat_template
    assert not prepared(path, chat_template=False).uses_chat_template


def test_problems_found_before_are_told_with_the_error_that_ends_a_file(tmp_path: Path) -> None:
    path = written(tmp_path / "x.jsonl", [row(), row(chosen=""), row(rejected=""), *[row(number) for number in "ab"]])
    with Path(path).open("ab") as stream:  # over the half megabyte that is read at once
        stream.write(b'{"prompt": "p", "chosen": "c", "rejected": "%s"}\n' % (b"r" * 600_000))
        stream.write(json.dumps(chat_row("hi")).encode())
    with pytest.raises(DataError) as refusal:
        prepared(path, max_length=10_000_000)
    assert [line.partition(": ")[0] for line in str(refusal.value).split("\n")] == [f"{path}:{n}" for n in (7, 2, 3)]


def test_a_path_that_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(InputNotFoundError, match=r"none\.json: no such file"):
        prepared(str(tmp_path / "none.json"))
    (demo,) = find_files("builtin:demo/train.jsonl", DatasetChoice())
    assert demo.path.is_file()


@pytest.mark.parametrize(
    "changed", [{"eval_path": "x.jsonl"}, {"path": ["x.jsonl", "*.jsonl"]}, {"path": ["./y/../x.jsonl", "x.jsonl"]}]
)
def test_a_file_named_twice_is_refused(
    changed: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    written(Path("x.jsonl"), [row()])
    Path("y").mkdir()
    with pytest.raises(ConfigError, match=r"^x\.jsonl: stands twice in data\.path and data\.eval_path"):
        prepared(**({"path": "x.jsonl"} | changed))


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
    assert data.notes == ["x.jsonl: pairs with the same chosen and rejected: 1; their preference term is constant"]
    assert len(data.train) == 2


def test_merges_over_the_boundary_are_noted(tmp_path: Path) -> None:
    from tokenizers import Tokenizer, models, trainers
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer(models.BPE())
    core.train_from_iterator(
        ["foobar" * 9], trainers.BpeTrainer(special_tokens=["</s>"], max_token_length=6, show_progress=False)
    )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, eos_token="</s>")
    path = written(tmp_path / "x.jsonl", [row("foo", "bar", "f"), row("bar", "foo", "r")])
    data = prepared(path, tokenizer)
    assert [record["boundary_merged"] for record in ledger_records(data)] == [True, False]
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
        written(tmp_path / "x.jsonl", rows), max_length=14, eval_seed=seed, eval_fraction=0.25, length_policy=policy
    )
    trained_or_held = [record for record in ledger_records(data) if not record["class"].startswith("dropped")]
    sides = {
        split: {rows[record["line"] - 1]["prompt"] for record in trained_or_held if record["split"] == split}
        for split in ("train", "eval")
    }
    assert sides["train"]
    assert sides["eval"]
    assert not sides["train"] & sides["eval"]
    assert policy == "drop" or data.ledger.classes["train", "prompt_truncated"] > 10


def test_the_held_out_share_is_close_and_follows_the_seed(tmp_path: Path) -> None:
    path = written(tmp_path / "x.jsonl", many(100, 400))
    data = [prepared(path, eval_seed=seed, eval_fraction=0.1) for seed in (0, 0, 1)]
    held = [lines_of(one.evaluation) for one in data]
    assert held[0] == held[1] != held[2]
    assert all(abs(len(lines) - 40) <= 5 for lines in held)


def test_the_order_of_the_file_does_not_decide_who_is_held_out(tmp_path: Path) -> None:
    rows = many(100, 200)
    held = []
    for name, order in (("x", rows), ("y", rows[::-1])):
        data = prepared(written(tmp_path / f"{name}.jsonl", order), eval_fraction=0.2)
        held.append({order[line - 1]["chosen"] for line in lines_of(data.evaluation)})
    assert held[0] == held[1]


def test_a_single_prompt_cannot_be_split(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"every pair is held out for evaluation; lower data\.eval_fraction"):
        prepared(written(tmp_path / "x.jsonl", [row()] * 9), eval_fraction=0.1)


def test_a_second_file_is_only_evaluated_on(tmp_path: Path) -> None:
    train = written(tmp_path / "train.jsonl", [row("a"), row("b"), row("c")])
    held = written(tmp_path / "held.jsonl", [row("b"), row("d"), row("p" * 300)])
    data = prepared(train, eval_path=held)
    assert (len(data.train), len(data.evaluation)) == (3, 2)
    assert data.ledger.classes == {("train", "kept"): 3, ("eval", "kept"): 2, ("eval", "dropped:prompt_too_long"): 1}
    assert set(data.sha256) == {train, held}
    assert data.notes == ["1 evaluation pairs have a prompt that is also trained on"]
    assert [(record["file"], record["split"]) for record in ledger_records(data)] == [(train, "train")] * 3 + [
        (held, "eval")
    ] * 3


def test_both_files_are_rendered_the_same_way(tmp_path: Path) -> None:
    train, held = written(tmp_path / "train.jsonl", [chat_row("a")]), written(tmp_path / "held.jsonl", [row("b")])
    with pytest.raises(DataError, match=r"held\.jsonl:1: plain text, but the rows before are chat messages"):
        prepared(train, eval_path=held)
    prepared(held)  # and is in the cache from here on
    with pytest.raises(DataError, match=r"held\.jsonl: plain text, but .*train\.jsonl is chat messages"):
        prepared(train, eval_path=held)
    assert len(prepared(train, eval_path=held, chat_template=True).evaluation) == 1


# The cache


@pytest.fixture
def readings(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return the names of the files whose rows were read to be tokenized."""
    read: list[str] = []
    original = file_tokenizer.read_blocks

    def counted(file: DataFile) -> Any:
        read.append(file.name)
        return original(file)

    monkeypatch.setattr(file_tokenizer, "read_blocks", counted)
    return read


def assert_same(first: PreparedData, second: PreparedData) -> None:
    for name in ("notes", "sha256", "formats", "uses_chat_template", "end_id", "highest_token_id", "questions"):
        assert getattr(first, name) == getattr(second, name), name
    assert first.ledger.classes == second.ledger.classes
    assert b"".join(first.ledger.lines()) == b"".join(second.ledger.lines())
    for side in ("train", "evaluation"):
        assert list(getattr(first, side)) == list(getattr(second, side))
        assert getattr(first, side).weights.tolist() == getattr(second, side).weights.tolist()


def test_a_second_start_reads_no_json_and_says_the_same(tmp_path: Path, readings: list[str]) -> None:
    rows = [row(extra=1, weight=2), row("p", "s", "s"), b"{", *many(9, 20)]
    path = written(tmp_path / "x.jsonl", rows)
    first, second = (prepared(path, on_bad_row="skip", eval_fraction=0.2) for _ in range(2))
    assert readings == [path]
    assert_same(first, second)


def test_touching_or_moving_a_file_changes_nothing(tmp_path: Path, readings: list[str]) -> None:
    path = written(tmp_path / "x.jsonl", [row(), b"{"])
    prepared(path, on_bad_row="skip")
    os.utime(path, (1, 1))
    prepared(path, on_bad_row="skip")
    moved = (tmp_path / "x.jsonl").rename(tmp_path / "y.jsonl")
    data = prepared(str(moved), on_bad_row="skip")
    assert readings == [path]
    assert data.notes[0].startswith(f"skipped {moved}:2: ")
    assert data.train.source(0) == Source(str(moved), 1)
    assert ledger_records(data)[0]["file"] == str(moved)


@pytest.mark.parametrize("template", [True, False])
def test_pairs_whose_later_turns_are_left_out_are_counted(template: bool, tmp_path: Path) -> None:
    ask, answer = {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}
    other = {"role": "assistant", "content": "b"}
    whole = {"chosen": [ask, answer], "rejected": [ask, other]}
    longer = {"chosen": [ask, answer, ask, answer], "rejected": [ask, other]}
    path = tmp_path / "x.jsonl"
    written(path, [whole, longer, longer])
    data = prepared(str(path), later_turns="cut", chat_template=template)
    assert "x.jsonl: in 2 pairs the turns behind the answers that differ are left out" in data.notes


def test_what_matters_makes_another_entry(tmp_path: Path, cache: Path) -> None:
    from orpo_cli.models.builtin import CHATML, byte_tokenizer

    path = tmp_path / "x.jsonl"
    written(path, [row()])
    other = byte_tokenizer()
    other.chat_template = CHATML + " "
    larger = byte_tokenizer()
    larger.add_special_tokens({"extra_special_tokens": ["<|more|>"]})
    ways: list[dict[str, Any]] = [{}, {"max_length": 100}, {"tokenizer": other}, {"tokenizer": larger}]
    ways += [{"length_policy": "truncate_prompt"}, {"chat_template": True}, {"on_bad_row": "skip"}]
    ways += [{"columns": {"prompt": "rejected", "rejected": "prompt"}}, {"format": "pairs"}, {"min_score_gap": 1}]
    ways += [{"pairs": "adjacent"}, {"later_turns": "cut"}]
    for number, way in enumerate(ways, 1):
        prepared(str(path), **way)
        assert len(entries(cache)) == number, way
    written(path, [row("q")])
    assert prepared(str(path)).train[0].prompt_ids == shared_tokenizer()("q")["input_ids"]
    assert len(entries(cache)) == len(ways) + 1
    for way in ({"eval_seed": 5}, {"eval_fraction": 0.0}, {"workers": 1}, {"mixture": [2]}):
        prepared(str(path), **way)
    assert len(entries(cache)) == len(ways) + 1


DAMAGED = {"empty": b"", "head only": b"ARROW1", "cut in half": None}


@pytest.mark.parametrize("name", ["rows.arrow", "notes.json"])
@pytest.mark.parametrize("damage", DAMAGED.values(), ids=DAMAGED)
def test_a_damaged_entry_is_made_again(
    damage: bytes | None, name: str, tmp_path: Path, cache: Path, readings: list[str]
) -> None:
    path = written(tmp_path / "x.jsonl", many(9, 20))
    first = prepared(path)
    expected = b"".join(first.ledger.lines())
    (entry,) = entries(cache)
    raw = {file.name: file.read_bytes() for file in entry.iterdir()}
    assert set(raw) == {"rows.arrow", "notes.json"}
    (entry / name).unlink()
    (entry / name).write_bytes(raw[name][: len(raw[name]) // 2] if damage is None else damage)
    second = prepared(path)
    assert readings == [path] * 2
    assert b"".join(second.ledger.lines()) == expected
    assert entries(cache) == {entry}
    assert {file.name: file.read_bytes() for file in entry.iterdir()} == raw


@pytest.mark.parametrize("name", ["rows.arrow", "notes.json"])
def test_an_entry_without_one_of_its_files_is_made_again(
    name: str, tmp_path: Path, cache: Path, readings: list[str]
) -> None:
    path = written(tmp_path / "x.jsonl", [row()])
    prepared(path)
    (entry,) = entries(cache)
    (entry / name).unlink()
    assert len(prepared(path).train) == 1
    assert readings == [path] * 2


def test_an_error_leaves_no_entry(tmp_path: Path, cache: Path) -> None:
    with pytest.raises(DataError):
        prepared(written(tmp_path / "x.jsonl", [row(), b"{"]))
    assert not list((cache / "tokens").iterdir())


@pytest.mark.timeout(60)
@pytest.mark.slow
def test_twenty_thousand_rows_are_a_matter_of_seconds(tmp_path: Path) -> None:
    """The limit only catches a step whose cost grows with the square of the rows."""
    path = written(tmp_path / "x.jsonl", [row(f"prompt {number // 2}", f"c{number}", "r") for number in range(20_000)])
    data = prepared(path, eval_fraction=0.1)
    assert len(data.train) + len(data.evaluation) == 20_000
    assert len(data.evaluation) == 2_000
