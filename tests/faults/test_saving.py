"""Killed, or refused by the disk, at each point of a save: what was acknowledged stays, and the run ends the same.

A run saves after steps 2, 4 and 6; most points are those of the second save. `step-000002` goes in the third.
"""

import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from fake_run import FakeRun, newest
from tiny_runs import Arguments, Done, Orpo, Running, fails, kill, same_end

from orpo_cli.checkpoints.lookup import LATEST, verify
from orpo_cli.errors import WriteError
from orpo_cli.files import directories

FSYNC = "orpo_cli.files.writing.fsync"
PUBLISHING_FSYNC = "orpo_cli.files.directories.fsync"
SAVING = "orpo_cli.checkpoints.saving"
slow = pytest.mark.slow


def row(name: str, injection: dict[str, Any], *marks: pytest.MarkDecorator) -> Any:
    return pytest.param(injection, id=name, marks=marks)


WRITTEN = ("model", "optimizer", "manifest", "state", "config", "tokenizer", "tokenizer_config", "generation_config")

KILLS = [
    row("2: before any file", kill(f"{SAVING}.save_model", 2), slow),
    row("2: weights written, not the numbers", kill(f"{SAVING}.save_model", 2, after=True), slow),
    row("2: before the optimizer's file", kill(f"{SAVING}.save_optimizer_state", 2), slow),
    row("2: after the optimizer's file", kill(f"{SAVING}.save_optimizer_state", 2, after=True), slow),
    row("2: before the manifest", kill(f"{SAVING}.write_manifest", 2), slow),
    row("2: after the manifest", kill(f"{SAVING}.write_manifest", 2, after=True), slow),
    row("2: fsync of metrics.jsonl", kill(f"{SAVING}.fsync_growing", 2, of="metrics"), slow),
    *(
        row(f"2: fsync of {name}", kill(PUBLISHING_FSYNC, 2, of=rf"/{name}\.(json|safetensors)$"), slow)
        for name in WRITTEN
    ),
    row("2: fsync of the directory", kill(PUBLISHING_FSYNC, 2, of=r"/\.tmp-\w{8}$"), slow),
    row("2: before the rename", kill("os.rename", 1, of=r"step-000004$")),
    row("2: after the rename", kill("os.rename", 1, after=True, of=r"step-000004$"), slow),
    row("2: before the verification", kill(f"{SAVING}.verify", 2), slow),
    row("2: fsync of LATEST", kill(FSYNC, 2, of=r"LATEST$"), slow),
    row("2: before LATEST is replaced", kill("os.replace", 2, of=r"LATEST$")),
    row("2: after LATEST is replaced", kill("os.replace", 2, after=True, of=r"LATEST$"), slow),
    row("2: before the rotation", kill("os.rename", 2, of=r"/step-000002$"), slow),
    row("2: the old one renamed", kill("os.rename", 2, after=True, of=r"/step-000002$"), slow),
    row("2: the old one half removed", kill("os.unlink", 1, of=r"^config.json$"), slow),
    row("2: before the first checkpoint is in place", kill("os.rename", 1, of=r"/step-000002$"), slow),
    row("2: before the model is in place", kill("os.rename", 1, of=r"/model$"), slow),
    row("2: after the model is in place", kill("os.rename", 1, after=True, of=r"/model$"), slow),
    row("2: before run.json says finished", kill("os.replace", 3, of=r"run.json$"), slow),
    row("2: before config.yaml is there", kill("os.replace", 1, of=r"config.yaml$"), slow),
    row("2: before the lock is written", kill("orpo_cli.runs.folder._write_probe", 1), slow),
]

ERRORS = [
    row("5: weights", fails(f"{SAVING}.save_model", 2, "ENOSPC"), slow),
    row("5: optimizer's file", fails(f"{SAVING}.save_optimizer_state", 2, "ENOSPC")),
    row("6: manifest", fails(f"{SAVING}.write_manifest", 2, "ENOSPC"), slow),
    *(
        row(f"9: fsync of {n}", fails(PUBLISHING_FSYNC, 2, "EIO", of=rf"/{n}\.(json|safetensors)$"), slow)
        for n in WRITTEN
    ),
    row("9: fsync of metrics.jsonl", fails("orpo_cli.files.writing.fsync", 2, "EIO", of="metrics"), slow),
    row("9: fsync of the directory", fails(PUBLISHING_FSYNC, 2, "EIO", of=r"/\.tmp-\w{8}$"), slow),
    row("9: fsync of the parent", fails(PUBLISHING_FSYNC, 2, "EIO", of=r"/checkpoints$"), slow),
    row("9: rename", fails("os.rename", 1, "EIO", of=r"step-000004$"), slow),
    row("9: fsync of LATEST", fails(FSYNC, 2, "EIO", of=r"LATEST$"), slow),
    row("9: replacing LATEST", fails("os.replace", 2, "EIO", of=r"LATEST$"), slow),
]


