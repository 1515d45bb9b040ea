"""Pairs to tensors: values are worked out by hand, and a token is scored by the place before it."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from orpo_cli.data.collation import CHOSEN, PAD, PROMPT, REJECTED, Batch, padded, padded_cost
from orpo_cli.data.pairs import Lengths, TokenizedPair

TWO = [TokenizedPair([1, 2], [3, 4, 5], [6]), TokenizedPair([7], [8, 9], [10, 11])]


def scored(batch: Batch) -> list[tuple[int, ...]]:
    """(place, id, role, pair) of each scored token, in a fixed order."""
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
