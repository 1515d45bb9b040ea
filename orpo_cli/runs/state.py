"""Tell what a run is doing, or how far it has come, from its folder; imports no torch."""

from dataclasses import dataclass

from orpo_cli.checkpoints.lookup import list_checkpoints
from orpo_cli.runs.folder import RunFolder

FINISHED = "finished"


@dataclass(frozen=True)
class State:
    """What a run is doing.

    Args:
        word: `finished`, `running`, `stopped` or `unfinished`.
        step: the last one that is saved; None where nothing is.
        stopped: why a search ended a stopped run.
    """

    word: str
    step: int | None
    stopped: str | None = None

    @property
    def in_words(self) -> str:
        """Return the state, and of an unfinished run what can be resumed."""
        if self.word != "unfinished":
            return self.stopped or self.word
        return "unfinished, nothing saved" if self.step is None else f"unfinished, resumes after step {self.step}"


def state_of(folder: RunFolder) -> State:
    """Return what a run is doing: it holds the lock of its folder while it runs."""
    if folder.is_finished:
        step = folder.end.get("step")
        return State(FINISHED, step if type(step) is int else None)
    saved = list_checkpoints(folder.checkpoints)
    step = saved[-1][0] if saved else None
    if folder.is_at_work:
        return State("running", step)
    return State("unfinished" if folder.stopped is None else "stopped", step, folder.stopped)
