"""Check that what is held out is decided by the texts of the prompts and the seed, whole prompts at a time."""

import tempfile
from collections.abc import Sequence
from pathlib import Path
from random import Random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orpo_cli.data.pairs import Lengths, TokenizedPair
from orpo_cli.data.splits import held_out_rows, shared_prompts
from orpo_cli.data.tokens.store import EntryWriter, StoredRow, TokenizedFile, record_batch

IDS = TokenizedPair([1], [2], [3])


def files_of(directory: Path, files: Sequence[Sequence[int | None]]) -> list[TokenizedFile]:
    """Make files of rows with these hashes of their prompts; a row without one is not trained on."""
    found = []
    for number, prompts in enumerate(files):
        rows = [
            StoredRow(
                line, 0, "kept", 1.0, Lengths(1, 1, 1), False, False, 0, (prompt or 0, line, line), prompt and IDS
            )
            for line, prompt in enumerate(prompts, start=1)
        ]
        entry = directory / f"{number}"
        with EntryWriter(entry) as writer:
            writer.write(record_batch(rows))
            writer.publish({})
        found.append(TokenizedFile(entry, f"{number}.jsonl"))
    return found


hashes = st.integers(1, 2**64 - 1)
prompts = st.lists(hashes, min_size=1, max_size=8, unique=True).flatmap(
    lambda known: st.lists(
        st.lists(st.none() | st.sampled_from(known), min_size=0, max_size=15), min_size=1, max_size=3
    )
)


@given(prompts, st.floats(0.01, 0.9), st.integers(0, 2**32 - 1))
@settings(max_examples=60)
def test_whole_prompts_close_to_the_share(files: list[list[int | None]], fraction: float, seed: int) -> None:
    pairs = [prompt for file in files for prompt in file if prompt is not None]
    with tempfile.TemporaryDirectory() as folder:
        found = files_of(Path(folder), files)
        rows = held_out_rows(found, fraction, seed)
    held = [file[row] for file, of_file in zip(files, rows, strict=True) for row in of_file]
    assert None not in held
    assert len(held) == sum(pairs.count(prompt) for prompt in set(held))
    if pairs:
        wanted = max(1, round(fraction * len(pairs)))
        largest = max(pairs.count(prompt) for prompt in pairs)
        assert held
        assert abs(len(held) - wanted) <= largest


@given(prompts, st.integers(0, 2**32 - 1), st.randoms())
@settings(max_examples=40)
def test_order_of_rows_and_files_does_not_matter(files: list[list[int | None]], seed: int, draw: Random) -> None:
    def held(order: Sequence[Sequence[int | None]]) -> set[int | None]:
        with tempfile.TemporaryDirectory() as folder:
            rows = held_out_rows(files_of(Path(folder), order), 0.4, seed)
        return {file[row] for file, of_file in zip(order, rows, strict=True) for row in of_file}

    everything = [prompt for file in files for prompt in file]
    draw.shuffle(everything)
    assert held(files) == held([everything]) == held(files[::-1])


def test_seeds_hold_out_other_prompts(tmp_path: Path) -> None:
    files = files_of(tmp_path, [list(range(1, 201))])
    chosen = [frozenset(held_out_rows(files, 0.1, seed)[0].tolist()) for seed in range(5)]
    assert [len(rows) for rows in chosen] == [20] * 5
    assert len(set(chosen)) == 5


def test_each_prompt_is_as_likely_as_another(tmp_path: Path) -> None:
    """Of 20 prompts with neighbouring hashes a quarter is held out under 400 seeds: 100 times each, sigma 8.7.

    Five sigma leave room for the most extreme of 20.
    """
    files = files_of(tmp_path, [list(range(1, 21))])
    counts = np.zeros(20)
    for seed in range(400):
        counts[held_out_rows(files, 0.25, seed)[0]] += 1
    assert counts.sum() == 400 * 5
    assert np.abs(counts - 100).max() < 5 * 8.7


@pytest.mark.parametrize(
    ("fraction", "held"),
    [(0.0, 0), (0.001, 1), (0.24, 2), (0.25, 2), (0.26, 3), (0.9, 9)],  # 2.5 is rounded to the even neighbour
)
def test_shares_of_ten_prompts(fraction: float, held: int, tmp_path: Path) -> None:
    (rows,) = held_out_rows(files_of(tmp_path, [list(range(1, 11))]), fraction, seed=0)
    assert len(rows) == held


def test_shared_prompts_count_pairs_that_are_evaluated(tmp_path: Path) -> None:
    """Prompt 7 is on both sides, once to train and twice to evaluate; 8 is not trained on."""
    one, two, three = files_of(tmp_path, [[7, 5, None], [6, 7, 7, None], [8]])
    assert shared_prompts([one], [two, three]) == 2
    assert shared_prompts([one, three], [two]) == 2
    assert shared_prompts([two], [one]) == 1
    assert shared_prompts([one, two], []) == 0
