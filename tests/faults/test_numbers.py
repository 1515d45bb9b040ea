"""Numbers that are not finite and losses that jump: said before anything is lost, with the rows they come from.

Rows 21, 22 and 24 of the faults. tests/training/test_divergence.py looks at the weights around such a step.
"""

import math
import random
import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_runs import Arguments, Orpo, at, gone_back, records, same_end, sign

from orpo_cli.checkpoints.lookup import latest_checkpoint, read_state
from orpo_cli.training.spikes import SpikeWatch

slow = pytest.mark.slow
MEASURE = "orpo_cli.training.loop.micro_batch_loss"
ALONE = ("trainer.max_tokens=1", "trainer.sample_tokens=0", "trainer.eval_every=null")
"""Each pair is a micro-batch of its own: four calls of `micro_batch_loss` a step."""


def everything_is_finite(folder: Path) -> bool:
    """Each tensor and each recorded number on the disk."""
    tensors = [tensor for path in folder.rglob("*.safetensors") for tensor in load_file(path).values()]
    numbers = [value for record in records(folder) for value in record.values() if isinstance(value, float)]
    return all(bool(torch.isfinite(tensor).all()) for tensor in tensors) and all(map(math.isfinite, numbers))


# Not finite


@dataclass(frozen=True)
class Broken:
    """A token of one pair: its log-probability is NaN, or only its gradient."""

    effect: str
    step: int
    micro_batch: int
    overrides: tuple[str, ...] = ()


