"""A run that is hurt and goes on, again and again, and the promises that are checked each time it ends."""

import re
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tiny_runs import Done, Orpo, Running, same_end, write_pairs

from orpo_cli.checkpoints import lookup
from orpo_cli.errors import CheckpointError

STEPS = 16

VARIANTS: dict[str, tuple[str, ...]] = {
    "full": ("trainer.precision=fp32", "trainer.save_every=1"),
    "full, bf16, accumulated, padded": (
        "trainer.precision=bf16", "trainer.max_tokens=48", "trainer.layout=padded", "trainer.save_every=1",
        "trainer.keep_last=1", "trainer.keep_best=nll",
    ),
    "lora, dropout": ("adapter=lora", "adapter.dropout=0.1", "trainer.precision=fp32", "trainer.save_every=1"),
    "lora, dropout, bf16, accumulated, merged": (
        "adapter=lora", "adapter.dropout=0.1", "adapter.merge=true", "trainer.precision=bf16",
        "trainer.max_tokens=64", "trainer.save_every=2", "trainer.keep_best=accuracy",
    ),
    "full, muon": ("optimizer=muon", "trainer.save_every=2", "trainer.eval_every=4"),
}  # fmt: skip
"""Runs that differ in what a resume has to restore."""

FAILED = (73, 74)
"""Exit codes of a run whose disk did not do what it was asked for."""


