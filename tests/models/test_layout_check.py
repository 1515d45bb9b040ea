"""Which models may share a prompt between two responses: those whose attention can, and no other."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from architectures import ARCHITECTURES, WINDOW, build, config_of, pairs_of
from torch import nn
from transformers import LlamaForCausalLM, MistralForCausalLM
from transformers.models.mistral.modeling_mistral import MistralAttention

from orpo_cli.cli.main import main
from orpo_cli.models.builtin import byte_tokenizer
from orpo_cli.models.layout_check import packed_layout_problem, small_copy

PAIRS = pairs_of([(3, 2, 4), (14, 12, 9)])
"""The shortest and the longest of a run."""

SIZES: dict[str, Any] = {"vocab_size": 61, "bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
WIDE: dict[str, Any] = SIZES | {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
}
_STATES: dict[str, Any] = SIZES | {"hidden_size": 32, "num_hidden_layers": 2, "state_size": 8}
_LINEAR: dict[str, Any] = {
    "linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 8, "linear_value_head_dim": 8,
    "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "shared_expert_intermediate_size": 16,
    "layer_types": ["linear_attention", "full_attention"],
}  # fmt: skip
OTHERS: dict[str, tuple[str, dict[str, Any]]] = {
    "mamba, states": ("Mamba", _STATES),
    "mamba2, states": ("Mamba2", _STATES | {"num_heads": 8, "head_dim": 8, "n_groups": 1, "chunk_size": 8}),
    "qwen3-next, linear attention": ("Qwen3Next", WIDE | _LINEAR),
    "bloom, alibi": ("Bloom", SIZES | {"hidden_size": 32, "n_layer": 2, "n_head": 4}),
    "mpt, alibi": ("Mpt", SIZES | {"d_model": 32, "n_layers": 2, "n_heads": 4, "max_seq_len": 64}),
    "gpt-neo, local attention": ("GPTNeo", SIZES | {"hidden_size": 32, "num_layers": 2, "num_heads": 4}
                                 | {"attention_types": [[["global", "local"], 1]], "window_size": WINDOW}),
    "gpt-oss, sinks": ("GptOss", WIDE | {"num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": WINDOW}),
}  # fmt: skip


def other(name: str) -> Any:
    family, options = OTHERS[name]
    torch.manual_seed(0)
    config = getattr(transformers, f"{family}Config")(**options)
    return getattr(transformers, f"{family}ForCausalLM")(config).eval()


DAILY = ("llama", "mistral, window", "qwen2, window", "gemma2", "gemma3", "gpt2", "mixtral")
"""One of each kind of attention, of positions and of layers."""


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in DAILY else pytest.mark.slow) for name in ARCHITECTURES]
)
def test_architectures_that_share(name: str) -> None:
    assert packed_layout_problem(build(name), PAIRS) is None


class LooksAhead(LlamaForCausalLM):
    """Adds the last place's hidden state to all; a padded row of a pair that has one response sees it as well."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        ahead = self.model.norm.register_forward_hook(lambda _module, _inputs, hidden: hidden + hidden[:, -1:])
        try:
            return super().forward(*args, **kwargs)
        finally:
            ahead.remove()


def test_a_model_that_sees_later_tokens_shares_nothing() -> None:
    """Its layers, which the scorer runs, compute both layouts alike; its logits, as others will use them, do not."""
    assert packed_layout_problem(LooksAhead(build("llama").config), PAIRS) == "its tokens see later ones"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_dtype_of_the_weights_does_not_matter(dtype: torch.dtype) -> None:
    assert packed_layout_problem(build("llama").to(dtype), PAIRS) is None
    assert packed_layout_problem(other("bloom, alibi").to(dtype), PAIRS) is not None


@pytest.mark.parametrize("name", OTHERS)
def test_architectures_that_do_not(name: str) -> None:
    reason = packed_layout_problem(other(name), PAIRS)
    assert reason is not None
    assert "\n" not in reason


class OwnAttention(MistralAttention):
    """Tells its attention function the window that its masks have."""

    off: int | None = 0

    def forward(self, *args: Any, **options: Any) -> Any:
        window = self.config.sliding_window
        self.config.sliding_window = None if self.off is None else window + self.off
        try:
            return super().forward(*args, **options)
        finally:
            self.config.sliding_window = window


class NarrowAttention(OwnAttention):
    """A window one shorter."""

    off = -1


class BlindAttention(OwnAttention):
    """No window, though its masks have one."""

    off = None


class OwnMistral(MistralForCausalLM):
    """A Mistral with layers of its own."""

    kind: type = OwnAttention

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        for number, layer in enumerate(self.model.layers):
            layer.self_attn = self.kind(config, number)
        self.post_init()


