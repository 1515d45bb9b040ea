"""The diffs of docs/extending.md apply to the code and do what the page says; its YAML and Python work as they are."""

import json
import math
import os
import re
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from safetensors.torch import load_file

ROOT = Path(__file__).resolve().parent.parent
PAGE = (ROOT / "docs" / "extending.md").read_text(encoding="utf-8")
DIFFS = {
    section.partition("\n")[0]: diff
    for section in PAGE.split("\n## ")[1:]
    for diff in re.findall(r"(?s)```diff\n(.*?)```", section)
}
ROWS = [("Why?", "Because of that.", "No."), ("Is it so", "Yes, it is.", "It depends on what you ask.")]
"""Prompts with a chosen and a rejected answer."""

TEMPLATE_TOKENS, END_TOKENS = 3, 1
"""What the tiny model's template puts around a prompt, and behind an answer; all else is a token a byte."""


def apply(diff: str, tree: Path, *flags: str) -> None:
    done = subprocess.run(
        ["git", "apply", *flags, "-"], cwd=tree, input=diff, text=True, capture_output=True, check=False,
        env=os.environ | {"GIT_CEILING_DIRECTORIES": str(tree.parent)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


def test_all_diffs_apply() -> None:
    assert len(DIFFS) == PAGE.count("```diff") == 6
    apply("".join(DIFFS.values()), ROOT, "--check")


@pytest.fixture
def extended(tmp_path: Path) -> Callable[..., Path]:
    """`extended(heading, "loss=hinge")`: the folder of one step with a copy of the code that a diff was applied to."""

    def run(heading: str, *words: str) -> Path:
        tree = tmp_path / "tree"
        for name in ("orpo_cli", "configs"):
            shutil.copytree(ROOT / name, tree / name, ignore=shutil.ignore_patterns("__pycache__"))
        apply(DIFFS[heading], tree)
        if not any(word.startswith("data=") for word in words):
            words = (*words, f"data={json_rows(tmp_path / 'prefs.json', ('prompt', 'chosen', 'rejected'))}")
        typed = ["trainer.max_steps=1", "trainer.sample_tokens=0", f"output_dir={tmp_path / 'run'}"]
        done = subprocess.run(
            [sys.executable, "-m", "orpo_cli", "train", *typed, *words],
            cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(tree)}, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return tmp_path / "run"

    return run


def json_rows(path: Path, columns: tuple[str, ...]) -> Path:
    path.write_text(json.dumps([dict(zip(columns, row, strict=True)) for row in ROWS]), encoding="utf-8")
    return path


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def assert_rows_were_read(run: Path) -> None:
    keys = ("class", "prompt_tokens", "chosen_tokens", "rejected_tokens")
    read = [tuple(line[key] for key in keys) for line in lines(run / "ledger.jsonl")]
    assert read == [
        ("kept", len(prompt) + TEMPLATE_TOKENS, len(chosen) + END_TOKENS, len(rejected) + END_TOKENS)
        for prompt, chosen, rejected in ROWS
    ]


@pytest.mark.slow
def test_a_model_under_a_short_name(extended: Callable[..., Path], tmp_path: Path) -> None:
    run = extended("A model under a short name", "model=olmo", "model.path=builtin:tiny")
    assert yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))["adapter"]["rank"] == 16
    shown = subprocess.run(
        [sys.executable, "-m", "orpo_cli", "train", "model=olmo", "--cfg", "job"], cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(tmp_path / "tree")}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert yaml.safe_load(shown.stdout)["model"]["path"] == "allenai/OLMo-2-0425-1B-Instruct"


@pytest.mark.slow
def test_rows_with_other_columns(extended: Callable[..., Path], tmp_path: Path) -> None:
    data = json_rows(tmp_path / "survey.json", ("request", "better", "worse"))
    assert_rows_were_read(extended("Rows with other columns", "model=tiny", f"data={data}"))


@pytest.mark.slow
def test_a_reader(extended: Callable[..., Path], tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / "prefs.sqlite") as database:
        database.execute("CREATE TABLE preferences (prompt TEXT, chosen TEXT, rejected TEXT)")
        database.executemany("INSERT INTO preferences VALUES (?, ?, ?)", ROWS)
    run = extended("A reader of another kind of file", "model=tiny", f"data={tmp_path / 'prefs.sqlite'}")
    assert_rows_were_read(run)
    assert [line["line"] for line in lines(run / "ledger.jsonl")] == [1, 2]


