"""trainer.early_stop and trainer.result: where evaluations decide when a run ends, and which weights its model has."""

import json
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from matrix import rows
from safetensors.torch import load_file
from tiny_runs import Arguments, Orpo, at, digests, kill, records, same_end

from orpo_cli.checkpoints.lookup import TrainingState, best_checkpoint
from orpo_cli.cli.main import main
from orpo_cli.config.schema import BETTER
from orpo_cli.training.early_stop import without_improvement

slow = pytest.mark.slow
STANDING = ("trainer.eval_every=1", "optimizer.lr=1e-30", "optimizer.weight_decay=0")
"""Steps that move no weight: every evaluation is equal to the first, and none is better."""


def end_of(folder: Path) -> dict[str, Any]:
    return dict(json.loads((folder / "run.json").read_text(encoding="utf-8"))["end"])


def measured(folder: Path) -> dict[int, dict[str, Any]]:
    return {record["step"]: record for record in records(folder) if record["kind"] == "eval"}


def verified(orpo: Orpo, folder: Path) -> None:
    done = orpo.run("verify", str(folder), "--replay", "2")
    assert done.code == 0, done.output


# When it ends


@given(st.lists(st.integers(0, 4), min_size=1, max_size=9), st.sampled_from(sorted(BETTER)))
def test_evaluations_without_improvement(values: list[int], metric: str) -> None:
    """Counted one by one: a better value than all before it, and only that, begins the count anew."""
    count, best = 0, values[0]
    for value in values[1:]:
        is_better = value < best if BETTER[metric] is min else value > best
        count, best = (0, value) if is_better else (count + 1, best)
    assert without_improvement([{metric: float(value)} for value in values], metric) == count


