"""Folders that are links, hold other things, or belong to another run: nothing of theirs is touched."""

import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fake_run import FakeRun
from tiny_runs import Arguments, Orpo, at, digests, gone_back, same_end

from orpo_cli.checkpoints.lookup import latest_checkpoint, verify
from orpo_cli.errors import OutputError
from orpo_cli.runs import folder as folders
from orpo_cli.runs.folder import RunFolder

slow = pytest.mark.slow


def elsewhere(tmp_path: Path) -> Path:
    """A folder that no run may touch."""
    folder = tmp_path / "elsewhere"
    (folder / "inner").mkdir(parents=True)
    (folder / "inner/notes.txt").write_text("mine", encoding="utf-8")
    return folder


def old_is_a_link(root: Path, target: Path) -> None:
    (root / "step-000002").symlink_to(target)


def new_is_a_link(root: Path, target: Path) -> None:
    (root / "step-000006").symlink_to(target)


def new_is_a_dangling_link(root: Path, target: Path) -> None:
    (root / "step-000006").symlink_to(target / "nowhere")


def new_is_a_file(root: Path, _target: Path) -> None:
    (root / "step-000006").write_text("", encoding="utf-8")


def link_inside(root: Path, target: Path) -> None:
    (root / "step-000003/link").symlink_to(target)


def leftover_is_a_link(root: Path, target: Path) -> None:
    (root / ".tmp-abc").symlink_to(target)


def leftover_of_the_pointer_is_a_link(root: Path, target: Path) -> None:
    (root / ".tmp-BEST").symlink_to(target / "inner/notes.txt")


LINKS: dict[str, Callable[[Path, Path], None]] = {
    f"44: {laid.__name__.replace('_', ' ')}": laid
    for laid in (
        old_is_a_link, new_is_a_link, new_is_a_dangling_link, new_is_a_file, link_inside, leftover_is_a_link,
        leftover_of_the_pointer_is_a_link,
    )
}  # fmt: skip


@pytest.mark.parametrize("laid", LINKS.values(), ids=LINKS)
def test_saving_and_rotating_follow_no_link(laid: Callable[[Path, Path], None], tmp_path: Path) -> None:
    target = elsewhere(tmp_path)
    before = digests(target)
    run = FakeRun(tmp_path / "run", keep_last=1)
    run.save(3)
    laid(run.root, target)
    for step in (4, 5, 6, 7):
        verify(run.save(step))
    assert digests(target) == before
    assert latest_checkpoint(run.root) == (run.root / "step-000007", [])


