"""Rows 31 to 35, 40 to 42: what comes from others is data. Models, data files, checkpoints, run folders.

More of rows 31, 32 and 34 stands in tests/models/test_loading.py, of row 35 in tests/data/tokens/test_templates.py.
"""

import json
import os
import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from matrix import rows
from tiny_runs import Arguments, Orpo, change_json, digests, sign, tiny_model, write_pairs

from orpo_cli.cli.main import main

SECRET = "secret-marker-123"


class Marker:
    """Creates a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, tuple[Path]]:
        return Path.touch, (self.path,)


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    directory = tmp_path / "here"
    directory.mkdir()
    monkeypatch.chdir(directory)
    monkeypatch.setattr(sys, "argv", ["orpo"])
    monkeypatch.setenv("HF_TOKEN", SECRET)
    return directory


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A copy of the tiny model, to be made hostile."""
    return tiny_model(tmp_path / "model")


@pytest.fixture
def stopped(reference: Path, tmp_path: Path) -> Path:
    """A run folder that came from somebody else: stopped after its only checkpoint, step 4 of 6."""
    folder = tmp_path / "run"
    shutil.copytree(reference, folder)
    shutil.rmtree(folder / "model")
    for name in ("step-000002", "step-000006"):
        shutil.rmtree(folder / "checkpoints" / name, ignore_errors=True)
    (folder / "checkpoints" / "LATEST").write_text("step-000004\n")
    change_json(folder / "run.json", finished=False)
    return folder


# the configuration of a run folder

BOMB = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{level}: &a{level} [{', '.join([f'*a{level - 1}'] * 9)}]\n" for level in range(1, 9)
)
Change = Callable[[str], str]
SAVED: dict[str, tuple[Change, str]] = {
    "41: a target": (lambda text: f"{text}x: {{_target_: os.mkdir, path: ran}}\n", "values, never code"),
    "41: a target in a list": (lambda text: text.replace("betas:", "betas:\n  - {_target_: os.mkdir}"), ""),
    "41: hydra": (lambda text: f"{text}hydra: {{callbacks: {{x: {{_target_: os.mkdir}}}}}}\n", "values, never code"),
    "41: the environment": (lambda text: text.replace("revision: null", "revision: ${oc.env:HF_TOKEN}"), "revision"),
    "41: the environment, in text": (lambda text: text.replace("null", "x${oc.env:HF_TOKEN}x"), "write the value"),
    "41: decoded": (lambda text: text.replace("seed: 0", "seed: ${oc.decode:'${oc.env:HF_TOKEN}'}"), "seed"),
    "41: what hydra knows": (lambda text: text.replace("seed: 0", "seed: ${hydra:runtime.cwd}"), "write the value"),
    "41: a resolver": (lambda text: text.replace("seed: 0", "seed: ${orpo.run_dir:null,x}"), "write the value"),
    "41: a name put together": (lambda text: text.replace("seed: 0", "seed: ${oc.${x}:HF_TOKEN}"), "write the value"),
    "42: references that multiply": (
        lambda text: text.replace("revision: null", "revision: ${model.dtype}${model.dtype}"), "write the value"
    ),
    "42: aliases that multiply": (lambda text: BOMB + text, "once its aliases are expanded"),
    "42: an alias of itself": (lambda text: f"x: &x [*x]\n{text}", "once its aliases are expanded"),
    "42: nested deeply": (lambda text: f"x: {'[' * 5000}\n{text}", "deeply"),
    "42: very large": (lambda text: text + "#" * 2_000_000, "bytes; expected at most"),
    "42: very many values": (lambda text: f"x: [{'1,' * 400_000}1]\n{text}", "more than"),
    "43: a key twice": (lambda text: f"{text}seed: 1\n", "the key `seed` stands twice"),
    "43: an octal number": (lambda text: text.replace("seed: 0", "seed: 010"), "`010` is 8 in YAML"),
    "43: a date for a number": (lambda text: text.replace("seed: 0", "seed: 2026-01-31"), "seed=2026-01-31"),
    "41: bytes": (lambda text: text.replace("seed: 0", "seed: !!binary aGFsbG8="), "seed="),
    "41: a set": (lambda text: text.replace("seed: 0", "seed: !!set {a, b}"), ""),
    "41: a tag of Python": (lambda text: text.replace("seed: 0", "seed: !!python/object/apply:os.getcwd []"), "tag"),
    "41: a list": (lambda _text: "- 1\n", "expected a mapping"),
    "41: nothing": (lambda _text: "", "expected a mapping"),
    "41: a key that is none": (lambda text: f"{text}evil: 1\n", "unknown key `evil`"),
    "41: a key that is a list": (lambda text: f"{text}? [a, b]\n: 1\n", ""),
    "41: very many processes": (lambda text: text.replace("processes: 1", "processes: 100000"), "trainer.processes"),
}  # fmt: skip


