"""Lay pairs out as tensors: values are worked out by hand, and a token is scored by the place before it."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from orpo_cli.data.collation import CHOSEN, PAD, PROMPT, REJECTED, Batch, packed, packed_cost, padded, padded_cost
from orpo_cli.data.pairs import Lengths, TokenizedPair

TWO = [TokenizedPair([1, 2], [3, 4, 5], [6]), TokenizedPair([7], [8, 9], [10, 11])]


def scored(batch: Batch) -> list[tuple[int, ...]]:
    """Return (place, id, role, pair) of each scored token, in a fixed order."""
    return sorted(zip(*(tensor.tolist() for tensor in vars(batch.scored).values()), strict=True))


def test_two_pairs_by_hand() -> None:
    """Four rows of five places; padding repeats the last id of its row and is never scored."""
    batch = padded(TWO, score_prompts=False)
    assert batch.input_ids.tolist() == [[1, 2, 3, 4, 5], [7, 8, 9, 9, 9], [1, 2, 6, 6, 6], [7, 10, 11, 11, 11]]
    assert batch.segments.tolist() == [
        [PROMPT, PROMPT, CHOSEN, CHOSEN, CHOSEN],
        [PROMPT, CHOSEN, CHOSEN, PAD, PAD],
        [PROMPT, PROMPT, REJECTED, PAD, PAD],
        [PROMPT, REJECTED, REJECTED, PAD, PAD],
    ]
    assert batch.position_ids.tolist() == [[0, 1, 2, 3, 4]] * 4
    assert scored(batch) == [
        *[(1, 3, CHOSEN, 0), (2, 4, CHOSEN, 0), (3, 5, CHOSEN, 0)],
        *[(5, 8, CHOSEN, 1), (6, 9, CHOSEN, 1)],
        (11, 6, REJECTED, 0),
        *[(15, 10, REJECTED, 1), (16, 11, REJECTED, 1)],
    ]
    assert batch.pair_count == 2


def test_prompts_are_scored_once_and_never_their_first_token() -> None:
    extra = set(scored(padded(TWO, score_prompts=True))) - set(scored(padded(TWO, score_prompts=False)))
    assert extra == {(0, 2, PROMPT, 0)}


def test_the_cost_counts_padding() -> None:
    assert padded_cost([Lengths(2, 3, 1), Lengths(1, 2, 2)]) == 4 * 5 == padded(TWO, False).input_ids.numel()


ids = st.lists(st.integers(0, 99), min_size=1, max_size=8)
pair_lists = st.lists(st.builds(TokenizedPair, ids, ids, ids), min_size=1, max_size=5)


@given(pair_lists, st.booleans())
def test_scored_tokens_are_the_responses_read_back_from_the_rows(pairs: list[TokenizedPair], prompts: bool) -> None:
    batch = padded(pairs, prompts)
    flat, segments = batch.input_ids.flatten(), batch.segments.flatten()
    for place, token, role, _ in scored(batch):
        assert flat[place + 1] == token
        assert segments[place + 1] == role
        assert segments[place] in (PROMPT, role)
    for index, pair in enumerate(pairs):
        of_pair = [entry for entry in scored(batch) if entry[3] == index]
        for role, response in ((CHOSEN, pair.chosen_ids), (REJECTED, pair.rejected_ids)):
            assert [token for _, token, found, _ in of_pair if found == role] == response
        prompt = pair.prompt_ids[1:] if prompts else []
        assert [token for _, token, found, _ in of_pair if found == PROMPT] == prompt
    lengths = [Lengths(len(pair.prompt_ids), len(pair.chosen_ids), len(pair.rejected_ids)) for pair in pairs]
    assert padded_cost(lengths) == flat.numel()
    assert {tensor.dtype for tensor in (batch.input_ids, batch.segments, *vars(batch.scored).values())} == {torch.int64}


def test_a_batch_moves_with_all_its_tensors() -> None:
    moved = padded(TWO, False).to(torch.device("meta"))
    tensors = [moved.input_ids, moved.position_ids, moved.segments, *vars(moved.scored).values()]
    assert {tensor.device.type for tensor in tensors} == {"meta"}
    assert moved.pair_count == 2


# Packed rows


def test_two_packed_pairs_by_hand() -> None:
    """One row; the first token of a rejected response is predicted by the prompt's last, two responses apart."""
    batch = packed(TWO, score_prompts=False)
    assert batch.input_ids.tolist() == [[1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11]]
    assert batch.position_ids.tolist() == [[0, 1, 2, 3, 4, 2, 0, 1, 2, 1, 2]]
    assert batch.segments.tolist() == [
        [*[PROMPT] * 2, *[CHOSEN] * 3, REJECTED, PROMPT, CHOSEN, CHOSEN, REJECTED, REJECTED]
    ]
    assert scored(batch) == [
        *[(1, 3, CHOSEN, 0), (1, 6, REJECTED, 0), (2, 4, CHOSEN, 0), (3, 5, CHOSEN, 0)],
        *[(6, 8, CHOSEN, 1), (6, 10, REJECTED, 1), (7, 9, CHOSEN, 1), (9, 11, REJECTED, 1)],
    ]
    assert batch.pair_count == 2
    assert batch.shared == (Lengths(2, 3, 1), Lengths(1, 2, 2))


