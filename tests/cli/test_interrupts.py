"""A signal that comes where raising from its handler would do harm, or would be caught."""

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from matrix import rows

pytestmark = pytest.mark.xdist_group("alone")

HALF = """
import os, signal, time
os.kill(os.getpid(), signal.{number})
ends = time.monotonic() + 0.2
while time.monotonic() < ends:
    pass
print("imported as a whole", flush=True)
"""
PROGRAM = """
import sys, time
from orpo_cli.cli import commands, main
from orpo_cli.machine import signals

def train(argv):
    {does}
    time.sleep(60)
    return 0

commands.COMMANDS["train"] = train
sys.exit(main.main())
"""


def ended(does: str, tmp_path: Path, number: str = "SIGINT") -> subprocess.CompletedProcess[str]:
    """`orpo train` that does this and then nothing for a minute; the module `half` sends itself a signal."""
    (tmp_path / "half.py").write_text(HALF.format(number=number), encoding="utf-8")
    program = PROGRAM.format(does=textwrap.indent(does, "    ").strip())
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    return subprocess.run(
        [sys.executable, "-c", program, "train"], env=environment, capture_output=True, text=True, timeout=50
    )


@pytest.mark.parametrize(("number", "code"), [("SIGINT", 130), ("SIGTERM", 143), ("SIGHUP", 129)])
def test_a_signal_during_an_import_comes_after_it(number: str, code: int, tmp_path: Path) -> None:
    done = ended("import half", tmp_path, number)
    assert (done.returncode, done.stdout) == (code, "imported as a whole\n"), done.stderr
    assert done.stderr.startswith("orpo: ")
    assert len(done.stderr.splitlines()) == 1


def test_a_signal_during_an_import_comes_before_a_wait_that_would_not_hear_it(tmp_path: Path) -> None:
    does = "signals._WAIT_SECONDS = 55\nimport half\nsignals.send_waiting()"
    done = ended(does, tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (130, "imported as a whole\n", "orpo: interrupted\n")


COMPOSING = """
import os, signal, sys
import omegaconf.nodes
import orpo_cli.cli.compose, orpo_cli.cli.commands

def counted(node, *values, **options):
    global calls
    calls += 1
    if calls == signal_at:
        os.kill(os.getpid(), signal.SIGTERM)
    original(node, *values, **options)

signal_at = int(sys.argv.pop(1))
calls, original, omegaconf.nodes.ValueNode.__init__ = 0, omegaconf.nodes.ValueNode.__init__, counted
from orpo_cli.cli.main import main
sys.exit(main())
"""
"""`orpo` to which SIGTERM comes when its configuration has so many values. At the 46th Hydra makes nothing of it."""


RUN, SEVERAL = (), ("-m", "seed=1,2")


@pytest.mark.parametrize(
    ("sweep", "call"),
    rows(
        {
            "run 1": (RUN, 1), "run 46": (RUN, 46), "run 300": (RUN, 300),
            "sweep 1": (SEVERAL, 1), "sweep 46": (SEVERAL, 46), "sweep 300": (SEVERAL, 300),
        },
        "run 46", "sweep 300",
    ),
)  # fmt: skip
def test_a_signal_while_hydra_composes_comes_after_that(call: int, sweep: tuple[str, ...], tmp_path: Path) -> None:
    typed = ["train", "model=tiny", "output_dir=run", *sweep]
    command = [sys.executable, "-c", COMPOSING, str(call), *typed]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=200)
    assert done.returncode == 143
    assert done.stderr.splitlines()[-1] == "orpo: ended by SIGTERM; nothing was lost that had been saved"
    assert "Traceback" not in done.stderr
    assert "step 1" not in done.stderr


@pytest.mark.parametrize("then", ["raise RuntimeError('half done')", "pass", "raise main.ConfigError('what?')"])
def test_a_signal_that_a_library_makes_something_else_of(then: str, tmp_path: Path) -> None:
    """Whatever fails later of what it has left, the user asked for the end."""
    tries = "import os\ntry:\n    os.kill(os.getpid(), 15)\n    time.sleep(9)"
    done = ended(f"{tries}\nexcept BaseException:\n    {then}\nraise OSError", tmp_path)
    assert done.returncode == 143
    assert done.stderr == "orpo: ended by SIGTERM; nothing was lost that had been saved\n"
