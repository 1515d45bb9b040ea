"""A sweep whose jobs work at the same time, here or in a queue: one that is lost takes no other with it."""

import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest
from test_sweeps import FINISHED, how, sweeping
from tiny_runs import Arguments, records

from orpo_cli.cli.main import main
from orpo_cli.machine import shares
from orpo_cli.machine.shares import cuda_devices, share

COMMAND = [sys.executable, "-P", "-m", "orpo_cli"]
SIX = "optimizer.lr=1e-3,3e-3,1e-2"
OF_TWO = "lambda=0.1,1"
WAITS_FOR = """
import pathlib, time
(folder / 'here').touch()
deadline = time.monotonic() + 60
while not all((folder.parent / name / 'here').exists() for name in '{}'):
    assert time.monotonic() < deadline
    time.sleep(0.01)
"""
"""What a job does that ends only where others are at work beside it."""


def test_two_at_a_time_and_one_is_killed(
    scripted: dict[str, str], arguments: Arguments, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Jobs 0 and 1 need each other, and so do 2 and 3; what one prints stays together."""
    says = "print('one of {0}', flush=True)\n{1}\nprint('two of {0}')\n"
    scripted |= {
        "1": says.format(1, WAITS_FOR.format("01")) + FINISHED,
        "2": says.format(2, WAITS_FOR.format("01")) + "os.kill(os.getpid(), 9)",
        "3": says.format(3, WAITS_FOR.format("23")) + FINISHED,
        "4": says.format(4, WAITS_FOR.format("23")) + FINISHED,
    }
    assert main([*sweeping(arguments(tmp_path / "sweep"), "seed=1,2,3,4"), "sweep.jobs=2"]) == 1
    said = capfd.readouterr().err
    assert how(said) == ["done", "ended by SIGKILL", "done", "done"]
    for seed in "134":
        assert f"one of {seed}\ntwo of {seed}" in said
    scripted["2"] = FINISHED
    assert main(["resume", str(tmp_path / "sweep")]) == 0


def test_a_signal_reaches_all_and_no_other_job_begins(
    scripted: dict[str, str], arguments: Arguments, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    saves = """
import signal, time
signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGTERM])
(folder / 'here').touch()
time.sleep(60)
"""
    scripted |= dict.fromkeys("123", saves)
    folder = tmp_path / "sweep"

    def interrupt() -> None:
        while not all((folder / name / "here").exists() for name in "01"):
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=interrupt).start()
    assert main([*sweeping(arguments(folder), "seed=1,2,3"), "hydra/launcher=joblib", "hydra.launcher.n_jobs=2"]) == 143
    said = capfd.readouterr().err
    assert how(said) == ["ended by SIGTERM"] * 2
    assert f"resume with: orpo resume {folder}" in said
    assert not (folder / "2").exists()


def test_each_has_its_share_of_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Eight cores and main memory without GPUs; two GPUs each of four; one GPU of two for three jobs."""
    monkeypatch.setattr("orpo_cli.machine.threads.usable_cores", lambda: 8)
    monkeypatch.delenv("OMP_NUM_THREADS")
    assert share(1, 2, 2, []) == {"OMP_NUM_THREADS": "2", "ORPO_SHARED_BY": "2"}
    of_four = [share(place, 2, 2, ["0", "2", "5", "7"])["CUDA_VISIBLE_DEVICES"] for place in (0, 1)]
    assert of_four == ["0,2", "5,7"]
    of_two = [share(place, 3, 1, ["0", "1"]) for place in range(3)]
    assert [own["CUDA_VISIBLE_DEVICES"] for own in of_two] == ["0", "1", "0"]
    assert {own["ORPO_SHARED_BY"] for own in of_two} == {"2"}
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert share(0, 2, 1, [])["OMP_NUM_THREADS"] == "3"


