"""Which parameter goes where, at which rate; steps of each optimizer against its formula or its library's own."""

from collections.abc import Callable
from typing import Any

import bitsandbytes
import optimi
import pytest
import schedulefree
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from torch.optim import Optimizer
from transformers import LlamaConfig, LlamaForCausalLM

from orpo_cli.checkpoints.averaging import use_resulting_weights, use_weights_of_steps
from orpo_cli.config import limits, optimization
from orpo_cli.config.schema import RunConfig
from orpo_cli.errors import ConfigError, ModelError
from orpo_cli.runs.assembly import Assembly
from orpo_cli.training.optimizers import build_optimizers, groups, left_to_adamw, set_lr
from orpo_cli.training.schedules import lr_factor


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


def test_muon_leaves_rows_of_embeddings_to_adamw(compose_config: Callable[..., RunConfig]) -> None:
    config = compose_config("model=tiny", "optimizer=muon", "adapter=lora", "adapter.train_tokens=[a]")
    model = Assembly(config).skeleton
    muon, adamw = build_optimizers(model, config.optimizer)
    assert all("lora_" in name for name in names(model, muon.param_groups[0]["params"]))
    (rows,) = names(model, [parameter for group in adamw.param_groups for parameter in group["params"]])
    assert "trainable_tokens" in rows
    assert left_to_adamw(model) == 64


def test_muon_takes_the_layers_matrices_and_adamw_the_rest(compose_config: Callable[..., RunConfig]) -> None:
    model = Model()
    muon, adamw = build_optimizers(model, compose_config("optimizer=muon").optimizer)
    assert isinstance(muon, torch.optim.Muon)
    assert isinstance(adamw, torch.optim.AdamW)
    assert names(model, muon.param_groups[0]["params"]) == {"layer.weight"}
    rest = [parameter for group in adamw.param_groups for parameter in group["params"]]
    assert names(model, rest) == {"embedding.weight", "layer.bias", "lm_head.weight"}


@pytest.mark.parametrize("name", [*optimization.OPTIMIZERS])
def test_vectors_are_not_decayed(name: str, compose_config: Callable[..., RunConfig]) -> None:
    model = Model()
    config = compose_config(f"optimizer={name}", "optimizer.weight_decay=0.1").optimizer
    assert config.name == name
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


LR, BETAS, EPS = 0.01, (0.8, 0.9), 1e-6
ADAM = ("optimizer.betas=[0.8,0.9]", "optimizer.eps=1e-6")
LIBRARIES: dict[str, tuple[tuple[str, ...], Callable[[Any], list[Optimizer]]]] = {
    "adamw": (ADAM, lambda groups: [torch.optim.AdamW(groups, LR, BETAS, EPS)]),
    "adamw_8bit": (ADAM, lambda groups: [bitsandbytes.optim.AdamW8bit(groups, LR, BETAS, EPS)]),
    "paged_adamw_8bit": (ADAM, lambda groups: [bitsandbytes.optim.PagedAdamW8bit(groups, LR, BETAS, EPS)]),
    "schedule_free_adamw": (
        (*ADAM, "scheduler.warmup_steps=2"),
        lambda groups: [schedulefree.AdamWScheduleFree(groups, LR, BETAS, EPS, warmup_steps=3)],
    ),
    "stable_adamw": (ADAM, lambda groups: [optimi.StableAdamW(groups, LR, BETAS, eps=EPS)]),
    "lion": (ADAM[:1], lambda groups: [optimi.Lion(groups, LR, BETAS)]),
    "muon": (
        (*ADAM, "optimizer.momentum=0.9"),
        lambda groups: [
            torch.optim.Muon(groups[:1], LR, momentum=0.9, adjust_lr_fn="match_rms_adamw"),
            torch.optim.AdamW(groups[1:], LR, BETAS, EPS),
        ],
    ),
    "adafactor": (
        ("optimizer.beta2_decay=-0.7",),
        lambda groups: [torch.optim.Adafactor(groups, LR, beta2_decay=-0.7)],
    ),
    "sgd": (("optimizer.momentum=0.9",), lambda groups: [torch.optim.SGD(groups, LR, momentum=0.9)]),
}
"""What to type for each optimizer, and the same of its library; the second group of parameters is the vectors."""


