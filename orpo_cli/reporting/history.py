"""What has happened in a run so far, as far as the screen shows it: the last numbers, curves, speed and time left."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from orpo_cli.reporting.curves import Trace
from orpo_cli.reporting.metrics_file import metrics_of

LOSS, CHOSEN, REJECTED = "loss", "logps/chosen", "logps/rejected"
_CURVES = (LOSS, CHOSEN, REJECTED)


@dataclass(frozen=True)
class Measured:
    """The metrics of a step, or of the evaluation after it on so many held-out pairs."""

    step: int
    metrics: Mapping[str, float]
    pairs: int = 0


@dataclass
class Measurements:
    """The steps of a run, or its evaluations: the first, the last, and curves through all."""

    first: Measured | None = None
    last: Measured | None = None
    traces: dict[str, Trace] = field(default_factory=lambda: {name: Trace() for name in _CURVES})

    def add(self, measured: Measured) -> None:
        """Add the next."""
        self.first, self.last = self.first or measured, measured
        for name, trace in self.traces.items():
            trace.add(measured.step, measured.metrics[name])


@dataclass
class History:
    """The steps and evaluations of a run; also those before it was resumed.

    Args:
        step: the last one, taken or skipped.
        total_steps: the number that is planned.
        held_out: the number of held-out pairs.
        began: when the session of the run began, in seconds since the epoch.
    """

    step: int = 0
    total_steps: int = 0
    held_out: int = 0
    began: float = 0.0
    training: Measurements = field(default_factory=Measurements)
    evaluations: Measurements = field(default_factory=Measurements)
    parts: Measurements = field(default_factory=Measurements)
    _timed: int = 0
    _seconds_a_pair: float = 0.0
    _pace_from: tuple[int, float] | None = None
    _pace_to: tuple[int, float] | None = None

    def add_step(self, step: int, metrics: Mapping[str, float], at: float) -> None:
        """Add a step that was taken; a time before this session says nothing of its pace."""
        self.step = step
        self.training.add(Measured(step, metrics))
        if (speed := metrics.get("pairs_per_second", 0.0)) > 0:
            self._timed, self._seconds_a_pair = self._timed + 1, self._seconds_a_pair + 1 / speed
        if at >= self.began:
            self._pace_from, self._pace_to = self._pace_from or (step, at), (step, at)

    def add_evaluation(self, step: int, metrics: Mapping[str, float]) -> None:
        """Add an evaluation of all held-out pairs."""
        self.evaluations.add(Measured(step, metrics, self.held_out))

    def add_part(self, step: int, metrics: Mapping[str, float], pairs: int) -> None:
        """Add an evaluation of a part of them."""
        self.parts.add(Measured(step, metrics, pairs))

    @property
    def last_evaluation(self) -> Measured | None:
        """Return the last evaluation; of two after the same step, that of all pairs."""
        whole, part = self.evaluations.last, self.parts.last
        return part if part is not None and (whole is None or part.step > whole.step) else whole

    @property
    def held_out_curves(self) -> dict[str, Trace]:
        """Return the curves through evaluations of the same pairs: of the part, where there is one."""
        return (self.parts if self.parts.last is not None else self.evaluations).traces

    def add_record(self, record: Mapping[str, Any]) -> None:
        """Add a step or an evaluation from metrics.jsonl."""
        match record["kind"]:
            case "step":
                self.add_step(record["step"], metrics_of(record), record.get("time", 0.0))
            case "eval":
                self.add_evaluation(record["step"], metrics_of(record))
            case "eval_part":
                self.add_part(record["step"], metrics_of(record), record["pairs"])
            case _:
                self.step = record["step"]

    @property
    def pairs_per_second(self) -> float | None:
        """Return the speed of the steps so far; evaluation and saving are not counted."""
        return self._timed / self._seconds_a_pair if self._timed else None

    def seconds_left(self, now: float) -> float | None:
        """Return how long the rest takes at the pace of this session's steps; None before there is one."""
        if self._pace_from is None or self._pace_to is None or self._pace_from == self._pace_to:
            return None
        (first, since), (last, until) = self._pace_from, self._pace_to
        pace = (until - since) / (last - first)
        return max(0.0, pace * (self.total_steps - last) - (now - until))
