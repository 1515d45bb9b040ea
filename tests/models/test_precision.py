"""Cast copies of the weights: made once a step, gradients summed in fp32, the weights untouched."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from architectures import Computed, build, lora, pairs_of
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from orpo_cli.cli.main import main
from orpo_cli.data.collation import packed, padded
from orpo_cli.models import adapters
from orpo_cli.models.precision import CastWeights
from orpo_cli.models.scorer import Scorer

BF16 = torch.bfloat16
PAIRS = pairs_of([(5, 4, 6), (3, 7, 2)])


class Casts(TorchDispatchMode):
    """Keeps the shapes of the tensors that were cast to bf16, or copied into bf16 ones."""

    def __init__(self) -> None:
        super().__init__()
        self.shapes: list[torch.Size] = []

    @property
    def elements(self) -> int:
        return sum(map(math.prod, self.shapes))

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        if name == "_to_copy" and result.dtype == BF16 and isinstance(args[0], Tensor) and args[0].dtype != BF16:
            self.shapes.append(result.shape)
        elif name == "_foreach_copy_":
            self.shapes += [tensor.shape for tensor in args[0]]
        return result


def weights_of(model: nn.Module) -> dict[str, Tensor]:
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def assert_unchanged(model: nn.Module, before: dict[str, Tensor]) -> None:
    after = dict(model.named_parameters())
    assert set(after) == set(before)
    for name, weight in before.items():
        assert after[name].dtype == weight.dtype
        assert torch.equal(after[name], weight), name


def adapted(model: Any) -> Any:
    config = lora()
    model = adapters.add_lora(model, config, seed=0, base_reference="llama")
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter)
    return model.eval()


def test_inside_are_bf16_copies_and_outside_the_weights_bit_for_bit() -> None:
    model = build("llama")
    before, storage = weights_of(model), [parameter.data_ptr() for parameter in model.parameters()]
    with CastWeights(model, BF16):
        for name, parameter in model.named_parameters():
            assert parameter.dtype == BF16
            assert torch.equal(parameter, before[name].to(BF16))
    assert_unchanged(model, before)
    assert [parameter.data_ptr() for parameter in model.parameters()] == storage


def test_weights_that_have_moved_are_cast_anew() -> None:
    model = build("llama")
    working = CastWeights(model, BF16)
    for factor in (1.0, 3.0):
        with torch.no_grad():
            model.lm_head.weight.mul_(factor)
        expected = weights_of(model)
        with working:
            for name, parameter in model.named_parameters():
                assert torch.equal(parameter, expected[name].to(BF16))


def test_cast_once_an_entry() -> None:
    """Three micro-batches cast as many elements as the model has, and so does the next entry."""
    model = build("llama")
    scorer, batch = Scorer(model, BF16), packed(PAIRS, score_prompts=False)
    count = sum(parameter.numel() for parameter in model.parameters())
    for _ in range(2):
        with Casts() as casts, scorer.weights:
            pass
        assert casts.elements == count
    with scorer.at_work("packed"), Casts() as casts:
        for _ in range(3):
            scorer(batch).sum().backward()
    assert not {parameter.shape for parameter in model.parameters()} & set(casts.shapes)  # but of activations


def test_frozen_weights_are_not_cast_again() -> None:
    model = adapted(build("llama"))
    working = CastWeights(model, BF16)
    parameters = list(model.parameters())
    counts = [sum(p.numel() for p in parameters), sum(p.numel() for p in parameters if p.requires_grad)]
    for expected in (*counts, counts[1]):
        with Casts() as casts, working:
            pass
        assert casts.elements == expected


class Weighted(nn.Module):
    """Multiplies one weight by what is given, which then is its gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))

    def forward(self, factor: float) -> Tensor:
        return (self.weight * factor).sum()


def test_gradients_add_up_in_fp32() -> None:
    """256 + 1 + 1 is 258; in bf16, whose steps are 2 there, 256 + 1 is 256 again."""
    model = Weighted()
    with CastWeights(model, BF16):
        for factor in (256.0, 1.0, 1.0):
            model(factor).backward()
        assert model.weight.grad is None
    assert model.weight.grad is not None
    assert model.weight.grad.dtype == torch.float32
    assert model.weight.grad.tolist() == [258.0]
    model.weight.grad = None
    with CastWeights(model, BF16):
        model(2.0).backward()
    assert model.weight.grad.tolist() == [2.0]


def test_gradients_of_an_earlier_block_do_not_return() -> None:
    """They are forgotten, as by an optimizer after its step."""
    model = Weighted()
    working = CastWeights(model, BF16)
    for factor in (256.0, 1.0):
        model.zero_grad(set_to_none=True)
        with working:
            model(factor).backward()
        assert model.weight.grad is not None
        assert model.weight.grad.tolist() == [factor]


def test_outside_the_block_gradients_are_the_models_own() -> None:
    model = Weighted()
    with CastWeights(model, BF16):
        pass
    model(3.0).backward()
    assert model.weight.grad is not None
    assert model.weight.grad.tolist() == [3.0]


def test_an_exception_restores_everything() -> None:
    model = build("llama")
    before, scorer = weights_of(model), Scorer(model, BF16)
    with pytest.raises(RuntimeError, match="midway"), scorer.at_work("packed"):  # noqa: PT012
        scorer(packed(PAIRS, score_prompts=False)).sum().backward()
        raise RuntimeError("midway")
    assert_unchanged(model, before)
    assert model.config._attn_implementation == "eager"
    scorer.zero_grad(set_to_none=True)
    with scorer.at_work("padded"):  # and nothing of the broken step is left for the next
        scorer(padded(PAIRS[:1], score_prompts=False)).sum().backward()
    again = Computed(Scorer(build("llama"), BF16), "padded", PAIRS[:1], False, lambda logps, _: logps.sum())
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None
        assert torch.equal(parameter.grad, again.gradients[name])


