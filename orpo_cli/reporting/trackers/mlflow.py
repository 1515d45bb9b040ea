"""MLflow: a run of the experiment that `tracker.project` names."""

import logging
import time
from collections.abc import Mapping, Sequence

from mlflow import MlflowClient
from mlflow.entities import Metric, Param
from mlflow.exceptions import MlflowException

from orpo_cli.reporting.trackers.tracker import TrackedRun, table
from orpo_cli.statistics.answers import Answer

_RUN_ID = "orpo.run_id"
"""The tag by which a run that is resumed is found."""

_MOST_PARAMS, _LONGEST_PARAM, _LONGEST_TAG = 100, 6000, 5000
"""Limits of MLflow: parameters at once, and characters of a value."""


class MLflow:
    """Sends a run to a tracking server, or writes it into a database."""

    def __init__(self, run: TrackedRun) -> None:
        for name in ("mlflow", "alembic"):
            logging.getLogger(name).setLevel(logging.ERROR)  # they write to the terminal
        self._client = MlflowClient(tracking_uri=run.uri)
        experiment = self._experiment(run.project)
        found = self._client.search_runs([experiment], f"tags.`{_RUN_ID}` = '{run.id}'")
        if found:
            self._id = found[0].info.run_id
            self._client.update_run(self._id, status="RUNNING")
            return
        created = self._client.create_run(experiment, tags={_RUN_ID: run.id}, run_name=run.name)
        self._id = created.info.run_id
        params = [Param(key, str(value)[:_LONGEST_PARAM]) for key, value in run.settings.items()]
        for first in range(0, len(params), _MOST_PARAMS):
            self._client.log_batch(self._id, params=params[first : first + _MOST_PARAMS])

    def _experiment(self, name: str) -> str:
        known = self._client.get_experiment_by_name(name)
        if known is None:
            try:
                return str(self._client.create_experiment(name))
            except MlflowException:  # another run of a sweep may have just created it
                known = self._client.get_experiment_by_name(name)
                if known is None:
                    raise
        return str(known.experiment_id)

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        """Send the metrics."""
        now = int(time.time() * 1000)
        self._client.log_batch(self._id, metrics=[Metric(name, value, now, step) for name, value in values.items()])

    def samples(self, step: int, answers: Sequence[Answer]) -> None:
        """Add the answers to the table samples.json."""
        rows = table(step, answers)
        self._client.log_table(self._id, {key: [row[key] for row in rows] for key in rows[0]}, "samples.json")

    def reading(self, step: int, text: str) -> None:  # noqa: ARG002 - a description has no step
        """Make the sentences the description of the run."""
        self._client.set_tag(self._id, "mlflow.note.content", text[:_LONGEST_TAG])

    def close(self, finished: bool) -> None:
        """Say how the run ended."""
        self._client.set_terminated(self._id, "FINISHED" if finished else "KILLED")
