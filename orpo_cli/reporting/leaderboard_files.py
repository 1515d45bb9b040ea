"""Write runs side by side as JSON, CSV, Markdown and LaTeX."""

import csv
import io
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from orpo_cli.errors import OutputError
from orpo_cli.reporting.evaluation import interval
from orpo_cli.reporting.leaderboard import ALL_RUNS, FRONT, HEADINGS, again, rank_of, said, with_spread
from orpo_cli.statistics.intervals import Estimate
from orpo_cli.statistics.leaderboard import METRICS, Leaderboard, Place, shown
from orpo_cli.statistics.pooled import Pooled

_LATEX = {
    "\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}",
    **{sign: f"\\{sign}" for sign in "&%$#_{}"},
}  # fmt: skip


def json_leaderboard(board: Leaderboard) -> dict[str, Any]:
    """Return runs side by side for machines."""
    return {
        "by": board.by,
        "pairs": board.pairs,
        "prompts": board.prompts,
        "keys": list(board.keys),
        "verdict": board.verdict,
        "winner": None if board.winner is None else dict(board.winner.settings),
        "places": [_place(place) for place in board.places],
        "before": None if board.before is None else _metrics(board.before, {}),
        "effects": [asdict(effect) for effect in board.effects],
        "unranked": [asdict(run) for run in board.unranked],
        "notes": list(board.notes),
    }


def _place(place: Place) -> dict[str, Any]:
    return {
        "rank": place.rank,
        "settings": dict(place.settings),
        "runs": [{"folder": folder, "seed": seed} for folder, seed in zip(place.folders, place.seeds, strict=True)],
        **_metrics(place.metrics, place.spread),
        "loss": place.loss,
        "p": place.p,
        "is_on_front": place.is_on_front,
        "command": again(place.folders[0]),
    }


def _metrics(metrics: Pooled, spread: Mapping[str, float | None]) -> dict[str, Any]:
    """Return each metric as an object; where it cannot be said, `reason` says why."""
    found: dict[str, Any] = {}
    for name, value in vars(metrics).items():
        if isinstance(value, str):
            found[name] = {"value": None, "low": None, "high": None, "sd": None, "reason": value}
        else:
            found[name] = asdict(value) | {"sd": spread.get(name)}
    return found


def csv_text(board: Leaderboard) -> str:
    """Return a line for each recipe, the model before training, and each run that is not ranked; without loss."""
    columns = [f"{name}{part}" for name in METRICS for part in ("", "_low", "_high", "_sd")]
    heading = ["rank", *board.keys, "seeds", *columns, "loss", "p", "is_on_front", "state", "folders"]
    written = io.StringIO()
    lines = csv.DictWriter(written, heading, lineterminator="\n")
    lines.writeheader()
    for place in board.places:
        numbers = _metrics(place.metrics, place.spread)
        known = {"rank": place.rank, "loss": place.loss, "p": place.p, "is_on_front": place.is_on_front}
        settings = {key: shown(value) for key, value in place.settings.items()}
        runs = {"seeds": len(place.seeds), "state": "finished", "folders": ";".join(place.folders)}
        lines.writerow(settings | known | runs | _flat(numbers))
    if board.before is not None:
        lines.writerow({"state": "before training"} | _flat(_metrics(board.before, {})))
    for run in board.unranked:
        lines.writerow({"state": run.in_words, "folders": run.folder})
    return written.getvalue()


def _flat(numbers: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    parts = {"": "value", "_low": "low", "_high": "high", "_sd": "sd"}
    return {f"{name}{end}": of[part] for name, of in numbers.items() for end, part in parts.items()}


def markdown_text(board: Leaderboard) -> str:
    """Return a table and what it says, in Markdown."""

    def escaped(text: str) -> str:
        return re.sub(r"([\\`*_\[\]<>|])", r"\\\1", " ".join(text.split()))

    rows = list(
        _rows(board, escaped, "**{}**", lambda value, spread: f"{with_spread(value, spread)} {interval(value)}")
    )
    heading = [escaped(name) for name in _heading(board)]
    lines = [heading, ["---"] * 2 + ["---:"] * (len(heading) - 3) + ["---"], *rows]
    table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    return "\n\n".join([table, *(escaped(text) for text in _words(board))]) + "\n"


def latex_text(board: Leaderboard) -> str:
    """Return a table for LaTeX with the package booktabs; what it says is its caption."""

    def escaped(text: str) -> str:
        return "".join(_LATEX.get(sign, sign) for sign in " ".join(text.split())).replace("<=", r"$\leq$")

    def cell(value: Estimate, spread: float | None) -> str:
        numbers = with_spread(value, spread).replace("±", r"\pm ")
        return rf"${numbers}$ {{\scriptsize${interval(value)}$}}"

    rows = [" & ".join(row) for row in _rows(board, escaped, r"\textbf{{{}}}", cell)]
    heading = " & ".join(escaped(name) for name in _heading(board))
    columns = "ll" + "r" * len(said(board)) + "l"
    lines = [
        r"\begin{table}", r"\centering", rf"\caption{{{escaped(' '.join(_words(board)))}}}",
        rf"\begin{{tabular}}{{{columns}}}", r"\toprule", rf"{heading} \\", r"\midrule",
        *(rf"{row} \\" for row in rows), r"\bottomrule", r"\end{tabular}", r"\end{table}",
    ]  # fmt: skip
    return "\n".join(lines).replace(FRONT, r"$\diamond$") + "\n"


def _heading(board: Leaderboard) -> list[str]:
    return ["rank", "recipe", *(HEADINGS[name] for name in said(board)), "front"]


def _rows(
    board: Leaderboard,
    escaped: Callable[[str], str],
    bold: str,
    cell: Callable[[Estimate, float | None], str],
) -> Iterator[list[str]]:
    """Yield the cells of each recipe; the names of those on the first rank are bold where there is a second."""

    def numbers(metrics: Pooled, spread: Mapping[str, float | None]) -> Iterator[str]:
        for name in said(board):
            value = getattr(metrics, name)
            yield "-" if isinstance(value, str) else cell(value, spread.get(name))

    has_second = any(place.rank not in (1, None) for place in board.places)
    for place in board.places:
        name = escaped(place.name or ALL_RUNS)
        yield [
            rank_of(place, board.places),
            bold.format(name) if place.rank == 1 and has_second else name,
            *numbers(place.metrics, place.spread),
            FRONT if place.is_on_front else "",
        ]
    if board.before is not None:
        yield ["", "before training", *numbers(board.before, {}), ""]


def _words(board: Leaderboard) -> Iterator[str]:
    yield board.verdict
    yield "In brackets the 95 % interval over prompts; after ± the standard deviation over seeds."
    yield from (f"{note[0].upper()}{note[1:]}." for note in board.notes)


def write_files(board: Leaderboard, paths: Mapping[str, Path | None]) -> None:
    """Write what was asked for.

    Args:
        paths: by `csv`, `markdown` and `latex`; None where it was not asked for.
    Raises:
        OutputError: if a file cannot be written.
    """
    texts = {"csv": csv_text, "markdown": markdown_text, "latex": latex_text}
    for kind, path in paths.items():
        if path is None:
            continue
        try:
            path.write_text(texts[kind](board), encoding="utf-8")
        except OSError as error:
            raise OutputError(f"--{kind} {path}: cannot be written: {error.strerror or error}") from None
