"""The tests of this directory notice: guards are taken out of a copy of the code, and the tests named fail on it.

Guards whose tests do not meet each other's are taken out together.
"""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

import orpo_cli

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent


@dataclass(frozen=True)
class Mutation:
    """What is taken out, and who notices.

    Args:
        file: of the package.
        guard: text that it has once.
        instead: what stands there now.
        tests: as pytest wants them, below tests/faults; each of them fails.
    """

    file: str
    guard: str
    instead: str
    tests: Sequence[str]


KILLED = "test_saving.py::test_a_kill_loses_nothing"
A_BIT = "test_damage.py::test_11_a_bit_anywhere_in_any_file"
FSYNC = "test_saving.py::test_9_no_file_whose_fsync_failed_is_tried_again"
FULL = "test_disk.py::test_6_json_on_a_full_disk"
DROPOUT = "test_saving.py::test_1_killed_with_dropout"

MUTATIONS = {
    "11: the manifest's checksum is not compared": Mutation(
        "files/manifest.py", "if _checksum(path, kind) != checksum:", "if not checksum:", [A_BIT]
    ),
    "10: nor is the size": Mutation(
        "files/manifest.py", "if path.stat().st_size != size:", "if not size:",
        ["test_damage.py::test_damage_is_found_and_the_one_before_is_used[10: half]"],
    ),
    "13: a manifest may list fewer files": Mutation(
        "files/manifest.py", "if unknown := sorted(there - {MANIFEST} - listed):", "if unknown := []:",
        ["test_damage.py::test_13_a_file_nobody_listed"],
    ),
    "2: LATEST is not replaced": Mutation(
        "files/writing.py", "temporary.replace(path)", "temporary.unlink()", [FSYNC]
    ),
    "2: LATEST is written in place": Mutation(
        "files/writing.py", 'temporary = path.with_name(f"{LEFTOVER}{path.name}")', "temporary = path",
        [FULL],
    ),
    "2: what is in the way is removed first": Mutation(
        "files/directories.py", "directory.rename(aside / directory.name)", "shutil.rmtree(directory)",
        ["test_saving.py::test_2_what_could_not_be_replaced_is_still_there"],
    ),
    "2: rotation begins with the newest": Mutation(
        "checkpoints/saving.py", "checkpoints(root)[: -retention.keep_last]", "checkpoints(root)[:0]",
        ["test_damage.py::test_2_the_best_is_kept_and_a_damaged_one_is_not_the_best"],
    ),
    "9: a file is flushed again": Mutation(
        "checkpoints/saving.py", "        rewrite_doubtful(records)\n", "", [FSYNC]
    ),
    "1: the seed of a step is not set": Mutation(
        "training/loop.py", "_dropout_seed(training.config.seed, step.number, hardware.rank)", "torch.seed()",
        [DROPOUT],
    ),
    "1: the optimizer's state is not restored": Mutation(
        "runs/assembly.py",
        "load_optimizer_state(path, training.scorer.model, training.optimizers, taken)", "[]",
        [f"{KILLED}[2: after the rename]", DROPOUT],
    ),
    "46: the folder is not locked": Mutation(
        "runs/folder.py", "fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)", "pass",
        ["test_folders.py::test_a_second_run_is_refused_and_named_the_first[46: resume=auto]"],
    ),
}  # fmt: skip


def copied(folder: Path) -> Path:
    """A copy of the package, found before the one that is tested otherwise."""
    shutil.copytree(Path(orpo_cli.__file__).parent, folder / "orpo_cli")
    shutil.copytree(ROOT / "configs", folder / "configs")
    return folder


def outcome(package: Path, tests: Sequence[str]) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [
            *(sys.executable, "-P", "-m", "pytest", "-p", "no:cacheprovider", "-n", "0", "-m", "slow or not slow"),
            *(str(HERE / test) for test in tests),
        ],
        cwd=ROOT, env=os.environ | {"PYTHONPATH": str(package)}, capture_output=True, text=True, check=False,
    )  # fmt: skip


@pytest.mark.parametrize("mutation", MUTATIONS.values(), ids=MUTATIONS)
def test_each_guard_is_there(mutation: Mutation) -> None:
    text = (Path(orpo_cli.__file__).parent / mutation.file).read_text(encoding="utf-8")
    assert text.count(mutation.guard) == 1


@pytest.mark.slow
def test_nothing_is_taken_out(tmp_path: Path) -> None:
    tests = sorted({test for mutation in MUTATIONS.values() for test in mutation.tests})
    done = outcome(copied(tmp_path), tests)
    assert done.returncode == 0, done.stdout


TOGETHER = (
    ("2: LATEST is not replaced",),
    ("1: the optimizer's state is not restored", "13: a manifest may list fewer files"),
    ("11: the manifest's checksum is not compared", "9: a file is flushed again"),
    ("10: nor is the size", "2: what is in the way is removed first", "2: LATEST is written in place"),
    ("1: the seed of a step is not set", "2: rotation begins with the newest", "46: the folder is not locked"),
)


def test_each_guard_is_taken_out_once() -> None:
    assert sorted(name for names in TOGETHER for name in names) == sorted(MUTATIONS)


@pytest.mark.slow
@pytest.mark.parametrize("names", TOGETHER, ids=" and ".join)
def test_a_missing_guard_is_noticed(names: Sequence[str], tmp_path: Path) -> None:
    package, tests = copied(tmp_path), set[str]()
    for mutation in map(MUTATIONS.__getitem__, names):
        path = package / "orpo_cli" / mutation.file
        content = path.read_text(encoding="utf-8")
        path.write_text(content.replace(mutation.guard, mutation.instead), encoding="utf-8")
        tests |= set(mutation.tests)
    done = outcome(package, sorted(tests))
    assert done.returncode == 1, done.stdout
    assert re.search(rf"^{len(tests)} failed", done.stdout, re.MULTILINE), done.stdout
