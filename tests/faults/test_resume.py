"""A run that goes on: the same end to the last byte, and what may change on the way.

Rows 16 to 18 of the faults; 19 and 20 are in test_elasticity.py.
"""

import json
import os
import re
import shlex
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra.core.override_parser.overrides_parser import OverridesParser
from safetensors.torch import load_file, save_file
from tiny_runs import (
    Arguments,
    Orpo,
    at,
    change_json,
    digests,
    gone_back,
    kill,
    pairs,
    records,
    same_end,
    sign,
    tiny_model,
    write_pairs,
)

from orpo_cli.checkpoints.lookup import STATE
from orpo_cli.cli.main import main
from orpo_cli.config.keys import FREE_KEYS
from orpo_cli.runs.folder import RunFolder
from orpo_cli.runs.resume import resume_command_with_changes

slow = pytest.mark.slow

# The same bytes


@pytest.mark.parametrize(
    "overrides",
    [
        pytest.param(
            ("adapter=lora", "adapter.dropout=0.2", "trainer.precision=bf16", "trainer.max_tokens=60"),
            id="LoRA, dropout, bf16, accumulated",
        ),
        pytest.param(
            ("adapter=lora", "adapter.dropout=0.2", "trainer.layout=padded", "trainer.gradient_checkpointing=true",
             "trainer.precision=fp32", "optimizer=muon", "optimizer.lr=1e-3"),
            id="LoRA, dropout, padded, checkpointing, muon", marks=slow,
        ),
        pytest.param(("optimizer=muon", "scheduler=inverse_sqrt", "scheduler.warmup_steps=2"), id="muon", marks=slow),
        pytest.param(("optimizer=adafactor", "scheduler=cosine"), id="adafactor", marks=slow),
        pytest.param(("optimizer=sgd", "optimizer.momentum=0.9", "scheduler=wsd"), id="sgd", marks=slow),
        pytest.param(
            ("trainer.gradient_checkpointing=true", "loss=trl", "trainer.max_tokens=150"), id="full", marks=slow
        ),
        pytest.param(
            ("trainer.precision=bf16", "trainer.max_tokens=60", "loss=trl"), id="bf16, accumulated", marks=slow
        ),
        pytest.param(
            ("adapter=lora", "adapter.merge=true", "trainer.max_tokens=1", "optimizer=adafactor"),
            id="LoRA, merged, each pair alone", marks=slow,
        ),
    ],
)  # fmt: skip
def test_stopped_at_an_odd_step_and_again(
    overrides: tuple[str, ...], orpo: Orpo, arguments: Arguments, tmp_path: Path
) -> None:
    """At steps at which no checkpoint was due, in two epochs; the second time in the step that ends the first epoch."""
    whole, folder, update = tmp_path / "whole", tmp_path / "run", "orpo_cli.training.loop._update"
    assert orpo.run(*arguments(whole, *overrides)).code == 0
    assert orpo.run(*arguments(folder, *overrides), injections=[at(update, 1, "SIGTERM")]).code == 143
    assert orpo.run("resume", str(folder), injections=[at(update, 4, "SIGTERM")]).code == 143
    assert orpo.run("resume", str(folder)).code == 0
    assert same_end(folder, whole)


# What may change, what may not


@dataclass(frozen=True)
class Change:
    """What is typed behind `resume=FOLDER`.

    Args:
        says: a part of the message, where it is refused with exit code 2.
    """

    override: str
    says: str


