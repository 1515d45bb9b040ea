"""Attend over a packed row by torch's FlexAttention, which on a GPU computes only the tiles of scores that are seen.

Each place sees two ranges of places: of its prompt, and of its own segment up to itself. Which tiles are seen, and
which of them whole, follows from the ends of these ranges, so that no [T, T] mask is made.
Shapes: H query heads, G key-value heads, T places of the row, D head size, N tiles of a row.
"""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from orpo_cli.data.pairs import Lengths
from orpo_cli.machine.transfer import sent

TILE = 128
"""The places on each side of a tile."""

_RECOMPILATIONS = 64
"""Most graphs of one function in a process, which may train several models; torch's 8 are enough for two."""

_KERNEL_OPTIONS = {"FORCE_USE_FLEX_ATTENTION": True}
"""Avoids the kernel for decoding, which torch takes for rows of fewer than 128 places and lacks for some shapes."""


@dataclass(frozen=True)
class Ranges:
    """What each place of a packed row sees: places from `first` to before `end`, and from `own` to itself; (T,) int32.

    Args:
        first, end: the range in the prompt that a response sees; empty for places of a prompt.
        own: the beginning of the range in the place's own segment.
    """

    first: Any
    end: Any
    own: Any


@dataclass(frozen=True)
class RowMask:
    """Who sees whom in a packed row, on its device. There is no number in it, since numbers would be compiled in.

    Args:
        ranges: what each place sees.
        tiles: how many tiles, and which, are seen partly and fully, by rows and then by keys, in the order of
            torch's `BlockMask`; (1, 1, N) and (1, 1, N, N) int32.
    """

    ranges: Ranges
    tiles: tuple[Any, ...]

    def of(self, places: int) -> Any:
        """Return the same as a mask of FlexAttention for the T places of the row."""
        from torch.nn.attention.flex_attention import BlockMask

        kind: Any = BlockMask
        return kind((places, places), *self.tiles, BLOCK_SIZE=(TILE, TILE), mask_mod=sees(self.ranges))


def flex_attention(
    query: Tensor, key: Tensor, value: Tensor, mask: RowMask, scaling: float, softcap: float | None
) -> Tensor:
    """Map (1, H, T, D) queries, (1, G, T, D) keys and values to (1, T, H, D)."""
    for tensor in (query, key, value):
        torch._dynamo.maybe_mark_dynamic(tensor, 2)
    mixed: Tensor = compiled()(query, key, value, mask, scaling, softcap)
    return mixed.transpose(1, 2).contiguous()


@functools.cache
def compiled() -> Any:
    """Return `attend`, compiled once for rows of all lengths: with and without a gradient, for one tile and for more.

    It fails where torch cannot compile the whole: what is left would form all scores of a row. `dynamic=True` would
    open the factor and the soft-cap of the scores too, which torch 2.13 cannot compile; so `flex_attention` and
    `row_mask` say which sizes change.
    """
    torch._dynamo.config.recompile_limit = _RECOMPILATIONS
    return torch.compile(attend, fullgraph=True)


def attend(query: Tensor, key: Tensor, value: Tensor, mask: RowMask, scaling: float, softcap: float | None) -> Tensor:
    """Map (1, H, T, D) queries, (1, G, T, D) keys and values to (1, H, T, D)."""
    from torch.nn.attention import flex_attention as of_torch

    function: Any = of_torch.flex_attention
    mixed: Tensor = function(
        query,
        key,
        value,
        score_mod=None if softcap is None else _capped(softcap),
        block_mask=mask.of(query.shape[2]),
        scale=scaling,
        enable_gqa=query.shape[1] != key.shape[1],
        kernel_options=_KERNEL_OPTIONS,
    )
    return mixed


def _capped(softcap: float) -> Callable[..., Tensor]:
    def capped(score: Tensor, _batch: Tensor, _head: Tensor, _q: Tensor, _k: Tensor) -> Tensor:
        limited: Tensor = softcap * torch.tanh(score / softcap)
        return limited

    return capped


def ranges_of(pairs: Sequence[Lengths], window: int | None) -> Ranges:
    """Return the ranges of all places of the packed row of these pairs, as arrays.

    Args:
        window: the distance in positions from which places are not seen.
    """
    sizes = np.asarray(pairs)
    own = (np.cumsum(sizes) - sizes.ravel()).reshape(-1, 3)
    start, chosen = own.T[:2]
    first, end = np.stack((start, start, start), 1), np.stack((start, chosen, chosen), 1)
    skipped = own - end  # places that positions do not count: the other response
    first, end, own, skipped = (np.repeat(of_segment, sizes.ravel()) for of_segment in (first, end, own, skipped))
    if window is not None:
        nearest = np.arange(len(own)) - window + 1
        first, own = np.minimum(np.maximum(first, nearest - skipped), end), np.maximum(own, nearest)
    return Ranges(*(column.astype(np.int32) for column in (first, end, own)))


def seen_in_tiles(ranges: Ranges) -> Any:
    """Return how many places of the keys of each tile its rows see in all, an (N, N) array: rows, then keys."""
    after = np.arange(1, len(ranges.own) + 1)
    return _below(ranges.end) - _below(ranges.first) + _below(after) - _below(ranges.own)


def _below(ends: Any) -> Any:
    """Return for each tile how many of its keys lie below the end of each of its rows, summed over rows; (N, N)."""
    tiles = -(-len(ends) // TILE)
    cells = np.arange(len(ends)) // TILE * (tiles + 1) + ends // TILE
    counts = (np.bincount(cells, number, tiles * (tiles + 1)) for number in (np.ones(len(ends)), ends % TILE))
    rows, rest = (count.astype(np.int64).reshape(tiles, tiles + 1) for count in counts)
    farther = rows.sum(1, keepdims=True) - rows.cumsum(1)  # the rows whose end lies beyond the tile
    return (farther * TILE + rest)[:, :-1]


def row_mask(pairs: Sequence[Lengths], window: int | None, device: torch.device) -> RowMask:
    """Return who sees whom in the packed row of these pairs.

    Args:
        window: as in `ranges_of`.
    """
    ranges = ranges_of(pairs, window)
    seen = seen_in_tiles(ranges)
    whole = seen == TILE * TILE
    partly = (seen > 0) & ~whole
    tiles = [column for chosen in (partly, whole, partly.T, whole.T) for column in _ordered(chosen)]
    facts = [sent(torch.from_numpy(column.astype(np.int32)), device) for column in (*vars(ranges).values(), *tiles)]
    for tensor in facts:
        torch._dynamo.maybe_mark_dynamic(tensor, [axis for axis, size in enumerate(tensor.shape) if size > 1])
    return RowMask(Ranges(*facts[:3]), tuple(facts[3:]))


def _ordered(chosen: Any) -> tuple[Any, Any]:
    """Return the number of chosen tiles of each row, (1, 1, N), and their places before those of the others."""
    return chosen.sum(-1)[None, None], np.argsort(~chosen, -1, kind="stable")[None, None]


def sees(ranges: Ranges) -> Any:
    """Return FlexAttention's rule of whether place q sees place k."""
    first, end, own = ranges.first, ranges.end, ranges.own

    def mask(_batch: Tensor, _head: Tensor, q: Tensor, k: Tensor) -> Tensor:
        seen: Tensor = ((k >= first[q]) & (k < end[q])) | ((k >= own[q]) & (k <= q))
        return seen

    return mask
