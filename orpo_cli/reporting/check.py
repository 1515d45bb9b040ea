"""Print the report of `orpo check` as a screen, or give it as JSON."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import numpy as np
from rich.box import ROUNDED, SIMPLE_HEAD
from rich.console import Console, Group, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from orpo_cli.data.checking.findings import Finding
from orpo_cli.data.pairs import Source, TokenizedPair
from orpo_cli.data.prepare import PreparedData
from orpo_cli.data.tokens.store import LENGTHS
from orpo_cli.quoting import harmless
from orpo_cli.training.estimate import RunEstimate

_SEGMENT_CHARACTERS = 400
_LIMITS = (128, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768)
_BAR = "█"
_PARTS = ("", "▏", "▎", "▍", "▌", "▋", "▊", "▉")
_STYLES = {"prompt": "cyan", "chosen": "green", "rejected": "red"}


@dataclass(frozen=True)
class Piece:
    """Hold neighbouring tokens of one pair as text; a special token stands alone."""

    text: str
    is_special: bool


@dataclass(frozen=True)
class Report:
    """Hold everything `orpo check` has to say.

    Args:
        model: the model as the user named it.
        notes: what a run of the same configuration would say of data and model, one line each.
        max_length, policy: the length policy that is in force.
        skips: whether a run leaves invalid rows out, and does not stop at them.
        sample: the first pair to train on, decoded, by part; empty where there is none.
        source: the place of the sample.
        estimate: the estimate for the run; None where no pair is left to train on.
    """

    model: str
    data: PreparedData
    notes: Sequence[str]
    max_length: int
    policy: str
    skips: bool
    findings: Sequence[Finding]
    sample: dict[str, list[Piece]]
    source: Source | None
    estimate: RunEstimate | None

    @property
    def classes(self) -> dict[tuple[str, str], int]:
        """Return the number of pairs by split and class."""
        return self.data.ledger.classes

    @property
    def invalid(self) -> int:
        """Return the number of records of invalid rows."""
        return sum(count for (_, name), count in self.classes.items() if name.startswith("invalid:"))

    @property
    def rows(self) -> int:
        """Return the number of rows of the input."""
        return self.data.ledger.rows

    @cached_property
    def lengths(self) -> dict[str, Any]:
        """Return the lengths of all pairs before anything was cut, by part; `pair` is prompt + the longer answer."""
        files = [part.file for part in self.data.ledger.parts]
        columns = [np.concatenate([file.column(name) for file in files]) for name in LENGTHS]
        prompt, chosen, rejected = (column[columns[0] > 0] for column in columns)
        return {"prompt": prompt, "chosen": chosen, "rejected": rejected, "pair": prompt + np.maximum(chosen, rejected)}


def decoded(pair: TokenizedPair, tokenizer: Any) -> dict[str, list[Piece]]:
    """Return the parts of a pair as the model sees them: what its ids decode to."""
    special = set(tokenizer.all_special_ids) | set(getattr(tokenizer, "added_tokens_decoder", {}))
    parts = {"prompt": pair.prompt_ids, "chosen": pair.chosen_ids, "rejected": pair.rejected_ids}
    return {name: list(_pieces(ids, special, tokenizer)) for name, ids in parts.items()}


def _pieces(ids: Sequence[int], special: set[int], tokenizer: Any) -> Iterator[Piece]:
    run: list[int] = []
    for token in [*ids, None]:
        if run and (token is None or token in special):
            yield Piece(tokenizer.decode(run, skip_special_tokens=False), False)
            run = []
        if token is not None and token in special:
            yield Piece(tokenizer.decode([token], skip_special_tokens=False), True)
        elif token is not None:
            run.append(token)


def json_report(report: Report) -> dict[str, Any]:
    """Return the report for machines."""
    lengths = report.lengths
    return {
        "model": report.model,
        "files": {
            name: {"sha256": digest, "format": report.data.formats[name], "columns": report.data.shapes[name].renamed}
            for name, digest in report.data.sha256.items()
        },
        "rows": report.rows,
        "pairs": sum(report.classes.values()),
        "classes": {f"{split}/{name}": count for (split, name), count in report.classes.items()},
        "notes": [*report.notes],
        "uses_chat_template": report.data.uses_chat_template,
        "max_length": report.max_length,
        "length_policy": report.policy,
        "lengths": {name: _quantiles(values) for name, values in lengths.items()},
        "pairs_within": {str(limit): int((lengths["pair"] <= limit).sum()) for limit in _LIMITS},
        "sample": {
            "source": str(report.source),
            **{name: [asdict(piece) for piece in pieces] for name, pieces in report.sample.items()},
        },
        "findings": [
            {
                "name": finding.name,
                "count": finding.count,
                "text": finding.text,
                "examples": [
                    {"source": str(example.source), "excerpt": example.excerpt}
                    | ({"like": str(example.like)} if example.like else {})
                    for example in finding.examples
                ],
            }
            for finding in report.findings
        ],
        "plan": asdict(report.estimate) if report.estimate else None,
    }


def print_report(report: Report, console: Console) -> None:
    """Print the report for people, as wide as the terminal."""
    console.print(_facts(report))
    if len(report.lengths["pair"]):
        console.print(_histogram(report, console.width))
        console.print(_limits(report))
    if report.sample:
        console.print(_sample(report))
    console.print(_plan(report.estimate) if report.estimate else Text("no pair is left to train on", style="red"))
    console.print(_problems(report))
    if report.findings or not report.invalid:
        console.print(_findings(report.findings))


def _facts(report: Report) -> RenderableType:
    data = report.data
    table = Table.grid(padding=(0, 2))
    table.add_column(style="bold")
    table.add_column()
    for name, shape in data.shapes.items():
        columns = ", ".join(f"{field}={column}" for field, column in shape.renamed.items())
        table.add_row("data", Text(f"{name} ({shape.format}{': ' if columns else ''}{columns})"))
    chat = "chat template" if data.uses_chat_template else "plain text"
    table.add_row("tokens", Text(f"of {report.model}, {chat}, at most {report.max_length}, {report.policy}"))
    pairs = sum(report.classes.values())
    table.add_row("rows", f"{report.rows:,}" + (f" with {pairs:,} pairs" if pairs != report.rows else ""))
    for (split, name), count in report.classes.items():
        style = "" if name == "kept" else "red" if name.startswith("invalid") else "yellow"
        table.add_row("", Text(f"{count:>9,}  {count / max(1, pairs):>6.1%}  {split} {name}", style=style))
    return Panel(table, title="orpo check", title_align="left", box=ROUNDED)


def _quantiles(values: Any) -> dict[str, float]:
    if not len(values):
        return {}
    names = {"min": 0.0, "median": 0.5, "p90": 0.9, "p99": 0.99, "max": 1.0}
    return {"mean": float(values.mean())} | {name: float(np.quantile(values, at)) for name, at in names.items()}


def _histogram(report: Report, width: int) -> RenderableType:
    """Show lengths in bins that double, with a bar for each part."""
    lengths = report.lengths
    top = max(4, int(np.ceil(np.log2(max(1, int(lengths["pair"].max()))))))
    low = max(3, int(np.floor(np.log2(max(1, min(int(values.min()) for values in lengths.values()))))))
    edges = [0, *(2**power for power in range(min(low, top), top + 1))]
    table = Table(box=SIMPLE_HEAD, pad_edge=False, title="tokens", title_justify="left", title_style="bold")
    table.add_column("up to", justify="right")
    for name in lengths:
        table.add_column("prompt + longer answer" if name == "pair" else name)
    room = max(4, (width - 12) // 4 - 12)
    counts = {name: np.histogram(values, np.array(edges) + 0.5)[0] for name, values in lengths.items()}
    for place, edge in enumerate(edges[1:]):
        cells = [Text(f"{edge:,}")]
        for name, bins in counts.items():
            bar = _bar(bins[place] / max(1, bins.max()), room)
            cells.append(
                Text.assemble((f"{bar:<{room}}", _STYLES.get(name, "")), f" {bins[place]:>8,}" if bins[place] else "")
            )
        table.add_row(*cells)
    quantiles = [_quantiles(values) for values in lengths.values()]
    for statistic in ("median", "p99", "max"):
        table.add_row(statistic, *(f"{of_part[statistic]:,.0f}" for of_part in quantiles), style="dim")
    return table


def _bar(share: float, width: int) -> str:
    eighths = round(share * width * 8)
    eighths = max(eighths, 1) if share > 0 else 0
    return _BAR * (eighths // 8) + _PARTS[eighths % 8]


def _limits(report: Report) -> RenderableType:
    """Show how many pairs other limits would keep."""
    pair = report.lengths["pair"]
    longest = int(pair.max())
    enough = next((limit for limit in _LIMITS if limit >= longest), longest)
    useful = [limit for limit in _LIMITS if limit <= enough and (pair <= limit).mean() > 0.5]
    kept = sorted({*useful, report.max_length})
    text = Text("data.max_length  ")
    for limit in kept:
        style = "bold" if limit == report.max_length else ""
        text.append(f"{limit:,}: {(pair <= limit).mean():.1%} of the pairs fit   ", style=style)
    return text


def _sample(report: Report) -> RenderableType:
    """Show prompt and chosen response as the one text that they are, and the rejected response in its place."""
    body = Text("prompt, then chosen (trained) behind ▸\n", "bold")
    _append(body, report, "prompt")
    body.append("▸", "bold")
    _append(body, report, "chosen")
    body.append("\nrejected (compared), in the place of chosen\n", "bold")
    body.append("▸", "bold")
    _append(body, report, "rejected")
    return Panel(body, title=f"one pair as the model sees it ({report.source})", title_align="left", box=ROUNDED)


def _append(body: Text, report: Report, part: str) -> None:
    pieces = report.sample[part]
    is_long = sum(len(piece.text) for piece in pieces) > 2 * _SEGMENT_CHARACTERS
    for piece in _shortened(pieces) if is_long else pieces:
        text, style = harmless(piece.text), _STYLES[part]
        body.append(f"⟦{text}⟧" if piece.is_special else text, f"{style} reverse" if piece.is_special else style)


def _shortened(pieces: Sequence[Piece]) -> Iterator[Piece]:
    """Leave out the middles of long texts; special tokens stay."""
    room = _SEGMENT_CHARACTERS // max(1, sum(not piece.is_special for piece in pieces))
    for piece in pieces:
        if piece.is_special or len(piece.text) <= room:
            yield piece
        else:
            half = max(10, room // 2)
            yield Piece(f"{piece.text[:half]} ... {piece.text[-half:]}", False)


def _plan(estimate: RunEstimate) -> RenderableType:
    trained = f"{estimate.trained:,} of {estimate.parameters:,} parameters"
    padding = "no padding, prompts once for both responses"
    if estimate.placed < 1:
        padding = (
            f"{1 - estimate.placed:.0%} padding (in the order of the file {1 - estimate.placed_in_file_order:.0%})"
        )
    table = Table.grid(padding=(0, 2))
    table.add_column(style="bold")
    table.add_column()
    table.add_row(
        "plan", f"{estimate.steps:,} steps, {estimate.pairs:,} pairs and {estimate.tokens:,} tokens an epoch, {padding}"
    )
    each = f" for each of {estimate.processes} processes" if estimate.processes > 1 else ""
    about = f"about {estimate.memory_bytes / 1e9:.1f} GB{each} and {_duration(estimate.seconds)} on this machine"
    table.add_row("", f"{trained}; {about}, evaluation aside")
    return table


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes / 60:.1f} h"


def _problems(report: Report) -> RenderableType:
    skipped = [note.removeprefix("skipped ") for note in report.notes if note.startswith("skipped ")]
    lines = [Text(f"! {note}", style="yellow") for note in report.notes if not note.startswith("skipped ")]
    if report.invalid:
        left_out = ", and left out (data.on_bad_row=skip)" if report.skips else ""
        lines += [Text(f"{report.invalid:,} of {report.rows:,} rows are invalid{left_out}:", style="red")]
    return Group(*lines, *(Text(line, style="red") for line in skipped))


def _findings(findings: Sequence[Finding]) -> RenderableType:
    if not findings:
        return Text("nothing found", style="green")
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    table.add_column("finding", style="bold yellow", no_wrap=True)
    table.add_column("pairs", justify="right")
    table.add_column("what it is", overflow="fold")
    for finding in findings:
        where = Text(finding.text)
        for example in finding.examples:
            excerpt = f"  {example.excerpt.strip()[:60]!r}" if example.excerpt else ""
            like = f"  like {example.like}" if example.like else ""
            where.append(f"\n{example.source}{excerpt}{like}", style="dim")
        table.add_row(finding.name, f"{finding.count:,}", where)
    return table
