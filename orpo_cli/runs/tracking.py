"""The trackers of a run: told of its events between the files of the run and the screen."""

import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

from orpo_cli.config.keys import dotted, values_of
from orpo_cli.config.schema import RunConfig
from orpo_cli.machine.processes import is_main
from orpo_cli.reporting.metrics_file import is_recorded
from orpo_cli.reporting.trackers import thread
from orpo_cli.reporting.trackers.opening import open_tracker
from orpo_cli.reporting.trackers.thread import TrackerThread
from orpo_cli.reporting.trackers.tracker import TrackedRun, Tracker
from orpo_cli.runs.folder import RunFolder
from orpo_cli.training.events import Evaluated, Event, PartEvaluated, RunFinished, RunStarted, Sampled, StepDone


class Tracking:
    """Starts the threads of the trackers when the steps begin, and hands them what metrics.jsonl gets.

    Args:
        folder: of the run; its run.json is there when the steps begin.
    """

    def __init__(self, config: RunConfig, folder: RunFolder) -> None:
        self._config = config
        self._folder = folder
        self._threads: list[TrackerThread] = []
        self._step = 0
        self._is_finished = False

    def show(self, event: Event) -> None:
        """Hand an event to every tracker."""
        match event:
            case RunStarted(steps_done=step):
                self._step = step
                run = _tracked(self._config, self._folder, step)
                names = self._config.tracker.names if is_main() else ()
                self._threads = [TrackerThread(name, partial(open_tracker, name, run)) for name in names]
            case StepDone(step=step, metrics=metrics):
                self._step = step
                if is_recorded(event, self._config.trainer.log_every):
                    self._put(lambda tracker: tracker.metrics(step, _named("train", metrics)))
            case Evaluated(step=step, metrics=metrics):
                self._put(lambda tracker: tracker.metrics(step, _named("eval", metrics)))
            case PartEvaluated(step=step, metrics=metrics):
                self._put(lambda tracker: tracker.metrics(step, _named("eval_part", metrics)))
            case Sampled(step=step, answers=answers):
                self._put(lambda tracker: tracker.samples(step, answers))
            case RunFinished(reading=reading):
                self._is_finished, last = True, self._step
                text = "\n".join(f"{'! ' if sentence.warns else ''}{sentence.text}" for sentence in reading)
                self._put(lambda tracker: tracker.reading(last, text))

    def problems(self) -> Iterator[str]:
        """Yield what is wrong with a tracker, each once."""
        for driven in self._threads:
            if problem := driven.new_problem():
                yield problem

    def close(self) -> None:
        """Close all trackers, and wait for them, but not longer than the deadline."""
        for driven in self._threads:
            driven.close(self._is_finished)
        ends = time.monotonic() + thread.DEADLINE
        for driven in self._threads:
            driven.wait(ends)

    def _put(self, work: Callable[[Tracker], None]) -> None:
        for driven in self._threads:
            driven.put(work)


def _named(kind: str, metrics: Mapping[str, float]) -> dict[str, float]:
    return {f"{kind}/{name}": value for name, value in metrics.items()}


def _tracked(config: RunConfig, folder: RunFolder, steps_done: int) -> TrackedRun:
    tracker = config.tracker
    return TrackedRun(
        id=folder.run_id,
        name=tracker.run_name or "-".join(folder.path.parts[-2:]),
        project=tracker.project,
        entity=tracker.entity,
        uri=tracker.uri,
        settings=settings_of(config),
        folder=folder.path,
        steps_done=steps_done,
    )


def settings_of(config: RunConfig) -> dict[str, Any]:
    """Return the value of every key by its dotted name, but those of the tracker, whose uri may hold a password."""
    return dict(dotted({key: part for key, part in values_of(config).items() if key != "tracker"}))
