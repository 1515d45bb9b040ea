"""model/ says the truth: its dtype is announced or chosen, its head is the one that was trained."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from matrix import rows
from safetensors.torch import load_file, save_file
from tiny_runs import change_json, tiny_model, write_pairs
from torch import Tensor
from transformers import AutoModelForCausalLM, Gemma3Config

from orpo_cli.cli.main import main

MATRIX = "model.layers.0.mlp.up_proj.weight"
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@pytest.fixture
def train(tmp_path: Path) -> Callable[..., Path]:
    preferences = write_pairs(tmp_path / "prefs.jsonl", 6)

    def run(*overrides: str, name: str = "run", code: int = 0) -> Path:
        folder = tmp_path / name
        typed = [f"data={preferences}", f"output_dir={folder}", "trainer.max_steps=2", "optimizer.lr=1e-2"]
        assert main(["train", *typed, "trainer.sample_tokens=0", "trainer.precision=fp32", *overrides]) == code
        return folder

    return run


def weights(directory: Path) -> dict[str, Tensor]:
    return load_file(next(directory.glob("*model.safetensors")))


def log(folder: Path) -> str:
    return " ".join((folder / "train.log").read_text(encoding="utf-8").split())


@pytest.fixture
def bf16(tmp_path: Path) -> Path:
    model = tiny_model(tmp_path / "bf16")
    tensors = {name: tensor.bfloat16() for name, tensor in weights(model).items()}
    save_file(tensors, model / "model.safetensors", metadata={"format": "pt"})
    change_json(model / "config.json", dtype="bfloat16")
    return model


SAID = "the model is stored in bfloat16 and trained in float32, in which model/ will be saved, at twice the size"


def test_a_bf16_base_that_ends_in_fp32_is_announced_once(bf16: Path, train: Callable[..., Path]) -> None:
    assert log(folder := train(f"model={bf16}")).count(SAID) == 1
    assert {tensor.dtype for tensor in weights(folder / "model").values()} == {torch.float32}
    for number, words in enumerate((["model.save_dtype=fp32"], ["adapter=lora"], ["model.dtype=bf16"])):
        assert SAID not in log(train(f"model={bf16}", *words, name=f"silent-{number}"))


@pytest.mark.parametrize("name", rows({name: name for name in DTYPES}, "bf16"))
@pytest.mark.parametrize("how", [[], ["adapter=lora"], ["adapter=lora", "adapter.merge=true"]], ids=" ".join)
def test_save_dtype_rounds_what_was_trained(how: list[str], name: str, bf16: Path, train: Callable[..., Path]) -> None:
    """The last checkpoint has it as it was trained; a merged model is the sum in the stored dtype, rounded again."""
    folder = train(f"model={bf16}", f"model.save_dtype={name}", *how)
    found, dtype = weights(folder / "model"), DTYPES[name]
    assert {tensor.dtype for tensor in found.values()} == {dtype}
    if "adapter.merge=true" in how:
        expected = weights(train(f"model={bf16}", *how, name="as it is") / "model")
        assert {tensor.dtype for tensor in expected.values()} == {torch.bfloat16}
    else:
        expected = weights(folder / "checkpoints" / "step-000002")
        assert {tensor.dtype for tensor in expected.values()} == {torch.float32}
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[key], expected[key].to(dtype)) for key in expected)
    if how != ["adapter=lora"]:
        saved = json.loads((folder / "model" / "config.json").read_text(encoding="utf-8"))
        assert saved["dtype"] == str(dtype).removeprefix("torch.")
        assert saved["tie_word_embeddings"] is True
    assert main(["verify", str(folder)]) == 0


def test_what_fp16_cannot_hold_is_no_model(
    tmp_path: Path, train: Callable[..., Path], capfd: pytest.CaptureFixture[str]
) -> None:
    """And the run, which has taken its steps, is resumed with another dtype."""
    model = tiny_model(tmp_path / "large")
    tensors = weights(model)
    tensors[MATRIX][0, 0] = 1e6
    save_file(tensors, model / "model.safetensors", metadata={"format": "pt"})
    folder = train(f"model={model}", "model.save_dtype=fp16", "optimizer.lr=1e-6", code=76)
    assert f"{MATRIX} has numbers that are too large for float16" in capfd.readouterr().err
    assert not (folder / "model").exists()
    assert main(["resume", str(folder), "model.save_dtype=bf16"]) == 0
    assert weights(folder / "model")[MATRIX][0, 0] == torch.tensor(1e6).bfloat16()


@pytest.mark.parametrize("how", [[], ["adapter=lora"], ["adapter=lora", "adapter.merge=true"]], ids=" ".join)
def test_a_head_that_config_json_denies(how: list[str], tmp_path: Path, train: Callable[..., Path]) -> None:
    """The logits of what was saved are by the file's own head, also for who takes config.json at its word."""
    model = tiny_model(tmp_path / "head")
    tensors = weights(model)
    torch.manual_seed(1)
    tensors["lm_head.weight"] = torch.randn_like(tensors["model.embed_tokens.weight"]) * 0.02
    save_file(tensors, model / "model.safetensors", metadata={"format": "pt"})
    folder = train(f"model={model}", "trainer.save_every=1", *how)
    note = "config.json says that the head is the embeddings (tie_word_embeddings), the weights hold another head"
    assert log(folder).count(note) == 1
    assert main(["verify", str(folder), "--replay", "1"]) == 0
    if how == ["adapter=lora"]:  # whose base is as it was
        return
    saved = json.loads((folder / "model" / "config.json").read_text(encoding="utf-8"))
    assert saved["tie_word_embeddings"] is False
    loaded = AutoModelForCausalLM.from_pretrained(folder / "model")
    head = loaded.lm_head.weight
    if how:  # frozen
        assert torch.equal(head, tensors["lm_head.weight"])
    else:
        trained = weights(folder / "checkpoints" / "step-000002")
        assert torch.equal(head, trained["lm_head.weight"])
        assert torch.equal(loaded.model.embed_tokens.weight, trained["model.embed_tokens.weight"])
        assert 0 < (head - tensors["lm_head.weight"]).abs().max() < 0.03  # two steps of 1e-2


