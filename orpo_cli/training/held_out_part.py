"""Choose the held-out pairs that a run evaluates between its first and its last step, and how often."""

from dataclasses import dataclass

import numpy as np

from orpo_cli.config.schema import AUTO
from orpo_cli.data.tokens.store import PairStore
from orpo_cli.training.inputs import Training

EVALUATIONS = 10
"""So many lie between the first step and the last at least, where there are as many steps."""

SHARE_OF_TIME = 0.05
"""The share of the time of all steps that they may take together."""

STEP_TO_EVALUATION = 3
"""The time of a pair in a step over that in an evaluation, which has no backward pass."""

LEAST_PAIRS = 8
"""So many pairs are evaluated also where their share of a short run is larger."""


@dataclass(frozen=True)
class HeldOutPart:
    """Some of the held-out pairs, always the same.

    Args:
        places: their places among the held-out pairs.
        every: the number of steps from one evaluation to the next.
    """

    store: PairStore
    places: tuple[int, ...]
    every: int

    def is_due(self, step: int) -> bool:
        """Return whether the part is evaluated after a step."""
        return step % self.every == 0


def held_out_part(training: Training) -> HeldOutPart | None:
    """Return the part for `trainer.eval_every=auto`; None where that is a number or null, or nothing is held out."""
    trainer, held_out, steps = training.config.trainer, training.evaluation, training.total_steps
    if trainer.eval_every != AUTO or not len(held_out):
        return None
    every = max((steps - 1) // EVALUATIONS, 1)
    count = max((steps - 1) // every, 1)
    affordable = int(SHARE_OF_TIME * STEP_TO_EVALUATION * steps * trainer.pairs_per_step / count)
    size = min(max(affordable, LEAST_PAIRS), len(held_out))
    chosen = np.sort(np.random.default_rng(0).permutation(len(held_out))[:size])
    return HeldOutPart(held_out.part(chosen), tuple(chosen.tolist()), every)