def test_44_an_output_dir_that_is_a_dangling_link_is_refused(orpo: Orpo, arguments: Arguments, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    done = orpo.run(*arguments(tmp_path / "link"))
    assert done.code == 73, done.output
    assert [path.name for path in tmp_path.iterdir()] == ["link"]


def test_44_an_output_dir_that_is_a_link_is_resolved_once(
    orpo: Orpo, arguments: Arguments, reference: Path, tmp_path: Path
) -> None:
    real = tmp_path / "real"
    (tmp_path / "link").symlink_to(real)
    real.mkdir()
    done = orpo.run(*arguments(tmp_path / "link"))
    assert done.code == 0, done.output
    assert f"model: {real}/model" in done.output.replace("\n", "")
    assert same_end(real, reference)


@slow
def test_44_checkpoints_elsewhere_and_a_leftover_that_is_a_link(
    orpo: Orpo, arguments: Arguments, reference: Path, tmp_path: Path
) -> None:
    target, folder = elsewhere(tmp_path), tmp_path / "run"
    before = digests(target)
    killed = orpo.run(*arguments(folder), injections=[at("orpo_cli.training.run.begin_checkpoint", 3, "SIGKILL")])
    assert killed.code == -signal.SIGKILL
    (folder / "checkpoints").rename(tmp_path / "larger disk")
    (folder / "checkpoints").symlink_to(tmp_path / "larger disk")
    (folder / "checkpoints/.tmp-x").symlink_to(target)
    (folder / ".tmp-y").symlink_to(target)
    done = orpo.run(*arguments(folder, "resume=auto"))
    assert done.code == 0, done.output
    assert same_end(folder, reference)
    assert digests(target) == before
    assert not list(tmp_path.rglob(".tmp-*"))


NOT_EMPTY = {"45: a file": "notes.txt", "45: a hidden file": ".git/config", "45: a model": "model/config.json"}


@pytest.mark.parametrize("resume", [(), pytest.param(("resume=auto",), marks=slow)], ids=["new", "resume=auto"])
@pytest.mark.parametrize("name", NOT_EMPTY.values(), ids=NOT_EMPTY)
def test_a_folder_of_other_things_is_refused_and_left(
    name: str, resume: tuple[str, ...], orpo: Orpo, arguments: Arguments, tmp_path: Path
) -> None:
    path = tmp_path / "run" / name
    path.parent.mkdir(parents=True)
    path.write_text("mine", encoding="utf-8")
    before = digests(tmp_path / "run")
    done = orpo.run(*arguments(tmp_path / "run", *resume))
    assert done.code == 73, done.output
    assert f"is not empty (it holds {Path(name).parts[0]})" in done.output.replace("\n", " ")
    assert digests(tmp_path / "run") == before


@pytest.mark.parametrize(
    "resume", [pytest.param((), id="46: new"), pytest.param(("resume=auto",), id="46: resume=auto", marks=slow)]
)
def test_a_second_run_is_refused_and_named_the_first(
    resume: tuple[str, ...], orpo: Orpo, arguments: Arguments, reference: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    first = orpo.start(
        *arguments(folder), injections=[at("orpo_cli.training.run.begin_checkpoint", 2, "SIGSTOP")]
    )  # fmt: skip
    first.wait_stopped()
    second = orpo.run(*arguments(folder, *resume))
    assert second.code == 73, second.output
    assert f"another run works in this folder (pid {first.pid} on " in second.output.replace("\n", " ")
    first.signal(signal.SIGKILL)
    first.wait()
    done = orpo.run(*arguments(folder, "resume=auto"))  # nobody holds the lock any more
    assert done.code == 0, done.output
    assert same_end(folder, reference)


def test_a_run_does_not_begin_in_a_folder_that_is_being_verified(tmp_path: Path) -> None:
    (tmp_path / "run.lock").touch()
    with (tmp_path / "run.lock").open() as lock:
        folders.fcntl.flock(lock, folders.fcntl.LOCK_SH)
        with pytest.raises(OutputError, match="or orpo verify reads it; try again later"):
            RunFolder(tmp_path)._lock(resuming=True)


def test_46_a_lock_that_is_no_text(orpo: Orpo, reference: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(reference, tmp_path / "run"))
    (folder / "run.lock").write_bytes(b"\xff\xfe")
    with (folder / "run.lock").open("rb") as lock:
        folders.fcntl.flock(lock, folders.fcntl.LOCK_EX)
        for argv in (["verify", str(folder)], ["train", "model=tiny", f"output_dir={folder}"]):
            done = orpo.run(*argv)
            assert done.code == 73
            assert "another run works in this folder" in " ".join(done.output.split())


def test_46_both_at_once(orpo: Orpo, arguments: Arguments, reference: Path, tmp_path: Path) -> None:
    started = [orpo.start(*arguments(tmp_path / "run")) for _ in range(3)]
    done = [run.wait() for run in started]
    assert sorted(one.code for one in done) == [0, 73, 73], [one.output for one in done]
    assert same_end(tmp_path / "run", reference)


def test_46_a_lock_that_was_removed_after_it_was_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that ends before it has begun removes its lock, which another may have opened just before."""
    flock = folders.fcntl.flock

    def removed_first(lock: Any, how: int) -> None:
        (tmp_path / "run.lock").unlink()
        flock(lock, how)

    monkeypatch.setattr(folders.fcntl, "flock", removed_first)
    with pytest.raises(OutputError, match="at the same time"):
        RunFolder(tmp_path)._lock(resuming=False)


def pipe(path: Path) -> None:
    path.unlink(missing_ok=True)
    os.mkfifo(path)


def directory(path: Path) -> None:
    path.unlink(missing_ok=True)
    path.mkdir()


def file(path: Path) -> None:
    shutil.rmtree(path, ignore_errors=True)
    path.write_text("mine", encoding="utf-8")


def led_to_mine(path: Path) -> None:
    path.unlink(missing_ok=True)
    path.symlink_to(path.parent.parent / "mine")


IN_THE_WAY: dict[str, tuple[str, Callable[[Path], None], str]] = {
    "45: the lock is a pipe": ("run.lock", pipe, "run.lock is not a file"),
    "45: the log is a pipe": ("train.log", pipe, "train.log is not a file"),
    "45: the log is a directory": ("train.log", directory, "train.log is not a file"),
    "45: the metrics are a pipe": ("metrics.jsonl", pipe, "metrics.jsonl is not a file"),
    "45: the samples are a directory": ("samples.jsonl", directory, "samples.jsonl is not a file"),
    "44: the lock is a link": ("run.lock", led_to_mine, "run.lock is not a file"),
    "44: the log is a link": ("train.log", led_to_mine, "train.log is not a file"),
    "44: the metrics are a link": ("metrics.jsonl", led_to_mine, "metrics.jsonl is not a file"),
    "45: the checkpoints are a file": ("checkpoints", file, "checkpoints is not a directory"),
    "45: the model is a file": ("model", file, "model is not a directory"),
}


@pytest.mark.parametrize(
    ("name", "put", "said"),
    [pytest.param(*row, id=name, marks=() if "pipe" in name else slow) for name, row in IN_THE_WAY.items()],
)
def test_what_is_in_the_way_is_found_before_a_step(
    name: str, put: Callable[[Path], None], said: str, orpo: Orpo, reference: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(reference, tmp_path / "run")
    shutil.rmtree(folder / "model")
    mine = tmp_path / "mine"
    mine.write_text("mine", encoding="utf-8")
    put(folder / name)
    done = orpo.run("resume", str(folder))
    assert done.code == 73, done.output
    assert mine.read_text(encoding="utf-8") == "mine"
    assert f"{folder}: cannot be the folder of a run: {said}" in done.output.replace("\n", " ")


def test_44_a_leftover_that_is_a_link_is_not_written_through(orpo: Orpo, reference: Path, tmp_path: Path) -> None:
    folder, mine = gone_back(reference, tmp_path / "run", 4), tmp_path / "mine"
    mine.write_text("mine", encoding="utf-8")
    for name in (".tmp-probe", ".tmp-run.json", ".tmp-metrics.jsonl", "checkpoints/.tmp-LATEST"):
        (folder / name).symlink_to(mine)
    done = orpo.run("resume", str(folder))
    assert done.code == 0, done.output
    assert same_end(folder, reference)
    assert mine.read_text(encoding="utf-8") == "mine"


def test_45_files_of_the_user_beside_those_of_a_run(orpo: Orpo, reference: Path, tmp_path: Path) -> None:
    folder = gone_back(reference, tmp_path / "run", 4)
    pipe(folder / "live.jsonl")
    (folder / "notes.jsonl").symlink_to("nowhere")
    done = orpo.run("resume", str(folder))
    assert done.code == 0, done.output
    assert same_end(folder, reference)