def test_gpus_are_those_that_are_visible(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,GPU-8a2b")
    assert cuda_devices() == ["3", "GPU-8a2b"]
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\necho 'GPU 0: NVIDIA H200 (UUID: GPU-1)'\necho 'GPU 1: NVIDIA H200 (UUID: GPU-2)'\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    assert cuda_devices() == ["0", "1"]


def test_more_gpus_than_there_are(
    arguments: Arguments, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("orpo_cli.cli.launchers.cuda_devices", lambda: ["0", "1", "2"])
    assert main([*sweeping(arguments(tmp_path / "x"), "seed=1,2"), "sweep.jobs=2", "trainer.processes=2"]) == 2
    assert "sweep.jobs=2: with trainer.processes=2 that takes 4 GPUs; here are 3" in capfd.readouterr().err
    assert not (tmp_path / "x").exists()


def test_memory_is_divided(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    from orpo_cli.machine import memory

    monkeypatch.setattr(memory, "_left_to_container", lambda: 12_000)
    whole = memory.free_memory(torch.device("cpu"))
    monkeypatch.setenv(shares.SHARED_BY, "3")
    assert (whole, memory.free_memory(torch.device("cpu"))) == (12_000, 4_000)


def run(*argv: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"COLUMNS": "300"}
    return subprocess.run([*COMMAND, *argv], cwd=cwd, env=environment, capture_output=True, text=True, check=False)


def killed_at_step(folder: Path, step: int) -> threading.Thread:
    """SIGKILL, once, for the run in a folder that has taken a step."""

    def kill() -> None:
        while not (folder / "metrics.jsonl").is_file() or len(records(folder)) < step:
            time.sleep(0.005)
        process = int((folder / "run.lock").read_text(encoding="utf-8").split()[1])
        psutil.Process(process).kill()

    thread = threading.Thread(target=kill)
    thread.start()
    return thread


HERE = {"one-after-another": [], "two-at-a-time": ["sweep.jobs=2"]}
QUEUED = ["hydra/launcher=submitit_local", "sweep.jobs=2"]


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.usefixtures("warm_jobs")
def test_six_jobs_of_which_one_is_killed_give_the_same_leaderboard(
    arguments: Arguments, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Job 3 is killed while it trains; the sweep resumes it to the same numbers."""
    monkeypatch.setenv("COLUMNS", "300")

    def here(*argv: str) -> tuple[int, str]:
        return main(argv), capfd.readouterr().err

    def in_processes(*argv: str) -> tuple[int, str]:
        done = run(*argv, cwd=tmp_path)
        return done.returncode, done.stderr

    boards = set()
    for name, words, type_it in (*((name, words, here) for name, words in HERE.items()), ("q", QUEUED, in_processes)):
        folder = tmp_path / name / "sweep"
        kills = killed_at_step(folder / "3", 5)
        code, said = type_it(*sweeping(arguments(folder), SIX, OF_TWO, most=30), *words)
        kills.join()
        assert (code, killed(said)) == (1, ["3"]), said
        code, said = type_it("resume", str(folder))
        assert (code, killed(said)) == (0, []), said
        boards.add(said.rpartition("leaderboard: ")[2].replace(str(folder), "FOLDER"))
        for job in "012345":
            assert records(folder / job) == records(tmp_path / "one-after-another" / "sweep" / job)
    assert len(boards) == 1


def killed(said: str) -> list[str]:
    """The names of the jobs that the table at the end calls killed."""
    return re.findall(r"/sweep/(\d) .*ended by SIGKILL", said.rpartition("not ranked")[2])


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_job_that_has_to_leave_the_queue_resumes_by_itself(arguments: Arguments, tmp_path: Path) -> None:
    """It is told as Slurm tells one that is preempted, and its metrics are those of one that nobody disturbed."""
    folder = tmp_path / "sweep"
    typed = [*sweeping(arguments(folder), "seed=1", most=60), "hydra/launcher=submitit_local"]
    with subprocess.Popen([*COMMAND, *typed], stderr=subprocess.PIPE, text=True) as sweep:
        while not (folder / "0" / "metrics.jsonl").is_file() or len(records(folder / "0")) < 5:
            assert sweep.poll() is None
            time.sleep(0.01)
        (controller,) = psutil.Process(sweep.pid).children()
        (task,) = controller.children()
        task.send_signal(signal.SIGUSR2)
        _, said = sweep.communicate(timeout=300)
    assert sweep.returncode == 0, said
    assert "resuming after step" in said
    undisturbed = sweeping(arguments(tmp_path / "other"), "seed=1", most=60)
    assert run(*undisturbed, cwd=tmp_path).returncode == 0
    assert records(folder / "0") == records(tmp_path / "other" / "0")
