"""A batch to one log-probability for each scored token.

Shapes: R rows of T places, S scored tokens, H hidden size.
"""

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from orpo_cli.data.collation import Batch
from orpo_cli.models.adapters import base_of
from orpo_cli.models.head import head_of, logps_of, token_logps
from orpo_cli.models.precision import Working
from orpo_cli.models.shared_prefix import SharedPrefix, shared_prefix_attention


class Scorer(nn.Module):
    """Owns the model.

    Args:
        model: a causal language model of transformers, with or without adapters.
        dtype: in which matrices are multiplied; weights are not changed by it.
    """

    def __init__(self, model: nn.Module, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.model = model
        self.whole_logits = False
        self.weights = Working(model, dtype)

    @contextlib.contextmanager
    def at_work(self, layout: str) -> Iterator[None]:
        """A block of forward and backward passes over batches of one layout; gradients are complete when it ends."""
        packed = layout == "packed"
        with self.weights, shared_prefix_attention(base_of(self.model)) if packed else contextlib.nullcontext():
            yield

    def forward(self, batch: Batch) -> Tensor:
        """Log-probabilities of the scored tokens, (S,) fp32.

        Padded rows need no mask: padding is on the right and the model is causal, so no place sees it.
        """
        inputs: dict[str, Any] = {"input_ids": batch.input_ids, "use_cache": False}
        if batch.shared is not None:
            inputs |= {"position_ids": batch.position_ids, "shared_prefix": SharedPrefix(batch.shared)}
        base = base_of(self.model)
        if self.whole_logits:
            logits = base(**inputs).logits.flatten(0, 1)
            return logps_of(logits[batch.scored.places].float(), batch.scored.ids)
        hidden = base.base_model(**inputs).last_hidden_state.flatten(0, 1)
        vocabulary = base.config.get_text_config().vocab_size
        return token_logps(head_of(base), hidden[batch.scored.places], batch.scored.ids, vocabulary)

    def is_causal(self, batch: Batch) -> bool:
        """Whether no place sees a later one: the first half's logits have no slope in the second half's embeddings.

        A mask makes that slope zero exactly, in any precision, where a difference of logits would have to be told from
        rounding.

        Raises:
            ValueError: the logits are too large to tell.
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
        if not sizes.isfinite().all():
            raise ValueError("its logits, or their slopes, are not finite")
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
        self.whole_logits = not difference <= HEAD_TOLERANCE[next(self.model.parameters()).dtype]
        return difference


_NO_SLOPE = 1e-6
"""Slope in a later embedding, as a share of that in an earlier one, that counts as none: of a scan that rounds."""

HEAD_TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.1, torch.float16: 0.02}
"""Nats. Both ways multiply the same hidden states by the same matrix; what is left is the rounding of one product."""


def _has_backbone(base: Any) -> bool:
    return base.base_model is not base and base.get_output_embeddings() is not None


def _difference(logps: Tensor, expected: Tensor) -> float:
    return float((logps - expected).abs().max())