@pytest.mark.parametrize("metric", ["null", "accuracy"])
def test_a_run_ends_early(metric: str, orpo: Orpo, arguments: Arguments, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    stop = "trainer.early_stop=2", f"trainer.keep_best={metric}", "trainer.log_every=3"
    done = orpo.run(*arguments(folder, *STANDING, *stop))
    assert done.code == 0, done.output
    name = "nll" if metric == "null" else metric
    said = f"trainer.early_stop: ends after step 2 of 6, since {name} has not become better in 2 evaluations"
    assert said in " ".join(done.output.split())
    assert sorted(measured(folder)) == [0, 1, 2]
    assert end_of(folder) == {"step": 2, "total_steps": 6, "early_stop": 2, "result": "last", "model_step": 2}
    verified(orpo, folder)
    before = digests(folder)
    again = orpo.run("resume", str(folder))
    assert again.code == 0, again.output
    assert "finished already" in again.output
    after = digests(folder)
    assert {name for name in after if after[name] != before.get(name)} <= {"run.lock", "train.log"}


def test_better_evaluations_do_not_end_it(orpo: Orpo, arguments: Arguments, reference: Path, tmp_path: Path) -> None:
    """The nll of the reference run becomes better at each evaluation."""
    values = [record["nll"] for record in measured(reference).values()]
    assert values == sorted(values, reverse=True)
    assert len(set(values)) == 3
    done = orpo.run(*arguments(tmp_path / "run", "trainer.early_stop=1"))
    assert done.code == 0, done.output
    assert same_end(tmp_path / "run", reference)
    assert end_of(tmp_path / "run")["early_stop"] is None


KILLS = {
    "in the evaluation that ends it": at("orpo_cli.training.evaluation.micro_batch_loss", 3, "SIGTERM"),
    "before its last checkpoint": kill("orpo_cli.training.run.begin_checkpoint", 1),
    "before its model": kill("orpo_cli.runs.execution.stage_model", 1),
    "before run.json says that it is finished": kill("orpo_cli.runs.folder.RunFolder.note_end", 1),
}


@pytest.mark.parametrize("name", rows({name: name for name in KILLS}, "before its model"))
def test_it_ends_there_however_it_was_interrupted(name: str, orpo: Orpo, arguments: Arguments, tmp_path: Path) -> None:
    whole, folder = tmp_path / "whole", tmp_path / "run"
    stop = (*STANDING, "trainer.early_stop=2", "trainer.save_every=1")
    assert orpo.run(*arguments(whole, *stop)).code == 0
    assert orpo.run(*arguments(folder, *stop), injections=[KILLS[name]]).code in (-9, 143)
    done = orpo.run(*arguments(folder, *stop, "resume=auto"))
    assert done.code == 0, done.output
    assert same_end(folder, whole)
    assert end_of(folder) == end_of(whole)
    verified(orpo, folder)


@pytest.mark.slow
def test_it_can_be_resumed_to_its_last_step(orpo: Orpo, arguments: Arguments, tmp_path: Path) -> None:
    whole, folder = tmp_path / "whole", tmp_path / "run"
    assert orpo.run(*arguments(whole, *STANDING)).code == 0
    assert orpo.run(*arguments(folder, *STANDING, "trainer.early_stop=2")).code == 0
    done = orpo.run("resume", str(folder), "trainer.early_stop=null")
    assert done.code == 0, done.output
    assert same_end(folder, whole)
    assert end_of(folder) == {"step": 6, "total_steps": 6, "early_stop": None, "result": "last", "model_step": 6}
    verified(orpo, folder)


@slow
def test_several_processes_end_at_the_same_step(orpo: Orpo, arguments: Arguments, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    done = orpo.run(*arguments(folder, *STANDING, "trainer.early_stop=3", "trainer.processes=2"))
    assert done.code == 0, done.output
    assert end_of(folder)["step"] == 3
    verified(orpo, folder)


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (
            ("trainer.result=best",),
            "trainer.result=best: needs a metric; set trainer.keep_best, as in trainer.keep_best=nll",
        ),
        (("trainer.result=first",), "trainer.result=first: "),
        (("trainer.early_stop=0",), "trainer.early_stop=0: expected 1 or more, or null"),
        (
            ("trainer.early_stop=2", "trainer.eval_every=null"),
            "trainer.early_stop=2: with trainer.eval_every=null only the last step is evaluated on all",
        ),
        (
            ("trainer.early_stop=2", "data.eval_fraction=0"),
            "trainer.early_stop=2: nothing is held out to measure it on",
        ),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(
    overrides: tuple[str, ...], says: str, arguments: Arguments, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments(tmp_path / "run", *overrides)) == 2
    last = capfd.readouterr().err.splitlines()[-1]
    assert last.startswith(f"orpo: error: {says}")
    assert not (tmp_path / "run/config.yaml").exists()


# What model/ is


BEST = ("data.chat_template=false", "trainer.eval_every=1", "trainer.save_every=1", "trainer.keep_best=log_odds_ratio")


@pytest.mark.parametrize(
    "adapter",
    [
        ("adapter=none",),
        pytest.param(("adapter=lora",), marks=slow),
        pytest.param(("adapter=lora", "adapter.merge=true"), marks=slow),
    ],
)
def test_the_model_is_the_best(adapter: tuple[str, ...], orpo: Orpo, arguments: Arguments, tmp_path: Path) -> None:
    """The checkpoint with the highest log-odds ratio, which is not the last; asked for the last, it is that."""
    whole, folder = tmp_path / "whole", tmp_path / "run"
    assert orpo.run(*arguments(whole, *BEST, *adapter, "trainer.keep_last=6")).code == 0
    values = {step: record["log_odds_ratio"] for step, record in measured(whole).items() if step > 0}
    best = max(values, key=lambda step: values[step])
    assert best < 6
    done = orpo.run(*arguments(folder, *BEST, *adapter, "trainer.result=best", "trainer.keep_last=1"))
    assert done.code == 0, done.output
    assert end_of(folder) == {"step": 6, "total_steps": 6, "early_stop": None, "result": "best", "model_step": best}
    assert f"(the best, after step {best})" in " ".join(done.output.split())
    if "adapter.merge=true" not in adapter:
        (saved,) = (folder / "model").glob("*model.safetensors")
        expected = load_file(whole / f"checkpoints/step-{best:06d}" / saved.name)
        torch.testing.assert_close(load_file(saved), expected, rtol=0, atol=0)
    assert digests(folder / "model") != digests(whole / "model")
    verified(orpo, folder)
    again = orpo.run("resume", str(folder))
    assert "finished already" in again.output
    assert orpo.run("resume", str(folder), "trainer.result=last").code == 0
    assert same_end(folder, whole)
    assert end_of(folder)["model_step"] == 6
    verified(orpo, folder)


@slow
def test_the_best_of_a_run_that_is_resumed_for_longer(orpo: Orpo, arguments: Arguments, tmp_path: Path) -> None:
    """Killed while the second model is published, it is resumed; the first end's model is the run's until then."""
    folder = tmp_path / "run"
    assert orpo.run(*arguments(folder, *BEST, "trainer.result=best", "trainer.max_steps=3")).code == 0
    first = digests(folder / "model")
    died = orpo.run(
        "resume", str(folder), "trainer.max_steps=6",
        injections=[kill("orpo_cli.runs.folder.RunFolder.note_model", 1, after=True)],
    )  # fmt: skip
    assert died.code == -9
    assert digests(folder / "model") == first
    done = orpo.run("resume", str(folder))
    assert done.code == 0, done.output
    values = {step: record["log_odds_ratio"] for step, record in measured(folder).items() if step > 0}
    assert end_of(folder)["model_step"] == max(values, key=lambda step: values[step])
    verified(orpo, folder)


VALUES: list[tuple[str, list[tuple[float, float]], int]] = [
    ("accuracy", [(0.5, 3.0), (0.7, 2.0), (0.7, 1.9), (0.6, 1.0)], 3),
    ("accuracy", [(0.7, 1.9), (0.7, 2.0)], 1),
    ("accuracy", [(0.7, 1.9), (0.7, 1.9)], 1),
    ("or_loss", [(0.7, 1.9), (0.4, 2.0), (0.4, 1.8)], 3),
    ("nll", [(1.9, 1.9), (1.8, 1.8), (1.8, 1.8)], 2),
]
"""Metric; its value and the nll after each step; the step that is the best."""


@pytest.mark.parametrize(("metric", "values", "best"), VALUES)
def test_of_equal_values_the_better_nll_wins(
    metric: str, values: list[tuple[float, float]], best: int, tmp_path: Path
) -> None:
    for step, (value, nll) in enumerate(values, 1):
        directory = tmp_path / f"step-{step:06d}"
        directory.mkdir()
        state = TrainingState(step, 9, 1, {}, {}, {}, evaluation={"nll": nll, metric: value})
        (directory / "state.json").write_text(json.dumps(asdict(state)), encoding="utf-8")
    assert best_checkpoint(tmp_path, metric) == tmp_path / f"step-{best:06d}"
    shutil.rmtree(tmp_path)
    assert best_checkpoint(tmp_path, metric) is None
