"""Trackio: a database on this machine, or where its environment says."""

from collections.abc import Mapping, Sequence
from typing import Any

import trackio
import trackio.run
import trackio.utils

from orpo_cli.reporting.trackers.tracker import TrackedRun, table
from orpo_cli.statistics.answers import Answer


class Trackio:
    """Writes a run into the database of a project."""

    def __init__(self, run: TrackedRun) -> None:
        _silence()
        self._run: Any = trackio.init(
            project=run.project,
            name=f"{run.name}-{run.id}",  # which it knows a run by
            config=dict(run.settings),
            resume="allow",
            embed=False,
            auto_log_cpu=False,
            auto_log_gpu=False,
        )

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        """Write the metrics."""
        self._run.log(dict(values), step=step)

    def samples(self, step: int, answers: Sequence[Answer]) -> None:
        """Write the answers as a table."""
        self._run.log({"samples": trackio.Table(data=table(step, answers))}, step=step)

    def reading(self, step: int, text: str) -> None:
        """Write the sentences as text."""
        lines = "\n".join(f"- {line}" for line in text.splitlines())
        self._run.log({"reading": trackio.Markdown(lines)}, step=step)

    def close(self, finished: bool) -> None:  # noqa: ARG002 - it does not say how a run ended
        """Write what has not been written."""
        self._run.finish()


def _silence() -> None:
    """Keep it from printing: standard output is for data, and to redirect it would redirect the run's as well."""
    for module in (trackio, trackio.run, trackio.utils):
        module.print = lambda *_, **__: None
