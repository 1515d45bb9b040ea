"""What README says can be typed, and what it says exists, does."""

import json
import re
import shlex
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from orpo_cli.cli.arguments import parse
from orpo_cli.cli.launchers import take_jobs
from orpo_cli.cli.search import search_of
from orpo_cli.config.keys import builtin_configs
from orpo_cli.config.schema import RunConfig

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
COMMANDS = re.findall(r"^    orpo train (.+?)(?:\s{2,}#.*|\s#.*)?$", README, re.MULTILINE)


def composable(command: str) -> list[str]:
    """The overrides of a command; of a sweep, those of its first job."""
    typed, _ = take_jobs(parse(shlex.split(command)))
    words = typed.overrides
    return [re.sub(r"^(\S+?=[^,'\[]+),.*", r"\1", word) for word in words] if typed.multirun else words


def test_commands_were_found() -> None:
    assert len(COMMANDS) >= 9


SEARCHES = [command for command in COMMANDS if "sweep.trials" in command]


@pytest.mark.parametrize("command", [one for one in COMMANDS if "--" not in one and one not in SEARCHES])
def test_commands_compose(
    command: str, compose_config: Callable[..., RunConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("my.yaml", "run.yaml"):
        (tmp_path / name).write_text("model: tiny\ndata: ./prefs.json\n", encoding="utf-8")
    config = compose_config(*composable(command))
    for key, value in (
        word.split("=", 1) for word in composable(command) if re.match(r"(lambda|optimizer\.lr)=", word)
    ):
        assert {"lambda": config.lambda_, "optimizer.lr": config.optimizer.lr}[key] == float(value)


def test_a_search_composes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    [command] = SEARCHES
    search = search_of(parse(shlex.split(command)))
    assert search is not None
    assert (search.count, list(search.space)) == (20, ["lambda"])
    [first] = search.composition().jobs
    assert 0.05 <= first.config["lambda"] <= 1


@pytest.mark.parametrize("command", [command for command in COMMANDS if command.startswith("--")])
def test_flags_are_known(command: str) -> None:
    assert parse(shlex.split(command.replace("--help", "--info"))) != parse([])


def test_option_table_is_complete() -> None:
    """Every option on disk but `file` and `pretrained`, which stand for a path, and those of single options."""
    rows = dict(
        re.findall(r"^\| (model|loss|adapter|optimizer|scheduler|experiment) \| (.+) \|$", README, re.MULTILINE)
    )
    for group, names in rows.items():
        on_disk = {path.stem for path in (builtin_configs() / group).glob("*.yaml")} - {"pretrained"}
        assert on_disk == {
            name.strip() for name in re.sub(r"\(default\)|or a path or hub id", "", names).split(",")
        } - {""}
        default = re.search(r"(\w+) \(default\)", names)
        if default and group != "model":
            defaults = yaml.safe_load((builtin_configs() / "train.yaml").read_text(encoding="utf-8"))["defaults"]
            assert {group: default.group(1)} in defaults


def test_exit_codes_are_those_of_the_errors() -> None:
    from orpo_cli import errors

    codes = {kind.exit_code for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, Exception)}
    stated = {int(code) for code in re.findall(r"\b\d+\b", README.split("Exit codes:")[1].split("##")[0])}
    assert codes | {0, 129, 130, 143} == stated


def test_readme_is_short() -> None:
    assert len(README.splitlines()) <= 200


def test_first_preferences_are_those_of_the_introduction() -> None:
    rows = json.loads(README.split("```json\n")[1].split("```")[0])
    assert rows[0]["prompt"] == "Explain quantum entanglement in simple terms."
    assert all(row.keys() == {"prompt", "chosen", "rejected"} for row in rows)
