"""What a search asks for next, what it knows of its trials, and when it ends one."""

import json
from dataclasses import replace
from math import log10
from pathlib import Path

import numpy as np
import pytest
from made_runs import made_trial

import orpo_cli
from orpo_cli.config import limits
from orpo_cli.config.schema import RunConfig
from orpo_cli.reporting.metrics_file import EVALUATED
from orpo_cli.runs import search
from orpo_cli.runs.search import Ending, Interval, Listed, Objectives, Point, Space, Told, corners, holds, propose
from orpo_cli.runs.trials import Watch, told

SPACE: Space = {
    "lambda": Interval(0.05, 1.0, is_whole=False, is_log=False),
    "optimizer.lr": Interval(1e-6, 1e-4, is_whole=False, is_log=True),
    "adapter.rank": Interval(8, 64, is_whole=True, is_log=False),
    "optimizer": Listed(("adamw", "muon"), is_ordered=False),
    "trainer.pairs_per_step": Listed(("16", "24", "32"), is_ordered=True),
}


def asked(count: int, space: Space = SPACE, seed: int = 0, known: list[Told] | None = None) -> list[Told]:
    """The trials of a search whose best settings are a small lambda and a learning rate of 1e-5."""
    trials = list(known or [])
    while len(trials) < count and (point := propose(space, trials, seed)) is not None:
        trials.append(Told(point, Ending.SCORED, objectives(point)))
    return trials


def objectives(point: Point) -> Objectives:
    lambda_, distance = float(point.get("lambda", 0)), (log10(float(point.get("optimizer.lr", 1e-5))) + 5) ** 2
    return Objectives(0.9 - distance / 4 - lambda_ / 10, 1 + lambda_**2 + distance)


def test_what_is_asked_for_is_in_the_space_and_can_be_typed() -> None:
    trials = asked(12)
    assert all(holds(SPACE, trial.point) for trial in trials)
    assert {len(trial.point["lambda"]) <= len("0.05123") for trial in trials} == {True}
    assert len({trial.point["trainer.pairs_per_step"] for trial in trials}) == 3


def test_the_same_results_are_answered_by_the_same_trials_whoever_asks() -> None:
    """A search that goes on from what it knows asks as one that was never ended; another seed asks for others."""
    trials = asked(14)
    assert asked(14, known=trials[:5]) == trials
    assert asked(14, known=trials[:12]) == trials
    assert asked(2, seed=1) != trials[:2]


def test_it_learns() -> None:
    """The last ten of thirty trials are nearer to the best settings than ten at random."""
    space = {key: SPACE[key] for key in ("lambda", "optimizer.lr")}
    nll = [trial.objectives.nll for trial in asked(30, space) if trial.objectives is not None]
    assert np.median(nll[20:]) < np.median(nll[:10]) - 0.1


@pytest.mark.parametrize("ending", [Ending.STOPPED, Ending.UNTRAINABLE])
def test_settings_that_cannot_be_trained_are_left_alone(ending: Ending) -> None:
    """Above 0.3 every trial fails; the first ten are drawn at random, most of them there."""
    space, trials = {"lambda": SPACE["lambda"]}, list[Told]()
    while len(trials) < 30:
        point = propose(space, trials, 0)
        assert point is not None
        fails = float(point["lambda"]) > 0.3
        trials.append(Told(point, ending if fails else Ending.SCORED, None if fails else objectives(point)))
    failed = [trial.ending is ending for trial in trials]
    assert sum(failed[:10]) >= 5
    assert sum(failed[15:]) <= 3


def test_nothing_is_tried_twice_and_the_search_ends_where_nothing_is_left() -> None:
    space: Space = {
        "a": Listed(("1", "2", "3"), True),
        "b": Listed(("x", "y"), False),
        "c": Interval(7, 8, True, False),
    }
    points = [tuple(trial.point.values()) for trial in asked(100, space)]
    assert len(points) == len(set(points)) == 12


def test_an_interval_of_one_number() -> None:
    assert [trial.point for trial in asked(3, {"lambda": Interval(0.1, 0.1, False, False)})] == [{"lambda": "0.1"}]


def test_the_corners_are_the_ends_of_the_intervals() -> None:
    lists = {"optimizer": "adamw", "trainer.pairs_per_step": "16"}
    assert corners(SPACE) == (
        {"lambda": "0.05", "optimizer.lr": "1e-06", "adapter.rank": "8"} | lists,
        {"lambda": "1.0", "optimizer.lr": "0.0001", "adapter.rank": "64"} | lists,
    )


@pytest.mark.parametrize("word", ["0.04", "1.1", "x", "nan", ""])
def test_what_is_not_in_the_space(word: str) -> None:
    point = asked(1)[0].point
    assert not holds(SPACE, {**point, "lambda": word})
    assert not holds(SPACE, {**point, "optimizer": word})


