"""Tell whether a trial of a search is so clearly behind another, at the same steps, that the rest of it can be saved.

A trial is dominated where one rival is better in accuracy and in nll, both clearly, at each of two evaluations in a row
of the same held-out pairs. Clearly is, for accuracy, a sign-flip test over prompts whose p, times the number of rivals,
is below 0.05; for nll, an interval of the paired difference that lies above 0. The first quarter of the steps does not
count, since what is learned late may start slowly, and neither does the last step, after which nothing is saved.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from orpo_cli.errors import DataError
from orpo_cli.statistics.comparison import compare
from orpo_cli.statistics.intervals import CONFIDENCE, Estimate
from orpo_cli.statistics.scored_pairs import ScoredPairs

FIRST_SHARE = 0.25
"""The share of the steps after which evaluations count."""

Evaluations = Mapping[int, ScoredPairs]
"""What the held-out pairs, or always the same part of them, scored after some steps."""


@dataclass(frozen=True)
class Dominated:
    """Say where a trial is dominated.

    Args:
        step: of the second of two evaluations in a row.
        rival: the place of the better one among the rivals.
    """

    step: int
    rival: int


def dominated(trial: Evaluations, rivals: Sequence[Evaluations], total_steps: int) -> Dominated | None:
    """Return the first step at which a trial is dominated by a rival of the same length; None where it never is.

    Args:
        total_steps: of the trial and of each rival.
    """
    steps = [step for step in sorted(trial) if FIRST_SHARE * total_steps <= step < total_steps]
    for earlier, step in pairwise(steps):
        there = [place for place, rival in enumerate(rivals) if {earlier, step} <= rival.keys()]
        for place in there:
            if all(_is_clearly_worse(trial[at], rivals[place][at], len(there)) for at in (step, earlier)):
                return Dominated(step, place)
    return None


def _is_clearly_worse(pairs: ScoredPairs, rival: ScoredPairs, rivals: int) -> bool:
    """Return whether a model is worse in both objectives; of models that scored other pairs neither is.

    Args:
        rivals: how many it is compared with.
    """
    try:
        change = compare(pairs, rival)
    except DataError:
        return False
    is_less_accurate = change.change.value < 0 and change.p * rivals < 1 - CONFIDENCE
    nll = change.nll
    return is_less_accurate and isinstance(nll, Estimate) and nll.low is not None and nll.low > 0
