"""Watch a run from its files: what its own screen would be told, read from what the run writes. Imports no torch."""

import re
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from orpo_cli.errors import InputNotFoundError
from orpo_cli.quoting import resume_command
from orpo_cli.reporting.metrics_file import METRICS, metrics_of, record_of
from orpo_cli.runs.folder import RunFolder
from orpo_cli.runs.outcome import finished_as_recorded
from orpo_cli.runs.session import last_start
from orpo_cli.training.events import (
    Evaluated,
    Event,
    PairLogps,
    PartEvaluated,
    RunStarted,
    StepDone,
    Warned,
    WorkProgress,
)

_SECONDS = 0.5
_STAMPED = re.compile(r"\d{4}-\d\d-\d\dT[\d:]+Z (.*)")
"""A line of train.log; those of a summary have no time of their own."""


class _Growing:
    """A file that lines are appended to, read as it grows; one that is written anew is read from its beginning."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = 0
        self._read = 0

    def new_lines(self) -> list[bytes]:
        """Return the whole lines that have come since the last call."""
        try:
            with self._path.open("rb") as stream:
                status = self._path.stat()
                if status.st_ino != self._file or status.st_size < self._read:
                    self._file, self._read = status.st_ino, 0
                stream.seek(self._read)
                text = stream.read()
        except OSError:
            return []
        whole = text[: text.rfind(b"\n") + 1]
        self._read += len(whole)
        return whole.splitlines()


class RunReader:
    """Reads what a run has written since the last look, as the events that its own screen is told.

    Args:
        path: the folder of the run; it may not exist yet.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._log = _Growing(RunFolder(path).log)
        self._metrics = _Growing(RunFolder(path).metrics)
        self._shown: float | None = None

    def new_events(self, folder: RunFolder | None = None) -> Iterator[Event]:
        """Yield what is new.

        Args:
            folder: as it is now.
        """
        folder = folder or RunFolder(self._path)  # anew: it reads each file once
        started = last_start(folder.record) if folder.record.get("panel") else None
        if started and started != self._shown:
            self._shown, self._metrics = started, _Growing(folder.metrics)
            yield _start(folder, started, _records(self._metrics.new_lines()))
        elif self._shown is not None:
            yield from _measured(folder, _records(self._metrics.new_lines()))
        yield from _said(self._log.new_lines())


def watch(path: Path) -> Iterator[Event]:
    """Yield what has happened in a run and, while it is at work, what happens; end when it does.

    Raises:
        InputNotFoundError: if no run is in the folder.
    """
    if not RunFolder(path).has_begun and not RunFolder(path).is_at_work:
        raise InputNotFoundError(f"{path}: is not the folder of a run; orpo watch takes what a run leaves (output_dir)")
    reader = RunReader(path)
    while True:
        folder = RunFolder(path)
        is_at_work = folder.is_at_work  # before anything is read, so that nothing comes after the last look
        yield from reader.new_events(folder)
        if not is_at_work:
            yield finished_as_recorded(folder) if folder.is_finished else Warned(_unfinished(folder))
            return
        time.sleep(_SECONDS)


def _unfinished(folder: RunFolder) -> str:
    return f"the run is not at work and has not taken all its steps; resume with: {resume_command(folder.path)}"


def _records(lines: list[bytes]) -> list[dict[str, Any]]:
    return [record for line in lines if (record := record_of(line, METRICS)) is not None]


def _start(folder: RunFolder, started: float, records: Sequence[dict[str, Any]]) -> RunStarted:
    record = folder.record
    return RunStarted(
        facts=record["panel"],
        notes=record.get("notes", []),
        total_steps=record["total_steps"],
        steps_done=max((part["step"] for part in records), default=0),
        held_out=record.get("pairs", {}).get("eval", 0),
        began=started,
        earlier=records,
    )


def _measured(folder: RunFolder, records: Sequence[dict[str, Any]]) -> Iterator[Event]:
    """Yield the steps and evaluations of new records; of skipped steps, train.log has the warnings."""
    for record in records:
        if record["kind"] == "step":
            yield StepDone(record["step"], folder.record["total_steps"], 0, metrics_of(record))
        elif record["kind"] == "eval":
            yield Evaluated(record["step"], metrics_of(record), PairLogps((), ()))
        elif record["kind"] == "eval_part":
            yield PartEvaluated(record["step"], metrics_of(record), record["pairs"])


def _said(lines: list[bytes]) -> Iterator[Event]:
    """Yield what new lines of train.log say beside the metrics: the warnings, and what is done just now."""
    stamped = (_STAMPED.match(line.decode("utf-8", "replace")) for line in lines)
    texts = [found.group(1) for found in stamped if found]
    yield from (Warned(text[2:]) for text in texts if text.startswith("! "))
    if texts and texts[-1].endswith(" ..."):
        yield WorkProgress(texts[-1].removesuffix(" ..."))
