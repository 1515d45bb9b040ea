"""`orpo verify`: a whole run is whole, each kind of damage is found and named, and steps can be taken again."""

import json
import os
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_runs import Arguments, Orpo, at, change_json, gone_back, kill, sign, write_pairs

from orpo_cli.files.manifest import size_and_checksum
from orpo_cli.reporting.completeness import metrics_problem
from orpo_cli.runs.folder import RunFolder


def flip(path: Path, place: float = 0.7) -> None:
    """One bit."""
    content = bytearray(path.read_bytes())
    content[int(len(content) * place)] ^= 1
    path.write_bytes(content)


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new, 1), encoding="utf-8")


def edit_tensors(directory: Path, name: str, change: Callable[[dict[str, torch.Tensor]], None]) -> None:
    """Of a checkpoint whose manifest then fits."""
    tensors = load_file(directory / name)
    change(tensors)
    save_file(tensors, directory / name, {"format": "pt"})
    sign(directory)


def not_finite(tensors: dict[str, torch.Tensor]) -> None:
    tensors["model.norm.weight"][3] = torch.nan


def in_float8(tensors: dict[str, torch.Tensor]) -> None:
    name = next(name for name in tensors if name.startswith("model.norm.weight"))
    tensors[name] = tensors[name].to(torch.float8_e4m3fn)


def complex_nan(tensors: dict[str, torch.Tensor]) -> None:
    tensors["model.norm.weight"] = torch.full((64,), complex("nan"))


def nothing_learned(tensors: dict[str, torch.Tensor]) -> None:
    for name, tensor in tensors.items():
        if "lora_B" in name:
            tensor.zero_()


def not_finite_average(tensors: dict[str, torch.Tensor]) -> None:
    tensors["model.layers.0.mlp.down_proj.weight|exp_avg_sq"][0, 0] = torch.inf


def edit_lines(run: Path, change: Callable[[list[str]], list[str]]) -> None:
    """Of metrics.jsonl: evaluation 0, steps 1 to 3, evaluation 3, steps 4 to 6, evaluation 6."""
    path = run / "metrics.jsonl"
    path.write_text("".join(change(path.read_text(encoding="utf-8").splitlines(keepends=True))), encoding="utf-8")


def spoilt(line: str) -> str:
    return json.dumps(json.loads(line) | {"loss": float("nan")}) + "\n"


def steps_gone(run: Path) -> None:
    for path in (run / "checkpoints").glob("step-*"):
        shutil.rmtree(path)


@dataclass(frozen=True)
class Damage:
    """What is done to a finished run, and what `orpo verify` says."""

    id: str
    does: Callable[[Path], object]
    said: str


def unlisted(run: Path, key: str) -> None:
    """run.json says nothing of the files that are listed there."""
    record = json.loads((run / "run.json").read_text(encoding="utf-8"))
    del record[key]
    (run / "run.json").write_text(json.dumps(record), encoding="utf-8")


