"""Whether the records of a run are complete: each step and each evaluation that was due, once, in order."""

from pathlib import Path

from orpo_cli.config.schema import RunConfig
from orpo_cli.reporting import records

_NAMED = 10


def fault_of_records(folder: Path, config: RunConfig, last: int, finished: bool) -> str | None:
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
    due = {step for step in range(1, last + 1) if step == 1 or logged.is_due(step) or (finished and step == last)}
    held_out = bool(config.data.eval_paths) or config.data.eval_fraction > 0
    # the evaluation after the newest checkpoint may come when the run goes on
    until = last + 1 if finished else last
    due_evaluations = {
        step for step in range(until) if step == 0 or evaluated.is_due(step) or step == until - 1 == last
    }
    faults = [_fault("steps", steps, due), _fault("evaluations", evaluations, due_evaluations if held_out else set())]
    return "; ".join(f"{path}: {fault}" for fault in faults if fault) or None


class _Every:
    """A key that says every how many steps something is done, and may have changed when the run went on."""

    def __init__(self, folder: Path, key: str, config: RunConfig) -> None:
        first = getattr(config.trainer, key.partition(".")[2])
        self._parts: list[tuple[int, int | None]] = [(0, first)]
        for part in records.went_on(folder):
            every = part["changed"].get(key, first)
            is_one = every is None or (type(every) is int and every > 0)
            self._parts.append((part["after_step"], every if is_one else first))

    def is_due(self, step: int) -> bool:
        every = [every for after, every in self._parts if after < step or after == 0][-1]
        return every is not None and step % every == 0


def _fault(what: str, found: list[int], due: set[int]) -> str:
    """Of steps or evaluations."""
    twice = sorted({step for step in found if found.count(step) > 1})
    missing = sorted(due - set(found))
    parts = [f"missing: {', '.join(map(str, missing[:_NAMED]))}"] if missing else []
    parts += [f"there twice: {', '.join(map(str, twice[:_NAMED]))}"] if twice else []
    parts += ["not in order"] if not twice and found != sorted(found) else []
    return f"{what} {'; '.join(parts)}" if parts else ""
