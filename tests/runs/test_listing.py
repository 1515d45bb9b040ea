"""`orpo runs`: states, results, order, and that it is quick."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from made_pairs import made_pairs
from made_runs import made_run, with_lambda

import orpo_cli
from orpo_cli.cli.main import main
from orpo_cli.config.schema import RunConfig
from orpo_cli.errors import InputNotFoundError
from orpo_cli.reporting.runs_table import ListedRun
from orpo_cli.runs.folder import RunFolder
from orpo_cli.runs.listing import runs_below

DAY = 1_700_000_000.0


@pytest.fixture(scope="module")
def config() -> RunConfig:
    return orpo_cli.configure("model=tiny", "data=made.jsonl", "data.eval_fraction=0.25", "trainer.max_steps=40")


@pytest.fixture
def outputs(tmp_path: Path, config: RunConfig) -> Path:
    """A finished run, one that is not, one that has saved nothing, and what is no run."""
    root, pairs = tmp_path / "outputs", made_pairs([True, True, True, False])
    for age, (name, lambda_, finished) in enumerate([("b/1", 0.5, True), ("a", 0.1, False), ("b/0", 2, False)]):
        end = {} if finished else {"end": {}, "evaluation": None}
        folder = made_run(root / name, with_lambda(config, lambda_), pairs, finished=finished, **end)
        os.utime(folder / "config.yaml", (DAY + age, DAY + age))
    (root / "a" / "checkpoints" / "step-000020").mkdir(parents=True)
    made_run(root / "a" / "inside", config, pairs)
    made_run(root / ".hidden", config, pairs)
    (root / "notes").mkdir()
    (root / "notes" / "config.yaml").write_text("mine: true\n")
    return root


def listed(folder: str, started: float, state: str, step: int | None, lambda_: float, *result: float) -> ListedRun:
    accuracy, nll = result or (None, None)
    return ListedRun(folder, started, state, step, 40, "builtin:tiny", "made.jsonl", lambda_, accuracy, nll)


def test_each_run_with_its_state_and_result_the_newest_last(outputs: Path) -> None:
    assert runs_below(outputs) == [
        listed("b/1", DAY, "finished", 40, 0.5, 0.75, 1.25),
        listed("a", DAY + 1, "unfinished", 20, 0.1),
        listed("b/0", DAY + 2, "unfinished", None, 2.0),
    ]


def test_a_run_whose_lock_is_held_is_running(outputs: Path) -> None:
    with RunFolder(outputs / "a").claimed(resuming=True):
        assert [run.state for run in runs_below(outputs)] == ["finished", "running", "unfinished"]
    assert [run.state for run in runs_below(outputs)] == ["finished", "unfinished", "unfinished"]


def test_a_damaged_run_is_listed_with_what_is_known(outputs: Path) -> None:
    (outputs / "b" / "1" / "config.yaml").write_text("{")
    (outputs / "a" / "run.json").write_text("{")
    by_folder = {run.folder: run for run in runs_below(outputs)}
    assert by_folder["b/1"].model is None
    assert by_folder["b/1"].accuracy == 0.75
    assert (by_folder["a"].state, by_folder["a"].lambda_) == ("unfinished", 0.1)


@pytest.mark.parametrize("width", [80, 140])
def test_the_table_fits_and_says_all(
    width: int, outputs: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    assert main(["runs", str(outputs)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= width
    cells = [line.split()[2:] for line in lines if line.startswith(" 2023-")]
    named = ["builtin:tiny", "made.jsonl"] if width == 140 else []
    assert cells == [
        ["finished", "b/1", *named, "0.5", "40", "0.750", "1.250"],
        ["unfinished", "a", *named, "0.1", "20", "of", "40"],
        ["unfinished", "b/0", *named, "2", "none", "saved"],
    ]


def test_a_directory_without_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["runs", str(tmp_path)]) == 0
    assert capsys.readouterr().err == f"{tmp_path}: there is no run below it\n"
    with pytest.raises(InputNotFoundError, match="no such directory"):
        runs_below(tmp_path / "nowhere")


@pytest.mark.parametrize("command", ["runs", "compare"])
def test_no_torch_is_imported(command: str, outputs: Path) -> None:
    argv = [command, str(outputs / "b" / "1")]
    code = f"import sys; from orpo_cli.cli.main import main; main({argv}); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=False).returncode == 0
