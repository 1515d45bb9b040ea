"""The page of a comparison: its numbers are those of the leaderboard and of the runs' files."""

import json
import shlex
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from browser import facts_in
from made_runs import STEP, made_run, with_lambda
from made_sweeps import PAIRS, PART, STEPS, made_job, made_sweep, scored, with_lr, with_model

import orpo_cli
from orpo_cli.cli.main import main
from orpo_cli.config.schema import RunConfig
from orpo_cli.reporting.evaluation import interval
from orpo_cli.reporting.leaderboard import with_spread
from orpo_cli.statistics.leaderboard import Leaderboard

WON = {0: (50, 52, 1.0), 0.1: (60, 63, 1.05), 0.5: (80, 83, 1.2), 2: (81, 85, 1.8)}
"""lambda -> the pairs won with each of two seeds, and the nll."""


@pytest.fixture(scope="module")
def config() -> RunConfig:
    return orpo_cli.configure("model=tiny", "data=made.jsonl", "data.eval_fraction=0.25", "optimizer.lr=1e-3")


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory, config: RunConfig) -> Path:
    jobs = [(with_lambda(config, key, seed), won[seed], won[2]) for key, won in WON.items() for seed in (0, 1)]
    return made_sweep(tmp_path_factory.mktemp("made") / "sweep", jobs)


@pytest.fixture(scope="module")
def board(sweep: Path) -> Leaderboard:
    return orpo_cli.compare(sweep)


@pytest.fixture(scope="module")
def facts(sweep: Path) -> dict[str, Any]:
    return facts_in(orpo_cli.report(sweep))


def page_of(*folders: Path, to: Path, flags: tuple[str, ...] = ()) -> dict[str, Any]:
    assert main(["compare", *map(str, folders), "--html", str(to), *flags]) == 0
    return facts_in(to)


def settings_of(facts: dict[str, Any], key: str, metric: str) -> dict[str, Any]:
    name = f"{key}-{metric}".replace(".", "-")
    found: dict[str, Any] = next(figure for figure in facts["settings"] if figure["name"] == name)
    return found


@pytest.mark.slow
def test_the_report_of_a_sweep_is_its_comparison(
    sweep: Path, facts: dict[str, Any], board: Leaderboard, capsys: pytest.CaptureFixture[str]
) -> None:
    page = sweep / "report.html"
    written = page.read_text(encoding="utf-8")
    assert main(["report", str(sweep)]) == 0
    assert capsys.readouterr().out == f"{page}\n"
    assert page.read_text(encoding="utf-8") == written
    assert (facts["kind"], facts["title"], facts["folder"]) == ("comparison", "4 recipes, 8 runs", str(sweep))
    assert facts["state"] == "tiny on made.jsonl. Ranked by accuracy on 100 held-out pairs of 100 prompts"
    assert (facts["verdict"], facts["notes"]) == (board.verdict, list(board.notes))
    assert facts["commands"] == [
        ["lowest nll of rank 1", f"{sweep}/4/model"],
        ["talk to it", f"orpo chat {sweep}/4"],
        ["export it", f"orpo export {sweep}/4 to=DIR"],
        ["train it again", f"orpo train {sweep}/4/config.yaml output_dir=NEW_FOLDER"],
        ["on other pairs", f"orpo evaluate model={sweep}/4 data=FILE"],
        ["write this page again", f"orpo report {sweep}"],
    ]


def test_the_page_of_any_runs_is_written_where_it_is_asked_for(sweep: Path, tmp_path: Path) -> None:
    to = tmp_path / "a page.html"
    facts = page_of(sweep / "0", sweep / "4", to=to, flags=("--by", "nll"))
    assert (facts["title"], facts["folder"]) == ("2 recipes, 2 runs", str(sweep))
    assert "Ranked by nll" in facts["state"]
    argv = ["orpo", "compare", f"{sweep}/0", f"{sweep}/4", "--html", str(to), "--by", "nll"]
    assert facts["commands"][-1] == ["write this page again", shlex.join(argv)]


def test_places_are_those_of_the_leaderboard(facts: dict[str, Any], board: Leaderboard) -> None:
    places = facts["places"]
    assert places["head"] == ["rank", "lambda", "runs", "accuracy", "balanced", "nll", "margin", "p", ""]
    assert [row[:3] for row in places["rows"]] == [
        ["1=", "0.5", "4, 5"], ["1=", "2", "6, 7"], ["3", "0.1", "2, 3"], ["4", "0", "0, 1"],
        ["", "before training", ""],
    ]  # fmt: skip
    for row, place in zip(places["rows"], board.places, strict=False):
        names = ("accuracy", "balanced_accuracy", "nll", "margin")
        numbers = [(getattr(place.metrics, name), place.spread[name]) for name in names]
        assert row[3:7] == [[with_spread(value, spread), interval(value)] for value, spread in numbers]
        assert row[8] == "◆"
    assert places["rows"][0][3][0] == "0.815 ±0.021"
    assert places["first"] == 2


