"""A user's fault ends in one line that names it, the right exit code, and nothing left behind."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from orpo_cli.cli.main import main
from orpo_cli.config.keys import builtin_configs
from orpo_cli.files.untrusted import MAX_BYTES

Fails = Callable[..., str]


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory."""
    directory = tmp_path / "here"
    directory.mkdir()
    monkeypatch.chdir(directory)
    monkeypatch.setattr(sys, "argv", ["orpo"])
    return directory


@pytest.fixture
def fails(here: Path, capfd: pytest.CaptureFixture[str]) -> Fails:
    """`fails("train", "lambda=-1")`: the one line on stderr, after the exit code and the folder were looked at."""

    def run(*argv: str, code: int = 2) -> str:
        before = sorted(here.rglob("*"))
        assert main(argv) == code
        out, err = capfd.readouterr()
        assert out == ""
        [line] = err.splitlines()
        assert line.startswith("orpo: error: ")
        assert sorted(here.rglob("*")) == before
        return line.removeprefix("orpo: error: ")

    return run


@pytest.mark.parametrize(
    ("argv", "hint"),
    [
        (["trian"], "unknown command `trian`: did you mean `train`?"),
        (["train", "lamda=0.1"], "unknown key `lamda`: did you mean `lambda`?"),
        (["train", "+lamda=0.1"], "unknown key `lamda`: did you mean `lambda`?"),
        (["train", "sed=1"], "did you mean `seed`?"),
        (["train", "optimizer.lrr=1"], "unknown key `optimizer.lrr`: did you mean `optimizer.lr`?"),
        (
            ["train", "++optimizer.lrr=1"],
            "unknown key `optimizer.lrr` in optimizer=adamw: did you mean `optimizer.lr`?",
        ),
        (["train", "optmizer.lr=1"], "did you mean `optimizer.lr`?"),
        (["train", "max_length=5"], "did you mean `data.max_length`?"),
        (["train", "beta=0.1"], "did you mean `lambda`?"),
        (["train", "loss.alpha=0.1"], "did you mean `lambda`?"),
        (["train", "learning_rate=1"], "did you mean `optimizer.lr`?"),
        (["train", "optmizer=sgd"], "did you mean `optimizer`?"),
        (["train", "+optmizer=sgd"], "unknown key `optmizer`: did you mean `optimizer`?"),
        (["train", "optimizer=sgdd"], "optimizer=sgdd: no such option; did you mean `sgd`?"),
        (["train", "model=llma"], "no such option, and no file or folder of this name is here; did you mean `llama`?"),
        (["train", "model=po"], "of this name is here; known: gemma, "),
        (
            ["train", "+experiment=llama3_1b_lora", "model=tiny"],
            "model=tiny: +experiment=llama3_1b_lora sets model.path=meta-llama/Llama-3.2-1B-Instruct, which wins over "
            "an option; with model.path=builtin:tiny the experiment has what you chose",
        ),
        (
            ["train", "+experiment=mistral_orpo"],
            "experiment=mistral_orpo: no such option; did you mean `mistral_orpo_beta`?",
        ),
        (["train", "-m", "optimizer=sgd,sgdd"], "optimizer=sgdd: no such option; did you mean `sgd`?"),
        (["train", "-m", "lambda=1,2", "sweep.trails=3"], "unknown key `sweep.trails`: did you mean `sweep.trials`?"),
        (
            ["check", "sweep.trials=3"],
            "sweep.trials: a sweep has this key, and no run: orpo train -m ... sweep.trials=...",
        ),
        (["train", "--sweep.trials", "3"], "write sweep.trials=3"),
        (["train", "--mutlirun"], "unknown flag --mutlirun: did you mean `--multirun`?"),
        (["train", "--lambda", "0.1"], "--lambda: values are set without dashes: write lambda=0.1"),
        (["train", "--lambda=0.1", "data=x.json"], "write lambda=0.1"),
        (["train", "data=x.json", "--max-steps", "3"], "write trainer.max_steps=3"),
        (["train", "--learning_rate", "1e-5", "--lora-r", "8"], "write optimizer.lr=1e-5 adapter.rank=8"),
        (["train", "--gradient-checkpointing", "seed=1"], "write trainer.gradient_checkpointing=true"),
        (["train", "--trainer.epochs", "2", "--model", "./my llama"], "write trainer.epochs=2 model='./my llama'"),
        (["train", "--path", "x"], "unknown flag --path: "),
    ],
)
def test_typo_is_answered_with_the_nearest_name(argv: list[str], hint: str, fails: Fails) -> None:
    assert hint in fails(*argv)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["lambda=-1"], "lambda=-1.0: expected a number, 0 or more"),
        (["lambda=nan"], "lambda=nan: expected a number, 0 or more"),
        (["lambda=inf"], "lambda=inf: expected a number, 0 or more"),
        (["lambda=null"], "lambda=null: "),
        (["optimizer.lr=abc"], "optimizer.lr=abc: expected a number"),
        (["optimizer.betas=3"], "optimizer.betas=3: expected a list"),
        (["trainer.pairs_per_step=0"], "trainer.pairs_per_step=0: expected 1 or more"),
        (["trainer.pairs_per_step=1.5"], "trainer.pairs_per_step=1.5: expected a whole number"),
        (["trainer.gradient_checkpointing=maybe"], "trainer.gradient_checkpointing=maybe: expected true or false"),
        (["trainer.layout=x"], "trainer.layout=x: expected one of "),
        (["loss=sft", "lambda=0.1"], "no preference term to weigh; remove lambda, or choose loss=orpo"),
        (["optimizer=sgd", "optimizer.betas=[0.9,0.9]"],
         "in optimizer=sgd: it belongs to optimizer=adamw, muon, adamw_8bit, paged_adamw_8bit, lion, "
         "schedule_free_adamw, stable_adamw; its keys: layer_lr_decay, lr, momentum, name, weight_decay"),
        (["optimizer=sgd", "+optimizer.betas=[0.9,0.9]"], "its keys: layer_lr_decay, lr, momentum, name, weight_decay"),
        (["adapter=none", "adapter.rank=4"], "it belongs to adapter=lora"),
        (["lambda=0.1,0.2"], "lambda=0.1,0.2: several values are a sweep; add -m"),
        (["+lambda=0.1"], "lambda is there already: write lambda=... without `+`"),
        (["+optimizer=sgd"], "optimizer is there already: write optimizer=... without `+`"),
        (["~optimizer"], "optimizer is not set"),
        (["~optimizer.lr"], "optimizer.lr is not set"),
        (["data=file"], "data.path is not set: write data.path=..."),
        (["data=null"], "a group takes the name of one of its options"),
        (["data=demo,x.json", "-m"], "either built-in names or paths, not both"),
        (["prefs.json"], "`prefs.json`: expected KEY=VALUE, as in lambda=0.1 or data=FILE"),
        ([""], "``: expected KEY=VALUE"),
        (["=1"], "`=1`: expected KEY=VALUE"),
        (["lambda='"], "lambda=': cannot be read; a value with special characters takes quotes"),
        (["output_dir=null"], "output_dir=None: expected a folder"),
        (["resume=[1]"], "resume=[1]: expected a folder"),
        (["lambda=${nope}"], "lambda: Interpolation key 'nope' not found"),
        (["optimizer.lr=${nope}"], "optimizer.lr: Interpolation key 'nope' not found"),
        (["data.path=${data.path}"], "data.path: "),
        (["trainer.parallel=zero"], "trainer.parallel=zero: expected one of ddp, fsdp"),
        (["trainer.parallel=fsdp", "optimizer=adafactor"], "torch's Adafactor needs whole weights"),
        (["trainer.parallel=fsdp", "optimizer=adamw_8bit"],
         "trainer.parallel=fsdp with optimizer=adamw_8bit: bitsandbytes needs whole weights; "),
        (["trainer.parallel=fsdp", "optimizer=paged_adamw_8bit"],
         "trainer.parallel=fsdp with optimizer=paged_adamw_8bit: bitsandbytes needs whole weights; "),
        (["optimizer=schedule_free_adamw", "scheduler=cosine"],
         "scheduler=cosine with optimizer=schedule_free_adamw: its average takes the place of a schedule"),
        (["optimizer=schedule_free_adamw", "optimizer.betas=[0,0.9]"], "optimizer.betas=[0.0, 0.9]: expected two"),
        (["optimizer.layer_lr_decay=0"], "optimizer.layer_lr_decay=0.0: expected above 0, 1 at most"),
        (["optimizer.layer_lr_decay=1.1"], "optimizer.layer_lr_decay=1.1: expected above 0, 1 at most"),
        (["--config-name", "nope"], "--config-name=nope: no such file"),
        (["--cfg", "jobs"], "--cfg: invalid choice: 'jobs' (choose from 'job', 'hydra', 'all')"),
    ],
)  # fmt: skip
def test_wrong_value_is_named(overrides: list[str], message: str, fails: Fails) -> None:
    assert message in fails("train", *overrides)


