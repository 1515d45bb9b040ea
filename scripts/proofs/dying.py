"""Processes that die: at random times, at exact system calls, one of two."""

import random
import re
import signal
import socket
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file
from tiny_runs import Done, Running, records

from proofs.cases import FAILED, STEPS, VARIANTS, Case, Counts, Workers, kill

KILLS_A_CASE = 5

SYSCALLS = (
    "write", "fsync", "rename", "renameat", "mkdir", "unlink", "unlinkat", "rmdir", "chmod", "ftruncate", "flock",
)  # fmt: skip
"""Through which a run changes what is on the disk; safetensors writes into mapped memory."""

EFFECTS = ("signal=SIGKILL", "error=EIO", "error=ENOSPC")


def kills(workers: Workers, counts: Counts, total: int, seed: int) -> Iterator[Callable[[], None]]:
    """SIGKILL at random times of runs that go on each time, until they have been killed often enough."""
    for number in range(0, total, KILLS_A_CASE):
        count = min(KILLS_A_CASE, total - number)
        yield lambda number=number, count=count: _kills(workers, counts, f"kills-{seed}-{number}", count)


def _kills(workers: Workers, counts: Counts, name: str, left: int) -> None:
    chance = random.Random(name)
    variant = chance.choice(list(VARIANTS.values()))
    folders = (workers.scratch / f"{name}-{number}" for number in range(1000))
    case = Case(name, workers, counts, variant, next(folders))
    _, latest = workers.reference(variant)
    while left:
        running = case.start()
        time.sleep(chance.uniform(0, latest))
        done = kill(running)
        case.ended(done, (-signal.SIGKILL, 0))
        if done.code == 0:
            case.finish(is_there=True)
            latest *= 0.8
            case = Case(name, workers, counts, variant, next(folders))
        else:
            left -= 1
            counts.add(hurt=1)
    case.finish()


def syscalls(workers: Workers, counts: Counts, total: int, seed: int) -> Iterator[Callable[[], None]]:
    """A kill or an error at a random one of all system calls that change the disk, injected by strace."""
    log = workers.scratch / "syscalls"
    for number in range(total):
        yield lambda number=number: _syscall(workers, counts, f"syscalls-{seed}-{number}", log)


def _syscall(workers: Workers, counts: Counts, name: str, log: Path) -> None:
    chance = random.Random(name)
    variant = chance.choice(list(VARIANTS.values()))
    case = Case(name, workers, counts, variant, workers.scratch / name)
    calls = _calls(workers, variant, log.with_name(f"calls-{name}"))
    syscall = chance.choice(sorted(calls))
    when, effect = chance.randint(1, calls[syscall]), chance.choice(EFFECTS)
    case.name = f"{name}: {effect} at {syscall} {when}"
    done = _traced(case.start(), f"--inject={syscall}:{effect}:when={when}", f"--trace={syscall}")
    case.ended(done, (0, *FAILED, -signal.SIGKILL))
    counts.add(hurt=1)
    case.finish(is_there=done.code == 0)


_COUNTED: dict[tuple[str, ...], Counter[str]] = {}


def _calls(workers: Workers, variant: tuple[str, ...], log: Path) -> Counter[str]:
    """How often the busiest thread of a run makes each system call."""
    if variant not in _COUNTED:
        case = Case("syscalls", workers, Counts(), variant, log.with_name(f"{log.name}-run"))
        _traced(case.start(), f"--trace={','.join(SYSCALLS)}", f"--output={log}")
        by_thread = Counter(re.findall(r"^(\d+) +(\w+)\(", log.read_text(errors="replace"), re.M))
        most: Counter[str] = Counter()
        for (_, syscall), count in by_thread.items():
            most[syscall] = max(most[syscall], count)
        _COUNTED[variant] = most
    return _COUNTED[variant]


def _traced(running: Running, *options: str) -> Done:
    """Let a run go on under strace, which has it from its first millisecond."""
    running.signal(signal.SIGSTOP)
    tracer = subprocess.Popen(
        ["strace", "-f", "-qq", f"--attach={running.pid}", *options], stderr=subprocess.DEVNULL,
        stdin=subprocess.DEVNULL,
    )  # fmt: skip
    status = Path(f"/proc/{running.pid}/status")
    running.wait_for(lambda: "TracerPid:\t0" not in status.read_text())
    running.signal(signal.SIGCONT)
    done = running.wait()
    tracer.wait(30)
    return done


@dataclass
class _Two:
    """Two processes of one run."""

    ranks: list[Running]

    @classmethod
    def start(cls, case: Case) -> "_Two":
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        return cls(
            [
                case.start("trainer.processes=2", environment={**shared, "RANK": rank, "LOCAL_RANK": rank})
                for rank in ("0", "1")
            ]
        )


def processes(workers: Workers, counts: Counts, total: int, seed: int) -> Iterator[Callable[[], None]]:
    """Two processes of which one is killed; then the run goes on with one."""
    for number in range(total):
        yield lambda number=number: _processes(workers, counts, f"processes-{seed}-{number}")


def _processes(workers: Workers, counts: Counts, name: str) -> None:
    chance = random.Random(name)
    variant = ("trainer.precision=fp32", "trainer.save_every=1")
    case = Case(name, workers, counts, variant, workers.scratch / name)
    two = _Two.start(case)
    log, after = case.folder / "train.log", f"step {chance.randint(2, STEPS - 3)}/"
    two.ranks[0].wait_for(lambda: log.is_file() and after in log.read_text(), 120)
    time.sleep(chance.uniform(0, 0.1))
    victim = chance.randint(0, 1)
    two.ranks[victim].signal(signal.SIGKILL)
    killed, before = two.ranks[victim].wait(), time.monotonic()
    other = two.ranks[1 - victim].wait()
    if (waited := time.monotonic() - before) > 5 or other.code == 0:
        case.breaks(f"the other process ended after {waited:.0f} s with exit code {other.code}")
    ends = [killed, other] if victim == 0 else [other, killed]
    case.ended(ends[0], (-signal.SIGKILL, 69, 0))
    counts.add(hurt=1)
    case.ended(case.start().wait(), (0,))
    counts.add(acknowledged=len(case.saved))
    _compare_to_rounding(case)


def _compare_to_rounding(case: Case) -> None:
    """Sums over processes are added in another order, so the end is equal to rounding, step by step."""
    reference, _ = case.workers.reference(case.variant)
    ours, theirs = records(case.folder), records(reference)
    weights = [load_file(folder / "model" / "model.safetensors") for folder in (case.folder, reference)]
    same_steps = [(one["kind"], one["step"]) for one in ours] == [(one["kind"], one["step"]) for one in theirs]
    close = all(torch.allclose(weights[0][key], value, atol=2e-3) for key, value in weights[1].items())
    losses = all(abs(one["loss"] - other["loss"]) < 2e-3 for one, other in zip(ours, theirs, strict=False))
    if not (same_steps and close and losses):
        case.breaks(f"the end is another: steps {same_steps}, weights {close}, losses {losses}")
