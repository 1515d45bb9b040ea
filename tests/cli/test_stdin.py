"""`data=-`: preferences from a pipe."""

import io
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from orpo_cli.cli.main import main
from orpo_cli.cli.stdin import kept
from orpo_cli.errors import ConfigError

ROWS = [{"prompt": f"p{number}", "chosen": "c", "rejected": "r"} for number in range(5)]
LINES = "".join(json.dumps(row) + "\n" for row in ROWS).encode()


class Pipe(io.TextIOWrapper):
    """Standard input with some bytes in it."""

    def __init__(self, raw: bytes, terminal: bool = False) -> None:
        super().__init__(io.BytesIO(raw))
        self.terminal = terminal

    def isatty(self) -> bool:
        return self.terminal


@pytest.mark.parametrize("raw", [LINES, json.dumps(ROWS).encode()], ids=["lines", "array"])
def test_a_run_reads_a_pipe_and_can_be_resumed_without_it(
    raw: bytes, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", Pipe(raw))
    folder = tmp_path / "run"
    arguments = ["model=tiny", "data=-", f"output_dir={folder}", "trainer.sample_tokens=0"]
    assert main(["train", *arguments]) == 0
    (copy,) = (cache / "stdin").iterdir()
    assert copy.read_bytes() == raw
    ledger = [json.loads(line) for line in (folder / "ledger.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [record["class"] for record in ledger] == ["kept"] * 5
    monkeypatch.setattr(sys, "stdin", None)
    assert main(["train", f"resume={folder}"]) == 0


def test_the_same_bytes_are_kept_once(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for _ in range(2):
        monkeypatch.setattr(sys, "stdin", Pipe(LINES))
        arguments = kept(["--cfg=job", "data=file", "data.path='-'", "seed=1"])
        (copy,) = (cache / "stdin").iterdir()
        assert arguments == ["--cfg=job", "data=file", f"data.path='{copy}'", "seed=1"]


@pytest.mark.parametrize("stdin", [Pipe(b"", terminal=True), None], ids=["terminal", "closed"])
def test_nobody_waits_for_a_terminal(stdin: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", stdin)
    with pytest.raises(ConfigError, match="pipe the preferences in"):
        kept(["data.path='-'"])


def test_an_empty_pipe_has_no_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "stdin", Pipe(b""))
    assert main(["train", "model=tiny", "data=-", f"output_dir={tmp_path / 'run'}"]) == 65
    assert "no rows" in capsys.readouterr().err


def test_standard_input_is_left_alone_by_other_data(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", None)
    assert kept(["data=file", "data.path='x.json'"]) == ["data=file", "data.path='x.json'"]
