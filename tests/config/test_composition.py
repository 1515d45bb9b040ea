"""Every YAML file of `configs/` composes and loads; nothing on disk is left out."""

import itertools
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from omegaconf import OmegaConf

from orpo_cli.config.adapter import ADAPTERS
from orpo_cli.config.config_yaml import portable_yaml
from orpo_cli.config.keys import SECTIONS, builtin_configs, section_keys
from orpo_cli.config.load import load_config
from orpo_cli.config.optimization import OPTIMIZERS, SCHEDULERS
from orpo_cli.config.schema import ROOT_KEYS, RunConfig
from orpo_cli.errors import ConfigError

Compose = Callable[..., RunConfig]
NEEDS_A_PATH = {"data=file": "data.path=x.json", "model=pretrained": "model.path=x"}
"""Options that leave the path to the user."""


def options(group: str) -> list[str]:
    return sorted(path.stem for path in (builtin_configs() / group).glob("*.yaml"))


EVERY_OPTION = [f"{group}={option}" for group in SECTIONS for option in options(group)]
EVERY_EXPERIMENT = [f"+experiment={option}" for option in options("experiment")]
"""They are composed by tests/runs/test_recipes.py."""


def completed(*overrides: str) -> list[str]:
    return [*overrides, *(NEEDS_A_PATH[override] for override in overrides if override in NEEDS_A_PATH)]


def test_the_walk_meets_every_file() -> None:
    files = [path.relative_to(builtin_configs()) for path in builtin_configs().rglob("*") if path.is_file()]
    walked = {f"{name.lstrip('+').replace('=', '/')}.yaml" for name in EVERY_OPTION + EVERY_EXPERIMENT}
    roots = {f"{name}.yaml" for name in ("train", "check", "evaluate", "generate", "export")}
    assert walked | roots == {str(path) for path in files}
    assert len(files) == len(EVERY_OPTION) + len(EVERY_EXPERIMENT) + len(roots) >= 30


@pytest.mark.parametrize("option", EVERY_OPTION)
def test_option_composes_and_loads(option: str, compose_config: Compose) -> None:
    group, name = option.split("=")
    section = getattr(compose_config(*completed(option)), group)
    if group in ("optimizer", "scheduler"):
        assert section.name == name
    if group == "adapter":  # an option made of another one has the name of that
        written = yaml.safe_load((builtin_configs() / group / f"{name}.yaml").read_text(encoding="utf-8"))
        assert section.name == (written.get("defaults") or [name])[0]
    if group == "loss":
        assert name.startswith(section.name)


def test_options_combine_freely(compose_config: Compose) -> None:
    """An optimizer takes its learning rate from the adapter: each of either beside two of the other."""
    walked = 0
    beside_two = {*itertools.product(options("adapter"), ("adamw", "lion"))}
    beside_two |= {*itertools.product(("none", "lora"), options("optimizer"))}
    for adapter, optimizer in sorted(beside_two):
        config = compose_config(f"adapter={adapter}", f"optimizer={optimizer}", "model=tiny")
        expected = {"sgd": 1e-3, "lion": config.adapter.default_lr / 4}.get(optimizer, config.adapter.default_lr)
        assert config.optimizer.lr == expected
        walked += 1
    assert walked == 2 * len(options("adapter")) + 2 * len(options("optimizer")) - 4


@pytest.mark.parametrize(
    ("kinds", "group"), [(ADAPTERS, "adapter"), (OPTIMIZERS, "optimizer"), (SCHEDULERS, "scheduler")]
)
def test_every_variant_of_the_schema_has_an_option(kinds: dict[str, type], group: str) -> None:
    assert set(kinds) <= set(options(group))


def test_schema_holds_no_values() -> None:
    """YAML owns values: no dataclass has a default."""
    for section, kinds in SECTIONS.items():
        for kind in kinds.values() if isinstance(kinds, dict) else [kinds]:
            assert section_keys(section)
            with pytest.raises(TypeError, match="missing"):
                kind()


# The authors' recipe: github.com/xfactlab/orpo, README, Mistral-ORPO-beta.
def test_mistral_recipe_is_the_papers(compose_config: Compose) -> None:
    config = compose_config("+experiment=mistral_orpo_beta", "data=file", "data.path=x.json")
    assert (config.lambda_, config.optimizer.lr, config.trainer.epochs) == (0.1, 5e-6, 5)
    assert (config.scheduler.name, config.scheduler.warmup_steps, config.adapter.name) == ("inverse_sqrt", 200, "none")
    assert config.model.path == "mistralai/Mistral-7B-v0.1"