def test_without_optuna_one_line_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "find_spec", lambda _: None)
    with pytest.raises(orpo_cli.errors.ConfigError, match=r"optuna is not installed; pip install 'orpo-cli\[optuna\]'"):
        search.check_installed()


POINT = {"lambda": "0.1"}
RECORDS = {
    "scored": (
        {"finished": True, "end": {"model_step": 20}}, 0, Told(POINT, Ending.SCORED, Objectives(0.75, 1.25)),
    ),
    "the model is an earlier one": (
        {"finished": True, "end": {"model_step": 10}}, 0, Told(POINT, Ending.SCORED, Objectives(0.5, 1.5)),
    ),
    "finished since": (
        {"finished": True, "end": {"model_step": 20}}, 76, Told(POINT, Ending.SCORED, Objectives(0.75, 1.25)),
    ),
    "nothing held out": ({"finished": True, "end": {"model_step": 30}}, 0, Told(POINT, Ending.UNKNOWN, None)),
    "stopped": ({"stopped": "stopped at step 20: ..."}, None, Told(POINT, Ending.STOPPED, None)),
    "diverged": ({}, 76, Told(POINT, Ending.UNTRAINABLE, None)),
    "out of memory": ({}, 71, Told(POINT, Ending.UNTRAINABLE, None)),
    "refused": ({}, 2, Told(POINT, Ending.UNTRAINABLE, None)),
    "disk full": ({}, 74, Told(POINT, Ending.UNKNOWN, None)),
    "interrupted, or not ended": ({}, None, Told(POINT, Ending.RUNNING, None)),
}  # fmt: skip


@pytest.mark.parametrize(("record", "code", "expected"), RECORDS.values(), ids=RECORDS)
def test_what_the_folder_of_a_trial_tells(
    record: dict[str, object], code: int | None, expected: Told, tmp_path: Path
) -> None:
    (tmp_path / "run.json").write_text(json.dumps(record))
    evaluated = {10: (0.5, 1.5), 20: (0.75, 1.25)}
    lines = [
        {"kind": "eval", "step": step, **dict.fromkeys(EVALUATED, 1.0), "accuracy": accuracy, "nll": nll}
        for step, (accuracy, nll) in evaluated.items()
    ]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert told(POINT, tmp_path, code) == expected


@pytest.fixture(scope="module")
def config() -> RunConfig:
    return orpo_cli.configure("model=tiny", "data=made.jsonl", "data.eval_fraction=0.25")


def test_a_dominated_trial_is_told_to_end_with_its_reason(tmp_path: Path, config: RunConfig) -> None:
    """At 10 of 60 steps nothing counts; after 20 and 30 the trial is behind twice. A weaker job is no reason."""
    good = made_trial(tmp_path / "3", config, 40, 1.0, range(10, 60, 10), finished=True)
    weak = made_trial(tmp_path / "4", config, 10, 2.1, range(10, 60, 10), finished=True)
    watch = Watch(tmp_path / "5", [weak, good])
    assert not watch.is_dominated()
    for last in (10, 20):
        made_trial(tmp_path / "5", config, 16, 2.0, range(10, last + 10, 10))
        assert not watch.is_dominated()
    made_trial(tmp_path / "5", config, 16, 2.0, range(10, 40, 10))
    assert watch.is_dominated()
    assert watch.reason == "stopped at step 30: job 3 is better in accuracy and nll"


def test_evaluations_that_came_at_once_are_all_looked_at(tmp_path: Path, config: RunConfig) -> None:
    good = made_trial(tmp_path / "0", config, 40, 1.0, range(10, 60, 10), finished=True)
    watch = Watch(made_trial(tmp_path / "1", config, 16, 2.0, range(10, 60, 10)), [good])
    assert watch.is_dominated()
    assert watch.reason == "stopped at step 30: job 0 is better in accuracy and nll"


def test_a_run_of_another_length_is_no_rival(tmp_path: Path, config: RunConfig) -> None:
    other = replace(config, trainer=replace(config.trainer, pairs_per_step=7))
    longer = made_trial(tmp_path / "0", config, 40, 1.0, range(10, 60, 10), total=120, finished=True)
    larger = made_trial(tmp_path / "1", other, 40, 1.0, range(10, 60, 10), finished=True)
    trial = made_trial(tmp_path / "2", config, 16, 2.0, range(10, 60, 10))
    assert not Watch(trial, [longer, larger]).is_dominated()


def test_a_damaged_neighbour_is_no_rival(tmp_path: Path, config: RunConfig) -> None:
    good = made_trial(tmp_path / "0", config, 40, 1.0, range(10, 60, 10), finished=True)
    for damaged in ("config.yaml", "evaluations/part-000020.parquet"):
        (good / damaged).write_text("{", encoding="utf-8")
        assert not Watch(made_trial(tmp_path / "2", config, 16, 2.0, range(10, 40, 10)), [good]).is_dominated()
