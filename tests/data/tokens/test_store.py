"""Write and read entries of the cache: one is whole or not there, and a store gives back what was put in."""

import fcntl
import json
import os
import pickle
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from preferences import data_config, entries, row, shared_tokenizer, written

from orpo_cli.data.pairs import Lengths, Source, TokenizedPair
from orpo_cli.data.tokens import store
from orpo_cli.data.tokens.store import (
    EntryWriter,
    PairStore,
    StoredRow,
    TokenizedFile,
    open_entry,
    record_batch,
    remove_leftovers,
)


def stored(line: int, ids: TokenizedPair | None = None, **changed: Any) -> StoredRow:
    row_class = "kept" if ids else "dropped:too_long"
    return StoredRow(line, 0, row_class, 1.0, Lengths(1, 1, 1), False, False, 0, (1, 2, 3), ids)._replace(**changed)


def write_entry(directory: Path, batches: Sequence[Sequence[StoredRow]], notes: dict[str, Any]) -> None:
    with EntryWriter(directory) as writer:
        for rows in batches:
            writer.write(record_batch(rows))
        writer.publish(notes)


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


PAIR = TokenizedPair([1, 2], [3], [4])


class TestEntries:
    def test_it_gives_back_what_was_written(self, tmp_path: Path) -> None:
        kept = StoredRow(4, 0, "kept", 0.5, Lengths(2, 1, 1), True, False, 3, (1, 2, 2**64 - 1), PAIR)
        dropped = StoredRow(9, 2, "dropped:too_long", 0.0, Lengths(5, 6, 7), False, True, 0, (3, 4, 5), None)
        write_entry(tmp_path / "x", [[kept], [dropped], []], {"note": "ü", "counts": {"a": 1}})
        file = TokenizedFile(tmp_path / "x", "x.jsonl")
        assert (len(file), file.notes["note"], file.notes["counts"]) == (2, "ü", {"a": 1})
        columns = {
            "line": [4, 9],
            "pair": [0, 2],
            "weight": [0.5, 0],
            "prompt_tokens": [2, 5],
            "chosen_tokens": [1, 6],
            "rejected_tokens": [1, 7],
            "boundary_merged": [True, False],
            "identical": [False, True],
            "control_tokens": [3, 0],
            "prompt_hash": [1, 3],
            "chosen_hash": [2, 4],
            "rejected_hash": [2**64 - 1, 5],
        }
        assert {name: file.column(name).tolist() for name in columns} == columns
        codes, classes = file.classes()
        assert [classes[code] for code in codes] == ["kept", "dropped:too_long"]
        assert file.trainable().tolist() == [0]
        assert file.trained_lengths().tolist() == [[2, 1, 1], [0, 0, 0]]
        assert (file.pair(0), file.source(1), file.highest_id()) == (PAIR, Source("x.jsonl", 9), 4)
        assert names(tmp_path) == {"x"}
        assert names(tmp_path / "x") == {"rows.arrow", "notes.json"}

    def test_it_can_be_read_when_the_cache_has_been_cleared(self, tmp_path: Path) -> None:
        """A run keeps what it has opened."""
        write_entry(tmp_path / "x", [[stored(1, PAIR)], [stored(2)]], {})
        file = TokenizedFile(tmp_path / "x", "x.jsonl")
        shutil.rmtree(tmp_path / "x")
        assert file.column("line").tolist() == [1, 2]
        assert (file.pair(0), file.source(1)) == (PAIR, Source("x.jsonl", 2))

    def test_an_entry_without_rows(self, tmp_path: Path) -> None:
        write_entry(tmp_path / "x", [], {})
        file = TokenizedFile(tmp_path / "x", "x.jsonl")
        assert (len(file), file.classes()[1], file.trainable().tolist(), file.highest_id()) == (0, [], [], -1)
        assert file.trained_lengths().shape == (0, 3)
        assert file.column("line").tolist() == file.column("prompt_hash").tolist() == []

    def test_none_where_there_is_none(self, tmp_path: Path) -> None:
        with pytest.raises((OSError, pa.ArrowInvalid)):
            TokenizedFile(tmp_path / "none", "x.jsonl")
        assert open_entry(tmp_path / "none", "") is None

    def test_rows_of_another_format_are_none(self, tmp_path: Path) -> None:
        write_entry(tmp_path / "x", [[stored(1, PAIR)]], {})
        with pa.ipc.new_file(str(tmp_path / "x" / "rows.arrow"), pa.schema([("line", pa.int64())])):
            pass
        assert open_entry(tmp_path / "x", "") is None

    def test_the_place_of_a_row_among_the_rows(self, tmp_path: Path) -> None:
        """Records 0 to 4 are of the rows 0, 1, 1, 1, 2: a row's first pair has the number 0."""
        rows = [stored(1), *(stored(1, PAIR, pair=number) for number in range(3)), stored(1)]
        write_entry(tmp_path / "x", [rows[:2], rows[2:]], {})
        file = TokenizedFile(tmp_path / "x", "x.jsonl")
        assert [file.ordinal(record) for record in range(5)] == [0, 1, 1, 1, 2]


