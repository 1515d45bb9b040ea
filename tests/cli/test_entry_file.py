"""`orpo train my.yaml key=value`: a file means what the same keys mean when they are typed."""

import json
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import yaml
from matrix import rows
from omegaconf import OmegaConf
from tiny_runs import write_pairs

import orpo_cli
from orpo_cli.cli.arguments import parse
from orpo_cli.cli.compose import compose_jobs
from orpo_cli.cli.main import main
from orpo_cli.config.config_yaml import portable_yaml
from orpo_cli.errors import ConfigError, InputNotFoundError


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def written(text: str) -> str:
    Path("my.yaml").write_text(text, encoding="utf-8")
    return "my.yaml"


def composed(*argv: str) -> list[dict[str, Any]]:
    jobs = compose_jobs(parse([*argv, "output_dir=run"])).jobs
    return [{str(key): value for key, value in OmegaConf.to_object(job.config).items()} for job in jobs]  # type: ignore[union-attr]


SAME: dict[str, tuple[str, Sequence[str]]] = {
    "a root key": ("lambda: 0.2", ["lambda=0.2"]),
    "an option": ("optimizer: sgd", ["optimizer=sgd"]),
    "an option and its keys": ("optimizer: {name: sgd, lr: 1e-3}", ["optimizer=sgd", "optimizer.lr=0.001"]),
    "keys of the default option": ("optimizer: {lr: 3.5e-6}", ["optimizer.lr=3.5e-6"]),
    "an option that is not a name inside": ("adapter: {name: lora_small}", ["adapter=lora_small"]),
    "a preset with a lambda of its own": ("loss: {name: orpo_small}", ["loss=orpo_small"]),
    "a directory": ("model: ./my-llama", ["model=./my-llama"]),
    "a built-in model": ("model: llama", ["model=llama"]),
    "a built-in model and a key": ("model: {name: tiny, dtype: fp32}", ["model=tiny", "model.dtype=fp32"]),
    "a directory and a key": ("model: {path: ./m, dtype: fp32}", ["model=./m", "model.dtype=fp32"]),
    "a hub id as a name": ("model: {name: org/name, revision: v1}", ["model=org/name", "model.revision=v1"]),
    "a file": ("data: prefs.json", ["data=prefs.json"]),
    "a file and keys": ("data: {path: prefs.json, max_length: 9}", ["data=prefs.json", "data.max_length=9"]),
    "a name without a dot is a path there": ("data: {path: prefs}", ["data=./prefs", "data.path=prefs"]),
    "several files": ("data: [a.jsonl, 'b,c.jsonl']", ["data=[a.jsonl,'b,c.jsonl']"]),
    "keys of the built-in data": ("data: {max_length: 9}", ["data.max_length=9"]),
    "columns": ("data: {path: p.json, columns: {prompt: q}}", ["data=p.json", "data.columns.prompt=q"]),
    "a tracker": ("tracker: wandb", ["tracker=wandb"]),
    "several trackers": ("tracker: [wandb, mlflow]", ["tracker=[wandb,mlflow]"]),
    "several trackers and a key": (
        "tracker: {name: [wandb, mlflow], project: mine}", ["tracker=[wandb,mlflow]", "tracker.project=mine"],
    ),
    "dotted keys": ("model: tiny\nmodel.dtype: fp32", ["model=tiny", "model.dtype=fp32"]),
    "a recipe": ("experiment: mistral_orpo_beta\nseed: 3", ["+experiment=mistral_orpo_beta", "seed=3"]),
    "null, true and a list": (
        "trainer: {max_grad_norm: null, gradient_checkpointing: true}\noptimizer: {betas: [0.5, 0.25]}",
        ["trainer.max_grad_norm=null", "trainer.gradient_checkpointing=true", "optimizer.betas=[0.5,0.25]"],
    ),
    "a reference": ("seed: 7\nmodel: {revision: 'v${seed}'}", ["seed=7", "model.revision='v${seed}'"]),
    "an odd text": ('model: {revision: "it\'s 1,2\\\\"}', [r"model.revision='it\'s 1,2\\'"]),
    "no sweep": ("model: {revision: 'a,b'}", ["model.revision='a,b'"]),
    "a package line": ("# @package _global_\nlambda: 0.2", ["lambda=0.2"]),
}  # fmt: skip