def test_a_head_that_is_stored_though_it_is_the_embeddings(tmp_path: Path, train: Callable[..., Path]) -> None:
    model = tiny_model(tmp_path / "head")
    tensors = weights(model)
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    save_file(tensors, model / "model.safetensors", metadata={"format": "pt"})
    folder = train(f"model={model}")
    assert "tie_word_embeddings" not in log(folder)
    assert "lm_head.weight" not in weights(folder / "model")


def seeing_model(folder: Path) -> Path:
    """A Gemma 3 that sees, with the tokenizer of the tiny model."""
    text: dict[str, Any] = {
        "vocab_size": 270, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1,
        "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 16, "sliding_window": 64,
    }  # fmt: skip
    vision = {
        "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 28,
        "patch_size": 14,
    }  # fmt: skip
    tokens = {"image_token_index": 265, "boi_token_index": 266, "eoi_token_index": 267}
    config = Gemma3Config(text_config=text, vision_config=vision, mm_tokens_per_image=4, **tokens)
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(tiny_model(folder))
    return folder


@pytest.mark.parametrize("targets", ["[all-linear]", pytest.param("[q_proj,k_proj]", marks=pytest.mark.slow)])
def test_lora_on_a_model_that_sees_is_on_its_language_part(
    targets: str, tmp_path: Path, train: Callable[..., Path]
) -> None:
    """Its eyes have a q_proj and a k_proj too."""
    model = seeing_model(tmp_path / "gemma")
    common = (f"model={model}", "adapter=lora", "adapter.rank=2", f"adapter.targets={targets}")
    folder = train(*common, "trainer.save_every=1")
    assert "the adapter is put into the language part only" in log(folder)
    layers = ["self_attn.k_proj", "self_attn.q_proj"]
    if targets == "[all-linear]":
        layers += ["self_attn.v_proj", "self_attn.o_proj", "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"]
    prefix = "base_model.model.model.language_model.layers.0"
    assert weights(folder / "model").keys() == {
        f"{prefix}.{layer}.lora_{part}.weight" for layer in layers for part in "AB"
    }
    assert main(["verify", str(folder), "--replay", "1"]) == 0
    before = weights(model)
    after = weights(train(*common, "adapter.merge=true", name="merged") / "model")
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved == {f"language_model.model.layers.0.{layer}.weight" for layer in layers}
    further = train(f"model={folder}", name="further")
    assert weights(further / "model").keys() == weights(folder / "model").keys()
