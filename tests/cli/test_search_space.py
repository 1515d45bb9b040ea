"""What a search is typed as: Hydra's grammar becomes a space, and what cannot be searched is refused in one line."""

import json
from pathlib import Path
from typing import Any

import pytest

from orpo_cli.cli.arguments import parse
from orpo_cli.cli.compose import varied
from orpo_cli.cli.main import main
from orpo_cli.cli.search import Trial, read_trials, search_of
from orpo_cli.cli.search_space import space_of
from orpo_cli.config import limits
from orpo_cli.errors import ConfigError
from orpo_cli.runs.folder import SWEEP
from orpo_cli.runs.search import Interval, Listed, Space


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def space(*argv: str) -> Space:
    return space_of(varied(parse(["-m", *argv])))


GRAMMAR: dict[str, tuple[str, Listed | Interval]] = {
    "interval": ("lambda=interval(0.05,1)", Interval(0.05, 1.0, is_whole=False, is_log=False)),
    "log": ("optimizer.lr=tag(log,interval(1e-6,1e-4))", Interval(1e-6, 1e-4, is_whole=False, is_log=True)),
    "whole": ("adapter.rank=int(interval(8,64))", Interval(8, 64, is_whole=True, is_log=False)),
    "whole and log": ("adapter.rank=tag(log,int(interval(8,64)))", Interval(8, 64, is_whole=True, is_log=True)),
    "log and whole": ("adapter.rank=int(tag(log,interval(8,64)))", Interval(8, 64, is_whole=True, is_log=True)),
    "list": ("optimizer.lr=1e-5,2e-5", Listed(("1e-05", "2e-05"), is_ordered=False)),
    "choice": ("optimizer=choice(sgd,adamw)", Listed(("sgd", "adamw"), is_ordered=False)),
    "glob": ("optimizer=glob(a*)", Listed(("adafactor", "adamw", "adamw_8bit"), is_ordered=False)),
    "range": ("adapter.rank=range(8,33,8)", Listed(("8", "16", "24", "32"), is_ordered=True)),
    "range of parts": ("lambda=range(0,1,0.25)", Listed(("0.0", "0.25", "0.5", "0.75"), is_ordered=True)),
    "shuffled": ("lambda=shuffle(range(0,4))", Listed(("0", "1", "2", "3"), is_ordered=True)),
    "the same twice": ("lambda=0.1,0.2,0.1", Listed(("0.1", "0.2"), is_ordered=False)),
    "lists of lists": ("adapter.targets=[q_proj],[q_proj,v_proj]", Listed(("[q_proj]", "[q_proj,v_proj]"), False)),
    "files": ("data=a.json,'b c.json'", Listed(("'a.json'", "'b c.json'"), is_ordered=False)),
}


@pytest.mark.parametrize(("word", "expected"), GRAMMAR.values(), ids=GRAMMAR)
def test_grammar(word: str, expected: Listed | Interval) -> None:
    [(key, dimension)] = space("model=tiny", "adapter=lora", "seed=3", word).items()
    assert key == ("data.path" if word.startswith("data=") else word.partition("=")[0])
    assert dimension == expected


def test_the_space_may_stand_in_an_experiment(here: Path) -> None:
    own = here / "own" / "experiment" / "wide.yaml"
    own.parent.mkdir(parents=True)
    own.write_text("# @package _global_\nhydra: {sweeper: {params: {lambda: 'interval(0,1)', seed: 7}}}\n")
    assert space("--config-dir=own", "+experiment=wide") == {"lambda": Interval(0.0, 1.0, False, False)}


def test_the_first_trial_is_a_job_like_any_other(here: Path) -> None:
    typed = ["-m", "model=tiny", "lambda=interval(0.05,1)", "optimizer=sgd,adamw", "sweep.trials=4", "output_dir=x"]
    found = search_of(parse(typed))
    assert found is not None
    [job] = found.composition().jobs
    [trial] = found.trials
    assert job.overrides == [
        "model=tiny", f"lambda={trial.values['lambda']}", f"optimizer={trial.values['optimizer']}", "output_dir=x",
    ]  # fmt: skip
    assert (job.folder, found.folder, found.count, found.seed) == (here / "x" / "0", here / "x", 4, 0)
    assert "sweep" not in job.config


def test_other_sweeps_are_no_searches() -> None:
    assert search_of(parse(["-m", "lambda=0.1,0.2"])) is None


