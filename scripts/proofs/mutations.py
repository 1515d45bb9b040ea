"""Files of a run and words of a command line, mutated from a seed: each ends in success or in one typed message."""

import contextlib
import io
import os
import random
import shutil
import signal
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

from orpo_cli.checkpoints import reading
from orpo_cli.cli.compose import with_overrides
from orpo_cli.cli.main import main
from orpo_cli.cli.sweeps import SWEEP, arguments_to_resume
from orpo_cli.config.load import load_config
from orpo_cli.errors import CheckpointError, OrpoError
from orpo_cli.reporting.metrics_file import MetricsFile
from orpo_cli.runs.finished import is_complete
from orpo_cli.runs.folder import RunFolder
from orpo_cli.runs.resume import changed_settings
from proofs.cases import STEPS

SECONDS_A_CASE = 10

EXIT_CODES = (0, 2, 65, 66, 69, 73, 74)

WORDS = (
    b"null", b"NaN", b"-1", b"1e999", b"[]", b"{}", b'""', b"true", b"\xff\xfe", b"\x00", b"\xed\xa0\x80", b"&a [*a]",
    b"*a", b"<<: *a", b"_target_: os.system", b"hydra:", b"${oc.env:HOME}", b"${.a}", b"../../x", b"9" * 400,
    b"[" * 3000, b"{" * 50, b"a: &a [x,x,x]\nb: &b [*a,*a,*a]\nc: &c [*b,*b,*b]\n", b"!!python/object:os.x",
    b"format_version", b"step-000001", b"\\u0000", b"\\ud800", b"\r\n", b"'", b'"', b"~", b"+", b"=", b"@",
    b"\xe2\x80\xa8",
)  # fmt: skip

OVERRIDES = (
    "lambda=0.2", "seed=3", "optimizer.lr=1e-3", "trainer.max_steps=4", "adapter=lora", "adapter.targets=[q_proj]",
    "trainer.keep_best=nll", "trainer.max_time=1h30m", "data.eval_fraction=0.25", "model=tiny", "scheduler=cosine",
    "trainer.max_tokens=auto", "data.columns.prompt=question", "output_dir=here", "resume=auto", "+lambda=1",
    "~trainer", "hydra.verbose=true", "--cfg=job", "--resolve", "--package=trainer", "-m", "loss=orpo,trl",
)  # fmt: skip


def mutated(content: bytes, chance: random.Random) -> bytes:
    """`content` with one to four things done to it: bytes changed, cut, doubled, moved, or a word put in."""
    made = bytearray(content)
    for _ in range(chance.randint(1, 4)):
        start = chance.randint(0, len(made))
        end = min(len(made), start + chance.choice((1, 2, 8, 40)))
        match chance.randint(0, 5):
            case 0:
                made[start:end] = bytes(chance.randrange(256) for _ in range(end - start))
            case 1:
                del made[start:end]
            case 2:
                made[start:start] = made[start:end]
            case 3:
                made[start:end] = chance.choice(WORDS)
            case 4:
                del made[start:]
            case _:
                piece = made[start:end]
                del made[start:end]
                place = chance.randint(0, len(made))
                made[place:place] = piece
    return bytes(made)