def test_packed_prompts_are_scored_but_never_their_first_token() -> None:
    extra = set(scored(packed(TWO, score_prompts=True))) - set(scored(packed(TWO, score_prompts=False)))
    assert extra == {(0, 2, PROMPT, 0)}


def test_packed_costs_each_token_once() -> None:
    assert packed_cost([Lengths(2, 3, 1), Lengths(1, 2, 2)]) == 6 + 5 == packed(TWO, False).input_ids.numel()


def test_a_padded_batch_shares_nothing() -> None:
    assert padded(TWO, False).shared is None


def test_a_packed_batch_moves_with_its_lengths() -> None:
    batch = packed(TWO, True)
    moved = batch.to(torch.device("meta"))
    tensors = [moved.input_ids, moved.position_ids, moved.segments, *vars(moved.scored).values()]
    assert {tensor.device.type for tensor in tensors} == {"meta"}
    assert (moved.shared, moved.pair_count) == (batch.shared, 2)
    again = batch.to(torch.device("cpu"))
    assert scored(again) == scored(batch)
    assert torch.equal(again.position_ids, batch.position_ids)


@given(pair_lists, st.booleans())
def test_each_scored_token_of_a_packed_row_follows_its_place(pairs: list[TokenizedPair], prompts: bool) -> None:
    """A token lies behind its predictor, or is the response's first, predicted by the prompt's last."""
    batch = packed(pairs, prompts)
    ids, segments, positions = (row[0].tolist() for row in (batch.input_ids, batch.segments, batch.position_ids))
    starts = [0]
    for pair in pairs:
        starts.append(starts[-1] + len(pair.prompt_ids) + len(pair.chosen_ids) + len(pair.rejected_ids))
    assert starts[-1] == len(ids) == packed_cost(batch.shared or ())
    for place, token, role, index in scored(batch):
        of_pair = range(starts[index], starts[index + 1])
        (target,) = (other for other in of_pair if (segments[other], positions[other]) == (role, positions[place] + 1))
        assert ids[target] == token
        assert place in of_pair
        assert segments[place] in (PROMPT, role)


@given(pair_lists, st.booleans())
def test_both_layouts_score_the_same_tokens(pairs: list[TokenizedPair], prompts: bool) -> None:
    """The tokens come by pair and role in the same order, each at a position that both layouts agree on."""
    found = []
    for batch in (packed(pairs, prompts), padded(pairs, prompts)):
        positions = batch.position_ids.flatten()[batch.scored.places].tolist()
        columns = [tensor.tolist() for tensor in (batch.scored.pairs, batch.scored.roles)]
        found.append(sorted(zip(*columns, positions, batch.scored.ids.tolist(), strict=True)))
        assert {tensor.dtype for tensor in (batch.input_ids, *vars(batch.scored).values())} == {torch.int64}
    assert found[0] == found[1]
