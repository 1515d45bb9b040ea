"""Attention over a packed row: both responses of a pair see its prompt and themselves, never each other.

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

from orpo_cli.data.collation import CHOSEN, PROMPT, REJECTED
from orpo_cli.data.pairs import Lengths

NAME = "orpo_shared_prefix"

BLOCK_ROWS = 256
"""Query rows of a block: a long causal square is cut into so many rows, each against the keys up to its own end."""

LONG_PAIR = 4096
"""Tokens of a pair from which probabilities are computed again for the backward pass instead of kept: their memory
grows with the square of its length. On a CPU that is faster than torch's fused kernel, in bf16 twice as fast."""


@dataclass(frozen=True)
class Block:
    """Some query rows of one pair, and the two ranges of keys they see.

    Args:
        rows: first query row and the one after the last, as places of the packed row; so are the ranges of keys.
        shared: the prompt's keys, where the rows are of a response; every row sees all of them.
        own: keys of the rows' own segment, up to the last row; the rows themselves are seen causally.
        skipped: places between prompt and own segment, which positions do not count: the other response.
    """

    rows: tuple[int, int]
    shared: tuple[int, int]
    own: tuple[int, int]
    skipped: int


@dataclass(frozen=True)
class SharedPrefix:
    """What the attention of one packed row needs to know.

    Args:
        pairs: lengths of the pairs, in the order in which they lie in the row.
        block_masks: of FlexAttention, by window; each is made once for all layers that share it.
    """

    pairs: tuple[Lengths, ...]
    block_masks: dict[int | None, Any] = field(default_factory=dict)

    @property
    def longest(self) -> int:
        """Places of the longest pair; no distance in positions is as large."""
        return max(map(sum, self.pairs))

    def blocks(self) -> Iterator[Block]:
        """All blocks, pair by pair."""
        start = 0
        for pair in self.pairs:
            yield from blocks_of(pair, start)
            start += sum(pair)


def blocks_of(pair: Lengths, start: int) -> Iterator[Block]:
    """The blocks of the pair that begins at place `start`."""
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


def register() -> None:
    """Make the attention known to transformers under NAME; no mask is ever built for it."""
    from transformers import AttentionInterface, AttentionMaskInterface

    AttentionInterface.register(NAME, attention)
    AttentionMaskInterface.register(NAME, _no_mask)


def _no_mask(*_: Any, **__: Any) -> None:
    return None


@contextlib.contextmanager
def shared_prefix_attention(model: Any) -> Iterator[None]:
    """A block within which `model` attends over packed rows; a backward pass that recomputes belongs inside."""
    usual = model.config._attn_implementation
    register()
    model.set_attn_implementation(NAME)
    try:
        yield
    finally:
        model.set_attn_implementation(usual)


def attention(
    module: Any,
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
    """The attention function of transformers' interface, for one packed row.

    Args:
        query: (1, H, T, D).
        key, value: (1, G, T, D); H is a multiple of G.
        scaling: of the scores; 1/sqrt(D) where not given.
        sliding_window: keys that far back in position, or farther, are not seen.
        softcap: c in c * tanh(scores / c).
        shared_prefix: the row.
    Returns:
        (1, T, H, D), and no weights.
    """
    if unknown := [name for name in ("s_aux", "position_bias") if others.get(name) is not None]:
        raise NotImplementedError(f"attention with {', '.join(unknown)}")
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    longest = shared_prefix.longest
    window = sliding_window if sliding_window is not None and sliding_window < longest else None
    if query.device.type != "cpu" and dropout == 0:
        return flex_attention(module, query, key, value, shared_prefix, scaling, window, softcap), None
    blocks = list(shared_prefix.blocks())
    if softcap is not None or dropout > 0:
        options = _Options(scaling, window, softcap, dropout)
        return _by_autograd(query[0], key[0], value[0], blocks, options).unsqueeze(0), None
    keeps = longest <= LONG_PAIR
    mixed: Tensor = _Attend.apply(query[0], key[0], value[0], blocks, scaling, window, keeps)  # type: ignore[no-untyped-call]
    return mixed.unsqueeze(0), None


_KERNEL_OPTIONS = {"FORCE_USE_FLEX_ATTENTION": True}
"""Not the kernel for decoding, which torch takes for rows of fewer than 128 places: for some shapes it has none."""


def flex_attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    shared_prefix: SharedPrefix,
    scaling: float,
    window: int | None,
    softcap: float | None,
) -> Tensor:
    """The same through FlexAttention, which on CUDA skips the blocks that nobody sees; shapes as in `attention`."""
    from torch.nn.attention.flex_attention import create_block_mask
    from transformers.integrations.flex_attention import flex_attention_forward

    if window not in shared_prefix.block_masks:
        places = query.shape[2]
        rule = sees(*place_facts(shared_prefix.pairs, query.device), window)
        shared_prefix.block_masks[window] = create_block_mask(rule, None, None, places, places, query.device.type)
    mask = shared_prefix.block_masks[window]
    mixed: Tensor = flex_attention_forward(
        module, query, key, value, mask, scaling, softcap, kernel_options=_KERNEL_OPTIONS
    )[0]
    return mixed


