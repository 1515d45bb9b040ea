"""Jobs of a sweep as forks of a process that has imported what they need: as safe as alone, and with the same bytes."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from multiprocessing import forkserver
from pathlib import Path

import psutil
import pytest
from tiny_runs import Arguments, Orpo, same_end

from orpo_cli.cli import forked_jobs
from orpo_cli.machine import processes

pytestmark = pytest.mark.xdist_group("forked jobs")


@pytest.fixture
def children() -> Iterator[processes.Children]:
    with processes.passing_on_signals() as children:
        yield children


def started(children: processes.Children, *arguments: str, **environment: str) -> processes.LoneProcess:
    return processes.start_alone(arguments, children, environment, False, forked_jobs.start)


def ended(job: processes.LoneProcess) -> int:
    while (code := job.exit_code()) is None:
        time.sleep(0.02)
    return code


def test_what_is_forked_has_no_other_thread(children: processes.Children) -> None:
    """A lock that another thread holds in the moment of a fork would be held in the fork for ever."""
    assert ended(started(children, "--help")) == 0
    assert os.listdir(f"/proc/{server()}/task") == [str(server())]  # noqa: PTH208


def server() -> int:
    pid: int = forkserver._forkserver._forkserver_pid  # type: ignore[attr-defined]
    return pid


def test_a_fork_says_and_returns_what_a_process_does(children: processes.Children) -> None:
    job = started(children, "model=nothing")
    assert ended(job) == 2
    alone = subprocess.run(processes.command(["model=nothing"]), capture_output=True, text=True, check=False)
    assert job.output() == alone.stderr != ""


def test_a_fork_has_the_variables_that_it_is_given(
    children: processes.Children, arguments: Arguments, tmp_path: Path
) -> None:
    """Not those that its libraries were imported with; it is in a group of its own, and stdin is empty."""
    job = started(children, *arguments(tmp_path / "run", "trainer.max_steps=1000")[1:], SOMETHING="here")
    found = psutil.Process(running(tmp_path / "run"))
    assert os.getpgid(found.pid) == found.pid
    assert os.readlink(f"/proc/{found.pid}/fd/0") == os.devnull  # noqa: PTH115
    job.terminate()
    assert ended(job) == 143


def test_a_signal_is_passed_on_and_the_run_saves(
    children: processes.Children, arguments: Arguments, tmp_path: Path
) -> None:
    job = started(children, *arguments(tmp_path / "run", "trainer.max_steps=1000", "trainer.save_every=null")[1:])
    running(tmp_path / "run")
    children.tell(signal.SIGINT, None)
    assert ended(job) == 130
    assert "stopped by a signal after step" in job.output()
    assert list((tmp_path / "run" / "checkpoints").glob("step-*"))


def running(folder: Path) -> int:
    """The id of the process that trains in a folder, once it has taken a step."""
    while not (folder / "metrics.jsonl").exists() or '"kind": "step"' not in (folder / "metrics.jsonl").read_text():
        time.sleep(0.05)
    (pid,) = (process.pid for process in psutil.process_iter() if opened(process, folder / "train.log"))
    return pid


def opened(process: psutil.Process, path: Path) -> bool:
    try:
        return any(file.path == str(path) for file in process.open_files())
    except psutil.Error:
        return False


def real_sweep(argv: list[str]) -> "subprocess.Popen[bytes]":
    typed = [argv[0], "-m", *argv[1:], "seed=1,2"]
    return subprocess.Popen([sys.executable, "-m", "orpo_cli", *typed], stderr=subprocess.DEVNULL)


@pytest.mark.slow
def test_a_sweep_makes_the_bytes_of_runs_alone(orpo: Orpo, arguments: Arguments, tmp_path: Path) -> None:
    """Two jobs at a time; the data has never been read, so that both prepare it."""
    sweep = real_sweep([*arguments(tmp_path / "sweep"), "sweep.jobs=2"])
    assert sweep.wait() == 0
    for job in ("0", "1"):
        alone = orpo.run(*arguments(tmp_path / job, f"seed={int(job) + 1}"))
        assert alone.code == 0
        assert same_end(tmp_path / "sweep" / job, tmp_path / job)


@pytest.mark.slow
def test_jobs_end_where_the_sweep_is_killed(arguments: Arguments, tmp_path: Path) -> None:
    """And so does what they were forked from."""
    sweep = real_sweep([*arguments(tmp_path / "sweep"), "trainer.max_steps=1000"])
    job = psutil.Process(running(tmp_path / "sweep" / "0"))
    forked_from = psutil.Process(job.ppid())
    sweep.kill()
    sweep.wait()
    assert psutil.wait_procs([job, forked_from], timeout=60)[1] == []
    assert list((tmp_path / "sweep" / "0" / "checkpoints").glob("step-*"))
