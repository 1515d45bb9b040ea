"""Processes that torchrun, accelerate or Slurm start, on one machine or on two, do what those of `orpo` do."""

import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from matrix import rows
from tiny_runs import Arguments, Orpo, free_port, records

TRAIN = ("-m", "orpo_cli")
TORCHRUN = (sys.executable, "-m", "torch.distributed.run")
Launched = Callable[[Sequence[str]], list[tuple[list[str], dict[str, str]]]]
"""The commands, and what each has in its environment, that start a run of two processes."""


def two_machines(argv: Sequence[str]) -> list[tuple[list[str], dict[str, str]]]:
    """Two launchers, each as on a machine of its own, that meet at one address."""
    meet = f"--rdzv-endpoint=127.0.0.1:{free_port()}"
    how = "--nnodes=2", "--nproc-per-node=1", "--rdzv-backend=c10d", "--rdzv-id=7", meet
    return [([*TORCHRUN, *how, *TRAIN, *argv], {})] * 2


def accelerate(argv: Sequence[str]) -> list[tuple[list[str], dict[str, str]]]:
    how = "--multi_gpu", "--num_processes=2", "--num_machines=1", "--mixed_precision=no", "--dynamo_backend=no"
    port = f"--main_process_port={free_port()}"
    return [([sys.executable, "-m", "accelerate.commands.launch", *how, port, *TRAIN, *argv], {})]


def srun(argv: Sequence[str]) -> list[tuple[list[str], dict[str, str]]]:
    """Two tasks with the variables that Slurm gives them."""
    step = {
        "SLURM_JOB_ID": str(os.getpid()), "SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "2",
        "SLURM_STEP_NODELIST": "localhost", "MASTER_PORT": str(free_port()),
    }  # fmt: skip
    return [
        ([sys.executable, *TRAIN, *argv], step | {"SLURM_PROCID": str(task), "SLURM_LOCALID": str(task)})
        for task in (0, 1)
    ]


CASES = {
    "torchrun on two, fsdp": (two_machines, "fsdp"),
    "accelerate": (accelerate, "ddp"),
    "srun, fsdp": (srun, "fsdp"),
}


@pytest.mark.timeout(300)
@pytest.mark.parametrize(("started", "parallel"), rows(CASES))
def test_the_same_numbers(started: Launched, parallel: str, orpo: Orpo, arguments: Arguments, tmp_path: Path) -> None:
    reference, folder, shared = tmp_path / "reference", tmp_path / "run", f"trainer.parallel={parallel}"
    done = orpo.run(*arguments(reference, "trainer.processes=2", shared))
    assert done.code == 0, done.output
    processes = [
        subprocess.Popen(command, env=os.environ | environment, stderr=subprocess.PIPE, text=True)
        for command, environment in started(arguments(folder, shared))
    ]
    said = [process.communicate()[1] for process in processes]
    assert [process.returncode for process in processes] == [0] * len(processes), said
    assert records(folder) == records(reference)