def place_facts(pairs: Sequence[Lengths], device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Pair, segment and position of each place of a packed row, (T,) each."""
    sizes = torch.tensor(pairs, device=device).flatten()
    segments = torch.tensor([PROMPT, CHOSEN, REJECTED], device=device).repeat(len(pairs)).repeat_interleave(sizes)
    pair = torch.arange(len(pairs), device=device).repeat_interleave(torch.tensor(list(map(sum, pairs)), device=device))
    starts = [place for prompt, *_ in pairs for place in (0, prompt, prompt)]
    begins = torch.tensor(starts, device=device).repeat_interleave(sizes)
    in_segment = torch.arange(len(pair), device=device) - (sizes.cumsum(0) - sizes).repeat_interleave(sizes)
    return pair, segments, begins + in_segment


def sees(pair: Tensor, segment: Tensor, position: Tensor, window: int | None) -> Any:
    """FlexAttention's rule of who sees whom: place q sees place k; from the facts of each place, (T,)."""

    def mask(_batch: Tensor, _head: Tensor, q: Tensor, k: Tensor) -> Tensor:
        distance = position[q] - position[k]
        seen = (pair[q] == pair[k]) & (distance >= 0) & ((segment[k] == PROMPT) | (segment[k] == segment[q]))
        return seen if window is None else seen & (distance < window)

    return mask


class _Attend(torch.autograd.Function):
    """All blocks of a row as one node of the graph; the probabilities are in the dtype of the query."""

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
        """(H, T, D), (G, T, D), (G, T, D) to (T, H, D); `keeps` the probabilities for the backward pass, or not."""
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
    def backward(ctx: Any, slope: Tensor) -> tuple[Any, ...]:
        """(T, H, D) to the slopes of query, key and value; those of the shared keys add up in fp32."""
        query, key, value, *kept = ctx.saved_tensors
        groups = key.shape[0]
        by_query = torch.empty_like(query)
        by_key = torch.zeros(key.shape, dtype=torch.float32)
        by_value = torch.zeros(value.shape, dtype=torch.float32)
        slope = slope.transpose(0, 1)
        for place, block in enumerate(ctx.blocks):
            probabilities = kept[place] if kept else _probabilities(query, key, block, ctx.scaling, ctx.window)
            rows, row_slopes = _grouped(query, block, groups), _grouped(slope, block, groups)
            keys, values = _seen(key, block), _seen(value, block)
            _add_seen(by_value, block, torch.bmm(probabilities.transpose(1, 2), row_slopes))
            by_scores = torch._softmax_backward_data(
                torch.bmm(row_slopes, values.transpose(1, 2)), probabilities, -1, probabilities.dtype
            )
            by_rows = torch.bmm(by_scores, keys).mul_(ctx.scaling)
            first, last = block.rows
            by_query[:, first:last] = by_rows.view(query.shape[0], last - first, -1)
            _add_seen(by_key, block, torch.bmm(by_scores.transpose(1, 2), rows).mul_(ctx.scaling))
        return by_query, by_key.to(key.dtype), by_value.to(value.dtype), None, None, None, None


def _probabilities(query: Tensor, key: Tensor, block: Block, scaling: float, window: int | None) -> Tensor:
    """What the rows of a block see of its keys, (G, H/G * n, m)."""
    rows, keys = _grouped(query, block, key.shape[0]), _seen(key, block)
    scores = torch.baddbmm(rows.new_empty(1, 1, 1), rows, keys.transpose(1, 2), beta=0, alpha=scaling)
    return torch.softmax(_hide(scores, block, window), -1)


@dataclass(frozen=True)
class _Options:
    scaling: float
    window: int | None
    softcap: float | None
    dropout: float


def _by_autograd(query: Tensor, key: Tensor, value: Tensor, blocks: Sequence[Block], options: _Options) -> Tensor:
    """The same as `_Attend`, block by block through autograd: for soft-caps and dropout."""
    heads, groups = query.shape[0], key.shape[0]
    mixed = []
    for block in blocks:
        length = block.rows[1] - block.rows[0]
        rows, keys, values = _grouped(query, block, groups), _seen(key, block), _seen(value, block)
        if options.softcap is None:
            mask = _hide(rows.new_zeros(1, length, keys.shape[1]), block, options.window)
            outcome = F.scaled_dot_product_attention(
                rows.view(1, heads, length, -1), keys[None], values[None], mask[None], options.dropout,
                scale=options.scaling, enable_gqa=heads != groups,
            )[0]  # fmt: skip
        else:
            scores = options.softcap * torch.tanh((rows @ keys.transpose(1, 2)) * options.scaling / options.softcap)
            probabilities = F.dropout(torch.softmax(_hide(scores, block, options.window), -1), options.dropout)
            outcome = (probabilities @ values).view(heads, length, -1)
        mixed.append(outcome.transpose(0, 1))
    return torch.cat(mixed)


def _grouped(query: Tensor, block: Block, groups: int) -> Tensor:
    """(H, T, D) to the block's rows, those of the heads that share keys one after the other: (G, H/G * n, D)."""
    first, last = block.rows
    return query[:, first:last].reshape(groups, -1, query.shape[-1])


def _seen(keys: Tensor, block: Block) -> Tensor:
    """(G, T, D) to the block's keys, (G, m, D)."""
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
    """Put -inf where a row may not see a key, in place: later keys of its own, and what lies outside the window."""
    length = block.rows[1] - block.rows[0]
    by_head = scores.view(-1, length, scores.shape[-1])
    by_head[..., -length:] += _later(scores.dtype, scores.device)[:length, :length]
    if window is not None:
        keys = torch.cat((torch.arange(*block.shared) + block.skipped, torch.arange(*block.own)))
        too_far = torch.arange(*block.rows).unsqueeze(1) - keys >= window
        by_head.masked_fill_(too_far.to(scores.device), -math.inf)
    return scores


@functools.cache
def _later(dtype: torch.dtype, device: torch.device) -> Tensor:
    """-inf where a row of a block would see a later one, else 0."""
    return torch.full((BLOCK_ROWS, BLOCK_ROWS), -math.inf, dtype=dtype, device=device).triu_(1)
