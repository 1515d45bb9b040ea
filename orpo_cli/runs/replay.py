"""Replay: take steps of a run again from one of its checkpoints, and compare them with what was recorded."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from orpo_cli.checkpoints import lookup
from orpo_cli.checkpoints.inspection import Inspected
from orpo_cli.checkpoints.lookup import TrainingState
from orpo_cli.config.optimization import check_library
from orpo_cli.data.progress import OnProgress
from orpo_cli.errors import CheckpointError
from orpo_cli.machine.threads import choose_threads
from orpo_cli.runs.folder import RunFolder
from orpo_cli.runs.resume import MAX_TOKENS, MODEL_FILES, ResumePoint
from orpo_cli.runs.stretches import Stretch, stretches
from orpo_cli.runs.verify import checked_config
from orpo_cli.training.events import OF_THE_MACHINE, StepDone, StepSkipped

ROUNDING = 0.01
"""How far, relative to its size, the loss of a step may be from itself under other conditions."""


def replay(folder: RunFolder, count: int, on_progress: OnProgress) -> Iterator[Inspected]:
    """Take at least `count` steps again, from the newest checkpoint before the last recorded steps.

    Where `trainer.log_every` leaves gaps, steps are taken until one of them was recorded.

    Raises:
        CheckpointError: if data or model has changed since.
    """
    choose_threads()
    with folder.undisturbed():
        recorded = {record["step"]: record for record in folder.records if record["kind"] in ("step", "skipped")}
        resume_point, since = _start(folder, max(recorded, default=0) - count)
        training, changed = _training(folder, resume_point, since, on_progress)
        start, skipped = (0, 0) if resume_point is None else (resume_point.state.step, resume_point.state.skipped)
        compared = 0
        for event in _steps(training, start, skipped, stretches(folder.resumes, training.total_steps)):
            if event.step in recorded:
                compared += 1
                metrics = event.metrics if isinstance(event, StepDone) else None
                difference, problem = _difference(metrics, recorded[event.step], bool(changed))
                yield Inspected(f"step {event.step}, taken again after step {start}: {difference}{changed}", problem)
            if event.step >= start + count and compared:
                break
    none = None if compared else f"{folder.metrics}: has none of the steps after step {start}"
    yield Inspected(f"{compared} steps taken again and compared", none)


def _start(folder: RunFolder, latest: int) -> tuple[ResumePoint | None, list[TrainingState]]:
    """Return the newest checkpoint up to a step, None for the beginning, and the states whose steps follow from it."""
    states = [(path, lookup.verify(path)) for _, path in lookup.list_checkpoints(folder.checkpoints)]
    fitting = [(path, state) for path, state in states if state.step <= latest]
    since = [state for _, state in states[len(fitting) :]] or [state for _, state in fitting[-1:]]
    return (ResumePoint(*fitting[-1], []) if fitting else None), since


def _training(
    folder: RunFolder,
    resume_point: ResumePoint | None,
    since: Sequence[TrainingState],
    on_progress: OnProgress,
) -> tuple[Any, str]:
    """Return a training at the checkpoint, in one process, and how its conditions differ from those of the run."""
    from orpo_cli.runs.assembly import Assembly

    config = checked_config(folder)
    check_library(config.optimizer)
    if since:
        trainer = replace(config.trainer, max_tokens=since[0].max_tokens, processes=1)
        config = replace(config, trainer=trainer)
    assembly = Assembly(config, on_progress)
    if since and list(since[-1].data_sha256.values()) != list(assembly.data.sha256.values()):
        raise CheckpointError(f"{folder.path}: the data has changed since; its steps cannot be taken again")
    if since and since[-1].identity.get(MODEL_FILES) not in (None, assembly.identity[MODEL_FILES]):
        raise CheckpointError(f"{folder.path}: the model has changed since; its steps cannot be taken again")
    training = assembly.training(resume_point)
    now = assembly.environment | {MAX_TOKENS: config.trainer.max_tokens}
    then = [state.environment | {MAX_TOKENS: state.max_tokens} for state in since]
    then += [now | {MAX_TOKENS: None}] if _were_cut_in_two_ways(folder, resume_point, since) else []
    other = [key for key in now if any(conditions.get(key) != now[key] for conditions in then)]
    return training, f" (under other conditions: {', '.join(other)})" if other else ""


def _steps(training: Any, start: int, skipped: int, planned: Sequence[Stretch]) -> Iterator[StepDone | StepSkipped]:
    """Take the steps after `start` again, each by the schedule that it was taken by."""
    from orpo_cli.training import loop

    ends = [*(stretch.after for stretch in planned[1:]), training.total_steps]
    for stretch, end in zip(planned, ends, strict=True):
        if start >= end:
            continue
        for event in loop.steps(replace(training, total_steps=stretch.total), start + 1, skipped):
            if isinstance(event, StepDone | StepSkipped):
                start, skipped = event.step, skipped + isinstance(event, StepSkipped)
                yield event
                if start == end:
                    break


def _were_cut_in_two_ways(folder: RunFolder, resume_point: ResumePoint | None, since: Sequence[TrainingState]) -> bool:
    """Return whether the micro-batches may have changed between these steps: on a resume, or as memory ran out."""
    start = 0 if resume_point is None else resume_point.state.step
    given = [part["after_step"] for part in folder.resumes if "trainer.max_tokens" in part["changed"]]
    became_less = resume_point is not None and since[0].max_tokens != resume_point.state.max_tokens
    resumed_later = any(part["after_step"] > start for part in folder.resumes)
    return (bool(given) and resumed_later) or (became_less and start not in given)


def _difference(now: dict[str, float] | None, then: dict[str, Any], to_rounding: bool) -> tuple[str, str | None]:
    """Return how a step differs from what was recorded of it, and the same again where that is a problem.

    Args:
        now: its metrics; None where it was skipped.
        to_rounding: whether the conditions are others, so that only a loss that is clearly another is a problem.
    """
    if (now is None) != (then["kind"] == "skipped"):
        problem = f"{'skipped' if now is None else 'taken'}, recorded as {'skipped' if now is not None else 'taken'}"
        return problem, problem
    differing = {
        name: abs(value - then.get(name, math.nan)) / max(abs(then.get(name, math.nan)), 1e-12)
        for name, value in (now or {}).items()
        if name not in OF_THE_MACHINE and value != then.get(name)
    }
    if now is None or not differing:
        return "identical", None
    worst = max(differing, key=lambda name: differing[name])
    text = f"{worst} {now[worst]!r}, recorded {then.get(worst)!r}"
    return text, None if to_rounding and differing.get("loss", 0.0) < ROUNDING else text
