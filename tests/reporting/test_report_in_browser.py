"""report.html in a headless Chromium: nothing on the console, and every figure has its marks and its interval."""

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

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed (Debian: apt-get install chromium)"),
]
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


@pytest.mark.parametrize("flags", [(), ("--window-size=400,900", "--force-dark-mode")], ids=["wide", "phone, dark"])
def test_every_figure_has_its_marks(reference: Path, flags: tuple[str, ...]) -> None:
    page = reference / "report.html"
    document, console = opened(page, *flags)
    assert console == []
    marks, facts = Drawn(document).marks, facts_in(page)
    figures = {part["name"]: part for part in facts["held_out"] + facts["training"]}
    assert marks.keys() == {f"figure-{name}" for name in figures}
    assert len(figures) == 11
    for name, figure in figures.items():
        found = marks[f"figure-{name}"]
        if name == "margins":
            assert found["rect"] == sum(count > 0 for part in figure["parts"] for count in part["counts"])
            assert found["dot"] == 2, "the means"
            assert found["rule"] == 2 + 2 + 2, "zero and the base of each part, and the two intervals"
            continue
        assert found["line"] == len(figure["series"]), name
        assert found["area"] == sum(series["low"] is not None for series in figure["series"]), name
        dotted = [series for series in figure["series"] if series["role"] in ("held_out", "chosen", "rejected")]
        assert found["dot"] == sum(len(series["step"]) for series in dotted), name


def test_what_is_written_in_the_files_is_text_on_the_page(reference: Path, tmp_path: Path) -> None:
    """The same texts as the facts have; a script that they spell does not run."""
    page, nasty = (
        tmp_path / "page.html",
        "<img src=x onerror=\"document.title='mine'\"></script><script>alert(1)</script>",
    )
    facts = facts_in(reference / "report.html")
    facts["samples"][0]["prompt"] = facts["notes"][0] = facts["title"] = nasty
    facts["reading"][0]["text"] = nasty
    given = json.dumps(facts).replace("<", "\\u003c")
    written = (reference / "report.html").read_text(encoding="utf-8")
    page.write_text(re.sub(r'(id="facts">).*?(</script>)', lambda m: m[1] + given + m[2], written, flags=re.DOTALL))
    document, console = opened(page)
    assert console == []
    drawn = Drawn(document)
    assert drawn.texts.count(nasty) == 4
    assert "<img" not in document.split("<main>", 1)[1].split("<script", 1)[0]


def test_a_request_would_be_seen(reference: Path, tmp_path: Path) -> None:
    """The policy of the page blocks it, and says so on the console, which the tests above find empty."""
    page = tmp_path / "page.html"
    asking = '<main><img src="http://example.org/x.png">'
    page.write_text((reference / "report.html").read_text(encoding="utf-8").replace("<main>", asking, 1))
    _, console = opened(page)
    assert any("violates the following Content Security Policy" in line for line in console)
