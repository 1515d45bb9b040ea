"""Memory that a process may still take."""

from pathlib import Path

import psutil
import pytest
import torch

from orpo_cli.machine import memory

CPU = torch.device("cpu")


def container(directory: Path, most: str, used: str = "900", files: str = "50") -> Path:
    for name, text in {"memory.max": most, "memory.current": used, "memory.stat": f"anon 7\nfile {files}\n"}.items():
        (directory / name).write_text(text + "\n", encoding="utf-8")
    return directory


@pytest.mark.parametrize(("most", "expected"), [("1000", 150), ("max", None)])
def test_a_containers_limit(most: str, expected: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """1000 - 900 and the 50 of files, which the kernel gives up; without a limit, what the machine has."""
    monkeypatch.setattr(memory, "_CGROUP", container(tmp_path, most))
    monkeypatch.setattr(psutil, "virtual_memory", lambda: type("Memory", (), {"available": 5000}))
    assert memory.free_memory(CPU) == (expected or 5000)


def test_no_container(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "_CGROUP", tmp_path / "nothing")
    assert 0 < memory.free_memory(CPU) <= psutil.virtual_memory().total
