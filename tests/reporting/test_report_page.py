"""report.html: its numbers are those of the run's files, and whatever a file says, it stays text."""

import hashlib
import json
import math
import re
import shutil
import statistics
from collections.abc import Callable
from datetime import datetime
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from tiny_runs import Arguments, Orpo, change_json

import orpo_cli
from orpo_cli.cli.main import main
from orpo_cli.config.schema import RunConfig
from orpo_cli.reporting.report_page.settings import formula
from orpo_cli.reporting.report_page.thinning import POINTS, thinned
from orpo_cli.reporting.times import duration

NASTY = '</script><script>alert(1)</script><!-- <b>"\u2028&amp;{{script}}'


class Document(HTMLParser):
    """The tags of a page, with their attributes, and the texts of its script elements."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag == "script":
            self.scripts.append("")

    def handle_data(self, data: str) -> None:
        if self.tags and self.tags[-1][0] == "script":
            self.scripts[-1] += data


def facts_in(page: Path) -> dict[str, Any]:
    facts: dict[str, Any] = json.loads(Document(page.read_text(encoding="utf-8")).scripts[0])
    return facts


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.fixture
def run(reference: Path, tmp_path: Path) -> Path:
    """A copy of a finished run that may be changed."""
    return Path(shutil.copytree(reference, tmp_path / "run"))


def curves(facts: dict[str, Any], figure: str) -> dict[str, dict[str, Any]]:
    found = next(part for part in facts["held_out"] + facts["training"] if part["name"] == figure)
    return {series["name"]: series for series in found["series"]}


def test_curves_are_the_lines_of_metrics_jsonl(reference: Path) -> None:
    facts, records = facts_in(reference / "report.html"), lines(reference / "metrics.jsonl")
    expected = {
        ("loss", "training"): ("step", "loss"), ("loss", "held-out pairs"): ("eval", "loss"),
        ("nll", "training"): ("step", "nll"), ("nll", "held-out pairs"): ("eval", "nll"),
        ("log_odds_ratio", "training"): ("step", "log_odds_ratio"),
        ("log_odds_ratio", "held-out pairs"): ("eval", "log_odds_ratio"),
        ("accuracy", "accuracy"): ("eval", "accuracy"),
        ("logps", "chosen"): ("eval", "logps/chosen"), ("logps", "rejected"): ("eval", "logps/rejected"),
        ("pull_and_push", "pull on chosen"): ("step", "or_pull"),
        ("pull_and_push", "push on rejected"): ("step", "or_push"),
        ("grad_norm", "gradient norm"): ("step", "grad_norm"), ("lr", "learning rate"): ("step", "lr"),
        ("throughput", "tokens a second"): ("step", "tokens_per_second"),
        ("memory", "memory"): ("step", "peak_memory_gb"),
    }  # fmt: skip
    drawn = {
        (part["name"], series["name"])
        for part in facts["held_out"] + facts["training"]
        for series in part.get("series", [])
    }
    assert drawn == expected.keys() | {("accuracy", "longer wins")}
    for (figure, name), (kind, metric) in expected.items():
        series = curves(facts, figure)[name]
        of_kind = [record for record in records if record["kind"] == kind]
        assert series["step"] == [record["step"] for record in of_kind]
        assert series["value"] == [record[metric] for record in of_kind]
        assert (series["low"] is None) == (kind == "step" or metric == "loss"), metric


def test_intervals_and_margins_are_those_of_run_json(reference: Path) -> None:
    """Of the last evaluation and the first, which run.json has."""
    facts, evaluation = (
        facts_in(reference / "report.html"),
        json.loads((reference / "run.json").read_text())["evaluation"],
    )
    fields = {
        ("accuracy", "accuracy"): "accuracy", ("nll", "held-out pairs"): "nll",
        ("log_odds_ratio", "held-out pairs"): "log_odds_ratio",
        ("logps", "chosen"): "logps_chosen", ("logps", "rejected"): "logps_rejected",
    }  # fmt: skip
    for (figure, name), field in fields.items():
        series = curves(facts, figure)[name]
        for place, part in ((-1, evaluation), (0, evaluation["against"])):
            assert (series["low"][place], series["high"][place]) == (part[field]["low"], part[field]["high"]), field
        assert series["band"] == "95 % interval"
    assert curves(facts, "accuracy")["longer wins"]["value"][-1] == evaluation["longer_wins"]["value"]
    margins = facts["held_out"][-1]
    assert [part["mean"] for part in margins["parts"]] == [evaluation["against"]["margin"], evaluation["margin"]]
    right = margins["edges"].index(0)
    for part, accuracy in zip(
        margins["parts"], (evaluation["against"]["accuracy"], evaluation["accuracy"]), strict=True
    ):
        assert sum(part["counts"]) == evaluation["pairs"]
        assert sum(part["counts"][right:]) == pytest.approx(accuracy["value"] * evaluation["pairs"])
    assert facts["tiles"][0]["after"] == f"{evaluation['accuracy']['value']:.3f}"
    assert facts["tiles"][0]["before"] == f"{evaluation['against']['accuracy']['value']:.3f}"


def test_words_are_those_of_the_files(reference: Path) -> None:
    facts, record = facts_in(reference / "report.html"), json.loads((reference / "run.json").read_text())
    assert facts["reading"] == record["reading"] != []
    assert facts["state"] == "Finished after 6 of 6 steps."
    samples = lines(reference / "samples.jsonl")
    shown = [(part["prompt"], [answer["text"] for answer in part["answers"]]) for part in facts["samples"]]
    prompts = dict.fromkeys(sample["prompt"] for sample in samples)
    assert shown == [(p, [s["answer"] for s in samples if s["prompt"] == p]) for p in prompts]
    assert [answer["when"] for answer in facts["samples"][0]["answers"]] == ["before training", "after step 6"]
    assert facts["ledger"] == [
        ["train", "kept", record["pairs"]["train"]],
        ["held out", "kept", record["pairs"]["eval"]],
    ]
    assert ["objective", record["objective"]] in facts["what"]
    assert ["optimizer.lr", "0.001", "5e-06"] in facts["differences"]
    commands = dict(facts["commands"])
    assert commands["Evaluate it"] == f"orpo evaluate model={reference}"
    assert commands["Talk with the model"] == f"orpo chat {reference}"


def test_the_command_writes_the_same_page_again(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """But for the folder, which has moved."""
    before = (run / "report.html").read_text(encoding="utf-8")
    (run / "report.html").unlink()
    assert main(["report", str(run)]) == 0
    assert capsys.readouterr().out == f"{run}/report.html\n"
    moved = facts_in(run / "report.html")["folder"]
    assert moved == str(run)
    then = json.loads(Document(before).scripts[0])["folder"]
    assert (run / "report.html").read_text(encoding="utf-8").replace(moved, then) == before
    assert orpo_cli.report(run) == run / "report.html"


def test_of_a_run_that_has_not_ended_there_is_what_there_is_so_far(run: Path) -> None:
    record = json.loads((run / "run.json").read_text())
    for key in ("evaluation", "reading", "end", "ended"):
        del record[key]
    (run / "run.json").write_text(json.dumps(record | {"finished": False, "seconds": 0.0}))
    began = datetime.fromisoformat(record["started"]).timestamp()
    until = [record for record in lines(run / "metrics.jsonl") if record["step"] <= 4]
    (run / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in until))
    facts = facts_in(orpo_cli.report(run))
    assert facts["state"] == (
        "Not finished: step 4 is the last that was recorded. All held-out pairs were last evaluated after step 3."
    )
    assert ["duration", duration(until[-1]["time"] - began)] in facts["what"]
    assert facts["reading"] == []
    assert curves(facts, "accuracy")["accuracy"]["step"] == [0, 3]
    assert facts["numbers"]["rows"][0][1] == f"{until[-2]['accuracy']:.3f}"
    assert facts["commands"][0] == ["Resume the run", f"orpo resume {run}"]


def test_of_a_run_of_an_earlier_version_there_are_no_intervals(run: Path) -> None:
    """It has one sample of two texts, and no scores."""
    shutil.rmtree(run / "evaluations")
    record = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(
        json.dumps({key: record[key] for key in record if key not in ("reading", "evaluation")})
    )
    (run / "samples.jsonl").write_text(
        '{"step": 0, "prompt": "a", "answer": "b"}\n{"step": 6, "prompt": "a", "answer": "c"}\n'
    )
    facts = facts_in(orpo_cli.report(run))
    assert [part["name"] for part in facts["held_out"]] == ["accuracy", "logps"]
    assert curves(facts, "accuracy")["accuracy"]["low"] is None
    last = lines(run / "metrics.jsonl")[-1]
    assert facts["tiles"][0]["after"] == f"{last['loss']:.3f}"
    assert facts["samples"][0]["answers"][1] == {"when": "after step 6", "text": "c", "note": "", "sampled": None}


def test_held_out_curves_are_all_of_the_same_part(tmp_path: Path, orpo: Orpo, arguments: Arguments) -> None:
    """8 of 12 pairs are evaluated after every step; no point, and no interval, is of all 12."""
    folder = tmp_path / "parts"
    assert orpo.run(*arguments(folder, "trainer.eval_every=auto", "data.eval_fraction=0.5")).code == 0
    facts, records = facts_in(folder / "report.html"), lines(folder / "metrics.jsonl")
    parts = [record for record in records if record["kind"] == "eval_part"]
    assert {record["pairs"] for record in parts} == {8}
    for figure, curve in (("loss", "held-out pairs"), ("nll", "held-out pairs"), ("accuracy", "accuracy")):
        shown = curves(facts, figure)[curve]
        assert shown["step"] == [record["step"] for record in parts]
        assert shown["value"] == [record[figure] for record in parts]
    nll = curves(facts, "nll")["held-out pairs"]
    assert all(low < value < high for low, value, high in zip(nll["low"], nll["value"], nll["high"], strict=True))


def test_of_a_run_that_held_nothing_out_there_is_the_training(tmp_path: Path, arguments: Arguments) -> None:
    folder = tmp_path / "run"
    assert main(arguments(folder, "data.eval_fraction=0", "trainer.eval_every=null", "trainer.max_steps=1")) == 0
    facts = facts_in(folder / "report.html")
    assert facts["held_out"] == []
    assert [part["name"] for part in facts["training"]][:2] == ["loss", "nll"]
    assert list(curves(facts, "loss")) == ["training"]
    assert facts["samples_note"].startswith("Prompts of the training data")


def test_times_command_and_memory_are_shown_where_run_json_has_them(run: Path) -> None:
    command, commit = "orpo train data=prefs.json", "0123abc"
    times = {"started": "2026-01-31T14:05:09Z", "ended": "2026-01-31T15:06:10Z", "seconds": 3661.2}
    change_json(run / "run.json", command=command, **times, peak_memory=4_321_000_000, data_commits={"/data": commit})
    what = facts_in(orpo_cli.report(run))["what"]
    assert ["command", command] in what
    assert [["started", times["started"]], ["ended", times["ended"]], ["duration", "1:01:01"]] == [
        row for row in what if row[0] in ("started", "ended", "duration")
    ]
    assert ["peak memory", "4.32 GB"] in what
    assert ["commit of the data", "0123abc of /data"] in what


def test_a_page_that_cannot_be_written_fails_no_run(
    tmp_path: Path, arguments: Arguments, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: object) -> str:
        raise RuntimeError("no page today")

    monkeypatch.setattr("orpo_cli.runs.comparison_page.page", fail)
    folder = tmp_path / "run"
    assert main(arguments(folder, "trainer.max_steps=1")) == 0
    assert orpo_cli.open_run(folder).is_finished
    assert f"report.html was not written: no page today; try again with: orpo report {folder}" in (
        folder / "train.log"
    ).read_text(encoding="utf-8")


def test_other_folders_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", str(tmp_path)]) == 66
    assert "expected the folder of a run or of a sweep" in capsys.readouterr().err


def test_texts_stay_texts(run: Path) -> None:
    """Prompts, answers, paths and notes that look like HTML end no element, and come back as they were."""
    samples = [sample | {"prompt": NASTY, "answer": NASTY, "sampled": NASTY} for sample in lines(run / "samples.jsonl")]
    (run / "samples.jsonl").write_text("".join(json.dumps(sample) + "\n" for sample in samples))
    change_json(run / "run.json", notes=[NASTY], data_format={NASTY: "pairs"}, objective=NASTY)
    config = (run / "config.yaml").read_text(encoding="utf-8")
    (run / "config.yaml").write_text(config.replace("path: builtin:tiny", "path: '<b>&{{facts}}</title>'"))
    text = orpo_cli.report(run).read_text(encoding="utf-8")
    document = Document(text)
    assert [tag for tag, _ in document.tags] == [
        "html", "head", *["meta"] * 5, "title", "style", "body", "main", "noscript", "script", "script",
    ]  # fmt: skip
    facts = json.loads(document.scripts[0])
    assert facts["samples"][0]["prompt"] == facts["samples"][0]["answers"][1]["sampled"] == NASTY
    assert facts["notes"] == [NASTY]
    assert ["data", f"{NASTY} (pairs)"] in facts["what"]
    assert "</script><script>alert" not in text


def test_the_page_asks_the_network_for_nothing(reference: Path) -> None:
    document = Document((reference / "report.html").read_text(encoding="utf-8"))
    policies = [tag for _, tag in document.tags if tag.get("http-equiv") == "Content-Security-Policy"]
    assert [policy["content"] for policy in policies] == [
        "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data:"
    ]
    assert not [attributes for _, attributes in document.tags if {"src", "href"} & attributes.keys()]


def test_a_short_curve_is_drawn_as_it_is() -> None:
    curve = thinned(range(1, POINTS + 1), [1 / step for step in range(1, POINTS + 1)])
    assert curve.step == list(range(1, POINTS + 1))
    assert curve.value == [1 / step for step in range(1, POINTS + 1)]
    assert curve.low is curve.high is None


def test_a_long_curve_hides_no_extreme() -> None:
    """Two steps a point: sums and extremes are taken by hand."""
    steps, values = list(range(1, 2 * POINTS + 1)), [math.sin(step) for step in range(2 * POINTS)]
    values[401] = 99.0
    curve = thinned(steps, values)
    assert curve.low is not None
    assert curve.high is not None
    assert curve.step == steps[1::2]
    for place, pair in enumerate(zip(values[::2], values[1::2], strict=True)):
        assert curve.value[place] == pytest.approx(statistics.mean(pair), rel=1e-5)
        assert (curve.low[place], curve.high[place]) == pytest.approx((min(pair), max(pair)), rel=1e-5)
    assert max(curve.high) == 99.0


def test_ten_thousand_steps_are_under_a_megabyte(run: Path) -> None:
    """With an evaluation every ten; no two numbers are alike, so that none of them is short."""
    records = lines(run / "metrics.jsonl")
    step, evaluation = (next(record for record in records if record["kind"] == kind) for kind in ("step", "eval"))

    def at(record: dict[str, Any], number: int) -> str:
        moved = {key: value * (1 + math.sin(number) / 3) for key, value in record.items() if isinstance(value, float)}
        return json.dumps(record | moved | {"step": number}) + "\n"

    with (run / "metrics.jsonl").open("w", encoding="utf-8") as stream:
        for number in range(10_001):
            stream.write(at(evaluation, number) if number % 10 == 0 else "")
            stream.write(at(step, number) if number else "")
    page = orpo_cli.report(run)
    facts = facts_in(page)
    assert len(curves(facts, "loss")["training"]["step"]) == POINTS
    assert curves(facts, "loss")["held-out pairs"]["step"][-1] == 10_000
    assert "10,000 recorded steps are drawn as 300 points" in facts["thinning"]
    assert page.stat().st_size < 1_000_000


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (
            ("loss=orpo", "lambda=0.2"),
            [
                "loss = nll + 0.2 * or_loss",
                "nll = mean over pairs of (mean over the tokens of chosen: -logp)",
                "or_loss = mean over pairs of -log sigmoid(log_odds_ratio)",
                "logp(y) = mean of the log-probabilities of the tokens of y",
            ],
        ),
        (("loss=trl",), ["nll = mean over all tokens of prompt + chosen in the step: -logp"]),
        (("loss=log_ratio",), ["log_ratio = logp(chosen) - logp(rejected)", "logp(y) = sum of the log-probabilities"]),
        (("loss=sft",), ["loss = nll"]),
        (
            ("loss.label_smoothing=0.1",),
            ["or_loss = mean over pairs of -0.9 log sigmoid(log_odds_ratio) - 0.1 log sigmoid(-log_odds_ratio)"],
        ),
    ],
    ids=lambda value: value[0],
)
def test_the_objective_as_a_formula(
    overrides: tuple[str, ...], expected: list[str], compose_config: Callable[..., RunConfig]
) -> None:
    config = compose_config("model=tiny", "data=prefs.json", *overrides)
    found = re.sub(" +", " ", formula(config.loss, config.lambda_)).splitlines()
    for line in expected:
        assert any(part.startswith(line) for part in found), found
    assert any("log(1 - exp(logp(y)))" in part for part in found) == (config.loss.preference == "odds_ratio")
    first, *_, last = formula(config.loss, config.lambda_, 0.01).splitlines()
    assert first.endswith(" + 0.01 * router_aux_loss")
    assert last.startswith("router_aux_loss ")


def test_the_bundle_is_built_from_its_sources() -> None:
    """As web/build.js computes it; `npm run build` in web/ builds it again."""
    package = Path(orpo_cli.__file__).parent
    web = package.parent / "web"
    digest = hashlib.sha256()
    for path in (*sorted((web / "src").iterdir()), web / "package.json"):
        digest.update(path.read_bytes())
    head = (package / "reporting/report_page/report.js").read_text(encoding="utf-8")[:20_000]
    assert f"from sources {digest.hexdigest()}" in head
    for name in ("@observablehq/plot 0.6.17", "d3-array", "Permission to use, copy, modify"):
        assert name in head