class Target:
    """What is mutated, and what reads it.

    Args:
        golden: the folder of a run that has ended well.
        scratch: where the mutated copy lies.
    """

    def __init__(self, golden: Path, scratch: Path) -> None:
        self.folder, self._scratch = scratch / "run", scratch
        shutil.copytree(golden, self.folder)
        self.last = reading.list_checkpoints(self.folder / "checkpoints")[-1][1]
        there = list(scratch.rglob("*"))
        self._whole = {path: path.read_bytes() for path in there if path.is_file()}
        self._directories = [path for path in there if path.is_dir()]

    def mutate(self, path: Path, chance: random.Random) -> None:
        """Write a mutation of what the file held at first."""
        path.write_bytes(mutated(self._whole[path], chance))

    def restore(self) -> None:
        """All files as they were at first, and no others: what reads a run may also write to it."""
        for path in sorted({*self._scratch.rglob("*")} - {*self._whole, *self._directories}, reverse=True):
            if path.is_dir() and not path.is_symlink():
                path.rmdir()
            else:
                path.unlink()
        for directory in self._directories:
            directory.mkdir(parents=True, exist_ok=True)
        for path, whole in self._whole.items():
            if not path.is_file() or path.read_bytes() != whole:
                path.write_bytes(whole)

    def manifest(self, chance: random.Random) -> None:
        """A mutated manifest, state or LATEST: not a checkpoint, or the same one."""
        path = chance.choice((self.last / "manifest.json", self.last / "state.json", self.last.parent / "LATEST"))
        self.mutate(path, chance)
        with contextlib.suppress(CheckpointError):
            reading.verify(self.last)
        found, _ = reading.latest_checkpoint(self.last.parent)
        if path.name == "state.json" and found == self.last and path.read_bytes() != self._whole[path]:
            raise AssertionError("a changed state.json passes for whole")

    def config(self, chance: random.Random) -> None:
        """A mutated config.yaml, read as a resume reads it."""
        self.mutate(self.folder / "config.yaml", chance)
        folder = RunFolder(self.folder)
        config = load_config(with_overrides(folder.saved_config, ["seed=1"]))
        changed_settings(config, folder)
        is_complete(config, folder)

    def records(self, chance: random.Random) -> None:
        """Mutated records of a run, read as resume, verify and the table of a sweep read them.

        Every fifth case verifies the run, which takes as long as a hundred others.
        """
        names = ("run.json", "metrics.jsonl", "samples.jsonl", "config.yaml")
        self.mutate(self.folder / chance.choice(names), chance)
        folder = RunFolder(self.folder)
        folder.is_finished  # noqa: B018 - reading it is the test
        if chance.random() < 0.2:
            self._run(["verify", str(self.folder)])
        MetricsFile(self.folder, 1, print, folder.metrics_lines, folder.samples_lines, STEPS)
        (self.folder / SWEEP).write_bytes(mutated(b'{"arguments": ["-m", "lambda=0.1,0.2", "model=tiny"]}', chance))
        self._run(["verify", str(self.folder)])
        arguments_to_resume(self.folder)

    def overrides(self, chance: random.Random) -> None:
        """A mutated command line, composed and printed."""
        words = [word.encode() for word in chance.sample(OVERRIDES, chance.randint(1, 4))]
        place = chance.randrange(len(words))
        words[place] = mutated(words[place], chance)
        typed = [os.fsdecode(word.replace(b"\0", b"")) for word in words]
        self._run(["train", "--cfg=job", f"output_dir={self.folder}-new", *typed])

    @staticmethod
    def _run(argv: Sequence[str]) -> None:
        heard = io.StringIO()
        with contextlib.redirect_stdout(heard), contextlib.redirect_stderr(heard):
            code = main(argv)
        if code not in EXIT_CODES or "Traceback" in heard.getvalue():
            raise AssertionError(f"exit code {code}: {heard.getvalue()[-500:]}")


TARGETS: dict[str, Callable[[Target, random.Random], None]] = {
    "manifest": Target.manifest, "config": Target.config, "records": Target.records, "overrides": Target.overrides,
}  # fmt: skip


def fuzz(name: str, golden: Path, scratch: Path, seed: int, seconds: float, only: int | None = None) -> dict[str, Any]:
    """Mutate for some seconds; a case depends on its number and the seed, not on those before it.

    Args:
        only: the number of the one case to try.
    Returns:
        how many cases there were, and number and description of each that ended otherwise.
    """
    target, began, cases = Target(golden, scratch), time.monotonic(), 0
    os.chdir(scratch)
    crashes: dict[str, tuple[int, str]] = {}
    before = signal.signal(signal.SIGALRM, _too_long)
    while time.monotonic() - began < seconds and len(crashes) < 20:
        number = cases if only is None else only
        try:
            signal.alarm(SECONDS_A_CASE)
            TARGETS[name](target, random.Random(f"{name} {seed} {number}"))
        except OrpoError:
            pass
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt):
                raise
            place = traceback.extract_tb(error.__traceback__)[-1]
            where = f"{type(error).__name__} at {Path(place.filename).name}:{place.lineno}"
            crashes.setdefault(where, (number, f"{where}: {str(error)[:300]}"))
            if only is not None:
                traceback.print_exc()
        finally:
            signal.alarm(0)
            target.restore()
        cases += 1
        if only is not None:
            break
    signal.signal(signal.SIGALRM, before)
    return {"cases": cases, "crashes": list(crashes.values())}


def _too_long(_number: int, _frame: FrameType | None) -> None:
    raise TimeoutError(f"more than {SECONDS_A_CASE} s")
