"""`--cfg job` names the source of each value: what it prints loads to the same, and the sources say what it says."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from matrix import rows
from omegaconf import OmegaConf

from orpo_cli.cli.arguments import parse
from orpo_cli.cli.compose import compose_jobs
from orpo_cli.cli.main import main
from orpo_cli.cli.origins import Layer, with_origins
from orpo_cli.config.keys import builtin_configs, dotted

TYPED = "the command line"
OWN = {
    "model/own.yaml": "defaults: [tiny, _self_, override /loss@_global_.loss: trl]\ndtype: bf16\n",
    "experiment/mine.yaml": (
        "# @package _global_\n"
        "defaults: [part, _self_, override /loss: trl, override /optimizer: sgd]\n"
        "optimizer:\n  lr: 0.02\ntrainer:\n  epochs: 3\n  max_time: 1h\n"
    ),
    "experiment/part.yaml": "# @package _global_\nseed: 3\ntrainer:\n  max_time: 2h\n  log_every: 5\n",
    "mine.yaml": "defaults:\n  - train\n  - _self_\nseed: 7\n",
}
RUN_YAML = "model: tiny\ndata: ./prefs.json\noptimizer: {name: sgd, lr: 0.25}\ntrainer:\n  epochs: 2\nlambda: 0.2\n"

COMMANDS: dict[str, tuple[str, dict[str, str]]] = {
    "nothing typed": ("", {
        "lambda": "configs/loss/orpo_small.yaml", "adapter.default_lr": "configs/adapter/lora_small.yaml",
        "adapter.rank": "configs/adapter/lora.yaml", "data.path": "configs/data/demo.yaml",
        "data.columns.prompt": "configs/data/file.yaml", "seed": "configs/train.yaml",
    }),
    "overrides": ("model=llama data=prefs.json lambda=1 tracker=wandb optimizer.betas.0=0.8 data.columns={prompt:x}", {
        "lambda": TYPED, "data.path": TYPED, "data.columns.prompt": TYPED, "tracker.name": TYPED,
        "data.columns.chosen": "configs/data/file.yaml", "model.path": "configs/model/llama.yaml",
        "loss.nll": "configs/loss/orpo.yaml", "optimizer.betas": f"{TYPED}, configs/optimizer/adamw.yaml",
    }),
    "a recipe": ("+experiment=mistral_orpo_beta trainer.epochs=1", {
        "lambda": "configs/experiment/mistral_orpo_beta.yaml", "loss.nll": "configs/loss/trl.yaml",
        "trainer.epochs": TYPED, "trainer.precision": "configs/experiment/mistral_orpo_beta.yaml",
        "scheduler.name": "configs/scheduler/inverse_sqrt.yaml", "model.path": "configs/model/mistral.yaml",
    }),
    "an experiment of one's own": ("--config-dir own +experiment=mine", {
        "seed": "own/experiment/part.yaml", "trainer.max_time": "own/experiment/mine.yaml",
        "trainer.log_every": "own/experiment/part.yaml", "optimizer.momentum": "configs/optimizer/sgd.yaml",
        "optimizer.lr": "own/experiment/mine.yaml", "loss.nll_average": "configs/loss/trl.yaml",
    }),
    "a root of one's own": ("--config-dir own --config-name mine model=tiny", {
        "seed": "own/mine.yaml", "resume": "configs/train.yaml", "model.path": "configs/model/tiny.yaml",
    }),
    "an option that overrides another group": ("--config-dir own model=own", {
        "model.dtype": "own/model/own.yaml", "model.path": "configs/model/tiny.yaml",
        "loss.nll_average": "configs/loss/trl.yaml", "lambda": "configs/loss/trl.yaml",
    }),
    "a file of settings": ("run.yaml trainer.epochs=4 data.max_length=64", {
        "lambda": "run.yaml", "data.path": "run.yaml", "optimizer.lr": "run.yaml", "trainer.epochs": TYPED,
        "optimizer.name": "configs/optimizer/sgd.yaml", "data.max_length": TYPED,
    }),
    "without references": ("--resolve optimizer.weight_decay=${lambda}", {
        "optimizer.lr": "${adapter.default_lr} in configs/optimizer/adamw.yaml",
        "optimizer.weight_decay": "${lambda} in " + TYPED, "lambda": "configs/loss/orpo_small.yaml",
    }),
}  # fmt: skip


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name, text in {"run.yaml": RUN_YAML, **{f"own/{name}": text for name, text in OWN.items()}}.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    return tmp_path


def said(text: str) -> Iterator[tuple[str, str]]:
    """The dotted key of each line that has a comment, and the comment."""
    above: list[str] = []
    for line in text.splitlines():
        if found := re.fullmatch(r"( *)([\w.]+):(?: (?:[^#]|(?<=\S)#)*?)?(?:  +# (.+))?", line):
            del above[len(found[1]) // 2 :]
            above.append(found[2])
            if found[3]:
                yield ".".join(above), found[3]


def in_file(name: str, key: str) -> Any:
    """What a file says of a key, read without Hydra: by its own header, in its group, or in another place."""
    path = builtin_configs().parent / name if name.startswith("configs/") else Path(name)
    text = path.read_text()
    group = path.parent.name
    is_global = "@package _global_" in text or group in ("configs", "own", "")
    values = dict(dotted(yaml.safe_load(text)))
    return values[key if is_global else key.removeprefix(f"{group}.")]


@pytest.mark.parametrize(
    ("command", "expected"), rows(COMMANDS, "an option that overrides another group", "a file of settings")
)
def test_every_value_has_its_source(command: str, expected: dict[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    words = [*command.split(), "output_dir=o"]
    assert main(["train", "--cfg", "job", *words]) == 0
    text = capsys.readouterr().out
    loaded = OmegaConf.to_container(OmegaConf.create(yaml.safe_load(text)), resolve=True)
    job = compose_jobs(parse([word for word in words if word != "--resolve"])).jobs[0]
    assert loaded == OmegaConf.to_container(job.config)
    sources = dict(said(text))
    assert {key: sources.get(key) for key in expected} == expected
    shown = dict(dotted(yaml.safe_load(text)))
    assert sources.keys() == shown.keys()
    assert len({line.rindex("  # ") for line in text.splitlines() if "  # " in line}) == 1
    for key, source in sources.items():
        *reference, source = source.split(" in ")
        if source.startswith(("configs/", "own/")):
            assert in_file(source, key) == (reference[0] if reference else shown[key]), key
    typed = {key for key, source in sources.items() if TYPED in source}
    assert all(any(word.lstrip("+").startswith(key.rpartition(".")[0]) for word in words) for key in typed)


def test_of_a_package(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "--cfg", "job", "--package", "optimizer", "optimizer=sgd", "optimizer.lr=1"]) == 0
    assert capsys.readouterr().out == (
        "# @package optimizer\n"
        "name: sgd            # configs/optimizer/sgd.yaml\n"
        "lr: 1                # the command line\n"
        "weight_decay: 0.0    # configs/optimizer/sgd.yaml\n"
        "layer_lr_decay: 1.0  # configs/optimizer/sgd.yaml\n"
        "momentum: 0.0        # configs/optimizer/sgd.yaml\n"
    )
    assert main(["train", "--cfg", "job", "--package", "lambda"]) == 0
    assert capsys.readouterr().out == "0.5\n"


VALUES = {
    "long": "word " * 60, "quoted": "it's: a # \"comment\" " * 9, "lines": "one\n\n  two # no comment\n", "hash": "# x",
    "blank": "", "tab": "a\tb\n", "list": ["a", "b # c", ["d\ne"]], "empty": [], "none": None, "braces": {},
    "inside": {"a": {"b": "x\ny"}, "c": [{"d": 1}]}, "number": "012", "escaped": "\\${lambda}", "é\u2028": "\x85 ü",
}  # fmt: skip


def test_a_comment_is_never_part_of_a_value() -> None:
    text = OmegaConf.to_yaml(OmegaConf.create(VALUES))
    shown = with_origins(text, [Layer("below", {"long": 1, "empty": 2}), Layer("a ${file}\n", VALUES)])
    assert yaml.safe_load(shown) == VALUES
    assert shown.count("  # a ${file}\\n\n") == len(dict(dotted({key: VALUES[key] or 1 for key in VALUES})))
    assert "below" not in shown


def test_the_last_one_that_sets_a_value_is_its_source() -> None:
    """A value that is missing sets nothing; a list replaces a list; a part of a section replaces its part."""
    layers = [
        Layer("one", {"a": {"t": 1, "u": 2}, "b": [1, 2], "c": "???", "d": 1, "e": {"z": 1}}),
        Layer("two", {"a": {"u": 2}, "b": [3], "d": "???", "e": {}}),
        Layer("three", {"v": 1}, "a.w"),
    ]
    merged = OmegaConf.create()
    for layer in layers[:2]:
        merged.merge_with(layer.values)
    OmegaConf.update(merged, "a.w", {"v": 1}, force_add=True)
    text = with_origins(OmegaConf.to_yaml(merged), layers)
    assert dict(said(text)) == {
        "a.t": "one", "a.u": "two", "a.w.v": "three", "b": "two", "c": "has to be given", "d": "one", "e.z": "one",
    }  # fmt: skip
