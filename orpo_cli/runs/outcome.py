"""What a run has come to: its evaluation, its reading, and what run.json keeps of them."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from orpo_cli.data import plan
from orpo_cli.reporting.evaluation import json_report
from orpo_cli.reporting.metrics_file import metrics_of, sampled
from orpo_cli.runs.folder import RunFolder
from orpo_cli.runs.scores import read_scored
from orpo_cli.statistics.evaluation import Evaluation, evaluation_of
from orpo_cli.statistics.reading import Outcome, Sentence
from orpo_cli.training.events import RunFinished, Sampled

if TYPE_CHECKING:
    from orpo_cli.training.inputs import Training


def evaluation_of_run(folder: RunFolder, records: Sequence[dict[str, Any]], step: int) -> Evaluation | None:
    """Return what the model after a step gave to the held-out pairs, against the model before the first step.

    Args:
        records: the evaluations in metrics.jsonl.
    Returns:
        None where nothing was held out, or where it was not recorded, as in a run of an earlier version.
    """
    metrics = {record["step"]: metrics_of(record) for record in records}
    if step not in metrics:
        return None
    now = read_scored(folder.evaluations, str(folder.model), step, metrics[step])
    if now is None or 0 not in metrics or step == 0:
        return None if now is None else evaluation_of(now)
    base = f"{folder.config.model.path}, before training"
    return evaluation_of(now, read_scored(folder.evaluations, base, 0, metrics[0]))


def outcome_of(
    training: "Training", evaluation: Evaluation | None, before: Sampled | None, after: Sampled | None, step: int
) -> Outcome:
    """Return what the reading of a run rests on.

    Args:
        step: the last one.
    """
    config = training.config
    per_step = config.trainer.pairs_per_step
    last = next(plan.steps(training.epoch, per_step, step, config.seed, step)) if step else None
    return Outcome(
        lambda_=None if config.loss.preference == "none" else config.lambda_,
        evaluation=evaluation,
        before=before.answers if before else (),
        after=after.answers if after else (),
        pairs_per_step=per_step,
        pairs_in_last_step=len(last.pairs) if last else per_step,
        held_out=len(training.evaluation),
    )


def what_is_noted(finished: RunFinished) -> dict[str, Any]:
    """Return what run.json says of how a run ended."""
    return {
        "evaluation": None if finished.evaluation is None else json_report(finished.evaluation),
        "reading": [asdict(sentence) for sentence in finished.reading],
        "seconds": finished.seconds,
        "peak_memory": finished.peak_memory,
        "chat": finished.chat,
        "plain": finished.plain,
    }


def finished_as_recorded(folder: RunFolder) -> RunFinished:
    """Return how a finished run ended, as its files tell it."""
    record, end = folder.record, folder.end
    last, model_step = end.get("step", 0), end.get("model_step", 0)
    samples = [line for _, line in folder.samples_lines if line is not None]
    evaluations = [line for line in folder.records if line["kind"] == "eval"]
    return RunFinished(
        evaluation=evaluation_of_run(folder, evaluations, model_step),
        reading=[Sentence(**sentence) for sentence in record.get("reading", [])],
        before=sampled(samples, 0),
        after=sampled(samples, last) if last == model_step > 0 else None,
        model=folder.model,
        chat=record.get("chat", True),
        plain=record.get("plain", True),
        best_step=None if last == model_step else model_step,
        seconds=record.get("seconds"),
        peak_memory=record.get("peak_memory"),
    )
