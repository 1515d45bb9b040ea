"""metrics.jsonl and samples.jsonl of a run: their lines read, and one line appended for each event that has one."""

import contextlib
import json
import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from orpo_cli.errors import WriteError
from orpo_cli.files.writing import write_text
from orpo_cli.statistics.answers import Answer
from orpo_cli.training.events import Evaluated, Event, PartEvaluated, Sampled, StepDone, StepSkipped

METRICS, SAMPLES = "metrics.jsonl", "samples.jsonl"
EVALUATED = ("loss", "nll", "or_loss", "log_odds_ratio", "accuracy", "margin", "logps/chosen", "logps/rejected")
"""The metrics of every evaluation, in the order in which they are shown."""

_HAS: dict[str, set[str]] = {"step": set(), "eval": {*EVALUATED}, "eval_part": {"pairs", *EVALUATED}}
"""What a record of each kind has at least, beside its step."""

_NOT_METRICS = ("kind", "step", "pairs", "time")
"""What is in a record beside its metrics."""

Lines = list[tuple[int, dict[str, Any] | None]]
"""The number and the record of each line; None stands for a line that is not a record."""


class MetricsFile:
    """Appends the lines of a run to metrics.jsonl and samples.jsonl.

    Lines that cannot be written wait, and are written with the next one that can be.

    Args:
        folder: the run's folder.
        log_every: the number of steps from one recorded step to the next.
        warn: told which lines are dropped or wait, and why.
        metrics, samples: the lines that the files have.
        steps_done: the step of the checkpoint that the run resumes from; later lines are dropped and come again.
        evaluation_due: whether the evaluation after that step comes again too.
    """

    def __init__(
        self,
        folder: Path,
        log_every: int,
        warn: Callable[[str], None],
        metrics: Lines,
        samples: Lines,
        steps_done: int = 0,
        evaluation_due: bool = False,
    ) -> None:
        self._folder = folder
        self._log_every = log_every
        self._warn = warn
        self._waiting: dict[str, list[str]] = {METRICS: [], SAMPLES: []}
        last = steps_done if steps_done else -1
        self.metrics = [record for record in self._records(METRICS, metrics) if record["step"] <= last]
        if evaluation_due:
            self.metrics = [record for record in self.metrics if record["kind"] != "eval" or record["step"] < last]
        # the last sample comes again, even to a run that was finished
        self.samples = [record for record in self._records(SAMPLES, samples) if record["step"] < steps_done]
        self._rewrite(METRICS, self.metrics)
        self._rewrite(SAMPLES, self.samples)

    @property
    def evaluations(self) -> list[dict[str, Any]]:
        """Return the records of evaluations of all held-out pairs."""
        return [record for record in self.metrics if record["kind"] == "eval"]

    def _records(self, name: str, lines: Lines) -> list[dict[str, Any]]:
        path = self._folder / name
        is_cut = bool(lines) and not _ends_a_line(path)  # by the end of the run that wrote it
        foreign = [str(number) for number, record in (lines[:-1] if is_cut else lines) if record is None]
        if foreign:
            self._warn(f"{path}: dropped lines that no run wrote: {', '.join(foreign[:10])}")
        return [record for _, record in lines if record is not None]

    def _rewrite(self, name: str, records: list[dict[str, Any]]) -> None:
        if (self._folder / name).is_file():
            write_text(self._folder / name, "".join(map(_line, records)))

    def record(self, event: Event) -> None:
        """Append the line of a step, an evaluation or a sample; other events have none."""
        match event:
            case StepDone(step=step, metrics=metrics):
                if is_recorded(event, self._log_every):
                    self._append(METRICS, self.metrics, {"kind": "step", "step": step, **metrics, **_now()})
            case StepSkipped(step=step, report=report):
                skipped = {"kind": "skipped", "step": step, "report": report, **_now()}
                self._append(METRICS, self.metrics, skipped)
            case Evaluated(step=step, metrics=metrics):
                self._append(METRICS, self.metrics, {"kind": "eval", "step": step, **metrics, **_now()})
            case PartEvaluated(step=step, metrics=metrics, pairs=pairs):
                part = {"kind": "eval_part", "step": step, "pairs": pairs, **metrics, **_now()}
                self._append(METRICS, self.metrics, part)
            case Sampled(step=step, answers=answers):
                for answer in answers:
                    self._append(SAMPLES, self.samples, {"step": step, **asdict(answer)})
            case _:
                pass

    def _append(self, name: str, records: list[dict[str, Any]], record: dict[str, Any]) -> None:
        path, waiting = self._folder / name, self._waiting[name]
        records.append(record)
        waiting.append(_line(record))
        length = path.stat().st_size if path.is_file() else 0
        try:
            with path.open("a", encoding="utf-8") as stream:
                stream.write("".join(waiting))
        except OSError as error:
            with contextlib.suppress(OSError):
                os.truncate(path, length)
            if len(waiting) == 1:
                self._warn(f"{path}: {error.strerror}; its lines wait until it can be written")
            return
        waiting.clear()

    def finish(self) -> None:
        """Make sure that every line has been written.

        Raises:
            WriteError: if lines still wait; nothing else of the run is lost.
        """
        for name, waiting in self._waiting.items():
            if waiting:
                raise WriteError(f"{self._folder / name}: its last {len(waiting)} lines could not be written")


