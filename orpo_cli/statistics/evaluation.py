"""Put together what there is to say about a model on a set of pairs, alone or against another model."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from orpo_cli.errors import DataError
from orpo_cli.statistics.comparison import Comparison, compare
from orpo_cli.statistics.scored_pairs import BoolArray, IntArray, ScoredPairs
from orpo_cli.statistics.summary import BreakdownRow, Summary, breakdown, summarize


@dataclass(frozen=True)
class Scored:
    """What one model gave to the pairs.

    Args:
        model: its name, as the user gave it.
        metrics: the numbers that a run records of an evaluation; `orpo_cli.training.metrics` explains them.
        rows: for each pair the number of its file and its row there, (B, 2).
        lines: the line of its row in the file, (B,).
        notes: what the user should know, one line each.
    """

    model: str
    pairs: ScoredPairs
    metrics: Mapping[str, float]
    rows: IntArray
    lines: IntArray
    notes: list[str]


@dataclass(frozen=True)
class Evaluation:
    """What there is to say about a model on a set of pairs.

    Args:
        scored: what the model gave to the pairs.
        summary: all of them together.
        breakdown: by source, number of turns and length.
        against, against_summary, comparison: the other model, if there is one, and what differs.
    """

    scored: Scored
    summary: Summary
    breakdown: tuple[BreakdownRow, ...]
    against: Scored | None = None
    against_summary: Summary | None = None
    comparison: Comparison | None = None

    @property
    def notes(self) -> list[str]:
        """Return what the user should know, one line each."""
        theirs = self.against.notes if self.against else []
        return [*self.scored.notes, *(note for note in theirs if note not in self.scored.notes)]


def evaluation_of(scored: Scored, against: Scored | None = None) -> Evaluation:
    """Return all that there is to say about scored pairs, against those of another model if they are given.

    Raises:
        DataError: if the two models have no pair in common.
    """
    if against is None:
        return Evaluation(scored, summarize(scored.pairs), breakdown(scored.pairs))
    ours, theirs = _in_common(scored, against)
    return Evaluation(
        ours,
        summarize(ours.pairs),
        breakdown(ours.pairs, theirs.pairs),
        theirs,
        summarize(theirs.pairs),
        compare(ours.pairs, theirs.pairs),
    )


def _in_common(scored: Scored, against: Scored) -> tuple[Scored, Scored]:
    """Return the pairs that both models scored: with other tokens, others may be too long.

    Raises:
        DataError: if there is none.
    """
    ours, theirs = (list(map(tuple, part.rows.tolist())) for part in (scored, against))
    common = set(ours) & set(theirs)
    if not common:
        raise DataError(f"{scored.model} and {against.model} have scored no pair in common")
    left_out = len(ours) + len(theirs) - 2 * len(common)
    notes = [f"{left_out} pairs fit only one of the two models and are left out"] if left_out else []
    kept = [np.array([row in common for row in rows]) for rows in (ours, theirs)]
    first, second = (_taken(part, rows) for part, rows in zip((scored, against), kept, strict=True))
    same = replace(second.pairs, prompt=first.pairs.prompt, turns=first.pairs.turns)
    return replace(first, notes=[*first.notes, *notes]), replace(second, pairs=same)


def _taken(scored: Scored, kept: BoolArray) -> Scored:
    return replace(scored, pairs=scored.pairs.take(kept), rows=scored.rows[kept], lines=scored.lines[kept])
