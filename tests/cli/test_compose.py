"""Hydra composes and nothing more: what its users know still works, and it touches nothing of the process."""

import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from orpo_cli.cli.arguments import parse
from orpo_cli.cli.compose import Composition, compose_jobs
from orpo_cli.cli.main import main
from orpo_cli.config import limits
from orpo_cli.errors import ConfigError


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def own(here: Path) -> Callable[[str, str], None]:
    """`own("experiment/x.yaml", text)`: a file in the configuration directory `own`."""

    def write(name: str, text: str) -> None:
        path = here / "own" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")

    return write


def composed(*argv: str) -> Composition:
    return compose_jobs(parse(argv))


def values(composition: Composition, *keys: str) -> list[Any]:
    """The values of dotted keys in each job; of one key alone, not as a tuple."""
    found = []
    for job in composition.jobs:
        parts: list[Any] = []
        for key in keys:
            value: Any = job.config
            for name in key.split("."):
                value = value[name]
            parts.append(value)
        found.append(parts[0] if len(keys) == 1 else tuple(parts))
    return found


SWEEPS: dict[str, tuple[list[str], str, list[Any]]] = {
    "a list": (["lambda=0.1,0.2"], "lambda", [0.1, 0.2]),
    "range": (["trainer.max_steps=range(1,4)"], "trainer.max_steps", [1, 2, 3]),
    "choice": (["optimizer=choice(sgd,adamw)"], "optimizer.name", ["sgd", "adamw"]),
    "glob": (["optimizer=glob(a*)"], "optimizer.name", ["adafactor", "adamw", "adamw_8bit"]),
    "a quoted value": (["model.revision='a,b','c'"], "model.revision", ["a,b", "c"]),
    "a quoted list is one value": (["output_dir='x,y'"], "output_dir", ["x,y"]),
    "files": (["data=a.json,'b c.json'"], "data.path", ["a.json", "b c.json"]),
    "a key of a swept group": (["optimizer=sgd,muon", "optimizer.lr=0.5"], "optimizer.lr", [0.5, 0.5]),
    "a key of the swept option": (["optimizer=sgd,sgd", "optimizer.momentum=0.5"], "optimizer.momentum", [0.5, 0.5]),
}  # fmt: skip


@pytest.mark.parametrize(("words", "key", "expected"), SWEEPS.values(), ids=SWEEPS)
def test_a_sweep(words: list[str], key: str, expected: list[Any]) -> None:
    assert values(composed("-m", *words), key) == expected


def test_a_sweep_is_every_combination_in_the_order_typed() -> None:
    jobs = composed("-m", "seed=1,2", "lambda=0.1,0.2")
    assert values(jobs, "seed", "lambda") == [(1, 0.1), (1, 0.2), (2, 0.1), (2, 0.2)]
    assert [job.folder.name for job in jobs.jobs] == ["0", "1", "2", "3"]
    assert {job.folder.parent for job in jobs.jobs} == {jobs.sweep}
    assert jobs.jobs[1].overrides == ["seed=1", "lambda=0.2"]


def test_the_parameters_of_a_sweep_may_stand_in_an_experiment(own: Callable[[str, str], None]) -> None:
    own("experiment/grid.yaml", "# @package _global_\nhydra: {sweeper: {params: {lambda: '0.1,0.2', seed: '1,2'}}}\n")
    jobs = composed("-m", "--config-dir=own", "+experiment=grid", "seed=7")
    assert values(jobs, "lambda", "seed") == [(0.1, 7), (0.2, 7)]


NAMED: dict[str, tuple[list[str], list[str]]] = {
    "hydra.sweep.dir": (["hydra.sweep.dir=here"], ["here/0", "here/1"]),
    "by number": (["output_dir=x", "hydra.sweep.subdir=job-${hydra.job.num}"], ["x/job-0", "x/job-1"]),
    "by Hydra's own resolver": (["output_dir=x", "hydra.sweep.subdir='j@${hydra:job.num}'"], ["x/j@0", "x/j@1"]),
    "by a value": (["output_dir=x", "hydra.sweep.subdir=lambda-${lambda}"], ["x/lambda-0.1", "x/lambda-0.2"]),
    "by the overrides": (
        ["output_dir=x", "hydra.sweep.subdir=${hydra.job.override_dirname}"], ["x/lambda=0.1", "x/lambda=0.2"]
    ),
}  # fmt: skip


@pytest.mark.parametrize(("words", "folders"), NAMED.values(), ids=NAMED)
def test_folders_of_jobs(words: list[str], folders: list[str], here: Path) -> None:
    jobs = composed("-m", "lambda=0.1,0.2", *words)
    assert [str(job.folder.relative_to(here)) for job in jobs.jobs] == folders


def test_jobs_of_one_sweep_share_the_time_in_their_folder() -> None:
    jobs = composed("-m", "seed=range(4)", "output_dir=${now:%f}")
    assert len({job.folder.parent for job in jobs.jobs}) == 1
    assert jobs.sweep is not None


def test_the_folder_of_a_run() -> None:
    def folder(*words: str) -> str:
        return str(composed(*words).jobs[0].folder)

    assert folder("output_dir=x") == folder("hydra.run.dir=x") == folder("resume=x") == "x"
    assert folder("output_dir=x", "resume=auto") == "x"


