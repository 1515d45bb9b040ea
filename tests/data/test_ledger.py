"""Check that the ledger adds up, whatever the input holds: a record for each pair, and for each row without one."""

import json
from collections import Counter, defaultdict
from collections.abc import Sequence
from itertools import combinations, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from preferences import ledger_records, prepared, ranking, row, written

from orpo_cli.data import ledger as ledgers
from orpo_cli.data.prepare import PreparedData

MAX_LENGTH = 30
LONG = "x" * 40

valid_rows = st.builds(
    row,
    prompt=st.sampled_from(["p", "q", "r s", "ü"]),
    chosen=st.sampled_from(["c", "d", "same"]),
    rejected=st.sampled_from(["r", "same"]),
    weight=st.sampled_from([None, 0.25, 1, 3]),
)
left_out = st.sampled_from(
    [
        (row(LONG), 1),
        (row(chosen=LONG), 1),
        (row(weight=0), 1),
        (row(score_chosen=1, score_rejected=2), 1),
        (row(rejected=""), 1),
        (row(prompt=None), 1),
        ([1], 1),
        (b"{", 1),
        (b"\xff", 1),
        (b'{"prompt": "p", "prompt": "q"}', 1),
    ]
)
"""(a row, records it gives) of rows of pairs, most of which give no pair to train on."""

blank = st.just((b"  ", 0))
pairs_files = st.lists(valid_rows.map(lambda item: (item, 1)) | left_out | blank, max_size=12)


