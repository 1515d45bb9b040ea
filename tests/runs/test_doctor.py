"""`orpo doctor`: what it says of machines that differ, each made in the test."""

import json
import socket
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import torch

from orpo_cli.cli.main import main
from orpo_cli.runs import doctor
from orpo_cli.runs.doctor import Fact, examine


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


def facts(directory: Path, environment: dict[str, str] | None = None) -> dict[str, Fact]:
    return {fact.name: fact for fact in examine(directory, environment or {})}


def test_every_line_has_a_value_and_a_meaning(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert all(fact["name"] and fact["value"] and fact["meaning"] for fact in said)
    assert {"versions", "precision", "threads", "memory", "disk", "hub", "processes"} <= {fact["name"] for fact in said}
    assert f"torch {torch.__version__}" in said[0]["value"]
    assert main(["doctor"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "every package is in the range that orpo asks for" in shown


def test_a_package_out_of_its_range_is_a_problem_with_its_cure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    version = metadata.version
    monkeypatch.setattr(metadata, "version", lambda name: "4.44.0" if name == "transformers" else version(name))
    fact = facts(tmp_path)["versions"]
    assert fact.is_problem
    assert fact.meaning == "transformers 4.44.0: pip install 'transformers<6,>=5.20'"
    assert main(["doctor"]) == 65
    assert "! versions" in " ".join(capsys.readouterr().out.split())


def test_an_extra_that_is_missing_is_no_problem(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    version = metadata.version

    def without_optuna(name: str) -> str:
        if name == "optuna":
            raise metadata.PackageNotFoundError(name)
        return version(name)

    assert facts(tmp_path)["extra optuna"].value == "installed"
    monkeypatch.setattr(metadata, "version", without_optuna)
    fact = facts(tmp_path)["extra optuna"]
    assert fact == Fact("extra optuna", "not installed", "pip install 'orpo-cli[optuna]' for sweep.trials=N")


@pytest.mark.skipif(torch.accelerator.is_available(), reason="the GPU is used here")
def test_a_gpu_that_this_torch_cannot_use_is_a_problem(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\necho NVIDIA L4\necho NVIDIA L4\n")
    tool.chmod(0o755)
    assert not facts(tmp_path)["device"].is_problem
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")
    fact = facts(tmp_path)["device"]
    assert fact.is_problem
    assert fact.value == "the CPU, beside NVIDIA L4"
    tool.write_text("#!/bin/sh\nexit 9\n")  # a driver that does not answer
    assert not facts(tmp_path)["device"].is_problem


@pytest.mark.parametrize(("environment", "value"), [
    ({}, "one, and no launcher"),
    ({"WORLD_SIZE": "4", "RANK": "2", "SLURM_JOB_ID": "7"}, "process 2 of 4, as a launcher such as torchrun says"),
    ({"SLURM_JOB_ID": "7", "SLURM_NTASKS": "8"}, "Slurm job 7 with 8 tasks"),
])  # fmt: skip
def test_launchers(environment: dict[str, str], value: str, tmp_path: Path) -> None:
    assert facts(tmp_path, environment)["processes"].value == value


def test_threads_that_were_chosen(tmp_path: Path) -> None:
    assert facts(tmp_path, {"OMP_NUM_THREADS": "3"})["threads"].value.startswith("3 of ")


def test_a_place_that_cannot_be_written_is_a_problem(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Asked of the directory above one that does not exist yet."""
    asked: list[Any] = []
    monkeypatch.setattr(doctor.os, "access", lambda path, _: asked.append(path))
    fact = facts(tmp_path / "not" / "there")["disk"]
    assert fact.is_problem
    assert fact.value == f"{tmp_path}: cannot be written"
    assert tmp_path in asked


def test_a_hub_that_answers_and_one_that_does_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    with socket.create_server(("127.0.0.1", 0)) as server:
        place = f"http://127.0.0.1:{server.getsockname()[1]}"
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", place)
        assert facts(tmp_path)["hub"].value == ("127.0.0.1 answers, not logged in: gated models need `hf auth login`")
    fact = facts(tmp_path)["hub"]
    assert (fact.value, fact.is_problem) == ("127.0.0.1 does not answer", False)


def test_a_run_that_fits_and_faults_of_its_data(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = tmp_path / "x.jsonl"
    rows = [{"prompt": f"q{number}", "chosen": "yes", "rejected": "no"} for number in range(9)]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert main(["doctor", "--json", "model=tiny", f"data={data}"]) == 0
    said = {fact["name"]: fact for fact in json.loads(capsys.readouterr().out)}
    assert said["data"]["value"].startswith("9 rows; 9 pairs to train, 0 to evaluate")
    assert said["plan"]["meaning"].startswith("it fits")
    data.write_text(json.dumps(rows[0] | {"chosen": ""}) + "\n" + json.dumps(rows[1]) + "\n")
    assert main(["doctor", "--json", "model=tiny", f"data={data}"]) == 65
    said = {fact["name"]: fact for fact in json.loads(capsys.readouterr().out)}
    assert said["data"]["value"].startswith("2 rows, 1 of them invalid; 1 pairs to train")
    assert main(["doctor", "--json", "model=tiny", f"data={tmp_path / 'missing.jsonl'}"]) == 65
    assert "missing.jsonl" in capsys.readouterr().out
