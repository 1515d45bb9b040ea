"""Several processes on this machine for one run. The first failure ends the others and gives the exit code."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Sequence

_POLL_SECONDS = 0.2
_GRACE_SECONDS = 30


def is_child() -> bool:
    """Whether this process is one of several, started here or by a launcher such as torchrun."""
    return "WORLD_SIZE" in os.environ


def is_main() -> bool:
    """Whether this process is the first of them, or alone."""
    return os.environ.get("RANK", "0") == "0"


def run_processes(arguments: Sequence[str], count: int) -> int:
    """Run `orpo train ARGUMENTS` in `count` processes that share each step.

    Returns:
        0 where all did, else the exit code of the first that failed.
    """
    shared = os.environ | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(_free_port()), "WORLD_SIZE": str(count)}
    shared.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // count)))
    command = [sys.executable, "-m", "orpo_cli", "train", *arguments]
    children = [
        subprocess.Popen(command, env=shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)}, stdin=subprocess.DEVNULL)
        for rank in range(count)
    ]
    try:
        return _first_failure(children)
    finally:
        _end(children)


def _first_failure(children: Sequence[subprocess.Popen[bytes]]) -> int:
    while True:
        try:
            codes = [child.poll() for child in children]
            failed = [code for code in codes if code]
            if failed:
                return failed[0] if failed[0] > 0 else 128 - failed[0]
            if all(code == 0 for code in codes):
                return 0
            time.sleep(_POLL_SECONDS)
        except KeyboardInterrupt:  # the terminal sent it to the children too; they save and leave with its code
            continue


def _end(children: Sequence[subprocess.Popen[bytes]]) -> None:
    """End those that still run; they may be waiting for one that is gone."""
    deadline = time.monotonic() + _GRACE_SECONDS
    for child in children:
        child.terminate()
    for child in children:
        try:
            child.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            child.kill()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
