"""TensorBoard: event files in the folder of the run."""

from collections.abc import Mapping, Sequence

from torch.utils.tensorboard import SummaryWriter

from orpo_cli.reporting.trackers.tracker import TrackedRun, markdown, table
from orpo_cli.statistics.answers import Answer

_FLUSHED_EVERY = 10
"""Seconds after which what has been written can be seen."""


class TensorBoard:
    """Writes tensorboard/ in the folder of the run, whose resumed steps replace those that were lost."""

    def __init__(self, run: TrackedRun) -> None:
        purged = run.steps_done + 1 if run.steps_done else 0
        self._writer = SummaryWriter(str(run.folder / "tensorboard"), purge_step=purged, flush_secs=_FLUSHED_EVERY)
        rows = [{"key": key, "value": value} for key, value in run.settings.items()]
        self._text("settings", markdown(rows), run.steps_done)

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        """Write each metric as a scalar."""
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def samples(self, step: int, answers: Sequence[Answer]) -> None:
        """Write the answers as a table."""
        self._text("samples", markdown(table(step, answers)), step)

    def reading(self, step: int, text: str) -> None:
        """Write the sentences as text."""
        self._text("reading", markdown([{"reading": line} for line in text.splitlines()]), step)

    def close(self, finished: bool) -> None:  # noqa: ARG002 - event files do not say how a run ended
        """Write what has not been written."""
        self._writer.close()

    def _text(self, name: str, text: str, step: int) -> None:
        self._writer.add_text(name, text, step)