@pytest.mark.timeout(120)  # what is expanded has no end
@pytest.mark.parametrize(
    ("command", "name"),
    [
        *(pytest.param("verify", name, id=f"{name}-verify") for name in SAVED),
        *(pytest.param("resume", *row.values, id=f"{row.id}-resume", marks=row.marks) for row in rows(
            {name: name for name in SAVED}, "41: a target", "41: the environment", "42: aliases that multiply",
            "43: a key twice", "41: very many processes",
        )),
    ],
)  # fmt: skip
def test_saved_configuration(name: str, command: str, stopped: Path, capfd: pytest.CaptureFixture[str]) -> None:
    change, message = SAVED[name]
    path = stopped / "config.yaml"
    text = path.read_text()
    path.write_text(change(text))
    assert path.read_text() != text
    before = digests(stopped.parent)
    assert main([command, str(stopped)]) == {"resume": 2, "verify": 65}[command]
    written = capfd.readouterr()
    [line] = written.err.splitlines()
    assert message in line
    assert SECRET not in line + written.out
    assert digests(stopped.parent) == before


def test_saved_configuration_cannot_point_elsewhere(stopped: Path, tmp_path: Path) -> None:
    """41: its output_dir and resume are those of another folder; the run goes on in the folder that was named."""
    path = stopped / "config.yaml"
    elsewhere = tmp_path / "elsewhere"
    lines = [line for line in path.read_text().splitlines() if not line.startswith(("output_dir:", "resume:"))]
    path.write_text("\n".join([*lines, f"output_dir: {elsewhere}", f"resume: {elsewhere}"]) + "\n")
    assert main(["resume", str(stopped)]) == 0
    assert (stopped / "model" / "model.safetensors").is_file()
    assert not elsewhere.exists()


# the other files of a run folder

DEEP = "[" * 100_000 + "]" * 100_000
NO_JSON: dict[str, str] = {
    "empty": "",
    "not JSON": "{",
    "a list": "[]",
    "a number": "1e999",
    "nested deeply": DEEP,
    "an object nested deeply": '{"a":' * 50_000 + "1" + "}" * 50_000,
    "very large": '{"files": {}, "x": "' + "x" * 3_000_000 + '"}',
    "a number of 10,000 digits": '{"files": {"a": {"size": ' + "9" * 10_000 + ', "xxh128": ""}}}',
    "a size without end": '{"files": {"state.json": {"size": Infinity, "xxh128": ""}}}',
    "paths outside": '{"files": {"../../../etc/passwd": {"size": 1, "xxh128": "x"}}}',
    "absolute paths": '{"files": {"/etc/passwd": {"size": 1, "xxh128": "x"}}}',
    "files as a list": '{"files": ["state.json", "optimizer.safetensors"]}',
    "a NUL in a name": '{"files": {"a\\u0000b": {"size": 1, "xxh128": "x"}}}',
}


