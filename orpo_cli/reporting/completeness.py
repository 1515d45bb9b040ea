"""Whether the metrics of a run are complete: each step and each evaluation that was due, once, in order."""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import Any

from orpo_cli.config.schema import RunConfig
from orpo_cli.reporting.metrics_file import Lines

_NAMED = 10


def metrics_problem(
    path: Path,
    lines: Lines,
    config: RunConfig,
    resumes: Sequence[dict[str, Any]],
    last: int,
    finished: bool,
    as_planned: bool = True,
) -> str | None:
    """Return what is wrong with metrics.jsonl up to the newest checkpoint; None where nothing is.

    Args:
        path: the file, for the message.
        lines: its lines.
        config: the configuration that the run began with.
        resumes: what changed each time it was resumed, as run.json says.
        last: the step of the newest checkpoint.
        finished: whether the run took all its steps; the last line of a run that was killed may be cut.
        as_planned: whether its last step was known to be the last, and so recorded, when it was taken.
    """
    for number, record in lines if finished else lines[:-1]:
        if record is None:
            return f"{path}:{number}: cannot be read"
    found = [record for _, record in lines if record is not None]
    steps = [record["step"] for record in found if record["kind"] in ("step", "skipped")]
    evaluations = [record["step"] for record in found if record["kind"] == "eval"]
    logged, evaluated = (_Every(key, config, resumes) for key in ("trainer.log_every", "trainer.eval_every"))
    at_the_end = [last] if finished and last else []
    due = chain([1] if last else [], logged.due(last), at_the_end if as_planned else [])
    held_out = bool(config.data.eval_paths) or config.data.eval_fraction > 0
    # the evaluation after the newest checkpoint may come when the run is resumed
    until = last if finished else last - 1
    due_evaluations = chain([0] if until >= 0 else [], evaluated.due(until), at_the_end)
    problems = [
        _problem("steps", steps, due),
        _problem("evaluations", evaluations, due_evaluations if held_out else ()),
    ]
    return "; ".join(f"{path}: {problem}" for problem in problems if problem) or None


class _Every:
    """A key that says every how many steps something is done, and may have changed when the run was resumed."""

    def __init__(self, key: str, config: RunConfig, resumes: Sequence[dict[str, Any]]) -> None:
        given = getattr(config.trainer, key.partition(".")[2])
        first = given if isinstance(given, int) else None
        self._parts: list[tuple[int, int | None]] = [(0, first)]
        for resume in resumes:
            every = resume["changed"].get(key, first)
            is_one = every is None or (type(every) is int and every > 0)
            self._parts.append((max(resume["after_step"], 0), every if is_one else first))

    def due(self, last: int) -> Iterator[int]:
        """Return the steps from 1 to `last` after which it is due; where resumes overlap, the later counts."""
        ranges: list[range] = []
        end = last
        for after, every in reversed(self._parts):
            if every is not None:
                ranges.insert(0, range((after // every + 1) * every, end + 1, every))
            end = min(end, after)
        return chain(*ranges)


def _problem(what: str, found: list[int], due: Iterable[int]) -> str:
    """Return what is wrong with steps or evaluations; `due` may be very long, and is read as far as needed."""
    counts = Counter(found)
    twice = sorted(step for step, count in counts.items() if count > 1)
    missing = list(dict.fromkeys(islice((step for step in due if step not in counts), _NAMED)))
    parts = [f"missing: {', '.join(map(str, missing))}"] if missing else []
    parts += [f"there twice: {', '.join(map(str, twice[:_NAMED]))}"] if twice else []
    parts += ["not in order"] if not twice and found != sorted(found) else []
    return f"{what} {'; '.join(parts)}" if parts else ""
