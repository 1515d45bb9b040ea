"""The jobs of a sweep that begin with the same model on the same pairs evaluate it once before training."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from matrix import rows
from tiny_runs import DIFFERS, write_pairs

import orpo_cli
from orpo_cli.runs.folder import SWEEP, RunFolder
from orpo_cli.training.events import RunStarted

TAKEN = "the evaluation before the first step is that of job 0: the model is the same"


class Job:
    """What a run of one step of the tiny model says and records."""

    def __init__(self, preferences: Path, folder: Path, *overrides: str) -> None:
        self.notes: list[str] = []
        given = (f"data={preferences}", "data.eval_fraction=0.5", "trainer.max_steps=1", "trainer.sample_tokens=0")
        typed = ("model=tiny", "adapter=lora", f"output_dir={folder}", *given, *overrides)
        orpo_cli.train(orpo_cli.configure(*typed), consumers=[self])
        self.records = [
            {key: value for key, value in record.items() if key not in DIFFERS} for record in RunFolder(folder).records
        ]

    def show(self, event: Any) -> None:
        if isinstance(event, RunStarted):
            self.notes += event.notes


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Job]:
    preferences = write_pairs(tmp_path_factory.mktemp("data") / "prefs.jsonl")
    return lambda folder, *overrides: Job(preferences, folder, *overrides)


@pytest.fixture(scope="module")
def sweep(job: Callable[..., Job], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a sweep with one finished job."""
    folder = tmp_path_factory.mktemp("sweep")
    (folder / SWEEP).write_text("{}", encoding="utf-8")
    job(folder / "0")
    return folder


@pytest.mark.slow
def test_taken_over_to_the_last_digit(job: Callable[..., Job], sweep: Path, tmp_path: Path) -> None:
    """Another lambda, seed and rank: the loss, of which lambda is a part, is that of a run that computed it itself."""
    other = ("lambda=0.7", "seed=3", "adapter.rank=2", "loss=ms_swift", "trainer.eval_max_tokens=300")
    alone, in_sweep = job(tmp_path / "alone", *other), job(sweep / "1", *other)
    assert not any(TAKEN in note for note in in_sweep.notes)  # cut into other micro-batches
    taken, again = job(sweep / "2", *other[:-1]), job(tmp_path / "again", *other[:-1])
    assert TAKEN in taken.notes
    assert taken.records == again.records
    assert in_sweep.records == alone.records


OTHERS = {other: other for other in ("loss=trl", "adapter=none", "data.eval_seed=1", "data.max_length=300")}


@pytest.mark.parametrize("other", rows(OTHERS, "loss=trl"))
def test_computed_where_it_may_differ(other: str, job: Callable[..., Job], sweep: Path) -> None:
    assert TAKEN not in job(sweep / other.replace("=", "-"), other).notes