def test_the_trade_off_has_the_means_and_their_intervals(facts: dict[str, Any], board: Leaderboard) -> None:
    trade_off = facts["trade_off"]
    assert [mark["label"] for mark in trade_off["recipes"]] == ["lambda=0.5", "lambda=2", "lambda=0.1", "lambda=0"]
    for mark, place in zip(trade_off["recipes"], board.places, strict=True):
        assert mark["accuracy"] == vars(place.metrics.accuracy)
        assert mark["nll"] == vars(place.metrics.nll)
        assert mark["is_on_front"] is place.is_on_front
    assert board.before is not None
    assert trade_off["before"]["accuracy"] == vars(board.before.accuracy)
    assert trade_off["before"]["nll"]["value"] == pytest.approx(2, abs=0.01)


def test_each_run_is_a_dot_at_its_value(facts: dict[str, Any]) -> None:
    """No logarithm holds the 0, so that the values of lambda stand at equal distances."""
    figure = settings_of(facts, "lambda", "accuracy")
    assert (figure["scale"], figure["values"]) == ("point", ["0", "0.1", "0.5", "2"])
    assert figure["means"] == pytest.approx([0.51, 0.615, 0.815, 0.83])
    dots = {(dot["value"], dot["others"]): dot["result"] for dot in figure["runs"]}
    assert dots == {
        (f"{key:g}", f"seed={seed}"): pytest.approx(won[seed] / PAIRS) for key, won in WON.items() for seed in (0, 1)
    }
    assert settings_of(facts, "lambda", "nll")["means"] == pytest.approx([1, 1.05, 1.2, 1.8], abs=0.01)


def test_means_are_the_effects_of_the_leaderboard(tmp_path: Path, config: RunConfig) -> None:
    """Rates spread over a decade or more have a logarithmic axis, others have not."""
    grid = [(key, lr) for key in (0.1, 0.2) for lr in (1e-6, 1e-5, 1e-4)]
    jobs = [(with_lr(with_lambda(config, *pair[:1]), pair[1]), 50 + 7 * n, 1.0) for n, pair in enumerate(grid)]
    sweep = made_sweep(tmp_path / "sweep", jobs)
    facts, board = page_of(sweep, to=tmp_path / "page.html"), orpo_cli.compare(sweep)
    lambdas, rates = settings_of(facts, "lambda", "accuracy"), settings_of(facts, "optimizer.lr", "accuracy")
    assert [(figure["scale"], figure["values"]) for figure in (lambdas, rates)] == [
        ("linear", [0.1, 0.2]),
        ("log", [1e-6, 1e-5, 1e-4]),
    ]
    effects = [(effect.key, effect.means["accuracy"]) for effect in board.effects]
    drawn = [("lambda", mean) for mean in lambdas["means"]] + [("optimizer.lr", mean) for mean in rates["means"]]
    assert drawn == [(key, pytest.approx(mean)) for key, mean in effects]
    joined = {dot["others"] for dot in rates["runs"]}
    assert joined == {"lambda=0.1 seed=0", "lambda=0.2 seed=0"}
    assert facts["trade_off"]["recipes"][0]["label"] == "lambda=0.2 lr=0.0001"


def test_curves_are_the_lines_of_metrics_jsonl(facts: dict[str, Any]) -> None:
    """0.81 of all pairs are won by job 6 at the end, 0.80 of the part."""
    accuracy, nll = facts["curves"]
    names = [series["name"] for series in accuracy["series"]]
    assert names == [f"lambda={key}, seed {seed}" for key in (0.5, 2, 0.1, 0) for seed in (0, 1)]
    assert [series["group"] for series in accuracy["series"]][::2] == [f"lambda={key}" for key in (0.5, 2, 0.1, 0)]
    assert all(series["step"] == list(STEPS) for series in accuracy["series"] + nll["series"])
    assert accuracy["series"][2]["value"] == pytest.approx([0.47, 0.5525, 0.635, 0.7175, 0.80])
    assert nll["series"][2]["value"] == pytest.approx([2, 1.95, 1.9, 1.85, 1.8])
    assert f"of {PART} held-out pairs" in accuracy["caption"]


