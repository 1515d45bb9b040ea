"""Small random models of the architectures people train, and what a packed step and a padded one make of them."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
import transformers
import yaml
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from orpo_cli.config.adapter import LoraConfig
from orpo_cli.config.keys import builtin_configs
from orpo_cli.config.schema import RunConfig
from orpo_cli.data.collation import LAYOUTS, PROMPT, REJECTED, Batch
from orpo_cli.data.pairs import TokenizedPair
from orpo_cli.losses import objective
from orpo_cli.models.scorer import Scorer

VOCABULARY = 61
WINDOW = 6
"""Attention window of the models that have one: shorter than the pairs of the tests, longer than the distance from a
response's first token to the prompt's last."""

POSITIONS = 1100
_HEAD_SIZE = 8
_SMALL: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": POSITIONS,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
}
_HEAD: dict[str, Any] = {"head_dim": _HEAD_SIZE}
_GEMMA: dict[str, Any] = _HEAD | {"query_pre_attn_scalar": _HEAD_SIZE, "sliding_window": WINDOW}
_EXPERTS: dict[str, Any] = {"moe_intermediate_size": 24, "num_experts": 4, "num_experts_per_tok": 2}
_GPT2: dict[str, Any] = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0, "n_positions": POSITIONS}

_KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", {}),
    "llama like smollm2": ("Llama", {"num_attention_heads": 9, "num_key_value_heads": 3, "hidden_size": 72}
                           | {"intermediate_size": 192, "tie_word_embeddings": True}),
    "mistral, window": ("Mistral", _HEAD | {"sliding_window": WINDOW}),
    "qwen2": ("Qwen2", {}),
    "qwen2, window": ("Qwen2", {"use_sliding_window": True, "sliding_window": WINDOW, "max_window_layers": 1}),
    "qwen3": ("Qwen3", _HEAD),
    "gemma": ("Gemma", _HEAD),
    "gemma2": ("Gemma2", _GEMMA | {"attn_logit_softcapping": 2.0, "final_logit_softcapping": 4.0}),
    "gemma3": ("Gemma3", _GEMMA | {"layer_types": ["sliding_attention", "full_attention"]}),
    "phi": ("Phi", {"num_key_value_heads": 4}),
    "phi3": ("Phi3", {}),
    "smollm3": ("SmolLM3", {"no_rope_layers": [1, 0]}),
    "gpt2": ("GPT2", _GPT2),
    "gpt_neox": ("GPTNeoX", {"hidden_dropout": 0.0, "attention_dropout": 0.0}),
    "mixtral": ("Mixtral", {"num_local_experts": 4, "num_experts_per_tok": 2}),
    "qwen3_moe": ("Qwen3Moe", _HEAD | _EXPERTS),
    "cohere": ("Cohere", {"logit_scale": 0.5}),
    "granite": ("Granite", {"logits_scaling": 2.0, "attention_multiplier": 0.3}),
    "olmo2": ("Olmo2", {}),
    "starcoder2": ("Starcoder2", {"sliding_window": WINDOW, "residual_dropout": 0.0, "embedding_dropout": 0.0}),
}  # fmt: skip
"""For each name the family of transformers, and what its configuration has beside the sizes."""

ARCHITECTURES = list(_KINDS)
_CONFIGS = {"Gemma3": "Gemma3TextConfig"}
_MODELS = {"GPT2": "GPT2LMHeadModel"}


def lora(**values: Any) -> LoraConfig:
    """A small adapter: the values of `adapter=lora` but for those given."""
    written = yaml.safe_load((builtin_configs() / "adapter" / "lora.yaml").read_text(encoding="utf-8"))
    return LoraConfig(**(written | {"rank": 2, "alpha": 4.0} | values))


def config_of(name: str) -> Any:
    """Return the configuration of a small model with eager attention, which honours soft-caps and windows."""
    family, own = _KINDS[name]
    config = getattr(transformers, _CONFIGS.get(family, f"{family}Config"))(**_SMALL | own)
    config._attn_implementation = "eager"
    config._experts_implementation = "eager"  # the grouped product knows no float64
    return config


def build(name: str, seed: int = 0) -> Any:
    """Return a model whose attention is not uniform and whose logits are a few units large."""
    torch.manual_seed(seed)
    family = _KINDS[name][0]
    model = getattr(transformers, _MODELS.get(family, f"{family}ForCausalLM"))(config_of(name))
    return strengthened(model).eval()


@torch.no_grad()
def strengthened(model: Any) -> Any:
    """Return the model with matrices that scale by 1.5 and vectors that differ from their initial 0 or 1."""
    for parameter in model.parameters():
        if parameter.ndim >= 2:
            nn.init.normal_(parameter, std=1.5 / math.sqrt(min(parameter.shape[-2:])))
        else:
            parameter.add_(0.1 * torch.randn_like(parameter))
    model.get_output_embeddings().weight.mul_(2)
    return model


def pairs_of(lengths: Sequence[tuple[int, int, int]], seed: int = 0) -> list[TokenizedPair]:
    """Return random pairs of (prompt, chosen, rejected) tokens."""
    generator = torch.Generator().manual_seed(seed)

    def ids(length: int) -> list[int]:
        return torch.randint(0, VOCABULARY, (length,), generator=generator).tolist()

    return [TokenizedPair(*map(ids, sizes)) for sizes in lengths]


class InDouble(TorchDispatchMode):
    """Gives float64 to whoever asks for fp32 within the block, so that a model of doubles computes in doubles only."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        options = {key: torch.float64 if value is torch.float32 else value for key, value in (kwargs or {}).items()}
        return func(*args, **options)