def test_tied_weights_stay_tied() -> None:
    model = build("llama like smollm2")
    with CastWeights(model, BF16):
        assert model.lm_head.weight is model.model.embed_tokens.weight
        assert model.lm_head.weight.data_ptr() == model.model.embed_tokens.weight.data_ptr()
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert model.lm_head.weight.dtype == torch.float32


@pytest.mark.parametrize("with_adapters", [False, True])
def test_what_an_architecture_wants_in_fp32_stays_so(with_adapters: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    model = build("llama")
    monkeypatch.setattr(model, "_keep_in_fp32_modules_strict", {"norm"})
    model = adapted(model) if with_adapters else model
    with CastWeights(model, BF16):
        wide = {name for name, parameter in model.named_parameters() if parameter.dtype == torch.float32}
    assert [name.removeprefix("base_model.model.") for name in wide] == ["model.norm.weight"]


def test_what_an_architecture_wants_in_fp32_by_a_longer_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """transformers matches parts of names: Ernie 4.5 asks for `gate.weight` of its experts."""
    model = build("llama")
    monkeypatch.setattr(model, "_keep_in_fp32_modules_strict", {"gate_proj.weight"})
    with CastWeights(model, BF16):
        wide = [name for name, parameter in model.named_parameters() if parameter.dtype == torch.float32]
    assert wide == [f"model.layers.{layer}.mlp.gate_proj.weight" for layer in range(2)]


def test_fp32_changes_nothing() -> None:
    model = build("llama")
    before, storage = weights_of(model), [parameter.data_ptr() for parameter in model.parameters()]
    with CastWeights(model, torch.float32):
        assert [parameter.data_ptr() for parameter in model.parameters()] == storage
    assert_unchanged(model, before)


def test_weights_that_are_small_already_are_left_alone() -> None:
    """A frozen base stored in bf16 has no copies; its adapters, in fp32, do."""
    model = adapted(build("llama").to(BF16))
    for name, parameter in model.named_parameters():
        if "lora" in name:
            parameter.data = parameter.data.float()
    before = {name: parameter.data_ptr() for name, parameter in model.named_parameters()}
    with CastWeights(model, BF16):
        copied = {name for name, parameter in model.named_parameters() if parameter.data_ptr() != before[name]}
    assert copied == {name for name in before if "lora" in name}


@pytest.mark.parametrize("layout", ["packed", "padded"])
@pytest.mark.parametrize("with_adapters", [False, True])
def test_gradient_checkpointing_computes_the_same(with_adapters: bool, layout: str) -> None:
    """Bit for bit: the second forward pass multiplies with the same copies."""
    found = []
    for checkpointing in (False, True):
        model = build("llama")
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        model = adapted(model) if with_adapters else model
        model.train()
        found.append(Computed(Scorer(model, BF16), layout, PAIRS))
    plain, again = found
    assert torch.equal(plain.logps, again.logps)
    assert set(plain.gradients) == set(again.gradients)
    for name, gradient in plain.gradients.items():
        assert gradient.dtype == torch.float32
        assert torch.equal(gradient, again.gradients[name]), name


def test_gradients_are_those_of_a_bf16_model() -> None:
    """One micro-batch: bit for bit what the model cast as a whole computes."""
    working = Computed(Scorer(build("llama"), BF16), "padded", PAIRS)
    model = build("llama")
    for parameter in model.parameters():  # and no buffers: rotary frequencies stay in fp32
        parameter.data = parameter.data.to(BF16)
    cast = Computed(Scorer(model, BF16), "padded", PAIRS)
    assert torch.equal(working.logps, cast.logps)
    for name, gradient in working.gradients.items():
        assert torch.equal(gradient, cast.gradients[name].float()), name


@pytest.mark.parametrize("adapter", ["none", pytest.param("lora", marks=pytest.mark.slow)])
def test_checkpoints_of_a_bf16_run_hold_fp32(adapter: str, tmp_path: Path) -> None:
    """The saved weights have more digits than bf16; the copies never reach the disk."""
    rows = [{"prompt": f"word {i}?", "chosen": "moon " * (1 + i % 3), "rejected": "river"} for i in range(8)]
    data, folder = tmp_path / "prefs.jsonl", tmp_path / "run"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    common = ["train", "model=tiny", f"data={data}", f"output_dir={folder}", "trainer.sample_tokens=0"]
    assert main([*common, "trainer.precision=bf16", f"adapter={adapter}", "optimizer.lr=1e-3", "trainer.epochs=3"]) == 0
    name = "model.safetensors" if adapter == "none" else "adapter_model.safetensors"
    for directory in (folder / "model", next((folder / "checkpoints").glob("step-*"))):
        for key, weight in load_file(next(directory.rglob(name))).items():
            assert weight.dtype == torch.float32, key
            assert "norm" in key or not torch.equal(weight, weight.to(BF16).float()), key


def test_a_model_without_anything_trained_is_cast_as_often_as_asked() -> None:
    """As while adapters are switched off: then none of the copies has to follow."""
    model = build("llama").requires_grad_(False)
    weights = CastWeights(model, torch.bfloat16)
    for _ in range(2):
        with weights:
            assert {weight.dtype for weight in model.parameters()} == {torch.bfloat16}
        assert {weight.dtype for weight in model.parameters()} == {torch.float32}
