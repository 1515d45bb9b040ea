"""What happens in a run, as records. The loop yields them; terminal and files consume them."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class StepDone:
    """One optimizer step. `metrics` are named as in `orpo_cli.training.metrics`."""

    step: int
    total_steps: int
    epoch: int
    metrics: dict[str, float]


@dataclass(frozen=True)
class StepSkipped:
    """One optimizer step that was not finite and changed nothing. `report` names its numbers, rows and tokens."""

    step: int
    total_steps: int
    report: str


@dataclass(frozen=True)
class LossSpiked:
    """The loss of a step stands `deviations` standard deviations above those of the steps before."""

    step: int
    loss: float
    deviations: float


@dataclass(frozen=True)
class EvaluationProgress:
    """Pairs evaluated so far."""

    pairs: int
    total_pairs: int


@dataclass(frozen=True)
class Evaluated:
    """Metrics over all evaluation pairs, before the first step (step 0) or after a later one."""

    step: int
    metrics: dict[str, float]


@dataclass(frozen=True)
class Sampled:
    """A greedy answer to one prompt."""

    step: int
    prompt: str
    answer: str


@dataclass(frozen=True)
class CheckpointSaved:
    """A checkpoint that is on disk, verified and pointed to."""

    step: int
    path: Path


@dataclass(frozen=True)
class CheckpointFailed:
    """A checkpoint could not be written; the earlier ones are untouched, and the run goes on."""

    step: int
    reason: str


@dataclass(frozen=True)
class ModelWritten:
    """The result is written beside its place, and goes there next: size and checksum of each file, by path inside."""

    files: dict[str, dict[str, Any]]


@dataclass(frozen=True)
class TimeIsUp:
    """The run has ended after a step, saved, so that its time lasts; `go_on` is the command that goes on.

    Args:
        over: seconds by which it took more all the same.
        over_at_start: of those, the seconds before the first step.
        save: seconds of the last save.
    """

    step: int
    total_steps: int
    go_on: str
    over: float = 0.0
    over_at_start: float = 0.0
    save: float = 0.0


@dataclass(frozen=True)
class MemoryRanOut:
    """A step or evaluation did not fit into memory; it is done again, the same, in micro-batches of `max_tokens`."""

    step: int
    max_tokens: int


Event = (
    StepDone
    | StepSkipped
    | LossSpiked
    | EvaluationProgress
    | Evaluated
    | Sampled
    | CheckpointSaved
    | CheckpointFailed
    | ModelWritten
    | TimeIsUp
    | MemoryRanOut
)
