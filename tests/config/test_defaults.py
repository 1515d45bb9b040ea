"""In which keys a run differs from the defaults."""

from collections.abc import Callable

import pytest

from orpo_cli.config.defaults import Difference, differences
from orpo_cli.config.keys import builtin_configs
from orpo_cli.config.schema import RunConfig

PLAIN = ("model=tiny", "data=prefs.json")


def test_without_overrides_nothing_differs(compose_config: Callable[..., RunConfig]) -> None:
    assert differences(compose_config(*PLAIN)) == []


@pytest.mark.parametrize("group", ["loss", "adapter", "optimizer", "scheduler"])
def test_an_option_is_one_difference(group: str, compose_config: Callable[..., RunConfig]) -> None:
    """Its values are its own defaults; an option made of another one, as lora_small, has the name of that."""
    usual = {"loss": "orpo", "adapter": "none", "optimizer": "adamw", "scheduler": "linear"}[group]
    made_of_another = {"lora_small", "orpo_small", "dora", "rslora", "qlora", "full"}
    names = {path.stem for path in (builtin_configs() / group).glob("*.yaml")} - made_of_another - {usual}
    assert len(names) >= 2
    for name in names:
        expected = [Difference(group, name, usual)]
        if name == "schedule_free_adamw":
            expected.append(Difference("scheduler", "constant", "linear"))
        assert differences(compose_config(*PLAIN, f"{group}={name}")) == expected, name


def test_values_are_compared_with_those_of_the_option(compose_config: Callable[..., RunConfig]) -> None:
    """2e-4 is the learning rate that adapter=lora brings to every optimizer without one of its own."""
    config = compose_config(*PLAIN, "adapter=lora", "optimizer.lr=1e-3", "lambda=0.2", "data.columns.prompt=question")
    assert differences(config) == [
        Difference("adapter", "lora", "none"),
        Difference("lambda", 0.2, 0.1),
        Difference("data.columns.prompt", "question", "prompt"),
        Difference("optimizer.lr", 1e-3, 2e-4),
    ]


def test_trackers_are_a_difference(compose_config: Callable[..., RunConfig]) -> None:
    found = differences(compose_config(*PLAIN, "tracker.name=[wandb,mlflow]"))
    assert found == [Difference("tracker.name", ["wandb", "mlflow"], "none")]


def test_an_option_of_the_users_own_has_no_defaults(compose_config: Callable[..., RunConfig]) -> None:
    found = differences(compose_config(*PLAIN, "loss.name=mine"))
    assert found[0] == Difference("loss", "mine", "orpo")
    assert {part.default for part in found[1:]} == {None}
    assert Difference("lambda", 0.1, None) in found
