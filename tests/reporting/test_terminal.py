"""The display, with a fixed width and no clock: goldens of what a person sees."""

import io
import os
from pathlib import Path

import numpy as np
import pytest
from made_pairs import made_pairs
from rich.console import Console, ConsoleDimensions
from rich.text import Text

from orpo_cli.reporting.curves import four_digits
from orpo_cli.reporting.live import LivePart
from orpo_cli.reporting.summary import usage
from orpo_cli.reporting.terminal import Terminal
from orpo_cli.statistics.answers import Answer
from orpo_cli.statistics.evaluation import Scored, evaluation_of
from orpo_cli.statistics.reading import Sentence
from orpo_cli.training.events import (
    CheckpointSaved,
    Evaluated,
    EvaluationProgress,
    PairLogps,
    PartEvaluated,
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
    "peak_memory_gb": 1.5,
}


def plain() -> tuple[Terminal, io.StringIO]:
    stream = io.StringIO()
    return Terminal(Console(file=stream, width=100, force_terminal=False)), stream


@pytest.mark.parametrize(
    ("value", "expected"),
    [(0.0, "0"), (0.69314718, "0.6931"), (5e-6, "5.000e-06"), (-12.5, "-12.5"), (123456.0, "1.235e+05")],
)
def test_four_digits(value: float, expected: str) -> None:
    assert four_digits(value) == expected


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


class Clock:
    """Seconds since the epoch, as they are set."""

    def __init__(self) -> None:
        self.now = 1_800_000_000.0

    def __call__(self) -> float:
        return self.now


def shown(width: int, height: int = 30) -> str:
    """What is on the screen during the evaluation after step 8 of 40, each step of which took two seconds."""
    clock = Clock()
    console = Console(file=io.StringIO(), width=width, height=height, force_terminal=True, color_system=None)
    screen = Terminal(console, clock=clock)
    screen.show(RunStarted({"model": "tiny"}, [], 40, 0, held_out=48, began=clock.now - 60))
    for step in range(9):
        if step % 4 == 0:
            loss = 3 - step / 16
            screen.show(Evaluated(step, METRICS | {"loss": loss, "logps/rejected": -2.0 - step / 8}, PairLogps((), ())))
        if step < 8:
            clock.now += 2
            screen.show(StepDone(step + 1, 40, 0, METRICS | {"loss": 3 - step / 7}))
    screen.show(EvaluationProgress(12, 48))
    clock.now += 3
    return drawn(screen, width, height)


def drawn(screen: Terminal, width: int, height: int) -> str:
    """The live part as text, without the blanks at the ends of its lines."""
    picture = io.StringIO()
    Console(file=picture, width=width, height=height, color_system=None).print(screen._screen())
    return "\n".join(line.rstrip() for line in picture.getvalue().splitlines())


@pytest.mark.parametrize("width", [60, 80, 120, 200])
def test_live_screen(width: int) -> None:
    """As it was looked at; `ORPO_GOLDEN=1 pytest tests/reporting` writes it anew."""
    golden = Path(__file__).parent / "golden" / f"live-{width}.txt"
    picture = shown(width)
    if "ORPO_GOLDEN" in os.environ:
        golden.write_text(picture + "\n", encoding="utf-8")
    assert picture + "\n" == golden.read_text(encoding="utf-8")
    assert max(map(len, picture.splitlines())) <= width


def test_a_low_screen_has_no_figures_and_a_bar_all_the_same() -> None:
    """With 15 lines two are left for figures, which need three."""
    assert "⠒⠒⠒ training" in shown(80, height=16)
    low = shown(80, height=15)
    assert "⠒⠒⠒ training" not in low
    assert "step 8 of 40" in low


def test_what_comes_before_the_first_step_is_named() -> None:
    clock = Clock()
    screen = Terminal(Console(file=io.StringIO(), width=80, force_terminal=True, color_system=None), clock=clock)
    screen.show(WorkProgress("loading the model"))
    clock.now += 5
    assert drawn(screen, 80, 30) == "loading the model  0:00:05 elapsed"
    screen.show(WorkProgress("preparing prefs.json, kB", 30, 120))
    clock.now += 6
    assert drawn(screen, 80, 30).endswith("  30/120  0:00:06 elapsed, 0:00:18 left")
    screen.show(RunStarted({}, [], 40, 0))
    clock.now += 2
    assert drawn(screen, 80, 30).splitlines()[-2:] == ["0:00:02 elapsed", "taking step 1  0:00:02 elapsed"]


def test_after_a_resume_the_curves_begin_where_the_run_began() -> None:
    """Its pace is that of this session: one step took four seconds, so the two that are left take eight."""
    clock = Clock()
    earlier = [{"kind": "step", "step": step, **METRICS, "time": clock.now - 1000 + step} for step in (1, 2)]
    earlier.append({"kind": "eval", "step": 2, **METRICS, "time": clock.now - 990})
    screen = Terminal(Console(file=io.StringIO(), width=80, force_terminal=True, color_system=None), clock=clock)
    screen.show(RunStarted({}, [], 6, 2, held_out=8, began=clock.now - 10, earlier=earlier))
    assert "training, step 2" in drawn(screen, 80, 30)
    for step in (3, 4):
        clock.now += 4
        screen.show(StepDone(step, 6, 0, METRICS))
    picture = drawn(screen, 80, 30)
    assert "loss, steps 1 to 4" in picture
    assert "held out, 8 pairs, step 2" in picture
    assert "0:00:18 elapsed   0:00:08 left   3.25 pairs/s" in picture


