"""Each tracker by what its own package reads back: the numbers of metrics.jsonl, samples, reading, settings."""

import json
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_runs import Arguments, Orpo, gone_back, same_end

from orpo_cli.training.events import OF_THE_MACHINE

pytestmark = pytest.mark.slow

Values = list[tuple[str, int, float]]
"""Name, step and value of metrics, in the order of their names and steps."""


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def values_in_the_files(folder: Path) -> Values:
    return sorted(
        (f"{'train' if record['kind'] == 'step' else 'eval'}/{name}", record["step"], value)
        for record in read(folder / "metrics.jsonl")
        for name, value in record.items()
        if name not in ("kind", "step", "time")
    )


def sentences(folder: Path) -> list[str]:
    return [sentence["text"] for sentence in json.loads((folder / "run.json").read_text(encoding="utf-8"))["reading"]]


def prompts(folder: Path, step: int) -> list[str]:
    return [sample["prompt"] for sample in read(folder / "samples.jsonl") if sample["step"] == step]


@pytest.fixture
def resumed(orpo: Orpo, reference: Path, arguments: Arguments, tmp_path: Path) -> Callable[..., Path]:
    """`resumed("tracker=wandb", environment={})`: a run that was tracked to its end, went back to step 4, and resumed.

    It ends as one without a tracker.
    """

    def runs(*words: str, environment: dict[str, str] | None = None) -> Path:
        whole = tmp_path / "whole"
        done = orpo.run(*arguments(whole, *words), environment=environment)
        assert done.code == 0, done.output
        assert "tracker.name" not in done.output, done.output
        folder = gone_back(whole, tmp_path / "run", 4)
        done = orpo.run("resume", str(folder), environment=environment)
        assert done.code == 0, done.output
        assert "tracker.name" not in done.output, done.output
        assert same_end(folder, reference)
        return folder

    return runs


def test_tensorboard(resumed: Callable[..., Path]) -> None:
    """Scalars are float32 there; steps that are taken again are there once."""
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    folder = resumed("tracker=tensorboard")
    events = EventAccumulator(str(folder / "tensorboard"), size_guidance={"scalars": 0, "tensors": 0})
    events.Reload()
    scalars = sorted(
        (tag, event.step, event.value) for tag in events.Tags()["scalars"] for event in events.Scalars(tag)
    )
    assert scalars == [(name, step, float(np.float32(value))) for name, step, value in values_in_the_files(folder)]
    texts = {
        tag: [(event.step, event.tensor_proto.string_val[0].decode()) for event in events.Tensors(tag)]
        for tag in events.Tags()["tensors"]
    }
    (step, reading) = texts["reading/text_summary"][-1]
    assert step == 6
    assert len(reading.splitlines()) == 2 + len(sentences(folder))
    assert {step for step, _ in texts["samples/text_summary"]} == {0, 6}
    assert all(prompt in texts["samples/text_summary"][-1][1] for prompt in prompts(folder, 6))
    assert r"| optimizer.lr | 0.001 |" in texts["settings/text_summary"][0][1]


def records_of_wandb(path: Path) -> Iterator[Any]:
    """The records in a .wandb file, which is a log as LevelDB has it: blocks of 32 KiB, a header of seven bytes."""
    from wandb.proto.wandb_internal_pb2 import Record

    data, at, whole = path.read_bytes(), 7, b""
    while at + 7 <= len(data):
        if (left := 32768 - at % 32768) < 7:
            at += left
            continue
        _checksum, size, kind = struct.unpack("<IHB", data[at : at + 7])
        whole += data[at + 7 : at + 7 + size]
        at += 7 + size
        if kind in (1, 4):  # whole, or its last part
            yield Record.FromString(whole)
            whole = b""


