"""The state of each optimizer comes back as it was; what it cannot have kept is refused before it reaches a kernel."""

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torch.optim import Optimizer

from orpo_cli.checkpoints.averaging import use_resulting_weights, use_weights_of_steps
from orpo_cli.checkpoints.optimizer_state import (
    load_optimizer_state,
    named_optimizer_state,
    save_optimizer_state,
    state_bytes,
)
from orpo_cli.config.optimization import OPTIMIZERS as NAMES
from orpo_cli.config.schema import RunConfig
from orpo_cli.errors import CheckpointError
from orpo_cli.models.slices import Gathering
from orpo_cli.training.optimizers import build_optimizers

STEPS = 3
OPTIMIZERS = {
    "adamw": ["adamw"], "adafactor": ["adafactor"], "sgd": ["sgd", "optimizer.momentum=0.9"], "muon": ["muon"],
    "adamw_8bit": ["adamw_8bit"], "lion": ["lion"], "stable_adamw": ["stable_adamw"],
    "schedule_free_adamw": ["schedule_free_adamw"],
}  # fmt: skip


class Model(nn.Module):
    """Matrices of several shapes, one with a side of 1, vectors, a weight without use, and one of no dimension."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embedding = nn.Embedding(5, 4, dtype=dtype)
        self.layer = nn.Linear(4, 3, dtype=dtype)
        self.lm_head = nn.Linear(3, 1, dtype=dtype)
        self.large = nn.Parameter(torch.randn(70, 70, dtype=dtype))
        self.unused = nn.Linear(2, 2, bias=False, dtype=dtype)
        self.scale = nn.Parameter(torch.tensor(1.5, dtype=dtype))

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        scores: torch.Tensor = self.lm_head(self.layer(self.embedding(tokens))) * self.scale * self.large.sum().tanh()
        return scores


Trained = tuple[Model, list[Optimizer]]


def train(model: Model, optimizers: Sequence[Optimizer], steps: int) -> None:
    for _ in range(steps):
        use_weights_of_steps(optimizers)
        model(torch.arange(5)).float().square().sum().backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        use_resulting_weights(optimizers)


@pytest.fixture
def trained(compose_config: Callable[..., RunConfig]) -> Callable[..., Trained]:
    """`trained("sgd", "optimizer.momentum=0")`: a model and its optimizers after some steps."""

    def build(name: str, *overrides: str, steps: int = STEPS, dtype: torch.dtype = torch.float32) -> Trained:
        model = Model(dtype)
        optimizers = build_optimizers(model, compose_config(f"optimizer={name}", *overrides).optimizer)
        train(model, optimizers, steps)
        return model, optimizers

    return build


@pytest.mark.parametrize(
    "dtype", [torch.float32, pytest.param(torch.bfloat16, marks=pytest.mark.slow)], ids=["fp32", "bf16"]
)
@pytest.mark.parametrize("chosen", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_state_comes_back(
    chosen: list[str], dtype: torch.dtype, trained: Callable[..., Trained], tmp_path: Path
) -> None:
    model, optimizers = trained(*chosen, dtype=dtype)
    saved = named_optimizer_state(model, optimizers)
    save_file({key: value.contiguous() for key, value in saved.items()}, tmp_path / "state.safetensors")
    fresh, others = trained(*chosen, dtype=dtype, steps=0)
    fresh.load_state_dict(model.state_dict())
    assert load_optimizer_state(tmp_path / "state.safetensors", fresh, others, STEPS) == ["unused.weight"]
    loaded = named_optimizer_state(fresh, others)
    assert loaded.keys() == saved.keys()
    assert len(saved) > 0
    assert all(torch.equal(loaded[key], value) and loaded[key].dtype == value.dtype for key, value in saved.items())
    train(model, optimizers, 1)
    train(fresh, others, 1)
    assert all(torch.equal(value, fresh.state_dict()[key]) for key, value in model.state_dict().items())


def test_an_optimizer_that_keeps_nothing(trained: Callable[..., Trained], tmp_path: Path) -> None:
    plain = ("sgd", "optimizer.momentum=0")
    model, optimizers = trained(*plain)
    assert named_optimizer_state(model, optimizers) == {}
    save_file({}, tmp_path / "state.safetensors")
    assert load_optimizer_state(tmp_path / "state.safetensors", *trained(*plain, steps=0), STEPS) == []


def test_a_run_whose_steps_were_all_skipped(trained: Callable[..., Trained], tmp_path: Path) -> None:
    save_file({}, tmp_path / "state.safetensors")
    model, optimizers = trained("adamw", steps=0)
    assert "layer.weight" in load_optimizer_state(tmp_path / "state.safetensors", model, optimizers, 0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", [*NAMES])
def test_the_bytes_of_the_estimate_are_those_that_are_kept(
    name: str, dtype: torch.dtype, compose_config: Callable[..., RunConfig]
) -> None:
    """Of a matrix of 512 x 512, to a thousandth of its size: counts, rows and columns are the rest."""
    model = nn.Linear(512, 512, bias=False, dtype=dtype)
    momentum = ["optimizer.momentum=0.9"] if name == "sgd" else []
    optimizers = build_optimizers(model, compose_config(f"optimizer={name}", *momentum).optimizer)
    use_weights_of_steps(optimizers)
    model(torch.randn(2, 512, dtype=dtype)).float().square().sum().backward()
    for optimizer in optimizers:
        optimizer.step()
    for saved in (False, True):
        kept = sum(value.nbytes for value in named_optimizer_state(model, optimizers).values())
        expected = state_bytes(name, dtype.itemsize, saved) * model.weight.numel()
        assert kept == pytest.approx(expected, abs=model.weight.nbytes / 100)
        use_resulting_weights(optimizers)


Tensors = dict[str, torch.Tensor]


def set_to(key: str, change: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[Tensors], None]:
    return lambda tensors: tensors.update({key: change(tensors[key]).contiguous()})


AVERAGE, COUNT = "layer.weight|exp_avg", "layer.weight|step"
DAMAGES: dict[str, tuple[Callable[[Tensors], object], str]] = {
    "transposed": (set_to(AVERAGE, torch.t), r"exp_avg float32 \[4, 3\], .* keeps exp_avg float32 \[3, 4\]"),
    "too short": (set_to(AVERAGE, lambda value: value[:2]), r"has exp_avg float32 \[2, 4\]"),
    "scalar": (set_to(AVERAGE, torch.sum), r"has exp_avg float32 \[\]"),
    "bf16": (set_to(AVERAGE, torch.Tensor.bfloat16), "has exp_avg bfloat16"),
    "whole numbers": (set_to(AVERAGE, torch.Tensor.int), "has exp_avg int32"),
    "not a number": (set_to(AVERAGE, lambda value: value * torch.nan), "exp_avg has values that are not finite"),
    "a count for each value": (set_to(COUNT, lambda value: value.expand(2)), r"step float32 \[2\]; the optimizer"),
    "a part is missing": (lambda tensors: tensors.pop(AVERAGE), r"has exp_avg_sq [^;]*; the optimizer keeps exp_avg "),
    "a part too many": (lambda tensors: tensors.update({"layer.weight|more": torch.ones(2)}), "more float32"),
    "of another model": (lambda tensors: tensors.update({"head|step": torch.ones(())}), "state of head, which is not"),
    "no name": (lambda tensors: tensors.update({"step": torch.ones(())}), "state of , which is not"),
    "nothing": (dict.clear, "has no optimizer state after 3 steps"),
}  # fmt: skip


@pytest.mark.parametrize(("damage", "message"), DAMAGES.values(), ids=DAMAGES)
def test_what_no_optimizer_has_kept_is_refused(
    damage: Callable[[Tensors], object], message: str, trained: Callable[..., Trained], tmp_path: Path
) -> None:
    tensors = named_optimizer_state(*trained("adamw"))
    damage(tensors)
    save_file(tensors, tmp_path / "state.safetensors")
    with pytest.raises(CheckpointError, match=message):
        load_optimizer_state(tmp_path / "state.safetensors", *trained("adamw", steps=0), STEPS)


@pytest.mark.parametrize("other", ["adafactor", "sgd", "muon"])
def test_state_of_another_optimizer_is_refused(other: str, trained: Callable[..., Trained], tmp_path: Path) -> None:
    save_file(
        {key: value.contiguous() for key, value in named_optimizer_state(*trained(*OPTIMIZERS[other])).items()},
        tmp_path / "state.safetensors",
    )
    with pytest.raises(CheckpointError, match=r"the optimizer keeps exp_avg .*, exp_avg_sq .*, step float32 \[\]"):
        load_optimizer_state(tmp_path / "state.safetensors", *trained("adamw", steps=0), STEPS)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_state_that_is_gathered_makes_the_same_file(
    dtype: torch.dtype, trained: Callable[..., Trained], tmp_path: Path
) -> None:
    """One tensor after the other, in the bytes of the library of safetensors."""
    state = named_optimizer_state(*trained("adamw", dtype=dtype))
    state |= {"of four bytes|x": torch.arange(3.0)}
    save_optimizer_state(tmp_path / "at once", state)
    save_optimizer_state(tmp_path / "gathered", Gathering(state))
    assert (tmp_path / "gathered").read_bytes() == (tmp_path / "at once").read_bytes()