@pytest.mark.parametrize("option", options("loss"))
def test_preset_sets_lambda_and_the_command_line_wins(option: str, compose_config: Compose) -> None:
    written = yaml.safe_load((builtin_configs() / "loss" / f"{option}.yaml").read_text())["lambda"]
    assert compose_config(f"loss={option}").lambda_ == written
    if option != "sft":
        assert compose_config(f"loss={option}", "lambda=0.25").lambda_ == 0.25
        assert compose_config("lambda=0.25", f"loss={option}").lambda_ == 0.25


def test_lambda_weighs_nothing_without_a_preference_term(compose_config: Compose) -> None:
    with pytest.raises(ConfigError, match=r"lambda=0\.1 with loss=sft: .*no preference term"):
        compose_config("loss=sft", "lambda=0.1")
    assert compose_config("loss=sft", "lambda=0").lambda_ == 0


def test_options_of_the_default_model_give_way_to_the_command_line(compose_config: Compose) -> None:
    """The default model brings its own adapter and loss."""
    assert compose_config("adapter=none").adapter.name == "none"
    assert compose_config("loss=trl").loss.name == "trl"
    assert compose_config("model=tiny").adapter.name == "none"


def test_scheduler_of_the_wrong_variant_is_refused(compose_config: Compose) -> None:
    with pytest.raises(ConfigError, match=r"scheduler\.decay_ratio.*scheduler=linear.*belongs to scheduler=wsd"):
        compose_config("scheduler=linear", "+scheduler.decay_ratio=0.1")


@pytest.mark.parametrize(
    "override",
    [
        "lambda=-1", "lambda=nan", "lambda=inf", "lambda=-inf", "lambda=null", "lambda=true", "lambda=abc",
        "seed=-1", "seed=4294967296", "seed=1.5",
        "optimizer.lr=0", "optimizer.lr=-1", "optimizer.lr=nan", "optimizer.lr=inf", "optimizer.lr=abc",
        "optimizer.weight_decay=-1", "optimizer.weight_decay=nan", "optimizer.eps=0",
        "optimizer.betas=[0.9]", "optimizer.betas=[0.9,1]", "optimizer.betas=[0.9,nan]", "optimizer.betas=3",
        "scheduler.warmup_ratio=2", "scheduler.warmup_ratio=nan", "scheduler.warmup_steps=-1",
        "scheduler.min_lr_ratio=-0.1",
        "trainer.pairs_per_step=0", "trainer.epochs=0", "trainer.epochs=1.5", "trainer.max_tokens=0",
        "trainer.max_steps=0", "trainer.save_every=0", "trainer.max_grad_norm=0", "trainer.max_grad_norm=nan",
        "trainer.layout=nested", "trainer.precision=int8", "trainer.device=tpu", "trainer.device='cuda:'",
        "trainer.keep_last=0", "trainer.sample_tokens=-1", "trainer.gradient_checkpointing=maybe",
        "data.max_length=1", "data.eval_fraction=1", "data.eval_fraction=nan", "data.length_policy=cut",
        "data.on_bad_row=ignore", "data.eval_fraction=0.1",
        "model.dtype=int8", "model.path=''",
        "loss.label_smoothing=0.5", "loss.label_smoothing=nan", "loss.nll=all", "loss.preference=hinge",
        "loss.nll_average=pair", "loss.router_aux_loss_coef=-1", "loss.router_aux_loss_coef=nan",
        "loss.router_aux_loss_coef=own", "loss.router_aux_loss_coef=null",
    ],
)  # fmt: skip
def test_value_outside_its_limits_is_refused_by_name(override: str, compose_config: Compose) -> None:
    with pytest.raises(ConfigError) as caught:
        compose_config(override)
    assert override.split("=")[0] in str(caught.value)
    assert "\n" not in str(caught.value)


# Saved, loaded and saved again: a fixed point, and the same configuration.
def test_saved_configuration_is_a_fixed_point(compose_config: Compose, tmp_path: Path) -> None:
    saved = portable_yaml(compose_config("loss=trl", "lambda=0.2", "output_dir=x"), tmp_path)
    again = load_config(OmegaConf.create(saved))
    assert portable_yaml(again, tmp_path) == saved
    assert again.loss == compose_config("loss=trl").loss
    assert again.lambda_ == 0.2
    assert list(yaml.safe_load(saved)) == [*ROOT_KEYS, *SECTIONS]