def _ends_a_line(path: Path) -> bool:
    with path.open("rb") as stream:
        stream.seek(-1, os.SEEK_END)
        return stream.read(1) == b"\n"


def is_recorded(done: StepDone, log_every: int) -> bool:
    """Return whether a step is among those whose metrics are kept: every Nth, the first and the last."""
    return done.step % log_every == 0 or done.step in (1, done.total_steps)


def metrics_of(record: Mapping[str, Any]) -> dict[str, float]:
    """Return the metrics in the record of a step or an evaluation."""
    return {name: value for name, value in record.items() if name not in _NOT_METRICS}


def _now() -> dict[str, float]:
    """Return when a line is recorded, in seconds since the epoch."""
    return {"time": round(time.time(), 3)}


def _line(record: dict[str, Any]) -> str:
    return json.dumps(record, ensure_ascii=False) + "\n"


def read_lines(path: Path) -> Lines:
    """Read the lines of metrics.jsonl or samples.jsonl that are not empty; there are none where the file is missing.

    A line is not a record where a crash has cut it short, or something else wrote it.
    """
    if not path.is_file():
        return []
    lines = enumerate(path.read_bytes().split(b"\n"), 1)
    return [(number, record_of(line, path.name)) for number, line in lines if line]


def record_of(line: bytes, name: str) -> dict[str, Any] | None:
    """Return the record of a line of the file called `name`; None where the line is not one."""
    try:
        record = json.loads(line.decode("utf-8"))
    except (ValueError, RecursionError):
        return None
    if not isinstance(record, dict) or isinstance(record.get("step"), float) or not _is_number(record.get("step")):
        return None
    if name == SAMPLES:
        return record if _is_sample(record) else None
    kind = str(record.get("kind"))
    if kind == "skipped":
        is_skip = {"kind", "step", "report"} <= record.keys() <= {"kind", "step", "report", "time"}
        return record if is_skip and is_text(record["report"]) and _is_number(record.get("time", 0)) else None
    if kind not in _HAS or not record.keys() >= _HAS[kind]:
        return None
    return record if all(is_text(key) and _is_number(record[key]) for key in record if key != "kind") else None


def _is_sample(record: dict[str, Any]) -> bool:
    """Return whether a record is of an answer; earlier versions wrote only prompt and greedy answer."""
    known = {"step", *(field.name for field in fields(Answer))}
    texts = [record.get(key) for key in ("prompt", "answer", *({"sampled"} & record.keys()))]
    return record.keys() <= known and all(text is None or is_text(text) for text in texts) and None not in texts[:2]


def sampled(records: Sequence[dict[str, Any]], step: int) -> Sampled | None:
    """Return the answers after a step; None where there are none."""
    found = [Answer(**{k: v for k, v in record.items() if k != "step"}) for record in records if record["step"] == step]
    return Sampled(step, tuple(found)) if found else None


def _is_number(value: Any) -> bool:
    """Return whether a metric can be this value: finite, and as an int one that a float can hold."""
    return (isinstance(value, float) and math.isfinite(value)) or (type(value) is int and abs(value) < 1 << 53)


def is_text(value: Any) -> bool:
    """Return whether a value is a string that UTF-8 can hold; JSON can escape half of a character."""
    return isinstance(value, str) and value == value.encode("utf-8", "replace").decode()