LAMBDA = "lambda=interval(0.05,1)"
WRONG: dict[str, tuple[list[str], str]] = {
    "no -m": ([LAMBDA], f"{LAMBDA}: several values are a sweep; add -m sweep.trials=20"),
    "no trials": (["-m", LAMBDA], f"{LAMBDA}: has no values to sweep over, as a list, choice(), range() or glob() has"),
    "trials without -m": (["sweep.trials=3", LAMBDA], "sweep.trials=3: a search is a sweep; add -m"),
    "nothing to search": (["-m", "sweep.trials=3", "lambda=0.1"], "sweep.trials: there is nothing to search"),
    "no number": (["-m", "sweep.trials=many", LAMBDA], "sweep.trials=many: expected a number of runs, 1 or more"),
    "none": (["-m", "sweep.trials=0", LAMBDA], "sweep.trials=0: expected a number of runs, 1 or more"),
    "seeds": (["-m", "sweep.trials=3", "seed=1,2"], "seed=1,2: seed cannot be searched"),
    "folders": (["-m", "sweep.trials=3", "output_dir=a,b"], "output_dir=a,b: cannot be searched"),
    "an empty range": (["-m", "sweep.trials=3", "lambda=range(1,1)"], "the search has no values"),
    "another tag": (["-m", "sweep.trials=3", "lambda=tag(ln,interval(1,2))"], "the only tag here is log"),
    "a tag of a range": (["-m", "sweep.trials=3", "lambda=tag(log,range(1,2))"], "the only tag here is log"),
    "log of 0": (["-m", "sweep.trials=3", "lambda=tag(log,interval(0,1))"], "an interval begins above 0"),
    "the wrong way round": (["-m", "sweep.trials=3", "lambda=interval(1,0)"], "expected two numbers, the lower one"),
    "no end": (["-m", "sweep.trials=3", "lambda=interval(1,inf)"], "expected two numbers, the lower one"),
    "an end that is refused": (["-m", "sweep.trials=3", "lambda=interval(-1,1)"], "lambda=-1.0: expected a number"),
    "the other end": (
        ["-m", "sweep.trials=3", "adapter=lora", "adapter.dropout=interval(0,1)"], "adapter.dropout=1.0: expected 0"
    ),
    "whole numbers": (
        ["-m", "sweep.trials=3", "adapter=lora", "adapter.rank=interval(8,64)"], "asked for with int(interval(...))"
    ),
    "nothing held out": (["-m", "sweep.trials=3", LAMBDA, "data=x.jsonl"], "sweep.trials=3: nothing is held out"),
    "an unknown key": (["-m", "sweep.trials=3", "lamda=interval(0,1)"], "unknown key `lamda`"),
    "another key of a sweep": (["-m", "sweep.trial=3", "lambda=1,2"], "unknown key `sweep.trial`"),
}  # fmt: skip


@pytest.mark.parametrize(("argv", "said"), WRONG.values(), ids=WRONG)
def test_what_cannot_be_searched(argv: list[str], said: str, capfd: pytest.CaptureFixture[str], here: Path) -> None:
    assert main(["train", "model=tiny", *argv]) == 2
    [line] = capfd.readouterr().err.splitlines()
    assert said in line
    assert list(here.iterdir()) == []


def test_optuna_is_missed_before_anything_else(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], here: Path
) -> None:
    monkeypatch.setattr(limits, "find_spec", lambda _: None)
    assert main(["train", "-m", "model=tiny", LAMBDA, "sweep.trials=3"]) == 2
    [line] = capfd.readouterr().err.splitlines()
    assert line.endswith("the package optuna is not installed; pip install 'orpo-cli[optuna]'")
    assert list(here.iterdir()) == []


def test_help_names_it(capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "--help"]) == 0
    said = capfd.readouterr().out
    assert "'lambda=interval(0.05,1)'" in said
    assert "sweep.trials" in said


SPACE: Space = {"lambda": Interval(0.05, 1.0, False, False), "optimizer": Listed(("sgd", "adamw"), False)}
TRIAL: dict[str, Any] = {"job": "0", "values": {"lambda": "0.1", "optimizer": "sgd"}, "exit_code": 0}


def note(folder: Path, noted: Any) -> None:
    (folder / SWEEP).write_text(json.dumps(noted), encoding="utf-8")


def test_trials_are_read_as_they_were_noted(here: Path) -> None:
    assert read_trials(here, SPACE) == []
    note(here, {"trials": [TRIAL, TRIAL | {"job": "1", "exit_code": None}]})
    values = {"lambda": "0.1", "optimizer": "sgd"}
    assert read_trials(here, SPACE) == [Trial("0", values, 0), Trial("1", values)]


CHANGED: dict[str, Any] = {
    "a value outside": TRIAL | {"values": {"lambda": "7", "optimizer": "sgd"}},
    "a key more": TRIAL | {"values": {**TRIAL["values"], "hydra.launcher": "x"}},
    "a key less": TRIAL | {"values": {"lambda": "0.1"}},
    "a number": TRIAL | {"values": {"lambda": 0.1, "optimizer": "sgd"}},
    "no values": TRIAL | {"values": None},
    "no name": TRIAL | {"job": 0},
    "no code": TRIAL | {"exit_code": "0"},
    "more": TRIAL | {"command": "x"},
    "text": "x",
}


@pytest.mark.parametrize("entry", CHANGED.values(), ids=CHANGED)
def test_a_trial_of_another_space_is_refused(entry: Any, here: Path) -> None:
    note(here, {"trials": [TRIAL, entry]})
    with pytest.raises(ConfigError, match=r"sweep\.json: .*: no trial of the space that is searched now"):
        read_trials(here, SPACE)


def test_a_sweep_that_is_no_search_is_refused(here: Path) -> None:
    note(here, {"jobs": ["0"]})
    with pytest.raises(ConfigError, match="holds a sweep over all combinations, and no search"):
        read_trials(here, SPACE)