NOT_LISTED = "its checksum is not that of the list in run.json"
EARLIER, LAST = "checkpoints/step-000004", "checkpoints/step-000006"
WEIGHTS = f"{LAST}/model.safetensors"
DAMAGES = [
    Damage("10: truncated", lambda run: (run / WEIGHTS).write_bytes(b"12345678"), "8 bytes, expected"),
    Damage("11: bit of the weights", lambda run: flip(run / WEIGHTS), "its checksum is not that of manifest.json"),
    Damage("11: bit of the optimizer", lambda run: flip(run / LAST / "optimizer.safetensors"), "its checksum"),
    Damage("11: bit of the result", lambda run: flip(run / "model/model.safetensors"), NOT_LISTED),
    Damage("13: manifest gone", lambda run: (run / LAST / "manifest.json").unlink(), "manifest.json is missing"),
    Damage("13: file not listed", lambda run: (run / LAST / "more.txt").write_text("?"), "does not list more.txt"),
    Damage("14: optimizer gone", lambda run: (run / LAST / "optimizer.safetensors").unlink(), "is missing"),
    Damage("15: pointer stale", lambda run: (run / "checkpoints/LATEST").write_text("step-000004\n"), "LATEST: says"),
    Damage("15: pointer gone", lambda run: (run / "checkpoints/LATEST").unlink(), "LATEST: is missing"),
    Damage("15: newest gone", lambda run: shutil.rmtree(run / LAST), "step-000004: the run has 6 steps"),
    Damage("15: a directory of a far step", lambda run: (run / "checkpoints/step-900719925474").mkdir(),
           "step-900719925474: manifest.json is missing"),
    Damage("15: all gone", steps_gone, "has no checkpoint"),
    Damage("17: setting edited", lambda run: edit(run / "config.yaml", "lambda: 0.1", "lambda: 0.2"), "was 0.1"),
    Damage("17: config.yaml damaged", lambda run: (run / "config.yaml").write_text("a: ["), "config.yaml"),
    Damage("23: not finite, manifest fits", lambda run: edit_tensors(run / LAST, "model.safetensors", not_finite),
           "model.norm.weight has values that are not finite"),
    Damage("weights in float8, manifest fits", lambda run: edit_tensors(run / LAST, "model.safetensors", in_float8),
           "model.norm.weight is stored as float8_e4m3fn, which no run saves"),
    Damage("complex weights, manifest fits", lambda run: edit_tensors(run / EARLIER, "model.safetensors", complex_nan),
           "model.norm.weight is stored as complex64, which no run saves"),
    Damage("optimizer in float8, manifest fits",
           lambda run: edit_tensors(run / LAST, "optimizer.safetensors", in_float8), "is stored as float8"),
    Damage("optimizer not finite, manifest fits",
           lambda run: edit_tensors(run / LAST, "optimizer.safetensors", not_finite_average),
           "model.layers.0.mlp.down_proj.weight|exp_avg_sq has values that are not finite"),
    Damage("result gone", lambda run: shutil.rmtree(run / "model"), "model: has no tensors"),
    Damage("step missing", lambda run: edit_lines(run, lambda lines: lines[:2] + lines[3:]), "steps missing: 2"),
    Damage("step twice", lambda run: edit_lines(run, lambda lines: lines[:3] + lines[2:]), "steps there twice: 2"),
    Damage("steps swapped", lambda run: edit_lines(run, lambda lines: [lines[0], lines[2], lines[1], *lines[3:]]),
           "steps not in order"),
    Damage("evaluation missing", lambda run: edit_lines(run, lambda lines: lines[:4] + lines[5:]),
           "evaluations missing: 3"),
    Damage("last line cut", lambda run: edit_lines(run, lambda lines: [*lines[:-1], lines[-1][:20]]),
           "metrics.jsonl:9: cannot be read"),
    Damage("line damaged", lambda run: edit_lines(run, lambda lines: [*lines[:4], "?\n", *lines[5:]]),
           "metrics.jsonl:5: cannot be read"),
    Damage("loss that is not finite",
           lambda run: edit_lines(run, lambda lines: [*lines[:4], spoilt(lines[4]), *lines[5:]]),
           "metrics.jsonl:5: cannot be read"),
    Damage("no run.json", lambda run: (run / "run.json").unlink(), "run.json: cannot be read: No such file"),
    Damage("run.json damaged", lambda run: (run / "run.json").write_text("[]"), "run.json: cannot be read: not an"),
    Damage("run.json without its model", lambda run: unlisted(run, "model_files"), "does not list the files of model/"),
    Damage("run.json without a list", lambda run: unlisted(run, "files"), "the list in run.json is missing or damaged"),
    Damage("no ledger", lambda run: (run / "ledger.jsonl").unlink(), "ledger.jsonl is missing"),
    Damage("ledger empty", lambda run: (run / "ledger.jsonl").write_text(""), "ledger.jsonl: 0 bytes, expected"),
    Damage("ledger changed", lambda run: edit(run / "ledger.jsonl", '"kept"', '"KEPT"'), f"ledger.jsonl: {NOT_LISTED}"),
    Damage("samples damaged", lambda run: (run / "samples.jsonl").write_text("?\n"), "samples.jsonl:1: cannot be read"),
    Damage("result without configuration", lambda run: (run / "model/config.json").unlink(),
           "model/config.json is missing"),
    Damage("configuration of the result changed", lambda run: edit(run / "model/config.json", "1e-06", "2e-06"),
           f"model/config.json: {NOT_LISTED}"),
    Damage("result without settings of generation", lambda run: (run / "model/generation_config.json").unlink(),
           "model/generation_config.json is missing"),
    Damage("tokenizer of the result cut", lambda run: os.truncate(run / "model/tokenizer.json", 6),
           "model/tokenizer.json: 6 bytes, expected"),
    Damage("a digit of a loss", lambda run: edit(run / "metrics.jsonl", '"step": 3, "loss": ', '"step": 3, "loss": 1'),
           "bytes, expected"),
    Damage("no samples", lambda run: (run / "samples.jsonl").unlink(), "samples.jsonl is missing"),
    Damage("a sample edited", lambda run: edit(run / "samples.jsonl", '"answer": "', '"answer": "x'),
           "bytes, expected"),
    Damage("no metrics", lambda run: (run / "metrics.jsonl").unlink(), "steps missing: 1, 2, 3, 4, 5, 6"),
]  # fmt: skip


