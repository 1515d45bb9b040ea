"""A run that goes on with other processes, other micro-batches, on other threads: the same steps, equal to rounding.

Rows 19 and 20 of the faults.
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from runs import Orpo, digests, gone_back, records
from safetensors.torch import load_file

Arguments = Callable[..., list[str]]
slow = pytest.mark.slow

SGD = ("optimizer=sgd", "optimizer.lr=0.05", "trainer.precision=fp32", "trainer.keep_last=9", "trainer.sample_tokens=0")

WEIGHT_TOLERANCE = 1e-5
"""Relative to the largest weight change of a tensor. A gradient is a sum of some 500 terms, each rounded to 6e-8 of its
size and added in another order: a few 1e-6 of the largest (tests/training/test_split_invariance.py has the bound).
SGD moves a weight by lr times its gradient, so a few steps keep that share; AdamW would divide it away."""

METRIC_TOLERANCE = {"rel": 1e-5, "abs": 5e-6}
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
def test_same_steps_cut_otherwise(overrides: tuple[str, ...], orpo: Orpo, sgd: Path, tmp_path: Path) -> None:
    folder = gone_back(sgd, tmp_path / "run", 2)
    done = orpo.run("resume", str(folder), *overrides)
    assert done.code == 0
    assert "note: the run goes on under other conditions, so it is equal to rounding only: " in done.output
    assert_equal_to_rounding(folder, sgd, sgd / "checkpoints" / "step-000002")


@slow
def test_one_process_then_two_then_one(orpo: Orpo, sgd: Path, tmp_path: Path) -> None:
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
    went_on = json.loads((again / "run.json").read_text(encoding="utf-8"))["went_on"]
    assert [entry["after_step"] for entry in went_on] == [2, 4]
    assert went_on[0]["changed"] == {"trainer.processes": 2, "trainer.max_tokens": 60}


@slow
def test_other_threads_and_instructions(sgd: Path, tmp_path: Path) -> None:
    """19: warned of, and close; a process of its own, since torch reads both as it is loaded."""
    folder = gone_back(sgd, tmp_path / "run", 2)
    capability = torch.backends.cpu.get_cpu_capability()
    other = "default" if capability == "AVX2" else "avx2"
    done = subprocess.run(
        [sys.executable, "-m", "orpo_cli", "resume", str(folder)], capture_output=True, text=True, check=False,
        env=os.environ | {"OMP_NUM_THREADS": "2", "ATEN_CPU_CAPABILITY": other},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "equal to rounding only: threads 1 -> 2" in done.stderr
    if capability in ("AVX2", "AVX512"):
        assert f"instruction set {capability} -> " in done.stderr
    assert_equal_to_rounding(folder, sgd, sgd / "checkpoints" / "step-000002")