@pytest.mark.parametrize("command", ["verify", pytest.param("resume", marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", NO_JSON, ids=lambda name: f"13: {name}")
def test_manifest(name: str, command: str, stopped: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (stopped / "checkpoints" / "step-000004" / "manifest.json").write_text(NO_JSON[name])
    assert main([command, str(stopped)]) == 65
    written = capfd.readouterr()
    assert "Traceback" not in written.err
    assert "manifest.json" in written.out + written.err


STATES: dict[str, dict[str, Any]] = {
    "14: a step in words": {"step": "4"},
    "14: a negative step": {"step": -4},
    "14: a step of 2**70": {"step": 2**70},
    "14: another step than its name": {"step": 5},
    "14: a fraction of a step": {"step": 4.0},
    "14: true": {"step": True},
    "14: null": {"total_steps": None},
    "14: a list of digests": {"data_sha256": ["x"]},
    "14: identity in words": {"identity": "x"},
    "14: no identity": {"identity": None},
    "14: an environment in words": {"environment": "x"},
    "14: a further key": {"__class__": "os.system"},
    "52: another version": {"format_version": 99},
    "52: a version that is a list": {"format_version": [3]},
}


@pytest.mark.parametrize("command", ["verify", pytest.param("resume", marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", STATES)
def test_state(name: str, command: str, stopped: Path, capfd: pytest.CaptureFixture[str]) -> None:
    change_json(stopped / "checkpoints" / "step-000004" / "state.json", **STATES[name])
    sign(stopped / "checkpoints" / "step-000004")
    assert main([command, str(stopped)]) == 65
    written = capfd.readouterr()
    assert "Traceback" not in written.err
    assert "step-000004: " in written.out + written.err


def pipe(path: Path, _tmp: Path) -> None:
    path.unlink(missing_ok=True)
    os.mkfifo(path)


def device(path: Path, _tmp: Path) -> None:
    path.unlink(missing_ok=True)
    path.symlink_to("/dev/zero")


def link(path: Path, tmp: Path) -> None:
    other = tmp / "other"
    path.rename(other)
    path.symlink_to(other)


STRANGE = [
    ("checkpoints/step-000004/manifest.json", pipe, 65),
    ("checkpoints/step-000004/manifest.json", device, 65),
    ("checkpoints/step-000004/state.json", pipe, 65),
    ("checkpoints/step-000004/state.json", link, 65),
    ("checkpoints/step-000004/model.safetensors", link, 65),
    ("checkpoints/step-000004", link, 65),
    ("config.yaml", pipe, 66),
    ("config.yaml", device, 66),
    ("checkpoints/LATEST", pipe, 65),
    ("checkpoints/LATEST", device, 65),
]


@pytest.mark.timeout(120)
@pytest.mark.parametrize(("name", "put", "code"), STRANGE, ids=lambda part: getattr(part, "__name__", str(part)))
def test_what_is_no_file(
    name: str, put: Any, code: int, stopped: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """44: pipes, devices and links in the place of a file are neither waited for nor followed."""
    put(stopped / name, tmp_path)
    assert main(["verify", str(stopped)]) == code
    assert "Traceback" not in capfd.readouterr().err


POINTERS = {"../../../etc": "outside", "/etc": "absolute", "": "empty", "x" * 100_000: "large", "step-000099": "stale"}


@pytest.mark.slow
@pytest.mark.parametrize("text", POINTERS, ids=lambda text: f"15: {POINTERS[text]}")
def test_pointer(text: str, stopped: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """It never says where to read; the run goes on from the newest whole checkpoint all the same."""
    (stopped / "checkpoints" / "LATEST").write_text(text)
    assert main(["resume", str(stopped)]) == 0
    err = capfd.readouterr().err
    assert "LATEST" in err
    assert len(err) < 10_000


SWEEPS = {
    "41: a folder of jobs outside": {"arguments": ["--multirun", "hydra.sweep.subdir=../../x", "lambda=1,2"]},
    "41: a folder put together": {"arguments": ["--multirun", "hydra.sweep.subdir=${oc.decode:'\"..\"'}/x"]},
    "41: callbacks": {"arguments": ["--multirun", "+hydra.callbacks.x._target_=os.mkdir"]},
    "41: a launcher": {"arguments": ["--multirun", "hydra/launcher=../../x", "lambda=1,2"]},
    "41: a target": {"arguments": ["--multirun", "+x._target_=os.mkdir", "lambda=1,2"]},
    "41: a flag": {"arguments": ["--multirun", "--experimental-rerun=x.pickle"]},
    "41: another folder of configurations": {"arguments": ["--multirun", "--config-dir=evil", "lambda=1,2"]},
    "41: the environment": {"arguments": ["--multirun", "lambda=${oc.env:HF_TOKEN}", "seed=1"]},
    "41: no sweep": {"arguments": ["lambda=1"]},
    "41: words that are numbers": {"arguments": ["--multirun", 1]},
    "41: arguments by name": {"arguments": {"a": 1}},
    "41: no arguments": {},
}  # fmt: skip


@pytest.mark.parametrize("name", SWEEPS)
def test_sweep_of_others(name: str, here: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "sweep"
    folder.mkdir()
    (here / "evil" / "experiment").mkdir(parents=True)
    (here / "evil" / "experiment" / "x.yaml").write_text("x: {_target_: os.mkdir, path: ran}")
    (folder / "sweep.json").write_text(json.dumps(SWEEPS[name] | {"directory": str(here)}))
    before = {path for path in tmp_path.rglob("*") if folder not in path.parents}
    assert main(["resume", str(folder)]) in (1, 2, 65)
    written = capfd.readouterr()
    assert "Traceback" not in written.err
    assert SECRET not in written.err + written.out
    assert {path for path in tmp_path.rglob("*") if folder not in path.parents} == before


@settings(max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    raw=st.one_of(st.binary(max_size=60), st.text(max_size=40).map(lambda text: json.dumps({"files": text}).encode()))
)
@pytest.mark.parametrize("name", ["checkpoints/step-000004/manifest.json", "checkpoints/step-000004/state.json"])
def test_any_bytes(name: str, raw: bytes, stopped: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (stopped / name).write_bytes(raw)
    if name.endswith("state.json"):
        sign(stopped / "checkpoints" / "step-000004")
    assert main(["verify", str(stopped)]) == 65
    assert "Traceback" not in capfd.readouterr().err


@settings(max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(raw=st.binary(max_size=60))
def test_any_bytes_as_sweep(raw: bytes, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "sweep.json").write_bytes(raw)
    assert main(["resume", str(tmp_path)]) == 65
    assert "Traceback" not in capfd.readouterr().err


# pickles


def pickled(path: Path, ran: Path) -> None:
    path.write_bytes(pickle.dumps(Marker(ran)))


@pytest.mark.parametrize(
    "name",
    [
        "training_args.bin",
        *(
            pytest.param(name, marks=pytest.mark.slow)
            for name in ("optimizer.pt", "pytorch_model.bin", "rng_state.pth")
        ),
    ],
)
def test_pickle_in_a_checkpoint(name: str, stopped: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """33: one that the manifest lists lies there unread, one that it does not is a fault."""
    checkpoint = stopped / "checkpoints" / "step-000004"
    pickled(checkpoint / name, tmp_path / "ran")
    assert main(["verify", str(stopped)]) == 65
    assert name in capfd.readouterr().out
    sign(checkpoint)
    assert main(["resume", str(stopped)]) == 0
    assert not (tmp_path / "ran").exists()


def test_pickle_instead_of_the_weights_of_a_checkpoint(
    stopped: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """33: with other safetensors beside it, and a manifest that holds."""
    checkpoint = stopped / "checkpoints" / "step-000004"
    (checkpoint / "model.safetensors").rename(checkpoint / "other.safetensors")
    pickled(checkpoint / "pytorch_model.bin", tmp_path / "ran")
    sign(checkpoint)
    assert main(["resume", str(stopped)]) == 65
    assert str(checkpoint) in capfd.readouterr().err
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("name", ["model.safetensors", pytest.param("optimizer.safetensors", marks=pytest.mark.slow)])
def test_pickle_under_the_name_of_safetensors(
    name: str, stopped: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    pickled(stopped / "checkpoints" / "step-000004" / name, tmp_path / "ran")
    sign(stopped / "checkpoints" / "step-000004")
    assert main(["resume", str(stopped)]) == 65
    assert "Traceback" not in capfd.readouterr().err
    assert not (tmp_path / "ran").exists()


DATA = ["x.pkl", "x.pickle", "x.pt", "x.bin", "x.npy", "x.npz", "x.json", "x.jsonl", "x.parquet", "x.arrow", "x.csv"]


@pytest.mark.parametrize("command", ["train", pytest.param("check", marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    "name", rows({f"33: {name}": name for name in DATA}, "33: x.pkl", "33: x.npy", "33: x.jsonl", "33: x.parquet")
)
def test_pickle_as_data(name: str, command: str, here: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    marker: Any = Marker(tmp_path / "ran")
    path = here / name
    if path.suffix == ".npy":
        np.save(path, np.array([marker], dtype=object), allow_pickle=True)
    elif path.suffix == ".npz":
        np.savez(path, a=np.array([marker], dtype=object))
    elif path.suffix in (".pt", ".bin"):
        torch.save(marker, path)
    else:
        pickled(path, tmp_path / "ran")
    assert main([command, "model=tiny", f"data=./{name}"]) in (65, 66)
    assert "Traceback" not in capfd.readouterr().err
    assert not (tmp_path / "ran").exists()


# models


def code(model: Path) -> None:
    """Files that would run, were they imported."""
    ran = f"open({str(model.parent / 'ran')!r}, 'w')\n"
    for name in ("code.py", "custom_generate/generate.py", "modeling_llama.py", "tokenization.py"):
        (model / name).parent.mkdir(exist_ok=True)
        (model / name).write_text(ran)


MAP = {f"Auto{name}": f"code.{name}" for name in ("Config", "Model", "ModelForCausalLM")}
MODELS: dict[str, tuple[str, dict[str, Any], int]] = {
    "34: code beside a known type": ("config.json", {"auto_map": MAP}, 0),
    "34: code for an unknown type": ("config.json", {"auto_map": MAP, "model_type": "own"}, 65),
    "34: code of another repository": (
        "config.json", {"auto_map": {key: f"evil/repo--{name}" for key, name in MAP.items()}, "model_type": "own"}, 65
    ),
    "34: code for the tokenizer": (
        "tokenizer_config.json",
        {"auto_map": {"AutoTokenizer": ["code.Tokenizer", None]}, "tokenizer_class": "Own"}, None
    ),
    "34: kernels of another repository": ("config.json", {"attn_implementation": "evil/kernels"}, 65),
    "34: kernels of another repository, by their old name": ("config.json", {"_attn_implementation": "a/b:c"}, 65),
    "34: a type that is a list": ("config.json", {"model_type": ["llama"]}, 65),
    "36: a size in words": ("config.json", {"hidden_size": "x"}, 65),
}  # fmt: skip


@pytest.mark.parametrize("command", ["train", pytest.param("check", marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    "name",
    rows(
        {name: name for name in MODELS}, "34: code beside a known type", "34: code for an unknown type",
        "34: code for the tokenizer", "34: kernels of another repository",
    ),
)  # fmt: skip
def test_code_of_a_model(
    name: str, command: str, model: Path, here: Path, monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """Never imported, and nobody is asked on standard input whether it may be."""
    file, values, expected = MODELS[name]
    change_json(model / file, **values)
    code(model)
    write_pairs(here / "prefs.jsonl", 8)
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("asked"))
    steps = ["trainer.max_steps=1", "trainer.sample_tokens=0"]
    ended = main([command, f"model={model}", "data=prefs.jsonl", *steps])
    err = capfd.readouterr().err
    assert "Traceback" not in err
    assert "trust_remote_code" not in err
    assert ended in ((0, 65) if expected is None or command == "check" else (expected,)), err
    assert not (model.parent / "ran").exists()


def test_code_in_a_checkpoint(stopped: Path) -> None:
    """34: of what a checkpoint says about itself nothing is believed."""
    checkpoint = stopped / "checkpoints" / "step-000004"
    change_json(checkpoint / "config.json", auto_map=MAP, model_type="own", num_hidden_layers=10**9)
    change_json(checkpoint / "tokenizer_config.json", auto_map={"AutoTokenizer": ["code.Tokenizer", None]})
    code(checkpoint)
    sign(checkpoint)
    assert main(["resume", str(stopped)]) == 0
    assert not (checkpoint.parent / "ran").exists()
    shutil.rmtree(checkpoint.parent)


def test_adapter_beside_the_weights(model: Path, here: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """33: transformers would load it on top, from another base, a pickle too."""
    (model / "adapter_config.json").write_text('{"peft_type": "LORA", "base_model_name_or_path": "evil/repo"}')
    pickled(model / "adapter_model.bin", model.parent / "ran")
    write_pairs(here / "prefs.jsonl", 8)
    assert main(["train", f"model={model}", "data=prefs.jsonl"]) == 65
    assert "has an adapter beside the weights" in capfd.readouterr().err
    assert not (model.parent / "ran").exists()


@pytest.mark.timeout(120)  # the first would take years
@pytest.mark.parametrize("command", ["train", pytest.param("check", marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    "template",
    [
        "{% for a in range(99999) %}{% for b in range(99999) %}{% for c in range(99999) %}{% endfor %}{% endfor %}"
        "{% endfor %}",
        pytest.param("{{ 'x' * 10**12 }}", marks=pytest.mark.slow),
        "{{ messages.__class__.__mro__[1].__subclasses__() }}",
        pytest.param("{{ cycler.__init__.__globals__.os.system('touch ran') }}", marks=pytest.mark.slow),
    ],
    ids=["35: loops", "35: a text of 10**12 signs", "35: attributes", "35: a shell"],
)
def test_chat_template(
    command: str, template: str, here: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("orpo_cli.data.tokens.chat_template.RENDER_SECONDS", 1)
    (here / "t.jinja").write_text(template)
    row = {"prompt": [{"role": "user", "content": "a"}], "chosen": [{"role": "assistant", "content": "b"}],
           "rejected": [{"role": "assistant", "content": "c"}]}  # fmt: skip
    (here / "chat.jsonl").write_text(json.dumps(row) + "\n")
    assert main([command, "model=tiny", "model.chat_template=t.jinja", "data=chat.jsonl"]) == 65
    assert "chat template" in capfd.readouterr().err
    assert not (here / "ran").exists()


# what a run leaves


def cold(folder: Path, *argv: str, **how: Any) -> "subprocess.CompletedProcess[str]":
    """A process of its own, in a folder."""
    return subprocess.run(
        [sys.executable, "-P", "-m", "orpo_cli", *argv], cwd=folder,
        capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False, timeout=120, **how,
    )  # fmt: skip


@pytest.mark.slow
def test_umask(arguments: Arguments, tmp_path: Path) -> None:
    """Each file and directory of a run, checkpoints and model included, is as open as the user's other files."""
    done = cold(
        tmp_path,
        *arguments(tmp_path / "run", "adapter=lora", "trainer.max_steps=1", "trainer.sample_tokens=0"),
        umask=0o077,
    )
    assert done.returncode == 0, done.stderr
    modes = {path: path.stat().st_mode & 0o777 for path in [tmp_path / "run", *(tmp_path / "run").rglob("*")]}
    assert len(modes) > 20
    for path, mode in modes.items():
        assert mode == (0o777 if path.is_dir() else 0o666) & ~0o077, path


def contents(folder: Path) -> bytes:
    return b"".join(path.read_bytes() + str(path).encode() for path in folder.rglob("*") if path.is_file())


@pytest.mark.slow
def test_no_value_of_the_environment_is_written(orpo: Orpo, arguments: Arguments, tmp_path: Path) -> None:
    """41: after a run, a crash, what follows it, and a refusal."""
    tokens = dict.fromkeys(("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "WANDB_API_KEY", "AWS_SECRET_ACCESS_KEY"), SECRET)
    folder = tmp_path / "run"
    crash = [{"function": "orpo_cli.runs.execution.stage_model", "call": 1, "effect": "EIO"}]
    done = [
        orpo.run(*arguments(folder), environment=tokens, injections=crash),
        orpo.run("resume", str(folder), environment=tokens),
        orpo.run("verify", str(folder), environment=tokens),
        orpo.run("resume", str(folder), "lambda=3", environment=tokens),
        orpo.run(*arguments(tmp_path / "lora"), "adapter=lora", environment=tokens),
    ]
    assert [each.code for each in done][1:] == [0, 0, 2, 0], done
    assert done[0].code != 0
    assert (folder / "model").is_dir()
    assert SECRET not in "".join(each.output for each in done)
    assert SECRET.encode() not in contents(tmp_path)


# the hub

UNSHARE = shutil.which("unshare")


@pytest.mark.slow
def test_hub_out_of_reach(here: Path) -> None:
    """31: without a network; offline by the hub's own switch it is tested in tests/cli/test_messages.py."""
    if UNSHARE is None or subprocess.run([UNSHARE, "-n", "true"], check=False, capture_output=True).returncode:
        pytest.skip("a process without a network cannot be made here")
    argv = [UNSHARE, "-n", sys.executable, "-P", "-m", "orpo_cli", "train", "model=org/name", "output_dir=run"]
    environment = os.environ | {"HF_HOME": str(here.parent / "hub"), "HF_HUB_OFFLINE": "0"}
    done = subprocess.run(
        argv, env=environment, capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False, timeout=60
    )
    assert done.returncode == 69, done.stderr
    assert "model hub cannot be reached" in done.stderr.splitlines()[-1]
    assert SECRET not in done.stderr
    assert not (here / "run").exists()
