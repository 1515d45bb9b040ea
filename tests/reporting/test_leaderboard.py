"""The leaderboard as people see it and as files: widths, numbers read back, signs escaped."""

import csv
import io
import json
from pathlib import Path

import numpy as np
import pytest
from made_pairs import made_pairs
from rich.console import Console

from orpo_cli.cli.main import main
from orpo_cli.reporting.leaderboard import print_leaderboard
from orpo_cli.reporting.leaderboard_files import csv_text, json_leaderboard, latex_text, markdown_text
from orpo_cli.statistics.comparability import Candidate, HeldOut, Unranked
from orpo_cli.statistics.leaderboard import Leaderboard, leaderboard


def candidate(number: int, name: str, wins: int, nll: float, seed: int = 0) -> Candidate:
    """100 pairs of which the first are won, with lengths of both kinds."""
    more = np.where(np.arange(100) % 2, 10, -10)
    won = np.arange(100) < wins
    pairs = made_pairs(
        won, more_tokens=more, chosen_logp=-nll * (100 + more), rejected_logp=-100 * np.where(won, nll + 1, nll - 0.5)
    )
    settings = {"model.path": "m", "loss.name": name}
    held_out = HeldOut("same", "made@012345")
    return Candidate(f"/out/{number}", settings, seed, pairs, made_pairs(won, more_tokens=more), held_out, "", 1.0)


@pytest.fixture
def board() -> Leaderboard:
    """a_b&c leads by 20 of 100 pairs; each has two seeds."""
    runs = [candidate(0, "a_b&c", 90, 1.5), candidate(1, "a_b&c", 91, 1.5, 1)]
    runs += [candidate(2, "x|50%", 70, 1.0), candidate(3, "x|50%", 71, 1.0, 1)]
    return leaderboard(runs, [Unranked("/out/4", "loss=bad", "diverged (exit 76)")])


def shown(board: Leaderboard, width: int) -> str:
    stream = io.StringIO()
    print_leaderboard(board, Console(file=stream, width=width))
    return stream.getvalue()


WIDTHS = {60: ["accuracy", "nll"], 80: ["accuracy", "balanced", "nll"]}


@pytest.mark.parametrize("width", [60, 80, 110, 140])
def test_the_screen(board: Leaderboard, width: int) -> None:
    """0.905 and 0.705, standard deviations over two seeds of 0.01 / sqrt(2); what has no room is named."""
    said = shown(board, width)
    lines = said.splitlines()
    heading = next(line for line in lines if line.startswith(" rank"))
    first, second = (next(line for line in lines if number in line) for number in ("0.905", "0.705"))
    values = {"accuracy": "0.905", "balanced": "0.905", "nll": "1.500", "margin": "0.858"}
    metrics = WIDTHS.get(width, list(values))
    assert [word for word in heading.split() if word in values] == metrics
    assert [word for word in first.split() if word in values.values()] == [values[name] for name in metrics]
    assert (first.split()[0], second.split()[0]) == ("1", "2")
    assert "0.905 ±0.007" in first
    assert first.rstrip().endswith("◆")
    assert ("this terminal is too narrow for" in said) == (width in WIDTHS)
    tables = [
        line for line in lines if not line.startswith(("talk to it", "export it", "train it again", "on other pairs"))
    ]
    assert max(map(len, tables)) <= width
    for text in ("before training", "diverged (exit 76)", "/out/0/model", "orpo train /out/0/config.yaml output_dir="):
        assert text in said
    assert "loss.name=a_b&c is better by accuracy than each of the others" in " ".join(said.split())


def test_csv_read_back(board: Leaderboard) -> None:
    rows = list(csv.DictReader(io.StringIO(csv_text(board))))
    assert [(row["rank"], row["loss.name"], row["seeds"], row["state"]) for row in rows] == [
        ("1", "a_b&c", "2", "finished"),
        ("2", "x|50%", "2", "finished"),
        ("", "", "", "before training"),
        ("", "", "", "diverged (exit 76)"),
    ]
    for row, place in zip(rows, board.places, strict=False):
        for name in ("accuracy", "balanced_accuracy", "nll", "margin"):
            estimate = getattr(place.metrics, name)
            read = [float(row[f"{name}{part}"]) for part in ("", "_low", "_high", "_sd")]
            assert read == [estimate.value, estimate.low, estimate.high, place.spread[name]]
    assert rows[0]["folders"] == "/out/0;/out/1"


def test_markdown_escapes_and_marks_the_first_place(board: Leaderboard) -> None:
    lines = markdown_text(board).splitlines()
    assert lines[0] == "| rank | recipe | accuracy | balanced | nll | margin | front |"
    assert lines[2].startswith(r"| 1 | **loss.name=a\_b&c** | 0.905 ±0.007 [0.8")
    assert lines[3].startswith(r"| 2 | loss.name=x\|50% | 0.705 ±0.007 [0.6")


def test_latex_escapes(board: Leaderboard) -> None:
    text = latex_text(board)
    rows = [line for line in text.splitlines() if line.endswith(r"\\")]
    assert rows[0] == r"rank & recipe & accuracy & balanced & nll & margin & front \\"
    assert rows[1].startswith(r"1 & \textbf{loss.name=a\_b\&c} & $0.905 \pm 0.007$ {\scriptsize$[0.8")
    assert rows[1].endswith(r"& $\diamond$ \\")
    assert rows[2].startswith(r"2 & loss.name=x|50\% & $0.705 \pm 0.007$")
    assert text.count("{") == text.count("}")
    assert r"(p $\leq$ " in text


def test_json_has_every_number(board: Leaderboard) -> None:
    found = json.loads(json.dumps(json_leaderboard(board)))
    assert (found["by"], found["pairs"], found["winner"]) == ("accuracy", 100, {"loss.name": "a_b&c"})
    first = found["places"][0]
    assert first["runs"] == [{"folder": "/out/0", "seed": 0}, {"folder": "/out/1", "seed": 1}]
    assert (first["rank"], first["accuracy"]["value"], first["is_on_front"]) == (1, pytest.approx(0.905), True)
    assert found["unranked"] == [
        {"folder": "/out/4", "name": "loss=bad", "state": "diverged (exit 76)", "reason": None}
    ]


def test_files_that_cannot_be_written_are_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "sweep.json").write_text('{"jobs": []}')
    target = tmp_path / "nowhere" / "runs.csv"
    assert main(["compare", str(tmp_path), "--csv", str(target)]) == 73
    assert f"--csv {target}: cannot be written: No such file or directory" in capsys.readouterr().err
