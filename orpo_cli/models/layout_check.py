"""Check before any step that a model computes a packed row as it computes padded ones, and sees no later token.

The check runs on a small copy of the architecture: few layers, one of each kind, random weights, a vocabulary of a few
tokens, in fp32, where rounding is far below the error of a wrong attention. In bf16 that error may drown.
"""

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from orpo_cli.data.collation import LAYOUTS, Batch, padded
from orpo_cli.data.pairs import TokenizedPair
from orpo_cli.models.scorer import Scorer
from orpo_cli.quoting import first_line

TOLERANCE = 1e-4
"""Nats. Rounding is about 1e-6 on such a copy; ALiBi, whose positions a packed row moves, is off by 7e-3."""

_TRIED_TOKENS = 32
"""The most tokens of a prompt, and of each of its responses, that are tried where the length does not matter."""

_VOCABULARY = 128
_SEED = 0


@torch.no_grad()
def packed_layout_problem(model: Any, pairs: Sequence[TokenizedPair]) -> str | None:
    """Return why this model cannot compute packed rows, or None if it is causal and both layouts agree on `pairs`.

    Args:
        model: a transformers model without adapters; only its small copy is run.
        pairs: some pairs, among them the longest: an attention window shows only in a pair that is longer.
    """
    device = next(model.parameters()).device
    small = [TokenizedPair(*([token % _VOCABULARY for token in ids] for ids in vars(pair).values())) for pair in pairs]
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(_SEED)
            scorer = Scorer(small_copy(model).eval().to(device))
        logps = {}
        for layout, collate in LAYOUTS.items():
            batch = collate(small, score_prompts=True).to(device)
            with scorer.at_work(layout):
                logps[layout] = _by_token(scorer(batch), batch)
        if not scorer.is_causal(padded([first_tokens(small[0])], score_prompts=False).to(device)):
            return "its tokens see later ones"
    except Exception as error:
        return f"its attention cannot compute packed rows ({type(error).__name__}: {first_line(error)})"
    difference = float((logps["packed"] - logps["padded"]).abs().max())
    return None if difference <= TOLERANCE else f"a log-probability differs by {difference:.2g} nat"


def first_tokens(pair: TokenizedPair) -> TokenizedPair:
    """Return the beginning of a pair, which is enough to try whether a model computes it."""
    return TokenizedPair(*(ids[:_TRIED_TOKENS] for ids in vars(pair).values()))


def small_copy(model: Any) -> Any:
    """Return a model of the same architecture with fresh weights and only the first layers, of full width."""
    layers = max((module for module in model.modules() if isinstance(module, nn.ModuleList)), key=len)
    depth = len(layers)
    wanted = min(depth, max(2, _first_of_each_kind(layers, model.config.get_text_config())))
    config = copy.deepcopy(model.config)
    text = config.get_text_config()
    for name, value in vars(text).items():
        if isinstance(value, list | tuple) and len(value) == depth:
            setattr(text, name, value[:wanted])
        elif value == depth and "layer" in name and not isinstance(value, bool):
            setattr(text, name, wanted)
    text.vocab_size = _VOCABULARY
    for name in ("pad_token_id", "bos_token_id", "eos_token_id"):
        setattr(text, name, None)
    config._attn_implementation = "sdpa" if type(model)._supports_sdpa else "eager"
    return type(model)._from_config(config, dtype=torch.float32)


def _first_of_each_kind(layers: nn.ModuleList, config: Any) -> int:
    """Return how many of the first layers include one of each kind, by their modules and by the configuration."""
    listed = [value for value in vars(config).values() if isinstance(value, list | tuple) and len(value) == len(layers)]
    kinds = [
        (tuple(type(module) for module in layer.modules()), *(str(value[place]) for value in listed))
        for place, layer in enumerate(layers)
    ]
    return max(kinds.index(kind) for kind in set(kinds)) + 1


def _by_token(logps: Tensor, batch: Batch) -> Tensor:
    """Return log-probabilities in an order that both layouts share: by pair, then role, then place."""
    return logps[torch.argsort(batch.scored.pairs * 3 + batch.scored.roles, stable=True)]