class Large(nn.Module):
    """A matrix whose moments bitsandbytes keeps in 8 bits, one whose it does not, and a vector."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.matrix = nn.Parameter(torch.randn(64, 80))
        self.small = nn.Parameter(torch.randn(5, 7))
        self.vector = nn.Parameter(torch.randn(9))

    def give_gradients(self, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        for parameter in self.parameters():
            parameter.grad = torch.randn(parameter.shape, generator=generator)


@pytest.mark.filterwarnings("ignore:Paged optimizers are not supported on CPU")
@pytest.mark.parametrize("name", [*optimization.OPTIMIZERS])
def test_ten_steps_are_the_librarys(name: str, compose_config: Callable[..., RunConfig]) -> None:
    """Of schedulefree with a warm-up of its own over three steps, which is one of scheduler.warmup_steps=2."""
    typed, of_library = LIBRARIES[name]
    config = compose_config(
        f"optimizer={name}", "optimizer.lr=0.01", "optimizer.weight_decay=0.1", "scheduler=constant",
        "scheduler.warmup_steps=0", *typed,
    )  # fmt: skip
    ours, theirs = Large(), Large()
    built = build_optimizers(ours, config.optimizer)
    decayed = {"params": [theirs.matrix, theirs.small], "weight_decay": 0.1}
    library = of_library([decayed, {"params": [theirs.vector], "weight_decay": 0.0}])
    for step in range(1, 11):
        use_weights_of_steps([*built, *library])
        ours.give_gradients(step)
        theirs.give_gradients(step)
        set_lr(built, lr_factor(config.scheduler, step, 10))
        for optimizer in (*built, *library):
            optimizer.step()
        if step % 3 == 0:
            use_resulting_weights(built)
    use_resulting_weights([*built, *library])
    for (key, value), other in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        assert (value - other).abs().max() < 1e-6, key


def test_what_bitsandbytes_keeps_has_8_bits_where_it_is_large(compose_config: Callable[..., RunConfig]) -> None:
    model = Large()
    (optimizer,) = build_optimizers(model, compose_config("optimizer=adamw_8bit").optimizer)
    model.give_gradients(0)
    optimizer.step()
    dtypes = {part: optimizer.state[model.matrix][part].dtype for part in ("state1", "state2", "absmax1", "absmax2")}
    assert dtypes == {"state1": torch.uint8, "state2": torch.uint8, "absmax1": torch.float32, "absmax2": torch.float32}
    assert [optimizer.state[model.small][part].dtype for part in ("state1", "state2")] == [torch.float32] * 2


def schedule_free(compose_config: Callable[..., RunConfig]) -> tuple[Large, Any]:
    model = Large()
    (optimizer,) = build_optimizers(
        model, compose_config("optimizer=schedule_free_adamw", "optimizer.lr=0.01").optimizer
    )
    return model, optimizer


def weights(model: nn.Module) -> list[Tensor]:
    return [parameter.detach().clone() for parameter in model.parameters()]


def test_schedule_free_goes_on_with_the_bits_that_it_had(compose_config: Callable[..., RunConfig]) -> None:
    """However often its average is looked at; the library's own way back rounds."""
    model, optimizer = schedule_free(compose_config)
    for step in range(3):
        optimizer.train()
        model.give_gradients(step)
        optimizer.step()
    before = weights(model)
    averages = []
    for _ in range(5):
        optimizer.eval()
        optimizer.eval()
        averages.append(weights(model))
        optimizer.train()
        optimizer.train()
    assert all(torch.equal(one, other) for one, other in zip(before, weights(model), strict=True))
    assert all(torch.equal(one[0], averages[0][0]) for one in averages)
    assert not torch.equal(before[0], averages[0][0])
    assert "y" not in optimizer.state[model.matrix]


