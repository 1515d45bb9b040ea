"""Runs of a mixture of experts: what they say of its load-balancing loss, record and refuse."""

import json
from pathlib import Path
from typing import Any

import pytest
from tiny_runs import Arguments, change_json, gone_back, same_end, tiny_mixture

import orpo_cli as orpo
from orpo_cli.errors import ConfigError
from orpo_cli.runs.folder import RunFolder
from orpo_cli.runs.verify import verify
from orpo_cli.training.events import RunStarted

KEY = "loss.router_aux_loss_coef"


@pytest.fixture(scope="module")
def mixture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_mixture(tmp_path_factory.mktemp("mixture") / "model")


@pytest.fixture(scope="module")
def run(mixture: Path, arguments: Arguments, tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("run") / "run"
    return orpo.train(orpo.configure(*arguments(folder, f"model={mixture}", "trainer.precision=fp32")[1:]))


def notes_of(*words: str) -> list[str]:
    """The notes of a run, which is left before its first step."""
    for event in orpo.training_events(orpo.configure(*words)):
        if isinstance(event, RunStarted):
            return [note for note in event.notes if "load-balancing" in note]
    raise AssertionError("it did not start")


def test_the_loss_is_the_sum_of_its_recorded_terms(run: Any) -> None:
    kinds = {"step": 6, "eval": 3}
    for kind, count in kinds.items():
        lines = [line for line in run.metrics if line["kind"] == kind]
        assert len(lines) == count
        for line in lines:
            assert line["router_aux_loss"] >= 2.0  # 2 of 4 experts: even shares, the least, give 4 * 4 * 1/2 * 1/4
            terms = line["nll_loss"] + run.config.lambda_ * line["or_loss"] + 0.5 * line["router_aux_loss"]
            assert line["loss"] == pytest.approx(terms, rel=1e-6)


def test_the_term_is_named_wherever_the_objective_is(run: Any) -> None:
    record = json.loads((run.folder / "run.json").read_text(encoding="utf-8"))
    assert record["objective"].endswith(" + 0.5 x load-balancing loss of the routers")
    assert record["panel"]["objective"] == record["objective"]
    log = (run.folder / "model" / "README.md").read_text(encoding="utf-8")
    assert " * or_loss + 0.5 * router_aux_loss\n" in log
    assert "share of tokens sent there" in (run.folder / "report.html").read_text(encoding="utf-8")


def test_a_resumed_run_ends_with_the_same_bytes(run: Any, tmp_path: Path) -> None:
    folder = gone_back(run.folder, tmp_path / "run", 4)
    orpo.resume(folder)
    assert same_end(folder, run.folder)
    assert all(inspected.problem is None for inspected in verify(RunFolder(run.folder)))


def test_the_switch_cannot_change_on_resume(run: Any, tmp_path: Path) -> None:
    folder = gone_back(run.folder, tmp_path / "run", 4)
    with pytest.raises(ConfigError, match=rf"{KEY}=0 \(was auto\): cannot change on resume"):
        orpo.resume(folder, f"{KEY}=0")


@pytest.mark.parametrize(
    ("settings", "override", "said"),
    [
        ({}, "auto", "the loss includes 0.5 (that of the model's config.json) x the load-balancing loss"),
        ({}, "0.01", "the loss includes 0.01 (loss.router_aux_loss_coef; config.json: 0.5) x the load-balancing loss"),
        ({}, "0", "trained without a load-balancing loss: loss.router_aux_loss_coef=0"),
        ({"router_aux_loss_coef": 0.0}, "auto", "trained without a load-balancing loss: the coefficient in its config"),
    ],
    ids=["auto", "a number", "0", "0 of its own"],
)
def test_a_note_says_what_is_trained(
    settings: dict[str, Any], override: str, said: str, mixture: Path, arguments: Arguments, tmp_path: Path
) -> None:
    change_json(mixture / "config.json", **{"router_aux_loss_coef": 0.5} | settings)
    (note,) = notes_of(*arguments(tmp_path / "run", f"model={mixture}", f"{KEY}={override}")[1:])
    assert said in note
    change_json(mixture / "config.json", router_aux_loss_coef=0.5)


def test_a_dense_model_has_no_such_loss(arguments: Arguments, tmp_path: Path) -> None:
    assert notes_of(*arguments(tmp_path / "dense", f"{KEY}=0")[1:]) == []
    with pytest.raises(ConfigError, match=rf"{KEY}=0.01: LlamaForCausalLM has no load-balancing loss"):
        notes_of(*arguments(tmp_path / "run", f"{KEY}=0.01")[1:])
