"""Scored pairs made for tests."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from orpo_cli.statistics.scored_pairs import ScoredPairs


def made_pairs(
    wins: Sequence[bool] | np.ndarray,
    prompt: Sequence[int] | np.ndarray | None = None,
    more_tokens: Sequence[int] | np.ndarray | int = 0,
    **columns: Any,
) -> ScoredPairs:
    """Return pairs that are won or lost as said: -1 or -3 nats a chosen token, -2 a rejected one.

    Args:
        prompt: the number of each pair's prompt; each has its own by default.
        more_tokens: the tokens of chosen above the 100 of rejected.
        columns: columns to have other values.
    """
    count = len(wins)
    rejected = np.full(count, 100)
    chosen = rejected + more_tokens
    made: dict[str, Any] = {
        "chosen_logp": np.where(wins, -1.0, -3.0) * chosen,
        "rejected_logp": -2.0 * rejected,
        "chosen_tokens": chosen,
        "rejected_tokens": rejected,
        "chosen_characters": 4 * chosen,
        "rejected_characters": 4 * rejected,
        "prompt": np.arange(count) if prompt is None else np.asarray(prompt),
        "turns": np.ones(count, int),
        "source": np.full(count, "made"),
        "weight": np.ones(count),
    }
    return ScoredPairs(**{name: np.asarray(column) for name, column in (made | columns).items()})


def prompts_of(pairs: int, most: int, seed: int = 1) -> np.ndarray:
    """Return the number of each pair's prompt: 1 to `most` pairs a prompt where `most` is 4, else always `most`."""
    sizes = np.random.default_rng(seed).integers(1, 5, size=pairs) if most == 4 else np.full(pairs, most)
    return np.repeat(np.arange(pairs), sizes)[:pairs]