def test_the_result_of_schedule_free_is_the_mean_of_its_iterates(compose_config: Callable[..., RunConfig]) -> None:
    """With one learning rate, x of step t is the mean of z_1 to z_t (arXiv 2405.15682, equation 3 with c = 1/t)."""
    model, optimizer = schedule_free(compose_config)
    iterates = []
    for step in range(6):
        optimizer.train()
        model.give_gradients(step)
        optimizer.step()
        iterates.append(optimizer.state[model.matrix]["z"].clone())
    optimizer.eval()
    assert torch.allclose(model.matrix, torch.stack(iterates).mean(0), rtol=0, atol=1e-6)


LLAMA = LlamaConfig(
    vocab_size=11, hidden_size=8, intermediate_size=8, num_hidden_layers=3, num_attention_heads=2,
    num_key_value_heads=2, tie_word_embeddings=False,
)  # fmt: skip


def rates(model: nn.Module, optimizers: list[Optimizer]) -> dict[str, float]:
    return {name: group["lr"] for group in groups(optimizers) for name in names(model, group["params"])}


@pytest.mark.parametrize("name", [*optimization.OPTIMIZERS])
def test_lower_layers_have_lower_rates(name: str, compose_config: Callable[..., RunConfig]) -> None:
    """Of three layers the last, the final norm and the head have the rate; each below half of it; embeddings least."""
    config = compose_config(f"optimizer={name}", "optimizer.lr=0.8", "optimizer.layer_lr_decay=0.5").optimizer
    model = LlamaForCausalLM(LLAMA)
    optimizers = build_optimizers(model, config)
    expected = {
        "model.embed_tokens": 0.1,
        "layers.0": 0.2,
        "layers.1": 0.4,
        "layers.2": 0.8,
        "model.norm": 0.8,
        "lm_": 0.8,
    }
    found = rates(model, optimizers)
    assert found.keys() == {key for key, _ in model.named_parameters()}
    assert found == {key: pytest.approx(next(expected[part] for part in expected if part in key)) for key in found}
    assert set_lr(optimizers, 0.5) == pytest.approx(0.4)
    assert rates(model, optimizers)["model.embed_tokens.weight"] == pytest.approx(0.05)


def test_lower_layers_of_adapters_have_lower_rates(compose_config: Callable[..., RunConfig]) -> None:
    config = compose_config("optimizer.lr=0.8", "optimizer.layer_lr_decay=0.5").optimizer
    model = get_peft_model(LlamaForCausalLM(LLAMA), LoraConfig(r=2, target_modules="all-linear"))
    found = rates(model, build_optimizers(model, config))
    for layer, expected in enumerate((0.2, 0.4, 0.8)):
        own = [rate for key, rate in found.items() if f"layers.{layer}." in key]
        assert own == [pytest.approx(expected)] * 14  # two for each of seven matrices


def test_tied_embeddings_have_the_lowest_rate(compose_config: Callable[..., RunConfig]) -> None:
    config = compose_config("optimizer.lr=0.8", "optimizer.layer_lr_decay=0.5").optimizer
    model = LlamaForCausalLM(LlamaConfig(**LLAMA.to_dict() | {"tie_word_embeddings": True}))
    assert rates(model, build_optimizers(model, config))["model.embed_tokens.weight"] == pytest.approx(0.1)


def test_a_model_that_does_not_name_its_layers_has_one_rate(compose_config: Callable[..., RunConfig]) -> None:
    model = LlamaForCausalLM(LLAMA)
    model._no_split_modules = None
    assert set(rates(model, build_optimizers(model, compose_config("optimizer.lr=0.8").optimizer)).values()) == {0.8}
    with pytest.raises(ModelError, match=r"optimizer\.layer_lr_decay: the model does not say"):
        build_optimizers(model, compose_config("optimizer.layer_lr_decay=0.9").optimizer)


def test_a_missing_library_is_named_with_its_extra(
    compose_config: Callable[..., RunConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "find_spec", lambda _name: None)
    for name, library in optimization.LIBRARIES.items():
        with pytest.raises(ConfigError) as caught:
            optimization.check_library(compose_config(f"optimizer={name}").optimizer)
        assert str(caught.value) == (
            f"optimizer={name}: the package {library} is not installed; pip install 'orpo-cli[{library}]'"
        )
    optimization.check_library(compose_config("optimizer=adamw").optimizer)