def check_ends_the_same(orpo: Orpo, arguments: Arguments, folder: Path, reference: Path) -> Done:
    done = orpo.run(*arguments(folder, "resume=auto"))
    assert done.code == 0, done.output
    assert same_end(folder, reference)
    assert not list(folder.rglob(".tmp-*"))
    return done


@pytest.mark.parametrize("injection", KILLS)
def test_a_kill_loses_nothing(
    injection: dict[str, Any], orpo: Orpo, arguments: Arguments, reference: Path, tmp_path: Path
) -> None:
    dead = orpo.run(*arguments(tmp_path / "run"), injections=[injection])
    assert dead.code == -signal.SIGKILL, dead.output
    if (tmp_path / "run/checkpoints" / LATEST).exists():
        verify(newest(tmp_path / "run"))
    check_ends_the_same(orpo, arguments, tmp_path / "run", reference)


@pytest.mark.parametrize("injection", ERRORS)
def test_an_error_ends_with_74_and_loses_nothing(
    injection: dict[str, Any], orpo: Orpo, arguments: Arguments, reference: Path, tmp_path: Path
) -> None:
    failed = orpo.run(*arguments(tmp_path / "run"), injections=[injection])
    assert failed.code == 74, failed.output
    assert "Traceback" not in failed.output
    assert "not written" in failed.output
    assert newest(tmp_path / "run").name == "step-000002"
    verify(newest(tmp_path / "run"))
    assert not list((tmp_path / "run").rglob(".tmp-*"))
    check_ends_the_same(orpo, arguments, tmp_path / "run", reference)


@pytest.mark.parametrize(
    "injection",
    [
        row("5: a file", fails(f"{SAVING}.save_optimizer_state", 2, "ENOSPC")),
        row("9: fsync of metrics.jsonl", fails(FSYNC, 2, "EIO", of="metrics"), slow),
        row("9: fsync of LATEST", fails(FSYNC, 2, "EIO", of=r"LATEST$"), slow),
    ],
)
def test_a_run_may_go_on_without_a_checkpoint(
    injection: dict[str, Any], orpo: Orpo, arguments: Arguments, reference: Path, tmp_path: Path
) -> None:
    done = orpo.run(*arguments(tmp_path / "run", "trainer.on_save_error=continue"), injections=[injection])
    assert done.code == 0, done.output
    assert "step 4" in done.output
    assert "not written" in done.output
    assert same_end(tmp_path / "run", reference)


def test_2_the_old_one_cannot_be_removed(orpo: Orpo, arguments: Arguments, reference: Path, tmp_path: Path) -> None:
    stuck = fails("os.rename", 2, "EBUSY", of=r"/step-000002$")
    done = orpo.run(*arguments(tmp_path / "run"), injections=[stuck])
    assert done.code == 0, done.output
    assert same_end(tmp_path / "run", reference)


def test_2_killed_before_the_last_latest(orpo: Orpo, arguments: Arguments, reference: Path, tmp_path: Path) -> None:
    """No step is left, so that no later checkpoint replaces LATEST."""
    folder = tmp_path / "run"
    killed = orpo.run(*arguments(folder), injections=[kill("os.replace", 3, of=r"LATEST$")])
    assert killed.code == -signal.SIGKILL
    assert (folder / "checkpoints" / LATEST).read_text(encoding="utf-8") == "step-000004\n"
    assert orpo.run("resume", str(folder)).code == 0
    assert same_end(folder, reference)
    verified = orpo.run("verify", str(folder))
    assert verified.code == 0, verified.output


def steps_of(output: str) -> list[int]:
    """That a run took itself, not those it went on from."""
    return [int(step) for step in re.findall(r"^step (\d+)/6 ", output, re.MULTILINE)]


def goes_on(output: str) -> bool:
    """Whether a run took steps, and not from the beginning."""
    return steps_of(output)[:1] > [1]


def killed_after(step: int, chance: random.Random, run: Running, folder: Path) -> Done:
    """SIGKILL a part of about a step later; from step 3 on a checkpoint is there.

    A run that has less to do ends by itself.
    """
    started, latest = time.monotonic(), folder / "checkpoints" / LATEST
    run.wait_for(lambda: steps_of(run.said())[-1:] >= [step] or (folder / "model").exists())
    run.wait_for(lambda: step < 3 or latest.exists())
    time.sleep((time.monotonic() - started) * chance.uniform(0, 0.08))
    run.signal(signal.SIGKILL)
    return run.wait()


@pytest.mark.parametrize("seed", [pytest.param(seed, marks=() if seed < 1 else slow) for seed in range(10)])
def test_1_killed_at_random_until_it_is_done(
    seed: int, orpo: Orpo, arguments: Arguments, reference: Path, tmp_path: Path
) -> None:
    """After step 3 or 4 in any case: two or more steps then depend on what the checkpoint holds.

    Where the signal came too late for that, another run is hurt.
    """
    chance = random.Random(seed)
    for folder in (tmp_path / f"run-{number}" for number in range(10)):
        kills = chance.choices(range(1, 6), k=chance.randint(0, 1))
        outputs = []
        for step in sorted([*kills, chance.choice((3, 4))]):
            dead = killed_after(step, chance, orpo.start(*arguments(folder, "resume=auto")), folder)
            assert dead.code in (0, -signal.SIGKILL), dead.output
            outputs.append(dead.output)
        outputs.append(check_ends_the_same(orpo, arguments, folder, reference).output)
        if any(goes_on(output) for output in outputs):
            return
    pytest.fail("no kill left a checkpoint to go on from")


