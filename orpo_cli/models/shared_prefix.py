"""Attend over a packed row: both responses of a pair see its prompt and themselves, never each other.

A row holds `prompt | chosen | rejected` for one pair after another. Scores are formed a block at a time: some query
rows of one pair against the keys they may see, so that no [T, T] mask or score matrix exists. Registered with
transformers' `AttentionInterface`; a forward pass names its row by the keyword `shared_prefix`.
Shapes: H query heads, G key-value heads, T places of the row, D head size, n query rows, m keys of a block.
"""

import contextlib
import functools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from orpo_cli.data.pairs import Lengths
from orpo_cli.models.flex_attention import RowMask, flex_attention, row_mask

NAME = "orpo_shared_prefix"

BLOCK_ROWS = 256
"""Most query rows of a block: a long causal square is cut into such blocks, each against the keys up to its end."""

LONG_PAIR = 4096
"""Longest pair, in tokens, whose probabilities are kept for the backward pass; they grow with the square of its length.
Computed again for longer ones they are still faster on a CPU than torch's fused kernel, in bf16 twice as fast."""


FLEX_DEVICES = ("cuda", "xpu")
"""Where torch's FlexAttention is taken; on others it has no backward pass."""


@dataclass(frozen=True)
class Block:
    """Some query rows of one pair, and the two ranges of keys that they see. All ranges are places of the packed row.

    Args:
        rows: the first query row and the one after the last.
        shared: the prompt's keys if the rows are of a response; every row sees all of them.
        own: the keys of the rows' own segment, up to the last row; the rows themselves are seen causally.
        skipped: the number of places between prompt and own segment that positions do not count: the other response.
    """

    rows: tuple[int, int]
    shared: tuple[int, int]
    own: tuple[int, int]
    skipped: int


@dataclass(frozen=True)
class SharedPrefix:
    """The layout of one packed row, as its attention needs it.

    Args:
        pairs: the lengths of the pairs, in the order of the row.
        masks: what FlexAttention needs, by window; each is made once for all layers that share it.
    """

    pairs: tuple[Lengths, ...]
    masks: dict[int | None, RowMask] = field(default_factory=dict)

    def mask(self, window: int | None, device: torch.device) -> RowMask:
        """Return who sees whom in layers with this window."""
        if window not in self.masks:
            self.masks[window] = row_mask(self.pairs, window, device)
        return self.masks[window]

    @property
    def longest(self) -> int:
        """Return the number of places of the longest pair; every distance in positions is smaller."""
        return max(map(sum, self.pairs))

    def blocks(self) -> Iterator[Block]:
        """Yield all blocks, pair by pair."""
        start = 0
        for pair in self.pairs:
            yield from blocks_of(pair, start)
            start += sum(pair)


def blocks_of(pair: Lengths, start: int) -> Iterator[Block]:
    """Yield the blocks of the pair that begins at place `start`."""
    chosen, rejected = start + pair.prompt, start + pair.prompt + pair.chosen
    end, nothing, prompt = rejected + pair.rejected, (start, start), (start, chosen)
    for first, after, shared, skipped in (
        (start, chosen, nothing, 0),
        (chosen, rejected, prompt, 0),
        (rejected, end, prompt, pair.chosen),
    ):
        for row in range(first, after, BLOCK_ROWS):
            last = min(row + BLOCK_ROWS, after)
            yield Block((row, last), shared, (first, last), skipped)


@contextlib.contextmanager
def shared_prefix_attention(model: Any) -> Iterator[None]:
    """Let `model` attend over packed rows within a block; a backward pass that recomputes belongs inside."""
    from transformers import AttentionInterface

    # Without a function for its mask none is built; with one, transformers would wait to learn where sequences begin.
    AttentionInterface.register(NAME, attention)
    usual = model.config._attn_implementation
    model.set_attn_implementation(NAME)
    try:
        yield
    finally:
        model.set_attn_implementation(usual)


