"""What a tracker is told of a run, and what it takes."""

import html
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

from orpo_cli.statistics.answers import Answer


@dataclass(frozen=True)
class TrackedRun:
    """A run whose steps begin.

    Args:
        id: by which a tracker knows it when it is resumed.
        name: what people read.
        project, entity, uri: the keys of the tracker section.
        settings: the values of all other keys, by dotted key.
        folder: the folder of the run.
        steps_done: the step that it resumes after; 0 for one that begins.
    """

    id: str
    name: str
    project: str
    entity: str | None
    uri: str | None
    settings: Mapping[str, Any]
    folder: Path
    steps_done: int


class Tracker(Protocol):
    """Shows a run elsewhere; whatever it raises ends it, and nothing else."""

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        """Take the metrics of a step or of an evaluation, by names such as `train/loss` and `eval/loss`."""

    def samples(self, step: int, answers: Sequence[Answer]) -> None:
        """Take the sampled answers after a step."""

    def reading(self, step: int, text: str) -> None:
        """Take what is to be said of the run at its end, a line for each sentence."""

    def close(self, finished: bool) -> None:
        """Send what has not been sent; `finished` says whether the run took all its steps."""


def table(step: int, answers: Sequence[Answer]) -> list[dict[str, Any]]:
    """Return a row for each sampled answer, by the names of samples.jsonl."""
    return [{"step": step, **asdict(answer)} for answer in answers]


def markdown(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return rows that have the same columns as a table in Markdown, in which their text stays as it is."""
    lines = [[_escaped(str(value)) for value in row.values()] for row in rows]
    columns = list(rows[0]) if rows else []
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (columns, ["---"] * len(columns), *lines))


def _escaped(text: str) -> str:
    marked = re.sub(r"([\\`*_{}\[\]#|~])", r"\\\1", html.escape(text, quote=False))
    return re.sub(r"\r?\n|\r", "<br>", marked)