def test_a_new_size_of_the_terminal_clears_the_screen_and_prints_what_was_left(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.StringIO()
    console = Console(file=stream, width=100, force_terminal=True, color_system=None)
    part = LivePart(console, lambda: Text("live"))
    part.print(Text("careful"))
    before = len(stream.getvalue())
    monkeypatch.setattr(type(console), "size", ConsoleDimensions(60, 20))
    part.print(Text("more"))
    part.stop()
    after = stream.getvalue()[before:]
    cleared = after[after.index("\x1b[2J\x1b[H") :]
    assert cleared.index("careful") < cleared.index("more")
    assert cleared.count("careful") == 1


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
        for step in (1, 9):
            screen.show(StepDone(step, 9, 0, METRICS | {"loss": 3.0 / step}))
        end = RunFinished(
            evaluation_of(now, then), reading, before, after, Path("run/model"), True, True, None, 62.4, 1_500_000_000
        )
        screen.show(end)
    for text in (stream.getvalue(), log.read_text(encoding="utf-8")):
        lines = text.splitlines()
        assert next(line for line in lines if line.startswith(" accuracy")).split() == [
            "accuracy", "0.500", "[0.259,", "0.741]", "0.000", "[0.000,", "0.221]",
        ]  # fmt: skip
        assert {"loss: 3 at step 1, 0.3333 at step 9", "memory: 1.50 GB at the peak"} <= set(lines)
        assert any(line.endswith("run: 9 steps in 0:01:02, 3.25 pairs/s in its steps") for line in lines)
        assert any(
            line.startswith("held out: 16 pairs of 16 prompts; against m: 8 pairs flipped to chosen, 0 to rejected; ")
            for line in lines
        )
        assert {
            "score it: orpo evaluate model=run",
            "use it: orpo chat run",
            "export it: orpo export run to=DIR",
        } <= set(lines)
        assert {"- Chosen wins more often.", "! Look at them."} <= set(lines)
        assert any("Why?" in line and "Dull." in line and "Vivid." in line for line in lines)
    assert usage(Path("run/model"), True, True) in stream.getvalue()


@pytest.mark.parametrize("width", [60, 80, 120, 200])
def test_the_summary_keeps_to_the_screen(width: int) -> None:
    """Only what people copy is longer: the model's place and the commands. Every sentence is there, whole."""
    then, now = (Scored("m", made_pairs([*wins] * 8), METRICS, np.zeros((16, 2), int), np.arange(16), [])
                 for wins in ((False, False), (True, False)))  # fmt: skip
    words = "Chosen wins more often on the pairs that were held out, and this sentence is longer than the screen " * 3
    before, after = (Sampled(step, (Answer(words, words),)) for step in (0, 9))
    stream = io.StringIO()
    screen = Terminal(Console(file=stream, width=width, force_terminal=True, color_system=None))
    screen.show(StepDone(1, 1, 0, METRICS))
    screen.show(
        RunFinished(
            evaluation_of(now, then),
            [Sentence("rose", words.strip(), False)],
            before,
            after,
            Path("run/model"),
            True,
            True,
        )
    )
    text = stream.getvalue()
    lines = text.splitlines()
    copied = "\n".join(lines).partition("in Python:\n")[2].splitlines()
    assert len(copied) == 4
    assert all(len(line) <= max(width, 80) for line in copied)
    assert all(len(line) <= width for line in lines if line not in copied)
    assert " ".join(text.split()).count(f"- {words.strip()} model: run/model") == 1
    assert "balanced" in text
    assert "│ before" in text if width < 100 else "before  " in text


def test_the_held_out_row_is_of_the_last_evaluation_and_the_curves_of_the_same_pairs() -> None:
    """After step 4 both are there: the row is of all pairs; after step 6 only the part is."""
    screen = Terminal(Console(file=io.StringIO(), width=80, force_terminal=True, color_system=None), clock=Clock())
    screen.show(RunStarted({}, [], 10, 0, held_out=48))
    for step, part, whole in ((0, 3.0, 9.0), (4, 2.0, 8.0), (6, 1.0, None)):
        if whole is not None:
            screen.show(Evaluated(step, METRICS | {"loss": whole}, PairLogps((), ())))
        screen.show(PartEvaluated(step, METRICS | {"loss": part}, 12))
        row = next(line for line in drawn(screen, 80, 30).splitlines() if line.startswith("held out"))
        pairs = 12 if whole is None else 48
        assert row.split()[:6] == ["held", "out,", str(pairs), "pairs,", "step", str(step)]
        assert float(row.split()[6]) == (part if whole is None else whole)
    assert "\n       3┤" in drawn(screen, 80, 30)
    assert "\n       1┤" in drawn(screen, 80, 30)
