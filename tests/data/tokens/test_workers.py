"""Work in several processes: they give what one gives, and end with an error, with a signal, with their parent."""

import json
import multiprocessing
import operator
import os
import pickle
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from matrix import rows
from preferences import chat_row, data_config, entries, prepared, ranking, row, shared_tokenizer, written

from orpo_cli.data.prepare import prepare
from orpo_cli.data.rows import readers, text_lines
from orpo_cli.data.tokens.store import open_entry
from orpo_cli.data.tokens.workers import Workers
from orpo_cli.errors import DataError, OrpoError, OutOfMemoryError

WORDS = ["so", "many", "words", "that", "it", "takes", "a", "while", "to", "read", "them", "all"]


def texts(count: int) -> Iterator[str]:
    draw = random.Random(0)
    for number in range(count):
        yield f"{number} " + " ".join(draw.choices(WORDS, k=30))


def numbered(count: int) -> list[tuple[tuple[int], int]]:
    """Return blocks as `Workers` takes them: the arguments of a call, and a number that comes back with its result."""
    return [((number,), 10 * number) for number in range(count)]


pytestmark = pytest.mark.xdist_group("alone")

# The same as in one process


def mixed_files(folder: Path) -> list[str]:
    """Write text, messages, rankings and an array on one line, each with rows that are invalid or left out."""
    some = list(texts(120))
    (folder / "array.json").write_text(json.dumps([row(text, weight=2) if text else [] for text in [*some, ""]]))
    return [
        written(folder / "text.jsonl", [b"{" if n % 9 == 8 else row(text, text[::-1]) for n, text in enumerate(some)]),
        written(folder / "chat.jsonl", [chat_row(text if n % 7 else "") for n, text in enumerate(some)]),
        written(folder / "rankings.jsonl", [ranking(text, *range(2 + n % 4), 1) for n, text in enumerate(some)]),
        str(folder / "array.json"),
    ]


@pytest.mark.parametrize("chat", rows({"text": False, "chat template": True}, "chat template"))
def test_two_processes_write_the_same_bytes_as_one(
    chat: bool, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Blocks are made small, so that small files have many."""
    monkeypatch.setattr(text_lines, "BLOCK_BYTES", 3000)
    monkeypatch.setattr(readers, "_BLOCK_ROWS", 10)
    paths = mixed_files(tmp_path)
    found = []
    for count in (1, 2):
        monkeypatch.setenv("ORPO_CACHE", str(cache / str(count)))
        data = prepared(paths, max_length=400, on_bad_row="skip", chat_template=chat, workers=count)
        assert data.ledger.rows == 4 * 120 + 1
        files = {
            f"{entry.name}/{file.name}": file.read_bytes()
            for entry in entries(cache / str(count))
            for file in entry.iterdir()
        }
        found.append((files, data.notes, b"".join(data.ledger.lines())))
    assert len(found[0][0]) == 2 * len(paths)
    assert found[0] == found[1]
    assert not multiprocessing.active_children()


def test_results_come_in_the_order_of_the_blocks() -> None:
    with Workers(3, 2) as several, Workers(3, 1) as one:
        expected = [(3 * number, 10 * number) for number in range(20)]
        assert list(several.results_in_order(operator.mul, numbered(20))) == expected
        assert list(one.results_in_order(operator.mul, numbered(20))) == expected
        assert list(several.results_in_order(operator.mul, [])) == []


def test_only_a_few_blocks_are_held() -> None:
    """However slow the consumer is, no more are read than the processes have before them."""
    read = 0

    def blocks() -> Iterator[tuple[tuple[int], int]]:
        nonlocal read
        for block in numbered(50):
            read += 1
            yield block

    with Workers(3, 2) as several:
        for count, _ in enumerate(several.results_in_order(operator.mul, blocks()), start=1):
            assert read <= count + 2 * 2
    assert count == read == 50


# Errors


def test_an_exception_in_a_process_comes_as_itself() -> None:
    with Workers(1, 2) as several:
        results = several.results_in_order(operator.floordiv, [((1,), 1), ((0,), 2), ((1,), 3)])
        assert next(results) == (1, 1)
        with pytest.raises(ZeroDivisionError) as error:
            next(results)
        assert "in a process that prepares the data" in error.value.__notes__[0]


def test_the_user_reads_the_same_error_from_one_process_and_from_two(tmp_path: Path) -> None:
    path = written(tmp_path / "x.jsonl", [*[row()] * 50, row("p" * 500), row()])
    told = []
    for count in (1, 2):
        with pytest.raises(DataError) as refusal:
            prepared(path, length_policy="error", workers=count)
        told.append(str(refusal.value))
    assert told[0] == told[1]
    assert told[0].startswith(f"{path}:51: prompt 500 + response 2 tokens is over data.max_length=200")


@pytest.mark.slow
def test_all_invalid_rows_are_counted_in_one_process_and_in_two(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those that only a template refuses count too, in blocks that are no longer tokenized."""
    monkeypatch.setattr(text_lines, "BLOCK_BYTES", 1000)
    roles = [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}]
    bad = row([*roles, *roles[:1]], tools=[{"name": "t"}])  # the template of the tiny model writes no tools
    path = written(tmp_path / "x.jsonl", [chat_row("hi"), row(""), *[chat_row("hi")] * 20, *[bad] * 15])
    told = []
    for count in (1, 2):
        with pytest.raises(DataError) as refusal:
            prepared(path, workers=count)
        told.append(str(refusal.value))
    assert told[0] == told[1]
    assert told[0].startswith("16 invalid rows; ")


