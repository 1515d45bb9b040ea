"""Damaged checkpoints: found whatever the damage; the run falls back to the one before, or ends with 65."""

import json
import os
import random
import re
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from fake_run import FakeRun
from matrix import rows
from safetensors.torch import load_file, save_file
from tiny_runs import Arguments, Orpo, at, change_json, digests, gone_back, kill, records, same_end, sign

from orpo_cli.checkpoints.lookup import BEST, LATEST, OPTIMIZER, STATE, latest_checkpoint, verify
from orpo_cli.errors import CheckpointError
from orpo_cli.files import manifest as manifests
from orpo_cli.files.untrusted import MAX_OWN_BYTES, read_json
from orpo_cli.files.writing import write_json
from orpo_cli.reporting.metrics_file import MetricsFile, read_lines
from orpo_cli.runs.folder import RunFolder

Damage = Callable[[Path], Any]
"""What is done to a checkpoint."""

WEIGHTS = "model.safetensors"
MANIFEST = manifests.MANIFEST


def cut(name: str, length: Callable[[int], int]) -> Damage:
    """Keep so many of the bytes of a file."""
    return lambda path: os.truncate(path / name, length((path / name).stat().st_size))


def flip(name: str, offset: float = 0.6) -> Damage:
    """Flip a bit, at a share of the length."""
    return lambda path: flip_bit(path / name, int((path / name).stat().st_size * offset))


def flip_bit(path: Path, offset: int, bit: int = 0) -> None:
    content = bytearray(path.read_bytes())
    content[offset] ^= 1 << bit
    path.write_bytes(content)


def zeros(name: str, begin: Callable[[int], int], length: int) -> Damage:
    """Overwrite bytes with zeros from an offset of the length on."""

    def damage(path: Path) -> None:
        content = bytearray((path / name).read_bytes())
        first = begin(len(content))
        content[first : first + length] = bytes(len(content[first : first + length]))
        (path / name).write_bytes(content)

    return damage


def manifest(edit: Callable[[dict[str, Any]], Any]) -> Damage:
    def damage(path: Path) -> None:
        value = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
        edit(value)
        (path / MANIFEST).write_text(json.dumps(value), encoding="utf-8")

    return damage


def written(name: str, content: str) -> Damage:
    return lambda path: (path / name).write_text(content, encoding="utf-8")


def gone(name: str) -> Damage:
    return lambda path: (path / name).unlink()


def linked(path: Path) -> None:
    """The weights are a link to the same bytes elsewhere."""
    (path / WEIGHTS).rename(path.parent.parent / WEIGHTS)
    (path / WEIGHTS).symlink_to(path.parent.parent / WEIGHTS)


def not_listed(path: Path) -> None:
    """The optimizer's file is there as before, and the manifest says nothing of it."""
    manifest(lambda value: value["files"].pop(OPTIMIZER))(path)


def header(name: str) -> Callable[[Path], int]:
    return lambda path: int.from_bytes((path / name).read_bytes()[:8], "little") + 8