def test_references_in_overrides_are_resolved_in_the_configuration(fails: Fails) -> None:
    fails("train", "optimizer.lr=${adapter.default_lr}", "data=no.json", code=66)
    assert fails("train", "data=./${x}.json", code=66) == "./${x}.json: no such file"
    assert fails("train", "lambda=${oc.decode:'-2'}").startswith("lambda=-2.0: ")


def test_missing_file(fails: Fails) -> None:
    assert fails("train", "data=no/such.json", code=66) == "no/such.json: no such file"
    assert fails("train", "data.eval_path=no.json", code=66) == "no.json: no such file"
    assert fails("train", "data=./", code=66).startswith("./: a folder without files of preferences (.json, ")
    assert fails("train", "data=none-*.csv", code=66) == "none-*.csv: no file matches this pattern"
    assert "no/config.yaml: no such file" in fails("train", "resume=no", code=66)


def test_folder_named_by_the_user_is_removed_only_if_made_here(here: Path, fails: Fails) -> None:
    fails("train", "output_dir=a/b/c", "lambda=-1")
    fails("train", "-m", "output_dir=a/b/c", "optimizer=sgd,nope")
    (here / "own").mkdir()
    fails("train", "output_dir=own", "lambda=-1")
    fails("train", "output_dir=own/new", "lambda=-1")
    assert list(here.iterdir()) == [here / "own"]


