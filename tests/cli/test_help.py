"""Help, version and Hydra's own flags: complete, and quick because nothing heavy is imported."""

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from orpo_cli import __version__, errors
from orpo_cli.cli.arguments import FLAGS
from orpo_cli.cli.commands import COMMANDS
from orpo_cli.cli.help import command_help, key_meanings
from orpo_cli.cli.main import main
from orpo_cli.config import schema
from orpo_cli.config.keys import FREE_KEYS, SECTIONS, builtin_configs, nested_kinds
from orpo_cli.config.sweep import SWEEP_KEYS

HEAVY = ("torch", "transformers", "accelerate", "peft", "pyarrow", "hydra")


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["orpo"])
    return tmp_path


@pytest.fixture
def output(capfd: pytest.CaptureFixture[str]) -> Callable[..., str]:
    def run(*argv: str) -> str:
        assert main(argv) == 0
        out, err = capfd.readouterr()
        assert err == ""
        return out

    return run


@pytest.mark.parametrize("argv", [[], ["--help"], ["resume", "--help"], ["--version"]], ids=" ".join)
def test_nothing_heavy_is_imported(argv: list[str]) -> None:
    code = f"import sys; from orpo_cli.cli.main import main; main({argv}); "
    code += f"sys.exit(', '.join(name for name in {HEAVY} if name in sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stderr.strip() == ""
    assert done.stdout


@pytest.mark.parametrize("word", ["--cfg=job", "--help"])
def test_composing_imports_no_torch(word: str) -> None:
    code = f"import sys; from orpo_cli.cli.main import main; main(['train', '{word}', 'lambda=0.2']); "
    code += "sys.exit('torch' in sys.modules or 'scipy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=False).returncode == 0


def test_what_only_evaluations_need_is_not_imported_before_the_first_step() -> None:
    code = "import sys, orpo_cli.reporting.terminal, orpo_cli.runs.execution; "
    code += "sys.exit('scipy.special' in sys.modules or 'scipy.optimize' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=False).returncode == 0


def test_version(output: Callable[..., str]) -> None:
    assert output("--version") == output("-V") == f"orpo {__version__}\n"


def test_usage_names_every_command(output: Callable[..., str]) -> None:
    usage = output()
    assert usage == output("--help") == output("-h") == output("help")
    assert all(f"  {key}\n" in output("resume", "--help") for key in FREE_KEYS)
    for command in COMMANDS:
        assert f"orpo {command}" in usage
        assert output(command, "--help").startswith(f"orpo {command} ")


def test_help_lists_every_group_and_option() -> None:
    groups = command_help("train").partition("\nGroups and their options\n")[2].partition("\n\n")[0]
    unwrapped = groups.replace("\n" + " " * 16, " ")
    lines = {line.split("=")[0].strip(): line for line in unwrapped.splitlines()}
    walked = 0
    for path in builtin_configs().glob("*/*.yaml"):
        words = lines[path.parent.name].split("=", 1)[1].replace(",", " ").split()
        assert path.stem in words
        walked += 1
    assert walked == len(list(builtin_configs().rglob("*.yaml"))) - 5  # the roots of commands


@pytest.mark.parametrize(
    ("words", "options", "values"),
    [
        ([], {"model": "smollm2", "adapter": "lora_small", "loss": "orpo_small", "optimizer": "adamw"},
         {"lambda": 0.5, "adapter.rank": 16, "optimizer.lr": 5e-4, "trainer.device": "auto"}),
        (["model=llama", "optimizer=muon", "lambda=0.2"], {"model": "llama", "adapter": "none", "optimizer": "muon"},
         {"lambda": 0.2, "adapter.name": "none", "optimizer.lr": 5e-6, "optimizer.momentum": 0.95}),
    ],
    ids=["nothing", "options and a value"],
)  # fmt: skip
def test_help_shows_what_the_command_line_composes(
    words: list[str], options: dict[str, str], values: dict[str, Any], output: Callable[..., str]
) -> None:
    """An option that the model brings with it is marked too."""
    text = output("train", *words, "--help")
    for group in SECTIONS:
        [line] = [line for line in text.splitlines() if line.startswith(f"  {group}= ")]
        assert line.count("[") == 1
        assert f"[{options[group]}]" in line if group in options else True
    flat = " ".join(text.split())
    for key, value in values.items():
        said = flat.partition(f" {key} ")[2]
        assert re.match(rf"[^\[]*\[{re.escape(str(value) if isinstance(value, str) else json.dumps(value))}\]", said)
    assert "optimizer.beta2_decay exponent by which the second moment's decay rate approaches 1 (below 0)" in flat


@pytest.mark.parametrize(
    ("words", "shown"),
    [
        (
            ["export", "first", "dtype=bf16"],
            ["Keys; [in brackets]", "null is that of the run's model/ [bf16]", "[5GB]"],
        ),
        (
            ["train", "-m", "lambda=interval(0.1,1)", "sweep.trials=9", "model=tiny"],
            ["[tiny]", "sweep.trials number of"],
        ),
        (["evaluate", "./first", "scores=s.parquet"], ["null writes none [s.parquet]"]),
    ],
    ids=["export", "a search", "a model without its key"],
)
def test_help_of_what_was_typed(words: list[str], shown: list[str], output: Callable[..., str]) -> None:
    flat = " ".join(output(*words, "--help").split())
    assert [text for text in shown if text not in flat] == []


