"""Tell which runs can be ranked beside each other, and of the others in words why not."""

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from orpo_cli.statistics.length import balanced_accuracy
from orpo_cli.statistics.scored_pairs import ScoredPairs


@dataclass(frozen=True)
class HeldOut:
    """Which pairs a run was scored on.

    Args:
        digest: the same for the same pairs.
        files: the names of their files, with the beginning of the digest of each file's content.
    """

    digest: str
    files: str


@dataclass(frozen=True, eq=False)
class Candidate:
    """A finished run.

    Args:
        settings: what decides what it has learned, by key, but for the seed.
        pairs: what its model gave to the held-out pairs; each has a weight above 0.
        before: what the model before training gave to them, where that is known.
        objective: in words.
        loss: of the held-out pairs, as recorded.
    """

    folder: str
    settings: Mapping[str, Any]
    seed: int
    pairs: ScoredPairs
    before: ScoredPairs | None
    held_out: HeldOut
    objective: str
    loss: float

    @cached_property
    def recipe(self) -> str:
        """Return the settings as a text, which is the same for the same settings."""
        return json.dumps(self.settings, sort_keys=True, default=str)

    @cached_property
    def tokens(self) -> tuple[bytes, bytes]:
        """Return the numbers of tokens of the responses, which are the same for the same tokenizer and template."""
        return self.pairs.chosen_tokens.tobytes(), self.pairs.rejected_tokens.tobytes()


@dataclass(frozen=True)
class Unranked:
    """A run that is not ranked.

    Args:
        name: the settings that tell it from others, where they are known.
        state: how it ended, or what it is doing.
        reason: why a finished run is not ranked.
    """

    folder: str
    name: str
    state: str
    reason: str | None = None

    @property
    def in_words(self) -> str:
        """Return its state, and why it is not ranked."""
        return self.state if self.reason is None else f"{self.state}, {self.reason}"


def comparable(candidates: Sequence[Candidate], by: str) -> tuple[list[Candidate], list[Unranked]]:
    """Return the runs that can be ranked beside each other by a metric, and the rest.

    Of runs on different held-out pairs, those on the pairs that most have in common are ranked.
    """
    refused: list[Unranked] = []
    kept = _alike(list(candidates), lambda run: run.held_out.digest, _other_pairs, refused)
    if by not in ("accuracy", "loss"):
        kept = _alike(kept, lambda run: run.tokens, _other_tokens, refused)
    if by == "loss":
        kept = _alike(kept, lambda run: run.objective, _other_objective, refused)
    if by == "balanced_accuracy" and kept and isinstance(reason := balanced_accuracy(kept[0].pairs), str):
        refused += [_refused(run, reason) for run in kept]
        kept = []
    seen: dict[tuple[str, int], Candidate] = {}
    for run in kept:
        first = seen.setdefault((run.recipe, run.seed), run)
        if first is not run:
            refused.append(_refused(run, f"the recipe and the seed of {first.folder}, which is ranked"))
    return list(seen.values()), refused


def _alike(
    runs: list[Candidate],
    trait: Callable[[Candidate], object],
    reason: Callable[[Candidate, Candidate], str],
    refused: list[Unranked],
) -> list[Candidate]:
    """Return the runs that share the commonest trait, none where no two share one; add the others to the refused."""
    if len(runs) < 2:
        return runs
    [(commonest, count)] = Counter(map(trait, runs)).most_common(1)
    others = [run for run in runs if trait(run) != commonest or count == 1]
    kept = [run for run in runs if run not in others]
    for run in others:
        beside = next(other for other in kept or runs if other is not run)
        refused.append(_refused(run, reason(run, beside)))
    return kept


def _refused(run: Candidate, reason: str) -> Unranked:
    return Unranked(run.folder, "", "finished", reason)


def _other_pairs(run: Candidate, beside: Candidate) -> str:
    ours, theirs = (f"{len(one.pairs)} pairs of {one.held_out.files}" for one in (run, beside))
    if ours == theirs:
        return f"other held-out pairs than {beside.folder}: as many of the same files, but not the same"
    return f"other held-out pairs: {ours}, and not the {theirs} as {beside.folder}"


def _other_tokens(_: Candidate, beside: Candidate) -> str:
    return f"other tokens than {beside.folder}, and this is a number a token; accuracy can be compared"


def _other_objective(run: Candidate, beside: Candidate) -> str:
    return f"another objective, {run.objective}, than {beside.folder}, {beside.objective}; nll can be compared"
