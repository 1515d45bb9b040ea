"""Floating-point operations of steps, ours and TRL's, and the rates at which this machine does them."""

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from orpo_cli.config.schema import RunConfig
from orpo_cli.data.collation import padded_cost
from orpo_cli.data.pairs import Lengths
from orpo_cli.losses import objective
from orpo_cli.models import adapters, head


@dataclass(frozen=True)
class Work:
    """Floating-point operations of forward and backward passes. By `work_of`, what no implementation could do without.

    That is every token once: a prompt shared by two responses counts once, padding and recomputation not at all.

        body       (2 + 2 t + 2) FLOPs for each weight of the layers' matrices and each unique token:
                   2 in the forward pass, 2 for the gradient of the input, 2 for that of a trained weight
                   (t = 1 for a trained weight, 0 for a frozen one: 6 or 4)
        head       the same for each weight of the head and each scored token
        attention  2 D for a query-key product and 2 D for its share of the mix, by head, layer, and pair of places of
                   which one truly sees the other; twice that backward: 3 * 4 * D * heads * layers * seen
        seen       p (p + 1) / 2 for a prompt of p tokens, r (r + 1) / 2 + r p for each response of r

    Under LoRA the gradient of the very first inputs is needed by nobody and counted all the same, 1 % of 4 layers. The
    optimizer, norms, rotations, activations and the softmax are not matrix products and count nothing.
    """

    body: float
    head: float
    attention: float

    @property
    def total(self) -> float:
        """FLOPs."""
        return self.body + self.head + self.attention


def work_of(model: Any, lengths: Sequence[Lengths], config: RunConfig) -> Work:
    """Of steps over pairs of these lengths."""
    base = adapters.base_of(model)
    seen = sum(p * (p + 1) // 2 + sum(r * (r + 1) // 2 + r * p for r in responses) for p, *responses in lengths)
    return Work(
        body=sum(map(_weight_flops, _layers(base))) * sum(map(sum, lengths)),
        head=_weight_flops(base.get_output_embeddings()) * scored_tokens(lengths, config),
        attention=_attention_flops(base) * seen,
    )


def _layers(base: Any) -> list[Any]:
    """The layers' matrices, adapters among them."""
    return [module for module in base.base_model.modules() if isinstance(module, nn.Linear)]


def _weight_flops(layer: Any) -> int:
    """FLOPs of a matrix for one token."""
    return (6 if layer.weight.requires_grad else 4) * int(layer.weight.numel())


def _attention_flops(base: Any) -> int:
    """FLOPs of attention for one pair of places."""
    shape = base.config.get_text_config()
    head_dim = getattr(shape, "head_dim", None) or shape.hidden_size // shape.num_attention_heads
    return 3 * 4 * int(head_dim * shape.num_attention_heads * shape.num_hidden_layers)


def scored_tokens(lengths: Sequence[Lengths], config: RunConfig) -> int:
    """Tokens whose log-probability the loss asks for."""
    return sum(objective.nll_tokens(pair, config.loss) + pair.rejected for pair in lengths)


def trl_work(model: Any, lengths: Sequence[Lengths], pairs: int, checkpointing: bool) -> Work:
    """What TRL's ORPOTrainer does with the same pairs, counted in the same way.

    Each response is a row of its own, the prompt in front, padded to the longest row of its micro-batch. The layers and
    the head see every place of it; attention computes all T x T products of a row, since a mask of padding comes with
    it. Gradient checkpointing computes the layers' forward pass twice (but for the last matrix of each, which counts).

    Args:
        pairs: those of a micro-batch.
    """
    batches = [lengths[start : start + pairs] for start in range(0, len(lengths), pairs)]
    places = list(map(padded_cost, batches))
    widths = [batch_places / (2 * len(batch)) for batch_places, batch in zip(places, batches, strict=True)]
    base = adapters.base_of(model)
    again = 2 * sum(layer.weight.numel() for layer in _layers(base)) if checkpointing else 0
    seen = sum(batch_places * width for batch_places, width in zip(places, widths, strict=True))
    return Work(
        body=(sum(map(_weight_flops, _layers(base))) + again) * sum(places),
        head=_weight_flops(base.get_output_embeddings()) * sum(places),
        attention=_attention_flops(base) * seen * (4 / 3 if checkpointing else 1),
    )


def gemm_rate(dtype: torch.dtype, size: int = 2048, device: str = "cpu") -> float:
    """FLOP/s of the fastest of several products of two square matrices."""
    left, right = (torch.randn(size, size, generator=torch.Generator().manual_seed(side)) for side in (1, 2))
    return 2 * size**3 / _product_seconds(left.to(device, dtype), right.to(device, dtype), times=7)


def _product_seconds(left: Tensor, right: Tensor, times: int) -> float:
    """Seconds of the fastest of several equal products."""
    seconds = []
    for _ in range(times):
        started = time.perf_counter()
        float((left @ right)[0, 0])  # a GPU is waited for
        seconds.append(time.perf_counter() - started)
    return min(seconds)


def product_rate(model: Any, rows: int, scored: int, dtype: torch.dtype, device: str = "cpu") -> float:
    """FLOP/s of the products of one micro-batch, each shape alone: all their FLOPs by the sum of their times.

    The head's products have as many rows as a chunk of it.

    Args:
        rows: places of the micro-batch.
        scored: those whose log-probability is asked for.
    """
    base = adapters.base_of(model)
    output = base.get_output_embeddings()
    chunk = min(scored, max(head.LEAST_CHUNK, head.CHUNK_LOGITS // output.out_features))
    shapes: Counter[tuple[int, int, int, bool]] = Counter()
    for layer in _layers(base):
        shapes[rows, layer.in_features, layer.out_features, layer.weight.requires_grad] += rows
    shapes[chunk, output.in_features, output.out_features, output.weight.requires_grad] += scored
    seconds = flops = 0.0
    for (tall, inside, outside, trained), done in shapes.items():
        seconds += done / tall * _layer_seconds(tall, inside, outside, trained, dtype, device)
        flops += done * (6 if trained else 4) * inside * outside
    return flops / seconds


def _layer_seconds(rows: int, inside: int, outside: int, trained: bool, dtype: torch.dtype, device: str) -> float:
    """Seconds of the products of one layer, forward and backward."""
    states, weight, gradient = (
        torch.randn(*shape).to(device, dtype) for shape in ((rows, inside), (outside, inside), (rows, outside))
    )
    products = [(states, weight.T), (gradient, weight)] + [(gradient.T, states)] * trained
    return sum(_product_seconds(left, right, times=3) for left, right in products)
