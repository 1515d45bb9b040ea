"""What stays on the screen when a run has ended: its numbers, answers, reading, and what to do with the model."""

import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path

from rich.box import ROUNDED
from rich.console import RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from orpo_cli.quoting import chat_command, evaluate_command, export_command, harmless
from orpo_cli.reporting.answers import AnswersShown, answers_table
from orpo_cli.reporting.curves import four_digits
from orpo_cli.reporting.evaluation import comparison_in_words, numbers_table
from orpo_cli.reporting.history import History
from orpo_cli.reporting.times import duration
from orpo_cli.statistics.evaluation import Evaluation
from orpo_cli.statistics.reading import Sentence
from orpo_cli.training.events import RunFinished

ANSWERS_SHOWN = 3
SUMMARIZED = ("accuracy", "balanced_accuracy", "longer_wins", "nll", "margin", "logps_chosen", "logps_rejected")
"""What the end of a run shows of its evaluation; run.json and `orpo evaluate` have all."""


def summary(outcome: RunFinished, history: History, width: int | None) -> Iterator[RenderableType]:
    """Yield the parts of the summary; a text among them is to be printed as it is, since people or programs copy it.

    Args:
        width: that of the screen, in characters; None where a line may be as long as it is.
    """
    wide = math.inf if width is None else width
    facts = _facts(outcome, history)
    yield Text("\n").join(Text(f"{name}: {value}") for name, value in facts) if width is None else _facts_table(facts)
    if outcome.evaluation is not None:
        yield numbers_table(outcome.evaluation, SUMMARIZED, with_both_intervals=wide >= 80)
    if outcome.before and outcome.after:
        pairs = list(zip(outcome.before.answers, outcome.after.answers, strict=False))[:ANSWERS_SHOWN]
        rows = [AnswersShown(then.prompt, (then.answer, now.answer)) for then, now in pairs]
        table = answers_table(rows, ("before", "after"), wide)
        of_what = "training" if outcome.evaluation is None else "held-out"
        yield Panel(table, title=f"answers to {of_what} prompts", title_align="left", box=ROUNDED)
    if outcome.reading:
        points = [_point(sentence) for sentence in outcome.reading]
        yield Text("\n").join(points) if width is None else _hanging(points)
    best = "" if outcome.best_step is None else f" (the best, after step {outcome.best_step})"
    yield Text(f"model: {outcome.model}{best}", style="bold")
    yield Text(f"score it: {evaluate_command(outcome.model.parent, outcome.evaluation is not None)}")
    yield Text(f"use it: {chat_command(outcome.model.parent)}")
    yield Text(f"export it: {export_command(outcome.model.parent)}")
    yield Text(usage(outcome.model, outcome.chat, outcome.plain))


def _facts(outcome: RunFinished, history: History) -> Iterator[tuple[str, str]]:
    """Yield what the run was, each with its name."""
    speed = "" if history.pairs_per_second is None else f", {history.pairs_per_second:.2f} pairs/s in its steps"
    took = "" if outcome.seconds is None else f" in {duration(outcome.seconds)}"
    yield "run", f"{history.step} steps{took}{speed}"
    first, last = history.training.first, history.training.last
    if first is not None and last is not None:
        ends = [f"{four_digits(item.metrics['loss'])} at step {item.step}" for item in (first, last)]
        yield "loss", ", ".join(dict.fromkeys(ends))
    if outcome.evaluation is not None:
        yield "held out", harmless(_held_out(outcome.evaluation))
    if outcome.peak_memory is not None:
        yield "memory", f"{outcome.peak_memory / 1e9:.2f} GB at the peak"


def _facts_table(facts: Iterator[tuple[str, str]]) -> Table:
    table = Table.grid(padding=(0, 2, 0, 0))
    for name, value in facts:
        table.add_row(Text(name, style="bold"), Text(value))
    return table


def _held_out(evaluation: Evaluation) -> str:
    pairs = f"{evaluation.summary.pairs} pairs of {evaluation.summary.prompts} prompts"
    return f"{pairs}; {comparison_in_words(evaluation)}" if evaluation.comparison is not None else pairs


def usage(model: Path, chat: bool, plain: bool) -> str:
    """Return Python that makes the trained model answer; of an adapter whose base orpo finds, with its help."""
    question = '[{"role": "user", "content": "Why is the sky blue?"}]' if chat else '"Why is the sky blue?"'
    text = '["generated_text"][-1]["content"]' if chat else '["generated_text"]'
    path = json.dumps(str(model if plain else model.parent), ensure_ascii=False)
    opened = "" if plain else f"from orpo_cli import open_run\nrun = open_run({path})\n"
    parts = path if plain else "run.model(), tokenizer=run.tokenizer()"
    return (
        f"in Python:\nfrom transformers import pipeline\n{opened}"
        f'answer = pipeline("text-generation", {parts})\nfound = answer({question})\nprint(found[0]{text})'
    )


def _point(sentence: Sentence) -> Text:
    """Return a sentence of the reading; what may be wrong stands out."""
    return Text(f"{'!' if sentence.warns else '-'} {sentence.text}", style="yellow" if sentence.warns else "")


def _hanging(points: Sequence[Text]) -> Table:
    """Return the points with their lines broken at words, further lines being indented."""
    table = Table.grid(padding=(0, 1, 0, 0))
    for point in points:
        table.add_row(point[:1], point[2:])
    return table
