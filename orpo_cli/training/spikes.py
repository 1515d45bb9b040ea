"""Notice a loss that is far above those of the steps before it."""

import math
from collections import deque

WINDOW = 50
_FEWEST = 20
SPIKE = 8.0
"""Standard deviations. Losses of small batches scatter widely; a healthy run shows less than this."""


class SpikeWatch:
    """Keeps the losses of the last steps."""

    def __init__(self) -> None:
        self._losses: deque[float] = deque(maxlen=WINDOW)

    def deviations(self, loss: float) -> float | None:
        """Return how many standard deviations `loss` is above the mean of the last ones, if that is a spike.

        A spike does not enter the window, so that a second one is noticed too.
        """
        losses = list(self._losses)
        if len(losses) >= _FEWEST:
            mean = sum(losses) / len(losses)
            deviation = math.sqrt(sum((value - mean) ** 2 for value in losses) / len(losses))
            away = (loss - mean) / max(deviation, 1e-3 * abs(mean), 1e-12)
            if away > SPIKE:
                return away
        self._losses.append(loss)
        return None
