"""Start other processes: one for each job of a sweep, or several that share the steps of a run."""

import contextlib
import multiprocessing
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from tempfile import TemporaryFile
from types import FrameType
from typing import IO, Any, Protocol, TypeVar

from orpo_cli.errors import UnreachableError
from orpo_cli.machine.signals import SIGNALS, handled_signals
from orpo_cli.machine.threads import choose_threads
from orpo_cli.machine.time_limit import BEGAN, began

INTERRUPTED = (129, 130, 143)
"""The exit codes of a run that a signal ended after it had saved."""

PARENT = "ORPO_PARENT"
"""The variable in the environment of a process that holds the id of the `orpo` that started it."""

_FIRST_PORT, _PORTS = 15000, 15000
"""The ports at which the processes of a step of Slurm meet, each job at another one."""

_WITH_OTHERS = (*INTERRUPTED, UnreachableError.exit_code)
_POLL_SECONDS = 0.2
_SETTLING_SECONDS = 5
_GRACE_SECONDS = 10


def is_child() -> bool:
    """Return whether this process is one of several, started by `orpo` or by a launcher such as torchrun."""
    return {"WORLD_SIZE", "RANK", "MASTER_ADDR"} <= set(os.environ)


def join_step_of_slurm() -> None:
    """Where `srun` started this process as one of several, take its place from Slurm, as from any other launcher."""
    environment = os.environ
    if is_child() or int(environment.get("SLURM_STEP_NUM_TASKS", "1")) < 2 or "SLURM_PROCID" not in environment:
        return
    job, step = int(environment["SLURM_JOB_ID"]), int(environment["SLURM_STEP_ID"])
    environment["RANK"] = environment["SLURM_PROCID"]
    environment["WORLD_SIZE"] = environment["SLURM_STEP_NUM_TASKS"]
    environment["LOCAL_RANK"] = environment["SLURM_LOCALID"]
    environment["MASTER_ADDR"] = _first_host(environment["SLURM_STEP_NODELIST"])
    environment.setdefault("MASTER_PORT", str(_FIRST_PORT + (job + step) % _PORTS))


def _first_host(nodes: str) -> str:
    """Return the first of the hosts that Slurm lists, as in node[03-05,09]-a,other."""
    found = re.match(r"([^,\[]+)(?:\[([^],-]+)[^]]*\]([^,]*))?", nodes)
    return "".join(part or "" for part in found.groups()) if found else nodes


def has_parent() -> bool:
    """Return whether another `orpo` started this process."""
    return PARENT in os.environ


def is_main() -> bool:
    """Return whether this process is the first of several, or alone."""
    return os.environ.get("RANK", "0") == "0"


def follow_parent() -> None:
    """If another `orpo` started this process, receive the signals that waited since, and SIGTERM once it is gone.

    It may be killed, with no time to pass anything on.
    """
    parent, asked_for_this_fork = os.environ.get(PARENT, ""), multiprocessing.parent_process()

    def watch() -> None:
        while os.getppid() == int(parent) and (asked_for_this_fork is None or asked_for_this_fork.is_alive()):
            time.sleep(_POLL_SECONDS)
        os.kill(os.getpid(), signal.SIGTERM)

    if parent.isdecimal():
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
        threading.Thread(target=watch, name="parent", daemon=True).start()


def command(arguments: Sequence[str]) -> list[str]:
    """Return the command of `orpo train ARGUMENTS`; it imports nothing from the current directory."""
    return [sys.executable, "-P", "-m", "orpo_cli", "train", *arguments]


class Child(Protocol):
    """A process that this one has started, as `subprocess.Popen` is one."""

    @property
    def pid(self) -> int:
        """Return its id."""

    def poll(self) -> int | None:
        """Return its exit code, negative for the signal that killed it; None while it runs."""

    def send_signal(self, number: int, /) -> None:
        """Send it a signal, unless it has ended."""

    def terminate(self) -> None:
        """Ask it to save and end."""


C = TypeVar("C", bound=Child)


class Children:
    """Processes to which this one passes on every signal; they do not belong to the group of the terminal."""

    def __init__(self) -> None:
        self._all: list[Child] = []
        self._signals: list[int] = []

    @property
    def asked(self) -> int | None:
        """Return the first signal that came; a process that was ending already may not have heeded it."""
        return self._signals[0] if self._signals else None

    def start(self, begin: Callable[[], C]) -> C:
        """Start an `orpo train`. Signals wait meanwhile, and in the new process until it calls `follow_parent`."""
        before = signal.pthread_sigmask(signal.SIG_BLOCK, handled_signals())
        try:
            child = begin()
            for number in self._signals:
                child.send_signal(number)
            self._all.append(child)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        return child

    def tell(self, number: int, _frame: FrameType | None) -> None:
        """Pass a signal on to all children; this is the signal handler while there are any."""
        self._signals.append(number)
        for child in self._all:
            child.send_signal(number)