def by_token(logps: Tensor, batch: Batch) -> Tensor:
    """Return log-probabilities by pair, then role, then place: an order that both layouts share."""
    return logps[torch.argsort(batch.scored.pairs * (REJECTED + 1) + batch.scored.roles, stable=True)]


def loss_with(config: RunConfig) -> Callable[[Tensor, Batch], Tensor]:
    """Return the loss function of the configuration for a step that is one batch."""

    def loss(logps: Tensor, batch: Batch) -> Tensor:
        scores = objective.pair_scores(logps, batch.scored, batch.pair_count)
        tokens = int(scores.chosen_tokens.sum())
        if config.loss.nll == "prompt_and_chosen":
            tokens += int(scores.prompt_tokens.sum())
        step = objective.Denominators(batch.pair_count, tokens)
        return objective.loss(scores, step, config.loss, config.lambda_).loss

    return loss


def uneven(logps: Tensor, batch: Batch) -> Tensor:
    """Return a sum of the log-probabilities in which each has another weight, of either sign."""
    mine = by_token(logps, batch)
    return (torch.linspace(-1, 1, len(mine), dtype=mine.dtype) * mine).sum() + 0.01 * mine.square().sum()


class Computed:
    """Log-probabilities by token, (S,), an objective's value, and its gradient in each trained parameter by name."""

    def __init__(
        self,
        scorer: Scorer,
        layout: str,
        pairs: Sequence[TokenizedPair],
        score_prompts: bool = True,
        objective_of: Callable[[Tensor, Batch], Tensor] = uneven,
    ) -> None:
        scorer.zero_grad(set_to_none=True)
        batch: Batch = LAYOUTS[layout](pairs, score_prompts=score_prompts)
        assert score_prompts or PROMPT not in batch.scored.roles
        with scorer.at_work(layout):
            logps = scorer(batch)
            value = objective_of(logps, batch)
            value.backward()
        self.logps = by_token(logps.detach(), batch)
        self.value = float(value.detach())
        self.gradients = {
            name: parameter.grad.clone()
            for name, parameter in scorer.model.named_parameters()
            if parameter.requires_grad and parameter.grad is not None
        }


def in_double(model: Any) -> Scorer:
    """Return a scorer of the model, turned into doubles, for use within `InDouble`."""
    return Scorer(model.double(), torch.float64)


def difference(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> float:
    """Return the largest difference of an entry, as a share of the largest entry of its parameter."""
    assert set(ours) == set(theirs)
    shares = [float((ours[name] - theirs[name]).abs().max() / theirs[name].abs().max()) for name in theirs]
    return max(shares)
