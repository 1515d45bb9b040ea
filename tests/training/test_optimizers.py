"""Which parameter goes where, and one step of each optimizer against its formula."""

from collections.abc import Callable

import pytest
import torch
from torch import nn

from orpo_cli.config.schema import RunConfig
from orpo_cli.training.optimizers import build_optimizers, groups, set_lr


class Model(nn.Module):
    """An embedding, a layer with a bias, a head."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(5, 4)
        self.layer = nn.Linear(4, 4)
        self.lm_head = nn.Linear(4, 5, bias=False)


def names(model: nn.Module, parameters: list[nn.Parameter]) -> set[str]:
    known = {id(parameter): name for name, parameter in model.named_parameters()}
    return {known[id(parameter)] for parameter in parameters}


def test_muon_takes_the_layers_matrices_and_adamw_the_rest(compose_config: Callable[..., RunConfig]) -> None:
    model = Model()
    muon, adamw = build_optimizers(model, compose_config("optimizer=muon").optimizer)
    assert isinstance(muon, torch.optim.Muon)
    assert isinstance(adamw, torch.optim.AdamW)
    assert names(model, muon.param_groups[0]["params"]) == {"layer.weight"}
    rest = [parameter for group in adamw.param_groups for parameter in group["params"]]
    assert names(model, rest) == {"embedding.weight", "layer.bias", "lm_head.weight"}


@pytest.mark.parametrize("name", ["adamw", "adafactor", "sgd"])
def test_vectors_are_not_decayed(name: str, compose_config: Callable[..., RunConfig]) -> None:
    model = Model()
    config = compose_config(f"optimizer={name}", "optimizer.weight_decay=0.1").optimizer
    decay = {
        parameter: group["weight_decay"]
        for group in groups(build_optimizers(model, config))
        for parameter in names(model, group["params"])
    }
    assert decay == {"embedding.weight": 0.1, "layer.weight": 0.1, "lm_head.weight": 0.1, "layer.bias": 0.0}


def test_frozen_parameters_are_left_out(compose_config: Callable[..., RunConfig]) -> None:
    model = Model()
    model.embedding.weight.requires_grad_(False)
    trained = [
        parameter
        for group in groups(build_optimizers(model, compose_config().optimizer))
        for parameter in group["params"]
    ]
    assert "embedding.weight" not in names(model, trained)


def test_lr_is_a_share_of_the_highest(compose_config: Callable[..., RunConfig]) -> None:
    optimizers = build_optimizers(Model(), compose_config("optimizer=muon", "optimizer.lr=0.02").optimizer)
    assert set_lr(optimizers, 0.5) == pytest.approx(0.01)
    assert set_lr(optimizers, 0.25) == pytest.approx(0.005)  # of the highest, not of the last
    assert {group["lr"] for group in groups(optimizers)} == {0.005}


def test_sgd_step_by_hand(compose_config: Callable[..., RunConfig]) -> None:
    """w - lr * g = 1 - 0.1 * 2 = 0.8."""
    layer = nn.Linear(1, 1, bias=False)
    with torch.no_grad():
        layer.weight.fill_(1.0)
    (sgd,) = build_optimizers(layer, compose_config("optimizer=sgd", "optimizer.lr=0.1").optimizer)
    layer.weight.grad = torch.tensor([[2.0]])
    sgd.step()
    assert layer.weight.item() == pytest.approx(0.8)
