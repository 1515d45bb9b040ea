"""A sweep whose jobs are in trouble: the others run, a table says how each went, and going on does what is left."""

import json
import re
import shlex
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from matrix import rows
from tiny_runs import Arguments, Done, Orpo, at, digests, fails, kill, records

from orpo_cli.cli.main import main
from orpo_cli.machine import processes

STEP = "orpo_cli.training.loop._take_step"
SAVE = "orpo_cli.training.run.begin_checkpoint"
UNREADABLE = fails("orpo_cli.runs.assembly.Assembly._load_model", 1, "EIO")


@dataclass(frozen=True)
class EndedProcess:
    """A job that has ended by the time that it is looked at first."""

    code: int

    def exit_code(self) -> int:
        return self.code

    def output(self) -> str:
        return ""


@dataclass
class Sweep:
    """Types sweeps in this process, whose jobs are forks of the warm one. `jobs` is how those of the last one ended."""

    orpo: Orpo
    capfd: pytest.CaptureFixture[str]
    hurt: dict[int, dict[str, Any]] = field(default_factory=dict)
    jobs: list[Done] = field(default_factory=list)

    def job(self, arguments: list[str], children: processes.Children, *_: Any) -> EndedProcess:
        injection = self.hurt.get(len(self.jobs))
        self.jobs.append(self.orpo.run("train", *arguments, injections=[injection] if injection else []))
        code = self.jobs[-1].code
        if code in processes.INTERRUPTED:  # stands for a signal to the sweep, which passes it on
            children.tell(code - 128, None)
        return EndedProcess(code if code >= 0 else 128 - code)

    def type(self, *argv: str, hurt: dict[int, dict[str, Any]] | None = None) -> Done:
        """Args: hurt: what is injected into which job."""
        self.hurt, self.jobs = hurt or {}, []
        return Done(main(argv), self.capfd.readouterr().err)


