"""A run that may have no more memory: smaller micro-batches, then an end that says why, and what it had is kept."""

import contextlib
import json
import os
import re
import resource
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from runs import WORDS, Done, Orpo, at, fails, records, same_end

MEGABYTE = 2**20
MODEL = "orpo_cli.cli.building._build_model"
STEP = "orpo_cli.training.loop._with_gradients"


def long_pairs(path: Path, words: int = 150, count: int = 16) -> Path:
    """Pairs of one length, about; the tiny model has a token for each letter or two."""
    text = " ".join(WORDS[i % len(WORDS)] for i in range(words))
    lines = [{"prompt": f"{i}?", "chosen": f"{text} yes", "rejected": f"{text} no"} for i in range(count)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return path


def limited(orpo: Orpo, argv: list[str], where: str, call: int, more: int) -> Done:
    """A run that from the Nth call of a function on may take so many bytes of addresses and no more."""
    run = orpo.start(*argv, injections=[at(where, call, "SIGSTOP")])
    run.wait_stopped()
    pages = int(Path(f"/proc/{run.pid}/statm").read_text(encoding="ascii").split()[0])
    limit = pages * resource.getpagesize() + more
    resource.prlimit(run.pid, resource.RLIMIT_AS, (limit, limit))
    run.signal(signal.SIGCONT)
    return run.wait()


IN_A_STEP = r"with one pair at a time; the longest has 16\d\d tokens \(\S+/prefs.jsonl:\d+\)"


@pytest.mark.parametrize(
    ("where", "call", "said"),
    [
        pytest.param(STEP, 2, IN_A_STEP, id="a step"),
        pytest.param(MODEL, 1, "outside the steps: the model", id="the model", marks=pytest.mark.slow),
    ],
)
def test_48_no_more_addresses(where: str, call: int, said: str, orpo: Orpo, tmp_path: Path) -> None:
    """Exit 71 says which pair and how much memory there was; with more memory the run goes on to its end."""
    folder, data = tmp_path / "run", long_pairs(tmp_path / "prefs.jsonl")
    typed = [
        "train", "model=tiny", f"data={data}", f"output_dir={folder}", "data.eval_fraction=0",
        "trainer.pairs_per_step=16", "trainer.max_tokens=100000", "trainer.max_steps=3", "trainer.save_every=1",
        "trainer.sample_tokens=0",
    ]  # fmt: skip
    ended = limited(orpo, typed, where, call, 8 * MEGABYTE)
    assert ended.code == 71, ended.output
    message = ended.output.splitlines()[-1]
    assert re.search(rf"orpo: error: out of memory {said}.* at its highest this process had 0\.\d\d GB\. \w", message)
    assert ("Lower data.max_length=2048, set trainer.gradient_checkpointing=true" in message) is (where == STEP)
    assert [path.name for path in folder.glob("checkpoints/step-*")] == ["step-000001"] * (where == STEP)
    done = orpo.run(*typed, "resume=auto")
    assert done.code == 0, done.output
    assert [record["step"] for record in records(folder) if record["kind"] == "step"] == [1, 2, 3]


def test_48_the_system_finds_no_memory(orpo: Orpo, arguments: Callable[..., list[str]], tmp_path: Path) -> None:
    """Before a run has begun; no file is to blame."""
    refused = fails("orpo_cli.data.rows.sources.check_there", 1, "ENOMEM")
    ended = orpo.run(*arguments(tmp_path / "run"), injections=[refused])
    assert ended.code == 71, ended.output
    assert "Cannot allocate memory" in ended.output


@pytest.fixture
def without_memory() -> Iterator[Callable[[int], None]]:
    """`without_memory(pid)`: what a process takes from now on is too much for its control group."""
    parent = Path("/sys/fs/cgroup/memory")
    limit = "memory.limit_in_bytes"
    if not parent.is_dir():
        parent, limit = parent.parent, "memory.max"
    group = parent / f"orpo-test-{os.getpid()}"
    try:
        group.mkdir()
        (group / limit).write_text(str(MEGABYTE), encoding="ascii")
    except OSError as error:
        pytest.skip(f"this machine allows no control group: {error}")

    def enter(pid: int) -> None:
        (group / "cgroup.procs").write_text(str(pid), encoding="ascii")

    yield enter
    with contextlib.suppress(OSError):
        group.rmdir()


def test_48_killed_for_its_memory(
    without_memory: Callable[[int], None],
    orpo: Orpo,
    arguments: Callable[..., list[str]],
    reference: Path,
    tmp_path: Path,
) -> None:
    run = orpo.start(*arguments(tmp_path / "run"), injections=[at(STEP, 4, "SIGSTOP")])
    run.wait_stopped()
    without_memory(run.pid)
    run.signal(signal.SIGCONT)
    assert run.wait().code == -signal.SIGKILL
    done = orpo.run(*arguments(tmp_path / "run", "resume=auto"))
    assert done.code == 0, done.output
    assert same_end(tmp_path / "run", reference)
