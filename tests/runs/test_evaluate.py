"""`orpo evaluate`: every number against plain transformers and against what the run recorded; two models compared."""

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from tiny_runs import pairs, tiny_model, write_pairs
from torch.nn import functional as F
from transformers import AutoModelForCausalLM, AutoTokenizer

import orpo_cli
from orpo_cli.cli.main import main
from orpo_cli.errors import ConfigError, DataError
from orpo_cli.statistics.evaluation import Scored, evaluation_of
from orpo_cli.statistics.scored_pairs import ScoredPairs

FP32 = "trainer.precision=fp32"


@pytest.fixture
def preferences(tmp_path: Path) -> Path:
    return write_pairs(tmp_path / "prefs.jsonl")


@pytest.fixture
def trained(tmp_path: Path, preferences: Path) -> Callable[..., Path]:
    """`trained("adapter=lora")`: the folder of a run of three steps that holds out a quarter, in plain text."""

    def run(*overrides: str) -> Path:
        folder = tmp_path / "run"
        typed = [
            "train", "model=tiny", f"data={preferences}", f"output_dir={folder}", "data.eval_fraction=0.25", FP32,
            "data.chat_template=false", "trainer.max_steps=3", "trainer.sample_tokens=0", "optimizer.lr=1e-2",
        ]  # fmt: skip
        assert main([*typed, *overrides]) == 0
        return folder

    return run


def by_hand(model: Path, texts: Sequence[dict[str, str]]) -> list[tuple[float, int, float, int]]:
    """Sums of log-probabilities and numbers of tokens of both responses of each pair, one plain forward pass each."""
    loaded = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(model)

    def score(prompt: str, response: str) -> tuple[float, int]:
        before = tokenizer(prompt, add_special_tokens=False).input_ids
        after = [*tokenizer(response, add_special_tokens=False).input_ids, tokenizer.eos_token_id]
        ids = torch.tensor([before + after])
        with torch.no_grad():
            logps = F.log_softmax(loaded(ids).logits[0, :-1].double(), -1).gather(1, ids[0, 1:, None])
        return float(logps[len(before) - 1 :].sum()), len(after)

    return [(*score(pair["prompt"], pair["chosen"]), *score(pair["prompt"], pair["rejected"])) for pair in texts]


def test_every_number_equals_plain_transformers(tmp_path: Path, preferences: Path) -> None:
    """1e-5: log-probabilities in fp32, of two forward passes whose products are summed in another order."""
    model = tiny_model(tmp_path / "model")
    found = orpo_cli.evaluate(f"model={model}", f"data={preferences}", "data.chat_template=false", FP32).summary
    scores = by_hand(model, pairs(24))
    count = len(scores)
    chosen, rejected = ([s / n for s, n in column] for column in (((a, b) for a, b, _, _ in scores),
                                                                 ((c, d) for _, _, c, d in scores)))  # fmt: skip

    def log_odds(logp: float) -> float:
        return logp - math.log1p(-math.exp(logp))

    expected = {
        "accuracy": sum(w > r for w, r in zip(chosen, rejected, strict=True)) / count,
        "accuracy_sum": sum(a > c for a, _, c, _ in scores) / count,
        "longer_wins": sum(0.5 if b == d else b > d for _, b, _, d in scores) / count,
        "longer_wins_characters": sum(
            0.5 if len(p["chosen"]) == len(p["rejected"]) else len(p["chosen"]) > len(p["rejected"]) for p in pairs(24)
        ) / count,
        "nll": -sum(a for a, *_ in scores) / sum(b for _, b, *_ in scores),
        "nll_rejected": -sum(c for _, _, c, _ in scores) / sum(d for *_, d in scores),
        "margin": sum(w - r for w, r in zip(chosen, rejected, strict=True)) / count,
        "log_odds_ratio": sum(log_odds(w) - log_odds(r) for w, r in zip(chosen, rejected, strict=True)) / count,
        "logps_chosen": sum(chosen) / count,
        "logps_rejected": sum(rejected) / count,
    }  # fmt: skip
    expected |= {"perplexity": math.exp(expected["nll"]), "perplexity_rejected": math.exp(expected["nll_rejected"])}
    assert (found.pairs, found.prompts) == (24, 24)
    for name, value in expected.items():
        assert getattr(found, name).value == pytest.approx(value, rel=1e-5, abs=1e-6), name
    sides = [[w > r for (_, b, _, d), w, r in zip(scores, chosen, rejected, strict=True) if sign * (b - d) > 0]
             for sign in (1, -1)]  # fmt: skip
    assert min(map(len, sides)) >= 10 or isinstance(found.balanced_accuracy, str)


