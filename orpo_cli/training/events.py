"""What happens in a run, as records: a run yields them, and its consumers show or store them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orpo_cli.statistics.answers import Answer

if TYPE_CHECKING:  # whoever reads or composes a run needs no statistics, whose import takes more than a second
    from orpo_cli.statistics.evaluation import Evaluation
    from orpo_cli.statistics.reading import Sentence


@dataclass(frozen=True)
class WorkProgress:
    """A piece of work beside the steps has come this far; a `total` of 0 means that it is not known."""

    what: str
    done: int = 0
    total: int = 0


@dataclass(frozen=True)
class Warned:
    """The user should know this now."""

    text: str


@dataclass(frozen=True)
class RunClaimed:
    """The run has its folder to itself; `log` is the file for what people read on the screen."""

    log: Path


@dataclass(frozen=True)
class RunStarted:
    """All is prepared, and the steps begin.

    Args:
        facts: what is trained on what and how, by name.
        notes: what the user should know, one line each.
        steps_done: the step that a resumed run resumes after.
        held_out: the number of held-out pairs.
        began: when this session of the run began, in seconds since the epoch; None for now.
        earlier: the steps and evaluations so far, as metrics.jsonl has them.
    """

    facts: Mapping[str, str]
    notes: Sequence[str]
    total_steps: int
    steps_done: int
    held_out: int = 0
    began: float | None = None
    earlier: Sequence[Mapping[str, Any]] = ()


@dataclass(frozen=True)
class StepDone:
    """An optimizer step was taken; `orpo_cli.training.metrics` explains the metrics."""

    step: int
    total_steps: int
    epoch: int
    metrics: dict[str, float]


OF_THE_MACHINE = ("tokens_per_second", "pairs_per_second", "peak_memory_gb")
"""Metrics that depend on the machine and what else it does: the same step, taken again, has others."""


BALANCE = "router_aux_loss"
"""The metric that only a mixture of experts has."""


@dataclass(frozen=True)
class StepSkipped:
    """An optimizer step was not finite and changed nothing; `report` names its numbers, rows and tokens."""

    step: int
    total_steps: int
    report: str


@dataclass(frozen=True)
class LossSpiked:
    """The loss of a step is `deviations` standard deviations above those of the steps before."""

    step: int
    loss: float
    deviations: float


@dataclass(frozen=True)
class EvaluationProgress:
    """`pairs` of the pairs have been evaluated."""

    pairs: int
    total_pairs: int


@dataclass(frozen=True)
class PairLogps:
    """The sums of the log-probabilities of the tokens of each pair's responses, of B pairs, in nats."""

    chosen: tuple[float, ...]
    rejected: tuple[float, ...]


@dataclass(frozen=True)
class Evaluated:
    """All held-out pairs have been evaluated, before the first step (step 0) or after a later one."""

    step: int
    metrics: dict[str, float]
    logps: PairLogps


@dataclass(frozen=True)
class PartEvaluated:
    """A part of the held-out pairs has been evaluated, always the same.

    Args:
        pairs: their number.
        places, logps: their places among the held-out pairs, and what they scored; empty where read from files.
    """

    step: int
    metrics: dict[str, float]
    pairs: int
    places: tuple[int, ...] = ()
    logps: PairLogps = PairLogps((), ())


@dataclass(frozen=True)
class Sampled:
    """Some prompts were answered, always the same in a run."""

    step: int
    answers: tuple[Answer, ...]


@dataclass(frozen=True)
class CheckpointSaved:
    """A checkpoint is on disk, verified and named by LATEST."""

    step: int
    path: Path


@dataclass(frozen=True)
class CheckpointFailed:
    """A checkpoint could not be written; the earlier ones are untouched, and the run continues."""

    step: int
    reason: str


@dataclass(frozen=True)
class TimeIsUp:
    """The run has ended after a step, saved, so that its time lasts.

    Args:
        resume_command: the command that resumes it.
        over: the seconds by which it took more all the same.
        over_at_start: those of them that had passed before the first step.
        save: the seconds of the last save.
    """

    step: int
    total_steps: int
    resume_command: str
    over: float = 0.0
    over_at_start: float = 0.0
    save: float = 0.0


@dataclass(frozen=True)
class StoppedEarly:
    """The run has ended before its last step, saved: `evaluations` in a row brought no better value of `metric`."""

    step: int
    total_steps: int
    metric: str
    evaluations: int


@dataclass(frozen=True)
class MemoryRanOut:
    """A step or evaluation did not fit into memory; the same is done again in micro-batches of `max_tokens`."""

    step: int
    max_tokens: int


@dataclass(frozen=True)
class RunFinished:
    """The run has taken its steps, and its model is in its place.

    Args:
        evaluation: the model on the held-out pairs, against the one before the first step; None where nothing is held
            out.
        reading: what is to be said of the run.
        before, after: the first sampled answers and the last, where they are of the model.
        model: the directory of the model.
        chat: whether it was trained with its chat template.
        plain: whether transformers alone finds all of it.
        best_step: the step of the checkpoint that the model is; None where it is the last.
        seconds: how long the run took, over all its sessions; None where it is not known.
        peak_memory: the most bytes that the main process had on its device; None where it is not known.
    """

    evaluation: "Evaluation | None"
    reading: "Sequence[Sentence]"
    before: Sampled | None
    after: Sampled | None
    model: Path
    chat: bool
    plain: bool
    best_step: int | None = None
    seconds: float | None = None
    peak_memory: int | None = None


@dataclass(frozen=True)
class AlreadyFinished:
    """The run was finished before, and is left alone."""

    model: Path


Event = (
    WorkProgress
    | Warned
    | RunClaimed
    | RunStarted
    | StepDone
    | StepSkipped
    | LossSpiked
    | EvaluationProgress
    | Evaluated
    | PartEvaluated
    | Sampled
    | CheckpointSaved
    | CheckpointFailed
    | TimeIsUp
    | StoppedEarly
    | MemoryRanOut
    | RunFinished
    | AlreadyFinished
)
