"""Two processes that share a run, and one of them in trouble: nobody waits for ever, and the cause is named."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from several import rank_of, run_several, start_several
from tiny_runs import Arguments, Done, Orpo, at, fails, free_port, kill, records

from orpo_cli.checkpoints.lookup import latest_checkpoint
from orpo_cli.cli.main import main
from orpo_cli.config.schema import RunConfig
from orpo_cli.errors import UnreachableError
from orpo_cli.machine import processes
from orpo_cli.machine.hardware import find_hardware

pytestmark = pytest.mark.xdist_group("alone")

UPDATE = "orpo_cli.training.loop._update"
MEASURE = "orpo_cli.training.loop.micro_batch_loss"
MANIFEST = "orpo_cli.checkpoints.saving.write_manifest"
BOUND = 240
"""Seconds in which every run here has ended, on a busy machine too; a wait for the others is 600 at least."""


@contextlib.contextmanager
def taken_port() -> Iterator[int]:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        yield other.getsockname()[1]


@dataclass(frozen=True)
class Fault:
    """What happens to which process, and what is left.

    Args:
        injected: by rank.
        codes: of both processes.
        said: by the one that is not hurt, or by the main process.
        hangs: the rank that never ends by itself.
        last: the step of the newest checkpoint.
    """

    id: str
    injected: dict[int, dict[str, Any]]
    codes: tuple[int, int]
    said: str
    overrides: tuple[str, ...] = ()
    hangs: int | None = None
    last: int = 2


FSDP = "trainer.parallel=fsdp"
FAULTS = [
    Fault("25: one killed", {1: kill(UPDATE, 4)}, (69, -9), "another process of this run is gone"),
    Fault(
        "25: one killed that has a part of the weights", {1: kill(UPDATE, 4)}, (69, -9),
        "another process of this run is gone", (FSDP,),
    ),
    Fault(
        "30: the main one cannot save what others have parts of", {0: fails(MANIFEST, 2, "ENOSPC")}, (74, 74),
        "No space left on device", (FSDP,),
    ),
    Fault("25: the main one killed", {0: kill(UPDATE, 5)}, (-9, 69), "another process of this run is gone"),
    Fault(
        "26: one stopped", {1: at(UPDATE, 4, "SIGSTOP")}, (69, -9), "did not answer: Timed out waiting 2000ms",
        ("trainer.timeout=2",), hangs=1,
    ),
    Fault("27: one exits with 0", {1: at(UPDATE, 4, "exit 0")}, (69, 0), "another process of this run is gone"),
    Fault("27: one raises", {1: at(UPDATE, 4, "bug")}, (69, 70), "another process of this run is gone", (FSDP,)),
    Fault(
        "22: one has a gradient that is not finite", {1: at(MEASURE, 6, "bad gradient")}, (76, 76),
        "step 3 of 6 is not finite", (FSDP, "trainer.max_tokens=1"),
    ),
    Fault(
        "22: one alone has a score that is not finite", {1: at(MEASURE, 6, "nan")}, (76, 76),
        "on process 1 of 2, token 2 of its chosen response", (FSDP, "trainer.max_tokens=1"),
    ),
    Fault(
        "30: the main one cannot save", {0: fails(MANIFEST, 2, "ENOSPC")}, (74, 74),
        "No space left on device",
    ),
    Fault(
        "30: the main one cannot save, and goes on", {0: fails(MANIFEST, 2, "ENOSPC")}, (0, 0),
        "no checkpoint of step 4, the run continues", ("trainer.on_save_error=continue", FSDP), last=6,
    ),
    Fault(
        "30: the main one cannot write the model", {0: fails("os.rename", 1, "EIO", of="model$")}, (74, 0),
        "Input/output error", (FSDP,), last=6,
    ),
]  # fmt: skip

OFTEN = ("25: one killed", "30: the main one cannot save what others have parts of")
"""Seconds each; the others are slow tests."""


@pytest.mark.timeout(BOUND)
@pytest.mark.parametrize(
    "fault",
    [pytest.param(fault, id=fault.id, marks=() if fault.id in OFTEN else pytest.mark.slow) for fault in FAULTS],
)
def test_trouble_of_one_ends_both(fault: Fault, orpo: Orpo, arguments: Arguments, tmp_path: Path) -> None:
    argv = arguments(tmp_path / "run", "trainer.processes=2", *fault.overrides)
    running = start_several(orpo, argv, injected={rank: [one] for rank, one in fault.injected.items()})
    done: dict[int, Done] = {}
    for rank in (0, 1):
        if rank != fault.hangs:
            done[rank] = running[rank].wait()
    if fault.hangs is not None:
        running[fault.hangs].signal(signal.SIGKILL)
        done[fault.hangs] = running[fault.hangs].wait()
    assert (done[0].code, done[1].code) == fault.codes, done
    assert fault.said in done[1 if done[0].code < 0 else 0].output
    saved = sorted(path.name for path in (tmp_path / "run" / "checkpoints").glob("step-*"))
    # a main process that is killed may have been writing the one of step 4; that of step 2 was written before
    assert saved[0 if done[0].code < 0 else -1] == f"step-{fault.last:06d}"
    again = orpo.run("resume", str(tmp_path / "run"), "trainer.processes=1")
    assert again.code == 0, again.output
    steps = [record["step"] for record in records(tmp_path / "run") if record["kind"] == "step"]
    assert steps == [1, 2, 3, 4, 5, 6]


@pytest.mark.timeout(BOUND)
def test_4_a_process_that_is_interrupted_twice_where_the_other_knows_of_once(
    orpo: Orpo, arguments: Arguments, tmp_path: Path
) -> None:
    """Two signals that come within a millisecond may be one to a process."""
    once = at("orpo_cli.training.loop.micro_batch_loss", 4, "SIGINT")
    injected = {0: [once], 1: [once, at("orpo_cli.training.loop._gradient_norm", 4, "SIGINT")]}
    running = start_several(orpo, arguments(tmp_path / "run", "trainer.processes=2"), injected=injected)
    main, other = (process.wait() for process in running)
    assert (main.code, other.code) == (130, 130), (main, other)
    last = main.output.splitlines()[-1]
    assert "stopped by a signal, and another process of this run left at once" in last
    assert last.endswith(f"resume with: orpo resume {tmp_path / 'run'}")
    assert latest_checkpoint(tmp_path / "run" / "checkpoints")[0].name == "step-000002"


@dataclass(frozen=True)
class Rendezvous:
    """One process of two that cannot join the other. `said` as a regex would be, without one."""

    id: str
    rank: int
    port_is_taken: bool
    said: str


ALONE = [
    Rendezvous("28: port in use", 0, True, "port {port} is in use: set MASTER_PORT"),
    Rendezvous("29: the others are missing", 0, False, "1 of 2 processes joined within trainer.timeout=1 s"),
    Rendezvous("29: the main one is missing", 1, False, "no process of rank 0 answers at 127.0.0.1:{port}"),
]


@pytest.mark.parametrize(
    "case",
    [pytest.param(case, id=case.id, marks=pytest.mark.slow if case.rank else ()) for case in ALONE],
)
def test_rendezvous_that_fails(case: Rendezvous, orpo: Orpo, arguments: Arguments, tmp_path: Path) -> None:
    with taken_port() if case.port_is_taken else contextlib.nullcontext(free_port()) as port:
        argv = arguments(tmp_path / "run", "trainer.timeout=1")
        done = orpo.run(*argv, environment=rank_of(case.rank, 2, port))
    assert done.code == 69
    assert case.said.format(port=port) in done.output
    assert "Traceback" not in done.output
    assert not (tmp_path / "run").exists() or not list((tmp_path / "run").iterdir())


@dataclass(frozen=True)
class Together:
    """What the processes of a run do, as Python; which exit code and message the one that started them has."""

    id: str
    does: tuple[str, str]
    code: int
    said: str | None


LOST = "import time; time.sleep(0.3); raise SystemExit(69)"
LATER = "import time; time.sleep(0.6); raise SystemExit(65)"
DEAF = "import signal, time; signal.signal(15, lambda *_: 0); time.sleep(9999)"
TOGETHER = [
    Together("both done", ("", ""), 0, None),
    Together("25: killed", (LOST, "import os; os.kill(os.getpid(), 9)"), 137, "process 1 of 2 was killed by SIGKILL"),
    Together("26: stopped", (LOST, "import os; os.kill(os.getpid(), 19)"), 69, "process 1 of 2 did not answer in time"),
    Together("27: exits with 0", (LOST, ""), 69, "process 1 of 2 ended before the others"),
    Together("27: raises", (LOST, "raise OSError('why')"), 1, "OSError: why\norpo: process 1 of 2 ended with"),
    Together("27: raises, noticed later", (LOST, LATER), 65, "process 1 of 2 ended with exit code 65"),
    Together("3: the main one had finished", ("", "raise SystemExit(143)"), 0, None),
    Together("3: interrupted", ("raise SystemExit(143)", LATER.replace("65", "143")), 143, None),
    Together("does not end", ("raise SystemExit(76)", DEAF), 76, "0 of"),
]  # fmt: skip


@pytest.mark.timeout(BOUND)
@pytest.mark.parametrize("case", [pytest.param(case, id=case.id) for case in TOGETHER])
def test_the_cause_is_named(case: Together, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    script = f"import os; exec({case.does!r}[int(os.environ['RANK'])])"
    monkeypatch.setattr(processes, "command", lambda _: [sys.executable, "-S", "-c", script])
    monkeypatch.setattr(processes, "_SETTLING_SECONDS", 1.5)
    monkeypatch.setattr(processes, "_GRACE_SECONDS", 0.5)
    assert processes.run_processes([], 2) == case.code
    said = capfd.readouterr().err
    assert said == "" if case.said is None else case.said in said


@pytest.mark.parametrize(
    ("code", "advised"), [(69, True), (137, True), (76, True), (2, False), (65, False), (73, False)]
)
def test_a_way_on_is_named_only_where_the_same_run_may_succeed(
    code: int, advised: bool, reference: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(processes, "run_processes", lambda *_: code)
    assert (
        main(["train", "model=tiny", f"output_dir={reference}", "trainer.processes=2", "trainer.max_tokens=77"]) == code
    )
    said = capfd.readouterr().err
    assert (f"resume with: orpo resume {reference} " in said) == advised
    assert ("trainer.max_tokens=77" in said) == advised


@pytest.mark.slow
def test_signal_to_the_parent_saves(arguments: Arguments, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    argv = [*arguments(folder, "trainer.processes=2"), "trainer.max_steps=1000", "trainer.save_every=null"]
    command = [sys.executable, "-P", "-m", "orpo_cli", *argv]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as run:
        metrics = folder / "metrics.jsonl"
        while not (metrics.exists() and '"kind": "step"' in metrics.read_text(encoding="utf-8")) and run.poll() is None:
            time.sleep(0.05)
        run.send_signal(signal.SIGINT)
        _, said = run.communicate(timeout=BOUND)
    assert run.returncode == 128 + signal.SIGINT
    assert f"resume with: orpo resume {folder}" in said
    assert len(list((folder / "checkpoints").glob("step-*"))) == 1


def rank_seen(process: psutil.Process) -> str | None:
    """None where it is none of those that share the steps, or has ended, or has not begun."""
    try:
        rank: str | None = process.environ().get("RANK")
    except psutil.Error:
        return None
    return rank


@pytest.mark.slow
def test_a_real_process_that_is_killed(orpo: Orpo, arguments: Arguments, tmp_path: Path) -> None:
    """25: nobody stays, the one that started them says which it was, and what was saved goes on to the end."""
    folder, most = tmp_path / "run", 60
    argv = [*arguments(folder, "trainer.processes=2"), f"trainer.max_steps={most}", "trainer.eval_every=null"]
    command = [sys.executable, "-P", "-m", "orpo_cli", *argv]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as run:
        while not (folder / "checkpoints" / "LATEST").exists():
            assert run.poll() is None
            time.sleep(0.02)
        ranks = {rank_seen(process): process for process in psutil.Process(run.pid).children()}
        ranks["1"].kill()
        _, said = run.communicate(timeout=BOUND)
    assert run.returncode == 128 + signal.SIGKILL
    assert "orpo: process 1 of 2 was killed by SIGKILL; the others are ended" in said
    assert f"resume with: orpo resume {folder}" in said
    _, alive = psutil.wait_procs([ranks["0"], ranks["1"]], timeout=BOUND)
    assert not alive
    newest, _ = latest_checkpoint(folder / "checkpoints")
    assert newest.name == max(path.name for path in (folder / "checkpoints").glob("step-*"))
    said = run_several(orpo, ["train", f"resume={folder}"])
    assert f"resuming after step {int(newest.name.removeprefix('step-'))}" in said
    steps = [record["step"] for record in records(folder) if record["kind"] == "step"]
    assert steps == list(range(1, most + 1))


@pytest.mark.slow
def test_processes_end_with_the_one_that_started_them(orpo: Orpo, arguments: Arguments, tmp_path: Path) -> None:
    """25: it is killed, and can tell them nothing: they save and end, and the run goes on to its end."""
    folder = tmp_path / "run"
    argv = [*arguments(folder, "trainer.processes=2", FSDP), "trainer.max_steps=60", "trainer.save_every=null"]
    command = [sys.executable, "-P", "-m", "orpo_cli", *argv]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as run:
        metrics = folder / "metrics.jsonl"
        while not (metrics.exists() and '"kind": "step"' in metrics.read_text(encoding="utf-8")):
            assert run.poll() is None
            time.sleep(0.02)
        ranks = psutil.Process(run.pid).children()
        run.kill()
    _, alive = psutil.wait_procs(ranks, timeout=BOUND)
    assert not alive
    saved, faults = latest_checkpoint(folder / "checkpoints")
    assert faults == []
    assert 0 < int(saved.name.removeprefix("step-")) < 60
    assert orpo.run("resume", str(folder), "trainer.processes=1").code == 0
    assert [record["step"] for record in records(folder) if record["kind"] == "step"] == list(range(1, 61))


def test_a_process_whose_parent_is_gone_is_told() -> None:
    script = "import time; from orpo_cli.machine.processes import follow_parent; follow_parent(); time.sleep({})"
    for parent, seconds, code in ((os.getpid(), 0.5, 0), (os.getppid(), 60, -signal.SIGTERM)):
        environment = os.environ | {processes.PARENT: str(parent)}
        done = subprocess.run([sys.executable, "-c", script.format(seconds)], env=environment, check=False)
        assert done.returncode == code


STARTING = """
import sys, time
time.sleep(0.5)  # imports
from orpo_cli.machine.processes import follow_parent
try:
    follow_parent()
    time.sleep(60)
