"""Folders of runs made for tests: what a run leaves, without its training."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from made_pairs import made_pairs

from orpo_cli.config.config_yaml import portable_yaml
from orpo_cli.config.schema import RunConfig
from orpo_cli.reporting.metrics_file import EVALUATED
from orpo_cli.runs.scores import write, write_pairs
from orpo_cli.statistics.scored_pairs import ScoredPairs
from orpo_cli.training.events import Evaluated, PairLogps, PartEvaluated

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


def made_trial(
    folder: Path, config: RunConfig, won: int, nll: float, steps: range, total: int = 60, finished: bool = False
) -> Path:
    """Write what a trial of a search leaves that was evaluated after some steps, and always scored the same.

    Args:
        won: how many of 40 held-out pairs; 20 of them are the part that is evaluated.
        total: the number of its steps, evaluated on all pairs where it has finished.
    """
    wins = np.arange(40) < won
    chosen = -100 * (nll + np.linspace(-0.01, 0.01, 40))
    pairs = made_pairs(wins, chosen_logp=chosen, rejected_logp=chosen + np.where(wins, -100, 100))
    logps = PairLogps(tuple(pairs.chosen_logp), tuple(pairs.rejected_logp))
    folder.mkdir(exist_ok=True)
    (folder / "config.yaml").write_text(portable_yaml(config, folder), encoding="utf-8")
    columns = {name: getattr(pairs, name) for name in vars(pairs) if not name.endswith("_logp")}
    write_pairs(folder / "evaluations", columns | dict.fromkeys(("file", "row", "line"), np.arange(40)))
    write(folder / "evaluations", Evaluated(0, {}, logps))
    for step in steps:
        part = PairLogps(logps.chosen[::2], logps.rejected[::2])
        write(folder / "evaluations", PartEvaluated(step, {}, 20, tuple(range(0, 40, 2)), part))
    end = {"finished": True, "end": {"step": total, "model_step": total}} if finished else {}
    (folder / "run.json").write_text(json.dumps({"total_steps": total, **end}), encoding="utf-8")
    if finished:
        write(folder / "evaluations", Evaluated(total, {}, logps))
        record = {"kind": "eval", "step": total, **dict.fromkeys(EVALUATED, nll), "accuracy": won / 40}
        (folder / "metrics.jsonl").write_text(json.dumps(record) + "\n", encoding="utf-8")
    return folder


def with_lambda(config: RunConfig, lambda_: float, seed: int = 0) -> RunConfig:
    return replace(config, lambda_=lambda_, seed=seed)
