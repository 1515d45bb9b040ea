"""Disks that are full, small or read-only: refused with 73 before anything is loaded, or 74 with nothing lost."""

import contextlib
import os
import re
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from fake_run import FakeRun, newest
from tiny_runs import Arguments, Orpo, at, kill, same_end

from orpo_cli.checkpoints.disk_space import check_space, checkpoint_bytes, model_bytes
from orpo_cli.checkpoints.lookup import LATEST, verify
from orpo_cli.config.schema import RunConfig
from orpo_cli.errors import OutputError, WriteError
from orpo_cli.files import writing
from orpo_cli.files.untrusted import read_json
from orpo_cli.files.writing import write_json
from orpo_cli.models.builtin import builtin_model
from orpo_cli.models.files import ModelFiles
from orpo_cli.runs.folder import RunFolder

MEGABYTE = 1 << 20
Folder = Callable[[Path], "contextlib.AbstractContextManager[Path]"]


def privileged(*command: str | Path) -> None:
    """Run what only root may; skip the test where it may not."""
    try:
        subprocess.run([str(word) for word in command], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"{command[0]} is not allowed here: {error}")


@contextlib.contextmanager
def small_disk(folder: Path, size: int) -> Iterator[Path]:
    folder.mkdir()
    privileged("mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", folder)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


@contextlib.contextmanager
def full_disk(folder: Path) -> Iterator[Path]:
    with small_disk(folder, MEGABYTE) as disk:
        (disk / "empty").mkdir()
        fill(disk, leave=0)
        yield disk / "empty"


@contextlib.contextmanager
def tiny_disk(folder: Path) -> Iterator[Path]:
    with small_disk(folder, 2 * MEGABYTE) as disk:
        yield disk


@contextlib.contextmanager
def read_only(folder: Path) -> Iterator[Path]:
    folder.mkdir()
    privileged("mount", "--bind", folder, folder)
    try:
        privileged("mount", "-o", "remount,ro,bind", folder)
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


@contextlib.contextmanager
def immutable(folder: Path) -> Iterator[Path]:
    folder.mkdir()
    privileged("chattr", "+i", folder)
    try:
        yield folder
    finally:
        subprocess.run(["chattr", "-i", str(folder)], check=True)


def fill(disk: Path, leave: int) -> Path:
    """A file that leaves so many bytes free."""
    ballast = disk / "ballast"
    with contextlib.suppress(OSError), ballast.open("ab") as stream:
        os.posix_fallocate(stream.fileno(), 0, shutil.disk_usage(disk).free - leave)
    return ballast


@pytest.mark.parametrize(
    ("settings", "steps", "most"),
    [
        (["trainer.save_every=null"], 50, "1 checkpoint and"),
        ([], 100, "1 checkpoint and"),
        ([], 101, "2 checkpoints and"),
        ([], 1000, "3 checkpoints and"),
        (["trainer.save_every=5"], 10, "2 checkpoints and"),
        (
            ["trainer.save_every=5", "trainer.keep_last=1", "trainer.eval_every=5", "trainer.keep_best=nll"],
            100,
            "3 checkp",
        ),
        (["trainer.save_every=5", "trainer.keep_last=4"], 100, "5 checkpoints and"),
    ],
)
def test_7_the_most_checkpoints_there_will_be_at_once(
    settings: list[str],
    steps: int,
    most: str,
    compose_config: Callable[..., RunConfig],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """One more than are kept, for one is written before one goes; but not more than the run writes."""
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=0))
    with pytest.raises(OutputError, match=most):
        check_space(compose_config("model=tiny", *settings), ModelFiles(tmp_path, "", ""), tmp_path, steps)


REFUSED: dict[str, tuple[Folder, str]] = {
    "7: too small": (tiny_disk, "3 checkpoints and the model will need"),
    "7: full": (full_disk, "No space left on device"),
    "8: mounted read-only": (read_only, "Read-only file system"),
    "8: immutable": (immutable, "Operation not permitted"),
}


@pytest.mark.parametrize(("prepared", "message"), REFUSED.values(), ids=REFUSED)
@pytest.mark.parametrize(
    "below", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["the folder itself", "a folder in it"]
)
def test_refused_before_the_model_is_loaded(
    prepared: Folder, message: str, below: bool, orpo: Orpo, arguments: Arguments, tmp_path: Path
) -> None:
    with prepared(tmp_path / "disk") as disk:
        before = sorted(disk.rglob("*"))
        folder = disk / "runs/run" if below else disk
        loads = kill("orpo_cli.models.loading.load_model", 1)
        done = orpo.run(*arguments(folder), injections=[loads])
        assert done.code == 73, done.output
        assert message in done.output.replace("\n", " ")
        left = {path for path in disk.rglob("*") if path.is_file()} - set(before)
        assert {path.name for path in left} <= {"run.lock"}


def test_7_bytes_needed_and_free_are_said(orpo: Orpo, arguments: Arguments, tmp_path: Path) -> None:
    with tiny_disk(tmp_path / "disk") as disk:
        done = orpo.run(*arguments(disk / "run"))
    numbers = 90_752  # of the model; three checkpoints with both moments of AdamW, and what is beside in each
    beside = sum(path.stat().st_size for path in builtin_model("tiny", lambda *_: None).glob("*.j*"))
    needed = 3 * (12 * numbers + beside) + 4 * numbers + beside
    assert f"will need {needed:,} bytes" in done.output.replace("\n", " ")