@pytest.mark.parametrize(("text", "words"), rows(SAME, *list(SAME)[::2]))
def test_a_file_means_what_its_keys_mean_when_typed(text: str, words: Sequence[str]) -> None:
    assert composed(written(text)) == composed(*words)


def test_data_of_ones_own_has_nothing_of_the_demo() -> None:
    [config] = composed(written("data: {path: prefs.json}"))
    assert (config["data"]["path"], config["data"]["eval_path"]) == ("prefs.json", None)


FILE = "optimizer: {name: sgd, lr: 1e-3}\ndata: {path: a.json, max_length: 9}\nlambda: 0.1\ntrainer: {max_steps: 3}"
SGD = ["optimizer=sgd", "optimizer.lr=1e-3"]
WINS: dict[str, tuple[Sequence[str], Sequence[str]]] = {
    "values": (
        ["lambda=0.2", "trainer.max_steps=5"],
        ["lambda=0.2", "trainer.max_steps=5", "data=a.json", "data.max_length=9", *SGD],
    ),
    "another file of data": (
        ["data=b.json"], ["data=b.json", "data.max_length=9", "lambda=0.1", "trainer.max_steps=3", *SGD],
    ),
    "the same option": (
        ["optimizer=sgd", "data.path=b.json"],
        ["data=b.json", "data.max_length=9", "lambda=0.1", "trainer.max_steps=3", *SGD],
    ),
}  # fmt: skip


@pytest.mark.parametrize(("typed", "same"), rows(WINS, *WINS))
def test_words_behind_the_file_win(typed: Sequence[str], same: Sequence[str]) -> None:
    assert composed(written(FILE), *typed) == composed(*same)


@pytest.mark.parametrize("typed", ["tracker=none", "tracker.name=none"])
def test_another_tracker_replaces_several(typed: str) -> None:
    [config] = composed(written("tracker: [wandb, mlflow]"), typed)
    assert config["tracker"]["name"] == "none"


def test_another_option_replaces_the_section() -> None:
    """An SGD's learning rate is none for AdamW, and the path of one's data none for the demo."""
    [config] = composed(written(FILE), "optimizer=adamw", "data=demo")
    [typed] = composed("optimizer=adamw", "data=demo", "lambda=0.1", "trainer.max_steps=3")
    assert config == typed


def test_a_saved_configuration_begins_the_same_run_anew() -> None:
    words = ["model=tiny", "adapter=lora", "loss=trl", "optimizer=muon", "data.max_length=9", "lambda=0.3"]
    config = orpo_cli.configure(*words, "output_dir=old")
    again = orpo_cli.configure(written(portable_yaml(config, Path("old"))), "output_dir=new")
    assert replace(again, output_dir=config.output_dir) == config


BOMB = "a: &a [x, x, x, x, x, x]\n" + "".join(
    f"{name}: &{name} [{', '.join([f'*{before}'] * 9)}]\n" for before, name in pairwise("abcdef")
)
REFUSED = {
    "unknown at the root": ("lamda: 1", "unknown key `lamda`: did you mean `lambda`?"),
    "unknown in a section": ("optimizer: {lrr: 1}", "unknown key `optimizer.lrr`: did you mean `optimizer.lr`?"),
    "unknown inside": ("data: {columns: {promt: q}}", "`data.columns.promt`: did you mean `data.columns.prompt`?"),
    "an unknown section": ("optimzer: {lr: 1}", "unknown key `optimzer.lr`: did you mean `optimizer.lr`?"),
    "of another option": ("optimizer: {name: sgd, betas: [1]}", "`optimizer.betas` in optimizer=sgd: it belongs to"),
    "an unknown option": ("optimizer: sdg", "optimizer=sdg: no such option; did you mean `sgd`?"),
    "a value out of its limits": ("lambda: -1", "lambda=-1.0: expected a number, 0 or more"),
    "code": ("optimizer: {_target_: os.system}", "optimizer._target_: configurations hold values, never code"),
    "code in a reference": ("seed: 1\nmodel: {revision: '${oc.env:HOME}'}", "do not read the environment"),
    "a key of Hydra": ("hydra: {run: {dir: x}}", "`hydra`: the keys of Hydra cannot be set here"),
    "code of Hydra": ("hydra: {callbacks: {x: {_target_: y}}}", "configurations hold values, never code"),
    "a defaults list": ("defaults: [model: tiny]", "`defaults`: options are chosen by their group"),
    "nothing in a section": ("adapter:", "adapter: null: expected one of its options, or keys of its own"),
    "no mapping": ("- lambda", "expected keys and their values, as in `lambda: 0.1`"),
    "nothing": ("", "expected keys and their values, as in `lambda: 0.1`"),
    "a key that stands twice": ("seed: 1\nseed: 2", ":2: the key `seed` stands twice"),
    "aliases that multiply": (BOMB, "more than 10000 values"),
    "a section for check": ("check: {fail_on: [all]}", "unknown key `check.fail_on`"),
}  # fmt: skip


