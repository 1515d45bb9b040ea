"""The reading of real runs of the tiny model, in situations that people meet."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from tiny_runs import pairs, write_pairs

from orpo_cli.cli.main import main

slow = pytest.mark.slow


@pytest.fixture
def said(tmp_path: Path) -> Callable[..., dict[str, str]]:
    """`said("lambda=0")`: the sentences of a run by their rules; half of 60 pairs are held out."""
    preferences = write_pairs(tmp_path / "prefs.jsonl", 60)

    def run(*overrides: str) -> dict[str, str]:
        folder = tmp_path / "run"
        typed = [
            "train", "model=tiny", f"data={preferences}", f"output_dir={folder}", "data.eval_fraction=0.5",
            "trainer.pairs_per_step=6", "trainer.max_steps=20", "trainer.sample_tokens=8", "optimizer.lr=3e-3",
        ]  # fmt: skip
        assert main([*typed, *overrides]) == 0
        record = json.loads((folder / "run.json").read_text(encoding="utf-8"))
        return {sentence["name"]: sentence["text"] for sentence in record["reading"]}

    return run


def test_a_learning_rate_of_nothing(said: Callable[..., dict[str, str]]) -> None:
    reading = said("optimizer.lr=1e-9")
    assert "the learning rate is too small" in reading["unmoved"]
    assert not reading.keys() & {"rose", "fell", "no_difference", "parted", "alike"}


def test_nothing_held_out(said: Callable[..., dict[str, str]]) -> None:
    assert "data.eval_fraction=0.1" in said("data.eval_fraction=0")["nothing_held_out"]


@slow
def test_sft_alone(said: Callable[..., dict[str, str]]) -> None:
    """Words without sense: nothing to prefer, and both sides become more likely."""
    reading = said("loss=sft")
    assert "no_preference_term" in reading
    assert not reading.keys() & {"rose", "fell", "hardly_acts", "overwhelms"}


@slow
def test_lambda_far_too_large(said: Callable[..., dict[str, str]]) -> None:
    assert "(lambda 1000)" in said("lambda=1000")["overwhelms"]


@slow
def test_shuffled_labels(said: Callable[..., dict[str, str]], tmp_path: Path) -> None:
    """Every second pair the wrong way round: nothing that could be learned from the pairs holds for others."""
    shuffled = [
        pair if place % 2 else pair | {"chosen": pair["rejected"], "rejected": pair["chosen"]}
        for place, pair in enumerate(pairs(60))
    ]
    data = tmp_path / "shuffled.jsonl"
    data.write_text("".join(json.dumps(pair) + "\n" for pair in shuffled), encoding="utf-8")
    assert "no_difference" in said(f"data={data}", "lambda=0.5")


@slow
def test_chosen_that_is_only_longer(said: Callable[..., dict[str, str]], tmp_path: Path) -> None:
    """The same word on both sides, more often in chosen but for every fifth pair: no rise that is not called length."""
    rows = [
        {"prompt": f"word {place}?", "chosen": "moon " * (9 if place % 5 else 2), "rejected": "moon " * 4}
        for place in range(160)
    ]
    data = tmp_path / "long.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    reading = said(f"data={data}", "lambda=1", "trainer.max_steps=30")
    assert "rose" not in reading or "may_be_length" in reading


@slow
def test_a_learning_rate_that_ruins(said: Callable[..., dict[str, str]]) -> None:
    reading = said("optimizer.lr=1", "trainer.max_grad_norm=null", "lambda=0.5")
    assert reading.keys() & {"chosen_less_likely", "fell", "overwhelms", "repeats"}
