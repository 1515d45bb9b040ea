"""A number of a run is the same on the screen, in metrics.jsonl, run.json, report.html and a tracker.

As numbers they are equal to the last digit (TensorBoard keeps float32). As text they are rounded as docs/evaluation.md
says, by one function each: four significant digits while the run works, three decimals in tables, and two decimals in
the sentences of the reading.
"""

import io
import json
import re
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console
from tiny_runs import Arguments

import orpo_cli as orpo
from orpo_cli.reporting import evaluation
from orpo_cli.reporting.curves import four_digits
from orpo_cli.reporting.terminal import Terminal
from orpo_cli.reporting.times import duration
from orpo_cli.training.events import Event, RunClaimed

pytestmark = pytest.mark.xdist_group("same numbers")

STEPS = 6
IN_BOTH = ("accuracy", "nll", "margin", "log_odds_ratio", "logps/chosen", "logps/rejected")
"""Metrics that metrics.jsonl and run.json have; there with `_` for `/`."""

SUMMARIZED = {
    "accuracy": "accuracy", "accuracy, balanced": "balanced_accuracy", "longer wins, tokens": "longer_wins",
    "nll of chosen": "nll", "margin": "margin", "logps/chosen": "logps_chosen", "logps/rejected": "logps_rejected",
}  # fmt: skip
"""The rows of the table at the end, and their names in run.json."""


@dataclass(frozen=True)
class Shown:
    """One run in all places.

    Args:
        plain: what a screen that is no terminal showed.
        frames: the lines of all that a terminal showed, one drawing after the other.
    """

    folder: Path
    plain: str
    frames: list[str]

    def lines(self, name: str) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (self.folder / name).read_text(encoding="utf-8").splitlines()]

    def of_kind(self, kind: str) -> dict[int, dict[str, Any]]:
        """The records of metrics.jsonl, by their step."""
        return {record["step"]: record for record in self.lines("metrics.jsonl") if record["kind"] == kind}

    @property
    def record(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.folder / "run.json").read_text(encoding="utf-8"))
        return found

    @property
    def page(self) -> dict[str, Any]:
        text = (self.folder / "report.html").read_text(encoding="utf-8")
        found: dict[str, Any] = json.loads(text.partition('id="facts">')[2].partition("</script>")[0])
        return found


class OnTerminal(Terminal):
    """A second screen of the same run, which leaves the log to the first."""

    def show(self, event: Event) -> None:
        if not isinstance(event, RunClaimed):
            super().show(event)


@pytest.fixture(scope="module")
def run(arguments: Arguments, tmp_path_factory: pytest.TempPathFactory) -> Shown:
    """Of 12 held-out pairs, 8 are evaluated after each step, all before the first and after the last."""
    pytest.importorskip("tensorboard")
    folder, plain, frames = tmp_path_factory.mktemp("same") / "run", io.StringIO(), io.StringIO()
    words = arguments(folder, "trainer.eval_every=auto", "data.eval_fraction=0.5", "trainer.sample_every=4",
                      "tracker=tensorboard")[1:]  # fmt: skip
    on_terminal = Console(file=frames, width=200, height=50, force_terminal=True, color_system=None)
    with Terminal(Console(file=plain, width=200)) as first, OnTerminal(on_terminal) as second:
        orpo.train(orpo.configure(*words), [first, second])
    drawn = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", frames.getvalue())
    return Shown(folder, plain.getvalue(), re.split(r"[\r\n]+", drawn))


def numbers_in(text: str) -> dict[str, str]:
    """`loss 5.07  nll 4.99`"""
    return dict(re.findall(r"([a-z_/]+) (-?[\d.]+(?:e[-+]\d+)?)(?:  |$)", text))


def rounded(record: dict[str, Any], names: Any) -> dict[str, str]:
    return {name: four_digits(record[name]) for name in names}


