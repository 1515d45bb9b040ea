"""Several processes give what one gives, whether they share the pairs of a step (ddp) or the weights too (fsdp)."""

import json
import shutil
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from matrix import rows
from safetensors.torch import load_file
from several import run_several, start_several
from tiny_runs import Arguments, Orpo, digests, gone_back, kill, records, same_end, tiny_mixture

TEN = ("trainer.max_steps=10", "trainer.save_every=5", "trainer.keep_last=9", "trainer.precision=fp32")
LR = ("optimizer.lr=1e-4",)
WHOLE = ("adapter=lora", "adapter.modules_to_save=[embed_tokens,lm_head]")
LORA = ("adapter=lora", "optimizer.lr=1e-3")
CHECKPOINTING = "trainer.gradient_checkpointing=true"

TOLERANCE = 1e-6
"""Relative of a loss, absolute of a weight, of size 0.02. The same sums of some 500 terms are added in another order,
each rounded to 6e-8 of its size; ten steps of AdamW at a usual learning rate move a weight by 1e-3 at most, and by
0.1 % of that otherwise."""


def weights(folder: Path) -> dict[str, Any]:
    return {name: value for path in folder.glob("*.safetensors") for name, value in load_file(path).items()}


def assert_equal(folder: Path, reference: Path) -> None:
    """Every loss, and every weight of the model."""
    steps, expected = records(folder), records(reference)
    assert [line["step"] for line in steps] == [line["step"] for line in expected]
    for line, other in zip(steps, expected, strict=True):
        assert line["loss"] == pytest.approx(other["loss"], rel=TOLERANCE)
        assert line.get("grad_norm", 0) == pytest.approx(other.get("grad_norm", 0), rel=10 * TOLERANCE)
    one, other = weights(folder / "model"), weights(reference / "model")
    assert one.keys() == other.keys()
    assert max(float((one[name] - other[name]).abs().max()) for name in one) < TOLERANCE


def one_and_several(
    count: int, words: Sequence[str], orpo: Orpo, arguments: Arguments, tmp_path: Path, alone: Sequence[str] = ()
) -> tuple[Path, Path]:
    """Run a configuration by one process and by several, compare them, and return the folders.

    Args:
        alone: what else is typed for the one.
    """
    one, several = tmp_path / "one", tmp_path / "several"
    done = orpo.run(*arguments(one, *TEN, *words, *alone))
    assert done.code == 0, done.output
    run_several(orpo, arguments(several, *TEN, *words, f"trainer.processes={count}"), count)
    assert_equal(several, one)
    return one, several


CASES = {
    "3 fsdp, LoRA, 3 pairs, checkpointing": (3, "fsdp", (*LORA, "trainer.pairs_per_step=3", CHECKPOINTING)),
    "2 ddp, packed": (2, "ddp", LR),
    "2 fsdp, packed": (2, "fsdp", LR),
    "2 fsdp, one pair a step": (2, "fsdp", (*LR, "trainer.pairs_per_step=1")),
    "3 fsdp, eight pairs, cut small": (3, "fsdp", (*LR, "trainer.pairs_per_step=8", "trainer.max_tokens=60")),
    "3 ddp, LoRA, padded": (3, "ddp", (*LORA, "trainer.layout=padded")),
    "2 fsdp, padded, checkpointing": (2, "fsdp", (*LR, "trainer.layout=padded", CHECKPOINTING)),
    "2 fsdp, sgd": (2, "fsdp", ("optimizer=sgd", "optimizer.lr=1e-2")),
    "2 fsdp, loss=trl": (2, "fsdp", (*LR, "loss=trl")),
    "2 fsdp, loss=ms_swift": (2, "fsdp", (*LR, "loss=ms_swift")),
    "2 fsdp, loss=log_ratio": (2, "fsdp", (*LR, "loss=log_ratio")),
    "2 fsdp, loss=sft": (2, "fsdp", (*LR, "loss=sft", "lambda=0")),
    "2 ddp, loss=trl": (2, "ddp", (*LR, "loss=trl")),
    # a moment that rounds to the next of 256 values changes an update by some hundredths: at 1e-4 a weight by 3e-6, as
    # much as where one process adds or takes the last bit of each gradient, and the moments then differ by one value
    "2 ddp, adamw_8bit": (2, "ddp", ("optimizer=adamw_8bit", "optimizer.lr=1e-5")),
    "2 ddp, schedule-free": (2, "ddp", ("optimizer=schedule_free_adamw", *LR)),
    "2 ddp, stable_adamw": (2, "ddp", ("optimizer=stable_adamw", *LR)),
    "2 ddp, lion": (2, "ddp", ("optimizer=lion", *LR)),
    "2 fsdp, schedule-free": (2, "fsdp", ("optimizer=schedule_free_adamw", *LR)),
    "2 fsdp, stable_adamw": (2, "fsdp", ("optimizer=stable_adamw", "optimizer.layer_lr_decay=0.8", *LR)),
    "2 fsdp, lion": (2, "fsdp", ("optimizer=lion", *LR)),
    "2 ddp, DoRA": (2, "ddp", ("adapter=dora", *LR)),
    "2 fsdp, DoRA": (2, "fsdp", ("adapter=dora", *LR)),
    "2 ddp, embeddings and head": (2, "ddp", (*WHOLE, *LR)),
    "2 ddp, a token": (2, "ddp", ("adapter=lora", "adapter.train_tokens=[7]", *LR)),
    "2 fsdp, a token": (2, "fsdp", ("adapter=lora", "adapter.train_tokens=[7]", *LR)),
    "2 fsdp, embeddings and head": (2, "fsdp", (*WHOLE, *LR)),
    "2 fsdp, PiSSA": (2, "fsdp", ("adapter=lora", "adapter.init=pissa", *LR)),
    "2 fsdp, some weights": (2, "fsdp", ("adapter=frozen", "adapter.layers=1", *LR)),
    "2 ddp, 4 bits": (2, "ddp", ("adapter=qlora", *LR)),
}  # fmt: skip


