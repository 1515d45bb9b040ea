"""Put facts into one self-contained HTML file, which asks the network for nothing."""

import html
import json
import re
from dataclasses import asdict
from importlib.resources import files
from typing import Any

from orpo_cli.config.defaults import Difference
from orpo_cli.reporting.report_page.facts import ComparisonFacts, RunFacts


def page(facts: RunFacts | ComparisonFacts) -> str:
    """Return the page of a run or of a comparison as HTML."""
    parts = {
        "title": html.escape(facts.title),
        "style": _file("report.css"),
        "facts": _harmless_json(_plain(facts)),
        "script": _file("report.js"),
    }
    # in one pass, since what is put in may hold what looks like a place to put something in
    return re.sub(r"\{\{(\w+)\}\}", lambda place: parts[place[1]], _file("report.html"))


def _plain(facts: RunFacts | ComparisonFacts) -> dict[str, Any]:
    if isinstance(facts, ComparisonFacts):
        return asdict(facts)
    return asdict(facts) | {"differences": [_shown(part) for part in facts.differences]}


def _shown(part: Difference) -> tuple[str, str, str]:
    return part.key, _value(part.value), _value(part.default)


def _value(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _harmless_json(values: Any) -> str:
    """Return JSON in ASCII that ends no script element, whatever texts are in it."""
    return json.dumps(values, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")


def _file(name: str) -> str:
    return files(__package__).joinpath(name).read_text(encoding="utf-8")
