"""Columns that are set apply to the files that have them; the others of the same run are read by their own."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from preferences import prepared, row, shared_tokenizer, written

from orpo_cli.data.prepare import PreparedData
from orpo_cli.errors import ConfigError, DataError


def texts(data: PreparedData) -> list[tuple[str, ...]]:
    """Return prompt, chosen and rejected of every pair, without the end token."""
    pairs = [data.train[place] for place in range(len(data.train))]
    decode = shared_tokenizer().decode
    return [(decode(pair.prompt_ids), decode(pair.chosen_ids[:-1]), decode(pair.rejected_ids[:-1])) for pair in pairs]


@pytest.fixture
def mixed(tmp_path: Path) -> list[str]:
    """A file with columns of the project's own, one of Orca's, one of prompt, chosen and rejected."""
    own = tmp_path / "own.parquet"
    pq.write_table(pa.Table.from_pylist([{"ask": "p1", "yes": "c1", "no": "r1"}]), own)
    orca = written(tmp_path / "orca.jsonl", [{"question": "p2", "chosen": "c2", "rejected": "r2"}])
    return [str(own), orca, written(tmp_path / "plain.jsonl", [row("p3", "c3", "r3")])]


OWN = {"prompt": "ask", "chosen": "yes", "rejected": "no"}


def test_each_file_is_read_by_the_columns_that_it_has(mixed: list[str]) -> None:
    data = prepared(mixed, columns=OWN)
    assert texts(data) == [("p1", "c1", "r1"), ("p2", "c2", "r2"), ("p3", "c3", "r3")]
    none_of = "has none of data.columns.prompt=ask, chosen=yes, rejected=no; read as pairs without them"
    assert data.notes == [
        "own.parquet: read as pairs, with data.columns.prompt=ask, chosen=yes, rejected=no",
        "orca.jsonl: read as pairs, with data.columns.prompt=question",
        f"orca.jsonl: {none_of}",
        f"plain.jsonl: {none_of}",
    ]
    assert prepared(mixed, columns=OWN).notes == data.notes  # from the cache


def test_what_is_only_evaluated_on_may_have_other_columns(mixed: list[str]) -> None:
    data = prepared(mixed[0], eval_path=mixed[2], columns=OWN)
    assert (len(data.train), len(data.evaluation), data.questions) == (1, 1, [(0, "p3")])


def test_a_file_with_some_of_the_columns_is_refused_by_the_missing_one(mixed: list[str], tmp_path: Path) -> None:
    half = written(tmp_path / "half.jsonl", [{"ask": "p", "yes": "c", "rejected": "r"}])
    with pytest.raises(DataError, match=r'half\.jsonl:1: no: missing; the row has "ask", "yes", "rejected"'):
        prepared([*mixed, half], columns=OWN)


def test_an_optional_column_may_be_in_one_file_only(mixed: list[str], tmp_path: Path) -> None:
    heavy = written(tmp_path / "heavy.jsonl", [row("p4", "c4", "r4", w=3)])
    assert prepared([mixed[2], heavy], columns={"weight": "w"}).train.weights.tolist() == [1, 3]


@pytest.mark.parametrize(
    ("columns", "said"),
    [
        ({"prompt": "question"}, "data.columns.prompt=question: no file has this column in its first rows"),
        (OWN | {"weight": "w"}, "data.columns.weight=w: no file has this column in its first rows"),
        ({"prompt": "ask.text"}, "data.columns.prompt=ask.text: no file has this column in its first rows"),
    ],
)
def test_a_column_that_no_file_has_is_refused(columns: dict[str, Any], said: str, mixed: list[str]) -> None:
    own, _, plain = mixed
    with pytest.raises(ConfigError) as caught:
        prepared([own, plain], columns=columns)
    keys = ['"ask", "yes", "no"', '"prompt", "chosen", "rejected"']
    assert str(caught.value) == f"{said}; {own} has {keys[0]}; {plain} has {keys[1]}"


def test_a_column_inside_an_object_is_there_where_one_object_has_it(tmp_path: Path) -> None:
    answers = [{"said": "none"}, {"said": "r", "points": 1}, {"said": "c", "points": 2}]
    path = written(tmp_path / "x.jsonl", [{"prompt": "p", "answers": answers}])
    assert texts(prepared(path, columns={"responses": "answers.said", "scores": "answers.points"})) == [("p", "c", "r")]


def test_an_empty_file_is_refused_as_such(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no rows"):
        prepared(written(tmp_path / "x.jsonl", []), columns=OWN)