def test_lines_of_steps_and_evaluations(run: Shown) -> None:
    """On a screen that is no terminal and, with the time before them, in train.log."""
    log = (run.folder / "train.log").read_text(encoding="utf-8")
    steps = re.findall(rf"^step (\d)/{STEPS}  (.*)  ([\d.]+) pairs/s  (\d+) tokens/s  [\d:?]+ left$", run.plain, re.M)
    assert [int(step) for step, *_ in steps] == list(range(1, STEPS + 1))
    for step, text, pairs, tokens in steps:
        record = run.of_kind("step")[int(step)]
        shown = numbers_in(text)
        assert list(shown) == ["loss", "nll", "or_loss", "log_odds_ratio", "accuracy", "margin", "grad_norm", "lr"]
        assert shown == rounded(record, shown)
        assert (pairs, tokens) == (f"{record['pairs_per_second']:.2f}", f"{record['tokens_per_second']:.0f}")
        assert f"Z step {step}/{STEPS}  {text}  {pairs} pairs/s" in log
    for kind, of, at in (("eval", "", (0, STEPS)), ("eval_part", ", 8 of the held-out pairs", range(STEPS + 1))):
        found = re.findall(rf"^evaluated at step (\d){of}: (.*)$", run.plain, re.M)
        assert [int(step) for step, _ in found] == list(at)
        for step, text in found:
            shown = numbers_in(text)
            assert set(IN_BOTH) | {"loss", "or_loss"} == set(shown)
            assert shown == rounded(run.of_kind(kind)[int(step)], shown)
            assert f"Z evaluated at step {step}{of}: {text}\n" in log


def test_the_numbers_on_a_terminal(run: Shown) -> None:
    """In every drawing: a heading, the row of the last step, the row of the last evaluation."""
    columns: list[str] = []
    seen = set()
    for line in run.frames:
        if line.split()[:3] == ["loss", "nll", "or_loss"]:
            columns = line.split()
        if row := re.match(r"(training|held out, (\d+) pairs), step (\d) +(.*)", line):
            kind = {None: "step", "8": "eval_part", "12": "eval"}[row[2]]
            shown = dict(zip(columns, row[4].split(), strict=False))  # an evaluation has no grad_norm and no lr
            assert len(shown) == (10 if kind == "step" else 8)
            assert shown == rounded(run.of_kind(kind)[int(row[3])], shown), line
            seen.add((kind, int(row[3])))
    assert {("step", STEPS), ("eval", STEPS)} <= seen


def test_run_json_has_the_numbers_of_metrics_jsonl(run: Shown) -> None:
    after, before = run.record["evaluation"], run.record["evaluation"]["against"]
    for step, of in ((STEPS, after), (0, before)):
        measured = run.of_kind("eval")[step]
        assert {name: of[name.replace("/", "_")]["value"] for name in IN_BOTH} == {
            name: measured[name] for name in IN_BOTH
        }
        assert of["accuracy"]["low"] < measured["accuracy"] < of["accuracy"]["high"]
    flips = after["against"]["to_chosen"] - after["against"]["to_rejected"]
    assert after["against"]["change"]["value"] == pytest.approx(flips / 12)
    assert after["accuracy"]["value"] - before["accuracy"]["value"] == pytest.approx(flips / 12)


def interval(estimate: dict[str, Any]) -> str:
    if estimate["value"] is None:
        return "-"
    return f"[{evaluation.number(estimate['low'])}, {evaluation.number(estimate['high'])}]"


def value(estimate: dict[str, Any]) -> str:
    return "-" if estimate["value"] is None else evaluation.number(estimate["value"])


def cells(run: Shown, name: str) -> list[str]:
    """The value and the interval of both models, from run.json."""
    found = run.record["evaluation"]
    return [text for of in (found, found["against"]) for text in (value(of[name]), interval(of[name]))]


def test_the_summary(run: Shown) -> None:
    """What stays on a terminal, and the same in plain lines and in train.log."""
    record, found, steps = run.record, run.record["evaluation"], run.of_kind("step")
    change, speed = (
        found["against"]["change"],
        len(steps) / sum(1 / step["pairs_per_second"] for step in steps.values()),
    )
    p = found["against"]["p"]
    facts = {
        "run": f"{STEPS} steps in {duration(record['seconds'])}, {speed:.2f} pairs/s in its steps",
        "loss": f"{four_digits(steps[1]['loss'])} at step 1, {four_digits(steps[STEPS]['loss'])} at step {STEPS}",
        "held out": f"{found['pairs']} pairs of {found['prompts']} prompts; against {found['against']['model']}: "
        f"{found['against']['to_chosen']} pairs flipped to chosen, {found['against']['to_rejected']} to rejected; "
        f"accuracy changes by {change['value']:+.3f} {interval(change)}, p {p:.3f}",
        "memory": f"{record['peak_memory'] / 1e9:.2f} GB at the peak",
    }
    log = (run.folder / "train.log").read_text(encoding="utf-8")
    screen = " ".join(" ".join(run.frames).split())
    for name, fact in facts.items():
        assert f"\n{name}: {fact}\n" in run.plain
        assert f"\n{name}: {fact}\n" in log.replace("finished\n", "finished\n\n")
        assert f" {name} {fact} " in screen
    for shown, name in SUMMARIZED.items():
        row = re.escape(shown) + "".join(rf" +{re.escape(text)}" for text in cells(run, name)) + " *"
        for place in (*(text.splitlines() for text in (run.plain, log)), run.frames):
            assert any(re.fullmatch(f" ?{row}", line) for line in place), shown
    assert steps[1]["peak_memory_gb"] <= steps[STEPS]["peak_memory_gb"] <= record["peak_memory"] / 1e9