class KilledError(BaseException):
    """Stands for what a signal handler would raise in the middle of a write."""


class TestWriting:
    def test_a_write_that_stops_half_way_leaves_nothing(self, tmp_path: Path) -> None:
        def stopped() -> None:
            with EntryWriter(tmp_path / "x") as writer:
                writer.write(record_batch([stored(1, PAIR)]))
                raise KilledError

        with pytest.raises(KilledError):
            stopped()
        assert names(tmp_path) == set()

    def test_a_whole_entry_is_never_replaced(self, tmp_path: Path) -> None:
        """The second writer leaves the entry of the first, which others may be reading."""
        write_entry(tmp_path / "x", [[stored(1, PAIR)]], {"by": "first"})
        before = (tmp_path / "x" / "rows.arrow").stat().st_ino
        write_entry(tmp_path / "x", [[stored(1, PAIR)]], {"by": "second"})
        assert TokenizedFile(tmp_path / "x", "").notes["by"] == "first"
        assert (tmp_path / "x" / "rows.arrow").stat().st_ino == before
        assert names(tmp_path) == {"x"}

    @pytest.mark.parametrize("there", [[], ["rows.arrow"], ["rows.arrow", "notes.json"], ["else"]])
    def test_a_damaged_entry_is_replaced(self, there: list[str], tmp_path: Path) -> None:
        (tmp_path / "x").mkdir()
        for name in there:
            (tmp_path / "x" / name).write_bytes(b"ARROW1 and no more")
        write_entry(tmp_path / "x", [[stored(1, PAIR)]], {})
        assert open_entry(tmp_path / "x", "")
        assert names(tmp_path / "x") == {"rows.arrow", "notes.json"}


def left_over(parent: Path, age: float) -> Path:
    """Leave what a killed process leaves: half an entry that nobody locks."""
    directory = parent / ".tmp-left"
    directory.mkdir(parents=True)
    (directory / "rows.arrow").write_bytes(b"ARROW1\0\0half")
    then = time.time() - age
    os.utime(directory, (then, then))
    return directory


class TestSweeping:
    def test_what_is_left_is_removed_by_the_next_writer(self, tmp_path: Path) -> None:
        left_over(tmp_path, age=3600)
        write_entry(tmp_path / "x", [[stored(1, PAIR)]], {})
        assert names(tmp_path) == {"x"}

    def test_a_young_one_is_spared(self, tmp_path: Path) -> None:
        """Its process may be about to lock it."""
        young = left_over(tmp_path, age=30)
        remove_leftovers(tmp_path)
        assert (young / "rows.arrow").exists()

    def test_one_that_is_locked_is_spared_however_old(self, tmp_path: Path) -> None:
        left = left_over(tmp_path, age=3600)
        with (left / "rows.arrow").open() as rows:
            fcntl.flock(rows, fcntl.LOCK_EX)
            remove_leftovers(tmp_path)
            assert (left / "rows.arrow").exists()
        remove_leftovers(tmp_path)
        assert not left.exists()

    def test_one_without_a_file_is_removed(self, tmp_path: Path) -> None:
        left = left_over(tmp_path, age=3600)
        (left / "rows.arrow").unlink()
        os.utime(left, (1, 1))
        remove_leftovers(tmp_path)
        assert not left.exists()

    def test_entries_are_never_swept(self, tmp_path: Path) -> None:
        write_entry(tmp_path / "x", [[stored(1, PAIR)]], {})
        os.utime(tmp_path / "x", (1, 1))
        remove_leftovers(tmp_path)
        assert open_entry(tmp_path / "x", "")


