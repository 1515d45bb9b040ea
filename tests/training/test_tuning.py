"""What `orpo train` sets of its process: chosen before torch is imported, and only where the user chose nothing."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from orpo_cli.training import tuning

WORKLOAD = """
import resource, sys
from orpo_cli.training.tuning import tune_process
print(tune_process(), "torch" in sys.modules)
import torch
torch.empty(8 << 20).fill_(1)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20):
    torch.empty(8 << 20).fill_(1)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before, torch.get_num_threads())
"""
PAGES = 20 * (8 << 20) * 4 // 4096
"""Faults of twenty tensors of 32 MB, if each comes in fresh pages of 4 kB."""


def outcome(**environment: str) -> tuple[bool, int, int]:
    """Whether the allocator was set, page faults of the workload, and threads of torch, in a fresh process."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "OMP_"))}
    done = subprocess.run(
        [sys.executable, "-c", WORKLOAD], env=inherited | environment, capture_output=True, text=True, check=True
    )
    chosen, imported, faults, threads = done.stdout.split()
    assert imported == "False"
    return chosen == "True", int(faults), int(threads)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's allocator is that of Linux")
def test_memory_stays_with_the_process() -> None:
    """The second tensor lies where the first was: hardly a fault, where the system's settings take most of PAGES."""
    tuned, faults, _ = outcome()
    assert tuned
    assert faults < PAGES / 100
    left_alone, faults, _ = outcome(**{tuning.SYSTEM_MALLOC: "1", tuning.LARGE_PAGES: "0"})
    assert not left_alone
    assert faults > PAGES / 2


@pytest.mark.parametrize("name", ["MALLOC_ARENA_MAX", "GLIBC_TUNABLES", tuning.SYSTEM_MALLOC])
def test_what_the_user_chose_is_left_alone(name: str) -> None:
    assert not outcome(**{name: "1"})[0]


def test_threads_of_the_user_count() -> None:
    assert outcome(OMP_NUM_THREADS="1")[2] == 1


@pytest.mark.parametrize(
    ("text", "cores"), [("200000 100000", 2), ("150000 100000", 2), ("50000 100000", 1), ("max 100000", None)]
)
def test_a_container_gets_the_threads_it_is_given(
    text: str, cores: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cpu.max").write_text(text)
    monkeypatch.setattr(tuning, "_CPU_QUOTA", tmp_path / "cpu.max")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _process: set(range(64)), raising=False)
    monkeypatch.setattr("psutil.cpu_count", lambda logical: 64 if logical else 32)
    assert tuning.usable_cores() == (cores or 32)
