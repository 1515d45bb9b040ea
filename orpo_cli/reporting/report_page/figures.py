"""The figures of the page as numbers: which curves each one has, from the lines of metrics.jsonl."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from orpo_cli.reporting.report_page.thinning import some_of, thinned
from orpo_cli.statistics.intervals import Estimate
from orpo_cli.statistics.summary import Summary

INTERVAL = "95 % interval"
_SPREAD = "lowest to highest"
_RULER = "; `longer wins` is what preferring the longer response would score"


@dataclass(frozen=True)
class Series:
    """One curve.

    Args:
        role: how it is drawn: training, held_out, chosen, rejected, ruler, recipe_1 to recipe_6, or other.
        band: what reaches from its `low` to its `high`; None where these are not known.
        group: what the legend calls it, where several curves are called alike; None for its name.
    """

    name: str
    role: str
    step: list[int]
    value: list[float]
    low: Sequence[float | None] | None = None
    high: Sequence[float | None] | None = None
    band: str | None = None
    group: str | None = None


@dataclass(frozen=True)
class Figure:
    """Some curves over the steps.

    Args:
        unit: the name and unit of the vertical axis.
        level: a value that is marked by a line.
        domain: the ends of the vertical axis; None for those of the curves.
    """

    name: str
    title: str
    unit: str
    caption: str
    series: list[Series]
    level: float | None = None
    domain: tuple[float, float] | None = None
    kind: str = field(default="lines", init=False)


def held_out_figures(evaluations: Sequence[dict[str, Any]], summaries: Mapping[int, Summary]) -> list[Figure]:
    """Return the figures of the held-out pairs; none where none were evaluated.

    Args:
        evaluations: those evaluations in metrics.jsonl that are of the same pairs.
        summaries: the intervals after those steps whose scores were kept.
    """
    evaluations = some_of(evaluations)
    if not evaluations:
        return []
    accuracy = [_of_evaluations("accuracy", "accuracy", "held_out", evaluations, summaries, "accuracy")]
    ruler = list(_longer_wins(evaluations, summaries))
    sides = [
        _of_evaluations(side, f"logps/{side}", side, evaluations, summaries, f"logps_{side}")
        for side in ("chosen", "rejected")
    ]
    return [
        Figure(
            "accuracy",
            "Accuracy",
            "share of pairs",
            "Share of pairs whose chosen response is likelier than the rejected one, by mean log-probability"
            f"{_shade(accuracy)}. The line is at one half{_RULER if ruler else ''}.{_counted(evaluations)}",
            [*accuracy, *ruler],
            level=0.5,
            domain=(0.0, 1.0),
        ),
        Figure(
            "logps",
            "Log-probability of chosen and rejected",
            "nats a token",
            "Mean log-probability of a response's tokens, mean over pairs; higher is likelier"
            f"{_shade(sides)}. The nll alone lifts both, the preference term parts them.{_counted(evaluations)}",
            sides,
        ),
    ]


def training_figures(
    records: Sequence[dict[str, Any]], evaluations: Sequence[dict[str, Any]], summaries: Mapping[int, Summary]
) -> list[Figure]:
    """Return the figures of the steps, with the held-out pairs beside them where they have the same metric.

    Args:
        records: the lines of metrics.jsonl.
        evaluations, summaries: as for `held_out_figures`.
    """
    steps = [record for record in records if record["kind"] == "step"]
    evaluations = some_of(evaluations)
    figures = []
    for name, (title, unit, caption, curves) in _OF_TRAINING.items():
        series = [made for metric, curve, role in curves for made in _of_steps(curve, metric, role, steps)]
        if name in _HELD_OUT_TOO and evaluations:
            series.append(
                _of_evaluations("held-out pairs", name, "held_out", evaluations, summaries, _HELD_OUT_TOO[name])
            )
        if series:
            figures.append(Figure(name, title, unit, caption, series, level=0.0 if name == "log_odds_ratio" else None))
    return figures


_HELD_OUT_TOO = {"loss": None, "nll": "nll", "log_odds_ratio": "log_odds_ratio"}
"""Metrics of the training that evaluations have as well, with the field of a summary that gives the interval."""

_STEP = "training"
_OF_TRAINING: dict[str, tuple[str, str, str, list[tuple[str, str, str]]]] = {
    "loss": ("Loss", "loss", "The objective, as its gradient is taken.", [("loss", _STEP, "training")]),
    "nll": (
        "Nll of chosen",
        "nats a token",
        "Mean negative log-probability of a token of the chosen responses; the same in every preset.",
        [("nll", _STEP, "training")],
    ),
    "log_odds_ratio": (
        "Log odds ratio",
        "log odds ratio",
        "Log-odds of chosen over rejected, mean over pairs; above the line at 0, chosen is likelier.",
        [("log_odds_ratio", _STEP, "training")],
    ),
    "pull_and_push": (
        "Pull and push of the preference term",
        "weight, where the nll has 1",
        "Weight of the preference term on both responses, where the nll has 1 on chosen. Near 0, lambda hardly acts.",
        [("or_pull", "pull on chosen", "chosen"), ("or_push", "push on rejected", "rejected")],
    ),
    "grad_norm": (
        "Gradient norm",
        "norm",
        "Norm of the gradient before clipping.",
        [("grad_norm", "gradient norm", "training")],
    ),
    "lr": ("Learning rate", "learning rate", "Learning rate of each step.", [("lr", "learning rate", "training")]),
    "throughput": (
        "Throughput",
        "tokens a second",
        "Tokens of a step, without padding, by the time that it took.",
        [("tokens_per_second", "tokens a second", "training")],
    ),
    "memory": (
        "Memory",
        "GB at the peak",
        "The most memory so far, in 10^9 bytes: of the accelerator, or else of the process.",
        [("peak_memory_gb", "memory", "training")],
    ),
}
"""Title, unit and caption of each figure, and its curves: metric, name and role."""


def _of_steps(name: str, metric: str, role: str, steps: Sequence[dict[str, Any]]) -> Iterator[Series]:
    """Yield the curve of a metric, if the steps have it."""
    points = [(record["step"], record[metric]) for record in steps if metric in record]
    if points:
        curve = thinned(*zip(*points, strict=True))
        band = None if curve.low is None else _SPREAD
        yield Series(name, role, curve.step, curve.value, curve.low, curve.high, band)


def _of_evaluations(
    name: str,
    metric: str,
    role: str,
    evaluations: Sequence[dict[str, Any]],
    summaries: Mapping[int, Summary],
    field: str | None,
) -> Series:
    """Return the curve of a metric of the held-out pairs.

    Args:
        field: of a summary, which gives the interval; None where there is no interval.
    """
    steps = [record["step"] for record in evaluations]
    values = [record[metric] for record in evaluations]
    known = [getattr(summaries[step], field) if field and step in summaries else None for step in steps]
    if not any(isinstance(estimate, Estimate) and estimate.low is not None for estimate in known):
        return Series(name, role, steps, values)
    low, high = ([getattr(estimate, bound, None) for estimate in known] for bound in ("low", "high"))
    return Series(name, role, steps, values, low, high, INTERVAL)


def _longer_wins(evaluations: Sequence[dict[str, Any]], summaries: Mapping[int, Summary]) -> Iterator[Series]:
    steps = [record["step"] for record in evaluations if record["step"] in summaries]
    if steps:
        yield Series("longer wins", "ruler", steps, [summaries[step].longer_wins.value for step in steps])


def _counted(evaluations: Sequence[dict[str, Any]]) -> str:
    """Say of how many pairs the curves are, where they are of a part of the held-out pairs."""
    pairs = evaluations[-1].get("pairs")
    return f" The curves are of {pairs} of the held-out pairs, the same after each step." if pairs else ""


def _shade(series: Sequence[Series]) -> str:
    return f"; the shade is the {INTERVAL}, in which all pairs of a prompt count as one draw" if series[0].band else ""
