"""A run of an earlier version, typed again with resume=auto: a default that has changed since does not stop it."""

import json
from pathlib import Path

import pytest
import yaml
from tiny_runs import Arguments, Orpo, at, same_end

from orpo_cli.config.config_yaml import EARLIER_DEFAULTS, LATER_KEYS

PLAIN = "data.chat_template=null"


def begun(orpo: Orpo, typed: list[str], folder: Path) -> None:
    """Begin a run as it was before plain text went through the chat template, and stop it after three steps."""
    assert orpo.run(*typed, PLAIN, injections=[at("orpo_cli.training.loop._update", 3, "SIGTERM")]).code == 143
    saved = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
    assert saved["data"]["chat_template"] is None
    for key in ("first_won", "second_won", "ignore_keys", "fold_system"):
        assert saved["data"].pop(key) == LATER_KEYS[f"data.{key}"]
    (folder / "config.yaml").write_text(yaml.safe_dump(saved), encoding="utf-8")


@pytest.mark.parametrize("how", ["typed again", pytest.param("orpo resume", marks=pytest.mark.slow)])
def test_its_default_stays_and_a_line_says_so(how: str, orpo: Orpo, arguments: Arguments, tmp_path: Path) -> None:
    """To the last byte it ends as a run for which the value was typed, and not as one with the default of today."""
    whole, folder = tmp_path / "whole", tmp_path / "run"
    assert orpo.run(*arguments(whole, PLAIN)).code == 0
    begun(orpo, arguments(folder), folder)
    done = orpo.run(*(arguments(folder, "resume=auto") if how == "typed again" else ["resume", str(folder)]))
    assert done.code == 0, done.output
    said = "data.chat_template=null stays, as the run began; today another value is the default"
    assert said in " ".join(done.output.split())
    assert same_end(folder, whole)
    (line, *_) = (folder / "ledger.jsonl").read_text(encoding="utf-8").splitlines()
    assert json.loads(line)["rendered"] == "plain_text"
    again = orpo.run(*arguments(folder, "resume=auto"))
    assert (again.code, "finished already" in again.output) == (0, True)
    assert orpo.run("verify", str(folder)).code == 0


def test_what_is_typed_is_refused_as_ever(orpo: Orpo, arguments: Arguments, tmp_path: Path) -> None:
    """Also today's default; and a run of today keeps what was chosen only where it is typed again."""
    folder = tmp_path / "run"
    begun(orpo, arguments(folder), folder)
    done = orpo.run(*arguments(folder, "resume=auto", "data.chat_template=auto"))
    assert done.code == 2
    assert "data.chat_template=auto (was None): cannot change on resume" in done.output
    today = tmp_path / "today"
    assert orpo.run(*arguments(today, PLAIN, "trainer.max_steps=1")).code == 0
    done = orpo.run(*arguments(today, "trainer.max_steps=1", "resume=auto"))
    assert "data.chat_template=auto (was None): cannot change on resume" in done.output


def test_every_earlier_default_is_known_by_a_later_key() -> None:
    assert all(default.came_with in LATER_KEYS for default in EARLIER_DEFAULTS.values())