@pytest.mark.parametrize("adapter", [("adapter=none",), ("adapter=lora",)], ids=["full", "LoRA"])
def test_of_a_run_it_finds_what_the_run_recorded(adapter: tuple[str, ...], trained: Callable[..., Path]) -> None:
    """The held-out pairs, before against the base model and after; equal to rounding, since nothing is trained."""
    folder = trained(*adapter)
    found = orpo_cli.evaluate(f"model={folder}")
    first, *_, last = (record for record in orpo_cli.open_run(folder).metrics if record["kind"] == "eval")
    assert found.against is not None
    for scored, recorded in ((found.scored, last), (found.against, first)):
        assert {"kind", "step", "time", *scored.metrics} == set(recorded)
        for name, value in scored.metrics.items():
            assert value == pytest.approx(recorded[name], rel=1e-5, abs=1e-6), name
    assert found.summary.pairs == 6
    assert found.summary.nll.value == pytest.approx(last["nll"], rel=1e-5)
    assert found.summary.accuracy.value == last["accuracy"]
    assert found.summary.log_odds_ratio.value == pytest.approx(last["log_odds_ratio"], rel=1e-5)


def test_other_data_is_read_as_the_run_read_its_own(trained: Callable[..., Path], tmp_path: Path) -> None:
    """All its pairs, as plain text of at most the run's length; what is typed wins."""
    folder = trained("data.max_length=60")
    other = write_pairs(tmp_path / "other.jsonl", 9)
    scores = by_hand(folder / "model", pairs(9))
    whole = [
        score
        for pair, score in zip(pairs(9), scores, strict=True)
        if len(pair["prompt"]) + max(score[1], score[3]) <= 60  # the tiny model's tokens are bytes
    ]
    found = orpo_cli.evaluate(f"model={folder / 'model'}", f"data={other}")
    assert found.summary.pairs < 9
    expected = -sum(a for a, *_ in whole) / sum(b for _, b, *_ in whole)
    assert found.summary.pairs == len(whole)
    assert found.summary.nll.value == pytest.approx(expected, rel=1e-5)
    assert orpo_cli.evaluate(f"model={folder}", f"data={other}", "data.max_length=999").summary.pairs == 9


def test_other_data_has_the_columns_of_the_run(trained: Callable[..., Path], tmp_path: Path) -> None:
    """Unless a column is typed."""
    rows = [{"q": pair["prompt"], "good": pair["chosen"], "bad": pair["rejected"]} for pair in pairs(9)]
    other = tmp_path / "other.jsonl"
    other.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    columns = [
        f"data.columns.{field}={name}" for field, name in (("prompt", "q"), ("chosen", "good"), ("rejected", "bad"))
    ]
    folder = trained(*columns, f"data.path={other}")
    assert orpo_cli.evaluate(f"model={folder}", f"data={other}").summary.pairs == 9
    plain = write_pairs(tmp_path / "plain.jsonl", 9)
    assert orpo_cli.evaluate(f"model={folder}", f"data={plain}", "data.columns.prompt=prompt").summary.pairs == 9


def test_a_checkpoint_is_of_its_run(trained: Callable[..., Path]) -> None:
    folder = trained("adapter=lora")
    checkpoint = folder / "checkpoints" / "step-000003"
    by_checkpoint, by_run = (orpo_cli.evaluate(f"model={place}") for place in (checkpoint, folder))
    assert by_checkpoint.scored.metrics == by_run.scored.metrics
    assert by_checkpoint.comparison == by_run.comparison


