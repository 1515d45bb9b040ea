"""What happens in a run, in lines: for train.log, and for a screen that is no terminal."""

from collections.abc import Mapping, Sequence

from orpo_cli.reporting.curves import four_digits
from orpo_cli.reporting.history import History
from orpo_cli.reporting.metrics_file import EVALUATED
from orpo_cli.reporting.times import duration
from orpo_cli.training.events import (
    BALANCE,
    CheckpointFailed,
    CheckpointSaved,
    Evaluated,
    Event,
    LossSpiked,
    MemoryRanOut,
    PartEvaluated,
    Sampled,
    StepDone,
    StoppedEarly,
    TimeIsUp,
)

SHOWN = ("loss", "nll", "or_loss", "log_odds_ratio", "accuracy", "margin", "grad_norm", "lr")


def step_line(event: StepDone, history: History, now: float) -> str:
    """Return the line of a step."""
    values = _values(SHOWN, event.metrics)
    left = duration(history.seconds_left(now))
    return f"step {event.step}/{event.total_steps}  {values}  {'  '.join(speeds(event))}  {left} left"


def speeds(event: StepDone) -> list[str]:
    """Return the speeds of a step in words."""
    metrics = event.metrics
    return [f"{metrics['pairs_per_second']:.2f} pairs/s", f"{metrics['tokens_per_second']:.0f} tokens/s"]


def lines(event: Event) -> list[str]:
    """Return the lines of an event that is no warning; there are none of most."""
    match event:
        case Evaluated(step=step, metrics=metrics):
            return [f"evaluated at step {step}: {_evaluated(metrics)}"]
        case PartEvaluated(step=step, metrics=metrics, pairs=pairs):
            return [f"evaluated at step {step}, {pairs} of the held-out pairs: {_evaluated(metrics)}"]
        case Sampled(step=step, answers=answers):
            return [f"sample at step {step}: {item.prompt!r} -> {item.answer!r}" for item in answers]
        case MemoryRanOut(step=step, max_tokens=tokens):
            return [f"out of memory at step {step}: computed again, same result, in micro-batches of {tokens} tokens"]
        case CheckpointSaved(step=step, path=path):
            return [f"checkpoint of step {step}: {path}"]
        case _:
            return []


def _evaluated(metrics: Mapping[str, float]) -> str:
    return _values(EVALUATED, metrics)


def _values(names: Sequence[str], metrics: Mapping[str, float]) -> str:
    """Return the named metrics, and the one that only a mixture of experts has."""
    shown = [*names, BALANCE] if BALANCE in metrics else names
    return "  ".join(f"{name} {four_digits(metrics[name])}" for name in shown)


def warning(event: Event) -> str | None:
    """Return what an event warns of; None where it does not."""
    match event:
        case LossSpiked(step=step, loss=loss, deviations=deviations):
            above = f"{deviations:.1f} standard deviations above the steps before"
            return f"loss {four_digits(loss)} at step {step} is {above}"
        case CheckpointFailed(step=step, reason=reason):
            return f"no checkpoint of step {step}, the run continues: {reason}"
        case TimeIsUp(step=step, total_steps=total, resume_command=command):
            return f"trainer.max_time: saved after step {step} of {total}{_overrun(event)}; resume with: {command}"
        case StoppedEarly(step=step, total_steps=total, metric=metric, evaluations=count):
            return (
                f"trainer.early_stop: ends after step {step} of {total}, since {metric} has not become better in "
                f"{count} evaluation{'s' * (count > 1)}"
            )
        case _:
            return None


def ordinal(count: int) -> str:
    """Return 1st, 2nd, 3rd, ..."""
    ending = "th" if 10 <= count % 100 <= 20 else {1: "st", 2: "nd", 3: "rd"}.get(count % 10, "th")
    return f"{count}{ending}"


def _overrun(event: TimeIsUp) -> str:
    """Return by how much a run exceeded its time and why; an empty text if it did not."""
    if event.over == 0:
        return ""
    start = f", {_seconds(event.over_at_start)} of them before the first step" if event.over_at_start > 0 else ""
    return f"; {_seconds(event.over)} over{start}, the save took {_seconds(event.save)}"


def _seconds(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds >= 10 else f"{max(seconds, 0.1):.1f} s"