def attention(
    module: Any,  # noqa: ARG001
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Any,  # noqa: ARG001 - part of the interface; the row itself says who sees whom
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    softcap: float | None = None,
    *,
    shared_prefix: SharedPrefix,
    **others: Any,
) -> tuple[Tensor, None]:
    """Compute the attention of one packed row; this is an attention function of transformers' interface.

    Args:
        query: the queries, (1, H, T, D).
        key, value: the keys and values, (1, G, T, D); H is a multiple of G.
        scaling: the factor on the scores; 1/sqrt(D) by default.
        sliding_window: the distance in positions from which keys are not seen.
        softcap: c in c * tanh(scores / c).
        shared_prefix: the layout of the row.
    Returns:
        the outputs, (1, T, H, D), and no weights.
    """
    if unknown := [name for name in ("s_aux", "position_bias") if others.get(name) is not None]:
        raise NotImplementedError(f"attention with {', '.join(unknown)}")
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    longest = shared_prefix.longest
    window = sliding_window if sliding_window is not None and sliding_window < longest else None
    if query.device.type in FLEX_DEVICES and dropout == 0:
        return flex_attention(query, key, value, shared_prefix.mask(window, query.device), scaling, softcap), None
    blocks = list(shared_prefix.blocks())
    if softcap is not None or dropout > 0:
        return _by_autograd(query[0], key[0], value[0], blocks, scaling, window, softcap, dropout).unsqueeze(0), None
    keeps = longest <= LONG_PAIR
    mixed: Tensor = _Attend.apply(query[0], key[0], value[0], blocks, scaling, window, keeps)  # type: ignore[no-untyped-call]
    return mixed.unsqueeze(0), None


class _Attend(torch.autograd.Function):
    """The attention of all blocks of a row as one node of the graph; probabilities have the dtype of the query."""

    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        blocks: list[Block],
        scaling: float,
        window: int | None,
        keeps: bool,
    ) -> Tensor:
        """Map (H, T, D) queries, (G, T, D) keys and values to (T, H, D).

        Args:
            keeps: whether the probabilities are kept for the backward pass.
        """
        heads = query.shape[0]
        mixed = query.new_empty(query.shape[1], heads, value.shape[-1])
        kept = []
        for block in blocks:
            probabilities = _probabilities(query, key, block, scaling, window)
            first, last = block.rows
            seen = torch.bmm(probabilities, _seen(value, block))
            mixed[first:last] = seen.view(heads, last - first, -1).transpose(0, 1)
            if keeps:
                kept.append(probabilities)
        ctx.save_for_backward(query, key, value, *kept)
        ctx.blocks, ctx.scaling, ctx.window = blocks, scaling, window
        return mixed

    @staticmethod
    def backward(ctx: Any, by_mixed: Tensor) -> tuple[Any, ...]:
        """Map the (T, H, D) gradient to those of query, key and value; shared keys sum theirs in fp32."""
        query, key, value, *kept = ctx.saved_tensors
        groups = key.shape[0]
        by_query = torch.empty_like(query)
        by_key = torch.zeros(key.shape, dtype=torch.float32, device=key.device)
        by_value = torch.zeros(value.shape, dtype=torch.float32, device=value.device)
        by_mixed = by_mixed.transpose(0, 1)
        for place, block in enumerate(ctx.blocks):
            probabilities = kept[place] if kept else _probabilities(query, key, block, ctx.scaling, ctx.window)
            rows, by_rows_mixed = _grouped(query, block, groups), _grouped(by_mixed, block, groups)
            keys, values = _seen(key, block), _seen(value, block)
            _add_seen(by_value, block, torch.bmm(probabilities.transpose(1, 2), by_rows_mixed))
            by_scores = torch._softmax_backward_data(
                torch.bmm(by_rows_mixed, values.transpose(1, 2)), probabilities, -1, probabilities.dtype
            )
            by_rows = torch.bmm(by_scores, keys).mul_(ctx.scaling)
            first, last = block.rows
            by_query[:, first:last] = by_rows.view(query.shape[0], last - first, -1)
            _add_seen(by_key, block, torch.bmm(by_scores.transpose(1, 2), rows).mul_(ctx.scaling))
        return by_query, by_key.to(key.dtype), by_value.to(value.dtype), None, None, None, None


