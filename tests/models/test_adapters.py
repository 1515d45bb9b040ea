"""What a saved adapter says of itself."""

import json
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from orpo_cli.config.schema import LoraConfig
from orpo_cli.models.adapters import add_lora
from orpo_cli.models.builtin import byte_tokenizer
from orpo_cli.training.saving import save_model


def test_saved_adapter_names_the_reference_it_was_given(tmp_path: Path) -> None:
    """Not the directory that the base model was read from, which peft would write and nobody else has."""
    torch.manual_seed(0)
    config = LlamaConfig(vocab_size=11, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2)
    LlamaForCausalLM(config).save_pretrained(tmp_path / "base")
    base = LlamaForCausalLM.from_pretrained(tmp_path / "base")
    lora = LoraConfig("lora", 1e-4, rank=2, alpha=4, dropout=0.0, targets=["all-linear"], merge=False)
    adapted: Any = add_lora(base, lora, seed=0, base_reference="org/name")
    save_model(tmp_path / "adapter", adapted, byte_tokenizer())
    saved = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text(encoding="utf-8"))
    assert saved["base_model_name_or_path"] == "org/name"
