"""A run that goes on with other processes, other micro-batches, on other threads: the same steps, equal to rounding.

Rows 19 and 20 of the faults.
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from several import run_several
from tiny_runs import Arguments, Orpo, change_json, digests, gone_back, records, same_end, tiny_model
from torch import nn

from orpo_cli.config.schema import RunConfig
from orpo_cli.data.plan import Step
from orpo_cli.machine.hardware import Hardware
from orpo_cli.models.scorer import Scorer
from orpo_cli.training import loop
from orpo_cli.training.inputs import Budget, Scoring, Training

slow = pytest.mark.slow
pytestmark = pytest.mark.xdist_group("alone")

SGD = ("optimizer=sgd", "optimizer.lr=0.05", "trainer.precision=fp32", "trainer.keep_last=9", "trainer.sample_tokens=0")

WEIGHT_TOLERANCE = 1e-5
"""Relative to the largest weight change of a tensor. A gradient is a sum of some 500 terms, each rounded to 6e-8 of its
size and added in another order: a few 1e-6 of the largest (tests/training/test_split_invariance.py has the bound).
SGD moves a weight by lr times its gradient, so a few steps keep that share; AdamW would divide it away."""

METRIC_TOLERANCE: Any = {"rel": 1e-5, "abs": 5e-6}
"""A log-probability of size 5 is a few roundings of 6e-8 * 5 away, a margin is a difference of such."""


def assert_equal_to_rounding(folder: Path, reference: Path, base: Path) -> None:
    """Weights and metrics; `base` is the checkpoint from which weights have moved."""
    ours, theirs = (load_file(run / "model" / "model.safetensors") for run in (folder, reference))
    start = load_file(base / "model.safetensors")
    moved = max(float((theirs[name] - start[name]).abs().max()) for name in theirs)
    assert moved > 1e-3
    # each weight also has the rounding of its own size, 6e-8 of up to 1, once a step
    tolerance = WEIGHT_TOLERANCE * moved + 6 * 6e-8
    assert max(float((ours[name] - theirs[name]).abs().max()) for name in theirs) < tolerance
    for one, other in zip(records(folder), records(reference), strict=True):
        assert (one.pop("kind"), one.pop("step")) == (other.pop("kind"), other.pop("step"))
        assert one == pytest.approx(other, **METRIC_TOLERANCE)


@pytest.fixture(scope="module")
def sgd(orpo: Orpo, arguments: Arguments, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sgd") / "run"
    assert orpo.run(*arguments(folder, *SGD)).code == 0
    return folder


@pytest.mark.parametrize(
    "overrides",
    [
        pytest.param(("trainer.layout=padded", "trainer.max_tokens=60"), id="another layout, cut smaller"),
        pytest.param(("trainer.max_tokens=1", "trainer.eval_max_tokens=1"), id="each pair alone", marks=slow),
        pytest.param(("trainer.gradient_checkpointing=true",), id="activations computed again", marks=slow),
    ],
)
def test_19_same_steps_cut_otherwise(overrides: tuple[str, ...], orpo: Orpo, sgd: Path, tmp_path: Path) -> None:
    folder = gone_back(sgd, tmp_path / "run", 2)
    done = orpo.run("resume", str(folder), *overrides)
    assert done.code == 0
    assert "note: the run resumes under other conditions, so it is equal to rounding only: " in done.output
    assert_equal_to_rounding(folder, sgd, sgd / "checkpoints" / "step-000002")


@slow
def test_20_one_process_then_two_then_one(orpo: Orpo, sgd: Path, tmp_path: Path) -> None:
    """20: a checkpoint is of a step, not of processes; nothing in it or beside it says how many there were."""
    folder = gone_back(sgd, tmp_path / "one", 2)
    two = orpo.run("resume", str(folder), "trainer.processes=2", "trainer.max_tokens=60")
    assert two.code == 0, two.output
    assert "equal to rounding only: processes 1 -> 2" in two.output
    names = {path.name: set(digests(path)) for path in (folder / "checkpoints").glob("step-*")}
    assert names == {path.name: set(digests(path)) for path in (sgd / "checkpoints").glob("step-*")}
    again = gone_back(folder, tmp_path / "again", 4)
    one = orpo.run("resume", str(again))
    assert one.code == 0
    assert "equal to rounding only: processes 2 -> 1" in one.output
    for run in (folder, again):
        assert_equal_to_rounding(run, sgd, sgd / "checkpoints" / "step-000002")
    resumes = json.loads((again / "run.json").read_text(encoding="utf-8"))["resumes"]
    assert [entry["after_step"] for entry in resumes] == [2, 4]
    assert resumes[0]["changed"] == {"trainer.processes": 2, "trainer.max_tokens": 60}


def test_20_dropout_is_a_function_of_seed_step_and_rank(
    compose_config: Callable[..., RunConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    """20: and of nothing that was drawn before; so a step of a run that goes on drops what it would have dropped."""
    masks: list[list[float]] = []

    def forward(training: Training, _step: Step, _choices: None) -> None:
        masks.append(training.scorer.model(torch.ones(64)).tolist())

    monkeypatch.setattr(loop, "_with_gradients", forward)
    config = compose_config()

    def mask(seed: int, step: int, rank: int) -> tuple[float, ...]:
        scorer, hardware = Scorer(nn.Dropout(0.5)), Hardware(torch.device("cpu"), "fp32", rank, 1)
        optimizer = torch.optim.SGD([{"params": [nn.Parameter(torch.zeros(1))], "initial_lr": 1.0}])
        store: Any = None
        seeded, budget = replace(config, seed=seed), Budget(1, 1)
        scoring = Scoring(seeded, scorer, hardware, "padded", budget)
        training = Training(scoring, [optimizer], store, store, total_steps=9)
        assert loop._take_step(training, Step(step, 0, (0,))) is None
        return tuple(masks[-1])

    moments = [(seed, step, rank) for seed in (1, 2) for step in (1, 2, 3) for rank in (0, 1, 2)]
    first, again = ([mask(*moment) for moment in order] for order in (moments, moments[::-1]))
    assert first == again[::-1]
    assert len(set(first)) == len(moments)
    assert {value for drawn in first for value in drawn} == {0.0, 2.0}


@pytest.fixture
def dropping(tmp_path: Path) -> Path:
    """The tiny model with dropout in its attention."""
    model = tiny_model(tmp_path / "model")
    change_json(model / "config.json", attention_dropout=0.8)
    return model


@slow
def test_20_two_processes_drop_each_their_own(orpo: Orpo, dropping: Path, arguments: Arguments, tmp_path: Path) -> None:
    """20: two equal pairs, one for each process; with the same masks their mean would be the loss of one of them."""
    pair = {"prompt": "the cat runs under", "chosen": "the bright moon", "rejected": "a green stone"}
    data = tmp_path / "equal.jsonl"
    data.write_text(f"{json.dumps(pair)}\n" * 2, encoding="utf-8")

    def losses(name: str, *overrides: str) -> tuple[float, float]:
        """Of the first step by one process with one of the pairs, and by two with both."""
        typed = [*SGD, "data.eval_fraction=0", f"data.path={data}", "trainer.max_steps=1", *overrides]
        one, two = tmp_path / name / "one", tmp_path / name / "two"
        assert orpo.run(*arguments(one, *typed, "trainer.pairs_per_step=1")).code == 0
        run_several(orpo, arguments(two, *typed, "trainer.pairs_per_step=2", "trainer.processes=2"))
        return records(one)[0]["loss"], records(two)[0]["loss"]

    one, two = losses("whole")
    assert one == pytest.approx(two, **METRIC_TOLERANCE)
    one, two = losses("dropped", f"model={dropping}", "model.dropout=true")
    assert abs(one - two) > 1e-3


@slow
def test_20_two_processes_go_on_with_dropout(orpo: Orpo, dropping: Path, arguments: Arguments, tmp_path: Path) -> None:
    """20: to the same bytes as two that were not interrupted."""
    whole = tmp_path / "whole"
    run_several(
        orpo, arguments(whole, f"model={dropping}", "model.dropout=true", "trainer.keep_last=9", "trainer.processes=2")
    )
    folder = gone_back(whole, tmp_path / "run", 2)
    said = run_several(orpo, ["train", f"resume={folder}"])
    assert "resuming after step 2" in said
    assert "equal to rounding only" not in said
    assert same_end(folder, whole)


@slow
def test_19_other_threads_and_instructions(orpo: Orpo, sgd: Path, tmp_path: Path) -> None:
    """19: warned of, and close; a process of its own, since torch reads both as it is loaded.

    The cache is that of the run: the tiny model, made with other instructions, has other random numbers.
    """
    folder = gone_back(sgd, tmp_path / "run", 2)
    capability = torch.backends.cpu.get_cpu_capability()
    other = "default" if capability == "AVX2" else "avx2"
    other_ways = {"OMP_NUM_THREADS": "2", "ATEN_CPU_CAPABILITY": other}
    done = subprocess.run(
        [sys.executable, "-m", "orpo_cli", "resume", str(folder)], capture_output=True, text=True, check=False,
        env=os.environ | other_ways | {"ORPO_CACHE": str(orpo.scratch / "cache")},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "equal to rounding only: threads 1 -> 2" in done.stderr
    if capability in ("AVX2", "AVX512"):
        assert f"instruction set {capability} -> " in done.stderr
    assert_equal_to_rounding(folder, sgd, sgd / "checkpoints" / "step-000002")
