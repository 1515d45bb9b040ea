"""Turn hidden states into log-probabilities, a chunk of tokens at a time; [tokens x vocabulary] never exists whole.

Shapes: S scored tokens, C tokens of a chunk, H hidden size, V vocabulary.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

CHUNK_LOGITS = 1 << 24
"""Logits that are held at once on a CPU: 64 MB in fp32."""

GPU_CHUNK_LOGITS = 1 << 27
"""The same on a GPU: 512 MB in fp32."""

KEPT_LOGITS = 1 << 26
"""Probabilities that may be kept for the backward pass of a trained head: 128 MB in bf16."""

LEAST_CHUNK = 64
"""Fewest tokens of a chunk, whatever the vocabulary: a product with fewer rows takes as long as with this many."""

GPU_LEAST_CHUNK = 512
"""The same on a GPU. With 300 rows or fewer it reads the weight for longer than it multiplies, by its data sheet."""

_GPU_ROWS = 128
"""The rows that a GPU computes at once; chunks have a multiple of them, so that no such tile is half empty."""

_BY_AUTOGRAD = 4
"""How many times as much autograd keeps of a logit on its way through a soft-cap, as the gradient by hand does."""


@dataclass(frozen=True)
class Head:
    """How a hidden state becomes logits.

    Args:
        projection: the output embedding, including its bias.
        scale: the factor on the logits (Cohere multiplies, Granite divides); 1 for most models.
        softcap: c in c * tanh(logits / c) (Gemma); None for most models.
    """

    projection: nn.Module
    scale: float
    softcap: float | None

    def logits(self, hidden: Tensor) -> Tensor:
        """Map hidden states (C, H) to logits (C, V), fp32."""
        logits: Tensor = self.projection(hidden).float()
        if self.scale != 1:
            logits = logits * self.scale
        return logits if self.softcap is None else self.softcap * torch.tanh(logits / self.softcap)

    @property
    def is_one_matrix(self) -> bool:
        """Return whether a log-probability has its gradient by one matrix: in a plain layer without soft-cap."""
        return type(self.projection) is nn.Linear and self.softcap is None


def head_of(model: Any) -> Head:
    """Return the head of a transformers model, as its configuration describes it."""
    config = model.config.get_text_config()
    scale = float(getattr(config, "logit_scale", None) or 1.0) / float(getattr(config, "logits_scaling", None) or 1.0)
    return Head(model.get_output_embeddings(), scale, getattr(config, "final_logit_softcapping", None))


def logits_at_once(vocabulary: int, device: torch.device) -> int:
    """Return how many logits a chunk has at most."""
    return max(_chunk_logits(device), (GPU_LEAST_CHUNK if device.type == "cuda" else LEAST_CHUNK) * vocabulary)


def chunk_rows(vocabulary: int, device: torch.device, by_autograd: bool) -> int:
    """Return how many tokens a chunk has."""
    rows = logits_at_once(vocabulary, device) // vocabulary
    if device.type != "cuda":
        return rows
    return rows // (_BY_AUTOGRAD if by_autograd else 1) // _GPU_ROWS * _GPU_ROWS


def _chunk_logits(device: torch.device) -> int:
    return GPU_CHUNK_LOGITS if device.type == "cuda" else CHUNK_LOGITS


def token_logps(head: Head, hidden: Tensor, ids: Tensor, vocabulary: int) -> Tensor:
    """Return the log-probabilities of `ids` (S,), fp32, from the hidden states that predict them (S, H)."""
    with_gradient = torch.is_grad_enabled()
    by_autograd = with_gradient and not head.is_one_matrix
    size = chunk_rows(vocabulary, hidden.device, by_autograd)
    hidden = hidden.to(next(head.projection.parameters()).dtype)  # a model may keep its residual stream in fp32
    if with_gradient and not by_autograd:
        projection: Any = head.projection
        logps: Tensor = _TokenLogps.apply(  # type: ignore[no-untyped-call]
            hidden, ids, projection.weight, projection.bias, head.scale, size
        )
        return logps
    parts = zip(torch.split(hidden, size), torch.split(ids, size), strict=True)
    if not by_autograd:
        return torch.cat([_exponentials(head.logits(states), tokens)[0] for states, tokens in parts])
    return torch.cat([checkpoint(_chunk_logps, head, *part, use_reentrant=False) for part in parts])


def logps_of(logits: Tensor, ids: Tensor) -> Tensor:
    """Return the log-probabilities of (C,) ids from (C, V) fp32 logits."""
    highest = logits.detach().amax(1, keepdim=True)
    total = (logits - highest).exp().sum(1, keepdim=True)
    return (logits.gather(1, ids.unsqueeze(1)) - (highest + total.log())).squeeze(1)


def _chunk_logps(head: Head, hidden: Tensor, ids: Tensor) -> Tensor:
    return logps_of(head.logits(hidden), ids)


class _TokenLogps(torch.autograd.Function):
    """The log-probability of each token, with a gradient that is computed by hand.

    The gradient of log p(id) in the logits is onehot(id) - p, so in the hidden state it is (onehot(id) - p) W. A frozen
    head needs only that, and computes it in the forward pass, while the probabilities are there. A trained head keeps
    the probabilities if KEPT_LOGITS allows. Otherwise they are computed again, for a slice of the vocabulary and all
    tokens at a time, so that each row of the weight's gradient is written once and nothing of its size is added up.
    """

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, ids: Tensor, weight: Tensor, bias: Tensor | None, scale: float, size: int
    ) -> Tensor:
        """Map (S, H) hidden states, (S,) ids, (V, H) weight and (V,) bias to (S,) fp32."""
        ctx.frozen, ctx.scale = not (ctx.needs_input_grad[2] or ctx.needs_input_grad[3]), scale
        keeps = not ctx.frozen and len(hidden) * len(weight) <= KEPT_LOGITS
        kept = hidden.new_empty(
            len(hidden) if ctx.frozen or keeps else 0, hidden.shape[1] if ctx.frozen else len(weight)
        )
        logps, totals = [], []
        for start in range(0, len(hidden), size):
            chunk = slice(start, start + size)
            chunk_logps, chunk_totals, minus_gradient = _with_gradient(hidden[chunk], ids[chunk], weight, bias, scale)
            logps.append(chunk_logps)
            totals.append(chunk_totals)
            if ctx.frozen:
                kept[chunk] = minus_gradient.to(hidden.dtype) @ weight
            elif keeps:
                kept[chunk] = minus_gradient
        ctx.save_for_backward(hidden, ids, weight, bias, kept, torch.cat(totals))
        return torch.cat(logps)

    @staticmethod
    def backward(ctx: Any, by_logps: Tensor) -> tuple[Any, ...]:
        """Map the (S,) gradient of the log-probabilities to those of the hidden states, the weight and the bias."""
        hidden, ids, weight, bias, kept, totals = ctx.saved_tensors
        minus = (-ctx.scale * by_logps).unsqueeze(1).to(hidden.dtype)
        if ctx.frozen:
            return kept * minus, None, None, None, None, None
        width = len(weight) if len(kept) else max(1, _chunk_logits(hidden.device) // len(hidden))
        by_hidden = torch.zeros(hidden.shape, dtype=torch.float32, device=hidden.device)
        by_weight, by_bias = torch.empty_like(weight), None if bias is None else torch.empty_like(bias)
        weighed = hidden * minus
        for start in range(0, len(weight), width):
            part = slice(start, start + width)
            part_bias = None if bias is None else bias[part]
            minus_gradient = (
                kept if len(kept) else _slice_gradient(hidden, ids, totals, weight[part], part_bias, ctx.scale, start)
            )
            by_hidden += minus_gradient @ weight[part]
            torch.mm(minus_gradient.t(), weighed, out=by_weight[part])
            if by_bias is not None:
                by_bias[part] = minus_gradient.t() @ minus.squeeze(1)
        return by_hidden.to(hidden.dtype).mul_(minus), None, by_weight, by_bias, None, None


def _slice_gradient(
    hidden: Tensor, ids: Tensor, totals: Tensor, weight: Tensor, bias: Tensor | None, scale: float, first: int
) -> Tensor:
    """Return p - onehot(id) for all tokens and the slice of the vocabulary that begins at `first`, in hidden's dtype.

    The operations are those of `_with_gradient`: a log-sum-exp would be rounded by the size of the logits.
    """
    logits = _scaled(hidden, weight, bias, scale)
    minus_gradient = logits.sub_(totals[:, :1]).exp_().div_(totals[:, 1:])
    own = (ids - first).unsqueeze(1)
    inside = (own >= 0) & (own < len(weight))
    minus_gradient.scatter_add_(1, own.clamp(0, len(weight) - 1), -inside.to(minus_gradient.dtype))
    return minus_gradient.to(hidden.dtype)


def _scaled(hidden: Tensor, weight: Tensor, bias: Tensor | None, scale: float) -> Tensor:
    """Map (C, H) to logits (C, V), fp32, by a layer and a factor."""
    logits = nn.functional.linear(hidden, weight, bias).float()
    if scale != 1:
        logits *= scale
    return logits


def _with_gradient(
    hidden: Tensor, ids: Tensor, weight: Tensor, bias: Tensor | None, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Return (C,) log-probabilities, (C, 2) highest logits and sums, and (C, V) p - onehot(id), all fp32."""
    logits = _scaled(hidden, weight, bias, scale)
    logps, highest, total = _exponentials(logits, ids)
    minus_gradient = logits.div_(total)
    minus_gradient.scatter_add_(1, ids.unsqueeze(1), torch.full_like(total, -1.0))
    return logps, torch.cat((highest, total), 1), minus_gradient


def _exponentials(logits: Tensor, ids: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Turn (C, V) logits into e^(logit - highest), in place.

    Returns:
        (C,) log-probabilities, (C, 1) highest logits, and the (C, 1) sums.
    """
    own = logits.gather(1, ids.unsqueeze(1))
    highest = logits.amax(1, keepdim=True)
    total = logits.sub_(highest).exp_().sum(1, keepdim=True)
    return (own - (highest + total.log())).squeeze(1), highest, total
