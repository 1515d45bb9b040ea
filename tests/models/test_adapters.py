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
from orpo_cli.models.adapters import add_lora
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