@pytest.mark.timeout(300)
@pytest.mark.parametrize(("count", "parallel", "overrides"), rows(CASES))
def test_as_one_process(
    count: int, parallel: str, overrides: Sequence[str], orpo: Orpo, arguments: Arguments, tmp_path: Path
) -> None:
    words = *overrides, f"trainer.parallel={parallel}"
    one, several = one_and_several(count, words, orpo, arguments, tmp_path)
    for step in (5, 10):
        name = f"checkpoints/step-{step:06d}"
        assert digests(several / name).keys() == digests(one / name).keys()


BALANCED = {
    "3 fsdp, cut small, checkpointing": (3, "fsdp", (*LR, "trainer.max_tokens=60", CHECKPOINTING)),
    "2 ddp, one micro-batch each": (2, "ddp", LR),
    "3 ddp, one pair a step": (3, "ddp", (*LR, "trainer.pairs_per_step=1")),
    "2 fsdp, LoRA, padded": (2, "fsdp", ("adapter=lora", *LR, "trainer.layout=padded")),
}  # fmt: skip


@pytest.mark.timeout(300)
@pytest.mark.parametrize(("count", "parallel", "overrides"), rows(BALANCED))
def test_experts_are_balanced_over_all_processes(
    count: int, parallel: str, overrides: Sequence[str], orpo: Orpo, arguments: Arguments, tmp_path: Path
) -> None:
    """One process takes each step whole, so that it counts no choices before."""
    words = *overrides, f"trainer.parallel={parallel}", f"model={tiny_mixture(tmp_path / 'mixture')}"
    one, several = one_and_several(count, words, orpo, arguments, tmp_path, alone=["trainer.max_tokens=2048"])
    balanced = [[line["router_aux_loss"] for line in records(run)] for run in (several, one)]
    assert balanced[0] == pytest.approx(balanced[1], rel=TOLERANCE)


STOPPED = {
    "full, killed while it saves": ("killed", LR),
    "LoRA, the newest checkpoint damaged": ("damaged", LORA),
}


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize(("how", "overrides"), rows(STOPPED))
def test_a_resumed_run_ends_with_the_same_bytes(
    how: str, overrides: Sequence[str], orpo: Orpo, arguments: Arguments, tmp_path: Path
) -> None:
    """The main process is killed where the others send it their parts; or what it saved last is not what it was."""
    typed = (*TEN, *overrides, "trainer.processes=2", "trainer.parallel=fsdp")
    whole, folder = tmp_path / "whole", tmp_path / "run"
    run_several(orpo, arguments(whole, *typed))
    if how == "killed":
        saving = kill("orpo_cli.checkpoints.saving.save_optimizer_state", 2)
        running = start_several(orpo, arguments(folder, *typed), injected={0: [saving]})
        assert [process.wait().code for process in running] == [-signal.SIGKILL, 69]
    else:
        shutil.copytree(whole, folder)
        shutil.rmtree(folder / "model")
        saved = folder / "checkpoints" / "step-000010" / "optimizer.safetensors"
        saved.write_bytes(saved.read_bytes()[:-1] + b"\x77")
    said = run_several(orpo, ["train", f"resume={folder}"])
    assert "resuming after step 5" in said
    assert "equal to rounding only" not in said
    assert same_end(folder, whole)


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("optimizer", ["adamw", "schedule_free_adamw"])
def test_one_then_three_then_two(optimizer: str, orpo: Orpo, arguments: Arguments, tmp_path: Path) -> None:
    reference = tmp_path / "one"
    assert orpo.run(*arguments(reference, *TEN, "trainer.save_every=3", *LR, f"optimizer={optimizer}")).code == 0
    three = gone_back(reference, tmp_path / "three", 3)
    said = run_several(orpo, ["train", f"resume={three}", "trainer.processes=3", "trainer.parallel=fsdp"], 3)
    assert "equal to rounding only: processes 1 -> 3" in said
    two = gone_back(three, tmp_path / "two", 6)
    run_several(orpo, ["train", f"resume={two}", "trainer.processes=2"])
    assert_equal(two, reference)
    changed = [entry["changed"] for entry in json.loads((two / "run.json").read_text(encoding="utf-8"))["resumes"]]
    assert changed == [{"trainer.processes": 3, "trainer.parallel": "fsdp"}, {"trainer.processes": 2}]