@pytest.fixture
def run(reference: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(reference, tmp_path / "run"))


@pytest.fixture(scope="module")
def lora(orpo: Orpo, arguments: Arguments, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run with LoRA and dropout."""
    folder = tmp_path_factory.mktemp("lora") / "run"
    done = orpo.run(*arguments(folder, "adapter=lora", "adapter.dropout=0.1"))
    assert done.code == 0, done.output
    return folder


@pytest.mark.parametrize("damage", [pytest.param(damage, id=damage.id) for damage in DAMAGES])
def test_damage_is_found(damage: Damage, run: Path, orpo: Orpo) -> None:
    damage.does(run)
    done = orpo.run("verify", str(run))
    assert done.code == 65, done.output
    assert damage.said in done.output
    assert "Traceback" not in done.output


def test_whole_run_is_whole_and_stays_as_it_is(run: Path, orpo: Orpo) -> None:
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*")}
    done = orpo.run("verify", str(run))
    assert done.code == 0, done.output
    assert "PROBLEM" not in done.output
    assert "run.json: finished" in done.output
    assert {path: path.stat().st_mtime_ns for path in run.rglob("*")} == before


@pytest.mark.parametrize("name", ["model", "model/model.safetensors"])
def test_whole_run_whose_model_lies_on_another_disk(name: str, run: Path, orpo: Orpo, tmp_path: Path) -> None:
    moved = shutil.move(run / name, tmp_path / "moved")
    (run / name).symlink_to(moved)
    for command, said in (("verify", "run.json: finished"), ("resume", "finished already")):
        done = orpo.run(command, str(run))
        assert (done.code, said in done.output) == (0, True), done.output


def test_steps_taken_again_are_the_same(run: Path, orpo: Orpo) -> None:
    done = orpo.run("verify", str(run), "--replay", "2")
    assert done.code == 0, done.output
    assert [f"step {step}, taken again after step 4: identical" in done.output for step in (5, 6)] == [True, True]
    edit(run / "metrics.jsonl", '"step": 6, "loss": ', '"step": 6, "loss": 1')
    done = orpo.run("verify", "--replay=2", str(run))
    assert done.code == 65
    assert "PROBLEM  step 6, taken again after step 4: loss " in done.output


def test_steps_are_taken_again_as_they_were_cut(reference: Path, orpo: Orpo, tmp_path: Path) -> None:
    """Those after a resume in its micro-batches, not in those of older checkpoints; across one, to rounding."""
    run = gone_back(reference, tmp_path / "run", 4)
    assert orpo.run("resume", str(run), "trainer.max_tokens=20").code == 0
    done = orpo.run("verify", str(run), "--replay", "2")
    assert done.code == 0, done.output
    assert "step 6, taken again after step 4: identical\n" in done.output
    done = orpo.run("verify", str(run), "--replay", "3")
    assert done.code == 0, done.output
    assert re.search(r"step 3, taken again after step 0: .*\(under other conditions: tokens at once\)", done.output)


@pytest.mark.slow
def test_steps_are_taken_again_to_rounding_where_those_before_were_cut_otherwise(
    orpo: Orpo, arguments: Arguments, reference: Path, tmp_path: Path
) -> None:
    """The checkpoints of that time are gone; that there was one, run.json says. That micro-batches became smaller where
    memory ran out is in no record but the checkpoints."""
    run = tmp_path / "resumed"
    ended = orpo.run(
        *arguments(run, "trainer.save_every=null"),
        injections=[at("orpo_cli.training.loop.micro_batch_loss", 3, "SIGTERM")],
    )
    assert ended.code == 143
    assert orpo.run("resume", str(run), "trainer.max_tokens=20", "trainer.keep_last=1").code == 0
    done = orpo.run("verify", str(run), "--replay", "6")
    assert done.code == 0, done.output
    assert "step 2, taken again after step 0: " in done.output
    assert "step 2, taken again after step 0: identical\n" not in done.output
    shrunk = Path(shutil.copytree(reference, tmp_path / "shrunk"))
    change_json(shrunk / LAST / "state.json", max_tokens=20)
    sign(shrunk / LAST)
    done = orpo.run("verify", str(shrunk), "--replay", "2")
    assert done.code == 0, done.output
    assert "under other conditions: tokens at once" in done.output


def test_steps_are_taken_again_until_one_of_them_was_recorded(orpo: Orpo, arguments: Arguments, tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert orpo.run(*arguments(run, "trainer.log_every=4", "trainer.keep_last=9")).code == 0
    for count, compared in ((1, ["step 6"]), (3, ["step 4"]), (4, ["step 4", "step 6"])):
        done = orpo.run("verify", str(run), "--replay", str(count))
        assert done.code == 0, done.output
        assert re.findall("(step .), taken again after step .: identical", done.output) == compared


def test_39_adapter_that_has_learned(lora: Path, orpo: Orpo, tmp_path: Path) -> None:
    done = orpo.run("verify", str(lora), "--replay", "100")
    assert done.code == 0, done.output
    assert done.output.count("taken again after step 0: identical") == 6
    run = Path(shutil.copytree(lora, tmp_path / "run"))
    edit_tensors(run / LAST, "adapter_model.safetensors", nothing_learned)
    done = orpo.run("verify", str(run))
    assert done.code == 65
    assert f"{run / LAST}: the adapter is what it was before the first step" in done.output


def test_11_bit_of_a_merged_model(orpo: Orpo, arguments: Arguments, tmp_path: Path) -> None:
    """No checkpoint has its weights; run.json has their checksum."""
    run = tmp_path / "run"
    done = orpo.run(*arguments(run, "adapter=lora", "adapter.merge=true"))
    assert done.code == 0, done.output
    assert orpo.run("verify", str(run)).code == 0
    flip(run / "model/model.safetensors")
    for command in ("verify", "resume"):
        done = orpo.run(command, str(run))
        assert done.code == 65, done.output
        assert f"model/model.safetensors: {NOT_LISTED}" in done.output


def test_1_killed_run_is_whole_as_far_as_it_came(orpo: Orpo, arguments: Arguments, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    killed = orpo.run(*arguments(folder), injections=[kill("orpo_cli.training.loop._update", 6)])
    assert killed.code == -9
    with (folder / "metrics.jsonl").open("a", encoding="utf-8") as stream:
        stream.write('{"kind": "step", "st')
    done = orpo.run("verify", str(folder))
    assert done.code == 0, done.output
    assert f"not finished; resume with: orpo resume {folder}" in done.output


@pytest.mark.parametrize("point", [2, pytest.param(1, marks=pytest.mark.slow)])
def test_2_killed_before_latest_is_whole(point: int, orpo: Orpo, arguments: Arguments, tmp_path: Path) -> None:
    """Resume goes on from the newest, whatever LATEST says."""
    folder = tmp_path / "run"
    assert orpo.run(*arguments(folder), injections=[kill("orpo_cli.checkpoints.saving.point", point)]).code == -9
    done = orpo.run("verify", str(folder))
    assert done.code == 0, done.output
    assert f"LATEST does not name step-{2 * point:06d} yet; a resumed run continues from there" in done.output


@pytest.mark.parametrize("name", ["run.lock", "samples.jsonl", "train.log", "model/model.safetensors"])
@pytest.mark.parametrize("put", [os.mkfifo, Path.mkdir], ids=["pipe", "directory"])
def test_what_is_no_file_is_found_and_not_waited_for(
    name: str, put: Callable[[Path], None], run: Path, orpo: Orpo
) -> None:
    (run / name).unlink()
    put(run / name)
    done = orpo.run("verify", str(run))
    assert done.code == 65, done.output
    assert "is not a file" in done.output


def test_a_loss_that_is_clearly_another_is_no_rounding(run: Path, orpo: Orpo) -> None:
    """Recorded in micro-batches of another size."""
    change_json(run / LAST / "state.json", max_tokens=20)
    sign(run / LAST)
    lines = (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    records = [json.loads(line) for line in lines]
    for factor, code in ((1.005, 0), (1.02, 65)):
        changed = [record | {"loss": record["loss"] * factor} if record["step"] == 6 else record for record in records]
        text = "".join(json.dumps(record) + "\n" for record in changed)
        (run / "metrics.jsonl").write_text(text, encoding="utf-8")
        notes = json.loads((run / "run.json").read_text(encoding="utf-8"))
        notes["files"]["metrics.jsonl"] = size_and_checksum(run / "metrics.jsonl")
        (run / "run.json").write_text(json.dumps(notes), encoding="utf-8")
        done = orpo.run("verify", str(run), "--replay", "2")
        assert done.code == code, done.output
        assert ("PROBLEM  step 6" in done.output) == (code != 0)


@pytest.mark.parametrize("every", ["0", "-1", '"x"', "true", "[]"])
def test_records_are_due_as_the_run_began_where_run_json_is_damaged(every: str, run: Path) -> None:
    change = f'{{"after_step": 2, "changed": {{"trainer.log_every": {every}, "trainer.eval_every": {every}}}}}'
    (run / "run.json").write_text(f'{{"finished": true, "resumes": [{change}]}}', encoding="utf-8")
    folder = RunFolder(run)
    lines = folder.metrics_lines
    assert metrics_problem(folder.metrics, lines, folder.config, folder.resumes, last=6, finished=True) is None


@pytest.mark.slow
def test_settings_that_were_free_to_change_are_no_fault(orpo: Orpo, arguments: Arguments, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    assert orpo.run(*arguments(folder), injections=[kill("orpo_cli.training.loop._update", 4)]).code == -9
    changed = ("trainer.log_every=3", "trainer.eval_every=5", "trainer.save_every=5")
    assert orpo.run("resume", str(folder), *changed).code == 0
    assert json.loads((folder / "run.json").read_text(encoding="utf-8"))["resumes"][0]["changed"]
    done = orpo.run("verify", str(folder), "--replay", "1")
    assert done.code == 0, done.output


@pytest.mark.slow
def test_steps_are_taken_again_on_data_that_was_moved(orpo: Orpo, arguments: Arguments, tmp_path: Path) -> None:
    folder, old, new = tmp_path / "run", tmp_path / "old.jsonl", tmp_path / "new.jsonl"
    typed = [*arguments(folder), f"data={write_pairs(old)}"]
    assert orpo.run(*typed, injections=[kill("orpo_cli.training.loop._update", 4)]).code == -9
    old.rename(new)
    assert orpo.run("resume", str(folder)).code == 66
    assert orpo.run("resume", str(folder), f"data.path={new}").code == 0
    done = orpo.run("verify", str(folder), "--replay", "1")
    assert done.code == 0, done.output
    assert "step 5, taken again after step 4: identical" in done.output


USAGE = [
    pytest.param([], 2, "required: RUN_DIR; usage: orpo verify RUN_DIR", id="no folder"),
    pytest.param(["{run}", "{run}"], 2, "unrecognized arguments: ", id="two folders"),
    pytest.param(["{run}", "--repaly", "3"], 2, "unrecognized arguments: --repaly", id="unknown flag"),
    pytest.param(["{run}", "--replay"], 2, "--replay: expected one argument", id="no number"),
    pytest.param(["{run}", "--replay", "0"], 2, "0: expected a number of steps, 1 or more", id="no steps"),
    pytest.param(["{run}", "--replay=-1"], 2, "-1: expected a number of steps, 1 or more", id="less than none"),
    pytest.param(["{sweep}"], 2, "is a sweep; verify its jobs one by one: orpo verify", id="sweep"),
    pytest.param(["{run}/nothing"], 66, "no such file", id="no such run"),
    pytest.param(["{run}/model"], 66, "no such file", id="folder of something else"),
]


@pytest.mark.parametrize(("argv", "code", "said"), USAGE)
def test_usage(argv: list[str], code: int, said: str, reference: Path, orpo: Orpo, tmp_path: Path) -> None:
    (tmp_path / "sweep.json").write_text("{}", encoding="utf-8")
    done = orpo.run("verify", *(word.format(run=reference, sweep=tmp_path) for word in argv))
    assert done.code == code
    assert said in done.output
