"""Check the arithmetic of the plan: an epoch sees what it should see, and hardware only changes how a step is cut."""

from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from orpo_cli.data import plan
from orpo_cli.data.collation import packed_cost, padded_cost
from orpo_cli.data.pairs import Lengths
from orpo_cli.data.plan import Epoch

sizes = st.integers(1, 60)
per_step = st.integers(1, 20)
seeds = st.integers(0, 2**63)
lengths = st.lists(
    st.builds(Lengths, st.integers(1, 40), st.integers(1, 40), st.integers(1, 40)), min_size=1, max_size=30
)
mixtures = st.lists(
    st.tuples(st.integers(0, 30), st.sampled_from([0.01, 0.3, 0.5, 1.0, 1.5, 2.0, 3.7])), min_size=1, max_size=4
).filter(lambda parts: any(size for size, _ in parts))
"""(pairs of a part, how often an epoch sees each of them)."""


def mixed(parts: list[tuple[int, float]]) -> Epoch:
    return Epoch.of([size for size, _ in parts], [times for _, times in parts])


@given(sizes, per_step, st.integers(1, 4), seeds)
def test_each_epoch_sees_each_pair_once(pairs: int, size: int, epochs: int, seed: int) -> None:
    total = plan.total_steps(pairs, size, epochs, None)
    steps = list(plan.steps(Epoch.of([pairs]), size, total, seed))
    assert [step.number for step in steps] == list(range(1, total + 1))
    for epoch in range(epochs):
        seen = [pair for step in steps if step.epoch == epoch for pair in step.pairs]
        assert sorted(seen) == list(range(pairs))
    assert all(len(step.pairs) == size for step in steps if step.number % plan.steps_in_epoch(pairs, size))


@given(sizes, per_step, st.integers(1, 40), seeds, st.data())
def test_a_resumed_plan_is_the_rest_of_the_whole_one(
    pairs: int, size: int, total: int, seed: int, data: st.DataObject
) -> None:
    first = data.draw(st.integers(1, total + 1))
    whole = list(plan.steps(Epoch.of([pairs]), size, total, seed))
    assert list(plan.steps(Epoch.of([pairs]), size, total, seed, first)) == whole[first - 1 :]


def test_seed_and_epoch_change_the_order() -> None:
    orders = {
        tuple(pair for step in plan.steps(Epoch.of([50]), 50, 2, seed) if step.epoch == epoch for pair in step.pairs)
        for seed in (0, 1)
        for epoch in (0, 1)
    }
    assert len(orders) == 4


def test_the_order_is_the_one_of_earlier_versions() -> None:
    """The golden is `list(plan.steps(Epoch.of([10]), 4, 3, seed=0))`.

    A checkpoint's data position means nothing under another order.
    """
    assert [step.pairs for step in plan.steps(Epoch.of([10]), 4, 3, seed=0)] == [(4, 6, 2, 7), (3, 5, 9, 0), (8, 1)]


