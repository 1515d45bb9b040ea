"""Compute one log-probability for each scored token of a batch.

Shapes: R rows of T places, S scored tokens, H hidden size.
"""

import contextlib
import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from orpo_cli.data.collation import Batch
from orpo_cli.models.adapters import base_of
from orpo_cli.models.head import head_of, logps_of, token_logps
from orpo_cli.models.precision import CastWeights
from orpo_cli.models.shared_prefix import SharedPrefix, shared_prefix_attention

T = TypeVar("T")


class Routed(NamedTuple):
    """What a mixture of experts computes of a batch; a tuple, whose tensors torch's FSDP2 finds.

    Args:
        token_logps: the log-probabilities of the scored tokens, (S,) fp32.
        router_logits: the logits of each router, (R*T, experts).
    """

    token_logps: Tensor
    router_logits: tuple[Tensor, ...]


class Scorer(nn.Module):
    """Owns the model, and maps a batch to log-probabilities.

    Args:
        model: a causal language model of transformers, with or without adapters.
        dtype: the dtype in which matrices are multiplied; weights keep theirs.
    """

    def __init__(self, model: nn.Module, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.model = model
        self.whole_logits = False
        self.is_divided = False
        """Whether each process has a slice of the weights, as `orpo_cli.models.sharding` divides them."""
        self.weights = CastWeights(model, dtype)

    @contextlib.contextmanager
    def at_work(self, layout: str) -> Iterator[None]:
        """Wrap forward and backward passes over batches of one layout; gradients are complete when the block ends."""
        packed = layout == "packed"
        with self.weights, shared_prefix_attention(base_of(self.model)) if packed else contextlib.nullcontext():
            yield

    def forward(self, batch: Batch) -> Tensor:
        """Return the log-probabilities of the scored tokens, (S,) fp32."""
        return self._token_logps(self._computed(batch), batch)

    def routed(self, batch: Batch) -> Routed:
        """Return the same of a mixture of experts, with the logits of its routers."""
        computed = self._computed(batch, output_router_logits=True)
        return Routed(self._token_logps(computed, batch), computed.router_logits)

    @torch.no_grad()
    def router_logits(self, batch: Batch) -> tuple[Tensor, ...]:
        """Return the logits of each router alone, (R*T, experts), without a gradient; no head is computed."""
        base = base_of(self.model)
        logits: tuple[Tensor, ...] = base.base_model(**_inputs(batch), output_router_logits=True).router_logits
        return logits

    def _computed(self, batch: Batch, **asked: bool) -> Any:
        base = base_of(self.model)
        return (base if self.whole_logits else base.base_model)(**_inputs(batch), **asked)

    def _token_logps(self, computed: Any, batch: Batch) -> Tensor:
        base, scored = base_of(self.model), batch.scored
        if self.whole_logits:
            return logps_of(computed.logits.flatten(0, 1)[scored.places].float(), scored.ids)
        hidden = computed.last_hidden_state.flatten(0, 1)
        return token_logps(head_of(base), hidden[scored.places], scored.ids, base.config.get_text_config().vocab_size)

    def call(self, function: Callable[..., T], *arguments: Any) -> T:
        """Return `function(model, *arguments)`, computed with the weights of the forward passes."""
        with self.weights:
            return function(self.model, *arguments)

    def gather_again(self) -> None:
        """Forget divided weights that are whole since a pass, as the head is after one without a backward pass."""
        if self.is_divided:
            divided: Any = self
            divided.reshard()

    def is_causal(self, batch: Batch) -> bool:
        """Return whether no place sees a later one.

        Then the first half's logits have no gradient in the second half's embeddings. A mask makes that gradient
        exactly zero in any precision, while a difference of logits would have to be told from rounding.

        Raises:
            ValueError: if the logits are too large to tell.
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
                (gradient,) = torch.autograd.grad(seen.square().sum(), embedded[0])
        finally:
            hook.remove()
        sizes = gradient[0].float().abs().amax(1)
        if not sizes.isfinite().all():
            raise ValueError("its logits, or their gradients, are not finite")
        return bool(sizes[half:].max() <= _NO_GRADIENT * sizes[:half].max())

    @torch.no_grad()
    def check_head(self, batch: Batch) -> float:
        """Compare the chunked head with the model's own logits, and use those from now on if they differ.

        Both are of one forward pass.

        Returns:
            the largest difference of a log-probability, in nats; NaN where one is not finite.
        """
        base, computed = base_of(self.model), list[Any]()
        has_backbone = base.base_model is not base and base.get_output_embeddings() is not None
        hook = base.base_model.register_forward_hook(lambda _module, _inputs, output: computed.append(output))
        self.whole_logits = True
        try:
            expected = self(batch)
        finally:
            hook.remove()
            self.whole_logits = False
        difference = float((self._token_logps(computed[0], batch) - expected).abs().max()) if has_backbone else math.inf
        self.whole_logits = not difference <= HEAD_TOLERANCE[next(self.model.parameters()).dtype]
        return difference


def _inputs(batch: Batch) -> dict[str, Any]:
    """Return the arguments of a forward pass.

    Padded rows need no mask: padding is on the right and the model is causal, so no place sees it.
    """
    inputs: dict[str, Any] = {"input_ids": batch.input_ids, "use_cache": False}
    if batch.shared is not None:
        inputs |= {"position_ids": batch.position_ids, "shared_prefix": SharedPrefix(batch.shared)}
    return inputs


_NO_GRADIENT = 1e-6
"""Gradient in a later embedding, as a share of that in an earlier one, that counts as none: a scan rounds."""

HEAD_TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.1, torch.float16: 0.02}
"""Nats. Both ways multiply the same hidden states by the same matrix; they differ by the rounding of one product."""
