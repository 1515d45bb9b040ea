"""A saved adapter names its base model, and has learned something."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from architectures import ARCHITECTURES, build, lora
from transformers import LlamaConfig, LlamaForCausalLM

from orpo_cli.checkpoints.lookup import TrainingState, verify
from orpo_cli.checkpoints.saving import LiveState, Retention, begin_checkpoint
from orpo_cli.errors import CheckpointError
from orpo_cli.models.adapters import add_lora, load_weights, merge_saved
from orpo_cli.models.builtin import byte_tokenizer
from orpo_cli.models.new_adapters import language_layers
from orpo_cli.models.saving import save_model


def adapted(folder: Path) -> Any:
    """A small model read from a directory, with adapters."""
    torch.manual_seed(0)
    config = LlamaConfig(vocab_size=11, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2)
    LlamaForCausalLM(config).save_pretrained(folder)
    base = LlamaForCausalLM.from_pretrained(folder)
    config = lora()
    return add_lora(base, config, seed=0, base_reference="org/name")


def test_saved_adapter_names_the_reference_it_was_given(tmp_path: Path) -> None:
    """peft would write the directory that the base model was read from, which nobody else has."""
    save_model(tmp_path / "adapter", adapted(tmp_path / "base"), byte_tokenizer())
    saved = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text(encoding="utf-8"))
    assert saved["base_model_name_or_path"] == "org/name"


@pytest.mark.parametrize(("step", "skipped"), [(1, 0), (2, 1), (0, 0), (2, 2)])
def test_39_an_adapter_that_no_step_has_changed_is_no_checkpoint(step: int, skipped: int, tmp_path: Path) -> None:
    model = adapted(tmp_path / "base")
    optimizer = torch.optim.SGD([weight for weight in model.parameters() if weight.requires_grad], lr=0.1)
    state = TrainingState(step, 9, 512, {}, {}, {}, skipped=skipped)

    def save() -> None:
        begin_checkpoint(
            tmp_path / "run", model, byte_tokenizer(), LiveState.of(model, [optimizer]), state, Retention(1, None)
        )()

    if step == skipped:
        save()
        return
    with pytest.raises(CheckpointError, match="the adapter is what it was before the first step; not saved"):
        save()
    assert not list((tmp_path / "run").iterdir())
    model(torch.arange(8)[None], labels=torch.arange(8)[None]).loss.backward()
    optimizer.step()
    save()
    assert verify(tmp_path / "run" / f"step-{step:06d}").step == step


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_model_of_language_alone_has_no_other_part(name: str) -> None:
    assert language_layers(build(name)) is None


@pytest.mark.parametrize("init", ["pissa", "olora"])
def test_the_part_that_an_adapter_replaces_is_taken_from_the_base_once(init: str, tmp_path: Path) -> None:
    """W - s B0 A0 + s B A stays what it is, however often the adapter is loaded; saved, it fits the plain W."""
    plain, ids = build("llama"), torch.arange(8)[None]
    begun: Any = add_lora(build("llama"), lora(init=init), 0, "", begins=True)
    rounding = {"rtol": 0, "atol": 1e-6 * float(plain(ids).logits.abs().max())}
    torch.testing.assert_close(begun(ids).logits, plain(ids).logits, **rounding)
    for name, weight in begun.named_parameters():
        weight.data += 0.1 * ("lora_B" in name)
    expected = begun(ids).logits
    assert not torch.allclose(expected, plain(ids).logits, atol=1e-3)
    save_model(tmp_path, begun, byte_tokenizer())
    resumed: Any = add_lora(build("llama"), lora(init=init), 0, "")
    for model in (resumed, resumed, begun):
        load_weights(model, tmp_path)
        assert torch.equal(model(ids).logits, expected)
    merged = merge_saved(build("llama"), tmp_path)
    torch.testing.assert_close(merged(ids).logits, expected, **rounding)


@pytest.mark.parametrize("init", ["pissa", "olora"])
def test_a_base_of_bf16_is_rounded_once_where_a_part_is_taken_from_it(init: str, tmp_path: Path) -> None:
    """W - s B0 A0, rounded to the nearest bf16, which is 2^-8 of a number away at most."""
    begun, plain = (build("llama").to(torch.bfloat16) for _ in range(2))
    adapted: Any = add_lora(begun, lora(init=init), 0, "", begins=True)
    taken = {}
    for name, layer in adapted.named_modules():
        if hasattr(layer, "lora_A"):
            factors = [getattr(layer, f"lora_{side}")["default"].weight.double() for side in "BA"]
            stored = plain.get_submodule(name.removeprefix("base_model.model.")).weight
            left = stored.double() - layer.scaling["default"] * factors[0] @ factors[1]
            taken[name] = layer.get_base_layer().weight
            assert ((taken[name] - left).abs() <= 2**-8 * left.abs() + 1e-7 * float(stored.abs().max())).all()
    assert taken
    save_model(tmp_path, adapted, byte_tokenizer())
    resumed: Any = add_lora(build("llama").to(torch.bfloat16), lora(init=init), 0, "")
    load_weights(resumed, tmp_path)
    assert all(torch.equal(resumed.get_submodule(name).get_base_layer().weight, left) for name, left in taken.items())
