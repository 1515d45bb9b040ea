"""Signals and time limits at every moment of a run: the right exit code, the way to go on, and an exact end.

Rows 3 and 4 of the faults, and `trainer.max_time`.
"""

import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from tiny_runs import WARM, Arguments, Orpo, at, gone_back, pairs, records, same_end

from orpo_cli.checkpoints.lookup import latest_checkpoint, list_checkpoints
from orpo_cli.machine.signals import SIGNALS, StopRequest, stop_at_step_boundary

slow = pytest.mark.slow
pytestmark = pytest.mark.xdist_group("alone")


@dataclass(frozen=True)
class Moment:
    """A signal comes when a function is called for the Nth time.

    Args:
        saved: the step of the checkpoint it leaves; 0 for none, None where not even the folder is there.
    """

    function: str
    call: int
    saved: int | None


STEP = Moment("orpo_cli.training.loop._update", 3, 3)
FIRST_STEP = Moment("orpo_cli.training.loop._with_gradients", 1, 1)
EVALUATION = Moment(
    "orpo_cli.training.evaluation.micro_batch_loss", 2, 3
)  # that after step 3; the first is the baseline
SAVE = Moment("orpo_cli.checkpoints.saving.write_manifest", 1, 3)  # of step 2, while step 3 is computed
BASELINE = Moment("orpo_cli.training.evaluation.micro_batch_loss", 1, 0)
SAMPLE = Moment("orpo_cli.training.run.answers", 1, 1)
LOADING = Moment("orpo_cli.runs.assembly.Assembly.training", 1, 0)
PREPARATION = Moment("orpo_cli.runs.assembly.prepare", 1, None)


def newest(folder: Path) -> int:
    """The step of the newest checkpoint; 0 where there is none."""
    found = list_checkpoints(folder / "checkpoints")
    return found[-1][0] if found else 0


def steps_taken(folder: Path) -> list[int]:
    """Those that metrics.jsonl has."""
    if not (folder / "metrics.jsonl").exists():
        return []
    return [record["step"] for record in records(folder) if record["kind"] == "step"]