REFUSED = [
    Change("optimizer.lr=0.5", "optimizer.lr=0.5 (was 0.001)"),
    Change("trainer.pairs_per_step=2", "trainer.pairs_per_step=2 (was 4)"),
    Change("seed=7", "seed=7 (was "),
    Change("lambda=0.7", "lambda=0.7 (was 0.1)"),
    Change("loss=trl", "a resumed run keeps its loss"),
    Change("data.max_length=30", "data.max_length=30 (was 2048)"),
    Change("data.eval_fraction=0.5", "data.eval_fraction=0.5 (was 0.25)"),
    Change("model.path=MODEL", "model.path="),
    Change("model.dtype=fp32", "model.dtype=fp32 (was auto)"),
    Change("trainer.precision=PRECISION", "trainer.precision="),
    Change("optimizer=sgd", "a resumed run keeps its optimizer"),
    Change("adapter=lora", "a resumed run keeps its adapter"),
    Change("scheduler=cosine", "a resumed run keeps its scheduler"),
]


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(change, id=f"17: {change.override}", marks=[] if place < 2 else slow)
        for place, change in enumerate(REFUSED)
    ],
)
def test_changed_settings_that_decide_what_is_computed(
    change: Change, reference: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Also for a run that is finished: exit code 2 with the difference, and nothing in the folder is touched."""
    folder = tmp_path / "run"
    shutil.copytree(reference, folder)
    before = digests(folder)
    override = change.override.replace("MODEL", str(folder / "model"))
    precision = json.loads((folder / "run.json").read_text(encoding="utf-8"))["precision"]
    override = override.replace("PRECISION", "fp32" if precision == "bf16" else "bf16")
    assert main(["train", f"resume={folder}", override]) == 2
    said = capfd.readouterr().err
    assert change.says in said
    assert "cannot change on resume; what can: " in said or "only single values can be overridden" in said
    assert "preparing" not in said
    (folder / "train.log").write_bytes((reference / "train.log").read_bytes())
    (folder / "run.lock").write_bytes((reference / "run.lock").read_bytes())
    assert digests(folder) == before


def test_changed_settings_before_the_first_checkpoint(orpo: Orpo, arguments: Arguments, tmp_path: Path) -> None:
    """17: there is nothing to go on from, but config.yaml says what the run is; it begins as that, or not at all."""
    folder = tmp_path / "run"
    killed = orpo.run(
        *arguments(folder, "resume=auto"), injections=[kill("orpo_cli.runs.assembly.Assembly.training", 1)]
    )
    assert killed.code == -9
    done = orpo.run(*arguments(folder, "resume=auto", "optimizer=sgd", "optimizer.lr=0.5"))
    assert done.code == 2
    assert "optimizer.lr=0.5 (was 0.001)" in done.output
    assert "optimizer.name=sgd (was adamw)" in done.output


def test_free_settings_are_taken_and_recorded(orpo: Orpo, reference: Path, tmp_path: Path) -> None:
    """17: all at once that leave the numbers alone; run.json says what, after which step, under which conditions."""
    folder = gone_back(reference, tmp_path / "run", 4)
    free = {"trainer.keep_last": 5, "trainer.save_every": 1, "trainer.sample_tokens": 3, "trainer.on_nonfinite": "skip",
            "trainer.max_skipped": 3, "trainer.timeout": 60, "trainer.on_save_error": "continue", "data.workers": 1,
            "trainer.keep_best": "nll"}  # fmt: skip
    assert set(free) < set(FREE_KEYS)
    assert orpo.run("resume", str(folder), *(f"{key}={value}" for key, value in free.items())).code == 0
    (entry,) = json.loads((folder / "run.json").read_text(encoding="utf-8"))["resumes"]
    assert entry["after_step"] == 4
    assert entry["changed"] == free
    assert {"torch", "threads", "instruction set", "processes"} <= set(entry["environment"])
    assert same_end(folder, reference)
    kept = ["step-000004", "step-000005", "step-000006"]
    assert sorted(path.name for path in (folder / "checkpoints").glob("step-*")) == kept
    assert (folder / "checkpoints" / "BEST").read_text(encoding="utf-8") == "step-000006\n"  # 5 was not evaluated


@slow
def test_the_best_checkpoint_is_kept_also_where_its_evaluation_was_cut_short(
    orpo: Orpo, arguments: Arguments, tmp_path: Path
) -> None:
    """trainer.keep_best, evaluation_due: it is measured after going on, and only then can it be the best."""
    best_by = (
        "trainer.eval_every=1",
        "trainer.save_every=1",
        "trainer.keep_last=1",
        "trainer.keep_best=log_odds_ratio",
        *("optimizer.lr=3e-2", "scheduler=constant", "data.eval_seed=1"),  # the last step is far from the best
    )
    whole, folder = tmp_path / "whole", tmp_path / "run"
    assert orpo.run(*arguments(whole, *best_by)).code == 0
    values = {record["step"]: record["log_odds_ratio"] for record in records(whole) if record["kind"] == "eval"}
    best = max(range(1, 7), key=lambda step: values[step])
    assert best < 6
    evaluation = at("orpo_cli.training.evaluation.micro_batch_loss", 1 + best, "SIGTERM")
    assert orpo.run(*arguments(folder, *best_by), injections=[evaluation]).code == 143
    assert orpo.run("resume", str(folder)).code == 0
    assert same_end(folder, whole)
    for run in (whole, folder):
        assert (run / "checkpoints" / "BEST").read_text(encoding="utf-8") == f"step-{best:06d}\n"
        assert sorted(path.name for path in (run / "checkpoints").glob("step-*")) == [f"step-{best:06d}", "step-000006"]


@pytest.mark.parametrize("processes", ["1", "2"])
def test_keeping_the_best_of_one_evaluation_is_refused(
    processes: str, orpo: Orpo, arguments: Arguments, tmp_path: Path
) -> None:
    """trainer.keep_best with trainer.eval_every=null; nothing is read before that, not even the data."""
    folder = tmp_path / "run"
    settings = "trainer.keep_best=nll", "trainer.eval_every=null", f"trainer.processes={processes}"
    done = orpo.run(*arguments(folder, *settings, f"data.path={tmp_path / 'nothing'}"))
    assert done.code == 2
    assert done.output == (
        "orpo: error: trainer.keep_best=nll: with trainer.eval_every=null only the last step is evaluated on all "
        "held-out pairs, so that no other can be the best; set trainer.eval_every=N\n"
    )
    assert not folder.exists()


@pytest.mark.parametrize(
    ("evaluate", "save", "steps"),
    [pytest.param("3", "2", 5, marks=slow), ("3", "2", 6), pytest.param("1", "null", 3, marks=slow)],
)
def test_evaluations_that_meet_no_save_are_noted(
    evaluate: str, save: str, steps: int, orpo: Orpo, arguments: Arguments, tmp_path: Path
) -> None:
    every = f"trainer.eval_every={evaluate}", f"trainer.save_every={save}"
    done = orpo.run(*arguments(tmp_path / "run", "trainer.keep_best=nll", *every, f"trainer.max_steps={steps}"))
    assert done.code == 0
    note = f"trainer.keep_best=nll: {every[0]} and {every[1]} meet at no step before the last, {steps}; only that can "
    assert note + "be the best" in done.output


def test_evaluations_that_meet_a_save_are_not_noted(orpo: Orpo, arguments: Arguments, tmp_path: Path) -> None:
    done = orpo.run(*arguments(tmp_path / "run", "trainer.keep_best=nll", "trainer.eval_every=2"))
    assert done.code == 0
    assert "meet at no step" not in done.output


@dataclass(frozen=True)
class DataChange:
    """What happens to the data file, and the exit code of going on."""

    change: Callable[[Path], Any]
    code: int


def append(path: Path) -> None:
    with path.open("a", encoding="utf-8") as stream:
        stream.write(json.dumps(pairs(25)[24]) + "\n")


def reorder(path: Path) -> None:
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    path.write_text("".join(reversed(lines)), encoding="utf-8")


@pytest.mark.parametrize(
    "row",
    [
        pytest.param(DataChange(append, 65), id="16: a row appended", marks=slow),
        pytest.param(DataChange(reorder, 65), id="16: rows in another order"),
        pytest.param(DataChange(lambda path: os.utime(path, (1, 1)), 0), id="16: only touched"),
    ],
)
def test_changed_data(row: DataChange, reference: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """By content: both hashes are named, and the way on, which is a new run from the checkpoint."""
    folder, data = gone_back(reference, tmp_path / "run", 4), write_pairs(tmp_path / "prefs.jsonl")
    row.change(data)
    assert main(["train", f"resume={folder}", f"data.path={data}"]) == row.code
    if row.code == 0:
        assert same_end(folder, reference)
        return
    said = capfd.readouterr().err
    then = json.loads((reference / "run.json").read_text(encoding="utf-8"))["data_sha256"]
    assert all(digest in said for digest in then.values())
    assert len(set(re.findall(r"\b[0-9a-f]{64}\b", said))) == 2
    assert f"{folder / 'checkpoints' / 'step-000004'}: the data has changed: " in said
    assert "a run on other data is a new run: begin it with model.path set to this checkpoint" in said


def test_changed_data_of_an_adapter(orpo: Orpo, arguments: Arguments, tmp_path: Path) -> None:
    """16: a checkpoint of an adapter is one to begin with."""
    data = write_pairs(tmp_path / "prefs.jsonl")
    typed = arguments(tmp_path / "run", "adapter=lora", f"data.path={data}")
    died = orpo.run(*typed, injections=[kill("orpo_cli.training.run.begin_checkpoint", 2)])
    assert died.code == -9
    append(data)
    refused = orpo.run(*typed, "resume=auto")
    assert refused.code == 65
    said = refused.output.replace("\n", " ")
    assert "begin it with model.path set to this checkpoint" in said


def edited_state(checkpoint: Path, **values: Any) -> None:
    change_json(checkpoint / STATE, **values)
    sign(checkpoint)


def test_18_other_versions_are_warned_of(reference: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """18: the run goes on, and says that its last digits may differ, and why."""
    folder = gone_back(reference, tmp_path / "run", 4)
    checkpoint = folder / "checkpoints" / "step-000004"
    environment = json.loads((checkpoint / STATE).read_text(encoding="utf-8"))["environment"]
    edited_state(checkpoint, environment=environment | {"torch": "2.1.0", "transformers": "4.9.9"})
    assert main(["resume", str(folder)]) == 0
    said = capfd.readouterr().err
    assert "the run resumes under other conditions, so it is equal to rounding only: " in said
    assert f"torch 2.1.0 -> {torch.__version__.partition('+')[0]}" in said.replace("\n", " ")
    assert "transformers 4.9.9 -> " in said


def test_18_unknown_version_of_the_format(reference: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """18: of a later orpo; not read, whatever it may hold."""
    folder = gone_back(reference, tmp_path / "run", 4)
    edited_state(folder / "checkpoints" / "step-000004", format_version=99)
    assert main(["resume", str(folder)]) == 65
    assert "format version 99; this orpo reads " in capfd.readouterr().err


def other_weights(model: Path) -> None:
    weights = load_file(model / "model.safetensors")
    save_file({name: weight * 1.5 for name, weight in weights.items()}, model / "model.safetensors", {"format": "pt"})


def other_configuration(model: Path) -> None:
    change_json(model / "config.json", rms_norm_eps=1e-3)


def written_by_another_version(model: Path) -> None:
    config = json.loads((model / "config.json").read_text(encoding="utf-8"))
    (model / "config.json").write_text(json.dumps(config | {"transformers_version": "9"}, indent=9), encoding="utf-8")


@pytest.mark.parametrize(
    ("adapter", "change", "code"),
    [
        pytest.param("lora", other_weights, 2, id="17: LoRA, other weights"),
        pytest.param("none", other_configuration, 2, id="17: other configuration", marks=slow),
        pytest.param("none", other_weights, 2, id="17: other weights", marks=slow),
        pytest.param("lora", written_by_another_version, 0, id="17: the same, written again", marks=slow),
    ],
)
def test_a_model_that_was_changed_in_its_place(
    adapter: str, change: Callable[[Path], None], code: int, orpo: Orpo, arguments: Arguments, tmp_path: Path
) -> None:
    model, folder = tiny_model(tmp_path / "model"), tmp_path / "run"
    typed = [*arguments(folder, f"adapter={adapter}"), f"model={model}"]
    assert orpo.run(*typed, injections=[kill("orpo_cli.training.run.begin_checkpoint", 2)]).code == -9
    change(model)
    done = orpo.run("resume", str(folder))
    assert done.code == code, done.output
    assert (re.search(r"model files=\w{32} \(was \w{32}\): cannot change", done.output) is not None) == (code == 2)


@pytest.mark.parametrize(
    ("adapter", "change", "code"),
    [
        pytest.param("lora", None, 0, id="17: LoRA"),
        pytest.param("none", None, 0, id="17: full", marks=slow),
        pytest.param("lora", other_weights, 2, id="17: LoRA, and is another now", marks=slow),
        pytest.param("none", other_weights, 2, id="17: full, and is another now", marks=slow),
    ],
)
def test_a_model_that_was_moved(
    adapter: str, change: Callable[[Path], None] | None, code: int, orpo: Orpo, arguments: Arguments, tmp_path: Path
) -> None:
    """It counts by its content, like data; the adapter then names where it lies now."""
    old, new, folder = tiny_model(tmp_path / "old"), tmp_path / "new", tmp_path / "run"
    typed = [*arguments(folder, f"adapter={adapter}"), f"model={old}"]
    assert orpo.run(*typed, injections=[kill("orpo_cli.training.run.begin_checkpoint", 2)]).code == -9
    old.rename(new)
    assert orpo.run("resume", str(folder)).code == 66
    assert list((folder / "checkpoints").glob("step-*"))
    if change is not None:
        change(new)
    done = orpo.run("resume", str(folder), f"model.path={new}")
    assert done.code == code, done.output
    if code != 0:
        assert "model files=" in done.output
        return
    if adapter == "lora":
        assert json.loads((folder / "model/adapter_config.json").read_text())["base_model_name_or_path"] == str(new)
    verified = orpo.run("verify", str(folder), "--replay", "1")
    assert verified.code == 0, verified.output
    assert "identical" in verified.output
    again = orpo.run("resume", str(folder))
    assert again.code == 0, again.output
    assert "finished already" in again.output


def test_a_model_that_was_moved_after_the_run(orpo: Orpo, arguments: Arguments, tmp_path: Path) -> None:
    """A job that is restarted says where the model is now; that is another model, or the run is finished."""
    old, new, folder = tiny_model(tmp_path / "old"), tmp_path / "new", tmp_path / "run"
    assert orpo.run(*arguments(folder, "trainer.max_steps=1"), f"model={old}").code == 0
    old.rename(new)
    restarted = [*arguments(folder, "trainer.max_steps=1"), f"model={new}", "resume=auto"]
    done = orpo.run(*restarted)
    assert done.code == 0, done.output
    assert "finished already" in done.output
    other_weights(new)
    assert orpo.run(*restarted).code == 2
    (new / "config.json").write_text("{", encoding="utf-8")
    assert orpo.run(*restarted).code == 2


@slow
def test_steps_are_not_taken_again_with_another_model(orpo: Orpo, arguments: Arguments, tmp_path: Path) -> None:
    model, folder = tiny_model(tmp_path / "model"), tmp_path / "run"
    assert orpo.run(*arguments(folder, "trainer.max_steps=1"), f"model={model}").code == 0
    other_weights(model)
    done = orpo.run("verify", str(folder), "--replay", "1")
    assert done.code == 65, done.output
    assert "the model has changed since" in done.output


@slow
def test_a_sweep_whose_model_was_moved(orpo: Orpo, arguments: Arguments, tmp_path: Path) -> None:
    """One job is finished, one is not; it goes on to its end, and is finished then."""
    old, new, folder = tiny_model(tmp_path / "old"), tmp_path / "new", tmp_path / "run"
    typed = [*arguments(folder, "trainer.max_steps=2", "seed=1,2"), f"model={old}", "-m"]
    assert orpo.run(*typed).code == 0
    shutil.rmtree(folder / "1" / "model")
    old.rename(new)
    for _ in range(2):
        done = orpo.run("resume", str(folder), f"model.path={new}")
        assert done.code == 0, done.output
    assert (folder / "1" / "model").is_dir()


def test_another_model_before_the_first_checkpoint(orpo: Orpo, arguments: Arguments, tmp_path: Path) -> None:
    """17: nothing tells there whether it is the one that the run began with."""
    first, second = (tiny_model(tmp_path / name) for name in ("first", "second"))
    folder = tmp_path / "run"
    typed = [*arguments(folder), f"model={first}"]
    assert orpo.run(*typed, injections=[kill("orpo_cli.training.run.begin_checkpoint", 1)]).code == -9
    refused = orpo.run("resume", str(folder), f"model.path={second}")
    assert refused.code == 2, refused.output
    assert f"model.path={second} (was {first})" in refused.output.replace("\n", " ")


def test_checkpoints_that_were_removed_are_not_begun_again(
    reference: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = gone_back(reference, tmp_path / "run", 4)
    shutil.rmtree(folder / "checkpoints" / "step-000004")
    before = (folder / "metrics.jsonl").read_bytes()
    assert main(["resume", str(folder)]) == 65
    assert "LATEST is there and no checkpoint: they have been removed" in capfd.readouterr().err
    assert (folder / "metrics.jsonl").read_bytes() == before


def test_the_resume_command_with_changes_has_what_differs_and_can_be_typed(
    reference: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = RunFolder(reference)
    config = folder.config
    monkeypatch.chdir(Path(config.data.path).parent)
    nearby = replace(config, data=replace(config.data, path=Path(config.data.path).name))
    assert resume_command_with_changes(nearby, folder) == f"orpo resume {reference}"
    places = {"path": "/d/é ${x}.jsonl"}
    trainer = {"on_nonfinite": "skip", "max_tokens": 77, "keep_best": "logps/chosen", "save_every": None}
    other = replace(
        config, data=replace(config.data, **places), trainer=replace(config.trainer, **trainer),
        model=replace(config.model, revision="7e12345"),
    )  # fmt: skip
    words = shlex.split(resume_command_with_changes(other, folder))[3:]
    assert "trainer.on_nonfinite=skip" in words
    read = {word.key_or_group: word.value() for word in OverridesParser.create().parse_overrides(words)}
    expected = {f"data.{key}": value.replace("${", r"\${") for key, value in places.items()}
    expected |= {"model.revision": "7e12345"} | {f"trainer.{key}": value for key, value in trainer.items()}
    assert read.items() >= expected.items()


def test_records_that_are_missing_are_said(reference: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    folder = gone_back(reference, tmp_path / "run", 4)
    (folder / "metrics.jsonl").write_bytes(b"")
    assert main(["resume", str(folder)]) == 0
    assert "metrics.jsonl: steps missing: 1, 2, 3, 4; " in " ".join(capfd.readouterr().err.split())


def test_a_folder_that_is_no_checkpoint_beside_those_of_a_finished_run(
    reference: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = Path(shutil.copytree(reference, tmp_path / "run"))
    (folder / "checkpoints" / "step-000099").mkdir()
    assert main(["resume", str(folder)]) == 0
    assert "finished already" in capfd.readouterr().err


def test_a_file_is_no_run(reference: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["resume", str(reference / "run.json")]) == 66
    assert "run.json: is a file; orpo resume takes the folder of a run or a sweep" in capfd.readouterr().err