@contextlib.contextmanager
def passing_on_signals() -> Iterator[Children]:
    """Pass signals on to the children while the block runs, so that this process waits until they have saved."""
    children = Children()
    before = {number: signal.signal(number, children.tell) for number in handled_signals()}
    try:
        yield children
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class LoneProcess:
    """An `orpo train` that works by itself in a process that this one has started.

    Args:
        said: what takes the lines that it prints; None where they are shown as they come.
    """

    def __init__(self, started: Child, said: IO[bytes] | None) -> None:
        self._started = started
        self._said = said

    def exit_code(self) -> int | None:
        """Return its exit code, or 128 + the signal that killed it; None while it runs."""
        code = self._started.poll()
        return None if code is None else _exit_code(code)

    def terminate(self) -> None:
        """Ask it to save and end."""
        self._started.terminate()

    def wait(self) -> None:
        """Wait for its end. A signal handler may call this while the process is looked at elsewhere."""
        with contextlib.suppress(ChildProcessError):  # its exit code was taken already
            os.waitid(os.P_PID, self._started.pid, os.WEXITED | os.WNOWAIT)

    def output(self) -> str:
        """Return what it printed; nothing where that was shown as it came."""
        if self._said is None:
            return ""
        self._said.seek(0)
        return self._said.read().decode(errors="replace")


def _start(arguments: Sequence[str], **how: Any) -> "subprocess.Popen[bytes]":
    """Start `orpo train ARGUMENTS` in a group of its own; `how` are further arguments of `subprocess.Popen`."""
    return subprocess.Popen(command(arguments), stdin=subprocess.DEVNULL, process_group=0, **how)


def start_anew(arguments: Sequence[str], environment: Mapping[str, str], said: IO[bytes] | None) -> Child:
    """Start `orpo train ARGUMENTS` from nothing; the arguments are those of `begin` in `start_alone`."""
    output = said or (None if sys.stderr is None else sys.stderr.fileno())
    return _start(arguments, env=environment, stdout=output, stderr=said)


def start_alone(
    arguments: Sequence[str],
    children: Children,
    environment: Mapping[str, str],
    is_shown: bool,
    begin: Callable[[Sequence[str], Mapping[str, str], IO[bytes] | None], Child] = start_anew,
) -> LoneProcess:
    """Start `orpo train ARGUMENTS` in a process of its own.

    Args:
        environment: variables that it has besides those of this process.
        is_shown: whether what it prints goes to the standard error of this process, or is kept.
        begin: what starts it, given the arguments, all variables, and the file that keeps what it prints, if there is
            one.
    """
    said = None if is_shown else TemporaryFile()  # noqa: SIM115 - it lives as long as the process
    own = {**os.environ, PARENT: str(os.getpid()), **environment}
    return LoneProcess(children.start(lambda: begin(arguments, own, said)), said)


def run_processes(arguments: Sequence[str], count: int) -> int:
    """Run `orpo train ARGUMENTS` in `count` processes that share each step.

    Returns:
        0 where all did, else the exit code of the one that is the cause.
    """
    shared = os.environ | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(_free_port()), "WORLD_SIZE": str(count)}
    shared |= {PARENT: str(os.getpid()), BEGAN: str(began())}
    choose_threads(shared, count)
    with contextlib.ExitStack() as files:
        # what the others say is what the main process says too, unless one of them fails alone
        said: list[IO[bytes] | None] = [None, *(files.enter_context(TemporaryFile()) for _ in range(1, count))]
        ranks: list[subprocess.Popen[bytes]] = []
        with passing_on_signals() as children:
            try:
                for rank in range(count):
                    environment = shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)}
                    ranks.append(children.start(partial(_start, arguments, env=environment, stderr=said[rank])))
                codes = _ended(ranks)
            finally:
                _end(ranks)
        return _report(codes, said)


def _ended(children: Sequence[subprocess.Popen[bytes]]) -> list[int | None]:
    """Wait until all processes have ended or one has failed; the code of one that still runs is None.

    One that lost another, or was interrupted, is not the only one: the others have a while to end as well.
    """
    settled = None
    while True:
        codes = [child.poll() for child in children]
        failed = [code for code in codes if code]
        if failed and settled is None:
            settled = time.monotonic() + _SETTLING_SECONDS
        by_itself = any(code not in _WITH_OTHERS for code in failed)
        if None not in codes or by_itself or (settled is not None and time.monotonic() > settled):
            return codes
        time.sleep(_POLL_SECONDS)


def _report(codes: Sequence[int | None], said: Sequence[IO[bytes] | None]) -> int:
    """Say which process is the cause and return its exit code: a killed one first, one that lost another last."""
    failed = sorted((code == UnreachableError.exit_code, code, rank) for rank, code in enumerate(codes) if code)
    came_too_late = codes[0] == 0 and all(code in INTERRUPTED for _, code, _ in failed)
    if not failed or came_too_late:
        return 0
    lost_another, code, rank = failed[0]
    missing = [number for number, other in enumerate(codes) if not other] if lost_another else [rank]
    if lost_another and missing:
        rank = missing[0]
        how = "did not answer in time" if codes[rank] is None else "ended before the others"
    else:
        how = f"was killed by {signal_name(-code)}" if code < 0 else f"ended with exit code {code}"
    if code not in INTERRUPTED:
        output = said[rank]
        if output is not None and codes[rank] is not None:
            output.seek(0)
            print(output.read().decode(errors="replace"), end="", file=sys.stderr)
        print(f"orpo: process {rank} of {len(codes)} {how}; the others are ended", file=sys.stderr)
    return _exit_code(code)


def signal_name(number: int) -> str:
    """Return the name of a signal, SIGKILL for 9."""
    with contextlib.suppress(ValueError):
        return signal.Signals(number).name
    return f"signal {number}"


def _exit_code(returned: int) -> int:
    return returned if returned >= 0 else 128 - returned


def _end(children: Sequence[subprocess.Popen[bytes]]) -> None:
    """End the processes that still run; they may be waiting for one that is gone."""
    deadline = time.monotonic() + _GRACE_SECONDS
    for child in children:
        child.terminate()
    for child in children:
        try:
            child.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