@given(sizes, seeds, st.integers(0, 5))
def test_one_path_is_permuted_by_numpy(pairs: int, seed: int, epoch: int) -> None:
    """It is so for one file, for several, and where the mixture says once."""
    expected = np.random.Generator(np.random.PCG64([seed, epoch])).permutation(pairs).tolist()
    for whole in (Epoch.of([pairs]), Epoch.of([pairs], [1.0]), Epoch.of([pairs // 2, pairs - pairs // 2])):
        assert whole.order(seed, epoch).tolist() == expected


# Mixtures


def test_an_epoch_of_a_mixture_by_hand() -> None:
    """Parts of 3, 4 and 2 pairs are seen twice, half and once: 6 + 2 + 2 pairs, 4 steps of 3."""
    epoch = Epoch.of([3, 4, 2], [2, 0.5, 1])
    assert (epoch.sizes, epoch.counts, epoch.pairs) == ((3, 4, 2), (6, 2, 2), 10)
    assert plan.total_steps(epoch.pairs, 3, epochs=2, max_steps=None) == 8
    for number in range(6):
        seen = Counter(epoch.order(7, number).tolist())
        assert [seen[pair] for pair in range(3)] == [2, 2, 2]
        assert sorted(seen[pair] for pair in range(3, 7)) == [0, 0, 1, 1]
        assert [seen[pair] for pair in range(7, 9)] == [1, 1]


def test_a_half_is_the_other_half_in_the_next_epoch() -> None:
    epoch = Epoch.of([10], [0.5])
    halves = [set(epoch.order(3, number).tolist()) for number in range(4)]
    assert halves[0] | halves[1] == set(range(10))
    assert halves[2:] == halves[:2]


@pytest.mark.parametrize(
    ("sizes", "times", "counts"),
    [
        ([5], None, (5,)),
        ([10, 10], [0.25, 1.5], (2, 15)),  # 2.5 is rounded to the even neighbour
        ([3], [0.1], (1,)),  # a part that is named is seen
        ([0, 4], [2.0, 1.0], (0, 4)),  # but not where nothing of it is left
    ],
)
def test_counts(sizes: list[int], times: list[float] | None, counts: tuple[int, ...]) -> None:
    assert Epoch.of(sizes, times).counts == counts


@given(mixtures, seeds, st.integers(1, 12))
def test_all_pairs_of_a_part_are_seen_equally_often(parts: list[tuple[int, float]], seed: int, epochs: int) -> None:
    """After any number of epochs the counts of two pairs of a part differ by one at most, and add up."""
    whole = mixed(parts)
    seen = Counter(pair for number in range(epochs) for pair in whole.order(seed, number).tolist())
    assert set(seen) <= set(range(sum(whole.sizes)))
    start = 0
    for size, count in zip(whole.sizes, whole.counts, strict=True):
        of_part = [seen[pair] for pair in range(start, start + size)]
        assert sum(of_part) == epochs * count
        assert not of_part or max(of_part) - min(of_part) <= 1
        start += size


@given(mixtures, seeds, st.integers(0, 9))
def test_the_order_is_a_function_of_seed_and_epoch(parts: list[tuple[int, float]], seed: int, epoch: int) -> None:
    assert mixed(parts).order(seed, epoch).tolist() == mixed(parts).order(seed, epoch).tolist()


def test_seed_and_epoch_change_the_order_of_a_mixture() -> None:
    epoch = Epoch.of([20, 20], [2, 0.5])
    orders = {tuple(epoch.order(seed, number).tolist()) for seed in (0, 1) for number in (0, 1)}
    assert len(orders) == 4
    first_halves = {frozenset(pair for pair in epoch.order(seed, 0).tolist() if pair >= 20) for seed in range(5)}
    assert len(first_halves) == 5


@given(mixtures, per_step, st.integers(1, 40), seeds, st.data())
def test_a_resumed_mixture_is_the_rest_of_the_whole_one(
    parts: list[tuple[int, float]], size: int, total: int, seed: int, data: st.DataObject
) -> None:
    first = data.draw(st.integers(1, total + 1))
    whole = list(plan.steps(mixed(parts), size, total, seed))
    assert list(plan.steps(mixed(parts), size, total, seed, first)) == whole[first - 1 :]


def test_steps_take_a_mixture_epoch_by_epoch() -> None:
    epoch = Epoch.of([3, 4], [2, 0.5])
    steps = list(plan.steps(epoch, 3, 6, seed=1))
    assert [(step.number, step.epoch, len(step.pairs)) for step in steps] == [
        (1, 0, 3), (2, 0, 3), (3, 0, 2), (4, 1, 3), (5, 1, 3), (6, 1, 2),
    ]  # fmt: skip
    for number in (0, 1):
        pairs = [pair for step in steps if step.epoch == number for pair in step.pairs]
        assert pairs == epoch.order(1, number).tolist()


# Steps and micro-batches


def test_steps_of_a_run() -> None:
    assert plan.steps_in_epoch(10, 4) == 3
    assert plan.total_steps(10, 4, epochs=2, max_steps=None) == 6
    assert plan.total_steps(10, 4, epochs=2, max_steps=7) == 7


@given(lengths, st.integers(1, 400), st.integers(1, 6))
def test_micro_batches_cover_a_step_exactly_within_the_budget(
    pairs: list[Lengths], budget: int, processes: int
) -> None:
    def cost(indices: Sequence[int]) -> int:
        return padded_cost([pairs[index] for index in indices])

    step = list(range(len(pairs)))
    batches = [plan.micro_batches(step, cost, budget, rank, processes) for rank in range(processes)]
    assert Counter(pair for share in batches for batch in share for pair in batch) == Counter(step)
    assert all(batch and (cost(batch) <= budget or len(batch) == 1) for share in batches for batch in share)
    assert batches == [plan.micro_batches(step[::-1], cost, budget, rank, processes) for rank in range(processes)]


@given(lengths, st.integers(1, 6))
def test_no_process_has_more_to_do_than_another_by_over_one_pair(pairs: list[Lengths], processes: int) -> None:
    def cost(indices: Sequence[int]) -> int:
        return padded_cost([pairs[index] for index in indices])

    shares = [plan.micro_batches(range(len(pairs)), cost, 1, rank, processes) for rank in range(processes)]
    loads = [sum(cost(batch) for batch in share) for share in shares]
    assert max(loads) - min(loads) <= max(cost([index]) for index in range(len(pairs)))


@pytest.mark.parametrize(("budget", "sizes"), [(10**6, [4]), (80, [2, 2]), (79, [1, 1, 2]), (1, [1, 1, 1, 1])])
def test_neighbours_in_length_are_together(budget: int, sizes: list[int]) -> None:
    """The rows have 20, 20, 19 and 10 places: two pairs of 20 take 2 * 2 * 20 = 80 places."""
    widths = [10, 20, 19, 20]

    def cost(indices: Sequence[int]) -> int:
        return padded_cost([Lengths(1, widths[index] - 1, 1) for index in indices])

    batches = plan.micro_batches(range(4), cost, budget)
    assert [pair for batch in batches for pair in batch] == [1, 3, 2, 0]
    assert [len(batch) for batch in batches] == sizes


# Balanced micro-batches


def packed_plan(pairs: Sequence[Lengths], budget: int, rank: int = 0, processes: int = 1) -> list[tuple[int, ...]]:
    return plan.micro_batches(range(len(pairs)), cost_in(pairs), budget, rank, processes, balanced=True)


def cost_in(pairs: Sequence[Lengths]) -> Callable[[Sequence[int]], int]:
    return lambda indices: packed_cost([pairs[index] for index in indices])


def longest_first(loads: Sequence[int], count: int) -> list[list[int]]:
    """Schedule greedily (Graham 1969): the longest left goes to the emptiest of `count` bins."""
    bins: list[list[int]] = [[] for _ in range(count)]
    for load in sorted(loads, reverse=True):
        min(bins, key=sum).append(load)
    return bins


def fewest(loads: Sequence[int], budget: int) -> int:
    """Return the fewest bins that the greedy schedule keeps within the budget, but for a lone pair; else one a pair."""
    for count in range(1, len(loads)):
        if all(len(part) == 1 or sum(part) <= budget for part in longest_first(loads, count)):
            return count
    return len(loads)


@given(lengths, st.integers(1, 400), st.integers(1, 6))
def test_balanced_micro_batches_cover_a_step_exactly_within_the_budget(
    pairs: list[Lengths], budget: int, processes: int
) -> None:
    cost = cost_in(pairs)
    shares = [packed_plan(pairs, budget, rank, processes) for rank in range(processes)]
    assert Counter(pair for share in shares for batch in share for pair in batch) == Counter(range(len(pairs)))
    assert all(batch and (cost(batch) <= budget or len(batch) == 1) for share in shares for batch in share)
    backwards = list(range(len(pairs)))[::-1]
    assert shares == [
        plan.micro_batches(backwards, cost, budget, rank, processes, balanced=True) for rank in range(processes)
    ]


@given(lengths, st.integers(1, 400))
@example([Lengths(1, 1, 1), Lengths(1, 1, 1), Lengths(1, 1, 5)], 6)
def test_balanced_micro_batches_are_few_and_equal(pairs: list[Lengths], budget: int) -> None:
    """They are no more than the greedy schedule needs, no fewer than all tokens take, within one pair of each other.

    A pair over the budget goes alone, so that it takes one micro-batch, not what its tokens would fill.
    """
    cost = cost_in(pairs)
    loads = [cost([index]) for index in range(len(pairs))]
    batches = packed_plan(pairs, budget)
    assert -(-sum(min(load, budget) for load in loads) // budget) <= len(batches)
    if max(loads) <= budget:
        assert len(batches) <= fewest(loads, budget)
    sizes = [cost(batch) for batch in batches]
    assert max(sizes) - min(sizes) <= max(loads)


@given(lengths, st.integers(1, 400), st.integers(1, 6))
def test_balance_shares_pairs_among_processes_as_neighbours_in_length_do(
    pairs: list[Lengths], budget: int, processes: int
) -> None:
    """What is trained where depends on the pairs alone, not on how a process cuts its share."""
    for rank in range(processes):
        plain = plan.micro_batches(range(len(pairs)), cost_in(pairs), budget, rank, processes)
        balanced = packed_plan(pairs, budget, rank, processes)
        assert {pair for batch in balanced for pair in batch} == {pair for batch in plain for pair in batch}


@pytest.mark.parametrize(
    ("budget", "expected"),
    [
        (100, [(2, 1, 0, 3)]),
        (99, [(2, 3), (1, 0)]),
        (60, [(2, 3), (1, 0)]),
        (45, [(2,), (1,), (0, 3)]),
        (1, [(2,), (1,), (0,), (3,)]),
    ],
)
def test_balanced_by_hand(budget: int, expected: list[tuple[int, ...]]) -> None:
    """The pairs have 20, 30, 40 and 10 tokens: two batches take 40, 30 to the other, 20 to the 30, 10 to the 40."""
    pairs = [Lengths(total - 2, 1, 1) for total in (20, 30, 40, 10)]
    assert packed_plan(pairs, budget) == expected


def test_a_pair_over_the_budget_leaves_others_together() -> None:
    """The pair of 100 tokens goes alone, the three of 10 go together."""
    pairs = [Lengths(total - 2, 1, 1) for total in (10, 100, 10, 10)]
    first, *others = packed_plan(pairs, 50)
    assert first == (1,)
    assert len(others) < 3
