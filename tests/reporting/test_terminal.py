"""The display, with a fixed width and no clock: goldens of what a person sees."""

import io
from pathlib import Path

import numpy as np
import pytest
from made_pairs import made_pairs
from rich.console import Console

from orpo_cli.reporting.terminal import Terminal, number, sparkline, usage
from orpo_cli.statistics.answers import Answer
from orpo_cli.statistics.evaluation import Scored, evaluation_of
from orpo_cli.statistics.reading import Sentence
from orpo_cli.training.events import (
    CheckpointSaved,
    Evaluated,
    EvaluationProgress,
    PairLogps,
    RunClaimed,
    RunFinished,
    RunStarted,
    Sampled,
    StepDone,
    WorkProgress,
)

METRICS = {
    "loss": 2.5,
    "nll": 2.25,
    "or_loss": 0.693147,
    "log_odds_ratio": 0.0,
    "accuracy": 0.5,
    "margin": -0.125,
    "logps/chosen": -2.0,
    "logps/rejected": -1.875,
    "grad_norm": 12.0,
    "lr": 5e-6,
    "tokens_per_second": 1234.5,
    "pairs_per_second": 3.25,
}


def plain() -> tuple[Terminal, io.StringIO]:
    stream = io.StringIO()
    return Terminal(Console(file=stream, width=100, force_terminal=False)), stream


@pytest.mark.parametrize(
    ("values", "expected"),
    [([], ""), ([1.0], "▁"), ([0, 1], "▁█"), ([0, 7, 3.5], "▁█▅"), ([2, 2, 2], "▁▁▁"), ([0, float("nan"), 1], "▁!█")],
)
def test_sparkline(values: list[float], expected: str) -> None:
    assert sparkline(values) == expected


@pytest.mark.parametrize(
    ("value", "expected"),
    [(0.0, "0"), (0.69314718, "0.6931"), (5e-6, "5.000e-06"), (-12.5, "-12.5"), (123456.0, "1.235e+05")],
)
def test_number(value: float, expected: str) -> None:
    assert number(value) == expected


def test_plain_lines_without_a_terminal() -> None:
    screen, stream = plain()
    with screen:
        screen.show(WorkProgress("tokenizing prefs.json"))
        screen.show(WorkProgress("tokenizing prefs.json", 5, 10))
        screen.show(RunStarted({"model": "tiny", "pairs": "2 to train"}, ["one row was cut [not markup]"], 2, 0))
        screen.show(EvaluationProgress(1, 2))
        screen.show(EvaluationProgress(2, 2))
        screen.show(Evaluated(0, METRICS, PairLogps((-1.0,), (-2.0,))))
        screen.show(StepDone(1, 2, 0, METRICS))
        screen.show(CheckpointSaved(1, Path("run/checkpoints/step-000001")))
    assert stream.getvalue().splitlines() == [
        "tokenizing prefs.json ...",
        "model: tiny",
        "pairs: 2 to train",
        "note: one row was cut [not markup]",
        "evaluating ...",
        "evaluated at step 0: loss 2.5  nll 2.25  or_loss 0.6931  log_odds_ratio 0  accuracy 0.5  margin -0.125  "
        "logps/chosen -2  logps/rejected -1.875",
        "step 1/2  loss 2.5  nll 2.25  or_loss 0.6931  log_odds_ratio 0  accuracy 0.5  margin -0.125  grad_norm 12  "
        "lr 5.000e-06  3.25 pairs/s  1234 tokens/s  ? left",
        "checkpoint of step 1: run/checkpoints/step-000001",
    ]


def test_steps_between_are_not_printed() -> None:
    stream = io.StringIO()
    screen = Terminal(Console(file=stream, width=100, force_terminal=False), log_every=10)
    with screen:
        screen.show(RunStarted({}, [], 25, 0))
        for step in range(1, 26):
            screen.show(StepDone(step, 25, 0, METRICS))
    assert [line.split()[1] for line in stream.getvalue().splitlines()] == ["1/25", "10/25", "20/25", "25/25"]


def test_live_screen_has_bar_table_and_sparklines() -> None:
    stream = io.StringIO()
    screen = Terminal(Console(file=stream, width=100, force_terminal=True, color_system=None))
    with screen:
        screen.show(RunStarted({"model": "tiny"}, ["careful"], 2, 0))
        for step, loss in ((1, 2.0), (2, 1.0)):
            screen.show(StepDone(step, 2, 0, METRICS | {"loss": loss}))
        shown = Console(file=io.StringIO(), width=100)
        shown.print(screen._screen())
        picture = shown.file.getvalue()  # type: ignore[attr-defined]
    rows = {line.split()[0]: line for line in picture.splitlines() if line.strip()}
    assert rows["loss"].rstrip().endswith("1   █▁")
    assert all(name in rows for name in ("nll", "or_loss", "log_odds_ratio", "accuracy", "margin", "grad_norm", "lr"))
    assert "2/2" in rows["training"]
    assert "3.25 pairs/s" in rows["training"]
    assert "1234 tokens/s" in rows["training"]
    assert "! careful" in stream.getvalue()


def test_comparison_and_command(tmp_path: Path) -> None:
    """8 of 16 is as 15 independent ones, t 2.131: 0.5 +- 0.241; 0 of 16 is up to t^2 / (16 + t^2) = 0.221."""
    screen, stream = plain()
    log = tmp_path / "train.log"
    then, now = (Scored("m", made_pairs([*wins] * 8), METRICS, np.zeros((16, 2), int), np.arange(16), [])
                 for wins in ((False, False), (True, False)))  # fmt: skip
    reading = (Sentence("rose", "Chosen wins more often.", False), Sentence("repeats", "Look at them.", True))
    with screen:
        screen.show(RunClaimed(log))
        before, after = (Sampled(step, (Answer("Why?", text),)) for step, text in ((0, "Dull."), (9, "Vivid.")))
        screen.show(RunFinished(evaluation_of(now, then), reading, before, after, Path("run/model"), True, True))
    for text in (stream.getvalue(), log.read_text(encoding="utf-8")):
        lines = text.splitlines()
        assert next(line for line in lines if "accuracy" in line).split() == [
            "accuracy", "0.500", "[0.259,", "0.741]", "0.000", "[0.000,", "0.221]",
        ]  # fmt: skip
        assert {"- Chosen wins more often.", "! Look at them."} <= set(lines)
        assert any("Why?" in line and "Dull." in line and "Vivid." in line for line in lines)
    assert usage(Path("run/model"), True, True) in stream.getvalue()
