"""Folders of runs made for tests: what a run leaves, without its training."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from orpo_cli.config.config_yaml import portable_yaml
from orpo_cli.config.schema import RunConfig
from orpo_cli.reporting.metrics_file import EVALUATED
from orpo_cli.runs.scores import write, write_pairs
from orpo_cli.statistics.scored_pairs import ScoredPairs
from orpo_cli.training.events import Evaluated, PairLogps

STEP = 40
DIGEST = "0123456789abcdef"


def made_run(
    folder: Path,
    config: RunConfig,
    scored: ScoredPairs,
    before: ScoredPairs | None = None,
    rows: np.ndarray | None = None,
    digest: str = DIGEST,
    loss: float = 1.0,
    **record: Any,
) -> Path:
    """Write the folder of a finished run whose model gave `scored` to the held-out pairs.

    Args:
        rows: of the pairs in their file, made.jsonl.
        digest: of that file.
        record: what else run.json says.
    """
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(portable_yaml(config, folder), encoding="utf-8")
    names = [name for name in vars(scored) if not name.endswith("_logp")]
    rows = np.arange(len(scored)) if rows is None else rows
    places = {"file": np.zeros(len(scored), int), "row": rows, "line": rows + 1}
    write_pairs(folder / "evaluations", {name: getattr(scored, name) for name in names} | places)
    evaluated = {0: before, STEP: scored}
    for step, pairs in evaluated.items():
        if pairs is not None:
            logps = PairLogps(tuple(pairs.chosen_logp), tuple(pairs.rejected_logp))
            write(folder / "evaluations", Evaluated(step, {}, logps))
    metrics = [{"kind": "eval", "step": step, **dict.fromkeys(EVALUATED, loss)} for step in evaluated]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in metrics), encoding="utf-8")
    said = {
        "finished": True,
        "end": {"step": STEP, "total_steps": STEP, "model_step": STEP},
        "objective": f"orpo: nll + {config.lambda_:g} x odds ratio",
        "data_sha256": {"made": digest},
        "pairs": {"train": 100, "eval": len(scored)},
        "evaluation": {"accuracy": {"value": float(scored.wins.mean())}, "nll": {"value": 1.25}},
    }
    (folder / "run.json").write_text(json.dumps(said | record), encoding="utf-8")
    return folder


def with_lambda(config: RunConfig, lambda_: float, seed: int = 0) -> RunConfig:
    return replace(config, lambda_=lambda_, seed=seed)