class NarrowMistral(OwnMistral):
    """Wrong by one place."""

    kind = NarrowAttention


class BlindMistral(OwnMistral):
    """Wrong by all that is far."""

    kind = BlindAttention


@pytest.mark.parametrize("kind", [BlindMistral, NarrowMistral])
def test_a_window_that_is_not_told_shows_in_pairs_that_are_longer(kind: type) -> None:
    torch.manual_seed(0)
    model: Any = kind(config_of("mistral, window"))
    assert packed_layout_problem(model, PAIRS) is not None
    short = pairs_of([(1, 1, 1), (2, 2, 2)])
    assert max(len(pair.prompt_ids) + len(pair.chosen_ids) for pair in short) < WINDOW - 1
    assert packed_layout_problem(model, short) is None
    assert packed_layout_problem(OwnMistral(config_of("mistral, window")), PAIRS) is None


class PlacesAsPositions(LlamaForCausalLM):
    """A model that counts its positions itself."""

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.model.register_forward_pre_hook(self._counted, with_kwargs=True)

    @staticmethod
    def _counted(_module: nn.Module, args: Any, options: dict[str, Any]) -> Any:
        return args, options | {"position_ids": None}


def test_a_model_that_ignores_positions() -> None:
    torch.manual_seed(0)
    assert packed_layout_problem(PlacesAsPositions(config_of("llama")), PAIRS) is not None


def test_asking_changes_nothing() -> None:
    """The model, its random numbers and its configuration stay as they are."""
    model = build("mistral, window")
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    config, state = model.config.to_dict(), torch.get_rng_state()
    packed_layout_problem(model, PAIRS)
    assert torch.equal(torch.get_rng_state(), state)
    assert model.config.to_dict() == config
    assert model.config._attn_implementation == "eager"
    assert all(torch.equal(parameter, before[name]) for name, parameter in model.named_parameters())


@pytest.mark.parametrize(
    ("types", "layers"),
    [
        (["full_attention"] * 6, 2),
        (["sliding_attention"] * 5 + ["full_attention"], 6),
        (["sliding_attention", "sliding_attention", "full_attention", "sliding_attention"], 3),
    ],
)
def test_a_small_copy_has_a_layer_of_each_kind(types: list[str], layers: int) -> None:
    config = config_of("gemma3")
    config.num_hidden_layers, config.layer_types = len(types), types
    copied = small_copy(transformers.Gemma3ForCausalLM(config))
    assert len(copied.model.layers) == copied.config.num_hidden_layers == layers
    assert copied.config.layer_types == types[:layers]
    assert copied.get_input_embeddings().num_embeddings == 128
    assert {parameter.dtype for parameter in copied.parameters()} == {torch.float32}
    assert (config.num_hidden_layers, config.vocab_size) == (len(types), 61)


# In a run


@pytest.fixture
def trained(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Callable[[Any, str], tuple[str, str]]:
    """`trained(model, precision)` saves the model and trains it a step; returns train.log and the screen."""

    def run(model: Any, precision: str) -> tuple[str, str]:
        tokenizer = byte_tokenizer()
        model.resize_token_embeddings(len(tokenizer))
        model.save_pretrained(tmp_path / "model")
        tokenizer.save_pretrained(tmp_path / "model")
        rows = [{"prompt": f"word {i}?", "chosen": " moon" * (1 + i % 3), "rejected": " river"} for i in range(6)]
        (tmp_path / "prefs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        choices = [f"model={tmp_path / 'model'}", f"data={tmp_path / 'prefs.jsonl'}", f"output_dir={tmp_path / 'run'}"]
        steps = ["adapter=none", "trainer.max_steps=1", "trainer.sample_tokens=0", f"trainer.precision={precision}"]
        assert main(["train", *choices, *steps]) == 0
        return (tmp_path / "run" / "train.log").read_text(encoding="utf-8"), capsys.readouterr().err

    return run


@pytest.mark.parametrize("precision", ["fp32", pytest.param("bf16", marks=pytest.mark.slow)])
def test_a_run_says_why_it_is_padded(trained: Callable[[Any, str], tuple[str, str]], precision: str) -> None:
    log, screen = trained(other("mamba, states"), precision)
    assert len(re.findall(r"layout padded, since \S.*", log)) == 1
    assert re.search(r"device: .* layout padded, at most", screen)
    assert "step 1/1" in log


@pytest.mark.parametrize("precision", ["fp32", pytest.param("bf16", marks=pytest.mark.slow)])
def test_a_run_of_a_llama_is_packed(trained: Callable[[Any, str], tuple[str, str]], precision: str) -> None:
    log, screen = trained(build("llama"), precision)
    assert "padded" not in log
    assert re.search(r"device: .* layout packed, at most", screen)
