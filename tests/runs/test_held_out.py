"""What is held out is decided by data.eval_seed: runs of other seeds are scored on the same pairs."""

import json
from pathlib import Path

import pytest
import yaml
from tiny_runs import Arguments, Orpo, at, same_end


def held_out(folder: Path) -> list[int]:
    """Return the lines of the data that the run is evaluated on."""
    lines = map(json.loads, (folder / "ledger.jsonl").read_text(encoding="utf-8").splitlines())
    return [line["line"] for line in lines if line["split"] == "eval"]


def first_loss(folder: Path) -> float:
    records = map(json.loads, (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines())
    return next(float(record["loss"]) for record in records if record["kind"] == "step")


@pytest.mark.slow
@pytest.mark.usefixtures("warm_jobs")
def test_seeds_of_a_sweep_are_scored_on_the_same_pairs(orpo: Orpo, arguments: Arguments, tmp_path: Path) -> None:
    """Their order differs, so the first step has other pairs; another eval_seed holds out others."""
    typed = arguments(tmp_path / "sweep", "trainer.max_steps=1", "trainer.sample_tokens=0")
    assert orpo.run(*typed, "-m", "seed=1,2").code == 0
    assert orpo.run(*[*typed, f"output_dir={tmp_path / 'other'}"], "seed=1", "data.eval_seed=1").code == 0
    folders = tmp_path / "sweep/0", tmp_path / "sweep/1", tmp_path / "other"
    first, second, other = map(held_out, folders)
    assert len(first) == 6  # a quarter of 24
    assert first == second
    assert first != other
    assert first_loss(folders[0]) != first_loss(folders[1])


@pytest.mark.parametrize("how", ["orpo resume", pytest.param("resume=auto", marks=pytest.mark.slow)])
def test_a_run_of_an_earlier_version_keeps_its_split(
    how: str, orpo: Orpo, arguments: Arguments, tmp_path: Path
) -> None:
    """There the seed decided: to the last byte it ends as a run whose eval_seed is its seed."""
    whole, folder = tmp_path / "whole", tmp_path / "run"
    assert orpo.run(*arguments(whole, "seed=7", "data.eval_seed=7")).code == 0
    begun = arguments(folder, "seed=7", "data.eval_seed=7")
    assert orpo.run(*begun, injections=[at("orpo_cli.training.loop._update", 3, "SIGTERM")]).code == 143
    saved = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
    del saved["data"]["eval_seed"], saved["model"]["dropout"]
    (folder / "config.yaml").write_text(yaml.safe_dump(saved), encoding="utf-8")
    done = orpo.run(*(["resume", str(folder)] if how == "orpo resume" else [*begun[:-1], "resume=auto"]))
    assert done.code == 0, done.output
    assert same_end(folder, whole)
    assert held_out(folder) == held_out(whole)
    verified = orpo.run("verify", str(folder), "--replay", "2")
    assert verified.code == 0, verified.output
    assert "identical" in verified.output


def test_another_split_is_refused_on_resume(reference: Path, orpo: Orpo) -> None:
    done = orpo.run("resume", str(reference), "data.eval_seed=5")
    assert done.code == 2
    assert "data.eval_seed=5 (was 0): cannot change on resume" in done.output