@pytest.fixture
def sweep(orpo: Orpo, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Sweep:
    typed = Sweep(orpo, capfd)
    monkeypatch.setattr(processes, "start_alone", typed.job)
    monkeypatch.setenv("COLUMNS", "300")
    return typed


def sweeping(argv: list[str], *overrides: str, most: int = 3) -> list[str]:
    kept = [word for word in argv[1:] if not word.startswith("trainer.max_steps=")]
    return [argv[0], "-m", *kept, f"trainer.max_steps={most}", *overrides]


def outcomes(said: str) -> list[tuple[str, str, str]]:
    """What varies, how it ended and in which folder, of each job; nothing varies where it is on the leaderboard."""
    ranked, _, rest = said.rpartition("leaderboard: ")[2].partition("not ranked\n")
    lines = [re.split(r" {2,}", line.strip()) for line in ranked.splitlines()]
    column = next((line.index("runs") for line in lines if "runs" in line), None)
    places = [line[column] for line in lines if re.fullmatch(r"\d+=?", line[0]) and column is not None]
    found = [("", "done", job) for place in places for job in place.split(", ")]
    for line in rest.splitlines():
        match re.split(r" {2,}", line.strip()):
            case [folder, *overrides, state] if folder.startswith("/"):
                ended = state.partition(",")[0]
                found.append((" ".join(overrides), "done" if ended == "finished" else ended, Path(folder).name))
    return sorted(found, key=lambda job: int(job[2]))


def how(said: str) -> list[str]:
    """How each job of a sweep ended."""
    return [state for _, state, _ in outcomes(said)]


def steps(folder: Path) -> list[int]:
    return [record["step"] for record in records(folder) if record["kind"] == "step"]


def written(path: Path) -> tuple[int, int, int]:
    """Which file it is and when that was changed last; reading it changes neither."""
    status = path.stat()
    return status.st_ino, status.st_mtime_ns, status.st_ctime_ns


LR = "optimizer.lr=0.001,-1,1e30,0.002,0.003"
GOES_ON = [
    pytest.param(lambda folder, _: ["resume", str(folder)], id="47: orpo resume"),
    pytest.param(
        lambda _, typed: [*typed, "resume=auto"], id="47: typed again with resume=auto", marks=pytest.mark.slow
    ),
]


@pytest.mark.slow
@pytest.mark.parametrize("again", GOES_ON)
def test_47_jobs_in_trouble_and_the_rest(
    again: Callable[[Path, list[str]], list[str]], sweep: Sweep, arguments: Arguments, tmp_path: Path
) -> None:
    folder = tmp_path / "sweep"
    typed = sweeping(arguments(folder), LR)
    done = sweep.type(*typed, hurt={3: kill(SAVE, 2), 4: UNREADABLE})
    assert done.code == 1
    assert outcomes(done.output) == [
        ("", "done", "0"),
        ("optimizer.lr=-1", "refused (exit 2)", "1"),
        ("optimizer.lr=1e+30", "diverged (exit 76)", "2"),
        ("optimizer.lr=0.002", "ended by SIGKILL", "3"),
        ("optimizer.lr=0.003", "write failed (exit 74)", "4"),
    ]
    accuracy = [record["accuracy"] for record in records(folder / "0") if record["kind"] == "eval"][-1]
    assert f" {accuracy:.3f} " in done.output.rpartition("leaderboard: ")[2].partition("not ranked")[0]
    assert f"resume with: orpo resume {folder}" in done.output
    assert f"the page of the sweep: {folder}/report.html" in done.output
    assert "diverged (exit 76)" in (folder / "report.html").read_text(encoding="utf-8")
    model = written(folder / "0" / "model" / "model.safetensors")
    done = sweep.type(*again(folder, typed))
    assert done.code == 1
    assert how(done.output) == [
        "done", "refused (exit 2)", "diverged (exit 76)", "done", "done",
    ]  # fmt: skip
    assert "finished already" in sweep.jobs[0].output
    assert "loading" not in sweep.jobs[0].output
    assert written(folder / "0" / "model" / "model.safetensors") == model
    assert "resuming after step 2" in sweep.jobs[3].output
    assert [steps(folder / job) for job in "034"] == [[1, 2, 3]] * 3


FINISHED = "(folder / 'run.json').write_text('{\"finished\": true}')"
ENDS = {
    "1": FINISHED,
    "2": "raise RuntimeError('a bug')",
    "3": "sys.exit(3)",
    "4": "import os; os.abort()",
    "5": FINISHED,
}
"""What a job does, as Python, by its seed."""


def test_47_jobs_that_raise_or_exit_are_listed_with_their_codes(
    scripted: dict[str, str], arguments: Arguments, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    scripted |= ENDS
    folder = tmp_path / "sweep"
    assert main(sweeping(arguments(folder), f"seed={','.join(ENDS)}")) == 1
    said = capfd.readouterr().err
    assert outcomes(said) == [
        ("seed=1", "done", "0"),
        ("seed=2", "failed (exit 1)", "1"),
        ("seed=3", "failed (exit 3)", "2"),
        ("seed=4", "ended by SIGABRT", "3"),
        ("seed=5", "done", "4"),
    ]
    assert "RuntimeError: a bug" in said
    assert f"resume with: orpo resume {folder}" in said


@pytest.mark.parametrize(
    ("number", "seeds", "code"), [("SIGTERM", "1,2", 143), ("SIGINT", "1,2", 130), ("SIGTERM", "1", 0)]
)
def test_47_a_signal_that_a_job_does_not_heed_because_it_is_ending(
    number: str,
    seeds: str,
    code: int,
    scripted: dict[str, str],
    arguments: Arguments,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """The sweep heeds it: no other job begins."""
    tells = f"import os, signal; signal.signal(signal.{number}, signal.SIG_IGN); os.kill(os.getppid(), signal.{number})"
    scripted |= {"1": f"{tells}; {FINISHED}", "2": FINISHED}
    folder = tmp_path / "sweep"
    assert main(sweeping(arguments(folder), f"seed={seeds}")) == code
    said = capfd.readouterr().err
    assert how(said) == ["done"]
    assert (f"resume with: orpo resume {folder}" in said) == (code != 0)
    assert not (folder / "1").exists()


def test_47_a_job_that_exits_with_0_before_it_has_finished_has_failed(
    scripted: dict[str, str], arguments: Arguments, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Where it has no `trainer.max_time`, after which that is as it should be."""
    scripted |= {"1": "sys.exit(0)", "2": FINISHED}
    code = main(sweeping(arguments(tmp_path / "sweep"), "seed=1,2"))
    first, second = how(capfd.readouterr().err)
    assert second == "done"
    assert first not in ("done", "stopped at trainer.max_time")
    assert code == 1


@pytest.mark.slow
def test_47_a_sweep_that_was_extended_goes_on_with_all_of_its_jobs(
    sweep: Sweep, arguments: Arguments, tmp_path: Path
) -> None:
    """The way on that is named has what was added; the folder knows the first jobs alone."""
    folder = tmp_path / "sweep"
    assert sweep.type(*sweeping(arguments(folder), "seed=1,2")).code == 0
    done = sweep.type("resume", str(folder), "seed=1,2,3", hurt={2: at(STEP, 2, "SIGTERM")})
    assert done.code == 143, done.output
    advised = done.output.splitlines()[-1]
    done = sweep.type(*shlex.split(advised.removeprefix("resume with: orpo ")))
    assert done.code == 0, done.output
    assert how(done.output) == ["done"] * 3


def test_47_interrupt_ends_the_sweep(sweep: Sweep, arguments: Arguments, tmp_path: Path) -> None:
    folder = tmp_path / "sweep"
    done = sweep.type(*sweeping(arguments(folder), "seed=1,2"), hurt={0: at(STEP, 2, "SIGTERM")})
    assert done.code == 143
    assert len(sweep.jobs) == 1
    assert f"resume with: orpo resume {folder}" in done.output
    done = sweep.type("resume", str(folder))
    assert done.code == 0, done.output
    assert how(done.output) == ["done", "done"]
    assert [steps(folder / job) for job in "01"] == [[1, 2, 3]] * 2


@pytest.mark.slow
def test_47_sweep_with_another_setting_is_refused(sweep: Sweep, arguments: Arguments, tmp_path: Path) -> None:
    folder = tmp_path / "sweep"
    typed = sweeping(arguments(folder), "seed=1,2")
    assert sweep.type(*typed, hurt={1: kill(SAVE, 2)}).code == 1
    done = sweep.type("resume", str(folder), "lambda=0.7")
    assert done.code == 2
    assert "lambda=0.7 (was 0.1): cannot change on resume" in done.output
    assert sweep.jobs == []
    for again in (typed, sweeping(arguments(folder), "seed=5")):
        done = sweep.type(*again)
        assert done.code == 73
        assert f"{folder}: holds a sweep; choose another output_dir, or resume=auto" in done.output.replace("\n", " ")
        assert sweep.jobs == []
    done = sweep.type("resume", str(folder), "trainer.log_every=2")
    assert done.code == 0, done.output


def test_47_a_sweep_in_the_folder_of_a_run(sweep: Sweep, orpo: Orpo, arguments: Arguments, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    assert orpo.run(*arguments(folder, "trainer.max_steps=1")).code == 0
    done = sweep.type(*sweeping(arguments(folder), "seed=1,2"))
    assert done.code == 73
    assert f"{folder}: holds a run; choose another output_dir for a sweep" in done.output.replace("\n", " ")
    assert not (folder / "sweep.json").exists()


@pytest.mark.slow
def test_47_a_list_that_changed_is_refused_before_any_job(sweep: Sweep, arguments: Arguments, tmp_path: Path) -> None:
    """Where the folder of a job holds a run with another value; a list may grow at its end."""
    folder = tmp_path / "sweep"
    typed = sweeping(arguments(folder), most=1)
    assert sweep.type(*typed, "lambda=0.1,0.2").code == 0
    before = digests(folder)
    for changed, job, said in (
        ("0.3,0.2,0.5", 0, "lambda=0.3 (was 0.1)"),
        ("0.1,0.3", 1, "lambda=0.3 (was 0.2)"),
        ("0.05,0.1,0.2", 0, "lambda=0.05 (was 0.1)"),
        ("-1,0.2", 0, "lambda=-1"),
    ):
        done = sweep.type(*typed, f"lambda={changed}", "resume=auto")
        assert done.code == 2
        [line] = done.output.splitlines()
        assert f"job {job}, in {folder}/{job}: " in line
        assert said in line
        assert sweep.jobs == []
        assert digests(folder) == before
        assert sorted(path.name for path in folder.iterdir() if path.is_dir()) == ["0", "1"]
    done = sweep.type(*typed, "lambda=0.1,0.2,0.5", "resume=auto")
    assert done.code == 0, done.output
    assert ["finished already" in job.output for job in sweep.jobs] == [True, True, False]
    assert "lambda=0.1,0.2,0.5" in json.loads((folder / "sweep.json").read_text(encoding="utf-8"))["arguments"]


@pytest.mark.parametrize("note", [pytest.param(None, marks=pytest.mark.slow), "of an earlier sweep"])
def test_a_sweep_that_is_refused_leaves_the_note_of_hydra_as_it_was(
    note: str | None, sweep: Sweep, arguments: Arguments, tmp_path: Path
) -> None:
    (tmp_path / "mine.txt").write_text("mine", encoding="utf-8")
    if note is not None:
        (tmp_path / "multirun.yaml").write_text(note, encoding="utf-8")
    before = digests(tmp_path)
    assert sweep.type(*sweeping(arguments(tmp_path), "lambda=-1,-2")).code == 2
    assert digests(tmp_path) == before
    for already_there in ("sweep.json", "config.yaml"):
        (tmp_path / already_there).write_text("{}", encoding="utf-8")
        before = digests(tmp_path)
        assert sweep.type(*sweeping(arguments(tmp_path), "lambda=1,2")).code == 73
        assert digests(tmp_path) == before


@pytest.mark.slow
def test_47_values_of_jobs_that_have_not_begun_may_change(sweep: Sweep, arguments: Arguments, tmp_path: Path) -> None:
    typed = sweeping(arguments(tmp_path / "sweep"), most=1)
    assert sweep.type(*typed, "lambda=0.1,-1").code == 1
    done = sweep.type(*typed, "lambda=0.1,0.2", "resume=auto")
    assert done.code == 0, done.output


@pytest.mark.parametrize(("code", "advised"), [(2, False), (74, True)])
def test_47_a_way_on_is_named_only_where_a_job_can_go_on(
    code: int,
    advised: bool,
    scripted: dict[str, str],
    arguments: Arguments,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """What has been refused would be refused again."""
    scripted |= {"1": FINISHED, "2": f"sys.exit({code})"}
    assert main(sweeping(arguments(tmp_path / "sweep"), "seed=1,2")) == 1
    assert ("resume with: orpo resume" in capfd.readouterr().err) == advised


def test_47_sweep_goes_on_from_another_directory(
    arguments: Arguments, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (data,) = (word for word in arguments(tmp_path / "sweep") if word.startswith("data="))
    Path("prefs.jsonl").write_bytes(Path(data.removeprefix("data=")).read_bytes())
    typed = [word for word in sweeping(arguments(Path("sweep")), "seed=1,2") if word != data]
    seen: list[Path] = []

    def start_alone(*_: Any) -> EndedProcess:
        seen.append(Path.cwd())
        return EndedProcess(0)

    monkeypatch.setattr(processes, "start_alone", start_alone)
    typed.append("trainer.max_time=1h")
    assert main([*typed, "data=prefs.jsonl"]) == 0
    assert json.loads(Path("sweep/sweep.json").read_text(encoding="utf-8"))["directory"] == str(tmp_path)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert main(["resume", "../sweep"]) == 0
    assert seen == [tmp_path] * 4
    assert Path.cwd() == tmp_path / "elsewhere"


PLACES = "output_dir=other", "hydra.sweep.dir=other", "resume=other", "hydra.sweep.subdir=x"


@pytest.mark.parametrize("place", rows({place: place for place in PLACES}, "output_dir=other"))
def test_47_sweep_does_not_go_on_in_another_folder(
    place: str,
    scripted: dict[str, str],
    arguments: Arguments,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """It would begin there."""
    monkeypatch.chdir(tmp_path)
    scripted |= {"1": FINISHED, "2": FINISHED}
    assert main(sweeping(arguments(tmp_path / "sweep"), "seed=1,2")) == 0
    before = digests(tmp_path)
    assert main(["resume", "sweep", place]) == 2
    assert f"{place}: a sweep is resumed in its own folder" in capfd.readouterr().err
    assert digests(tmp_path) == before


REFUSED = [
    pytest.param("?", "damaged", id="sweep.json damaged"),
    pytest.param('{"arguments": ["--multirun", "seed=1,2"], "directory": "/nowhere"}', "no such directory", id="moved"),
]


@pytest.mark.parametrize(("noted", "said"), REFUSED)
def test_sweep_that_cannot_go_on(noted: str, said: str, sweep: Sweep, tmp_path: Path) -> None:
    (tmp_path / "sweep.json").write_text(noted, encoding="utf-8")
    done = sweep.type("resume", str(tmp_path))
    assert done.code in (65, 66)
    assert said in done.output
    assert sweep.jobs == []


NAMED = {
    "all overrides": (["hydra.sweep.subdir=${hydra.job.override_dirname}"], "lambda=0.1,"),
    "two values, a dot and a space": (["hydra.sweep.subdir='v1.0 ${lambda}_${seed}'"], "v1.0 0.1_0"),
    "with a plus": (["++hydra.sweep.subdir=v${lambda}"], "v0.1"),
    "told more": (["hydra.verbose=True"], "0"),
    "as Hydra writes it": (["hydra.sweep.subdir='job@${hydra:job.num}'"], "job@0"),
}


@pytest.mark.parametrize(("words", "first"), rows(NAMED, "two values, a dot and a space"))
def test_47_a_sweep_goes_on_whatever_its_jobs_are_called(
    words: list[str], first: str, sweep: Sweep, arguments: Arguments, tmp_path: Path
) -> None:
    folder = tmp_path / "elsewhere" / ".." / "sweep"
    (tmp_path / "elsewhere").mkdir()
    typed = [word for word in arguments(folder) if not word.startswith("data")]  # whose path has a `/`
    assert sweep.type(*sweeping(typed, "lambda=0.1,0.2", *words, most=1)).code == 0
    made = sorted(path.name for path in folder.iterdir() if path.is_dir())
    assert len(made) == 2
    assert made[0].startswith(first)
    done = sweep.type("resume", str(folder))
    assert done.code == 0, done.output
    assert ["finished already" in job.output for job in sweep.jobs] == [True, True]
    done = sweep.type("resume", str(folder), "trainer.log_every=3")
    assert (done.code, "would not be resumed" in done.output) == ((2, True) if first == "lambda=0.1," else (0, False))
    assert sorted(path.name for path in folder.iterdir() if path.is_dir()) == made


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("hydra.sweep.subdir=same", "each needs a folder of its own"),
        ("hydra.sweep.subdir=a/${lambda}", "not directly in that of the sweep"),
        ("hydra.sweep.subdir=${lambda}..", "cannot be set in a sweep"),
        ("hydra/launcher=ray", "no launcher here"),
        ("output_dir=sweep/${lambda}", "a sweep has one output_dir"),
    ],
)
@pytest.mark.parametrize("folder", ["{}/sweep", pytest.param("../{}/sweep", marks=pytest.mark.slow)])
def test_47_jobs_without_a_folder_of_their_own_are_refused_before_any(
    folder: str,
    word: str,
    said: str,
    sweep: Sweep,
    arguments: Arguments,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    place = Path(folder.format(tmp_path if folder.startswith("{") else tmp_path.name))
    typed = [other for other in arguments(place) if other.partition("=")[0] != word.partition("=")[0]]
    done = sweep.type(*sweeping(typed, "lambda=0.1,0.2", word))
    assert done.code == 2
    assert said in done.output
    assert sweep.jobs == []
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "typed",
    ["resume=auto", *(pytest.param(word, marks=pytest.mark.slow) for word in ("resume='auto'", "++resume=auto"))],
)
def test_resume_auto_of_a_sweep_needs_its_folder(
    typed: str, sweep: Sweep, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    done = sweep.type("train", "-m", "model=tiny", "seed=1,2", typed)
    assert done.code == 2
    assert "output_dir=FOLDER" in done.output
    assert list(tmp_path.iterdir()) == []
