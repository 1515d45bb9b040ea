"""Train: claim the folder, execute the run in it (runs/execution.py), and tell trackers and consumers its events."""

import contextlib
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from typing import Protocol

from orpo_cli.config.optimization import check_library
from orpo_cli.config.schema import RunConfig
from orpo_cli.data.rows.sources import check_exists
from orpo_cli.errors import ConfigError
from orpo_cli.machine.processes import is_child, is_main
from orpo_cli.machine.signals import StopRequest
from orpo_cli.machine.threads import choose_threads
from orpo_cli.reporting.trackers.opening import check_installed
from orpo_cli.runs.folder import RunFolder
from orpo_cli.runs.session import Session
from orpo_cli.runs.tracking import Tracking
from orpo_cli.training.events import AlreadyFinished, Event, RunClaimed, Warned, WorkProgress


class Consumer(Protocol):
    """Shows or stores the events of a run; it cannot change the training, and no promise of the run depends on it."""

    def show(self, event: Event) -> None:
        """Take one event."""


def train(
    config: RunConfig,
    folder: RunFolder,
    consumers: Sequence[Consumer] = (),
    stop: StopRequest | None = None,
    command: str | None = None,
) -> Iterator[Event]:
    """Run a configuration in a folder, and yield each event after all consumers have had it.

    Where the configuration says `resume`, the run in the folder is resumed; a finished one is left alone.

    Args:
        consumers: in the order in which they get an event; the files of the run are written before all of them, and
            the trackers of the configuration are told before them.
        stop: set by whoever wants the run to save and end after the step that it is at.
        command: the command line that asked for the run, for run.json; None in Python.
    Raises:
        OrpoError: if the run does not take all its steps before its time is up; see `orpo_cli.errors`.
    """

    trackers = Tracking(config, folder)

    def tell(event: Event) -> None:
        for consumer in (trackers, *consumers):
            consumer.show(event)
        for problem in trackers.problems():
            tell(Warned(problem))

    try:
        with contextlib.closing(_events(config, folder, tell, stop or StopRequest(), command)) as events:
            for event in events:
                tell(event)
                yield event
    finally:
        trackers.close()
        for problem in trackers.problems():
            tell(Warned(problem))


def is_left_alone(config: RunConfig, folder: RunFolder) -> bool:
    """Return whether the folder holds the finished run of this configuration; refuse data files that are not there."""
    if config.resume is not None and folder.model.is_dir():
        from orpo_cli.runs.finished import is_complete

        if is_complete(config, folder):
            return True
    refuse_missing_data(config)
    return False


def refuse_missing_data(config: RunConfig) -> None:
    """Raise InputNotFoundError if a data file is not there."""
    for path in (*config.data.paths, *config.data.eval_paths):
        check_exists(path)


def _events(
    config: RunConfig, folder: RunFolder, tell: Callable[[Event], None], stop: StopRequest, command: str | None
) -> Generator[Event, None, None]:
    session = Session(time.time(), command)
    if is_left_alone(config, folder):
        yield AlreadyFinished(folder.model)
        return
    if config.trainer.processes > 1 and not is_child():
        raise ConfigError(
            f"trainer.processes={config.trainer.processes}: `orpo train` starts the processes of a run; in Python, "
            "start this program with torchrun"
        )
    check_installed(config.tracker.names)
    check_library(config.optimizer)
    resuming = config.resume is not None and (config.resume != "auto" or folder.has_begun)
    with folder.claimed(resuming) if is_main() else contextlib.nullcontext():
        if is_main():
            yield RunClaimed(folder.log)
        yield WorkProgress("loading torch and transformers")
        choose_threads()
        from orpo_cli.runs.execution import execute

        yield from execute(config, folder, tell, stop, session)
