"""Runs with each optimizer: evaluations and checkpoints leave no trace; from each checkpoint come the same bytes."""

from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

import pytest
import torch
from matrix import rows
from safetensors.torch import load_file
from tiny_runs import Arguments, digests, gone_back, records, same_end

import orpo_cli as orpo
from orpo_cli.machine.hardware import Hardware
from orpo_cli.runs.folder import RunFolder
from orpo_cli.runs.record import environment
from orpo_cli.runs.replay import replay
from orpo_cli.runs.verify import verify

CASES = {
    "schedule_free_adamw": ("optimizer.weight_decay=0.1", "scheduler.warmup_steps=2"),
    "adamw_8bit": ("optimizer.weight_decay=0.1",),
    "paged_adamw_8bit": (),
    "stable_adamw": ("optimizer.weight_decay=0.1", "optimizer.layer_lr_decay=0.8"),
    "lion": ("optimizer.lr=1e-4",),
    "muon": ("optimizer.layer_lr_decay=0.8",),
}


@pytest.mark.parametrize(("name", "overrides"), [
    *rows({name: (name, case) for name, case in CASES.items()}, "schedule_free_adamw"),
    *rows({f"{name}, LoRA": (name, ("adapter=lora", *CASES[name])) for name in CASES}),
    *rows({f"{name}, bf16": (name, ("model.dtype=bf16", *CASES[name])) for name in CASES}),
])  # fmt: skip
def test_steps_depend_on_nothing_but_steps(
    name: str, overrides: Sequence[str], arguments: Arguments, tmp_path: Path
) -> None:
    def run(folder: str, *how: str) -> Path:
        typed = arguments(tmp_path / folder, f"optimizer={name}", "trainer.keep_last=9", *overrides, *how)
        return orpo.train(orpo.configure(*typed[1:])).folder

    whole, seldom = run("whole"), run("seldom", "trainer.save_every=6", "trainer.eval_every=null")
    assert digests(whole / "model") == digests(seldom / "model")
    steps = [[line for line in records(folder) if line["kind"] == "step"] for folder in (whole, seldom)]
    assert steps[0] == steps[1]
    folder = gone_back(whole, tmp_path / "resumed", 2)
    orpo.resume(orpo.open_run(folder))
    assert same_end(folder, whole)
    inspected = [*verify(RunFolder(whole)), *replay(RunFolder(whole), 3, lambda *_: None)]
    assert [part.problem for part in inspected if part.problem] == []


def test_the_environment_has_the_versions_of_the_extras_that_compute() -> None:
    """A run that resumes with another one says so."""
    hardware = Hardware(torch.device("cpu"), "fp32", 0, 1)
    plain, extras = (
        environment(orpo.configure(*words), hardware) for words in ([], ["optimizer=lion", "adapter=qlora"])
    )
    assert extras.keys() - plain.keys() == {"torch-optimi", "bitsandbytes"}
    assert extras["torch-optimi"] == metadata.version("torch-optimi")


def test_the_model_of_a_schedule_free_run_is_the_average(arguments: Arguments, tmp_path: Path) -> None:
    """y = beta x + (1 - beta) z (arXiv 2405.15682, equation 1); the checkpoint has all three, x as its weights."""
    typed = arguments(tmp_path / "run", "optimizer=schedule_free_adamw", "optimizer.betas=[0.7,0.99]")
    run = orpo.train(orpo.configure(*typed[1:]))
    checkpoint = run.checkpoints[-1]
    average = load_file(checkpoint / "model.safetensors")
    model = load_file(run.folder / "model" / "model.safetensors")
    assert all(torch.equal(model[name], value) for name, value in average.items())
    state = load_file(checkpoint / "optimizer.safetensors")
    assert {name for name in average if f"{name}|y" in state} == average.keys()
    for name, x in average.items():
        y, z = state[f"{name}|y"], state[f"{name}|z"]
        assert torch.allclose(y, 0.7 * x + 0.3 * z, rtol=0, atol=1e-6)
        assert not torch.equal(x, y)