@dataclass
class Counts:
    """What a proof has come to.

    Args:
        hurt: injuries; stopped: runs that they ended.
        acknowledged: saves; lost: of those, before rotation would have removed them.
        resumes: runs that went on to their end; identical: with the bytes of an undisturbed one.
        cases: that hurt no run.
    """

    hurt: int = 0
    stopped: int = 0
    acknowledged: int = 0
    lost: int = 0
    resumes: int = 0
    identical: int = 0
    cases: int = 0
    broken: list[str] = field(default_factory=list)
    _lock: Any = field(default_factory=threading.Lock, repr=False)

    def add(self, **numbers: int) -> None:
        with self._lock:
            for name, number in numbers.items():
                setattr(self, name, getattr(self, name) + number)

    def breaks(self, what: str) -> None:
        """A promise that does not hold."""
        with self._lock:
            self.broken.append(what)
            print(f"BROKEN  {what}", flush=True)

    def __iadd__(self, other: "Counts") -> "Counts":
        for name in ("hurt", "stopped", "acknowledged", "lost", "resumes", "identical", "cases", "broken"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        return self


class Workers:
    """Threads that each have a warm process to start runs in.

    Args:
        scratch: where everything is written; on a disk, since /dev/shm has no fsync to speak of.
    """

    def __init__(self, scratch: Path, count: int) -> None:
        self.scratch = scratch
        self._own = threading.local()
        self._warm: list[Orpo] = []
        self._threads = ThreadPoolExecutor(count, "torture", self._begin)
        self._references: dict[tuple[str, ...], Future[tuple[Path, float]]] = {}
        self._preferences = write_pairs(scratch / "preferences.jsonl")
        self.environment = {"ORPO_CACHE": str(scratch / "cache")}  # one for all: an adapter names its base model's file

    def _begin(self) -> None:
        folder = self.scratch / threading.current_thread().name
        folder.mkdir()
        self._own.orpo = Orpo(folder)
        self._warm.append(self._own.orpo)

    @property
    def orpo(self) -> Orpo:
        """The calling thread's."""
        warm: Orpo = self._own.orpo
        return warm

    def submit(self, task: Callable[[], None], counts: Counts, name: str) -> "Future[None]":
        def guarded() -> None:
            try:
                task()
            except Exception as error:
                counts.breaks(f"{name}: {type(error).__name__}: {error}")

        return self._threads.submit(guarded)

    def arguments(self, variant: Sequence[str]) -> list[str]:
        """What to type for a run, but for its folder."""
        return [
            "train", "model=tiny", f"data={self._preferences}", "data.eval_fraction=0.25", "trainer.pairs_per_step=4",
            f"trainer.max_steps={STEPS}", "trainer.eval_every=3", "trainer.sample_tokens=4", "optimizer.lr=1e-3",
            *variant,
        ]  # fmt: skip

    def reference(self, variant: tuple[str, ...]) -> tuple[Path, float]:
        """The folder of a run that nothing happens to, and the seconds it took; made once."""
        return self._references[variant].result()

    def make_references(self, counts: Counts) -> None:
        for number, variant in enumerate(VARIANTS.values()):
            self._references[variant] = self._threads.submit(self._reference, variant, f"reference-{number}")
        for name, made in zip(VARIANTS, self._references.values(), strict=True):
            if made.exception() is not None:
                counts.breaks(f"{name}, undisturbed: {made.exception()}")

    def _reference(self, variant: tuple[str, ...], name: str) -> tuple[Path, float]:
        folder, started = self.scratch / name, time.monotonic()
        done = self.orpo.run(*self.arguments(variant), f"output_dir={folder}", environment=self.environment)
        if done.code != 0:
            raise RuntimeError(done.output)
        return folder, time.monotonic() - started

    def close(self) -> None:
        self._threads.shutdown(cancel_futures=True)
        for orpo in self._warm:
            orpo.close()


@dataclass
class Case:
    """One run that is hurt and goes on until it has taken all its steps.

    Args:
        name: how to find it again: proof, seed and number.
        folder: its output_dir.
        saved: steps whose checkpoints it has acknowledged.
    """

    name: str
    workers: Workers
    counts: Counts
    variant: tuple[str, ...]
    folder: Path
    saved: set[int] = field(default_factory=set)

    def start(self, *overrides: str, environment: dict[str, str] | None = None) -> Running:
        arguments = [*self.workers.arguments(self.variant), f"output_dir={self.folder}", "resume=auto", *overrides]
        return self.workers.orpo.start(*arguments, environment=self.workers.environment | (environment or {}))

    def ended(self, done: Done, allowed: Sequence[int]) -> None:
        """Check what a run promises whenever it ends, and however."""
        if done.code not in allowed or "Traceback" in done.output:
            self.breaks(f"exit code {done.code}, expected {' or '.join(map(str, allowed))}", done.output[-3000:])
        again = [int(step) for step in re.findall(rf"^step (\d+)/{STEPS} ", done.output, re.M)]
        if self.saved and again and again[0] <= max(self.saved):
            self.breaks(f"step {again[0]} is taken again, but {max(self.saved)} was saved", done.output[-3000:])
        self.saved |= acknowledged(done.output)
        self.counts.add(stopped=int(done.code != 0))
        self.check(self.folder, self.saved)

    def check(self, folder: Path, saved: set[int]) -> None:
        """Every acknowledged checkpoint is whole, or as many newer ones are as are kept; LATEST and BEST name one."""
        keep_last = next((int(word.split("=")[1]) for word in self.variant if "keep_last" in word), 2)
        root, whole, faults = folder / "checkpoints", set(), []
        for step, path in lookup.list_checkpoints(root):
            try:
                lookup.verify(path)
                whole.add(step)
            except CheckpointError as error:
                faults.append(str(error))
        lost = [step for step in saved - whole if len([one for one in whole if one > step]) < keep_last]
        for name in ("LATEST", "BEST"):
            pointer = root / name
            if name == "LATEST" and saved and not pointer.is_file():
                faults.append(f"{pointer}: is missing")
            if pointer.is_file() and pointer.read_text() not in {f"step-{step:06d}\n" for step in whole}:
                faults.append(f"{pointer}: says {pointer.read_text()!r}, {sorted(whole)} are whole")
        if saved and whole and max(whole) < max(saved):
            faults.append(f"{root}: the newest is {max(whole)}, {max(saved)} was acknowledged")
        self.counts.add(lost=len(lost))
        if lost or faults:
            self.breaks(f"saves lost: {lost}; {'; '.join(faults)}")

    def finish(self, is_there: bool = False) -> None:
        """Let the run go on to its end; it must be the end of the one that nothing happened to.

        Args:
            is_there: it has come to its end already.
        """
        if not is_there:
            self.ended(self.start().wait(), (0,))
        reference, _ = self.workers.reference(self.variant)
        same = same_end(self.folder, reference)
        samples = [(folder / "samples.jsonl").read_bytes() for folder in (self.folder, reference)]
        self.counts.add(resumes=1, identical=int(same and samples[0] == samples[1]), acknowledged=len(self.saved))
        if not same or samples[0] != samples[1]:
            self.breaks("the end is not that of the run that nothing happened to")

    def breaks(self, what: str, output: str = "") -> None:
        self.counts.breaks(f"{self.name}: {what} ({self.folder})\n{output}".rstrip())


def acknowledged(text: str) -> set[int]:
    """Steps whose checkpoint the output or the log of a run says is saved."""
    return {int(step) for step in re.findall(r"^checkpoint of step (\d+): .*\n", text, re.M)}


def has_ended(running: Running) -> bool:
    """Whether the process waits only for its exit code to be read."""
    try:
        return Path(f"/proc/{running.pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def allowed(*command: str) -> str | None:
    """None where a command can be run here, else why not."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError as error:
        return f"{command[0]}: {error.strerror}"
    return None if done.returncode == 0 else f"{' '.join(command[:3])}: {done.stderr.strip()}"


@contextmanager
def mounted(at: Path, *arguments: str) -> Iterator[Path]:
    """`mount ARGUMENTS at`, for as long as the block runs."""
    at.mkdir(parents=True, exist_ok=True)
    subprocess.run(["mount", *arguments, str(at)], check=True, capture_output=True, text=True)
    try:
        yield at
    finally:
        subprocess.run(["umount", "--lazy", str(at)], check=True)


def kill(running: Running) -> Done:
    running.signal(signal.SIGKILL)
    return running.wait()
