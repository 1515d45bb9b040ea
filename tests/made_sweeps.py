"""Folders of sweeps made for tests, with what their jobs scored and their curves."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from made_pairs import made_pairs
from made_runs import STEP, made_run

from orpo_cli.config.schema import RunConfig
from orpo_cli.reporting.metrics_file import EVALUATED
from orpo_cli.runs.folder import SWEEP
from orpo_cli.statistics.scored_pairs import ScoredPairs

PAIRS = 100
STEPS = (0, 10, 20, 30, STEP)
PART = 32


def scored(wins: int, nll: float) -> ScoredPairs:
    """Pairs of which the first `wins` are won; chosen responses of 90 and of 110 tokens, with nlls beside `nll`."""
    place = np.arange(PAIRS)
    tokens = np.where(place % 2, 110, 90)
    chosen = -tokens * (nll + 0.1 * np.sin(place))
    rejected = 100 * (chosen / tokens - np.where(place < wins, 1, -1))
    return made_pairs(np.ones(PAIRS), more_tokens=tokens - 100, chosen_logp=chosen, rejected_logp=rejected)


def made_job(folder: Path, config: RunConfig, wins: int, nll: float, parts: int | None = PART) -> Path:
    """Write the folder of a finished run; its curves go straight from 48 pairs and an nll of 2 to what it scored.

    Args:
        parts: the pairs of the part of the held-out pairs that was evaluated between; None where none was.
    """
    made_run(folder, config, scored(wins, nll), scored(48, 2.0))
    lines = []
    for step in STEPS:
        share = step / STEP
        values = {"accuracy": (48 + share * (wins - 48)) / PAIRS, "nll": 2 + share * (nll - 2)}
        line = {"step": step, **dict.fromkeys(EVALUATED, 1.0), **values}
        if step in (0, STEP):
            lines.append({"kind": "eval", **line})
        if parts is not None:
            lines.append({"kind": "eval_part", "pairs": parts, **line, "accuracy": values["accuracy"] - 0.01})
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return folder


def made_sweep(folder: Path, jobs: Sequence[tuple[RunConfig, int, float]]) -> Path:
    """Write the folder of a sweep whose jobs are runs of these configurations, with their pairs won and their nll."""
    for number, (config, wins, nll) in enumerate(jobs):
        made_job(folder / str(number), config, wins, nll)
    names = [str(number) for number in range(len(jobs))]
    (folder / SWEEP).write_text(json.dumps({"jobs": names}), encoding="utf-8")
    return folder


def with_lr(config: RunConfig, lr: float) -> RunConfig:
    return replace(config, optimizer=replace(config.optimizer, lr=lr))


def with_model(config: RunConfig, path: str) -> RunConfig:
    return replace(config, model=replace(config.model, path=path))
