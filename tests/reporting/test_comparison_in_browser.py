"""The page of a comparison in a headless Chromium: nothing on the console, and every figure has its marks."""

import html
import itertools
import re
import xml.etree.ElementTree as ET
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest
from browser import FLAGS, Drawn, facts_in, needs_browser, opened
from made_runs import with_lambda
from made_sweeps import made_sweep, with_lr, with_model

import orpo_cli
from orpo_cli.config.schema import RunConfig

pytestmark = [pytest.mark.slow, needs_browser]
LONG = "/models/<b>of an organisation</b>/with-a-long-name/"


def lambdas_and_seeds(folder: Path, config: RunConfig) -> Path:
    won = {0: (50, 52, 1.0), 0.1: (60, 63, 1.05), 0.5: (80, 83, 1.2), 2: (81, 85, 1.8)}
    jobs = [(with_lambda(config, key, seed), of[seed], of[2]) for key, of in won.items() for seed in (0, 1)]
    return made_sweep(folder, jobs)


def one_recipe(folder: Path, config: RunConfig) -> Path:
    return made_sweep(folder, [(with_lambda(config, 1, seed), 70 + seed, 1.1) for seed in (0, 1)])


def nothing_ranked(folder: Path, config: RunConfig) -> Path:
    made_sweep(folder, [(config, 50, 1.0), (config, 60, 1.0)])
    (folder / "1" / "run.json").write_text("{}")
    (folder / "0" / "run.json").write_text("{}")
    return folder


def thirty_recipes(folder: Path, config: RunConfig) -> Path:
    """All but crowded: 30 marks between 0.40 and 0.98."""
    grid = enumerate(itertools.product((0.02, 0.05, 0.1, 0.2, 0.5, 1), (1e-6, 5e-6, 1e-5, 5e-5, 1e-4)))
    return made_sweep(
        folder, [(with_lr(with_lambda(config, key), lr), 40 + 2 * n, 1 + n * 7 % 30 / 30) for n, (key, lr) in grid]
    )


def long_names(folder: Path, config: RunConfig) -> Path:
    return made_sweep(folder, [(with_model(config, f"{LONG}{n}"), 60 + 5 * n, 1 + n / 10) for n in range(3)])


BOARDS = {
    "four recipes of two seeds": lambdas_and_seeds, "one recipe": one_recipe, "nothing ranked": nothing_ranked,
    "thirty recipes": thirty_recipes, "long names": long_names,
}  # fmt: skip


@pytest.fixture(scope="module")
def config() -> RunConfig:
    return orpo_cli.configure("model=tiny", "data=made.jsonl", "data.eval_fraction=0.25", "optimizer.lr=1e-3")


@pytest.fixture(params=BOARDS)
def page(request: pytest.FixtureRequest, tmp_path: Path, config: RunConfig) -> Path:
    made: Callable[[Path, RunConfig], Path] = BOARDS[request.param]
    return orpo_cli.report(made(tmp_path / "sweep", config))


@pytest.mark.parametrize("flags", FLAGS.values(), ids=FLAGS)
def test_every_figure_has_its_marks(page: Path, flags: tuple[str, ...]) -> None:
    document, console = opened(page, *flags)
    assert console == []
    drawn, facts = Drawn(document), facts_in(page)
    figures = [*([facts["trade_off"]] if facts["trade_off"] else []), *facts["settings"], *facts["curves"]]
    assert drawn.marks.keys() == {f"figure-{figure['name']}" for figure in figures}
    for figure in figures:
        found = drawn.marks[f"figure-{figure['name']}"]
        check = {"trade_off": _check_trade_off, "setting": _check_setting, "lines": _check_lines}[figure["kind"]]
        check(figure, found)
    if facts["trade_off"]:
        for mark in facts["trade_off"]["recipes"]:
            assert mark["label"] in drawn.texts, "a label without room"


def _check_trade_off(figure: dict[str, Any], found: dict[str, int]) -> None:
    marks = [*figure["recipes"], *([figure["before"]] if figure["before"] else [])]
    assert found["dot"] == len(marks)
    assert found["rule"] == 2 * len(marks), "an interval both ways"
    assert found["line"] == any(mark["is_on_front"] for mark in marks), "the front"
    assert found["label"] >= len(marks)


