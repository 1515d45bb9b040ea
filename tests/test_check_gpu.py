"""scripts/check_gpu works, tried on a CPU; what it finds on a GPU only a GPU can tell."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parent.parent / "scripts" / "check_gpu"


def check(*words: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run([sys.executable, str(SCRIPT), *words], capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_parts_on_a_cpu() -> None:
    done = check("--device", "cpu", "attention", "memory")
    assert done.returncode == 0, done.stdout + done.stderr
    rows = re.findall(r"^\| (.+?) \| (.+?) \| (.*?) \| .* \|$", done.stdout, re.MULTILINE)
    assert [row[2] for row in rows] == ["holds", "yes", "yes", "yes"]
    assert "out of memory" in rows[-1][0]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_parts_of_what_runs_are_made_of() -> None:
    done = check("--device", "cpu", "quantized", "optimizers", "routers")
    assert done.returncode == 0, done.stdout + done.stderr
    rows = re.findall(r"^\| (.+?) \| (.+?) \| (.*?) \| .* \|$", done.stdout, re.MULTILINE)
    assert [row[2] for row in rows] == ["holds", "", *["yes"] * 9]
    assert [row[1] for row in rows if row[0].startswith("resume")] == ["the same bytes"] * 4


@pytest.mark.slow
def test_a_part_that_fails_takes_no_other_with_it() -> None:
    """No such GPU: each of the parts says so in its own row."""
    code = (
        "import runpy, sys, torch\n"
        "torch.cuda.is_available, torch.cuda.get_device_name = lambda: True, str\n"
        f"sys.path.insert(0, {str(SCRIPT.parent)!r})\n"
        "sys.argv = ['check_gpu', '--device', 'nowhere', 'attention', 'head']\n"
        f"runpy.run_path({str(SCRIPT)!r}, run_name='__main__')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert re.findall(r"^\| (\w+) \| failed \| NO \|", done.stdout, re.MULTILINE) == ["attention", "head"]
