"""How many threads `orpo train` computes with: chosen before torch is imported, and only where the user did not."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from orpo_cli.machine import threads

COUNT = """
import sys
from orpo_cli.machine.threads import choose_threads
choose_threads()
assert "torch" not in sys.modules
import torch
print(torch.get_num_threads())
"""


@pytest.mark.parametrize("chosen", [None, *(pytest.param(text, marks=pytest.mark.slow) for text in ("", "1"))])
def test_torch_takes_them(chosen: str | None) -> None:
    inherited = {name: value for name, value in os.environ.items() if name != threads.THREADS}
    own = {} if chosen is None else {threads.THREADS: chosen}
    done = subprocess.run(
        [sys.executable, "-c", COUNT], env=inherited | own, capture_output=True, text=True, check=True
    )
    assert int(done.stdout) == int(chosen or threads.usable_cores())


def test_processes_share_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "usable_cores", lambda: 5)
    for environment, expected in (({}, "2"), ({threads.THREADS: ""}, "2"), ({threads.THREADS: "7"}, "7")):
        threads.choose_threads(environment, 2)
        assert environment[threads.THREADS] == expected


@pytest.mark.parametrize(
    ("text", "cores"), [("200000 100000", 2), ("150000 100000", 2), ("50000 100000", 1), ("max 100000", 32)]
)
def test_a_container_gets_the_threads_it_is_given(
    text: str, cores: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The machine has 64 hyperthreads on 32 cores."""
    (tmp_path / "cpu.max").write_text(text)
    monkeypatch.setattr(threads, "_CPU_QUOTA", tmp_path / "cpu.max")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _process: set(range(64)), raising=False)
    monkeypatch.setattr("psutil.cpu_count", lambda logical: 64 if logical else 32)
    assert threads.usable_cores() == cores