def _check_setting(figure: dict[str, Any], found: dict[str, int]) -> None:
    assert found["dot"] == len(figure["runs"]) + len(figure["values"])
    assert found["line"] == len({dot["others"] for dot in figure["runs"]})


def _check_lines(figure: dict[str, Any], found: dict[str, int]) -> None:
    assert found["line"] == len(figure["series"])


def test_the_places_are_a_table(tmp_path: Path, config: RunConfig) -> None:
    page = orpo_cli.report(lambdas_and_seeds(tmp_path / "sweep", config))
    document, _ = opened(page)
    rows = facts_in(page)["places"]["rows"]
    table = document.partition("<main>")[2].partition("<table")[2].partition("</table>")[0]
    assert table.count("<tr") == len(rows) + 1
    for cell in (cell for row in rows for cell in row if cell):
        for text in [cell] if isinstance(cell, str) else cell:
            assert f">{html.escape(text, quote=False)}<" in table


def test_long_names_are_text(tmp_path: Path, config: RunConfig) -> None:
    document, _ = opened(orpo_cli.report(long_names(tmp_path / "sweep", config)))
    assert f"{LONG}2" in Drawn(document).texts
    assert "<b>" not in document.partition("<main>")[2].partition("<script")[0]


CLICKS = """<script>for (const link of document.querySelectorAll("a.save")) {
  link.addEventListener("click", (event) => event.preventDefault());
  link.click();
  const kept = { className: link.download, textContent: link.href };
  document.body.append(Object.assign(document.createElement("pre"), kept));
}</script></body>"""


def saved(page: Path) -> dict[str, ET.Element]:
    """What each link of the page saves, by the name of its file, in a browser that prefers dark pages."""
    page.write_text(page.read_text(encoding="utf-8").replace("</body>", CLICKS), encoding="utf-8")
    document, console = opened(page, "--force-dark-mode")
    assert console == []
    found = re.findall(r'<pre class="([^"]+\.svg)">data:image/svg\+xml;charset=utf-8,([^<]*)</pre>', document)
    texts = {name: unquote(html.unescape(text)) for name, text in found}
    for text in texts.values():
        assert not re.search(r"var\(|currentColor|href=|<style|#15181c", text), "needs the page, or is dark"
    return {name: ET.fromstring(text) for name, text in texts.items()}


def test_a_saved_figure_is_complete(tmp_path: Path, config: RunConfig) -> None:
    """As SVG by itself: white, with its legend, all marks and all labels."""
    page = orpo_cli.report(lambdas_and_seeds(tmp_path / "sweep", config))
    figures = saved(page)
    names = ["trade-off", "lambda-accuracy", "lambda-nll", "curves-accuracy", "curves-nll"]
    assert list(figures) == [f"{name}.svg" for name in names]
    svg = "{http://www.w3.org/2000/svg}"
    for figure in figures.values():
        assert figure.tag == f"{svg}svg"
        ground = figure.find(f"{svg}rect")
        assert ground is not None
        assert ground.attrib["fill"] == "#ffffff"
    recipes = {f"lambda={value}" for value in ("0", "0.1", "0.5", "2")}
    texts = {name: {text.text for text in figure.iter(f"{svg}text")} for name, figure in figures.items()}
    assert texts["trade-off.svg"] >= recipes | {"before training"}
    assert texts["curves-nll.svg"] >= recipes, "the legend"
    lines = [group for group in figures["curves-nll.svg"].iter(f"{svg}g") if group.get("aria-label") == "line"]
    assert sum(len(group.findall(f"{svg}path")) for group in lines) == 8


def test_the_figures_of_a_run_are_saved_too(reference: Path, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    page.write_text((reference / "report.html").read_text(encoding="utf-8"), encoding="utf-8")
    assert {"accuracy.svg", "logps.svg", "margins.svg", "loss.svg"} <= saved(page).keys()
