"""Every recipe of `configs/experiment/` composes and is planned as its head says, and docs/recipes.md shows it."""

import math
import re
import shlex
from pathlib import Path

import pytest
import yaml
from matrix import rows
from published_models import SHAPES, Planned, planned

from orpo_cli.cli.arguments import parse
from orpo_cli.cli.compose import compose_jobs
from orpo_cli.cli.main import main
from orpo_cli.config.keys import builtin_configs
from orpo_cli.config.load import load_config
from orpo_cli.config.schema import RunConfig

RECIPES = {path.stem: path.read_text(encoding="utf-8") for path in (builtin_configs() / "experiment").glob("*.yaml")}
PAGE = (Path(__file__).resolve().parents[2] / "docs" / "recipes.md").read_text(encoding="utf-8")
OTHERS = {row.split("`")[1]: row.strip("| ") for row in re.findall(r"^\| `[\w.-]+/[\w.-]+` \|.+$", PAGE, re.MULTILINE)}
"""The rows of the table of other models."""

GPUS = (8, 12, 16, 24, 32, 40, 48, 80, 141, 180)
"""The usual sizes, in GB."""


def head(recipe: str) -> dict[str, str]:
    """Return what the comments at the head of a recipe say, by their first words."""
    lines = "\n".join(line[2:] for line in RECIPES[recipe].splitlines() if line[:2] == "# ")
    said = re.findall(r"^([a-z]+): +(.+(?:\n {12}.+)*)", lines, re.MULTILINE)
    return {name: " ".join(value.split()) for name, value in said}


def hardware(recipe: str) -> str:
    """Return the hardware without what is said of it."""
    return re.split("[;:,]", head(recipe)["hardware"])[0]


def row(recipe: str) -> str:
    """Return the recipe's row of the table."""
    said = head(recipe)
    quoted = [f"`{text}`" for text in (recipe, said["model"], re.findall(r"data=(\S+)", said["command"])[0])]
    memory = said["memory"].removesuffix(" by the plan")
    return f"| {' | '.join([*quoted, hardware(recipe), memory, said['source'], said['reproduced']])} |"


def composed(command: str) -> RunConfig:
    _, _, *words = shlex.split(command)
    return load_config(compose_jobs(parse(words)).jobs[0].config)


def smallest(plan: Planned) -> str:
    number = {1: "one GPU", 4: "four GPUs", 8: "eight GPUs"}[plan.hardware.processes]
    return next((f"{number} of {size} GB" for size in GPUS if plan.fits(size)), "none yet")


def test_the_table_is_that_of_the_files() -> None:
    shown = re.findall(r"^\| `[a-z0-9_]+` \|.+$", PAGE, re.MULTILINE)
    assert sorted(shown) == sorted(map(row, RECIPES))
    assert len(RECIPES) >= 15


@pytest.mark.parametrize("recipe", rows(dict(zip(RECIPES, RECIPES, strict=True)), "mistral_orpo_beta"))
def test_a_recipe_is_planned_as_its_head_says(recipe: str, tmp_path: Path) -> None:
    said = head(recipe)
    assert said["command"].startswith(f"orpo train +experiment={recipe} data=")
    run = composed(said["command"])
    assert run.model.path == said["model"]
    plan = planned(run, tmp_path)
    assert float(f"{plan.billions:.3g}") == SHAPES[run.model.path][0]
    assert said["memory"] == f"{math.ceil(plan.peak)} GB by the plan"
    assert hardware(recipe) == smallest(plan)


@pytest.mark.slow
@pytest.mark.parametrize("model", OTHERS)
def test_other_models_are_planned_as_the_page_says(model: str, tmp_path: Path) -> None:
    _, command, memory_and_hardware = (cell.strip(" `") for cell in OTHERS[model].split("|", 2))
    run = composed(command)
    assert run.model.path == model
    plan = planned(run, tmp_path)
    assert float(f"{plan.billions:.3g}") == SHAPES[model][0]
    assert memory_and_hardware == f"{smallest(plan)} | {math.ceil(plan.peak)} GB"


@pytest.mark.slow
def test_every_model_is_planned() -> None:
    assert SHAPES.keys() == OTHERS.keys() | {head(recipe)["model"] for recipe in RECIPES}


@pytest.mark.slow
@pytest.mark.parametrize("recipe", RECIPES)
def test_a_recipe_is_printed(recipe: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", f"+experiment={recipe}", "data=prefs.jsonl", "--cfg", "job"]) == 0
    printed = yaml.safe_load(capsys.readouterr().out)
    assert (printed["model"]["path"], printed["data"]["path"]) == (head(recipe)["model"], "prefs.jsonl")


@pytest.mark.slow
def test_a_recipe_of_ones_own_begins_with_another(tmp_path: Path) -> None:
    own = tmp_path / "experiment" / "mine.yaml"
    own.parent.mkdir()
    own.write_text(PAGE.split("```yaml\n")[1].split("```")[0], encoding="utf-8")
    run = composed(f"orpo train --config-dir {tmp_path} +experiment=mine data=prefs.jsonl")
    assert (run.lambda_, run.model.path, run.optimizer.lr) == (0.2, "./my-llama", 8e-5)