def _probabilities(query: Tensor, key: Tensor, block: Block, scaling: float, window: int | None) -> Tensor:
    """Return how much the rows of a block see of each key, (G, H/G * n, m)."""
    rows, keys = _grouped(query, block, key.shape[0]), _seen(key, block)
    scores = torch.baddbmm(rows.new_empty(1, 1, 1), rows, keys.transpose(1, 2), beta=0, alpha=scaling)
    return torch.softmax(_hide(scores, block, window), -1)


def _by_autograd(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    blocks: Sequence[Block],
    scaling: float,
    window: int | None,
    softcap: float | None,
    dropout: float,
) -> Tensor:
    """Compute the same as `_Attend`, block by block through autograd: for soft-caps and dropout."""
    heads, groups = query.shape[0], key.shape[0]
    mixed = []
    for block in blocks:
        length = block.rows[1] - block.rows[0]
        rows, keys, values = _grouped(query, block, groups), _seen(key, block), _seen(value, block)
        if softcap is None:
            mask = _hide(rows.new_zeros(1, length, keys.shape[1]), block, window)
            outcome = F.scaled_dot_product_attention(
                rows.view(1, heads, length, -1), keys[None], values[None], mask[None], dropout,
                scale=scaling, enable_gqa=heads != groups,
            )[0]  # fmt: skip
        else:
            scores = softcap * torch.tanh((rows @ keys.transpose(1, 2)) * scaling / softcap)
            probabilities = F.dropout(torch.softmax(_hide(scores, block, window), -1), dropout)
            outcome = (probabilities @ values).view(heads, length, -1)
        mixed.append(outcome.transpose(0, 1))
    return torch.cat(mixed)


def _grouped(query: Tensor, block: Block, groups: int) -> Tensor:
    """Map (H, T, D) to the block's rows (G, H/G * n, D); heads that share keys lie one after the other."""
    first, last = block.rows
    return query[:, first:last].reshape(groups, -1, query.shape[-1])


def _seen(keys: Tensor, block: Block) -> Tensor:
    """Map (G, T, D) to the block's keys (G, m, D)."""
    own = keys[:, block.own[0] : block.own[1]]
    if block.shared[0] == block.shared[1]:
        return own
    if block.shared[1] == block.own[0]:
        return keys[:, block.shared[0] : block.own[1]]
    return torch.cat((keys[:, block.shared[0] : block.shared[1]], own), 1)


def _add_seen(total: Tensor, block: Block, part: Tensor) -> None:
    shared = block.shared[1] - block.shared[0]
    if shared:
        total[:, block.shared[0] : block.shared[1]] += part[:, :shared]
    total[:, block.own[0] : block.own[1]] += part[:, shared:]


def _hide(scores: Tensor, block: Block, window: int | None) -> Tensor:
    """Put -inf, in place, where a row may not see a key: a later one of its own, or one outside the window."""
    length = block.rows[1] - block.rows[0]
    by_head = scores.view(-1, length, scores.shape[-1])
    by_head[..., -length:] += _later(scores.dtype, scores.device)[:length, :length]
    if window is not None:
        places = functools.partial(torch.arange, device=scores.device)
        keys = torch.cat((places(*block.shared) + block.skipped, places(*block.own)))
        by_head.masked_fill_(places(*block.rows).unsqueeze(1) - keys >= window, -math.inf)
    return scores


@functools.cache
def _later(dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return -inf where a row of a block would see a later one, else 0."""
    return torch.full((BLOCK_ROWS, BLOCK_ROWS), -math.inf, dtype=dtype, device=device).triu_(1)
