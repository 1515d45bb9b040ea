"""The batch script of docs/devices.md: stopped by SIGTERM it is put back into the queue, and goes on until it is done.

`srun` and `scontrol` are stand-ins: the one runs its command, the other writes down what it is asked for.
"""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tiny_runs import records, write_pairs

ROOT = Path(__file__).resolve().parent.parent
PAGE = (ROOT / "docs" / "devices.md").read_text(encoding="utf-8")
SCRIPT = PAGE.partition("```bash\n")[2].partition("```")[0]
STEPS = 120


@pytest.fixture
def job(tmp_path: Path) -> Path:
    """The script, in a directory with what it names and the programs of Slurm."""
    programs = {
        "srun": f'[ "$1 $2" = "--ntasks=1 orpo" ] || exit 99; shift 2; exec {sys.executable} -m orpo_cli "$@"',
        "scontrol": 'echo "$@" >> asked',
    }
    for name, line in programs.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{line}\n", encoding="utf-8")
        (tmp_path / name).chmod(0o755)
    write_pairs(tmp_path / "prefs.jsonl")
    settings = f"model: tiny\ndata: prefs.jsonl\ntrainer: {{max_steps: {STEPS}, save_every: 50, sample_tokens: 0}}\n"
    (tmp_path / "run.yaml").write_text(settings, encoding="utf-8")
    (tmp_path / "job.sh").write_text(SCRIPT, encoding="utf-8")
    return tmp_path / "job.sh"


def submit(job: Path) -> "subprocess.Popen[bytes]":
    environment = os.environ | {
        "PATH": f"{job.parent}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT), "SLURM_JOB_ID": "7"
    }  # fmt: skip
    return subprocess.Popen(["bash", job.name], cwd=job.parent, env=environment, stderr=subprocess.DEVNULL)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_job_that_is_preempted_goes_on(job: Path) -> None:
    run = job.parent / "runs" / "mine"
    first = submit(job)
    while not (run / "metrics.jsonl").is_file():
        assert first.poll() is None
        time.sleep(0.01)
    process = int((run / "run.lock").read_text(encoding="utf-8").split()[1])
    os.kill(process, signal.SIGTERM)
    assert first.wait() == 128 + signal.SIGTERM
    asked = (job.parent / "asked").read_text(encoding="utf-8")
    assert asked == "requeue 7\n"
    done = [record["step"] for record in records(run)]
    assert 0 < len(done) < STEPS

    assert submit(job).wait() == 0
    assert [record["step"] for record in records(run)] == list(range(1, STEPS + 1))
    assert submit(job).wait() == 0  # a finished run is left alone
    assert (job.parent / "asked").read_text(encoding="utf-8") == asked