def test_the_page(run: Shown) -> None:
    """Curves have the numbers of metrics.jsonl as they are, tiles and tables the same text as the screen."""
    page, found = run.page, run.record["evaluation"]
    drawn = {part["name"]: part["series"] for part in page["held_out"] + page["training"] if "series" in part}
    of_steps = {"loss": "loss", "nll": "nll", "log_odds_ratio": "log_odds_ratio", "grad_norm": "grad_norm", "lr": "lr",
                "throughput": "tokens_per_second", "memory": "peak_memory_gb"}  # fmt: skip
    of_evaluations = {("accuracy", 0): "accuracy", ("logps", 0): "logps/chosen", ("logps", 1): "logps/rejected",
                      ("loss", 1): "loss", ("nll", 1): "nll", ("log_odds_ratio", 1): "log_odds_ratio"}  # fmt: skip
    places = {(name, 0): ("step", metric) for name, metric in of_steps.items()}
    places |= {("pull_and_push", 0): ("step", "or_pull"), ("pull_and_push", 1): ("step", "or_push")}
    places |= {place: ("eval_part", metric) for place, metric in of_evaluations.items()}
    every_series = {(name, place) for name, series in drawn.items() for place in range(len(series))}
    assert every_series == {*places, ("accuracy", 1)}  # what the ruler scores is in run.json alone
    for (name, place), (kind, metric) in places.items():
        records = run.of_kind(kind)
        assert drawn[name][place]["step"] == list(records), name
        assert drawn[name][place]["value"] == [record[metric] for record in records.values()], name
    tiles = {tile["label"]: tile for tile in page["tiles"]}
    for label, name in (("Accuracy", "accuracy"), ("Nll of chosen", "nll"), ("Margin", "margin")):
        after, bounds, before, _ = cells(run, name)
        assert (tiles[label]["before"], tiles[label]["after"]) == (before, after)
        assert f"95 % interval {bounds}\n" in tiles[label]["detail"]
    rows = {row[0]: row[1:] for row in page["numbers"]["rows"]}
    assert {shown: rows[shown] for shown in SUMMARIZED} == {
        shown: cells(run, SUMMARIZED[shown]) for shown in SUMMARIZED
    }
    margins = page["held_out"][-1]["parts"]
    assert [part["mean"] for part in margins] == [found["against"]["margin"], found["margin"]]


@pytest.fixture(scope="module")
def tensorboard(run: Shown) -> Any:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run.folder / "tensorboard"), size_guidance={"scalars": 0, "tensors": 0})
    return events.Reload()


def test_the_tracker(run: Shown, tensorboard: Any) -> None:
    """Every number of metrics.jsonl, as float32, and no other."""
    shown = {
        (tag, event.step): event.value for tag in tensorboard.Tags()["scalars"] for event in tensorboard.Scalars(tag)
    }
    kinds = {"step": "train", "eval": "eval", "eval_part": "eval_part"}
    assert shown == {
        (f"{kinds[record['kind']]}/{name}", record["step"]): float(np.float32(number))
        for record in run.lines("metrics.jsonl")
        for name, number in record.items()
        if name not in ("kind", "step", "pairs", "time")
    }