@pytest.mark.parametrize(("text", "message"), rows(REFUSED, *REFUSED))
def test_what_is_wrong_names_the_file(text: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        orpo_cli.configure(written(text), "output_dir=run")
    assert str(caught.value).startswith("my.yaml:")
    assert message in str(caught.value)
    assert not Path("run").exists()


def test_a_typed_value_is_not_blamed_on_the_file() -> None:
    with pytest.raises(ConfigError, match=r"^lambda=-1.0: "):
        orpo_cli.configure(written("lambda: 0.1"), "lambda=-1")


def test_the_file_stands_first_and_alone() -> None:
    written("lambda: 0.1")
    with pytest.raises(InputNotFoundError, match=r"^other\.yaml: no such file"):
        parse(["other.yaml"])
    for argv in (["seed=1", "my.yaml"], ["my.yaml", "my.yaml"]):
        with pytest.raises(ConfigError, match=r"^my\.yaml: one file of settings can be given, as the first word"):
            parse(argv)


def test_it_is_shown_by_cfg_and_read_by_check(capsys: pytest.CaptureFixture[str]) -> None:
    write_pairs(Path("prefs.jsonl"))
    name = written("model: tiny\ndata: prefs.jsonl\ndata.max_length: 128\nlambda: 1e-1")
    assert main(["train", "--cfg", "job", name, "seed=5"]) == 0
    shown = yaml.safe_load(capsys.readouterr().out)
    assert (shown["data"]["path"], shown["lambda"], shown["seed"]) == ("prefs.jsonl", 0.1, 5)
    Path("check.yaml").write_text(Path(name).read_text() + "\ncheck: {near_duplicates: null}\n")
    assert main(["check", "check.yaml", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["rows"], report["max_length"]) == (24, 128)
    assert orpo_cli.check("check.yaml").max_length == 128


@pytest.mark.slow
@pytest.mark.usefixtures("warm_jobs")
def test_a_sweep_is_resumed_without_its_file(capfd: pytest.CaptureFixture[str]) -> None:
    """sweep.json holds the words that the file stood for: what it says by then, or that it is gone, changes nothing."""
    write_pairs(Path("prefs.jsonl"))
    text = "model: tiny\ndata: prefs.jsonl\nlambda: 0.1\ntrainer: {max_steps: 2, sample_tokens: 0}\noutput_dir: sweep"
    name = written(text)
    assert main(["train", "-m", name, "optimizer.lr=1e-3,2e-3"]) == 0
    assert "my.yaml" not in Path("sweep/sweep.json").read_text()
    saved = [yaml.safe_load(Path(f"sweep/{job}/config.yaml").read_text()) for job in (0, 1)]
    assert [(one["lambda"], one["optimizer"]["lr"], one["trainer"]["max_steps"]) for one in saved] == [
        (0.1, 1e-3, 2), (0.1, 2e-3, 2),
    ]  # fmt: skip
    Path(name).write_text("lambda: 0.9")
    assert main(["resume", "sweep"]) == 0
    Path(name).unlink()
    assert main(["resume", "sweep"]) == 0
    assert capfd.readouterr().err.count("finished already") == 4