@pytest.mark.parametrize("parts", [None, 16], ids=["without a part", "of another part"])
def test_curves_are_all_of_the_same_pairs(parts: int | None, sweep: Path, tmp_path: Path, config: RunConfig) -> None:
    """The first and the last evaluation, which are of all pairs, where one run has no others of the same part."""
    other = made_job(tmp_path / "other", with_lambda(config, 9), 70, 1.1, parts)
    accuracy, _ = page_of(sweep / "0", sweep / "2", other, to=tmp_path / "page.html")["curves"]
    assert {tuple(series["step"]) for series in accuracy["series"]} == {(0, STEP)}
    assert {series["value"][0] for series in accuracy["series"]} == {0.48}
    assert f"of {PAIRS} held-out pairs" in accuracy["caption"]


def test_where_nll_cannot_be_compared_no_figure_has_it(sweep: Path, tmp_path: Path, config: RunConfig) -> None:
    fewer = scored(70, 1.1)
    made_run(tmp_path / "other", with_lambda(config, 9), replace(fewer, chosen_tokens=fewer.chosen_tokens - 1))
    facts = page_of(sweep / "0", sweep / "2", tmp_path / "other", to=tmp_path / "page.html")
    assert facts["trade_off"] is None
    assert [figure["name"] for figure in facts["settings"] + facts["curves"]] == ["lambda-accuracy", "curves-accuracy"]
    assert "their nll and margin cannot be compared" in " ".join(facts["notes"])


def test_one_recipe_has_nothing_beside_it(tmp_path: Path, config: RunConfig) -> None:
    sweep = made_sweep(tmp_path / "sweep", [(with_lambda(config, 1, seed), 70 + seed, 1.1) for seed in (0, 1)])
    facts = page_of(sweep, to=tmp_path / "page.html")
    assert facts["title"] == "1 recipe, 2 runs"
    assert facts["settings"] == []
    assert facts["places"]["first"] == 0
    assert "p" not in facts["places"]["head"]
    [mark] = facts["trade_off"]["recipes"]
    assert (mark["label"], mark["is_on_front"], mark["accuracy"]["value"]) == (
        "after training",
        None,
        pytest.approx(0.705),
    )
    assert "Pareto" not in facts["trade_off"]["caption"]


def test_where_nothing_is_ranked_each_run_has_its_reason(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "sweep.json").write_text(json.dumps({"jobs": ["0"]}))
    facts = facts_in(orpo_cli.report(tmp_path / "empty"))
    assert (facts["title"], facts["verdict"], facts["places"]) == ("1 run", "Nothing is ranked.", None)
    [[folder, name, state]] = facts["unranked"]
    assert (folder, name) == (f"{tmp_path}/empty/0", "")
    assert state


VARIED: dict[str, tuple[int, Callable[[RunConfig, int], RunConfig]]] = {
    "many recipes": (13, lambda config, number: with_lambda(config, number / 10)),
    "long names": (2, lambda config, number: with_model(config, f"/a-long-name/of-a-model/{number}")),
}


@pytest.mark.parametrize("varied", VARIED)
def test_recipes_without_room_for_their_names_have_numbers(varied: str, tmp_path: Path, config: RunConfig) -> None:
    recipes, vary = VARIED[varied]
    jobs = [(vary(config, number), 40 + 4 * number, 1 + number / 10) for number in range(recipes)]
    facts = page_of(made_sweep(tmp_path / "sweep", jobs), to=tmp_path / "page.html")
    numbers = [str(number) for number in range(1, recipes + 1)]
    assert [mark["label"] for mark in facts["trade_off"]["recipes"]] == numbers
    assert facts["places"]["head"][:2] == ["rank", "no."]
    assert [row[1] for row in facts["places"]["rows"]][:recipes] == numbers
    groups = [series["group"] for series in facts["curves"][0]["series"]]
    assert groups == ["no. 1", *(["the others"] * 12 if recipes == 13 else ["no. 2"])]
    assert "The numbers are those of the table." in facts["trade_off"]["caption"]


def test_texts_stay_texts(tmp_path: Path, config: RunConfig) -> None:
    nasty = "</script><script>alert(1)</script>"
    jobs = [(with_model(config, path), 70, 1.0) for path in (f"/models/{nasty}", "/models/b")]
    to = tmp_path / "page.html"
    facts = page_of(made_sweep(tmp_path / "sweep", jobs), to=to)
    assert nasty in facts["places"]["rows"][0][2]
    assert nasty not in to.read_text(encoding="utf-8")


def test_a_page_that_cannot_be_written_is_an_error(
    sweep: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "nowhere" / "page.html"
    assert main(["compare", str(sweep / "0"), "--html", str(target)]) == 73
    assert f"{target}: cannot be written: No such file or directory" in capsys.readouterr().err