@pytest.mark.parametrize("kind", ["job", "hydra", "all"])
def test_cfg(kind: str, capfd: pytest.CaptureFixture[str], here: Path) -> None:
    assert main(["train", "--cfg", kind, "lambda=0.3"]) == 0
    shown = yaml.safe_load(capfd.readouterr().out)
    assert ("hydra" in shown, "lambda" in shown) == (kind != "job", kind != "hydra")
    assert list(here.iterdir()) == []


WRONG: dict[str, tuple[list[str], str]] = {
    "no values": (["train", "-m", "seed=range(1,1)"], "the sweep has no values"),
    "no names": (["train", "-m", "seed=glob(*)"], "the sweep has no values"),
    "several values on resume": (["train", "resume=auto"], "give it: output_dir=FOLDER"),
    "a sweep of a resumed run": (["resume", ".", "-m", "seed=1,2"], "-m: a run is resumed with one value of each key"),
    "a section that is deleted": (["train", "~adapter"], "adapter is not set"),
    "--resolve alone": (["train", "--resolve"], "--resolve and --package go with --cfg"),
    "no such package": (["train", "--cfg", "job", "-p", "nothere"], "--package nothere: the configuration has no such"),
}


@pytest.mark.parametrize(("argv", "said"), WRONG.values(), ids=WRONG)
def test_what_is_refused(argv: list[str], said: str, capfd: pytest.CaptureFixture[str], here: Path) -> None:
    assert main(argv) == 2
    [line] = capfd.readouterr().err.splitlines()
    assert said in line
    assert list(here.iterdir()) == []


SWEEP = ["train", "-m", "lambda=0.1,0.2"]
NO_LAUNCHERS = {
    "ray": ([*SWEEP, "hydra/launcher=ray"], "no launcher here; known: basic, joblib, submitit_local, submitit_slurm"),
    "a sweeper": ([*SWEEP, "hydra/sweeper=optuna"], "sweepers of Hydra cannot be chosen; sweep.trials=N"),
    "shell lines": ([*SWEEP, "hydra.launcher.setup=[module load cuda]"], "hydra.launcher.setup=[module load cuda]: no"),
    "of another launcher": ([*SWEEP, "hydra/launcher=joblib", "hydra.launcher.partition=a"], "partition"),
    "no number": ([*SWEEP, "hydra/launcher=joblib", "hydra.launcher.n_jobs=two"], "two"),
    "one run": (["train", "hydra/launcher=joblib"], "joblib: says where the jobs of a sweep work; add -m"),
    "jobs of one run": (["train", "sweep.jobs=2"], "sweep.jobs=2: only a sweep has several jobs; add -m"),
    "no jobs": ([*SWEEP, "sweep.jobs=0"], "sweep.jobs=0: expected a number of runs, 1 or more"),
    "no slurm": ([*SWEEP, "hydra/launcher=submitit_slurm"], "there is no srun here"),
    "a search in a queue": (
        ["train", "-m", "lambda=interval(0.1,1)", "sweep.trials=3", "hydra/launcher=submitit_local"],
        "say with sweep.jobs=N how many work at the same time",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("argv", "said"), NO_LAUNCHERS.values(), ids=NO_LAUNCHERS)
def test_launchers_that_are_refused_in_one_line(
    argv: list[str], said: str, capfd: pytest.CaptureFixture[str], here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "find_spec", lambda _: "there")
    monkeypatch.setattr("shutil.which", lambda _: None)
    assert main(argv) in (2, 69)
    [line] = capfd.readouterr().err.splitlines()
    assert said in line
    assert list(here.iterdir()) == []


OF_AN_EXPERIMENT = """# @package _global_
defaults:
  - override /hydra/launcher: submitit_slurm
hydra:
  launcher:
    partition: gpu
    timeout_min: 240
"""


def test_a_launcher_of_an_experiment(own: Callable[[str, str], None]) -> None:
    own("experiment/x.yaml", OF_AN_EXPERIMENT)
    typed = "-m", "--config-dir=own", "+experiment=x", "seed=1,2"
    found = composed(*typed, "hydra.launcher.gres=gpu:a100:1")
    assert found.launcher == "submitit_slurm"
    chosen = {"partition": "gpu", "timeout_min": 240, "gres": "gpu:a100:1", "qos": None, "nodes": 1}
    assert {key: found.launcher_values[key] for key in chosen} == chosen
    own("hydra/launcher/submitit_slurm.yaml", "setup: [touch x]")
    with pytest.warns(UserWarning, match="ConfigStore"), pytest.raises(ConfigError, match="submitit_slurm"):
        composed(*typed)


def test_composing_touches_nothing_of_the_process(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import logging

    monkeypatch.setattr(sys, "argv", ["mine"])
    before = list(logging.getLogger().handlers), signal.getsignal(signal.SIGINT), Path.cwd()
    composed("-m", "seed=1,2", "output_dir=x")
    composed("output_dir=y", "hydra.verbose=true")
    assert (list(logging.getLogger().handlers), signal.getsignal(signal.SIGINT), Path.cwd()) == before
    assert sys.argv == ["mine"]
    assert list(here.iterdir()) == []
