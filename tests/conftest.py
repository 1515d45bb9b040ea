"""Fixtures of all tests."""

import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
from hypothesis import settings
from tiny_runs import Arguments, Orpo, write_pairs

import orpo_cli
from orpo_cli.cli import forked_jobs
from orpo_cli.config.schema import RunConfig
from orpo_cli.machine import processes

os.environ["OMP_NUM_THREADS"] = "1"
"""Before torch is imported: tests run beside each other, so small models only wait for their threads, and runs here and
in other processes end with the same bytes."""

settings.register_profile("orpo", deadline=None)  # how long one example takes says how busy the machine is
settings.load_profile("orpo")

signal.signal(signal.SIGINT, signal.default_int_handler)
if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN:
    signal.signal(signal.SIGHUP, lambda *_: None)
"""A shell starts what it puts into the background deaf to SIGINT, nohup to SIGHUP; runs of tests would inherit that."""


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """Return how many tests run at once: one where single tests are named, else one more than cores, four at most.

    Many tests wait for a process or a signal.
    """
    return 0 if all("::" in argument for argument in config.args) else min(4, len(os.sched_getaffinity(0)) + 1)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with tests that may take longer than others, so that none of them is what everybody waits for."""
    items.sort(key=lambda item: all(mark.args[0] <= 600 for mark in item.iter_markers("timeout")))


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache directory of this test's own."""
    directory = tmp_path / "cache"
    monkeypatch.setenv("ORPO_CACHE", str(directory))
    return directory


@pytest.fixture(autouse=True)
def no_forked_jobs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Jobs of a sweep are what a test makes of `processes.command`."""
    monkeypatch.setattr(forked_jobs, "are_possible", lambda: False)


@pytest.fixture(scope="session")
def compose_config() -> Callable[..., RunConfig]:
    """`compose_config("loss=trl", "lambda=0.2")`: the checked configuration of `orpo train loss=trl lambda=0.2`."""

    return orpo_cli.configure


STEPS = 6
"""Of the reference run, with a checkpoint after every second one."""


@pytest.fixture(scope="session")
def orpo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Orpo]:
    server = Orpo(tmp_path_factory.mktemp("orpo"))
    yield server
    server.close()


@pytest.fixture
def warm_jobs(orpo: Orpo, monkeypatch: pytest.MonkeyPatch) -> None:
    """Processes that a run or a sweep starts are forks of the warm one."""
    monkeypatch.setattr(processes, "command", orpo.command)


@pytest.fixture
def scripted(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """What the jobs of a sweep do instead of training, by seed, each in a process of its own; to be filled."""
    ends: dict[str, str] = {}

    def command(arguments: Sequence[str]) -> list[str]:
        given = dict(word.split("=", 1) for word in arguments if "=" in word)
        folder = given["hydra.run.dir"].strip("'")
        begins = (
            f"import os, pathlib, sys\nfolder = pathlib.Path({folder!r})\nfolder.mkdir(parents=True, exist_ok=True)"
        )
        return [sys.executable, "-S", "-c", f"{begins}\n{ends[given['seed']]}"]

    monkeypatch.setattr(processes, "command", command)
    monkeypatch.setenv("COLUMNS", "300")
    return ends


@pytest.fixture(scope="session")
def arguments(tmp_path_factory: pytest.TempPathFactory) -> Arguments:
    """`arguments(folder, "lambda=0.2")`: what to type for a run of six steps in `folder`."""
    preferences = write_pairs(tmp_path_factory.mktemp("data") / "prefs.jsonl")

    def typed(folder: Path, *overrides: str) -> list[str]:
        return [
            "train", "model=tiny", f"data={preferences}", f"output_dir={folder}", "data.eval_fraction=0.25",
            "trainer.pairs_per_step=4", f"trainer.max_steps={STEPS}", "trainer.save_every=2", "trainer.eval_every=3",
            "trainer.sample_tokens=4", "optimizer.lr=1e-3", *overrides,
        ]  # fmt: skip

    return typed


@pytest.fixture(scope="session")
def reference(orpo: Orpo, arguments: Arguments, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run of `arguments` that nothing happened to."""
    folder = tmp_path_factory.mktemp("reference") / "run"
    done = orpo.run(*arguments(folder))
    assert done.code == 0, done.output
    return folder
