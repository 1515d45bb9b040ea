"""Lay pairs out as tensors. A batch says where each scored token's prediction lies, so that nobody needs a mask.

Shapes: B pairs, R rows of T places, S scored tokens.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from orpo_cli.data.pairs import Lengths, TokenizedPair
from orpo_cli.machine.transfer import sent

PAD, PROMPT, CHOSEN, REJECTED = -1, 0, 1, 2
"""The segments of places and, without PAD, the roles of scored tokens."""


@dataclass(frozen=True)
class ScoredTokens:
    """Hold the tokens whose log-probability is needed, as four (S,) int64 tensors.

    Args:
        places: the flat index in R*T of the hidden state that predicts the token.
        ids: the token.
        roles: PROMPT, CHOSEN or REJECTED.
        pairs: the pair of the token, 0 to B - 1.
    """

    places: Tensor
    ids: Tensor
    roles: Tensor
    pairs: Tensor


@dataclass(frozen=True)
class Batch:
    """Hold one micro-batch.

    Args:
        input_ids: (R, T) int64; padding holds the last real id of its row.
        position_ids: (R, T) int64; a response continues the prompt's positions.
        segments: (R, T) int64: PAD, PROMPT, CHOSEN or REJECTED.
        scored: the tokens to score.
        pair_count: B.
        shared: the lengths of the pairs in their order in the one row, where a prompt stands once for both responses;
            None where each response is a row of its own.
    """

    input_ids: Tensor
    position_ids: Tensor
    segments: Tensor
    scored: ScoredTokens
    pair_count: int
    shared: tuple[Lengths, ...] | None = None

    def to(self, device: torch.device) -> "Batch":
        """Return the same batch on another device."""
        scored = ScoredTokens(*(sent(tensor, device) for tensor in vars(self.scored).values()))
        rows = [sent(tensor, device) for tensor in (self.input_ids, self.position_ids, self.segments)]
        return Batch(rows[0], rows[1], rows[2], scored, self.pair_count, self.shared)

    def pair_of_place(self) -> Tensor:
        """Return the number of the pair at each place of the one row, (T,), on the device of the batch."""
        sizes = [sum(lengths) for lengths in self.shared or ()]
        return sent(_tensor(np.arange(len(sizes)).repeat(sizes)), self.input_ids.device)


def packed_cost(lengths: Sequence[Lengths]) -> int:
    """Return the number of places that a packed row of these pairs takes: each of their tokens once."""
    return sum(map(sum, lengths))


def packed(pairs: Sequence[TokenizedPair], score_prompts: bool) -> Batch:
    """Lay pairs out as one row of `prompt | chosen | rejected`, without padding; both responses continue the prompt.

    Args:
        score_prompts: whether the prompt's tokens are scored too; its first token never is, since nothing predicts it.
    """
    lengths = tuple(pair.lengths for pair in pairs)
    input_ids = np.concatenate([ids for pair in pairs for ids in (pair.prompt_ids, pair.chosen_ids, pair.rejected_ids)])
    position_ids, scored, start = [], [], 0
    for number, (prompt, chosen, rejected) in enumerate(lengths):
        position_ids += [np.arange(prompt + chosen), np.arange(prompt, prompt + rejected)]
        last = start + prompt - 1
        if score_prompts:
            scored.append(_scored(start, start + 1, prompt - 1, PROMPT, number))
        scored.append(_scored(last, last + 1, chosen, CHOSEN, number))
        scored.append(_scored(last, last + 1 + chosen, rejected, REJECTED, number))
        start += prompt + chosen + rejected
    segments = np.repeat([PROMPT, CHOSEN, REJECTED] * len(pairs), np.ravel(lengths))
    tokens = _scored_tokens(input_ids, scored)
    rows = [_tensor(row[None]) for row in (input_ids, np.concatenate(position_ids), segments)]
    return Batch(rows[0], rows[1], rows[2], tokens, len(pairs), lengths)


def padded_cost(lengths: Sequence[Lengths]) -> int:
    """Return the number of places that a padded batch of these pairs takes, padding included: 2 B T."""
    width = max(pair.prompt + max(pair.chosen, pair.rejected) for pair in lengths)
    return 2 * len(lengths) * width


def padded(pairs: Sequence[TokenizedPair], score_prompts: bool) -> Batch:
    """Lay pairs out as textbooks do: B rows of prompt + chosen, then B of prompt + rejected, padded on the right.

    Args:
        score_prompts: as in `packed`; they are scored in the chosen rows.
    """
    lengths = [pair.lengths for pair in pairs]
    width = padded_cost(lengths) // (2 * len(pairs))
    input_ids = np.empty((2 * len(pairs), width), np.int64)
    segments = np.full((2 * len(pairs), width), PAD)
    scored = []
    for row in range(2 * len(pairs)):
        number, role = row % len(pairs), CHOSEN if row < len(pairs) else REJECTED
        pair, prompt, response = pairs[number], lengths[number].prompt, lengths[number][role]
        ids = pair.prompt_ids + (pair.chosen_ids if role == CHOSEN else pair.rejected_ids)
        input_ids[row, : len(ids)] = ids
        input_ids[row, len(ids) :] = ids[-1]
        segments[row, :prompt] = PROMPT
        segments[row, prompt : len(ids)] = role
        start = row * width
        if score_prompts and role == CHOSEN:
            scored.append(_scored(start, start + 1, prompt - 1, PROMPT, number))
        scored.append(_scored(start + prompt - 1, start + prompt, response, role, number))
    position_ids = np.broadcast_to(np.arange(width), input_ids.shape).copy()
    tokens = _scored_tokens(input_ids.ravel(), scored)
    return Batch(_tensor(input_ids), _tensor(position_ids), _tensor(segments), tokens, len(pairs))


LAYOUTS: dict[str, Any] = {"packed": packed, "padded": padded}
COSTS: dict[str, Any] = {"packed": packed_cost, "padded": padded_cost}


def _scored(before: int, first: int, count: int, role: int, pair: int) -> Any:
    """Return (place that predicts, place of the token, role, pair) of `count` tokens from `first` on, as columns.

    The first is predicted at `before`, each other one by its neighbour.
    """
    tokens = np.arange(first, first + count)
    places = tokens - 1
    places[:1] = before
    return np.stack((places, tokens, np.full(count, role), np.full(count, pair)))


def _scored_tokens(flat_ids: Any, scored: Sequence[Any]) -> ScoredTokens:
    places, tokens, roles, pairs = np.concatenate(scored, axis=1)
    return ScoredTokens(*map(_tensor, (places, flat_ids[tokens], roles, pairs)))


def _tensor(values: Any) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(values, np.int64))