@pytest.mark.parametrize("blocks_done", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_a_killed_process_is_told_in_one_line(
    blocks_done: int, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is killed before it has done anything, or later."""
    monkeypatch.setattr(text_lines, "BLOCK_BYTES", 10_000)
    path = written(tmp_path / "x.jsonl", [row(text, text) for text in texts(1000)])
    told = 0

    def kill_one(_what: str, _done: int, _total: int) -> None:
        nonlocal told
        if told == blocks_done:
            multiprocessing.active_children()[0].kill()
        told += 1

    with pytest.raises(OutOfMemoryError) as refusal:
        prepare(data_config(path, workers=2), shared_tokenizer(), 400, kill_one)
    assert refusal.value.exit_code == 71
    assert "\n" not in str(refusal.value)
    assert str(refusal.value).startswith("a process that prepared the data was killed, as happens when memory runs out")
    assert refusal.value.__suppress_context__
    assert entries(cache) == set()
    assert not multiprocessing.active_children()


def test_a_process_that_ends_in_another_way_is_no_lack_of_memory() -> None:
    """The exit codes are 0, 1 and 2 for the three blocks; the first is told first."""
    with Workers(os._exit, 2) as several, pytest.raises(OrpoError, match="ended with exit code 0; ") as refusal:
        list(several.results_in_order(operator.call, numbered(3)))
    assert refusal.value.exit_code == 1


def test_an_error_ends_the_processes_at_once() -> None:
    """Without that they would sleep for a minute."""
    started = time.monotonic()

    def interrupted() -> None:
        with Workers(time.sleep, 2) as several:
            for _ in several.results_in_order(operator.call, [((0,), 0), *[((60,), 0)] * 9]):
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert time.monotonic() - started < 30
    assert not multiprocessing.active_children()


# Signals


def test_the_processes_never_hear_an_interrupt() -> None:
    """They hear it neither as they start nor later: their parent ends them, so that none dies with a traceback."""
    with Workers(3, 2) as several:
        expected = [(3 * number, 10 * number) for number in range(20)]
        for _ in range(2):
            for child in multiprocessing.active_children():
                assert child.pid is not None
                os.kill(child.pid, signal.SIGINT)
            assert list(several.results_in_order(operator.mul, numbered(20))) == expected


@pytest.mark.parametrize("moment", ["before", "after"])
def test_an_interrupt_while_they_start_ends_those_that_were_started(
    moment: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = Workers._start

    def interrupted(several: Workers) -> None:
        if moment == "before":
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.2)
        original(several)
        if moment == "after":
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(Workers, "_start", interrupted)
    with pytest.raises(KeyboardInterrupt), Workers(3, 2):
        pytest.fail("it should not have started")
    assert not multiprocessing.active_children()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, [])


PREPARES = """
import pickle, sys
from orpo_cli.data.prepare import prepare

config, tokenizer = pickle.load(sys.stdin.buffer)

def told(what, done, total):
    print("at", done, flush=True)

try:
    data = prepare(config, tokenizer, 400, told)
except KeyboardInterrupt:
    sys.exit(130)
print("rows", data.ledger.rows)
"""


def long_file(path: Path) -> str:
    """Write 5 MB, which are some seconds of work for two processes with the byte tokenizer."""
    lines_ = [json.dumps(row(text, text, text[::-1])).encode() + b"\n" for text in texts(100)]
    path.write_bytes(b"".join(lines_ * (5_000_000 // sum(map(len, lines_)))))
    return str(path)


def begin(path: str) -> "subprocess.Popen[bytes]":
    """Start a process that prepares a file with two others, in a group of its own."""
    run = subprocess.Popen(
        [sys.executable, "-c", PREPARES],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    assert run.stdin is not None
    pickle.dump((data_config(path, workers=2), shared_tokenizer()), run.stdin)
    run.stdin.flush()
    return run


def wait_for(condition: Callable[[], Any], seconds: float) -> Any:
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, "it took too long"
        time.sleep(0.02)
    return found


def children_of(pid: int) -> list[int]:
    """Return the children of all threads of a process."""
    return [int(child) for file in Path(f"/proc/{pid}/task").glob("*/children") for child in file.read_text().split()]


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


needs_proc = pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="looks for processes in /proc")


@needs_proc
def test_a_kill_in_the_middle_leaves_nothing_that_is_trusted(tmp_path: Path, cache: Path) -> None:
    path = long_file(tmp_path / "x.jsonl")
    run = begin(path)
    assert run.stdout is not None
    wait_for(lambda: run.stdout.readline().split()[-1] != b"0", 60)  # a first block is done
    others = children_of(run.pid)
    assert len(others) >= 2
    run.kill()
    assert run.wait() == -signal.SIGKILL
    wait_for(lambda: not any(map(is_running, others)), 10)
    (left,) = (cache / "tokens").glob(".tmp-*")
    assert entries(cache) == set()
    assert open_entry(left, "") is None
    os.utime(left, (1, 1))
    small = written(tmp_path / "small.jsonl", [row()])
    assert len(prepared(small).train) == 1
    assert not left.exists()
    assert len(prepared(path, max_length=400, workers=1).train) == Path(path).read_bytes().count(b"\n")


@needs_proc
@pytest.mark.slow
@pytest.mark.parametrize("moment", ["as they start", "in the middle"])
def test_an_interrupt_is_quiet(moment: str, tmp_path: Path, cache: Path) -> None:
    """A terminal sends it to all processes of the group. None prints anything, and nothing is left."""
    run = begin(long_file(tmp_path / "x.jsonl"))
    assert run.stdout is not None
    assert run.stderr is not None
    if moment == "in the middle":
        wait_for(lambda: run.stdout.readline().split()[-1] != b"0", 60)
    else:
        wait_for(lambda: len(children_of(run.pid)) >= 2, 60)
    others = children_of(run.pid)
    sent = time.monotonic()
    os.killpg(run.pid, signal.SIGINT)
    _, said = run.communicate(timeout=60)
    assert time.monotonic() - sent < 5  # about a second; other work on the machine may slow it down
    assert (run.returncode, said) == (130, b"")
    wait_for(lambda: not any(map(is_running, others)), 5)
    assert not list((cache / "tokens").iterdir())


@pytest.mark.slow
@needs_proc
def test_control_c_on_the_command_line(tmp_path: Path, cache: Path) -> None:
    """The whole program is interrupted; what it says before that is progress."""
    path = long_file(tmp_path / "x.jsonl")
    command = [sys.executable, "-m", "orpo_cli", "train", "model=tiny", f"data={path}", "data.workers=2"]
    command.append(f"output_dir={tmp_path / 'run'}")
    run = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True)
    wait_for(lambda: list((cache / "tokens").glob(".tmp-*/rows.arrow")) or run.poll() is not None, 120)
    wait_for(lambda: len(children_of(run.pid)) >= 2, 30)
    sent = time.monotonic()
    os.killpg(run.pid, signal.SIGINT)
    _, said = run.communicate(timeout=60)
    assert time.monotonic() - sent < 5
    assert run.returncode == 130
    assert b"Traceback" not in said
    assert said.rstrip().splitlines()[-1] == b"orpo: interrupted"
    assert entries(cache) == set()
    assert not list((cache / "tokens").glob(".tmp-*"))
