"""One resumed run sets itself up once and reads its files once, for its page too."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tiny_runs import gone_back, same_end

from orpo_cli.cli.main import main
from orpo_cli.config import config_yaml
from orpo_cli.reporting import metrics_file
from orpo_cli.runs import folder as folders
from orpo_cli.runs.assembly import Assembly


def test_orpo_resume(reference: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: Counter[str] = Counter()

    def counted(owner: Any, name: str, what: Callable[..., str]) -> None:
        original = getattr(owner, name)

        def call(*args: Any, **options: Any) -> Any:
            calls[what(*args)] += 1
            return original(*args, **options)

        monkeypatch.setattr(owner, name, call)

    counted(config_yaml, "read_yaml", lambda path: path.name)
    counted(folders, "read_json", lambda path, _limit: path.name)
    counted(folders, "read_lines", lambda path: path.name)
    counted(metrics_file, "read_lines", lambda path: path.name)
    counted(Assembly, "__init__", lambda *_: "set-up")
    run = gone_back(reference, tmp_path / "run", 4)
    assert main(["resume", str(run), "trainer.timeout=500"]) == 0
    assert same_end(run, reference)
    assert calls == {"config.yaml": 1, "run.json": 1, "metrics.jsonl": 1, "samples.jsonl": 1, "set-up": 1}
