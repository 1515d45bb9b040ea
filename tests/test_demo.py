"""The built-in preferences, and the built-in model on them."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from orpo_cli.cli.main import main

DEMO = Path(__file__).resolve().parent.parent / "orpo_cli" / "demo"
PARTS = ["train", "heldout"]


def pairs(name: str) -> list[dict[str, str]]:
    return [json.loads(line) for line in (DEMO / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()]


def share_where_longer_is_chosen(rows: list[dict[str, str]], length: Callable[[str], int]) -> float:
    """How often the rule "the longer response is the chosen one" is right; equal lengths are half a point."""
    differences = [length(row["chosen"]) - length(row["rejected"]) for row in rows]
    return sum(1.0 if difference > 0 else 0.5 if difference == 0 else 0.0 for difference in differences) / len(rows)


def test_no_text_stands_twice() -> None:
    train, heldout = (pairs(name) for name in PARTS)
    assert len(train) == 168
    assert len(heldout) == 64
    for field in ("prompt", "chosen", "rejected"):
        assert len({row[field].casefold() for row in train + heldout}) == 168 + 64


@pytest.mark.parametrize("name", PARTS)
def test_chosen_is_three_numbered_points_and_rejected_one_paragraph(name: str) -> None:
    for row in pairs(name):
        assert re.fullmatch(r"1\. \S.*[.\"]\n2\. \S.*[.\"]\n3\. \S.*[.\"]", row["chosen"]), row
        assert re.fullmatch(r"[^\d\s\n].*\.", row["rejected"]), row


@pytest.mark.parametrize("name", PARTS)
@pytest.mark.parametrize("length", [len, lambda text: len(text.split())], ids=["characters", "words"])
def test_length_does_not_tell_chosen_from_rejected(name: str, length: Callable[[str], int]) -> None:
    assert 0.45 <= share_where_longer_is_chosen(pairs(name), length) <= 0.55


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_nor_does_length_in_tokens_of_the_built_in_model(monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import AutoTokenizer

    from orpo_cli.models.builtin import builtin_model

    monkeypatch.delenv("ORPO_CACHE")  # the converted model is 540 MB; one copy will do
    tokenizer = AutoTokenizer.from_pretrained(builtin_model("smollm2", lambda *_: None))
    for name in PARTS:
        share = share_where_longer_is_chosen(pairs(name), lambda text: len(tokenizer(text)["input_ids"]))
        assert 0.45 <= share <= 0.55


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_built_in_model_learns_the_form(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """40 pairs are enough to tell nearly all held-out pairs apart (the margin rose by 0.30 when this was written)."""
    monkeypatch.delenv("ORPO_CACHE")  # the converted model is 540 MB; one copy will do
    folder = tmp_path / "run"
    typed = ["trainer.max_steps=10", "trainer.pairs_per_step=4", "trainer.sample_tokens=8", f"output_dir={folder}"]
    assert main(["train", *typed]) == 0
    lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    baseline, final = (record for record in map(json.loads, lines) if record["kind"] == "eval")
    assert 0.3 < baseline["accuracy"] < 0.7
    assert final["accuracy"] > 0.9
    assert final["margin"] > baseline["margin"] + 0.2
    assert final["nll"] < baseline["nll"]
    assert (folder / "model" / "adapter_model.safetensors").is_file()