@pytest.mark.slow
@pytest.mark.parametrize("offline", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_model_out_of_reach(offline: bool, here: Path) -> None:
    """Without a hub: offline by the hub's own switch, and by an address where nothing listens."""
    env = {"HF_HUB_OFFLINE": "1"} if offline else {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HUB_OFFLINE": "0"}
    command = [sys.executable, "-m", "orpo_cli", "train", "model=llama", "output_dir=run"]
    done = subprocess.run(
        command, env=environment(here) | env, capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False
    )
    assert done.returncode == 69
    [line] = [line for line in done.stderr.splitlines() if not line.endswith("...")]
    assert line.startswith("orpo: error: model.path=meta-llama/Llama-3.2-1B-Instruct: no such directory here")
    assert "cannot be reached" in line
    assert "model.path=DIR" in line
    assert not (here / "run").exists(), "the same command can be given again"


def environment(here: Path) -> dict[str, str]:
    return {**os.environ, "HF_HOME": str(here.parent / "hub"), "ORPO_CACHE": str(here.parent / "cache")}


@pytest.fixture
def own(tmp_path: Path) -> Callable[[str, str], Path]:
    """`own("experiment/x.yaml", text)`: a configuration directory with that file."""

    def write(name: str, text: str) -> Path:
        path = tmp_path / "own" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return tmp_path / "own"

    return write


def test_root_of_hydras_own_keys_may_be_copied(own: Any, fails: Fails) -> None:
    """A copy of the built-in train.yaml under another name is a root like any other."""
    directory = own("mine.yaml", (builtin_configs() / "train.yaml").read_text())
    flags = ("--config-dir", str(directory), "--config-name", "mine")
    assert fails("train", *flags, "data=no.json", code=66) == "no.json: no such file"


def test_config_dir_that_is_missing(fails: Fails) -> None:
    assert fails("train", "--config-dir", "nope") == "--config-dir nope: no such directory"


@pytest.mark.parametrize("name", ["optimizer/sgd.yaml", "train.yaml", "model/llama.yml"])
def test_option_that_shadows_a_built_in_one(name: str, own: Any, fails: Fails) -> None:
    directory = own(name, "a: 1")
    line = fails("train", "--config-dir", str(directory))
    assert str(directory / name) in line
    assert str(builtin_configs() / name.replace(".yml", ".yaml")) in line


def test_folders_that_cannot_be_groups_are_not_read(own: Any, fails: Fails) -> None:
    """The working directory may be given, with earlier runs and sweeps and an environment in it."""
    own("outputs/2026-01-31/14-05-09/multirun.yaml", "hydra: {launcher: {_target_: x}}")
    own("sweep/sweep.json", "{}")
    own("sweep/a/config.yaml", "[")
    own("run/run.json", "{}")
    own("run/config.yaml", "[")
    directory = own(".venv/x.yaml", "[")
    fails("train", "--config-dir", str(directory), "data=no.json", code=66)


def test_options_beside_outputs_are_read(own: Any, fails: Fails) -> None:
    own("run.json", "{}")
    own("experiment/multirun.yaml", "hydra: {launcher: {_target_: x}}")
    own("experiment/mine.yaml", "lambda: {_target_: x}")
    directory = own("config.yaml", "[")
    assert "experiment/mine.yaml: lambda._target_: " in fails("train", "--config-dir", str(directory))


BOMB = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n" + "\n".join(
    f"a{level}: &a{level} [{', '.join([f'*a{level - 1}'] * 9)}]" for level in range(1, 30)
)


@pytest.mark.timeout(20)
@pytest.mark.parametrize(
    ("text", "message"),
    [
        (BOMB, "once its aliases are expanded"),
        ("a: &a [*a]", "once its aliases are expanded"),
        ("x: 1\n" + "#" * MAX_BYTES, "expected at most"),
        ("[" * 20_000, "x.yaml"),
        ("lr: 1\nb: 2\nlr: 3", "x.yaml:3: the key `lr` stands twice"),
        ("a: {b: 1, b: 2}", "x.yaml:1: the key `b` stands twice"),
        ("a: [1, 2\nb: 3", "x.yaml:2: "),
        ("a: !!python/object/apply:os.mkdir [x]", "could not determine a constructor"),
        ("a: 1\n---\nb: 2", "x.yaml:"),
    ],
    ids=["bomb", "alias of itself", "large", "deep", "duplicate", "nested duplicate", "unclosed", "tag", "two"],
)
def test_yaml_that_is_no_plain_data(text: str, message: str, own: Any, fails: Fails) -> None:
    directory = own("optimizer/x.yaml", text)
    assert message in fails("train", "--config-dir", str(directory), "optimizer=x")


def test_aliases_are_welcome(own: Any, fails: Fails) -> None:
    text = "name: adamw\nlr: &small 1.0e-8\nweight_decay: 0.0\nlayer_lr_decay: 1.0\nbetas: [0.9, 0.95]\neps: *small\n"
    directory = own("optimizer/mine.yaml", text)
    flags = ("--config-dir", str(directory), "optimizer=mine")
    assert fails("train", *flags, "optimizer.lr=-1").startswith("optimizer.lr=-1")
    fails("train", *flags, "data=no.json", code=66)


def test_yaml_of_ones_own_is_held_to_the_schema(own: Any, fails: Fails) -> None:
    directory = own("scheduler/mine.yaml", "name: linear\nwarmup_steps: null\nwarmup_ratio: 0.1\nmin_lr_rate: 0.0\n")
    line = fails("train", "--config-dir", str(directory), "scheduler=mine")
    assert line == "unknown key `scheduler.min_lr_rate` in scheduler=linear: did you mean `scheduler.min_lr_ratio`?"


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    words=st.lists(st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=15), max_size=3)
)
def test_any_words_end_in_a_message(words: list[str], capfd: pytest.CaptureFixture[str]) -> None:
    """Whatever is typed: usage or a missing file, and never a traceback. `-h` and its like print to stdout."""
    missing = "data.path=no.json"  # twice, since the last of the words may be a flag that takes what follows
    code = main(["train", missing, *words, missing, "--config-name", "train"])
    assert code in (0, 2, 66)
    assert "Traceback" not in capfd.readouterr().err
