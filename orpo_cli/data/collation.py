"""Pairs to tensors. A batch says where each scored token's prediction lies; the model and the losses need no mask.

Shapes: B pairs, R rows of T places, S scored tokens.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from orpo_cli.data.pairs import Lengths, TokenizedPair

PAD, PROMPT, CHOSEN, REJECTED = -1, 0, 1, 2
"""Segments of places, and (without PAD) roles of scored tokens."""


@dataclass(frozen=True)
class ScoredTokens:
    """Tokens whose log-probability somebody needs, as four (S,) int64 tensors.

    Args:
        places: flat index in R*T of the hidden state that predicts the token.
        ids: the token.
        roles: PROMPT, CHOSEN or REJECTED.
        pairs: 0 to B - 1.
    """

    places: Tensor
    ids: Tensor
    roles: Tensor
    pairs: Tensor


@dataclass(frozen=True)
class Batch:
    """One micro-batch.

    Args:
        input_ids: (R, T) int64; padding holds the last real id of its row.
        position_ids: (R, T) int64; a response continues the prompt's positions.
        segments: (R, T) int64: PAD, PROMPT, CHOSEN or REJECTED.
        scored: the tokens to score.
        pair_count: B.
    """

    input_ids: Tensor
    position_ids: Tensor
    segments: Tensor
    scored: ScoredTokens
    pair_count: int

    def to(self, device: torch.device) -> "Batch":
        """The same batch on another device."""
        scored = ScoredTokens(*(tensor.to(device) for tensor in vars(self.scored).values()))
        return Batch(
            self.input_ids.to(device), self.position_ids.to(device), self.segments.to(device), scored, self.pair_count
        )


def padded_cost(lengths: Sequence[Lengths]) -> int:
    """Places a padded batch of these pairs takes, padding included: 2 B T."""
    width = max(pair.prompt + max(pair.chosen, pair.rejected) for pair in lengths)
    return 2 * len(lengths) * width


def padded(pairs: Sequence[TokenizedPair], score_prompts: bool) -> Batch:
    """The textbook layout: B rows of prompt + chosen, then B rows of prompt + rejected, padded on the right.

    Args:
        score_prompts: whether the prompt's tokens are scored too, in the chosen rows; its first token never is, since
            nothing predicts it.
    """
    rows = [(pair.prompt_ids, pair.chosen_ids, CHOSEN) for pair in pairs]
    rows += [(pair.prompt_ids, pair.rejected_ids, REJECTED) for pair in pairs]
    width = max(len(prompt) + len(response) for prompt, response, _ in rows)
    input_ids = torch.empty(len(rows), width, dtype=torch.int64)
    segments = torch.full((len(rows), width), PAD, dtype=torch.int64)
    columns: list[list[int]] = [[], [], [], []]
    for row, (prompt, response, role) in enumerate(rows):
        ids = prompt + response
        input_ids[row, : len(ids)] = torch.tensor(ids)
        input_ids[row, len(ids) :] = ids[-1]
        segments[row, : len(prompt)] = PROMPT
        segments[row, len(prompt) : len(ids)] = role
        first = 1 if score_prompts and role == CHOSEN else len(prompt)
        for place in range(first, len(ids)):
            role_here = PROMPT if place < len(prompt) else role
            for column, value in zip(
                columns, (row * width + place - 1, ids[place], role_here, row % len(pairs)), strict=True
            ):
                column.append(value)
    positions = torch.arange(width).expand(len(rows), width)
    return Batch(input_ids, positions, segments, ScoredTokens(*map(torch.tensor, columns)), len(pairs))


LAYOUTS: dict[str, Any] = {"padded": padded}
COSTS: dict[str, Any] = {"padded": padded_cost}