def test_7_what_is_needed_is_what_is_written(reference: Path) -> None:
    """To a twentieth: manifest and state are beside, and JSON may be laid out in another way."""
    model, config = ModelFiles(builtin_model("tiny", lambda *_: None), "", ""), RunFolder(reference).config
    for expected, directory in ((checkpoint_bytes, "checkpoints/step-000006"), (model_bytes, "model")):
        written = sum(path.stat().st_size for path in (reference / directory).iterdir())
        assert expected(config, model) == pytest.approx(written, rel=0.05)


def test_5_the_disk_fills_up(orpo: Orpo, arguments: Arguments, reference: Path, tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", 128 * MEGABYTE) as disk:
        folder = disk / "run"
        run = orpo.start(*arguments(folder), injections=[at("orpo_cli.training.run.begin_checkpoint", 2, "SIGSTOP")])
        run.wait_stopped()
        ballast = fill(disk, leave=MEGABYTE // 2)
        run.signal(signal.SIGCONT)
        failed = run.wait()
        assert failed.code == 74, failed.output
        said = failed.output.replace("\n", "")
        assert re.search(rf"{folder}/checkpoints/step-000004: not written: .*No space left on device", said)
        assert re.search(r"about 1,08\d,\d+ bytes are needed, \d\d\d,\d+ are free", said)
        verify(newest(folder))
        assert not list(folder.rglob(".tmp-*"))
        ballast.unlink()
        done = orpo.run(*arguments(folder, "resume=auto"))
        assert done.code == 0, done.output
        assert same_end(folder, reference)


@pytest.mark.slow
def test_5_the_disk_fills_up_and_is_freed(orpo: Orpo, arguments: Arguments, reference: Path, tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", 128 * MEGABYTE) as disk:
        folder, save = disk / "run", "orpo_cli.training.run.begin_checkpoint"
        run = orpo.start(
            *arguments(folder, "trainer.on_save_error=continue"),
            injections=[at(save, 2, "SIGSTOP"), at(save, 3, "SIGSTOP")],
        )
        run.wait_stopped()
        ballast = fill(disk, leave=MEGABYTE // 2)
        run.signal(signal.SIGCONT)
        run.wait_for(lambda: "step 4" in run.said() and "not written" in run.said())
        run.wait_stopped()
        ballast.unlink()
        run.signal(signal.SIGCONT)
        done = run.wait()
        assert done.code == 0, done.output
        assert same_end(folder, reference)


@pytest.mark.slow
def test_5_a_file_may_not_grow(orpo: Orpo, arguments: Arguments, reference: Path, tmp_path: Path) -> None:
    failed = orpo.run(*arguments(tmp_path / "run"), limits={"RLIMIT_FSIZE": MEGABYTE // 2})
    assert failed.code == 74, failed.output
    assert "File too large" in failed.output.replace("\n", " ")
    assert not list((tmp_path / "run/checkpoints").iterdir())
    done = orpo.run(*arguments(tmp_path / "run", "resume=auto"))
    assert done.code == 0, done.output
    assert same_end(tmp_path / "run", reference)


def test_6_json_on_a_full_disk(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", MEGABYTE) as disk:
        run = FakeRun(disk)
        before = run.save(2)
        write_json(disk / "run.json", {"finished": False})
        fill(disk, leave=0)
        with pytest.raises(OSError, match="No space left on device"):
            write_json(disk / "run.json", {"finished": True})
        assert read_json(disk / "run.json") == {"finished": False}
        with pytest.raises(WriteError, match="No space left on device"):
            writing.point(run.root / LATEST, "step-000004")
        assert newest(disk) == before


@pytest.mark.parametrize("pages", range(8))
def test_6_each_file_of_a_checkpoint_on_a_full_disk(pages: int, tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", MEGABYTE) as disk:
        run = FakeRun(disk)
        before = run.save(2)
        ballast = fill(disk, leave=pages * os.sysconf("SC_PAGESIZE"))
        for step in (4, 6):
            with contextlib.suppress(WriteError):
                before = run.save(step)
            assert newest(disk) == before
            verify(before)
            assert not list(disk.rglob(".tmp-*"))
        ballast.unlink()
        verify(run.save(8))


@pytest.mark.parametrize("size", [300_000, 500_000], ids=["5: the model does not fit", "5: the tokens do not fit"])
def test_a_full_cache_is_named(size: int, orpo: Orpo, tmp_path: Path) -> None:
    with small_disk(tmp_path / "cache", size) as cache:
        done = orpo.run(
            "train", "model=tiny", f"output_dir={tmp_path / 'run'}", environment={"ORPO_CACHE": str(cache)}
        )  # fmt: skip
        assert done.code == 74, done.output
        last = done.output.splitlines()[-1]
        assert last.startswith(f"orpo: error: {cache}: the cache cannot be written: ")
        assert "No space left on device" in last
        assert last.endswith("; ORPO_CACHE=DIR moves it")
        assert [path for path in cache.rglob("*") if path.name.startswith(".tmp-")] == []
    assert not (tmp_path / "run").exists()