def test_help_shows_options_of_the_users_own(output: Callable[..., str], here: Path) -> None:
    (here / "mine" / "optimizer").mkdir(parents=True)
    own = (builtin_configs() / "optimizer" / "sgd.yaml").read_text().replace("momentum: 0.0", "momentum: 0.5")
    (here / "mine" / "optimizer" / "quick.yaml").write_text(own)
    text = " ".join(output("train", "--config-dir", "mine", "optimizer=quick", "--help").split())
    assert "adafactor, adamw, adamw_8bit, lion, muon, paged_adamw_8bit, [quick], schedule_free_adamw, sgd" in text


@pytest.mark.parametrize(("columns", "longest"), [("70", 70), ("300", 118)])
def test_help_is_as_wide_as_the_terminal(columns: str, longest: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    keys = command_help("train").partition("\nKeys\n")[2].splitlines()
    assert longest - 10 < max(map(len, keys)) <= longest


def variants() -> list[tuple[str, type]]:
    kinds = [(section, kind if isinstance(kind, dict) else {"": kind}) for section, kind in SECTIONS.items()]
    sections = [(f"{section}.", kind) for section, named in kinds for kind in named.values()]
    inside = [(f"{prefix}{key}.", part) for prefix, kind in sections for key, part in nested_kinds(kind).items()]
    return [("", schema.RootConfig), *sections, *inside]


@pytest.mark.parametrize(("prefix", "kind"), variants(), ids=lambda value: getattr(value, "__name__", value))
def test_help_gives_every_key_its_meaning(prefix: str, kind: type) -> None:
    meanings = key_meanings(kind)
    keys = list(schema.ROOT_KEYS) if kind is schema.RootConfig else list(vars(kind)["__dataclass_fields__"])
    assert list(meanings) == keys, "one `key: meaning` line a field, in their order"
    flat = " ".join(command_help("train").split())
    for key, meaning in meanings.items():
        assert key in nested_kinds(kind) or f"{prefix}{key} {' '.join(meaning.split())}" in flat


def test_help_counts_every_key() -> None:
    keys = {f"{prefix}{key}" for prefix, kind in variants() for key in key_meanings(kind) if prefix}
    keys = keys - {"data.columns"} | set(schema.ROOT_KEYS) | set(SWEEP_KEYS)
    listed = {
        line.split()[0]
        for line in command_help("train").partition("\nKeys\n")[2].splitlines()
        if line[:2] == "  " and line[2:3].strip()
    }
    assert listed == keys


def test_help_lists_every_flag() -> None:
    shown = command_help("train")
    assert [flag for flag in FLAGS if flag not in shown] == []
    assert all(len(line) <= 120 for line in shown.splitlines())


def test_cfg_prints_the_composed_configuration(output: Callable[..., str], here: Path) -> None:
    cfg = yaml.safe_load(output("train", "model=tiny", "--cfg", "job", "optimizer=sgd", "lambda=0.3"))
    assert (cfg["lambda"], cfg["optimizer"]["name"], cfg["model"]["path"]) == (0.3, "sgd", "builtin:tiny")
    assert set(cfg) == {*SECTIONS, *schema.ROOT_KEYS}
    assert list(here.iterdir()) == []


def test_cfg_takes_a_package_and_resolves(output: Callable[..., str]) -> None:
    words = ("train", "--cfg", "job", "--resolve", "--package", "optimizer", "model=tiny")
    assert yaml.safe_load(output(*words))["lr"] == 5e-6


@pytest.mark.parametrize("argv", [["--info", "defaults", "optimizer=sgd"], ["optimizer=sgd", "--info"]])
def test_info_prints_how_it_was_composed(argv: list[str]) -> None:
    """In a process of its own: Hydra hangs a handler on the root logger for it."""
    command = [sys.executable, "-m", "orpo_cli", "train", *argv]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert "optimizer/sgd" in done.stdout
    assert "optimizer/adamw" not in done.stdout


def test_config_dir_and_config_name(output: Callable[..., str], here: Path) -> None:
    (here / "own" / "optimizer").mkdir(parents=True)
    (here / "own" / "optimizer" / "slow.yaml").write_text("defaults: [adamw]\nlr: 1.0e-9\n")
    (here / "own" / "mine.yaml").write_text("defaults:\n  - train\n  - _self_\nseed: 7\n")
    cfg = yaml.safe_load(output("train", "--config-dir", "own", "--cfg", "job", "optimizer=slow"))
    assert (cfg["optimizer"]["lr"], cfg["optimizer"]["betas"], cfg["seed"]) == (1e-9, [0.9, 0.999], 0)
    named = yaml.safe_load(output("train", "-cd", "own", "-cn", "mine", "--cfg=job", "optimizer=slow"))
    assert (named["seed"], named["optimizer"]["lr"]) == (7, 1e-9)


def test_topics_say_what_the_code_says(output: Callable[..., str]) -> None:
    metrics = " ".join(output("help", "metrics").split())
    assert "accuracy share of pairs whose chosen response has the higher mean log-probability" in metrics
    assert "peak_memory_gb highest memory use of the main process so far" in metrics
    assert "longer wins what the rule" in metrics
    objectives = output("help", "objectives")
    for path in (builtin_configs() / "loss").glob("*.yaml"):
        assert f"\n  {path.stem} " in objectives
        assert f"[lambda={yaml.safe_load(path.read_text())['lambda']:g}]" in objectives
    codes = output("help", "exit-codes")
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, errors.OrpoError)]
    assert all(f"\n  {kind.exit_code}" in codes for kind in kinds)
    assert "could not be written completely" in codes


def test_help_of_a_command_and_of_nothing_known(output: Callable[..., str], capfd: pytest.CaptureFixture[str]) -> None:
    assert output("help", "verify") == output("verify", "--help")
    assert main(["help", "metric"]) == 2
    assert "no command or topic `metric`: did you mean `metrics`?" in capfd.readouterr().err
