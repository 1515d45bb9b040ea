"""Show an evaluation as a table for people, as JSON, and as Parquet with what each pair scored."""

from collections.abc import Iterable, Iterator
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from orpo_cli.errors import OutputError
from orpo_cli.quoting import harmless
from orpo_cli.statistics.evaluation import Evaluation, Scored
from orpo_cli.statistics.intervals import Estimate
from orpo_cli.statistics.reading import read_evaluation
from orpo_cli.statistics.summary import BreakdownRow, Summary

_SHOWN = {
    "accuracy": "accuracy",
    "accuracy_sum": "accuracy by the sum",
    "balanced_accuracy": "accuracy, balanced",
    "longer_wins": "longer wins, tokens",
    "longer_wins_characters": "longer wins, characters",
    "nll": "nll of chosen",
    "nll_rejected": "nll of rejected",
    "perplexity": "perplexity of chosen",
    "perplexity_rejected": "perplexity of rejected",
    "margin": "margin",
    "log_odds_ratio": "log odds ratio",
    "logps_chosen": "logps/chosen",
    "logps_rejected": "logps/rejected",
}
"""Fields of a summary, as they are called in the table; docs/evaluation.md explains them."""


_BOTH_INTERVALS = 100
"""The columns that a terminal needs for the intervals of both models."""

_LEFT_OUT = {110: (), 80: ("prompts", "nll", "margin"), 0: ("prompts", "nll", "margin", "95 % interval")}
"""Columns of a terminal -> what the table of the parts leaves out."""


def json_report(evaluation: Evaluation) -> dict[str, Any]:
    """Return the evaluation for machines; where something cannot be said, `reason` says why."""
    report = {"model": evaluation.scored.model, **_numbers(evaluation.summary)}
    report["breakdown"] = [asdict(row) for row in evaluation.breakdown]
    report["against"] = None
    if evaluation.against and evaluation.against_summary and evaluation.comparison:
        changes = {name: _estimate(value) for name, value in vars(evaluation.comparison).items()}
        changes["change_of_nll"], changes["change_of_margin"] = changes.pop("nll"), changes.pop("margin")
        report["against"] = {"model": evaluation.against.model, **changes, **_numbers(evaluation.against_summary)}
    return report | {
        "reading": [asdict(sentence) for sentence in read_evaluation(evaluation)],
        "notes": evaluation.notes,
    }


def _numbers(summary: Summary) -> dict[str, Any]:
    return {field.name: _estimate(getattr(summary, field.name)) for field in fields(summary)}


def _estimate(value: Any) -> Any:
    """Return an estimate as an object; a sentence in its place becomes its reason."""
    if isinstance(value, str):
        return {"value": None, "low": None, "high": None, "reason": value}
    return asdict(value) if hasattr(value, "__dataclass_fields__") else value


def print_report(evaluation: Evaluation, console: Console) -> None:
    """Print the evaluation as tables."""
    summary, against = evaluation.summary, evaluation.against
    console.print(_title(evaluation))
    console.print(numbers_table(evaluation, with_both_intervals=console.width >= _BOTH_INTERVALS))
    if against is not None and evaluation.comparison is not None:
        console.print(Text(harmless(comparison_in_words(evaluation))))
    if evaluation.breakdown:
        console.print(_breakdown_table(evaluation.breakdown, console.width))
    for sentence in read_evaluation(evaluation):
        console.print(Text(f"{'!' if sentence.warns else '-'} {harmless(sentence.text)}"))
    for line in (*reasons(summary), *evaluation.notes):
        console.print(Text(f"note: {harmless(line)}", style="yellow"))


def reasons(summary: Summary) -> Iterator[str]:
    """Yield why something in the table cannot be said."""
    yield from (value for name in _SHOWN if isinstance(value := getattr(summary, name), str))


def _title(evaluation: Evaluation) -> Text:
    summary = evaluation.summary
    against = "" if evaluation.against is None else f", against {evaluation.against.model}"
    return Text(
        harmless(f"{evaluation.scored.model} on {summary.pairs} pairs of {summary.prompts} prompts{against}"),
        style="bold",
    )


def numbers_table(evaluation: Evaluation, names: Iterable[str] = _SHOWN, with_both_intervals: bool = True) -> Table:
    """Return the table of estimates with their intervals, beside those of the other model where there is one.

    Args:
        names: the fields of a summary that are shown.
        with_both_intervals: whether the other model has intervals too; without them the table fits 60 columns.
    """
    table = Table(box=SIMPLE_HEAD, pad_edge=False, padding=(0, 1))
    table.add_column("", no_wrap=True)
    table.add_column("value", justify="right")
    table.add_column("95 % interval", justify="right")
    if evaluation.against_summary is not None:
        table.add_column("against", justify="right")
        if with_both_intervals:
            table.add_column("95 % interval", justify="right")
    for row in number_rows(evaluation, names):
        table.add_row(*row[: len(table.columns)])
    return table