@pytest.mark.slow
def test_a_loss(extended: Callable[..., Path]) -> None:
    """Of one pair a step: the hinge of the log-odds ratio, from the mean log-probabilities of both sides."""
    run = extended("A loss", "model=tiny", "loss=hinge", "lambda=0.2", "trainer.pairs_per_step=1")
    [step] = lines(run / "metrics.jsonl")
    chosen, rejected = (logp - math.log1p(-math.exp(logp)) for logp in (step["logps/chosen"], step["logps/rejected"]))
    hinge = 1 - (chosen - rejected)
    assert hinge > 0
    assert step["or_loss"] == pytest.approx(hinge, rel=1e-5)  # fp32
    assert step["loss"] == pytest.approx(-step["logps/chosen"] + 0.2 * hinge, rel=1e-5)
    assert step["or_pull"] == pytest.approx(0.2 / (1 - math.exp(step["logps/chosen"])), rel=1e-5)
    assert "max(0, 1 - log_odds_ratio)" in (run / "report.html").read_text(encoding="utf-8")


@pytest.mark.slow
def test_an_optimizer(extended: Callable[..., Path], cache: Path) -> None:
    """NAdam's first step moves a weight by lr * (1 + 0.1 * mu2 / (1 - mu1 * mu2)) (Dozat 2016, in torch's schedule).

    The moments after one step are 0.1 g and 0.001 g^2, whose corrected ratio is the sign of g; AdamW would move by lr.
    """
    run = extended("An optimizer", "model=tiny", "optimizer=nadam", "optimizer.lr=1e-3")
    mu1, mu2 = (0.9 * (1 - 0.5 * 0.96 ** (0.004 * step)) for step in (1, 2))
    before = load_file(cache / "models" / "tiny-1" / "model.safetensors")
    after = load_file(run / "model" / "model.safetensors")
    moved = max(float((after[name] - before[name]).abs().max()) for name in after)
    assert moved == pytest.approx(1e-3 * (1 + 0.1 * mu2 / (1 - mu1 * mu2)), rel=1e-3)


@pytest.mark.slow
def test_a_tracker(extended: Callable[..., Path]) -> None:
    run = extended("A tracker", "model=tiny", "tracker=sqlite3")
    [step] = lines(run / "metrics.jsonl")
    with sqlite3.connect(run / "metrics.sqlite") as database:
        found = dict(database.execute("SELECT name, value FROM metrics WHERE step = 1"))
    expected = {f"train/{name}": value for name, value in step.items() if name not in ("kind", "step", "time")}
    assert found == expected


@pytest.fixture
def my_configs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The YAML files of the page, where their first line says; this is the current directory."""
    monkeypatch.chdir(tmp_path)
    files = re.findall(r"```yaml\n# (\S+)\n(.*?)```", PAGE, re.DOTALL)
    assert len(files) == 2
    for name, text in files:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    json_rows(tmp_path / "prefs.json", ("prompt", "chosen", "rejected"))
    return tmp_path / "my_configs"


@pytest.mark.slow
def test_options_of_ones_own(my_configs: Path) -> None:
    import orpo_cli as orpo

    calm = orpo.configure("optimizer=calm", "data=prefs.json", config_dir=my_configs)
    assert (calm.optimizer.name, calm.optimizer.lr, calm.optimizer.weight_decay) == ("adamw", 3e-6, 0)
    mine = orpo.configure("+experiment=mine", "data=prefs.json", config_dir=my_configs)
    assert (mine.lambda_, mine.optimizer.lr, mine.adapter.name) == (0.2, 3e-6, "lora")
    assert (mine.trainer.epochs, mine.trainer.pairs_per_step) == (2, 16)


@pytest.mark.slow
def test_a_consumer(my_configs: Path) -> None:
    names: dict[str, Any] = {}
    exec(PAGE.partition("```python\n")[2].partition("```")[0], names)
    recorded = {line["step"]: line["loss"] for line in names["run"].metrics if line["kind"] == "step"}
    assert names["losses"].by_step == recorded
    assert names["losses"].saved == ["step-000003"]
    assert my_configs.parent / "watched" == names["run"].folder
