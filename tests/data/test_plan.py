"""The plan is arithmetic: every epoch sees every pair once, and hardware only changes how a step is cut."""

from collections import Counter
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orpo_cli.data import plan
from orpo_cli.data.collation import Lengths, padded_cost

sizes = st.integers(1, 60)
per_step = st.integers(1, 20)
seeds = st.integers(0, 2**63)
lengths = st.lists(
    st.builds(Lengths, st.integers(1, 40), st.integers(1, 40), st.integers(1, 40)), min_size=1, max_size=30
)


@given(sizes, per_step, st.integers(1, 4), seeds)
def test_each_epoch_sees_each_pair_once(pairs: int, size: int, epochs: int, seed: int) -> None:
    total = plan.total_steps(pairs, size, epochs, None)
    steps = list(plan.steps(pairs, size, total, seed))
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
    whole = list(plan.steps(pairs, size, total, seed))
    assert list(plan.steps(pairs, size, total, seed, first)) == whole[first - 1 :]


def test_seed_and_epoch_change_the_order() -> None:
    orders = {
        tuple(pair for step in plan.steps(50, 50, 2, seed) if step.epoch == epoch for pair in step.pairs)
        for seed in (0, 1)
        for epoch in (0, 1)
    }
    assert len(orders) == 4


def test_the_order_is_the_one_of_earlier_versions() -> None:
    """Golden: `list(plan.steps(10, 4, 3, seed=0))`; a checkpoint's data position means nothing under another order."""
    assert [step.pairs for step in plan.steps(10, 4, 3, seed=0)] == [(4, 6, 2, 7), (3, 5, 9, 0), (8, 1)]


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
    """Rows of 20, 20, 19 and 10 places: two pairs of 20 take 2 * 2 * 20 = 80 places."""
    widths = [10, 20, 19, 20]

    def cost(indices: Sequence[int]) -> int:
        return padded_cost([Lengths(1, widths[index] - 1, 1) for index in indices])

    batches = plan.micro_batches(range(4), cost, budget)
    assert [pair for batch in batches for pair in batch] == [1, 3, 2, 0]
    assert [len(batch) for batch in batches] == sizes
