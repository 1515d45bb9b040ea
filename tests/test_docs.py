"""What README, the pages of docs/ and CONTRIBUTING name exists: commands, keys, files, links."""

import re
from pathlib import Path

import pytest
import torch

from orpo_cli.cli.commands import COMMANDS
from orpo_cli.cli.help import command_help
from orpo_cli.config.keys import SECTIONS
from orpo_cli.config.schema import LossConfig
from orpo_cli.losses.objective import Denominators, PairScores, loss

ROOT = Path(__file__).resolve().parent.parent
FILES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "SECURITY.md", *sorted((ROOT / "docs").glob("*.md"))]
PAGES = {file.relative_to(ROOT).as_posix(): file.read_text(encoding="utf-8") for file in FILES}

KEYS = {
    line.split()[0]
    for command in ("train", "check", "evaluate")
    for line in command_help(command).partition("\nKeys\n")[2].splitlines()
    if line[:2] == "  " and line[2:3].strip()
}
"""Every key, as `--help` lists them."""

NO_KEYS = {"sweep.json", "data.json", "optimizer.safetensors"}
"""Names of files that look like keys."""


def test_pages_and_keys_were_found() -> None:
    assert len(PAGES) >= 10
    assert len(KEYS) > 100


@pytest.mark.parametrize("page", PAGES)
def test_commands_exist(page: str) -> None:
    named = set(re.findall(r"(?m)(?:^ {4}|`|&& )orpo ([a-z]+)\b", PAGES[page]))
    assert named <= COMMANDS.keys() | {"help"}


@pytest.mark.parametrize("page", PAGES)
def test_keys_exist(page: str) -> None:
    sections = "|".join([*SECTIONS, "check", "sweep"])
    named = set(re.findall(rf"(?<![\w./-])((?:{sections})\.[a-z]\w*(?:\.[a-z]\w*)?)(?![\w/(])", PAGES[page]))
    known = KEYS | {key.rpartition(".")[0] for key in KEYS} | NO_KEYS
    assert {key for key in named if key not in known and key.rpartition(".")[0] not in KEYS} == set()


@pytest.mark.parametrize("page", PAGES)
def test_files_and_links_exist(page: str) -> None:
    folder = (ROOT / page).parent
    links = [link for link in re.findall(r"\]\(([^)#]+)", PAGES[page]) if "://" not in link]
    assert [link for link in links if not (folder / link).exists()] == []
    shown = re.findall(r"`((?:docs|scripts|configs|orpo_cli|tests)/[\w./-]*)`", PAGES[page])
    assert [path for path in shown if not (ROOT / path).exists()] == []


def test_shares_of_lambda_at_the_start() -> None:
    """Where both sides are as likely, the weight of the term on chosen is lambda / 2, for a small probability."""
    table = PAGES["docs/choosing.md"].partition("| lambda | 0.05 |")[2]
    values = [0.05, *map(float, re.findall(r"[\d.]+", table.splitlines()[0]))]
    shares = [int(share) for share in re.findall(r"(\d+) %", table.splitlines()[2])]
    logps, tokens = torch.tensor([-500.0]), torch.tensor([100])
    scores = PairScores(torch.zeros(1), logps, logps, tokens, tokens, tokens)
    preset = LossConfig("orpo", "chosen", "sequence", "odds_ratio", True, 0.0, 0.0)
    pulls = [float(loss(scores, Denominators(1, 100), preset, value).pull) for value in values]
    assert len(values) == len(shares) == 6
    assert [round(100 * pull / (1 + pull)) for pull in pulls] == shares


def test_places_that_contributing_names_exist() -> None:
    package = ROOT / "orpo_cli"
    table = PAGES["CONTRIBUTING.md"].partition("## How to add")[2]
    shown = re.findall(r"`([a-z_]+/[\w./]*)`", table)
    assert len(shown) > 10
    assert [path for path in shown if not (package / path).exists() and not (ROOT / path).exists()] == []
