"""What run.json says of when and how a run worked, and the times in its records."""

import json
import os
import subprocess
import time
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from tiny_runs import Arguments, Orpo, gone_back, write_pairs

from orpo_cli.cli.main import main
from orpo_cli.files.git import commit_of
from orpo_cli.reporting.metrics_file import EVALUATED, METRICS, record_of
from orpo_cli.runs.folder import RunFolder
from orpo_cli.runs.session import seconds_so_far


def moment(text: str) -> float:
    return datetime.fromisoformat(text).timestamp()


def test_a_run_and_its_resume(orpo: Orpo, arguments: Arguments, tmp_path: Path) -> None:
    """The seconds are those of both sessions, each no longer than it took from outside."""
    typed, began = arguments(tmp_path / "whole"), time.time()
    assert orpo.run(*typed).code == 0
    first, ended = RunFolder(tmp_path / "whole").record, time.time()
    assert (first["command"], first["processes"]) == (f"orpo {' '.join(typed)}", 1)
    assert began - 1 <= moment(first["started"]) <= moment(first["ended"]) <= ended
    assert 0 < first["seconds"] <= ended - began
    assert 10_000_000 < first["peak_memory"] < 100_000_000_000
    assert (first["total_steps"], first["panel"]["steps"]) == (6, "6 of 4 pairs")
    run, again = gone_back(tmp_path / "whole", tmp_path / "run", 4), time.time()
    assert orpo.run("resume", str(run)).code == 0
    second, ended = RunFolder(run).record, time.time()
    assert (second["started"], second["command"]) == (first["started"], first["command"])
    assert second["resumes"][0]["command"] == f"orpo resume {run}"
    assert again - 1 <= moment(second["resumes"][0]["started"]) <= moment(second["ended"]) <= ended
    assert 0 < second["seconds"] - first["seconds"] <= ended - again
    times = [record["time"] for record in RunFolder(run).records]
    assert times == sorted(times)
    assert began <= times[0] < again < times[-1] <= ended


def test_train_log_says_when(reference: Path) -> None:
    lines = (reference / "train.log").read_text(encoding="utf-8").splitlines()
    times = {line.partition(" ")[2].split("/")[0]: line.partition(" ")[0] for line in lines if "Z step " in line}
    recorded = {f"step {record['step']}": record["time"] for record in RunFolder(reference).records}
    assert len(times) == 6
    assert all(abs(moment(text) - recorded[step]) <= 1.5 for step, text in times.items())


@pytest.mark.parametrize(
    ("record", "seconds"),
    [
        ({}, 0.0),
        ({"started": "2026-01-31T10:00:00Z", "seconds": 0.0}, 90.0),
        ({"started": "2026-01-31T10:00:00Z", "seconds": 75.5, "ended": "2026-01-31T10:01:16Z"}, 75.5),
        ({"started": "2026-01-31T08:00:00Z", "seconds": 20.0, "resumes": [{"started": "2026-01-31T10:01:00Z"}]}, 50.0),
        ({"started": "2026-01-31T10:00:00Z", "seconds": 20.0, "resumes": [{"after_step": 2}]}, 20.0),
        ({"started": 7, "seconds": "x", "resumes": 3}, 0.0),
    ],
    ids=["earlier version", "killed", "finished", "killed after a resume", "of two versions", "damaged"],
)
def test_seconds_of_the_sessions_so_far(record: dict[str, Any], seconds: float) -> None:
    """The last step was recorded at 10:01:30."""
    records = [{"step": 1}, {"step": 2, "time": moment("2026-01-31T10:01:30Z")}]
    assert seconds_so_far(record, records) == seconds


@pytest.mark.parametrize(
    ("more", "is_one"), [({}, True), ({"time": 1.5}, True), ({"time": "now"}, False), ({"other": 1}, False)]
)
def test_records_have_a_time_since_this_version(more: dict[str, Any], is_one: bool) -> None:
    """A metric of another name may be in a step; a skipped one has nothing else."""
    skipped = {"kind": "skipped", "step": 3, "report": "nan"} | more
    assert record_of(json.dumps(skipped).encode(), METRICS) == (skipped if is_one else None)
    step = {"kind": "eval", "step": 3, **dict.fromkeys(EVALUATED, 0.5)} | more
    assert record_of(json.dumps(step).encode(), METRICS) == (None if more == {"time": "now"} else step)


def repository(folder: Path) -> str:
    """Make a folder a git work tree with one commit; return the commit, as git's own file has it."""
    who = ["-c", "user.name=a", "-c", "user.email=a@example.org", "-c", "init.defaultBranch=main"]
    for command in (["init", "-q"], ["commit", "-q", "--allow-empty", "-m", "first"]):
        subprocess.run(["git", *who, *command], cwd=folder, check=True)
    return (folder / ".git/refs/heads/main").read_text(encoding="utf-8").strip()


def test_commit_of_the_folder_of_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = tmp_path / "kept"
    kept.mkdir()
    preferences, commit = write_pairs(kept / "prefs.jsonl", 8), repository(kept)
    monkeypatch.setenv("GIT_DIR", str(tmp_path / "elsewhere"))  # as in a hook: of another repository
    typed = ["model=tiny", "trainer.max_steps=1", "trainer.sample_tokens=0"]
    assert main(["train", f"data={preferences}", f"output_dir={tmp_path / 'run'}", *typed]) == 0
    assert RunFolder(tmp_path / "run").record["data_commits"] == {str(kept): commit}


def test_no_git_no_commit_and_no_waiting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert commit_of(tmp_path, 10) is None  # in no work tree
    repository(tmp_path)
    slow = tmp_path / "bin" / "git"
    slow.parent.mkdir()
    slow.write_text("#!/bin/sh\nexec sleep 60\n")
    slow.chmod(0o755)
    before = os.environ["PATH"]
    monkeypatch.setenv("PATH", f"{slow.parent}:{before}")
    began = time.monotonic()
    assert commit_of(tmp_path, 0.2) is None
    assert time.monotonic() - began < 30
    monkeypatch.setenv("PATH", str(tmp_path))  # there is none
    assert commit_of(tmp_path, 10) is None
