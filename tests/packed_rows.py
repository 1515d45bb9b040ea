"""Packed rows for tests of attention: who sees whom, place by place, and a dense softmax."""

import math
from collections.abc import Sequence

import torch
from hypothesis import strategies as st
from torch import Tensor

from orpo_cli.data.pairs import Lengths

PAIRS = [Lengths(5, 7, 3), Lengths(1, 1, 1), Lengths(9, 2, 6), Lengths(2, 11, 1)]
LONGEST = max(map(sum, PAIRS))
HEADS, GROUPS, SIZE, VALUE_SIZE = 6, 2, 8, 5
WINDOWS = [None, 1, 2, 3, 8, LONGEST - 1, LONGEST, 10**6]
some_pairs = st.lists(st.builds(Lengths, *[st.integers(1, 12)] * 3), min_size=1, max_size=4)


def seen_places(pairs: Sequence[Lengths], window: int | None) -> Tensor:
    """Return who sees whom in the row, (T, T), by walking through it: each response continues its own prompt."""
    places = []
    for number, pair in enumerate(pairs):
        places += [(number, 0, position) for position in range(pair.prompt)]
        places += [(number, 1, pair.prompt + position) for position in range(pair.chosen)]
        places += [(number, 2, pair.prompt + position) for position in range(pair.rejected)]
    numbers, segments, positions = map(torch.tensor, zip(*places, strict=True))
    distance = positions[:, None] - positions
    same_pair, same_segment = numbers[:, None] == numbers, segments[:, None] == segments
    in_reach = (distance >= 0) & (distance < (math.inf if window is None else window))
    return same_pair & (same_segment | (segments == 0)) & in_reach


def dense(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor, scaling: float, softcap: float | None = None
) -> Tensor:
    """Map (1, H, T, D), (1, G, T, D), (1, G, T, E) to (1, T, H, E) with all scores at once."""
    repeats = query.shape[1] // key.shape[1]
    key, value = (tensor.repeat_interleave(repeats, dim=1) for tensor in (key, value))
    scores = torch.einsum("bhqd,bhkd->bhqk", query, key) * scaling
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    weights = torch.softmax(scores.masked_fill(~mask, -math.inf), dim=-1)
    return torch.einsum("bhqk,bhkd->bqhd", weights, value)


def inputs(pairs: Sequence[Lengths], dtype: torch.dtype = torch.float64, value_size: int = VALUE_SIZE) -> list[Tensor]:
    """Return queries, keys and values whose scores are of size 2."""
    generator = torch.Generator().manual_seed(len(pairs))
    shapes = [(HEADS, SIZE), (GROUPS, SIZE), (GROUPS, value_size)]
    places = sum(map(sum, pairs))
    return [
        (1.4 * torch.randn(1, heads, places, size, generator=generator, dtype=torch.float64)).to(dtype).requires_grad_()
        for heads, size in shapes
    ]
