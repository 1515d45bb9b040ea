"""The margins of the held-out pairs before and after training, counted in bins."""

from dataclasses import dataclass, field
from math import ceil, floor, log10

import numpy as np

from orpo_cli.statistics.evaluation import Evaluation
from orpo_cli.statistics.intervals import Estimate
from orpo_cli.statistics.scored_pairs import ScoredPairs
from orpo_cli.statistics.summary import Summary

_BINS = 40


@dataclass(frozen=True)
class Margins:
    """How many pairs have which margin under one model.

    Args:
        counts: the number of pairs between each two edges of the figure.
        mean: the mean margin with its interval.
    """

    name: str
    counts: list[int]
    mean: Estimate


@dataclass(frozen=True)
class MarginFigure:
    """The margins of the same pairs under one or two models; 0 is one of the edges."""

    name: str
    title: str
    unit: str
    caption: str
    edges: list[float]
    parts: list[Margins]
    kind: str = field(default="margins", init=False)


def margin_figure(evaluation: Evaluation) -> MarginFigure:
    """Return the margins of an evaluation, before training too where it has them."""
    against, then = evaluation.against, evaluation.against_summary
    now = "now" if against is None else "after"
    models: list[tuple[str, ScoredPairs, Summary]] = [(now, evaluation.scored.pairs, evaluation.summary)]
    if against and then:
        models.insert(0, ("before", against.pairs, then))
    edges = _edges(np.concatenate([pairs.counted().margin for _, pairs, _ in models]))
    parts = [
        Margins(name, np.histogram(pairs.counted().margin, edges)[0].tolist(), summary.margin)
        for name, pairs, summary in models
    ]
    return MarginFigure(
        "margins",
        "Margin of each pair",
        "nats a token; right of 0, chosen is likelier",
        "How many pairs have which margin: mean log-probability of chosen minus that of rejected. The dot is the mean, "
        f"the bar through it its 95 % interval.{_flips(evaluation)}",
        edges,
        parts,
    )


def _edges(margins: "np.ndarray[tuple[int], np.dtype[np.float64]]") -> list[float]:
    """Return the edges of bins of a round width, about `_BINS` of them, 0 among them."""
    low, high = min(float(margins.min()), 0.0), max(float(margins.max()), 0.0)
    rough = max(high - low, 1e-6) / _BINS
    tens: float = 10.0 ** floor(log10(rough))
    width = next(step * tens for step in (1, 2, 5, 10) if step * tens >= rough)
    return [float(f"{place * width:.6g}") for place in range(floor(low / width), max(ceil(high / width), 1) + 1)]


def _flips(evaluation: Evaluation) -> str:
    found = evaluation.comparison
    if found is None:
        return ""
    return f" {found.to_chosen} pairs flipped to chosen, {found.to_rejected} to rejected."
