"""Disks that are full, read-only, or lose power."""

import random
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path

from tiny_runs import Running

from proofs.cases import FAILED, VARIANTS, Case, Counts, Workers, acknowledged, has_ended, kill, mounted

SIZE = "112m"
"""Of a tmpfs: little more than what a run wants to see free before it begins."""

BALLAST = "ballast"


def disk(workers: Workers, counts: Counts, total: int, seed: int) -> Iterator[Callable[[], None]]:
    """A small tmpfs that fills up at a random moment, to the last byte or nearly, for good or for a while."""
    for number in range(total):
        yield lambda number=number: _disk(workers, counts, f"disk-{seed}-{number}")


def _disk(workers: Workers, counts: Counts, name: str) -> None:
    chance = random.Random(name)
    variant = chance.choice(list(VARIANTS.values()))
    _, seconds = workers.reference(variant)
    with mounted(workers.scratch / name, "-t", "tmpfs", "-o", f"size={SIZE}", "orpo") as disk:
        case = Case(name, workers, counts, variant, disk / "run")
        running = case.start(f"trainer.on_save_error={chance.choice(('stop', 'continue'))}")
        time.sleep(chance.uniform(0, seconds))
        left = chance.choice((0, 1, 5000, chance.randint(0, 2_000_000)))
        full_until = time.monotonic() + (chance.uniform(0, seconds / 2) if chance.random() < 0.5 else 60)
        while time.monotonic() < full_until and not has_ended(running):
            _fill(disk, left)
            time.sleep(0.01)
        (disk / BALLAST).unlink(missing_ok=True)
        done = running.wait()
        case.ended(done, (0, *FAILED))
        counts.add(hurt=1)
        case.finish(is_there=done.code == 0)


def _fill(disk: Path, left: int) -> None:
    """Write until nothing but `left` bytes, and what is less than a page, is free."""
    with (disk / BALLAST).open("ab", buffering=0) as ballast, suppress(OSError):
        while (free := shutil.disk_usage(disk).free - left) > 0:
            ballast.write(bytes(min(free, 1 << 20)))


def read_only(workers: Workers, counts: Counts, total: int, seed: int) -> Iterator[Callable[[], None]]:
    """Something of a run that cannot be written to for a while: bind mounts made read-only, files made immutable."""
    for number in range(total):
        yield lambda number=number: _read_only(workers, counts, f"read-only-{seed}-{number}")


def _read_only(workers: Workers, counts: Counts, name: str) -> None:
    chance = random.Random(name)
    variant = chance.choice(list(VARIANTS.values()))
    case = Case(name, workers, counts, variant, workers.scratch / name)
    _, seconds = workers.reference(variant)
    case.folder.mkdir()
    with immutable(case.folder):
        case.ended(case.start().wait(), (73,))
    running = case.start(f"trainer.on_save_error={chance.choice(('stop', 'continue'))}")
    root = case.folder / "checkpoints"
    running.wait_for(lambda: (root / "LATEST").is_file() or has_ended(running))
    time.sleep(chance.uniform(0, seconds / 3))
    with _unwritable(chance, case.folder):
        time.sleep(chance.uniform(0, seconds / 3))
        while chance.random() < 0.5 and not has_ended(running):
            time.sleep(0.1)
    done = running.wait()
    case.ended(done, (0, *FAILED))
    counts.add(hurt=2)
    case.finish(is_there=done.code == 0)


def _unwritable(chance: random.Random, folder: Path) -> AbstractContextManager[None]:
    root = folder / "checkpoints"
    steps = sorted(root.glob("step-*"))
    what = chance.choice(("mount", "root", "LATEST", "oldest", "metrics"))
    if what == "mount":
        return read_only_mount(root)
    one = {"root": root, "LATEST": root / "LATEST", "oldest": steps[0] if steps else root}
    return immutable(one.get(what, folder / "metrics.jsonl"))


@contextmanager
def immutable(path: Path) -> Iterator[None]:
    """`chattr +i`, which holds for root too; what is gone meanwhile needs nothing."""
    made = subprocess.run(["chattr", "+i", str(path)], capture_output=True, check=False).returncode == 0
    try:
        yield
    finally:
        if made:
            subprocess.run(["chattr", "-i", str(path)], check=True)


@contextmanager
def read_only_mount(path: Path) -> Iterator[None]:
    """A read-only bind mount of a directory on itself; what looks its path up from now on cannot write there."""
    with mounted(path, "--bind", str(path)):
        subprocess.run(["mount", "-o", "remount,ro,bind", str(path)], check=True)
        yield


JOURNALS = ("data=ordered,noauto_da_alloc", "data=writeback,noauto_da_alloc")
"""Mount options of ext4 under which a rename says nothing about the content of the file."""


def power(workers: Workers, counts: Counts, total: int, seed: int) -> Iterator[Callable[[], None]]:
    """Power cuts: the image under a mounted ext4 is copied while a run saves on it, and the copy is mounted.

    What the kernel has not yet sent to the image is lost, as with the power. The run stands still while it is copied
    and has no call to the kernel open then, so that the copy is of one moment.
    """
    for number in range(total):
        yield lambda number=number: _power(workers, counts, f"power-{seed}-{number}")


def _power(workers: Workers, counts: Counts, name: str) -> None:
    chance = random.Random(name)
    variant = chance.choice(list(VARIANTS.values()))
    _, seconds = workers.reference(variant)
    image, copy = workers.scratch / f"{name}.img", workers.scratch / f"{name}.copy"
    with image.open("wb") as stream:
        stream.truncate(160 << 20)
    subprocess.run(["mkfs.ext4", "-q", "-F", "-J", "size=4", str(image)], check=True)
    journal = chance.choice(JOURNALS)
    with mounted(workers.scratch / name, "-o", f"loop,{journal}", str(image)) as disk:
        before = Case(name, workers, counts, variant, disk / "run")
        running = before.start()
        time.sleep(chance.uniform(0, seconds))
        saved = _stopped(running)
        subprocess.run(["cp", "--sparse=always", str(image), str(copy)], check=True)
        kill(running)
    with mounted(workers.scratch / f"{name}-after", "-o", "loop", str(copy)) as disk:
        after = Case(f"{name}, {journal}", workers, counts, variant, disk / "run", saved=saved)
        counts.add(hurt=1)
        if after.folder.is_dir():
            after.check(after.folder, saved)
        elif saved:
            after.breaks(f"the run is gone, {sorted(saved)} were acknowledged")
        after.finish()
    image.unlink()
    copy.unlink()


def _stopped(running: Running) -> set[int]:
    """Stop a process. Returns what it has acknowledged until then."""
    running.signal(signal.SIGSTOP)
    tasks = Path(f"/proc/{running.pid}/task")
    running.wait_for(
        lambda: all((task / "stat").read_text().rpartition(")")[2].split()[0] in "TZ" for task in tasks.iterdir())
    )
    return acknowledged(running.said())
