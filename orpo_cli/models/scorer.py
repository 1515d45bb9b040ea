"""A batch to one log-probability for each scored token; [tokens x vocabulary] never exists whole.

Shapes: R rows of T places, S scored tokens, H hidden size, V vocabulary.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from orpo_cli.data.collation import Batch
from orpo_cli.models.adapters import base_of

CHUNK_LOGITS = 1 << 25
"""Logits held at once: 128 MB in fp32."""


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
        """(S, H) to (S, V), fp32."""
        logits: Tensor = self.projection(hidden).float() * self.scale
        return logits if self.softcap is None else self.softcap * torch.tanh(logits / self.softcap)


def head_of(model: Any) -> Head:
    """Read the head of a transformers model from its configuration."""
    config = model.config.get_text_config()
    scale = float(getattr(config, "logit_scale", None) or 1.0) / float(getattr(config, "logits_scaling", None) or 1.0)
    return Head(model.get_output_embeddings(), scale, getattr(config, "final_logit_softcapping", None))


class Scorer(nn.Module):
    """Owns the model.

    Args:
        model: a causal language model of transformers, with or without adapters.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.whole_logits = False

    def forward(self, batch: Batch) -> Tensor:
        """Log-probabilities of the scored tokens, (S,) fp32.

        Rows are padded on the right and the model is causal, so no place sees padding and no mask is needed.
        """
        if self.whole_logits:
            logits = self.model(input_ids=batch.input_ids, use_cache=False).logits.flatten(0, 1)
            return _logps(logits[batch.scored.places].float(), batch.scored.ids)
        base = base_of(self.model)
        hidden = base.base_model(input_ids=batch.input_ids, use_cache=False).last_hidden_state.flatten(0, 1)
        return self._chunked(hidden[batch.scored.places], batch.scored.ids, head_of(base))

    def _chunked(self, hidden: Tensor, ids: Tensor, head: Head) -> Tensor:
        size = max(64, CHUNK_LOGITS // base_of(self.model).config.get_text_config().vocab_size)
        parts = zip(torch.split(hidden, size), torch.split(ids, size), strict=True)
        if not torch.is_grad_enabled():
            return torch.cat([_logps(head.logits(states), tokens) for states, tokens in parts])
        return torch.cat([checkpoint(_scored_chunk, head, *part, use_reentrant=False) for part in parts])

    def is_causal(self, batch: Batch) -> bool:
        """Whether no place sees a later one: the first half's logits have no slope in the second half's embeddings.

        A mask makes that slope zero exactly, in any precision, where a difference of logits would have to be told from
        rounding.
        """
        rows = batch.input_ids[:1]
        half = rows.shape[1] // 2
        base, embedded = base_of(self.model), list[Tensor]()

        def as_leaf(_module: nn.Module, _inputs: Any, output: Tensor) -> Tensor:
            embedded.append(output.detach().requires_grad_())
            return embedded[-1]

        hook = base.get_input_embeddings().register_forward_hook(as_leaf)
        try:
            with torch.enable_grad():
                seen = base(input_ids=rows, use_cache=False).logits[0, :half].float()
                (slope,) = torch.autograd.grad(seen.square().sum(), embedded[0])
        finally:
            hook.remove()
        sizes = slope[0].float().abs().amax(1)
        return bool(sizes[half:].max() <= _NO_SLOPE * sizes[:half].max())

    @torch.no_grad()
    def check_head(self, batch: Batch) -> float:
        """Compare the chunked head with the model's own logits, and use those from now on where they differ.

        Returns:
            the largest difference of a log-probability, in nats.
        """
        self.whole_logits = True
        expected = self(batch)
        self.whole_logits = False
        difference = float("inf") if not _has_backbone(base_of(self.model)) else _difference(self(batch), expected)
        self.whole_logits = not difference <= HEAD_TOLERANCE[_product_dtype(next(self.model.parameters()))]
        return difference


_NO_SLOPE = 1e-6
"""Slope in a later embedding, as a share of that in an earlier one, that counts as none: of a scan that rounds."""

HEAD_TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.1, torch.float16: 0.02}
"""Nats. Both ways multiply the same hidden states by the same matrix; what is left is the rounding of one product."""


def _product_dtype(weight: Tensor) -> torch.dtype:
    """The dtype matrices are multiplied in: autocast's, where it is on."""
    device = weight.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight.dtype


def _has_backbone(base: Any) -> bool:
    return base.base_model is not base and base.get_output_embeddings() is not None


def _difference(logps: Tensor, expected: Tensor) -> float:
    return float((logps - expected).abs().max())


def _scored_chunk(head: Head, hidden: Tensor, ids: Tensor) -> Tensor:
    return _logps(head.logits(hidden), ids)


def _logps(logits: Tensor, ids: Tensor) -> Tensor:
    """(S, V) fp32 logits and (S,) ids to (S,) log-probabilities."""
    return logits.gather(1, ids.unsqueeze(1)).squeeze(1) - logits.logsumexp(1)