def test_nothing_held_out_is_said(trained: Callable[..., Path]) -> None:
    folder = trained("data.eval_fraction=0")
    with pytest.raises(ConfigError, match="this run held no pairs out; give data=FILE"):
        orpo_cli.evaluate(f"model={folder}")


def test_json_and_parquet(trained: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, table = trained(), tmp_path / "a scores,file.parquet"
    capsys.readouterr()
    assert main(["evaluate", f"model={folder}", "against=./nothing", "--json"]) == 66
    assert main(["evaluate", f"model={folder}", "--json", f"scores={table}"]) == 0
    report: dict[str, Any] = json.loads(capsys.readouterr().out)
    expected = orpo_cli.evaluate(f"model={folder}")
    assert expected.comparison is not None
    for name in ("accuracy", "accuracy_sum", "longer_wins", "nll", "margin"):
        estimate = getattr(expected.summary, name)
        assert report[name] == {"value": estimate.value, "low": estimate.low, "high": estimate.high}
    assert report["balanced_accuracy"]["value"] is None
    assert "needs 10" in report["balanced_accuracy"]["reason"]
    against = report["against"]
    assert (against["model"], against["to_chosen"], against["to_rejected"], against["p"]) == (
        "builtin:tiny", expected.comparison.to_chosen, expected.comparison.to_rejected, expected.comparison.p
    )  # fmt: skip
    assert against["change"]["value"] == expected.comparison.change.value
    rows = pq.read_table(table).to_pylist()
    assert len(rows) == report["pairs"] == 6
    assert np.mean([row["wins"] for row in rows]) == report["accuracy"]["value"]
    held_out = [json.loads(line) for line in (folder / "ledger.jsonl").read_text().splitlines()]
    assert [row["line"] for row in rows] == [row["line"] for row in held_out if row["split"] == "eval"]
    assert sum(row["against_chosen_logp"] for row in rows) != sum(row["chosen_logp"] for row in rows)


def test_against_another_model(trained: Callable[..., Path], tmp_path: Path) -> None:
    folder, model = trained(), tiny_model(tmp_path / "another")
    named, before = orpo_cli.evaluate(f"model={folder}", f"against={model}"), orpo_cli.evaluate(f"model={folder}")
    assert named.against is not None
    assert before.against is not None
    assert (named.against.model, before.against.model) == (str(model), "builtin:tiny")
    assert named.comparison == before.comparison
    alone = orpo_cli.evaluate(f"model={folder}", "against=null")
    assert (alone.against, alone.comparison) == (None, None)
    assert orpo_cli.evaluate(f"model={model}", f"data={tmp_path / 'prefs.jsonl'}").against is None


def test_models_with_other_tokens_share_the_pairs_that_fit_both() -> None:
    """The first has dropped row 2, the second row 0; their numbers are of rows 1 and 3."""

    def scored(model: str, rows: Sequence[int], chosen: Sequence[float]) -> Scored:
        count = len(rows)
        ones, text = np.ones(count, np.int64), np.array(["f"] * count)
        logps = np.array(chosen, float)
        made = ScoredPairs(
            logps, np.full(count, -2.0), ones, ones, ones, ones, np.arange(count), ones, text, np.ones(count)
        )
        return Scored(model, made, {}, np.array([(0, row) for row in rows]), np.array(rows), [])

    first, second = scored("a", (0, 1, 3), (-1, -1, -3)), scored("b", (1, 2, 3), (-3, -1, -3))
    found = evaluation_of(first, second)
    assert found.comparison is not None
    assert (found.summary.pairs, found.comparison.to_chosen, found.comparison.to_rejected) == (2, 1, 0)
    assert found.notes == ["2 pairs fit only one of the two models and are left out"]
    with pytest.raises(DataError, match="a and b have scored no pair in common"):
        evaluation_of(first, replace(second, rows=second.rows + 10))