def number_rows(evaluation: Evaluation, names: Iterable[str] = _SHOWN) -> Iterator[list[str]]:
    """Yield the rows of that table: a name, then the value and the interval of each model."""
    summaries = [part for part in (evaluation.summary, evaluation.against_summary) if part is not None]
    for name in names:
        yield [_SHOWN[name], *(cell for part in summaries for cell in _cells(getattr(part, name)))]


def _cells(value: Estimate | str) -> tuple[str, str]:
    return ("-", "-") if isinstance(value, str) else (number(value.value), interval(value))


def number(value: float) -> str:
    """Return a number as it is shown in tables, with three decimals, or fewer digits where it is large."""
    return f"{value:.3f}" if abs(value) < 1000 else f"{value:.4g}"


def interval(value: Estimate) -> str:
    """Return the interval of an estimate in brackets; a dash where there is none."""
    if value.low is None or value.high is None:
        return "-"
    return f"[{number(value.low)}, {number(value.high)}]"


def comparison_in_words(evaluation: Evaluation) -> str:
    """Return how many pairs flipped each way against the other model, and the change of the accuracy."""
    found = evaluation.comparison
    assert found is not None
    return (
        f"against {evaluation.against.model if evaluation.against else ''}: {found.to_chosen} pairs flipped to chosen, "
        f"{found.to_rejected} to rejected; accuracy changes by {found.change.value:+.3f} {interval(found.change)}, "
        f"p {p_value(found.p)}"
    )


def p_value(p: float) -> str:
    """Return a p-value with three decimals, or that it is below them."""
    return f"{p:.3f}" if p >= 0.001 else "< 0.001"


def _breakdown_table(rows: tuple[BreakdownRow, ...], width: int) -> Table:
    """Return the table of the parts; where there is little room, without what matters least."""
    cells = [_breakdown_cells(row) for row in rows]
    left_out = next(names for least, names in _LEFT_OUT.items() if width >= least)
    names = [name for name in cells[0] if name not in left_out and any(name in row for row in cells)]
    table = Table(box=SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    for name in names:
        table.add_column(name, justify="left" if name in ("by", "") else "right", overflow="fold")
    for row in cells:
        table.add_row(*(row.get(name, "") for name in names))
    return table


def _breakdown_cells(row: BreakdownRow) -> dict[str, str]:
    cells = {
        "by": "chosen tokens" if row.by == "length" else row.by,
        "": harmless(row.name),
        "pairs": str(row.pairs),
        "prompts": str(row.prompts),
        "accuracy": number(row.accuracy.value),
        "95 % interval": interval(row.accuracy),
        "nll": number(row.nll.value),
        "margin": number(row.margin.value),
    }
    if row.change is not None and row.p is not None:
        cells |= {"change": f"{row.change.value:+.3f}", "p (Holm)": p_value(row.p)}
    return cells


def write_scores(evaluation: Evaluation, path: Path) -> None:
    """Write what each pair scored, a row for each pair, as Parquet.

    Raises:
        OutputError: if the file cannot be written.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns = _columns(evaluation.scored)
    if evaluation.against is not None:
        columns |= {f"against_{name}": column for name, column in _scores(evaluation.against).items()}
    try:
        pq.write_table(pa.table(columns), path)
    except OSError as error:
        raise OutputError(f"scores={path}: cannot be written: {error.strerror or error}") from None


def _columns(scored: Scored) -> dict[str, Any]:
    pairs = scored.pairs
    return {
        "file": pairs.source,
        "line": scored.lines,
        "prompt": pairs.prompt,
        "turns": pairs.turns,
        "weight": pairs.weight,
        "chosen_characters": pairs.chosen_characters,
        "rejected_characters": pairs.rejected_characters,
        **_scores(scored),
    }


def _scores(scored: Scored) -> dict[str, Any]:
    pairs = scored.pairs
    return {
        "chosen_tokens": pairs.chosen_tokens,
        "rejected_tokens": pairs.rejected_tokens,
        "chosen_logp": pairs.chosen_logp,
        "rejected_logp": pairs.rejected_logp,
        "margin": pairs.margin,
        "log_odds_ratio": pairs.log_odds_ratio,
        "wins": pairs.wins,
    }