ROWS: dict[str, tuple[Damage, str]] = {
    "10: cut to nothing": (cut(WEIGHTS, lambda _: 0), rf"{WEIGHTS}: 0 bytes, expected \d+"),
    "10: cut to one byte": (cut(WEIGHTS, lambda _: 1), rf"{WEIGHTS}: 1 bytes, expected \d+"),
    "10: cut to eight bytes": (cut(OPTIMIZER, lambda _: 8), rf"{OPTIMIZER}: 8 bytes, expected \d+"),
    "10: cut within the header": (
        lambda path: os.truncate(path / WEIGHTS, header(WEIGHTS)(path) - 1), rf"{WEIGHTS}: \d+ bytes, expected \d+"
    ),
    "10: half": (cut(OPTIMIZER, lambda size: size // 2), rf"{OPTIMIZER}: \d+ bytes, expected \d+"),
    "10: the last byte is missing": (cut(STATE, lambda size: size - 1), rf"{STATE}: \d+ bytes, expected \d+"),
    "10: a byte more": (lambda path: os.truncate(path / STATE, (path / STATE).stat().st_size + 1), r"expected \d+"),
    "11: a bit of the weights": (flip(WEIGHTS), rf"{WEIGHTS}: its checksum"),
    "11: a bit of the optimizer's state": (flip(OPTIMIZER), rf"{OPTIMIZER}: its checksum"),
    "12: zeros at the end": (zeros(WEIGHTS, lambda size: size - 100, 100), rf"{WEIGHTS}: its checksum"),
    "12: a page of zeros": (zeros(OPTIMIZER, lambda size: size // 2, 4096), rf"{OPTIMIZER}: its checksum"),
    "13: no manifest": (gone(MANIFEST), f"{MANIFEST} is missing or damaged"),
    "13: an empty manifest": (written(MANIFEST, ""), f"{MANIFEST} is missing or damaged"),
    "13: not JSON": (written(MANIFEST, "{'files'"), f"{MANIFEST} is missing or damaged"),
    "13: a list": (written(MANIFEST, "[]"), f"{MANIFEST} is missing or damaged"),
    "13: deeply nested": (written(MANIFEST, "[" * 100_000), f"{MANIFEST} is missing or damaged"),
    "13: no list of files": (written(MANIFEST, "{}"), f"{MANIFEST} is missing or damaged"),
    "13: fewer files, optimizer": (not_listed, f"does not list {OPTIMIZER}"),
    "13: fewer files, weights": (manifest(lambda value: value["files"].pop(WEIGHTS)), f"does not list {WEIGHTS}"),
    "13: another size": (manifest(lambda value: value["files"][STATE].update(size=1)), "bytes, expected 1"),
    "13: another checksum": (
        manifest(lambda value: value["files"][STATE].update(xxh128="0" * 32)), f"{STATE}: its checksum"
    ),
    "13: no checksum": (manifest(lambda value: value["files"][STATE].pop("xxh128")), "missing or damaged"),
    "13: a file outside": (
        manifest(lambda value: value["files"].update({"../LATEST": value["files"][STATE]})), "../LATEST is missing"
    ),
    "14: no optimizer's state": (gone(OPTIMIZER), f"{OPTIMIZER} is missing"),
    "14: no weights": (gone(WEIGHTS), f"{WEIGHTS} is missing"),
    "44: weights that are a link": (linked, f"{WEIGHTS} is a link"),
}  # fmt: skip


@pytest.mark.parametrize(("damage", "message"), ROWS.values(), ids=ROWS)
def test_damage_is_found_and_the_one_before_is_used(damage: Damage, message: str, tmp_path: Path) -> None:
    run = FakeRun(tmp_path)
    before, last = run.save(2), run.save(4)
    damage(last)
    with pytest.raises(CheckpointError, match=message):
        verify(last)
    found, faults = latest_checkpoint(run.root)
    assert found == before
    assert len(faults) == 2  # the damage, and LATEST names another


def test_11_a_bit_anywhere_in_any_file(tmp_path: Path) -> None:
    last = FakeRun(tmp_path).save(2)
    chosen = random.Random(11)
    files = [path for path in last.iterdir() if path.name != MANIFEST]
    assert len(files) == 4
    for path in files:
        for _ in range(50):
            offset, bit = chosen.randrange(path.stat().st_size), chosen.randrange(8)
            flip_bit(path, offset, bit)
            with pytest.raises(CheckpointError, match=r"its checksum is not that of manifest\.json"):
                manifests.check_manifest(last, {STATE, OPTIMIZER})
            flip_bit(path, offset, bit)
    verify(last)


def test_11_a_bit_of_the_manifest_is_found_or_changes_nothing(tmp_path: Path) -> None:
    last = FakeRun(tmp_path).save(2)
    whole = json.loads((last / MANIFEST).read_text(encoding="utf-8"))
    chosen = random.Random(11)
    for _ in range(200):
        offset, bit = chosen.randrange((last / MANIFEST).stat().st_size), chosen.randrange(8)
        flip_bit(last / MANIFEST, offset, bit)
        try:
            manifests.check_manifest(last, {STATE, OPTIMIZER})
        except CheckpointError:
            pass
        else:
            assert json.loads((last / MANIFEST).read_text(encoding="utf-8"))["files"] == whole["files"]
        flip_bit(last / MANIFEST, offset, bit)


def test_13_a_file_nobody_listed(tmp_path: Path) -> None:
    """Weights in a second file would be loaded with the others."""
    last = FakeRun(tmp_path).save(2)
    shutil.copy(last / WEIGHTS, last / "adapter_model.safetensors")
    with pytest.raises(CheckpointError, match=r"does not list adapter_model\.safetensors"):
        verify(last)


def test_10_a_file_that_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = FakeRun(tmp_path)
    before, last = run.save(2), run.save(4)
    checksum = manifests._checksum

    def fails_in_the_last(path: Path, kind: str) -> str:
        if path.parent == last:
            raise OSError(5, os.strerror(5), str(path))
        return checksum(path, kind)

    monkeypatch.setattr(manifests, "_checksum", fails_in_the_last)
    found, faults = latest_checkpoint(run.root)
    assert found == before
    assert "cannot be read: Input/output error" in faults[0]


POINTERS: dict[str, tuple[Callable[[Path], Any], str]] = {
    "15: missing": (lambda pointer: pointer.unlink(), "is missing"),
    "15: stale": (lambda pointer: pointer.write_text("step-000002\n"), "says 'step-000002', but the newest"),
    "15: empty": (lambda pointer: pointer.write_text(""), "says '', but the newest"),
    "15: absolute": (lambda pointer: pointer.write_text("/etc"), "says '/etc', but the newest"),
    "15: points outside": (lambda pointer: pointer.write_text("../../step-000009"), "the newest whole checkpoint is"),
    "15: not text": (lambda pointer: pointer.write_bytes(b"\xff\xfe"), "cannot be read"),
    "15: a directory": (lambda pointer: (pointer.unlink(), pointer.mkdir()), "cannot be read"),
    "15: a link": (lambda pointer: (pointer.unlink(), pointer.symlink_to("/etc/passwd")), "is a link"),
}


@pytest.mark.parametrize(("damage", "message"), POINTERS.values(), ids=POINTERS)
def test_a_pointer_is_not_believed(damage: Callable[[Path], Any], message: str, tmp_path: Path) -> None:
    run = FakeRun(tmp_path / "run")
    shutil.copytree(run.save(2), tmp_path / "step-000009")
    last = run.save(4)
    damage(run.root / LATEST)
    found, (fault,) = latest_checkpoint(run.root)
    assert found == last
    assert message in fault


def test_44_a_link_to_a_checkpoint_is_none(tmp_path: Path) -> None:
    run = FakeRun(tmp_path / "run")
    last = run.save(2)
    (run.root / "step-000009").symlink_to(FakeRun(tmp_path / "other").save(9))
    assert latest_checkpoint(run.root)[0] == last


def test_49_a_clock_that_jumps_back_changes_no_order(tmp_path: Path) -> None:
    run = FakeRun(tmp_path, keep_last=3)
    for age, path in enumerate([run.save(2), run.save(4), run.save(1_000_000)]):
        os.utime(path, (10**9 - age, 10**9 - age))
    os.utime(run.save(1_000_001), (0, 0))
    assert [path.name for path in sorted(run.root.glob("step-*"))] == ["step-000004", "step-1000000", "step-1000001"]
    assert latest_checkpoint(run.root) == (run.root / "step-1000001", [])


def test_2_the_best_is_kept_and_a_damaged_one_is_not_the_best(tmp_path: Path) -> None:
    run = FakeRun(tmp_path, keep_last=1, keep_best="loss")
    for step, loss in ((1, 3.0), (2, 1.0), (3, 2.0), (4, 2.5)):
        run.save(step, {"loss": loss})
    assert [path.name for path in sorted(run.root.glob("step-*"))] == ["step-000002", "step-000004"]
    assert (run.root / BEST).read_text(encoding="utf-8") == "step-000002\n"


@pytest.fixture(scope="session")
def unfinished(orpo: Orpo, arguments: Arguments, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that was killed after its checkpoints of steps 2 and 4."""
    folder = tmp_path_factory.mktemp("unfinished") / "run"
    died = orpo.run(*arguments(folder), injections=[kill("orpo_cli.training.run.begin_checkpoint", 3)])
    assert died.code == -signal.SIGKILL, died.output
    return folder


@pytest.mark.parametrize(
    "row",
    [
        "11: a bit of the optimizer's state",
        pytest.param("10: half", marks=pytest.mark.slow),
        pytest.param("13: fewer files, optimizer", marks=pytest.mark.slow),
        pytest.param("14: no optimizer's state", marks=pytest.mark.slow),
    ],
)
def test_a_run_goes_on_from_the_one_before(
    row: str, unfinished: Path, orpo: Orpo, arguments: Arguments, reference: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(unfinished, tmp_path / "run")
    damage, message = ROWS[row]
    damage(folder / "checkpoints/step-000004")
    done = orpo.run(*arguments(folder, "resume=auto"))
    assert done.code == 0, done.output
    assert re.search(message, done.output), done.output
    assert "2 steps are done again, after step 2" in done.output
    assert same_end(folder, reference)


@pytest.mark.parametrize("explicit", [False, True])
def test_nothing_whole_is_left(
    explicit: bool, unfinished: Path, orpo: Orpo, arguments: Arguments, tmp_path: Path
) -> None:
    folder = shutil.copytree(unfinished, tmp_path / "run")
    for path in (folder / "checkpoints").glob("step-*"):
        flip(WEIGHTS)(path)
    before = sorted(folder.rglob("step-*"))
    done = orpo.run("resume", str(folder)) if explicit else orpo.run(*arguments(folder, "resume=auto"))
    assert done.code == 65, done.output
    assert done.output.count("its checksum is not that of manifest.json") == 2
    assert sorted(folder.rglob("step-*")) == before


def tensors(name: str, key: str, change: Callable[[torch.Tensor], torch.Tensor]) -> Damage:
    """Another value of a tensor."""

    def damage(path: Path) -> None:
        values = load_file(path / name)
        save_file(values | {key: change(values[key]).contiguous()}, path / name, {"format": "pt"})

    return damage


def numbers(**values: Any) -> Damage:
    return lambda path: change_json(path / STATE, **values)


AVERAGE = "model.norm.weight|exp_avg"
SIGNED: dict[str, tuple[Damage, str]] = {
    "shape of the optimizer's state": (
        tensors(OPTIMIZER, AVERAGE, lambda value: value[:2]), r"model\.norm\.weight: has exp_avg float32 \[2\]"
    ),
    "no optimizer's state": (lambda path: save_file({}, path / OPTIMIZER), "has no optimizer state after 4 steps"),
    "other steps": (numbers(total_steps=1000), "says step 4 of 1000; this run has 6 steps"),
    "a word for a number": (numbers(max_tokens="all"), "max_tokens=all: expected int"),
}  # fmt: skip


@pytest.mark.parametrize(("damage", "message"), rows(SIGNED, "shape of the optimizer's state", "a word for a number"))
def test_a_manifest_that_fits_damage_makes_it_no_checkpoint_of_this_run(
    damage: Damage, message: str, reference: Path, orpo: Orpo, tmp_path: Path
) -> None:
    folder = gone_back(reference, tmp_path / "run", 4)
    last = folder / "checkpoints/step-000004"
    damage(last)
    sign(last)
    done = orpo.run("resume", str(folder))
    assert done.code == 65, done.output
    assert re.search(message, done.output.replace("\n", " ")), done.output
    assert "Traceback" not in done.output


def test_a_weight_without_optimizer_state_is_said(reference: Path, orpo: Orpo, tmp_path: Path) -> None:
    """There are weights that no step changes; that a file lacks one that is changed cannot be known."""
    folder = gone_back(reference, tmp_path / "run", 4)
    last = folder / "checkpoints/step-000004"
    values = load_file(last / OPTIMIZER)
    save_file({key: value for key, value in values.items() if "norm.weight" not in key}, last / OPTIMIZER)
    sign(last)
    done = orpo.run("resume", str(folder))
    assert done.code == 0, done.output
    said = " ".join(done.output.split())
    assert re.search(
        r"the checkpoint has no optimizer state of model\.layers\.0\.input_layernorm\.weight, .* more", said
    )


def lines(edit: Callable[[list[str]], list[str]], name: str = "metrics.jsonl") -> Damage:
    def damage(folder: Path) -> None:
        content = (folder / name).read_text(encoding="utf-8").splitlines(keepends=True)
        (folder / name).write_text("".join(edit(content)), encoding="utf-8")

    return damage


RECORDS: dict[str, tuple[Damage, str | None]] = {
    "an empty line": (lines(lambda all: [all[0], "\n", *all[1:]]), None),
    "a line cut short at the end": (lines(lambda all: [*all[:-1], all[-1][:20]]), None),
    "a line of somebody else": (lines(lambda all: [all[0], "# best so far\n", *all[1:]]), "run wrote: 2"),
    "a number": (lines(lambda all: [*all, "3\n"]), "run wrote: 10"),
    "a record without its kind": (lines(lambda all: [all[0], '{"step": 1}\n', *all[1:]]), "run wrote: 2"),
    "an evaluation without figures": (
        lines(lambda all: ['{"kind": "eval", "step": 0}\n', *all]), "run wrote: 1"
    ),
    "half a character in a name": (
        lines(lambda all: [all[0], '{"kind": "step", "step": 1, "l\\ud800": 1}\n', *all[1:]]), "run wrote: 2"
    ),
    "a word for a number": (
        lines(lambda all: [all[0], '{"kind": "step", "step": 1, "loss": "low"}\n', *all[1:]]), "run wrote: 2"
    ),
    "a number that no float can hold": (
        lines(lambda all: [all[0], f'{{"kind": "step", "step": 1, "loss": 1{"0" * 400}}}\n', *all[1:]]), "run wrote: 2"
    ),
    "half a character": (
        lines(lambda all: ['{"step": 0, "prompt": "\\ud800", "answer": ""}\n', *all], "samples.jsonl"), "run wrote: 1"
    ),
    "another key of a sample": (
        lines(lambda all: ['{"step": 0, "prompt": "a", "answer": "b", "mine": 1}\n', *all], "samples.jsonl"),
        "samples.jsonl: dropped lines that no run wrote: 1",
    ),
    "run.json of other kinds": (lambda folder: (folder / "run.json").write_text('{"resumes": 5}'), None),
    "run.json, half a character": (
        lambda folder: (folder / "run.json").write_text('{"resumes": [{"after_step": 2, "changed": {"\\ud800": 1}}]}'),
        None,
    ),
    "run.json, a change that is none": (
        lambda folder: (folder / "run.json").write_text('{"resumes": [{"after_step": "2"}, 7]}'), None
    ),
}  # fmt: skip


@pytest.mark.parametrize(("damage", "said"), rows(RECORDS, "a line of somebody else", "half a character in a name"))
def test_records_that_were_edited_cost_no_other_line(
    damage: Damage, said: str | None, reference: Path, orpo: Orpo, tmp_path: Path
) -> None:
    folder = gone_back(reference, tmp_path / "run", 4)
    damage(folder)
    done = orpo.run("resume", str(folder))
    assert done.code == 0, done.output
    assert same_end(folder, reference)
    assert [record["step"] for record in records(folder) if record["kind"] == "step"] == [1, 2, 3, 4, 5, 6]
    output = " ".join(done.output.split())
    assert said in output if said else "dropped" not in output


def test_any_bytes_in_the_records_are_read_or_dropped(reference: Path, tmp_path: Path) -> None:
    chosen, names = random.Random(11), ("run.json", "metrics.jsonl", "samples.jsonl")
    whole = {name: (reference / name).read_bytes() for name in names}
    for _ in range(300):
        for name, content in whole.items():
            start = chosen.randrange(len(content))
            instead = chosen.choice(
                (chosen.randbytes(3), b"null", b"1e999", b"[]", b"{", b'"', b"\\ud800", b"[" * 3000)
            )
            (tmp_path / name).write_bytes(content[:start] + instead + content[start + chosen.randrange(40) :])
        run = RunFolder(tmp_path)
        assert isinstance(run.is_finished, bool)
        assert all(isinstance(part, dict) for part in (run.files, run.model_files, *run.resumes))
        MetricsFile(tmp_path, 1, lambda _: None, run.metrics_lines, run.samples_lines, steps_done=6)
        assert all(record is not None for _, record in read_lines(tmp_path / "metrics.jsonl"))


ENDS: dict[str, Damage] = {
    "no model": lambda folder: shutil.rmtree(folder / "model"),
    "no weights": lambda folder: (folder / "model" / WEIGHTS).unlink(),
    "no configuration": lambda folder: (folder / "model" / "config.json").unlink(),
    "no settings of generation": lambda folder: (folder / "model" / "generation_config.json").unlink(),
}


@pytest.mark.parametrize(
    "damage",
    rows(ENDS, "no weights"),
)
def test_a_finished_run_without_its_model_publishes_it_again(
    damage: Damage, reference: Path, orpo: Orpo, arguments: Arguments, tmp_path: Path
) -> None:
    folder = shutil.copytree(reference, tmp_path / "run")
    done = orpo.run("resume", str(folder))
    assert (done.code, f"{folder}: finished already" in done.output) == (0, True), done.output
    damage(folder)
    done = orpo.run(*arguments(folder, "resume=auto"))
    assert done.code == 0, done.output
    assert same_end(folder, reference)


def one_gone_and_one_more(folder: Path) -> None:
    (folder / "model" / "config.json").unlink()
    (folder / "model" / "README.md").write_text("by hand", encoding="utf-8")


CHANGES: dict[str, Damage] = {
    "a bit of the weights": lambda folder: flip_bit(folder / "model" / WEIGHTS, 5000),
    "a space in the configuration": lambda folder: (folder / "model" / "config.json").open("a").write(" "),
    "weights cut short": lambda folder: os.truncate(folder / "model" / WEIGHTS, 5000),
    "tokenizer cut short": lambda folder: os.truncate(folder / "model" / "tokenizer.json", 500),
    "a file gone, and one of somebody there": one_gone_and_one_more,
    "run.json cut short": lambda folder: os.truncate(folder / "run.json", 0),
    "run.json without its list": lambda folder: (folder / "run.json").write_text('{"finished": true, "files": []}'),
}


@pytest.mark.parametrize("removed", ["model", pytest.param("model/tokenizer.json", marks=pytest.mark.slow)])
def test_45_a_finished_run_without_checkpoints_is_never_done_again(
    removed: str, reference: Path, orpo: Orpo, arguments: Arguments, tmp_path: Path
) -> None:
    """Its model may serve somewhere; the records of the run are still its own."""
    folder = shutil.copytree(reference, tmp_path / "run")
    shutil.rmtree(folder / "checkpoints")
    assert "finished already" in orpo.run("resume", str(folder)).output
    assert orpo.run("resume", str(folder), "lambda=0.7").code == 2
    (folder / removed).rename(tmp_path / "moved")
    before = digests(folder)
    for typed in (["resume", str(folder)], arguments(folder, "resume=auto")):
        done = orpo.run(*typed)
        assert done.code == 65, done.output
        assert "the run is finished and its checkpoints have been removed" in " ".join(done.output.split())
    for name in ("run.lock", "train.log"):
        del before[name]
    assert digests(folder).items() >= before.items()


def test_45_what_lies_in_the_place_of_a_model_that_is_not_written_yet_is_kept(
    orpo: Orpo, arguments: Arguments, reference: Path, tmp_path: Path
) -> None:
    """A checkpoint that somebody copied there and went on with."""
    folder = tmp_path / "run"
    assert orpo.run(*arguments(folder), injections=[at("orpo_cli.training.loop._update", 3, "SIGINT")]).code == 130
    shutil.copytree(folder / "checkpoints" / "step-000003", folder / "model")
    before = digests(folder)
    done = orpo.run("resume", str(folder))
    assert done.code == 65, done.output
    assert f"move it away, and orpo resume {folder} writes the model" in " ".join(done.output.split())
    assert digests(folder) == before
    (folder / "model").rename(tmp_path / "mine")
    assert orpo.run("resume", str(folder)).code == 0
    assert same_end(folder, reference)


@pytest.mark.slow
def test_1_killed_between_the_model_and_the_note_of_the_end(
    orpo: Orpo, arguments: Arguments, reference: Path, tmp_path: Path
) -> None:
    """What lies there is the run's own, also when it is killed again before it is written again."""
    folder, again, early = (tmp_path / name for name in ("run", "again", "early"))
    end = kill("orpo_cli.runs.folder.RunFolder.note_end", 1)
    publish = kill("orpo_cli.files.directories._moved_aside", 1, of="model$")
    assert orpo.run(*arguments(early), injections=[publish]).code == -9
    assert not (early / "model").exists()
    assert orpo.run("verify", str(early)).code == 0
    assert orpo.run("resume", str(early)).code == 0
    assert same_end(early, reference)
    assert orpo.run(*arguments(folder), injections=[end]).code == -9
    assert (folder / "model").is_dir()
    assert orpo.run("verify", str(folder)).code == 0
    shutil.copytree(folder, again)
    assert orpo.run("resume", str(folder)).code == 0
    assert same_end(folder, reference)
    before_the_end = kill("orpo_cli.runs.execution.stage_model", 1)
    assert orpo.run("resume", str(again), injections=[before_the_end]).code == -9
    assert orpo.run("resume", str(again)).code == 0
    assert same_end(again, reference)


def test_a_project_with_a_config_and_a_model_of_its_own_is_no_run(
    orpo: Orpo, arguments: Arguments, tmp_path: Path
) -> None:
    (tmp_path / "config.yaml").write_text("service: mine\n", encoding="utf-8")
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "weights.bin").write_bytes(b"mine")
    before = digests(tmp_path)
    done = orpo.run(*arguments(tmp_path, "resume=auto"))
    assert done.code == 2, done.output
    assert "config.yaml" in done.output
    assert "move it away" not in done.output
    assert digests(tmp_path) == before


def test_the_notes_of_a_run_on_thousands_of_files_are_kept(tmp_path: Path) -> None:
    notes = {"data_sha256": {f"part-{number:05}.jsonl" * 10: "0" * 64 for number in range(10_000)}, "finished": False}
    write_json(tmp_path / "run.json", notes)
    folder = RunFolder(tmp_path)
    folder.note_model({"config.json": {"size": 1}})
    folder.note_end()
    end = {"files": {}, "model_files": {"model/config.json": {"size": 1}}, "finished": True}
    assert read_json(tmp_path / "run.json", MAX_OWN_BYTES) == RunFolder(tmp_path).record == notes | end


@pytest.mark.parametrize("change", rows(CHANGES, "a bit of the weights", "run.json without its list"))
def test_a_model_that_is_not_as_its_run_left_it_is_refused_and_kept(
    change: Damage, reference: Path, orpo: Orpo, tmp_path: Path
) -> None:
    """45: it may be work of somebody. What to do is said, and done it leads to the model of the run."""
    folder = shutil.copytree(reference, tmp_path / "run")
    notes = folder / "model" / "notes.json"
    notes.write_text("{}\n{}\n", encoding="utf-8")
    for more in ((), ("trainer.log_every=2",), ("data.workers=2", "data.path=moved.jsonl")):
        done = orpo.run("resume", str(folder), *more)
        assert (done.code, "finished already" in done.output, notes.exists()) == (0, True, True), done.output
    notes.unlink()
    change(folder)
    changed = digests(folder / "model")
    for more in ((), ("trainer.log_every=2",)):
        done = orpo.run("resume", str(folder), *more)
        assert done.code == 65, done.output
        assert f"move it away, and orpo resume {folder} writes the model" in " ".join(done.output.split())
    assert digests(folder / "model") == changed
    shutil.rmtree(folder / "model")
    assert orpo.run("resume", str(folder)).code == 0
    assert same_end(folder, reference)