def test_1_killed_with_dropout(orpo: Orpo, arguments: Arguments, tmp_path: Path) -> None:
    lora = ("adapter=lora", "adapter.dropout=0.2")
    whole = orpo.run(*arguments(tmp_path / "whole", *lora))
    assert whole.code == 0, whole.output
    died = orpo.run(*arguments(tmp_path / "run", *lora), injections=[kill("orpo_cli.training.run.begin_checkpoint", 3)])
    assert died.code == -signal.SIGKILL
    check_ends_the_same(
        orpo, lambda folder, *more: arguments(folder, *lora, *more), tmp_path / "run", tmp_path / "whole"
    )


def test_2_the_name_of_the_first_checkpoint_is_on_the_disk_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A power cut may lose the name of a directory whose parent was not flushed, with all that is in it."""
    flushed: list[Path] = []
    monkeypatch.setattr(directories, "fsync", flushed.append)
    draft = directories.StagedDirectory(tmp_path / "checkpoints" / "step-000001", 0)
    draft.publish()
    assert flushed == [tmp_path, draft.path, tmp_path / "checkpoints"]


def test_9_no_file_whose_fsync_failed_is_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original, calls = os.fsync, 0
    failed_at: int
    doubtful: list[int] = []  # kept open, so that no other file gets the number of its inode

    def fsync(handle: int) -> None:
        nonlocal calls
        calls += 1
        assert not any(os.path.samestat(os.fstat(handle), os.fstat(failed)) for failed in doubtful)
        if calls == failed_at:
            if not os.path.isdir(f"/proc/self/fd/{handle}"):  # noqa: PTH112 - a descriptor
                doubtful.append(os.dup(handle))
            raise OSError(5, os.strerror(5))
        original(handle)

    monkeypatch.setattr(os, "fsync", fsync)
    for failed_at in range(1, 11):
        run = FakeRun(tmp_path / str(failed_at))
        calls = -1000
        run.save(2)
        calls = 0
        with pytest.raises(WriteError, match="Input/output error"):
            run.save(4)
        replaced = failed_at == 10  # LATEST has its new content, but that may not be on the disk
        assert newest(run.folder).name == ("step-000004" if replaced else "step-000002")
        verify(newest(run.folder))
        run.save(6)
        assert newest(run.folder).name == "step-000006"
        assert (run.folder / "metrics.jsonl").read_text(encoding="utf-8") == "2\n4\n6\n"
        for handle in doubtful:
            os.close(handle)
        doubtful.clear()
    assert calls >= 20


def test_2_what_could_not_be_replaced_is_still_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = FakeRun(tmp_path)
    before = run.save(2)
    rename = Path.rename

    def fails_into_place(path: Path, target: Path) -> Path:
        if target == before and not (path / "step-000002").exists() and path.parent == before.parent:
            raise OSError(5, os.strerror(5))
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", fails_into_place)
    with pytest.raises(WriteError):
        run.save(2)
    verify(before)
    assert not list(tmp_path.rglob(".tmp-*"))


def test_2_killed_between_moving_aside_and_replacing(tmp_path: Path) -> None:
    run = FakeRun(tmp_path)
    before = run.save(2)
    with directories._moved_aside(before, directories._REPLACED):
        (aside,) = tmp_path.rglob(".tmp-replaced-*/step-000002")
        shutil.copytree(aside.parent, aside.parent.with_name(".tmp-replaced-by-a-dead-run"))
        before.mkdir()
    directories.remove(before)
    directories.remove_leftovers(before.parent)
    verify(before)
    assert not list(tmp_path.rglob(".tmp-*"))


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("strace") is None, reason="needs strace")
def test_9_the_system_call_itself_fails(orpo: Orpo, arguments: Arguments, reference: Path, tmp_path: Path) -> None:
    failed = subprocess.run(
        [
            *("strace", "-f", "-qq", "-o", "/dev/null", "-e", "trace=fsync"),
            *("-e", "inject=fsync:error=EIO:when=24", sys.executable, "-m", "orpo_cli"),
            *arguments(tmp_path / "run"),
        ],
        capture_output=True, text=True, timeout=300, check=False,
        env=os.environ | {"ORPO_CACHE": str(orpo.scratch / "cache")},
    )  # fmt: skip
    if failed.returncode == 0:
        pytest.skip("no thread of the run calls fsync 24 times")
    assert failed.returncode == 74, failed.stderr
    assert "Input/output error" in failed.stderr
    verify(newest(tmp_path / "run"))
    check_ends_the_same(orpo, arguments, tmp_path / "run", reference)
