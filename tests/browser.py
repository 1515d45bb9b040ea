"""Pages opened in a headless Chromium: what was drawn, and what was written to the console."""

import json
import re
import shutil
import subprocess
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
needs_browser = pytest.mark.skipif(
    CHROMIUM is None, reason="no Chromium is installed (Debian: apt-get install chromium)"
)
FLAGS = {"wide": (), "phone, dark": ("--window-size=400,900", "--force-dark-mode")}
SHAPES = ("path", "circle", "rect", "line", "text")


class Drawn(HTMLParser):
    """How many shapes each kind of mark has, by figure; the data tables by figure, and every text of the page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.marks: dict[str, Counter[str]] = {}
        self.texts: list[str] = []
        self._figure = ""
        self._groups: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        attributes = dict(attrs)
        if tag == "figure":
            self._figure = str(attributes["id"])
            self.marks[self._figure] = Counter()
        if tag == "g":
            self._groups.append(attributes.get("aria-label") or (self._groups[-1] if self._groups else ""))
        if tag in SHAPES and self._groups:
            self.marks[self._figure][self._groups[-1]] += 1

    def handle_endtag(self, tag: str) -> None:
        if tag == "g":
            self._groups.pop()

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def opened(page: Path, *flags: str) -> tuple[str, list[str]]:
    """The document after its script has run, and what it wrote to the console, as blocked requests do too."""
    assert CHROMIUM is not None
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", *flags]
    done = subprocess.run(
        [*command, "--virtual-time-budget=5000", "--dump-dom", page.as_uri()],
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    return done.stdout, [line for line in done.stderr.splitlines() if "CONSOLE" in line]


def facts_in(page: Path) -> dict[str, Any]:
    found = re.search(r'id="facts">(.*?)</script>', page.read_text(encoding="utf-8"), re.DOTALL)
    assert found is not None
    facts: dict[str, Any] = json.loads(found[1])
    return facts
