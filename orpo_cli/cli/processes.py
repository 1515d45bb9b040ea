"""Other processes for a job: one of its own for each job of a sweep, several that share the steps of a run."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from types import FrameType

from orpo_cli.training.threads import THREADS, usable_cores

_POLL_SECONDS = 0.2
_GRACE_SECONDS = 30


def is_child() -> bool:
    """Whether this process is one of several, started here or by a launcher such as torchrun."""
    return {"WORLD_SIZE", "RANK", "MASTER_ADDR"} <= set(os.environ)


def is_main() -> bool:
    """Whether this process is the first of them, or alone."""
    return os.environ.get("RANK", "0") == "0"


def command(arguments: Sequence[str]) -> list[str]:
    """`orpo train ARGUMENTS` in another process, which imports nothing from the current directory."""
    return [sys.executable, "-P", "-m", "orpo_cli", "train", *arguments]


def run_alone(arguments: Sequence[str]) -> int:
    """Run one job of a sweep in a process of its own. Returns its exit code, 128 + the signal that killed it."""
    output = None if sys.stderr is None else sys.stderr.fileno()
    child = subprocess.Popen(command(arguments), stdin=subprocess.DEVNULL, stdout=output)
    with _passing_on_signals([child]):
        return _exit_code(child.wait())


def run_processes(arguments: Sequence[str], count: int) -> int:
    """Run `orpo train ARGUMENTS` in `count` processes that share each step.

    Returns:
        0 where all did, else the exit code of the first that failed.
    """
    shared = os.environ | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(_free_port()), "WORLD_SIZE": str(count)}
    shared.setdefault(THREADS, str(max(1, usable_cores() // count)))
    children = [
        subprocess.Popen(
            command(arguments), env=shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)}, stdin=subprocess.DEVNULL
        )
        for rank in range(count)
    ]
    try:
        with _passing_on_signals(children):
            return _first_failure(children)
    finally:
        _end(children)


@contextlib.contextmanager
def _passing_on_signals(children: Sequence[subprocess.Popen[bytes]]) -> Iterator[None]:
    """Stay until the children have saved: SIGTERM goes on to them, SIGINT the terminal has sent them itself."""

    def on_signal(number: int, _frame: FrameType | None) -> None:
        if number == signal.SIGTERM:
            for child in children:
                child.terminate()

    before = {number: signal.signal(number, on_signal) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _first_failure(children: Sequence[subprocess.Popen[bytes]]) -> int:
    """A process that a signal killed is the cause where several failed; the others only miss it."""
    while True:
        codes = [child.poll() for child in children]
        failed = sorted((code, rank) for rank, code in enumerate(codes) if code)
        if failed:
            code, rank = failed[0]
            how = f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
            print(f"orpo: process {rank} of {len(children)} {how}; the others are ended", file=sys.stderr)
            return _exit_code(code)
        if all(code == 0 for code in codes):
            return 0
        time.sleep(_POLL_SECONDS)


def _exit_code(returned: int) -> int:
    return returned if returned >= 0 else 128 - returned


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