def ranked(scores: list[int], weight: float, prompt: str, how: str) -> tuple[dict[str, Any], int]:
    count = len(scores)
    responses = [LONG if score == 4 else f"response {score} of {count}" for score in scores]
    records = {"all": count * (count - 1) // 2, "adjacent": count - 1, "best_vs_rest": count - 1}[how]
    return ranking(prompt, *scores) | {"responses": responses, "weight": weight}, records


def ranking_files(how: str) -> st.SearchStrategy[list[tuple[Any, int]]]:
    """Draw rankings of 2 to 5 responses, with ties and responses that are too long; and rows that give no pair."""
    rows = st.builds(
        ranked,
        st.lists(st.integers(0, 4), min_size=2, max_size=5),
        st.sampled_from([1, 1, 0, 2.5]),
        st.sampled_from(["p", "q", LONG]),
        st.just(how),
    )
    invalid = st.sampled_from([(b"{", 1), (ranking("p", 1), 1), (ranking("p", 1, 2, scores=[1, "2"]), 1)])
    return st.lists(rows | invalid | blank, max_size=10)


@st.composite
def inputs(draw: st.DrawFn) -> tuple[list[list[tuple[Any, int]]], str, str]:
    """Draw files of one shape, how pairs are made of rankings, and the shape."""
    how = draw(st.sampled_from(["all", "adjacent", "best_vs_rest"]))
    shape = draw(st.sampled_from(["pairs", "rankings"]))
    first = (row("first"), 1) if shape == "pairs" else ranked([2, 1], 1, "first", how)
    other = (row("other"), 1) if shape == "pairs" else ranked([3, 1], 1, "other", how)
    files = draw(st.lists(pairs_files if shape == "pairs" else ranking_files(how), min_size=1, max_size=3))
    return [[first, other, *file] for file in files], how, shape


@given(
    inputs(),
    st.sampled_from(["drop", "truncate_prompt", "truncate_response"]),
    st.sampled_from([0.0, 0.3]),
    st.booleans(),
    st.integers(0, 9),
)
@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_the_ledger_adds_up(
    tmp_path: Path,
    given_input: tuple[list[list[tuple[Any, int]]], str, str],
    policy: str,
    fraction: float,
    evaluates: bool,
    seed: int,
) -> None:
    files, how, shape = given_input
    paths = [written(tmp_path / f"{number}.jsonl", [item for item, _ in rows]) for number, rows in enumerate(files)]
    held = paths.pop() if evaluates and len(paths) > 1 else None
    data = prepared(
        paths,
        max_length=MAX_LENGTH,
        eval_seed=seed,
        format=shape,
        pairs=how,
        min_score_gap=0.5,
        length_policy=policy,
        on_bad_row="skip",
        eval_path=held,
        eval_fraction=0.0 if held else fraction,
    )
    records = ledger_records(data)
    assert len(records) == sum(count for rows in files for _, count in rows)
    assert data.ledger.rows == sum(count > 0 for rows in files for _, count in rows)
    assert Counter((record["split"], record["class"]) for record in records) == data.ledger.classes
    expected = [
        (path, line, pair)
        for path, rows in zip([*paths, *([held] if held else [])], files, strict=True)
        for line, (_, count) in enumerate(rows, start=1)
        for pair in range(count)
    ]
    assert [(record["file"], record["line"], record["pair"]) for record in records] == expected
    assert_trained(data, records)
    weights = {
        (path, line): item.get("weight") or 1.0
        for path, rows in zip([*paths, *([held] if held else [])], files, strict=True)
        for line, (item, _) in enumerate(rows, start=1)
        if isinstance(item, dict)
    }
    assert_weights(records, weights)


def is_trained(record: dict[str, Any]) -> bool:
    return not record["class"].startswith(("dropped:", "invalid:"))


def assert_trained(data: PreparedData, records: Sequence[dict[str, Any]]) -> None:
    """Check that a side holds what the ledger says that it holds."""
    for split, store in (("train", data.train), ("eval", data.evaluation)):
        of_split = [record for record in records if record["split"] == split and is_trained(record)]
        found = [(str(store.source(index)), float(store.weights[index])) for index in range(len(store))]
        expected = [(f"{record['file']}:{record['line']}", float(np.float32(record["weight"]))) for record in of_split]
        assert Counter(found) == Counter(expected)


def assert_weights(records: Sequence[dict[str, Any]], weights: dict[tuple[str, int], float]) -> None:
    """Check that the trained pairs of a row have equal parts of its weight, others none; in fp32, so 1e-6."""
    shares = defaultdict(list)
    for record in records:
        if is_trained(record):
            shares[record["file"], record["line"]].append(record["weight"])
        else:
            assert record["weight"] == 0
    for place, parts in shares.items():
        assert sum(parts) == pytest.approx(weights[place], rel=1e-6)
        assert len(set(parts)) == 1


@pytest.mark.parametrize("how", ["all", "adjacent", "best_vs_rest"])
def test_pairs_of_a_ranking_by_hand(how: str, tmp_path: Path) -> None:
    """The scores are 4 3 3 1, and the third is too long: all pairs, neighbours, or the best against each."""
    order = list(range(4))
    made = {
        "all": list(combinations(order, 2)),
        "adjacent": list(pairwise(order)),
        "best_vs_rest": [(0, 1), (0, 2), (0, 3)],
    }[how]
    responses = ["best", "second", LONG, "last"]
    path = written(tmp_path / "x.jsonl", [ranking("p", 4, 3, 3, 1) | {"responses": responses, "weight": 2}])
    data = prepared(path, max_length=MAX_LENGTH, pairs=how)
    records = ledger_records(data)
    expected = ["dropped:tie" if pair == (1, 2) else "dropped:too_long" if 2 in pair else "kept" for pair in made]
    assert [record["class"] for record in records] == expected
    assert [record["pair"] for record in records] == list(range(len(made)))
    kept = expected.count("kept")
    assert [record["weight"] for record in records if record["class"] == "kept"] == pytest.approx([2 / kept] * kept)


class TestDuplicates:
    def test_the_first_equal_pair_is_named_across_files(self, tmp_path: Path) -> None:
        """Pairs are equal whatever became of either; the three texts count, not ids that were cut to be the same."""
        one = written(tmp_path / "one.jsonl", [row("a"), row("b"), row("a"), row("a", "r", "c"), row(LONG)])
        two = written(tmp_path / "two.jsonl", [row("b"), row("a"), row("new"), row(LONG), row("a", weight=2)])
        data = prepared([one, two], max_length=MAX_LENGTH)
        first, second, long = ({"file": one, "line": line, "row": line} for line in (1, 2, 5))
        assert [record["duplicate_of"] for record in ledger_records(data)] == [
            None, None, first, None, None,
            second, first, None, long, first,
        ]  # fmt: skip

    def test_what_was_cut_alike_is_not_equal(self, tmp_path: Path) -> None:
        rows = [row(chosen=LONG + end, rejected="r") for end in ("1", "2")]
        data = prepared(written(tmp_path / "x.jsonl", rows), max_length=MAX_LENGTH, length_policy="truncate_response")
        assert data.train[0] == data.train[1]
        assert [record["duplicate_of"] for record in ledger_records(data)] == [None, None]

    def test_rows_without_texts_are_no_duplicates(self, tmp_path: Path) -> None:
        path = written(tmp_path / "x.jsonl", [row(), b"{", b"{", row(weight=0), row(weight=0)])
        data = prepared(path, on_bad_row="skip")
        assert [record["duplicate_of"] for record in ledger_records(data)] == [None] * 5

    @given(st.lists(st.tuples(*[st.sampled_from("ab")] * 3), min_size=1, max_size=12), st.integers(0, 12))
    @settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
    def test_any_order(self, tmp_path: Path, texts: list[tuple[str, str, str]], cut: int) -> None:
        """Compare with a dict of the texts that were seen."""
        files = [part for part in (texts[:cut], texts[cut:]) if part]
        paths = [written(tmp_path / f"{n}.jsonl", [row(*pair) for pair in part]) for n, part in enumerate(files)]
        seen: dict[tuple[str, str, str], dict[str, Any]] = {}
        expected = []
        for path, part in zip(paths, files, strict=True):
            for line, pair in enumerate(part, start=1):
                expected.append(seen.get(pair))
                seen.setdefault(pair, {"file": path, "line": line, "row": line})
        assert [record["duplicate_of"] for record in ledger_records(prepared(paths))] == expected


@pytest.mark.parametrize(
    "name",
    ['a"quote".jsonl', "back\\slash.jsonl", "ünï 東京 🙂.jsonl", "new\nline.jsonl", "\u2028\x07.jsonl", "[1].jsonl"],
)
def test_every_record_is_json_whatever_the_file_is_called(name: str, tmp_path: Path) -> None:
    path = written(tmp_path / name, [row(), row(), b"{", ranking("p", 1, 2)])
    data = prepared(path, on_bad_row="skip", format="pairs")
    lines = b"".join(data.ledger.lines()).decode("utf-8").removesuffix("\n").split("\n")
    assert [json.loads(line)["file"] for line in lines] == [path] * 4
    assert json.loads(lines[1])["duplicate_of"] == {"file": path, "line": 1, "row": 1}


def test_a_row_of_an_array_is_found_by_its_number(tmp_path: Path) -> None:
    """Rows that are left out count, pairs of a ranking do not; the messages say the same number."""
    items = [row("a"), row("b", ""), row("c"), row("a")]
    path = tmp_path / "x.json"
    path.write_text("[" + ",".join(map(json.dumps, items[:2])) + "\n," + ",".join(map(json.dumps, items[2:])) + "]")
    data = prepared(str(path), on_bad_row="skip")
    records = ledger_records(data)
    assert [(record["line"], record["row"]) for record in records] == [(1, 1), (1, 2), (2, 3), (2, 4)]
    assert records[3]["duplicate_of"] == {"file": str(path), "line": 1, "row": 1}
    assert [str(data.train.source(index)) for index in range(3)] == [
        f"{path}:1 row 1",
        f"{path}:2 row 3",
        f"{path}:2 row 4",
    ]
    assert f"{path}:1 row 2: chosen: empty" in data.notes[0]
    ranked_path = written(tmp_path / "y.jsonl", [ranking("p", 3, 2, 1), b"  ", ranking("q", 2, 1)])
    found = [(record["line"], record["row"], record["pair"]) for record in ledger_records(prepared(ranked_path))]
    assert found == [(1, 1, 0), (1, 1, 1), (1, 1, 2), (3, 2, 0)]


def test_a_file_name_that_is_not_text(tmp_path: Path) -> None:
    """A byte that is not UTF-8 comes as a lone surrogate; the record still is UTF-8, and names the same file."""
    path = written(tmp_path / "latin-\udce9.jsonl", [row(), row()])
    chunks = b"".join(prepared(path).ledger.lines())
    assert [json.loads(line)["file"] for line in chunks.decode("utf-8").splitlines()] == [path] * 2


def test_records_come_in_chunks_that_fit_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The bytes are the same for any size of chunk, over two files with duplicates on both sides of a border."""
    rows = [row(f"p{number % 7}") for number in range(20)]
    paths = [written(tmp_path / f"{name}.jsonl", rows) for name in "ab"]
    data = prepared(paths, eval_fraction=0.3)
    whole = list(data.ledger.lines())
    assert len(whole) == 2
    for size in (1, 3, 20):
        monkeypatch.setattr(ledgers, "_RECORDS_AT_ONCE", size)
        assert b"".join(data.ledger.lines()) == b"".join(whole)


def test_numbers_are_json_numbers(tmp_path: Path) -> None:
    """The weights go from small to large, as fp32 holds them."""
    weights = [1e-6, 1e-5, 0.1, 1, 12345.678, 1e6]
    data = prepared(written(tmp_path / "x.jsonl", [row(weight=weight) for weight in weights]))
    assert [record["weight"] for record in ledger_records(data)] == pytest.approx(weights, rel=1e-6)


def test_what_a_template_refuses_in_a_ranking_is_one_invalid_row(tmp_path: Path) -> None:
    """Its three pairs are invalid, each with a record and a number of its own; the row is told once."""
    turns = [{"role": "nobody", "content": "x"}]
    data_rows = [ranking("p", 1, 2), {**ranking("p", 1, 2, 3), "prompt": turns}]
    path = written(tmp_path / "x.jsonl", data_rows)
    tokenizer = refusing_tokenizer()
    data = prepared(path, tokenizer, on_bad_row="skip", chat_template=True)
    records = ledger_records(data)
    assert [(record["line"], record["pair"], record["class"]) for record in records] == [
        (1, 0, "kept"),
        (2, 0, "invalid:template"),
        (2, 1, "invalid:template"),
        (2, 2, "invalid:template"),
    ]
    assert data.ledger.rows == 2
    assert len(data.notes) == 1


def refusing_tokenizer() -> Any:
    """Return a tokenizer whose template takes the usual roles only."""
    from orpo_cli.models.builtin import CHATML, byte_tokenizer

    tokenizer = byte_tokenizer()
    check = "{% if message['role'] == 'nobody' %}{{ raise_exception('no such role') }}{% endif %}"
    tokenizer.chat_template = CHATML.replace("%}{{ '<|'", f"%}}{check}{{{{ '<|'", 1)
    return tokenizer
