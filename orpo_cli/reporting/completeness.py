"""Whether the records of a run are complete: each step and each evaluation that was due, once, in order."""

from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import chain, islice
from pathlib import Path

from orpo_cli.config.schema import RunConfig
from orpo_cli.files import untrusted
from orpo_cli.quoting import first_line
from orpo_cli.reporting import records

_NAMED = 10


def metrics_problem(folder: Path, config: RunConfig, last: int, finished: bool) -> str | None:
    """What is wrong with metrics.jsonl up to the newest checkpoint; None where nothing is.

    Args:
        config: that the run began with; what it changed on resume stands in run.json.
        last: the step of the newest checkpoint.
        finished: whether the run took all its steps. The last line of one that was killed may be cut.
    """
    path = folder / records.METRICS
    lines = records.read_lines(path)
    for number, record in lines if finished else lines[:-1]:
        if record is None:
            return f"{path}:{number}: cannot be read"
    found = [record for _, record in lines if record is not None]
    steps = [record["step"] for record in found if record["kind"] in ("step", "skipped")]
    evaluations = [record["step"] for record in found if record["kind"] == "eval"]
    logged, evaluated = _Every(folder, "trainer.log_every", config), _Every(folder, "trainer.eval_every", config)
    at_the_end = [last] if finished and last else []
    due = chain([1] if last else [], logged.due(last), at_the_end)
    held_out = bool(config.data.eval_paths) or config.data.eval_fraction > 0
    # the evaluation after the newest checkpoint may come when the run goes on
    until = last if finished else last - 1
    due_evaluations = chain([0] if until >= 0 else [], evaluated.due(until), at_the_end)
    problems = [
        _problem("steps", steps, due),
        _problem("evaluations", evaluations, due_evaluations if held_out else ()),
    ]
    return "; ".join(f"{path}: {problem}" for problem in problems if problem) or None


def notes_problem(folder: Path, finished: bool) -> str | None:
    """What is wrong with run.json and samples.jsonl; None where nothing is.

    Args:
        folder: of a run that has saved a checkpoint. Where it has no samples, none were wanted.
        finished: as for `metrics_problem`.
    """
    samples = records.read_lines(folder / records.SAMPLES)
    for number, record in samples if finished else samples[:-1]:
        if record is None:
            return f"{folder / records.SAMPLES}:{number}: cannot be read"
    path = folder / "run.json"
    try:
        untrusted.read_json(path, untrusted.MAX_OWN_BYTES)
    except (OSError, ValueError) as error:
        return f"{path}: cannot be read: {getattr(error, 'strerror', None) or first_line(error)}"
    return None


class _Every:
    """A key that says every how many steps something is done, and may have changed when the run went on."""

    def __init__(self, folder: Path, key: str, config: RunConfig) -> None:
        first = getattr(config.trainer, key.partition(".")[2])
        self._parts: list[tuple[int, int | None]] = [(0, first)]
        for part in records.went_on(folder):
            every = part["changed"].get(key, first)
            is_one = every is None or (type(every) is int and every > 0)
            self._parts.append((max(part["after_step"], 0), every if is_one else first))

    def due(self, last: int) -> Iterator[int]:
        """The steps after which it is done, 1 to `last`, in order. One part follows another, later resumes count."""
        ranges: list[range] = []
        end = last
        for after, every in reversed(self._parts):
            if every is not None:
                ranges.insert(0, range((after // every + 1) * every, end + 1, every))
            end = min(end, after)
        return chain(*ranges)


def _problem(what: str, found: list[int], due: Iterable[int]) -> str:
    """Of steps or evaluations. Of `due`, which may be endless to all purposes, no more is asked for than is named."""
    counts = Counter(found)
    twice = sorted(step for step, count in counts.items() if count > 1)
    missing = list(dict.fromkeys(islice((step for step in due if step not in counts), _NAMED)))
    parts = [f"missing: {', '.join(map(str, missing))}"] if missing else []
    parts += [f"there twice: {', '.join(map(str, twice[:_NAMED]))}"] if twice else []
    parts += ["not in order"] if not twice and found != sorted(found) else []
    return f"{what} {'; '.join(parts)}" if parts else ""
