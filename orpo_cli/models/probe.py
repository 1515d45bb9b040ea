"""Whether a model computes a packed row as it computes padded ones.

Asked before any step of a small copy of its architecture: few layers, one of each kind, random weights, a vocabulary of
a few tokens, in fp32, where rounding is far below what a wrong attention makes. In bf16 such a difference may drown.
"""

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from orpo_cli.data.collation import LAYOUTS, Batch
from orpo_cli.data.pairs import TokenizedPair
from orpo_cli.models.scorer import Scorer
from orpo_cli.quoting import first_line

TOLERANCE = 1e-4
"""Nats. Rounding is some 1e-6 on such a copy; an ALiBi model, whose positions the packed row moves, is off by 7e-3."""

_VOCABULARY = 128
_SEED = 0


@torch.no_grad()
def shares_prefixes(model: Any, pairs: Sequence[TokenizedPair]) -> str | None:
    """Compare both layouts on `pairs`.

    Args:
        model: of transformers, without adapters; it is not run, only copied in small.
        pairs: among them the longest there is, since a window shows only in a pair that is longer.
    Returns:
        None where they agree, else why a packed row is not for this model.
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
    except Exception as error:
        return f"its attention does not take them ({type(error).__name__}: {first_line(error)})"
    difference = float((logps["packed"] - logps["padded"]).abs().max())
    return None if difference <= TOLERANCE else f"a log-probability differs by {difference:.2g} nat"


def small_copy(model: Any) -> Any:
    """A model of the same architecture with fresh weights: the first layers, up to one of each kind, of full width."""
    layers = _layer_list(model)
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


def _layer_list(model: Any) -> nn.ModuleList:
    """The longest list of modules: the layers."""
    return max((module for module in model.modules() if isinstance(module, nn.ModuleList)), key=len)


def _first_of_each_kind(layers: nn.ModuleList, config: Any) -> int:
    """How many layers from the first on hold one of each kind, by their modules and by what the configuration says."""
    listed = [value for value in vars(config).values() if isinstance(value, list | tuple) and len(value) == len(layers)]
    kinds = [
        (tuple(type(module) for module in layer.modules()), *(str(value[place]) for value in listed))
        for place, layer in enumerate(layers)
    ]
    return max(kinds.index(kind) for kind in set(kinds)) + 1


def _by_token(logps: Tensor, batch: Batch) -> Tensor:
    """Log-probabilities in an order that both layouts share: by pair, then role, then place."""
    return logps[torch.argsort(batch.scored.pairs * 3 + batch.scored.roles, stable=True)]