except KeyboardInterrupt:
    sys.exit(130)
"""


@pytest.mark.parametrize("alone", [False, True], ids=["a run", "a job of a sweep"])
def test_4_a_signal_to_processes_that_are_just_being_started(
    alone: bool, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """They hear it once they can answer it; until then a KeyboardInterrupt would be a traceback, or a death."""
    monkeypatch.setattr(processes, "command", lambda _: [sys.executable, "-c", STARTING])
    timer = threading.Timer(0.2, os.kill, [os.getpid(), signal.SIGINT])
    timer.start()
    if alone:
        with processes.passing_on_signals() as children:
            job = processes.start_alone([], children, {}, is_shown=True)
            while (code := job.exit_code()) is None:
                time.sleep(0.01)
            assert children.asked == signal.SIGINT
    else:
        code = processes.run_processes([], 2)
    timer.join()
    assert (code, capfd.readouterr().err) == (130, "")


def test_a_process_waits_ten_minutes_for_another_where_nothing_is_said(
    compose_config: Callable[..., RunConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    """26: torch's own would be thirty; the limit goes to the group in which the processes add up their gradients."""
    limits: list[timedelta] = []

    def init_process_group(*_: Any, timeout: timedelta, **_others: Any) -> None:
        limits.append(timeout)
        raise RuntimeError("no group here")

    monkeypatch.setattr(torch.distributed, "init_process_group", init_process_group)
    for name, value in rank_of(0, 2, free_port()).items():
        monkeypatch.setenv(name, value)
    for overrides in ([], ["trainer.timeout=7"]):
        with pytest.raises(UnreachableError):
            find_hardware(compose_config("trainer.device=cpu", *overrides).trainer)
    assert limits == [timedelta(minutes=10), timedelta(seconds=7)]
