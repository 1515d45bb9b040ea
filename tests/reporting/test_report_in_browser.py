"""report.html in a headless Chromium: nothing on the console, and every figure has its marks and its interval."""

import json
import re
from pathlib import Path

import pytest
from browser import FLAGS, Drawn, facts_in, needs_browser, opened

pytestmark = [pytest.mark.slow, needs_browser]


@pytest.mark.parametrize("flags", FLAGS.values(), ids=FLAGS)
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
