"""`srun` starts the processes of a run: each takes its place from the variables of Slurm."""

import os

import pytest

from orpo_cli.machine.processes import is_child, is_main, join_step_of_slurm

STEP = {
    "SLURM_JOB_ID": "40017", "SLURM_STEP_ID": "2", "SLURM_STEP_NUM_TASKS": "8", "SLURM_PROCID": "5",
    "SLURM_LOCALID": "1", "SLURM_STEP_NODELIST": "gpu-a[03-04,07]",
}  # fmt: skip
"""What `srun` sets, as it does on a cluster of Slurm 22.05."""

NAMES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")


@pytest.fixture(autouse=True)
def no_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*NAMES, *STEP):
        monkeypatch.setenv(name, "")  # so that what the test sets is taken back
        monkeypatch.delenv(name)


def test_a_task_of_a_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """Job 40017 and step 2 meet at port 15000 + 40019 % 15000."""
    for name, value in STEP.items():
        monkeypatch.setenv(name, value)
    join_step_of_slurm()
    assert [os.environ.get(name) for name in NAMES] == ["5", "8", "1", "gpu-a03", "25019"]
    assert is_child()
    assert not is_main()


HOSTS = {"vm": "vm", "a,b": "a", "node[9-11]": "node9", "rack1-[2,5]-ib,other": "rack1-2-ib", "n[007]": "n007"}


@pytest.mark.parametrize(("nodes", "first"), HOSTS.items())
def test_they_meet_at_the_first_host(nodes: str, first: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (STEP | {"SLURM_STEP_NODELIST": nodes}).items():
        monkeypatch.setenv(name, value)
    join_step_of_slurm()
    assert os.environ["MASTER_ADDR"] == first


ALONE = {
    "a batch script": {"SLURM_JOB_ID": "7", "SLURM_NTASKS": "8", "SLURM_PROCID": "0"},
    "one task": STEP | {"SLURM_STEP_NUM_TASKS": "1"},
    "torchrun in a task": STEP | {"RANK": "0", "WORLD_SIZE": "4", "LOCAL_RANK": "0", "MASTER_ADDR": "x"},
    "no slurm": {},
}


@pytest.mark.parametrize("environment", ALONE.values(), ids=ALONE)
def test_where_srun_started_no_others(environment: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    join_step_of_slurm()
    assert {name: os.environ[name] for name in NAMES if name in os.environ} == {
        name: value for name, value in environment.items() if name in NAMES
    }