@pytest.mark.parametrize(
    "broken",
    [
        pytest.param(Broken("nan", 3, 1), id="21: NaN in the first micro-batch", marks=slow),
        pytest.param(Broken("nan", 3, 2), id="21: NaN in the middle"),
        pytest.param(Broken("nan", 3, 4), id="21: NaN in the last", marks=slow),
        pytest.param(Broken("nan", 1, 1), id="21: NaN before there is a checkpoint", marks=slow),
        pytest.param(
            Broken("nan", 3, 2, ("trainer.layout=padded", "loss=trl")),
            id="21: NaN, padded, prompts trained", marks=slow,
        ),
        pytest.param(Broken("bad gradient", 3, 2), id="22: infinite gradient, finite loss", marks=slow),
        pytest.param(
            Broken("bad gradient", 3, 2, ("adapter=lora", "adapter.dropout=0.1")),
            id="22: infinite gradient, LoRA", marks=slow,
        ),
    ],
)  # fmt: skip
def test_a_step_that_is_not_finite_ends_the_run(
    broken: Broken, orpo: Orpo, arguments: Arguments, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    call = 4 * (broken.step - 1) + broken.micro_batch
    typed = arguments(folder, *ALONE, *broken.overrides)
    done = orpo.run(*typed, injections=[at(MEASURE, call, broken.effect)])
    assert done.code == 76, done.output
    (said,) = (line for line in done.output.splitlines() if line.startswith("orpo: error: "))
    loss = "loss nan" if broken.effect == "nan" else "gradient norm nan"
    assert said.startswith(f"orpo: error: step {broken.step} of 6 is not finite: loss ")
    assert loss in said
    assert "lr " in said
    assert "prefs.jsonl:" in said
    if broken.effect == "nan":
        assert f" in micro-batch {broken.micro_batch} of 4, token 2 of its chosen response (id " in said
    else:
        assert said.count("prefs.jsonl:") == 4
    saved = broken.step - 1
    last = f"last checkpoint: {folder / 'checkpoints' / f'step-{saved:06d}'}" if saved else "there is no checkpoint"
    assert said.endswith(last)
    assert everything_is_finite(folder)
    assert not (folder / "model").exists()
    assert "Not finished" in (folder / "report.html").read_text(encoding="utf-8") or broken.step == 1
    assert [record["step"] for record in records(folder) if record["kind"] == "step"] == list(range(1, broken.step))


@slow
def test_an_evaluation_that_is_not_finite_ends_the_run(orpo: Orpo, arguments: Arguments, tmp_path: Path) -> None:
    """21: after step 3, of which nothing is saved; the held-out row and its token are named."""
    folder, alone = tmp_path / "run", "trainer.eval_max_tokens=1"
    broken = at("orpo_cli.training.evaluation.micro_batch_loss", 6 + 4, "nan")  # the baseline has six
    done = orpo.run(*arguments(folder, alone), injections=[broken])
    assert done.code == 76
    said = done.output.splitlines()[-1]
    assert "the evaluation after step 3 is not finite: loss nan; log-probabilities are not finite for " in said
    assert said.count("prefs.jsonl:") == 1
    assert ", token 2 of its chosen response (id " in said
    assert said.endswith(f"last checkpoint: {folder / 'checkpoints' / 'step-000002'}")
    assert everything_is_finite(folder)


# trainer.on_nonfinite=skip

SKIPPING = (*ALONE, "trainer.on_nonfinite=skip", "trainer.max_skipped=1", "trainer.max_steps=4", "trainer.keep_last=9")
"""One epoch: a pair that breaks a step does not come again."""


@pytest.mark.slow
def test_skipped_steps_are_shown_counted_and_bounded_also_over_a_resume(
    orpo: Orpo, arguments: Arguments, tmp_path: Path
) -> None:
    """on_nonfinite=skip, max_skipped: step 2 is skipped; gone back to it, a run ends the same, or breaks again."""
    whole = tmp_path / "whole"
    done = orpo.run(*arguments(whole, *SKIPPING), injections=[at(MEASURE, 7, "nan")])
    assert done.code == 0, done.output
    assert "! skipped, the 1st such step: step 2 of 4 is not finite: loss nan" in done.output
    assert [(record["kind"], record["step"]) for record in records(whole)][1:-1] == [
        ("step", 1), ("skipped", 2), ("step", 3), ("step", 4),
    ]  # fmt: skip
    assert read_state(whole / "checkpoints" / "step-000004").skipped == 1
    assert everything_is_finite(whole)
    same, again = tmp_path / "same", tmp_path / "again"
    for folder in (same, again):
        shutil.copytree(whole, folder)
        shutil.rmtree(folder / "model")
        shutil.rmtree(folder / "checkpoints" / "step-000004")
    assert orpo.run("resume", str(same)).code == 0
    assert same_end(same, whole)
    done = orpo.run("resume", str(again), injections=[at(MEASURE, 1, "nan")])
    assert done.code == 76
    assert "step 3 of 4 is not finite" in done.output
    assert "; 2 steps were not finite, trainer.max_skipped=1; last checkpoint: " in done.output
    assert everything_is_finite(again)


# Spikes


def noisy(seed: int) -> list[float]:
    """200 losses as of steps of few pairs: falling, and each with noise of its own size."""
    draw = random.Random(seed)
    return [2 + 3 * math.exp(-step / 60) + draw.gauss(0, 0.4) + draw.expovariate(4) for step in range(200)]


def test_no_false_alarm_on_healthy_losses() -> None:
    """24: 20 runs of 200 noisy losses; also constant ones, and ones that repeat a few values."""
    for losses in [*map(noisy, range(20)), [0.7] * 200, [0.7, 0.71, 0.69] * 66]:
        watch = SpikeWatch()
        assert [watch.deviations(loss) for loss in losses] == [None] * len(losses)


def test_a_spike_is_told_with_its_size_and_the_next_one_too() -> None:
    """24: at once and again; and losses like those before are none."""
    watch, losses = SpikeWatch(), noisy(0)
    for loss in losses[:100]:
        watch.deviations(loss)
    spread = torch.tensor(losses[50:100]).std(correction=0).item()
    mean = torch.tensor(losses[50:100]).mean().item()
    for _ in range(2):
        assert watch.deviations(mean + 20 * spread) == pytest.approx(20, rel=1e-4)
    assert watch.deviations(losses[100]) is None


@slow
@pytest.mark.parametrize("halt", [False, True], ids=["24: warn", "24: halt"])
def test_a_learning_rate_a_thousand_times_too_high(
    halt: bool, orpo: Orpo, arguments: Arguments, tmp_path: Path
) -> None:
    """24: at step 25 of 32. It is said, nothing is skipped, and with on_spike=halt nothing of it is saved."""
    folder = tmp_path / "run"
    overrides = ("trainer.max_steps=32", "optimizer.lr=5e-3", "trainer.save_every=10", *ALONE[1:])
    typed = arguments(folder, *overrides, f"trainer.on_spike={'halt' if halt else 'warn'}")
    done = orpo.run(*typed, injections=[at("orpo_cli.training.loop.lr_factor", 25, "times 1000")])
    spikes = [line for line in done.output.splitlines() if "standard deviations above the steps before" in line]
    assert spikes, done.output
    steps = [record["step"] for record in records(folder) if record["kind"] == "step"]
    if not halt:
        assert done.code == 0
        assert spikes[0].startswith("! loss ")
        assert " at step 26 is " in spikes[0]
        assert steps == list(range(1, 33))
        return
    assert done.code == 76
    assert f"last checkpoint: {folder / 'checkpoints' / 'step-000020'}" in done.output
    assert latest_checkpoint(folder / "checkpoints")[0].name == "step-000020"
    assert steps == list(range(1, 27))


OVERFLOWS = ("optimizer.lr=3e37", "optimizer.weight_decay=1000", "scheduler=constant", "data.eval_fraction=0")


@pytest.mark.parametrize("most", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_21_an_update_that_overflows_is_neither_saved_nor_published(
    most: int, orpo: Orpo, arguments: Arguments, tmp_path: Path
) -> None:
    """Loss and gradient of the step are finite; the weights after it are not."""
    folder = tmp_path / "run"
    done = orpo.run(*arguments(folder, *OVERFLOWS, f"trainer.max_steps={most}", "trainer.save_every=1"))
    assert done.code == 76, done.output
    assert "is not finite after step 1 of" in done.output
    assert "nothing was saved of it; there is no checkpoint" in done.output
    assert not (folder / "model").exists()
    assert not list((folder / "checkpoints").glob("*"))


def test_21_the_last_good_checkpoint_outlives_weights_that_are_not_finite(
    reference: Path, orpo: Orpo, tmp_path: Path
) -> None:
    folder = gone_back(reference, tmp_path / "run", 4)
    last = folder / "checkpoints" / "step-000004"
    state = load_file(last / "optimizer.safetensors")
    largest = torch.tensor(3e38)
    spoiled = {name: largest.expand_as(value).clone() if name.endswith("|exp_avg") else value
               for name, value in state.items()}  # fmt: skip
    save_file(spoiled, last / "optimizer.safetensors")
    sign(last)
    done = orpo.run("resume", str(folder), "trainer.save_every=1", "trainer.keep_last=1")
    assert done.code == 76, done.output
    assert f"nothing was saved of it; last checkpoint: {last}" in done.output
    assert [path.name for path in (folder / "checkpoints").glob("step-*")] == ["step-000004"]
