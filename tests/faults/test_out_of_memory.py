"""A run that may have no more memory: smaller micro-batches, then an end that says why, and what it had is kept."""

import contextlib
import ctypes
import json
import os
import re
import resource
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tiny_runs import WORDS, Arguments, Done, Orpo, at, fails, records, same_end

MEGABYTE = 2**20
MODEL = "orpo_cli.runs.assembly.Assembly._load_model"
STEP = "orpo_cli.training.loop._with_gradients"

pytestmark = pytest.mark.xdist_group("alone")


def long_pairs(path: Path, words: int = 400, count: int = 2) -> Path:
    """Pairs of one length, about; the tiny model has a token for each letter or two."""
    text = " ".join(WORDS[i % len(WORDS)] for i in range(words))
    lines = [{"prompt": f"{i}?", "chosen": f"{text} yes", "rejected": f"{text} no"} for i in range(count)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return path


def limited(orpo: Orpo, argv: list[str], where: str, call: int, more: int) -> Done:
    """A run that from the Nth call of a function on may take so many bytes of addresses and no more.

    The allocator keeps nothing for later: a step could live on what the one before has given back.
    """
    if not hasattr(ctypes.CDLL(None), "mallopt"):
        pytest.skip("this machine's allocator may keep what was given back")
    kept = at("orpo_cli.cli.main.main", 1, "memory is given back")
    run = orpo.start(*argv, injections=[kept, at(where, call, "SIGSTOP")])
    run.wait_stopped()
    pages = int(Path(f"/proc/{run.pid}/statm").read_text(encoding="ascii").split()[0])
    limit = pages * resource.getpagesize() + more
    resource.prlimit(run.pid, resource.RLIMIT_AS, (limit, limit))
    run.signal(signal.SIGCONT)
    return run.wait()


IN_A_STEP = r"with one pair at a time; the longest has 4\d\d\d tokens \(\S+/prefs.jsonl:\d+\)"


@pytest.mark.parametrize(
    ("where", "call", "more", "said"),
    [
        pytest.param(STEP, 2, 8 * MEGABYTE, IN_A_STEP, id="a step"),
        pytest.param(MODEL, 1, MEGABYTE, "outside the steps: the model", id="the model", marks=pytest.mark.slow),
    ],
)
def test_48_no_more_addresses(where: str, call: int, more: int, said: str, orpo: Orpo, tmp_path: Path) -> None:
    """Exit 71 says which pair and how much memory there was; with more memory the run goes on to its end."""
    folder, data = tmp_path / "run", long_pairs(tmp_path / "prefs.jsonl")
    typed = [
        "train", "model=tiny", f"data={data}", f"output_dir={folder}", "data.eval_fraction=0",
        "trainer.pairs_per_step=2", "trainer.max_tokens=100000", "trainer.max_steps=3", "trainer.save_every=1",
        "trainer.sample_tokens=0", "data.max_length=8192",
    ]  # fmt: skip
    ended = limited(orpo, typed, where, call, more)
    assert ended.code == 71, ended.output
    message = ended.output.splitlines()[-1]
    assert re.search(rf"orpo: error: out of memory {said}.* this process had 0\.\d\d GB at its peak\. \w", message)
    assert ("Lower data.max_length=8192, set trainer.gradient_checkpointing=true" in message) is (where == STEP)
    assert [path.name for path in folder.glob("checkpoints/step-*")] == ["step-000001"] * (where == STEP)
    done = orpo.run(*typed, "resume=auto")
    assert done.code == 0, done.output
    assert [record["step"] for record in records(folder) if record["kind"] == "step"] == [1, 2, 3]


def test_48_the_system_finds_no_memory(orpo: Orpo, arguments: Arguments, tmp_path: Path) -> None:
    """Before a run has begun; no file is to blame."""
    refused = fails("orpo_cli.runs.train.check_exists", 1, "ENOMEM")
    ended = orpo.run(*arguments(tmp_path / "run"), injections=[refused])
    assert ended.code == 71, ended.output
    assert "Cannot allocate memory" in ended.output


@pytest.fixture
def without_memory() -> Iterator[Callable[[int], None]]:
    """`without_memory(pid)`: what a process takes from now on is too much for its control group."""
    parent = Path("/sys/fs/cgroup/memory")
    most, swap = "memory.limit_in_bytes", "memory.memsw.limit_in_bytes"
    if not parent.is_dir():
        parent, most, swap = parent.parent, "memory.max", "memory.swap.max"
    group = parent / f"orpo-test-{os.getpid()}"
    try:
        group.mkdir()
    except OSError as error:
        pytest.skip(f"this machine allows no control group: {error}")
    try:
        (group / most).write_text(str(MEGABYTE), encoding="ascii")
        if (group / swap).exists():
            (group / swap).write_text(str(MEGABYTE), encoding="ascii")
        yield lambda pid: (group / "cgroup.procs").write_text(str(pid), encoding="ascii") and None
    except OSError as error:
        pytest.skip(f"this machine limits no control group: {error}")
    finally:
        with contextlib.suppress(OSError):
            group.rmdir()


def test_48_killed_for_its_memory(
    without_memory: Callable[[int], None], orpo: Orpo, arguments: Arguments, reference: Path, tmp_path: Path
) -> None:
    """A step needs little that the process does not have yet, so it takes more."""
    more = [at(STEP, 4, "SIGSTOP"), at("orpo_cli.training.loop._gradient_norm", 4, "memory is taken")]
    run = orpo.start(*arguments(tmp_path / "run"), injections=more)
    run.wait_stopped()
    without_memory(run.pid)
    run.signal(signal.SIGCONT)
    assert run.wait().code == -signal.SIGKILL
    done = orpo.run(*arguments(tmp_path / "run", "resume=auto"))
    assert done.code == 0, done.output
    assert same_end(tmp_path / "run", reference)