class Cells(HTMLParser):
    """The texts of a page."""

    def __init__(self) -> None:
        super().__init__()
        self.texts: list[str] = []

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def texts(tensorboard: Any, tag: str) -> dict[int, list[list[str]]]:
    """The rows of a table in TensorBoard, by the step, without the escapes of Markdown."""

    def cell(text: str) -> str:
        plain = Cells()
        plain.feed(re.sub(r"\\(.)", r"\1", text.strip()))
        return "".join(plain.texts)

    return {
        event.step: [
            [cell(text) for text in re.split(r"(?<!\\)\|", line)[1:-1]]
            for line in event.tensor_proto.string_val[0].decode().splitlines()[2:]
        ]
        for event in tensorboard.Tensors(f"{tag}/text_summary")
    }


def test_the_reading(run: Shown, tensorboard: Any) -> None:
    """The same sentences everywhere, with the numbers of run.json and metrics.jsonl."""
    reading, found, before = run.record["reading"], run.record["evaluation"], run.record["evaluation"]["against"]
    lines = [f"{'!' if part['warns'] else '-'} {part['text']}" for part in reading]
    assert "\n".join(lines) in run.plain
    assert "\n".join(lines) in (run.folder / "train.log").read_text(encoding="utf-8")
    for line in lines:
        assert any(part.rstrip() == line for part in run.frames)
    assert run.page["reading"] == reading
    said = [f"{'! ' if part['warns'] else ''}{part['text']}" for part in reading]
    assert texts(tensorboard, "reading") == {STEPS: [[text] for text in said]}
    sentences = {part["name"]: part["text"] for part in reading}
    assert list(sentences) == ["no_difference", "alike", "acts", "fluent"]

    def signed(estimate: dict[str, float]) -> str:
        return f"{estimate['value']:+.2f} [{estimate['low']:+.2f}, {estimate['high']:+.2f}]"

    now, then = found["accuracy"], before["accuracy"]
    assert (
        f"accuracy {then['value']:.2f} to {now['value']:.2f} [{now['low']:.2f}, {now['high']:.2f}] on {found['pairs']} "
        f"held-out pairs ({before['to_chosen']} flipped to chosen, {before['to_rejected']} to rejected; "
        f"p {before['p']:.2g})"
    ) in sentences["no_difference"]
    moves = [
        f"{found[f'logps_{side}']['value'] - before[f'logps_{side}']['value']:+.2f}" for side in ("chosen", "rejected")
    ]
    assert f"chosen {moves[0]}, rejected {moves[1]} nats a token" in sentences["alike"]
    assert f"the margin changed by {signed(before['change_of_margin'])}" in sentences["alike"]
    pull = run.of_kind("eval")[STEPS]["or_pull"]
    assert f"{pull / (1 + pull):.0%} of the weight on chosen (lambda 0.1)" in sentences["acts"]
    ending = [sum(bool(line["ends"]) for line in run.lines("samples.jsonl") if line["step"] == at) for at in (STEPS, 0)]
    assert f"{ending[0]} end by themselves ({ending[1]} before)" in sentences["fluent"]


def test_the_samples(run: Shown, tensorboard: Any) -> None:
    """Before, during and after: every text of samples.jsonl."""
    samples = run.lines("samples.jsonl")

    def by_step(step: int) -> list[dict[str, Any]]:
        return [part for part in samples if part["step"] == step]

    def unbroken(text: Any) -> str:
        return "".join(str(text).split())

    shown = texts(tensorboard, "samples")
    assert list(shown) == [0, 4, STEPS]
    for step, rows in shown.items():
        expected = [[unbroken(part) for part in sample.values()] for sample in by_step(step)]
        assert [[unbroken(cell) for cell in row] for row in rows] == expected
        for sample in by_step(step):
            assert f"\nsample at step {step}: {sample['prompt']!r} -> {sample['answer']!r}\n" in run.plain
    assert [(part["prompt"], [(answer["when"], answer["text"], answer["sampled"]) for answer in part["answers"]])
            for part in run.page["samples"]] == [
        (first["prompt"], [
            (when, sample["answer"], sample["sampled"])
            for when, step in (("before training", 0), ("after step 4", 4), ("after step 6", STEPS))
            for sample in by_step(step) if sample["prompt"] == first["prompt"]
        ])
        for first in by_step(0)
    ]  # fmt: skip
    screen = " ".join(run.frames)
    for sample in (*by_step(0)[:3], *by_step(STEPS)[:3]):
        assert sample["prompt"] in screen
        assert (sample["answer"] or "(nothing)") in screen
