"""What a run came to, for its page: a few large numbers, all numbers of the evaluation, answers side by side."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from orpo_cli.reporting.evaluation import interval, number, number_rows, p_value, reasons
from orpo_cli.reporting.metrics_file import sampled
from orpo_cli.reporting.report_page.thinning import some_of
from orpo_cli.statistics.answers import Answer, fluency, repeats
from orpo_cli.statistics.evaluation import Evaluation
from orpo_cli.statistics.intervals import Estimate
from orpo_cli.training.events import Sampled

SAMPLINGS = 6
"""After so many steps the answers are shown; where there are more, some are left out."""


@dataclass(frozen=True)
class Tile:
    """A number before and after training; `before` is None where there is none."""

    label: str
    before: str | None
    after: str
    detail: str


@dataclass(frozen=True)
class Numbers:
    """The table of the evaluation, and what cannot be said."""

    head: list[str]
    rows: list[list[str]]
    note: str


@dataclass(frozen=True)
class ShownAnswer:
    """An answer, when it was given, and what there is to note of it.

    Args:
        sampled: one that was drawn as people sample; None where there is none.
    """

    when: str
    text: str
    note: str
    sampled: str | None


@dataclass(frozen=True)
class Sample:
    """A prompt and its answers, the earliest first."""

    prompt: str
    answers: list[ShownAnswer]


def tiles(
    evaluation: Evaluation | None, records: Sequence[Mapping[str, Any]], before: Sampled | None, after: Sampled | None
) -> list[Tile]:
    """Return the large numbers of a run.

    Args:
        records: the lines of metrics.jsonl, for a run whose scores were not kept, or that held nothing out.
        before, after: the first sampled answers and the last.
    """
    made = list(_of_evaluation(evaluation) if evaluation else _of_records(records))
    if after is not None:
        counts = [fluency(part.answers).repeating for part in (before, after) if part]
        total, ends = len(after.answers), fluency(after.answers).ending
        detail = f"of {total} greedy answers" + ("" if ends is None else f"\n{ends} end by themselves now")
        texts = [str(count) for count in counts]
        made.append(Tile("Answers that repeat", texts[0] if len(texts) > 1 else None, texts[-1], detail))
    return made


def _of_evaluation(evaluation: Evaluation) -> Iterator[Tile]:
    summary, found = evaluation.summary, evaluation.comparison
    changes = {"accuracy": found.change, "nll": found.nll, "margin": found.margin} if found else {}
    counted = f"{summary.pairs} pairs of {summary.prompts} prompts"
    for label, field in (("Accuracy", "accuracy"), ("Nll of chosen", "nll"), ("Margin", "margin")):
        estimate: Estimate = getattr(summary, field)
        before = getattr(evaluation.against_summary, field).value if evaluation.against_summary else None
        change = changes.get(field)
        lines = [f"95 % interval {interval(estimate)}"]
        if isinstance(change, Estimate):
            lines.append(f"change {change.value:+.3f} {interval(change)}")
        lines.append("nats a token")
        if field == "accuracy":
            lines[-1:] = [*([f"p {p_value(found.p)}"] if found else []), counted]
        yield Tile(label, None if before is None else number(before), number(estimate.value), "\n".join(lines))


def _of_records(records: Sequence[Mapping[str, Any]]) -> Iterator[Tile]:
    """Yield what metrics.jsonl says: of the held-out pairs, or else of the training."""
    evaluations = [record for record in records if record["kind"] == "eval"]
    steps = [record for record in records if record["kind"] == "step"]
    rows, of = (
        (evaluations, "held-out pairs, no interval recorded")
        if evaluations
        else (steps, "training, first and last step")
    )
    for label, name in (("Loss", "loss"), ("Accuracy", "accuracy"), ("Margin", "margin")) if rows else ():
        before = number(rows[0][name]) if len(rows) > 1 else None
        yield Tile(label, before, number(rows[-1][name]), of)


def numbers(evaluation: Evaluation | None) -> Numbers | None:
    """Return the table of an evaluation."""
    if evaluation is None:
        return None
    head = ["", "after", "95 % interval"] + ["before", "95 % interval"] * (evaluation.against is not None)
    return Numbers(head, list(number_rows(evaluation)), ". ".join([*reasons(evaluation.summary), *evaluation.notes]))


def first_and_last(records: Sequence[dict[str, Any]]) -> tuple[Sampled | None, Sampled | None]:
    """Return the sampled answers of the first step and those of the last; None for the last where they are the same.

    Args:
        records: the lines of samples.jsonl.
    """
    steps = _steps_of(records)
    if not steps:
        return None, None
    first, last = steps[0], steps[-1]
    return sampled(records, first), sampled(records, last) if last > first else None


def samples(records: Sequence[dict[str, Any]]) -> list[Sample]:
    """Return the prompts with their answers, after at most `SAMPLINGS` steps.

    Args:
        records: the lines of samples.jsonl.
    """
    given: dict[str, list[ShownAnswer]] = {}
    for step in some_of(_steps_of(records), SAMPLINGS):
        part = sampled(records, step)
        for answer in part.answers if part else ():
            given.setdefault(answer.prompt, []).append(_shown(answer, step))
    return [Sample(prompt, answers) for prompt, answers in given.items()]


def left_out(records: Sequence[dict[str, Any]]) -> str:
    """Return how many answers of those records are not shown; nothing where all are."""
    times = len(_steps_of(records))
    return f" After {SAMPLINGS} of {times} steps; samples.jsonl has all." if times > SAMPLINGS else ""


def _steps_of(records: Sequence[dict[str, Any]]) -> list[int]:
    return sorted({record["step"] for record in records})


def _shown(answer: Answer, step: int) -> ShownAnswer:
    notes = []
    if answer.tokens is not None:
        notes.append(f"{answer.tokens} token{'s' * (answer.tokens != 1)}")
    if answer.ends is False:
        notes.append("cut off")
    if repeats(answer.answer):
        notes.append("repeats itself")
    return ShownAnswer(
        f"after step {step}" if step else "before training", answer.answer, ", ".join(notes), answer.sampled
    )
