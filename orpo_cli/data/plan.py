"""Plan which pairs belong to which step, process and micro-batch.

The plan is a pure function of lengths, seed and epoch: the pairs of a step are the same for any number of processes and
any memory budget, and every epoch sees every pair once, or as often as `data.mixture` says. Only how a step is cut into
micro-batches depends on the hardware.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Step:
    """Hold one optimizer step: `number` counts from 1; `pairs` are indices, in the order of the epoch's permutation."""

    number: int
    epoch: int
    pairs: tuple[int, ...]


@dataclass(frozen=True)
class Epoch:
    """Count the pairs that one pass over the data sees.

    Args:
        sizes: the number of pairs of each part of the data; their indices follow each other.
        counts: the number of pairs that an epoch sees of each part, which may be fewer than it has, or more.
    """

    sizes: tuple[int, ...]
    counts: tuple[int, ...]

    @classmethod
    def of(cls, sizes: Sequence[int], times: Sequence[float] | None = None) -> "Epoch":
        """Return an epoch that sees each part so many times, or once; 0.5 times is every other pair."""
        times = [1.0] * len(sizes) if times is None else times
        counts = [max(1, round(size * often)) if size else 0 for size, often in zip(sizes, times, strict=True)]
        return cls(tuple(sizes), tuple(counts))

    @property
    def pairs(self) -> int:
        """Return the number of pairs of one epoch."""
        return sum(self.counts)

    def order(self, seed: int, epoch: int) -> Any:
        """Return the indices that one epoch sees, in order; over the epochs all pairs of a part come equally often."""
        seen, start = [], 0
        for part, (size, count) in enumerate(zip(self.sizes, self.counts, strict=True)):
            places = np.arange(epoch * count, (epoch + 1) * count) % max(1, size)
            if count % max(1, size):  # a share: every epoch continues the same shuffled round
                places = np.random.Generator(np.random.PCG64([seed, part, 1])).permutation(size)[places]
            seen.append(start + places)
            start += size
        everything = np.concatenate(seen)
        return everything[np.random.Generator(np.random.PCG64([seed, epoch])).permutation(len(everything))]


def steps_in_epoch(pairs: int, pairs_per_step: int) -> int:
    """Return the number of steps of one epoch; the last may have fewer pairs."""
    return -(-pairs // pairs_per_step)


def total_steps(pairs: int, pairs_per_step: int, epochs: int, max_steps: int | None) -> int:
    """Return the number of steps of the whole run; `max_steps`, where given, replaces `epochs`."""
    return max_steps if max_steps is not None else epochs * steps_in_epoch(pairs, pairs_per_step)


def steps(epoch: Epoch, pairs_per_step: int, total: int, seed: int, first: int = 1) -> Iterator[Step]:
    """Yield the steps `first` to `total`.

    Args:
        seed: the number that, with the number of the epoch, decides the order.
    """
    in_epoch = steps_in_epoch(epoch.pairs, pairs_per_step)
    order = None
    for number in range(first, total + 1):
        passed, place = divmod(number - 1, in_epoch)
        if order is None or place == 0:
            order = epoch.order(seed, passed)
        yield Step(number, passed, tuple(order[place * pairs_per_step : (place + 1) * pairs_per_step].tolist()))


def micro_batches(
    pairs: Sequence[int],
    cost: Callable[[Sequence[int]], int],
    max_tokens: int,
    rank: int = 0,
    world_size: int = 1,
    *,
    balanced: bool = False,
) -> list[tuple[int, ...]]:
    """Return this process's micro-batches of a step; only a lone pair may be over `max_tokens`.

    Longest first, pairs go to the process with the least to do; a process may get none.

    Args:
        pairs: the indices of the step's pairs.
        cost: the number of tokens that a micro-batch of some pairs takes in its layout; grows with each pair.
        max_tokens: the budget of one micro-batch.
        balanced: whether to make as few as fit, of about equal cost, which needs costs that add up pair by pair; else
            neighbours in length come together, so that little is padded.
    """
    by_length = sorted(pairs, key=lambda pair: (-cost([pair]), pair))
    mine = _shares(by_length, cost, world_size)[rank]
    if balanced:
        return _balanced(mine, cost, max_tokens)
    batches: list[list[int]] = []
    for pair in mine:
        if batches and cost([*batches[-1], pair]) <= max_tokens:
            batches[-1].append(pair)
        else:
            batches.append([pair])
    return [tuple(batch) for batch in batches]


def _balanced(by_length: Sequence[int], cost: Callable[[Sequence[int]], int], max_tokens: int) -> list[tuple[int, ...]]:
    fitting = sum(min(cost([pair]), max_tokens) for pair in by_length)
    for count in range(max(1, -(-fitting // max_tokens)), len(by_length)):
        batches = _shares(by_length, cost, count)
        if all(len(batch) == 1 or cost(batch) <= max_tokens for batch in batches):
            return [tuple(batch) for batch in batches]
    return [(pair,) for pair in by_length]


def _shares(by_length: Sequence[int], cost: Callable[[Sequence[int]], int], world_size: int) -> list[list[int]]:
    shares: list[list[int]] = [[] for _ in range(world_size)]
    loads = [0] * world_size
    for pair in by_length:
        least = min(range(world_size), key=lambda rank: (loads[rank], rank))
        shares[least].append(pair)
        loads[least] += cost([pair])
    return shares
