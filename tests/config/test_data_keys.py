"""The keys of the data section and of a check: nested keys, lists of paths, and what excludes what."""

from collections.abc import Callable
from typing import Any

import pytest
from omegaconf import OmegaConf

from orpo_cli import configure
from orpo_cli.cli.arguments import parse
from orpo_cli.cli.compose import compose_jobs
from orpo_cli.config.config_yaml import portable_yaml
from orpo_cli.config.data import FINDINGS, CheckConfig
from orpo_cli.config.load import load_check_config
from orpo_cli.config.schema import RunConfig
from orpo_cli.errors import ConfigError

Compose = Callable[..., RunConfig]


def composed(*overrides: str) -> Any:
    return compose_jobs(parse(overrides), root="check").jobs[0].config


def test_columns_are_keys_of_their_own(compose_config: Compose) -> None:
    config = compose_config("data=file", "data.path=x.json", "data.columns.prompt=question", "data.columns.system=null")
    assert config.data.columns.prompt == "question"
    assert config.data.columns.system is None
    assert config.data.columns.chosen == "chosen"


def test_one_path_and_several(compose_config: Compose) -> None:
    assert compose_config(*parse(["data=x.json"]).overrides).data.paths == ("x.json",)
    several = compose_config(*parse(["data=[x.json,./y z.csv]"]).overrides, "data.mixture=[2,0.5]").data
    assert several.paths == ("x.json", "./y z.csv")
    assert several.mixture == [2.0, 0.5]
    assert several.eval_paths == ()
    split = compose_config(*parse(["data=org/name"]).overrides, "data.split=train", "data.eval_split=test").data
    assert split.eval_paths == ("org/name",)


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["+data.columns.promt=x"], "unknown key `data.columns.promt`: did you mean `prompt`"),
        (["data.columns.prompt=[a]"], "data.columns.prompt="),
        (["data.columns.prompt=chosen"], "data.columns.chosen=chosen: data.columns.prompt is that column already"),
        (["data.path=[]"], "data.path=[]: expected a file"),
        (["data.path=3"], "data.path=3: expected a file"),
        (["data.path=[x.json,null]"], "data.path="),
        (["data.mixture=[1,2]"], "a number from 0.001 to 1000 for each of the 1 paths"),
        (["data.mixture=[0]"], "data.mixture=[0.0]"),
        (["data.mixture=[1e9]"], "data.mixture=[1000000000.0]"),
        (["data.mixture=[nan]"], "data.mixture=[nan]"),
        (["data.format=pair"], "data.format=pair: expected one of auto, pairs"),
        (["data.pairs=every"], "data.pairs=every: expected one of all, adjacent, best_vs_rest"),
        (["data.min_score_gap=-1"], "data.min_score_gap=-1.0"),
        (["data.min_score_gap=nan"], "data.min_score_gap=nan"),
        (["data.workers=0"], "data.workers=0"),
        (["data.split='train[:10%]'"], "without a slice"),
        (["data.split=a", "data.eval_split=a"], "is data.split too"),
        (["data.eval_split=b", "data.eval_fraction=0.1"], "data.eval_split and data.eval_fraction are both set"),
    ],
)
def test_wrong_values_are_one_line(overrides: list[str], said: str, compose_config: Compose) -> None:
    with pytest.raises(ConfigError) as refusal:
        compose_config("data=file", "data.path=x.json", *overrides)
    assert said in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_a_check_knows_its_own_keys_and_those_of_a_run() -> None:
    run, check = load_check_config(composed("check.fail_on=[duplicates,all]", "lambda=0.3"))
    assert check.fail_on == ["duplicates", "all"]
    assert run.lambda_ == 0.3
    with pytest.raises(ConfigError, match=r"unknown key `check.fail_no`: did you mean `fail_on`"):
        load_check_config(composed("+check.fail_no=[]"))


@pytest.mark.parametrize("name", FINDINGS)
def test_every_finding_can_be_fatal(name: str) -> None:
    assert CheckConfig([name], None, 1, 0.8, 0.0).fail_on == [name]


def test_saved_paths_are_found_from_anywhere(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.json").touch()
    config = configure("data=file", "data.path=[a.json,'*.csv',org/name]", "data.eval_path=a.json")
    saved = OmegaConf.create(portable_yaml(config, tmp_path))
    assert list(saved.data.path) == [str(tmp_path / "a.json"), str(tmp_path / "*.csv"), "org/name"]
    assert saved.data.eval_path == str(tmp_path / "a.json")
