"""Weights & Biases, with what it would write of the machine left out."""

import os
from collections.abc import Mapping, Sequence

import wandb

from orpo_cli.reporting.trackers.thread import DEADLINE
from orpo_cli.reporting.trackers.tracker import TrackedRun, table
from orpo_cli.statistics.answers import Answer


class WeightsAndBiases:
    """Sends a run where somebody is logged in, and else records it in wandb/ in its folder; `WANDB_MODE` decides."""

    def __init__(self, run: TrackedRun) -> None:
        settings = _settings()
        wandb.setup(settings)
        decided = bool(os.environ.get("WANDB_MODE"))
        self._run = wandb.init(
            project=run.project,
            entity=run.entity,
            name=run.name,
            id=run.id,
            resume="allow",
            reinit="create_new",
            dir=str(run.folder),
            config=dict(run.settings),
            mode=None if decided else "online" if wandb.login(prompt=False) else "offline",
            settings=settings,
        )

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        """Send the metrics; those of a step that the run takes again are known there."""
        self._run.log(dict(values), step=step)

    def samples(self, step: int, answers: Sequence[Answer]) -> None:
        """Send the answers as a table."""
        rows = table(step, answers)
        columns = list(rows[0])
        self._run.log({"samples": wandb.Table(columns, [[row[key] for key in columns] for row in rows])}, step=step)

    def reading(self, step: int, text: str) -> None:  # noqa: ARG002 - a summary has no step
        """Put the sentences into the summary of the run."""
        self._run.summary["reading"] = text

    def close(self, finished: bool) -> None:
        """Wait until all is sent."""
        self._run.finish(exit_code=0 if finished else 1)


def _settings() -> wandb.Settings:
    """Return settings under which nothing is printed or asked, and neither machine, code nor packages are recorded."""
    return wandb.Settings(
        silent=True,
        console="off",
        init_timeout=DEADLINE,
        finish_timeout=DEADLINE / 2,  # it waits as long once more when Python ends
        host="-",
        save_code=False,
        disable_code=True,
        disable_git=True,
        x_disable_meta=True,
        x_disable_stats=True,
        x_disable_machine_info=True,
        x_save_requirements=False,
    )