def test_wandb_offline(resumed: Callable[..., Path], tmp_path: Path) -> None:
    """Two parts of one run; nothing of host, code, packages or environment but the folder of the run in its logs."""
    pytest.importorskip("wandb")
    secret = "kept-out-of-every-file"
    environment = {
        "WANDB_MODE": "offline",
        "SOME_SECRET": secret,
        "WANDB_DATA_DIR": str(tmp_path),
        "HOME": str(tmp_path),
    }
    folder = resumed("tracker=wandb", "tracker.project=mine", environment=environment)
    parts = [list(records_of_wandb(path)) for path in sorted((folder / "wandb").glob("offline-run-*/*.wandb"))]
    assert len(parts) == 2
    runs = [record.run for part in parts for record in part if record.HasField("run")]
    noted = json.loads((folder / "run.json").read_text(encoding="utf-8"))["run_id"]
    assert [(run.run_id, run.project, run.host) for run in runs] == [(noted, "mine", "-")] * 2
    values = {
        (item.nested_key[0], record.history.step.num): json.loads(item.value_json)
        for part in parts
        for record in part
        if record.HasField("history")
        for item in record.history.item
        if item.nested_key and item.nested_key[0].startswith(("train/", "eval/"))
    }
    assert sorted((name, step, value) for (name, step), value in values.items()) == values_in_the_files(folder)
    settings = {update.key: json.loads(update.value_json) for update in runs[0].config.update}
    assert (settings["optimizer.lr"], settings["data.columns.prompt"]) == (1e-3, "prompt")
    summary = {
        update.key: json.loads(update.value_json)
        for record in parts[1]
        if record.HasField("summary")
        for update in record.summary.update
    }
    assert [text.removeprefix("! ") for text in summary["reading"].splitlines()] == sentences(folder)
    kinds = {record.WhichOneof("record_type") for part in parts for record in part}
    assert not kinds & {"environment", "stats", "output", "output_raw"}
    tables = [json.loads(path.read_text(encoding="utf-8")) for path in (folder / "wandb").rglob("samples_*.table.json")]
    assert prompts(folder, 6) in [[row[table["columns"].index("prompt")] for row in table["data"]] for table in tables]
    files = [path for path in (folder / "wandb").rglob("*") if path.is_file() and not path.is_symlink()]
    assert not [path for path in files if secret.encode() in path.read_bytes()]
    assert not [path.name for path in files if path.name in ("requirements.txt", "wandb-metadata.json", "output.log")]


def test_mlflow_on_sqlite(resumed: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One run, which is resumed; values of steps that are taken again are there twice, equal but for the clock."""
    pytest.importorskip("mlflow")
    pytest.importorskip("sqlalchemy")
    from mlflow import MlflowClient

    monkeypatch.chdir(tmp_path)
    uri = f"sqlite:///{tmp_path / 'runs.db'}"
    artifacts = {"MLFLOW_DISABLE_TELEMETRY": "true"}
    folder = resumed("tracker=mlflow", f"tracker.uri='{uri}'", "tracker.run_name=mine", environment=artifacts)
    client = MlflowClient(uri)
    experiment = client.get_experiment_by_name("orpo")
    assert experiment is not None
    (run,) = client.search_runs([experiment.experiment_id])
    assert (run.info.run_name, run.info.status) == ("mine", "FINISHED")
    found = {
        (name, metric.step, metric.value)
        for name in run.data.metrics
        for metric in client.get_metric_history(run.info.run_id, name)
    }
    assert found >= set(values_in_the_files(folder))
    machine = {f"train/{name}" for name in OF_THE_MACHINE}  # which has those of both times that a step was taken
    assert {value for value in found if value[0] not in machine} == {
        value for value in values_in_the_files(folder) if value[0] not in machine
    }
    assert (run.data.params["optimizer.lr"], run.data.params["lambda"]) == ("0.001", "0.1")
    description = run.data.tags["mlflow.note.content"]
    assert [text.removeprefix("! ") for text in description.splitlines()] == sentences(folder)
    client.download_artifacts(run.info.run_id, "samples.json", str(tmp_path))
    table = json.loads((tmp_path / "samples.json").read_text(encoding="utf-8"))
    answered = [dict(zip(table["columns"], row, strict=True)) for row in table["data"]]
    assert [row["prompt"] for row in answered if row["step"] == 0] == prompts(folder, 0)


def test_trackio_on_this_machine(resumed: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One run, which is resumed; nothing is printed beside the run's own lines."""
    pytest.importorskip("trackio")
    database = {"TRACKIO_DIR": str(tmp_path / "trackio")}
    folder = resumed("tracker=trackio", "tracker.run_name=mine", environment=database)
    monkeypatch.setenv("TRACKIO_DIR", database["TRACKIO_DIR"])
    from trackio.sqlite_storage import SQLiteStorage

    monkeypatch.setattr("trackio.sqlite_storage.TRACKIO_DIR", tmp_path / "trackio")
    (run,) = SQLiteStorage.get_run_records("orpo")
    logs = SQLiteStorage.get_logs("orpo", run["name"], run_id=run["id"])
    found = {
        (name, log["step"], value)
        for log in logs
        for name, value in log.items()
        if name.startswith(("train/", "eval/"))
    }
    assert found >= set(values_in_the_files(folder))
    texts = [log["reading"]["_value"] for log in logs if "reading" in log]
    assert [line.removeprefix("- ").removeprefix("! ") for line in texts[-1].splitlines()] == sentences(folder)
    samples = [log["samples"]["_value"] for log in logs if "samples" in log]
    assert [row["prompt"] for row in samples[0]] == prompts(folder, 0)
