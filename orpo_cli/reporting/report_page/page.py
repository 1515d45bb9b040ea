"""Put the facts of a run into one self-contained HTML file, which asks the network for nothing."""

import html
import json
import re
from dataclasses import asdict, dataclass
from importlib.resources import files
from typing import Any

from orpo_cli.config.defaults import Difference
from orpo_cli.reporting.report_page.figures import Figure
from orpo_cli.reporting.report_page.margins import MarginFigure
from orpo_cli.reporting.report_page.result import Numbers, Sample, Tile


@dataclass(frozen=True)
class Facts:
    """Everything that the page says; web/src/report.js reads these names.

    Args:
        state: whether the run is finished, in words.
        reading: what is to be said of the run: `text`, and whether it `warns`.
        held_out, training: the figures.
        thinning: how long curves were thinned; None where none was.
        samples_note: of which prompts the answers are.
        what: facts of the run by their names.
        ledger: part, class and number of pairs.
        commands: what to type next, by what it does.
    """

    title: str
    folder: str
    state: str
    tiles: list[Tile]
    reading: list[dict[str, Any]]
    numbers: Numbers | None
    held_out: list[Figure | MarginFigure]
    training: list[Figure]
    thinning: str | None
    samples: list[Sample]
    samples_note: str
    formula: str
    what: list[tuple[str, str]]
    differences: list[Difference]
    ledger: list[tuple[str, str, int]]
    notes: list[str]
    commands: list[tuple[str, str]]


def page(facts: Facts) -> str:
    """Return the page as HTML."""
    parts = {
        "title": html.escape(facts.title),
        "style": _file("report.css"),
        "facts": _harmless_json(_plain(facts)),
        "script": _file("report.js"),
    }
    # in one pass, since what is put in may hold what looks like a place to put something in
    return re.sub(r"\{\{(\w+)\}\}", lambda place: parts[place[1]], _file("report.html"))


def _plain(facts: Facts) -> dict[str, Any]:
    values = asdict(facts)
    shown = [(part.key, _value(part.value), _value(part.default)) for part in facts.differences]
    return values | {"differences": shown}


def _value(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _harmless_json(values: Any) -> str:
    """Return JSON in ASCII that ends no script element, whatever texts are in it."""
    return json.dumps(values, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")


def _file(name: str) -> str:
    return files(__package__).joinpath(name).read_text(encoding="utf-8")