@pytest.mark.parametrize(
    ("number", "moment"),
    [
        pytest.param("SIGTERM", STEP, id="3: SIGTERM in a step"),
        pytest.param("SIGTERM", FIRST_STEP, id="3: SIGTERM in the first step", marks=slow),
        pytest.param("SIGTERM", EVALUATION, id="3: SIGTERM in an evaluation", marks=slow),
        pytest.param("SIGTERM", SAVE, id="3: SIGTERM while a checkpoint is written", marks=slow),
        pytest.param("SIGTERM", BASELINE, id="3: SIGTERM before the first step", marks=slow),
        pytest.param("SIGTERM", SAMPLE, id="3: SIGTERM while an answer is sampled", marks=slow),
        pytest.param("SIGTERM", LOADING, id="3: SIGTERM while the model is loaded", marks=slow),
        pytest.param("SIGTERM", PREPARATION, id="3: SIGTERM while data is prepared"),
        pytest.param("SIGHUP", STEP, id="3: SIGHUP in a step", marks=slow),
        pytest.param("SIGHUP", LOADING, id="3: SIGHUP while the model is loaded", marks=slow),
        pytest.param("SIGHUP", PREPARATION, id="3: SIGHUP while data is prepared", marks=slow),
        pytest.param("SIGINT", STEP, id="4: SIGINT in a step"),
        pytest.param("SIGINT", EVALUATION, id="4: SIGINT in an evaluation", marks=slow),
        pytest.param("SIGINT", SAVE, id="4: SIGINT while a checkpoint is written", marks=slow),
        pytest.param("SIGINT", LOADING, id="4: SIGINT while the model is loaded", marks=slow),
        pytest.param("SIGINT", PREPARATION, id="4: SIGINT while data is prepared", marks=slow),
    ],
)
def test_one_signal(
    number: str, moment: Moment, orpo: Orpo, arguments: Arguments, reference: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    done = orpo.run(*arguments(folder), injections=[at(moment.function, moment.call, number)])
    assert done.code == 128 + signal.Signals[number], done.output
    assert "Traceback" not in done.output
    assert folder.exists() == (moment.saved is not None)
    if moment.saved is None:
        return
    last = done.output.splitlines()[-1]
    assert last.endswith(f"orpo resume {folder}")
    assert (f"after step {moment.saved} of 6" in last) == (moment.saved > 0)
    assert newest(folder) == moment.saved
    assert steps_taken(folder) == list(range(1, moment.saved + 1))
    assert orpo.run("resume", str(folder)).code == 0
    assert same_end(folder, reference)


SAYS = {
    "SIGTERM": "SIGTERM: stopping after this step\n",
    "SIGINT": "SIGINT: stopping after this step; another Ctrl-C stops without saving\n",
}
IN_A_STEP = [
    pytest.param("orpo_cli.training.loop.set_lr", 3, id="its beginning", marks=slow),
    pytest.param("orpo_cli.training.loop.micro_batch_loss", 3, id="its forward pass"),
    pytest.param("orpo_cli.training.loop._gradient_norm", 3, id="the norm of its gradients", marks=slow),
    pytest.param("orpo_cli.training.loop.StepDone", 3, id="its end", marks=slow),
]


@pytest.mark.parametrize("number", SAYS)
@pytest.mark.parametrize(("function", "call"), IN_A_STEP)
def test_the_step_in_which_a_signal_comes_is_the_last(
    number: str, function: str, call: int, orpo: Orpo, arguments: Arguments, tmp_path: Path
) -> None:
    """3, 4: a fourth step would raise; what is saved is the third, whole, which no `save_every` asked for."""
    folder = tmp_path / "run"
    injections = [at(function, call, number), at("orpo_cli.training.loop._take_step", 4, "bug")]
    done = orpo.run(*arguments(folder, "data.eval_fraction=0"), injections=injections)
    assert done.code == 128 + signal.Signals[number], done.output
    assert done.output.index("step 2/6") < done.output.index(SAYS[number]) < done.output.index("step 3/6")
    assert done.output.splitlines()[-1].startswith("orpo: stopped by a signal after step 3 of 6")
    assert "error" not in done.output
    assert steps_taken(folder) == [1, 2, 3]
    saved, faults = latest_checkpoint(folder / "checkpoints")
    assert (saved.name, faults) == ("step-000003", [])


@slow
def test_last_evaluation_cut_short_again_and_again(
    orpo: Orpo, arguments: Arguments, reference: Path, tmp_path: Path
) -> None:
    """4: all steps are done, and still no end without the evaluation: each start begins it anew, and says so."""
    folder, interrupt = tmp_path / "run", "orpo_cli.training.evaluation.micro_batch_loss"
    first = orpo.run(*arguments(folder), injections=[at(interrupt, 3, "SIGINT")])
    second = orpo.run("resume", str(folder), injections=[at(interrupt, 1, "SIGINT")])
    assert (first.code, second.code) == (130, 130)
    assert f"stopped by a signal after step 6 of 6; resume with: orpo resume {folder}" in first.output
    assert "stopped by a signal in the evaluation after step 6 of 6; resume with: orpo resume" in second.output
    assert [record["step"] for record in records(folder) if record["kind"] == "eval"] == [0, 3]
    assert orpo.run("resume", str(folder)).code == 0
    assert same_end(folder, reference)


def test_evaluation_of_step_three_cut_short_twice(
    orpo: Orpo, arguments: Arguments, reference: Path, tmp_path: Path
) -> None:
    """3: the second signal comes in the evaluation that was due; it is neither lost nor there twice at the end."""
    folder, evaluation = tmp_path / "run", "orpo_cli.training.evaluation.micro_batch_loss"
    assert orpo.run(*arguments(folder), injections=[at(evaluation, 2, "SIGTERM")]).code == 143
    assert orpo.run("resume", str(folder), injections=[at(evaluation, 1, "SIGTERM")]).code == 143
    assert orpo.run("resume", str(folder)).code == 0
    assert same_end(folder, reference)


@dataclass(frozen=True)
class Presses:
    """Where Ctrl-C is pressed, from the first time to the last; and of which steps the newest checkpoint may be.

    That of step 2 is on its way in step 3, and may be lost.
    """

    functions: tuple[tuple[str, int], ...]
    saved: tuple[int, ...]


IN_STEP = (("orpo_cli.training.loop._with_gradients", 3), ("orpo_cli.training.loop._gradient_norm", 3))
ENDING = (("orpo_cli.checkpoints.background.BackgroundSaver.close", 1), ("orpo_cli.cli.main._how_to_resume", 1))


@pytest.mark.parametrize(
    "presses",
    [
        pytest.param(Presses(IN_STEP, (0, 2)), id="4: twice in a step", marks=slow),
        pytest.param(Presses((*IN_STEP, *ENDING), (0, 2)), id="4: four times, until it has ended"),
        pytest.param(
            Presses((("orpo_cli.training.loop._update", 3), ("orpo_cli.checkpoints.saving.point", 2)), (3,)),
            id="4: again while the last checkpoint is written", marks=slow,
        ),
        pytest.param(
            Presses((("orpo_cli.runs.assembly.Assembly.training", 1), ("orpo_cli.cli.main._how_to_resume", 1)), (0,)),
            id="4: twice while the model is loaded", marks=slow,
        ),
    ],
)  # fmt: skip
def test_control_c_again(presses: Presses, orpo: Orpo, arguments: Arguments, reference: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    done = orpo.run(*arguments(folder), injections=[at(*place, "SIGINT") for place in presses.functions])
    assert done.code == 130
    assert "Traceback" not in done.output
    assert "Exception ignored" not in done.output
    assert done.output.splitlines()[-1] == f"orpo: interrupted; resume with: orpo resume {folder}"
    assert newest(folder) in presses.saved
    assert orpo.run("resume", str(folder)).code == 0
    assert same_end(folder, reference)


def test_4_control_c_twice_waits_for_no_checkpoint(
    orpo: Orpo, arguments: Arguments, reference: Path, tmp_path: Path
) -> None:
    """The last one, of step 3, is still on its way when the program has ended."""
    folder = tmp_path / "run"
    done = orpo.run(
        *arguments(folder),
        injections=[
            at("orpo_cli.training.loop._update", 3, "SIGINT"),
            at("orpo_cli.checkpoints.saving.write_manifest", 2, "a hundred seconds"),
            at("orpo_cli.checkpoints.background.BackgroundSaver.finished", 6, "SIGINT"),
        ],
    )
    assert done.code == 130
    assert done.output.splitlines()[-1] == f"orpo: interrupted; resume with: orpo resume {folder}"
    assert newest(folder) == 2
    assert orpo.run("resume", str(folder)).code == 0
    assert same_end(folder, reference)


WHILE_PYTHON_ENDS = f"""
import os, signal, sys

class Late:
    def __del__(self, kill=os.kill, mark=os.mkdir, pid=os.getpid(), number=signal.Signals[sys.argv.pop(1)]):
        kill(pid, number)
        mark("late")

late = Late()
sys.path.insert(0, {str(Path(WARM).parent)!r})
from warm import inject
early = sys.argv.pop(1)
if early:
    inject("orpo_cli.training.loop._update", 3, early)
from orpo_cli.cli.main import main
sys.exit(main())
"""
"""`orpo` to which a signal comes once the interpreter has taken back the functions that were to hear of it."""


def code_with_late_signal(early: str, late: str, directory: Path, *argv: str) -> int:
    """Exit code of an `orpo` with a signal in its third step and another when it has ended but for the interpreter."""
    done = subprocess.run(
        [sys.executable, "-c", WHILE_PYTHON_ENDS, late, early, *argv], cwd=directory, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert "Traceback" not in done.stderr
    assert (directory / "late").exists() == (done.returncode >= 0), done.stderr
    return done.returncode


@pytest.mark.parametrize("late", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_a_signal_while_the_interpreter_ends_changes_no_exit_code(late: str, tmp_path: Path) -> None:
    assert code_with_late_signal("", late, tmp_path, "--version") == 0


@slow
def test_a_second_signal_after_everything_was_saved(arguments: Arguments, tmp_path: Path) -> None:
    """3, 4: half a second passes between the last message and the end of the process."""
    folder = tmp_path / "run"
    assert code_with_late_signal("SIGINT", "SIGINT", tmp_path, *arguments(folder)) == 130
    assert newest(folder) == 3


@slow
def test_a_second_signal_to_several_processes_that_end(arguments: Arguments, tmp_path: Path) -> None:
    """3, 4: the one that started them passes it on to those that have said and saved everything."""
    folder, said = tmp_path / "run", tmp_path / "said"
    typed = arguments(folder, "trainer.processes=2", "trainer.max_steps=4000")
    with said.open("wb") as output:
        running = subprocess.Popen([sys.executable, "-m", "orpo_cli", *typed], stderr=output)
    ends = time.monotonic() + 120
    for words in ("step 3/", "stopped by a signal after step"):
        while words not in said.read_text(errors="replace"):
            assert running.poll() is None
            assert time.monotonic() < ends
            time.sleep(0.01)
        if words.startswith("step"):
            running.send_signal(signal.SIGINT)
    time.sleep(0.2)
    running.send_signal(signal.SIGINT)
    assert running.wait(60) == 130
    assert "Traceback" not in said.read_text(errors="replace")
    assert "was killed by" not in said.read_text(errors="replace")


def test_3_what_was_typed_to_go_on_is_part_of_how_to_go_on(orpo: Orpo, reference: Path, tmp_path: Path) -> None:
    """Without it the run would end for the same reason as before."""
    folder = gone_back(reference, tmp_path / "run", 4)
    typed = ["trainer.on_nonfinite=skip", "trainer.max_time='1:00:00'", "trainer.max_tokens=500", "trainer.keep_last=3"]
    stopped = [at("orpo_cli.training.loop._update", 1, "SIGTERM")]
    done = orpo.run("resume", str(folder), *typed, injections=stopped)
    assert done.code == 143, done.output
    advised = shlex.split(" ".join(done.output.split()).rpartition("resume with: ")[2])
    assert advised[:3] == ["orpo", "resume", str(folder)]
    assert sorted(advised[3:]) == sorted(typed)
    done = orpo.run(*advised[1:])
    assert done.code == 0, done.output


@slow
def test_signal_after_the_last_step_changes_nothing(
    orpo: Orpo, arguments: Arguments, reference: Path, tmp_path: Path
) -> None:
    """3: all steps are taken and saved; a run that is publishing its model ends as it would have."""
    done = orpo.run(*arguments(tmp_path / "run"), injections=[at("orpo_cli.runs.execution.stage_model", 1, "SIGTERM")])
    assert done.code == 0
    assert same_end(tmp_path / "run", reference)


def test_signal_after_the_end_is_noted_changes_nothing(
    orpo: Orpo, arguments: Arguments, reference: Path, tmp_path: Path
) -> None:
    """4: run.json says that the run is finished, and so does its exit code."""
    late = [at(f"orpo_cli.reporting.{place}", 1, "SIGINT") for place in ("terminal.Terminal._finish", "summary.usage")]
    done = orpo.run(*arguments(tmp_path / "run"), injections=late)
    assert (done.code, "resume with" in done.output, "stopping" in done.output) == (0, False, False), done.output
    assert done.output.rstrip().endswith(str(tmp_path / "run" / "model"))
    assert same_end(tmp_path / "run", reference)


def test_signal_while_the_model_of_a_finished_run_is_to_be_published_again(
    orpo: Orpo, reference: Path, tmp_path: Path
) -> None:
    """4: that it was finished once is no end of this one."""
    folder = shutil.copytree(reference, tmp_path / "run")
    shutil.rmtree(folder / "model")
    done = orpo.run("resume", str(folder), injections=[at("orpo_cli.runs.assembly.prepare", 1, "SIGINT")])
    assert done.code == 130, done.output
    assert f"resume with: orpo resume {folder}" in done.output
    assert orpo.run("resume", str(folder)).code == 0
    assert same_end(folder, reference)


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def children_of(pid: int) -> list[int]:
    """Children of all threads of a process."""
    return [int(child) for file in Path(f"/proc/{pid}/task").glob("*/children") for child in file.read_text().split()]


@slow
@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="looks for processes in /proc")
@pytest.mark.parametrize("whole_group", [False, True], ids=["3: to the main process", "3: to all processes"])
def test_sigterm_while_other_processes_prepare_the_data(
    whole_group: bool, orpo: Orpo, arguments: Arguments, tmp_path: Path
) -> None:
    """`data.workers=2`: nobody shows a traceback, and nobody stays."""
    path, cache = tmp_path / "long.csv", tmp_path / "cache"
    lines = [f"{pair['prompt']},{pair['chosen']},{pair['rejected']}\n" for pair in pairs(100)]
    path.write_text("prompt,chosen,rejected\n" + "".join(lines * 400), encoding="utf-8")
    typed = arguments(tmp_path / "run", f"data.path={path}", "data.workers=2")
    running = orpo.start(*typed, environment={"ORPO_CACHE": str(cache)})
    running.wait_for(lambda: any((cache / "tokens").glob(".tmp-*/rows.arrow")))
    running.wait_for(lambda: len(children_of(running.pid)) > 2)  # and the one that watches over shared memory
    others = children_of(running.pid)
    (os.killpg if whole_group else os.kill)(running.pid, signal.SIGTERM)
    done = running.wait()
    assert done.code == 143, done.output
    assert "Traceback" not in done.output
    assert all(path.name.startswith(".tmp-") for path in (cache / "tokens").glob("*"))  # nobody went on to the end
    running.wait_for(lambda: not any(map(is_running, others)))
    assert not (tmp_path / "run").exists()


def test_a_display_that_cannot_be_written_to_just_now_stops_nothing() -> None:
    """4: a signal in the middle of a write to stderr; Python refuses a second write inside it with RuntimeError."""

    def refused(_number: int) -> None:
        raise RuntimeError("reentrant call inside <_io.BufferedWriter name='<stderr>'>")

    before = [signal.getsignal(number) for number in SIGNALS]
    stop = StopRequest()
    with stop_at_step_boundary(refused, stop):
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.signal_number == signal.SIGTERM
    assert [signal.getsignal(number) for number in SIGNALS] == before


def test_a_signal_that_was_to_be_ignored_is_ignored() -> None:
    """4: a shell starts jobs in the background with SIGINT ignored; Ctrl-C is not meant for them."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        stop = StopRequest()
        with stop_at_step_boundary(lambda _number: None, stop):
            os.kill(os.getpid(), signal.SIGINT)
            assert stop.signal_number is None
    finally:
        signal.signal(signal.SIGINT, before)


def test_time_limit(orpo: Orpo, arguments: Arguments, reference: Path, tmp_path: Path) -> None:
    """trainer.max_time: a second that is over before the first step; each start takes one all the same."""
    folder, late = tmp_path / "run", at("orpo_cli.runs.assembly.Assembly.training", 1, "one second")
    done = orpo.run(*arguments(folder, "trainer.max_time=1s"), injections=[late])
    assert done.code == 0
    assert re.fullmatch(
        r"! trainer\.max_time: saved after step 1 of 6; [\d.]+ s over, [\d.]+ s of them before the first step, "
        rf"the save took [\d.]+ s; resume with: orpo resume {folder}",
        done.output.splitlines()[-1],
    )
    assert not (folder / "model").exists()
    assert '"finished": false' in (folder / "run.json").read_text(encoding="utf-8")
    assert "Not finished: step 1 is the last that was recorded." in (folder / "report.html").read_text(encoding="utf-8")
    assert orpo.run("resume", str(folder), "trainer.max_time=null").code == 0
    assert same_end(folder, reference)


@slow
def test_a_second_ctrl_c_leaves_at_once_while_the_page_of_a_stopped_run_is_written(
    orpo: Orpo, arguments: Arguments, reference: Path, tmp_path: Path
) -> None:
    """The checkpoint is there by then; where nobody presses it, so is the page."""
    folder, first = tmp_path / "run", at("orpo_cli.training.loop._update", 3, "SIGINT")
    done = orpo.run(*arguments(folder), injections=[first, at("orpo_cli.runs.comparison_page.page", 1, "SIGINT")])
    assert done.code == 130
    assert done.output.splitlines()[-1].startswith("orpo: interrupted; ")
    assert not (folder / "report.html").exists()
    assert (folder / "checkpoints" / "LATEST").read_text(encoding="utf-8") == "step-000003\n"
    stopped = at("orpo_cli.training.loop._update", 1, "SIGINT")
    assert orpo.run("resume", str(folder), injections=[stopped]).code == 130
    assert "Not finished: step 4 is the last that was recorded." in (folder / "report.html").read_text(encoding="utf-8")
    assert orpo.run("resume", str(folder)).code == 0
    assert same_end(folder, reference)


def slow_save(call: int) -> list[dict[str, Any]]:
    """The Nth checkpoint takes three seconds more, beside the steps."""
    parts = "write_manifest", "verify", "point"
    return [at(f"orpo_cli.checkpoints.saving.{part}", call, "one second") for part in parts]


@slow
def test_time_limit_leaves_time_for_a_save_as_long_as_the_longest(
    orpo: Orpo, arguments: Arguments, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    settings = "trainer.max_time=20s", "trainer.max_steps=40000", "trainer.save_every=1", "trainer.eval_every=null"
    injections = [injected for call in range(1, 9) for injected in slow_save(call)]
    started = time.monotonic()
    done = orpo.run(*arguments(folder, *settings), injections=injections)
    assert done.code == 0
    assert f"of 40000; resume with: orpo resume {folder}" in done.output.splitlines()[-1]
    assert time.monotonic() - started < 20


@slow
def test_time_limit_that_was_not_enough_for_the_first_save(orpo: Orpo, arguments: Arguments, tmp_path: Path) -> None:
    settings = "trainer.max_time=8s", "trainer.max_steps=40000", "trainer.save_every=null", "trainer.eval_every=null"
    done = orpo.run(*arguments(tmp_path / "run", *settings), injections=slow_save(1))
    assert done.code == 0
    assert re.search(r" of 40000; [\d.]+ s over, the save took [3-6]\.\d s; resume", done.output.splitlines()[-1])
