"""Hidden states to log-probabilities, a chunk of tokens at a time; [tokens x vocabulary] never exists whole.

Shapes: S scored tokens, C tokens of a chunk, H hidden size, V vocabulary.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

CHUNK_LOGITS = 1 << 24
"""Logits held at once: 64 MB in fp32."""

KEPT_LOGITS = 1 << 26
"""Probabilities kept for the backward pass of a trained head, 128 MB in bf16; beyond, they are computed again."""

LEAST_CHUNK = 64
"""Tokens of a chunk, however large the vocabulary: a product with fewer rows is as slow as with so many."""


@dataclass(frozen=True)
class Head:
    """How a hidden state becomes logits.

    Args:
        projection: the output embedding, bias included.
        scale: factor on the logits (Cohere multiplies, Granite divides); 1 for most.
        softcap: c in c * tanh(logits / c) (Gemma); None for most.
    """

    projection: nn.Module
    scale: float
    softcap: float | None

    def logits(self, hidden: Tensor) -> Tensor:
        """(C, H) to (C, V), fp32."""
        logits: Tensor = self.projection(hidden).float()
        if self.scale != 1:
            logits = logits * self.scale
        return logits if self.softcap is None else self.softcap * torch.tanh(logits / self.softcap)

    @property
    def is_one_matrix(self) -> bool:
        """Whether the slope of a log-probability is a product with one matrix: a plain layer without a soft-cap."""
        return type(self.projection) is nn.Linear and self.softcap is None


def head_of(model: Any) -> Head:
    """Read the head of a transformers model from its configuration."""
    config = model.config.get_text_config()
    scale = float(getattr(config, "logit_scale", None) or 1.0) / float(getattr(config, "logits_scaling", None) or 1.0)
    return Head(model.get_output_embeddings(), scale, getattr(config, "final_logit_softcapping", None))


def token_logps(head: Head, hidden: Tensor, ids: Tensor, vocabulary: int) -> Tensor:
    """Log-probabilities of `ids`, (S,) fp32, from the hidden states that predict them, (S, H)."""
    size = max(LEAST_CHUNK, CHUNK_LOGITS // vocabulary)
    hidden = hidden.to(next(head.projection.parameters()).dtype)  # a model may keep its residual stream in fp32
    if torch.is_grad_enabled() and head.is_one_matrix:
        projection: Any = head.projection
        logps: Tensor = _TokenLogps.apply(  # type: ignore[no-untyped-call]
            hidden, ids, projection.weight, projection.bias, head.scale, size
        )
        return logps
    parts = zip(torch.split(hidden, size), torch.split(ids, size), strict=True)
    if not torch.is_grad_enabled():
        return torch.cat([_exponentials(head.logits(states), tokens)[0] for states, tokens in parts])
    return torch.cat([checkpoint(_chunk_logps, head, *part, use_reentrant=False) for part in parts])


def logps_of(logits: Tensor, ids: Tensor) -> Tensor:
    """(C, V) fp32 logits and (C,) ids to (C,) log-probabilities."""
    highest = logits.detach().amax(1, keepdim=True)
    total = (logits - highest).exp().sum(1, keepdim=True)
    return (logits.gather(1, ids.unsqueeze(1)) - highest - total.log()).squeeze(1)


def _chunk_logps(head: Head, hidden: Tensor, ids: Tensor) -> Tensor:
    return logps_of(head.logits(hidden), ids)


class _TokenLogps(torch.autograd.Function):
    """The slope of log p(id) in the logits is onehot(id) - p, so in the hidden state it is (onehot(id) - p) W.

    A frozen head needs nothing else, and that product is taken in the forward pass, while the probabilities are there.
    A trained head keeps p of the first tokens, as many as KEPT_LOGITS allows, and computes the rest again.
    """

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, ids: Tensor, weight: Tensor, bias: Tensor | None, scale: float, size: int
    ) -> Tensor:
        """(S, H), (S,), (V, H), (V,) or None to (S,) fp32."""
        ctx.frozen, ctx.scale, ctx.size = not (ctx.needs_input_grad[2] or ctx.needs_input_grad[3]), scale, size
        rows = len(hidden) if ctx.frozen else min(len(hidden), KEPT_LOGITS // len(weight) // size * size)
        kept = hidden.new_empty(rows, hidden.shape[1] if ctx.frozen else len(weight))
        logps = []
        for start in range(0, len(hidden), size):
            chunk = slice(start, start + size)
            chunk_logps, minus_slope = _with_slope(hidden[chunk], ids[chunk], weight, bias, scale)
            logps.append(chunk_logps)
            if ctx.frozen:
                kept[chunk] = minus_slope.to(hidden.dtype) @ weight
            elif start < rows:
                kept[chunk] = minus_slope
        ctx.save_for_backward(hidden, ids, weight, bias, kept)
        return torch.cat(logps)

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> tuple[Any, ...]:
        """(S,) to the slopes of the hidden states, the weight and the bias; parts of the latter add up in fp32."""
        hidden, ids, weight, bias, kept = ctx.saved_tensors
        minus = (-ctx.scale * slope).unsqueeze(1).to(hidden.dtype)
        if ctx.frozen:
            return kept * minus, None, None, None, None, None
        by_hidden, by_weight, by_bias = torch.empty_like(hidden), _Sum(weight.dtype), _Sum(weight.dtype)
        parts = [slice(0, len(kept))] if len(kept) else []
        parts += [slice(start, start + ctx.size) for start in range(len(kept), len(hidden), ctx.size)]
        for part in parts:
            minus_slope = (
                kept
                if part.start < len(kept)
                else _with_slope(hidden[part], ids[part], weight, bias, ctx.scale)[1].to(hidden.dtype)
            )
            by_hidden[part] = (minus_slope @ weight).mul_(minus[part])
            by_weight.add(minus_slope.t() @ (hidden[part] * minus[part]))
            if bias is not None:
                by_bias.add(minus_slope.t() @ minus[part].squeeze(1))
        return by_hidden, None, by_weight.total(), by_bias.total(), None, None


class _Sum:
    """Adds tensors up in fp32; one alone is left as it is."""

    def __init__(self, dtype: torch.dtype) -> None:
        self._dtype = dtype
        self._parts: Tensor | None = None

    def add(self, part: Tensor) -> None:
        self._parts = part if self._parts is None else self._parts.float().add_(part)

    def total(self) -> Tensor | None:
        return None if self._parts is None else self._parts.to(self._dtype)


def _with_slope(
    hidden: Tensor, ids: Tensor, weight: Tensor, bias: Tensor | None, scale: float
) -> tuple[Tensor, Tensor]:
    """(C,) log-probabilities and p - onehot(id), (C, V), both fp32."""
    logits = nn.functional.linear(hidden, weight, bias).float()
    if scale != 1:
        logits *= scale
    logps, total = _exponentials(logits, ids)
    minus_slope = logits.div_(total)
    minus_slope.scatter_add_(1, ids.unsqueeze(1), torch.full_like(total, -1.0))
    return logps, minus_slope


def _exponentials(logits: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
    """Turn (C, V) logits into e^(logit - highest), in place. Returns (C,) log-probabilities and the (C, 1) sums."""
    own = logits.gather(1, ids.unsqueeze(1))
    highest = logits.amax(1, keepdim=True)
    total = logits.sub_(highest).exp_().sum(1, keepdim=True)
    return (own - highest - total.log()).squeeze(1), total