PREPARES = """
import pickle, sys
from orpo_cli.data.prepare import prepare

config, tokenizer = pickle.load(sys.stdin.buffer)
print("ready", flush=True)
sys.stdin.buffer.read(1)
data = prepare(config, tokenizer, 200, lambda *_: None)
print(len(data.train), data.train[0].prompt_ids, data.train.source(len(data.train) - 1).line)
"""


@pytest.mark.slow
def test_two_runs_that_prepare_the_same_file_at_once(tmp_path: Path, cache: Path) -> None:
    """The processes are let go at the same moment; both have the whole data, and one entry is left."""
    path = written(tmp_path / "x.jsonl", [row(f"prompt {number}") for number in range(3000)])
    runs = [
        subprocess.Popen([sys.executable, "-c", PREPARES], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        for _ in range(2)
    ]
    for run in runs:
        assert run.stdin is not None
        pickle.dump((data_config(path), shared_tokenizer()), run.stdin)
        run.stdin.flush()
    for run in runs:
        assert run.stdout is not None
        assert run.stdout.readline() == b"ready\n"
    for run in runs:
        assert run.stdin is not None
        run.stdin.write(b"!")
        run.stdin.flush()
    outcomes = [(run.communicate()[0], run.returncode) for run in runs]
    expected = f"3000 {shared_tokenizer()('prompt 0')['input_ids']} 3000\n".encode()
    assert outcomes == [(expected, 0)] * 2
    (entry,) = entries(cache)
    assert names(cache / "tokens") == {entry.name}
    assert names(entry) == {"rows.arrow", "notes.json"}
    assert len(TokenizedFile(entry, "")) == 3000


def test_two_writers_of_one_entry_take_turns(tmp_path: Path) -> None:
    """One finds the place damaged while the other fills it: it must not remove what the other has put there."""
    (tmp_path / "x").mkdir()
    with EntryWriter(tmp_path / "x") as first, EntryWriter(tmp_path / "x") as second:
        for number, writer in enumerate((first, second)):
            writer.write(record_batch([stored(number, PAIR)]))
        first.publish({"by": "first"})
        reader = TokenizedFile(tmp_path / "x", "")
        second.publish({"by": "second"})
    assert TokenizedFile(tmp_path / "x", "").notes["by"] == reader.notes["by"] == "first"
    assert names(tmp_path) == {"x"}


class TestPairStores:
    """There are two files of 4 and 3 rows; of the first the rows 3 and 1 are taken, of the second 0 and 2."""

    @pytest.fixture
    def parts(self, tmp_path: Path) -> list[tuple[TokenizedFile, Any]]:
        def ids(number: int) -> TokenizedPair:
            return TokenizedPair([number] * number, [number + 50] * 2, [number + 60])

        for name, numbers in (("a", range(1, 5)), ("b", range(11, 14))):
            rows = [stored(number, ids(number), weight=number / 2) for number in numbers]
            write_entry(tmp_path / name, [rows[:2], rows[2:]], {})
        files = [TokenizedFile(tmp_path / name, f"{name}.jsonl") for name in ("a", "b")]
        return list(zip(files, ([3, 1], [0, 2]), strict=True))

    def test_pairs_follow_each_other(self, parts: list[tuple[TokenizedFile, Any]]) -> None:
        pairs = PairStore(parts)
        assert len(pairs) == 4
        assert [pair.prompt_ids[0] for pair in pairs] == [4, 2, 11, 13]
        assert pairs[2] == TokenizedPair([11] * 11, [61, 61], [71])
        assert [pairs.source(index) for index in range(4)] == [
            Source("a.jsonl", 4), Source("a.jsonl", 2), Source("b.jsonl", 11), Source("b.jsonl", 13)
        ]  # fmt: skip
        assert [pairs.place(index) for index in range(4)] == [
            (parts[0][0], 3), (parts[0][0], 1), (parts[1][0], 0), (parts[1][0], 2)
        ]  # fmt: skip
        assert pairs.weights.tolist() == [2, 1, 5.5, 6.5]
        assert pairs.token_counts.tolist() == [[4, 2, 1], [2, 2, 1], [11, 2, 1], [13, 2, 1]]
        assert pairs.lengths(3) == Lengths(13, 2, 1)
        assert pairs.shortest() == 1

    def test_indices_out_of_range_are_refused(self, parts: list[tuple[TokenizedFile, Any]]) -> None:
        for index in (-1, 4):
            with pytest.raises(IndexError):
                PairStore(parts)[index]

    @pytest.mark.parametrize(
        ("of_paths", "sizes"), [(None, [4]), ([2], [4]), ([1, 1], [2, 2]), ([0, 1, 1, 0], [0, 2, 2, 0])]
    )
    def test_sizes_are_those_of_the_paths(
        self, of_paths: list[int] | None, sizes: list[int], parts: list[tuple[TokenizedFile, Any]]
    ) -> None:
        assert PairStore(parts, of_paths).sizes == sizes

    def test_an_empty_one(self, parts: list[tuple[TokenizedFile, Any]]) -> None:
        for empty in (PairStore([]), PairStore([(parts[0][0], [])])):
            assert (len(empty), list(empty), empty.weights.tolist()) == (0, [], [])
            assert empty.token_counts.shape == (0, 3)


ids = st.lists(st.integers(0, 2**31 - 1), min_size=1, max_size=6)
stored_rows = st.lists(
    st.builds(
        StoredRow,
        line=st.integers(1, 2**40),
        pair=st.integers(0, 9),
        row_class=st.sampled_from(["kept", "invalid:roles"]),
        weight=st.floats(0, 1e6, width=32),
        lengths=st.builds(Lengths, *[st.integers(0, 2**31 - 1)] * 3),
        boundary_merged=st.booleans(),
        identical=st.booleans(),
        control_tokens=st.integers(0, 9),
        hashes=st.tuples(*[st.integers(0, 2**64 - 1)] * 3),
        ids=st.none() | st.builds(TokenizedPair, ids, ids, ids),
        turns=st.integers(0, 9),
    ),
    max_size=6,
)


@given(st.lists(stored_rows, max_size=3))
@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_rows_come_back(tmp_path: Path, batches: list[list[StoredRow]]) -> None:
    directory = tmp_path / f"entry-{len(list(tmp_path.iterdir()))}"
    write_entry(directory, batches, {})
    file = TokenizedFile(directory, "x")
    rows = [item for batch in batches for item in batch]
    assert len(file) == len(rows)
    for name in ("line", "pair", "turns", "weight", "boundary_merged", "identical", "control_tokens"):
        assert file.column(name).tolist() == [getattr(item, name) for item in rows]
    for columns, part in ((store.LENGTHS, "lengths"), (store.HASHES, "hashes")):
        found = np.stack([file.column(name) for name in columns], axis=1).tolist()
        assert found == [list(getattr(item, part)) for item in rows]
    codes, classes = file.classes()
    assert [classes[code] for code in codes] == [item.row_class for item in rows]
    kept = [number for number, item in enumerate(rows) if item.ids]
    assert file.trainable().tolist() == kept
    assert [file.pair(number) for number in kept] == [item.ids for item in rows if item.ids]
    highest = [max(side) for item in rows if item.ids for side in vars(item.ids).values()]
    assert file.highest_id() == max(highest, default=-1)
    assert json.loads((directory / "notes.json").read_text()) == file.notes
