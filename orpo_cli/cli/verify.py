"""`orpo verify`: whether a run's checkpoints, records and model are whole, and whether its steps can be repeated."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orpo_cli.cli.manual import VERIFY_HELP
from orpo_cli.errors import CheckpointError, ConfigError, InputNotFoundError

if TYPE_CHECKING:
    from orpo_cli.config.schema import RunConfig
    from orpo_cli.training.inspection import Finding
    from orpo_cli.training.measuring import Training

OF_THE_CLOCK = ("tokens_per_second", "pairs_per_second")
"""Metrics that differ each time."""


def main(argv: Sequence[str]) -> int:
    """Run `orpo verify ARGV`. Returns the exit code.

    Raises:
        CheckpointError: something is not whole.
    """
    if "--help" in argv or "-h" in argv:
        print(VERIFY_HELP, end="")
        return 0
    folder, replayed = _arguments(argv)
    if not (folder / "config.yaml").is_file():
        raise InputNotFoundError(f"{folder / 'config.yaml'}: no such file; orpo verify takes the folder of a run")
    faults = 0
    for finding in _findings(folder, replayed):
        print(f"{'ok   ' if finding.fault is None else 'FAULT'}  {finding.what}", flush=True)
        if finding.fault is not None:
            faults += 1
            print(f"       {finding.fault}", flush=True)
    if faults:
        raise CheckpointError(f"{folder}: {faults} of the above {'is' if faults == 1 else 'are'} not as it should be")
    return 0


def _arguments(argv: Sequence[str]) -> tuple[Path, int]:
    words, replayed = list(argv), 0
    for word in argv:
        flag, equals, value = word.partition("=")
        if flag != "--replay":
            continue
        place = words.index(word)
        number = value if equals else (words[place + 1] if place + 1 < len(words) else "")
        if not number.isdecimal() or int(number) < 1:
            raise ConfigError(f"{word} {'' if equals else number}: expected --replay N, with N steps, 1 or more")
        del words[place : place + (1 if equals else 2)]
        replayed = int(number)
    if len(words) != 1 or words[0].startswith("-"):
        raise ConfigError("orpo verify takes the folder of a run: orpo verify RUN_DIR [--replay N]")
    return Path(words[0]).expanduser(), replayed


def _findings(folder: Path, replayed: int) -> Iterator["Finding"]:
    from orpo_cli.config.load import load_config, read_saved_config
    from orpo_cli.reporting import records
    from orpo_cli.training.checkpoints import checkpoints
    from orpo_cli.training.inspection import Finding, inspect_checkpoints, inspect_weights

    config = load_config(read_saved_config(folder))
    finished = records.is_finished(folder)
    saved = checkpoints(folder / "checkpoints")
    steps = saved[-1][0] if saved else 0
    yield Finding("config.yaml")
    yield from inspect_checkpoints(folder / "checkpoints")
    yield Finding("metrics.jsonl: no step missing, none twice", _fault_of_records(folder, config, steps))
    if finished or (folder / "model").is_dir():
        yield from inspect_weights(folder / "model", steps)
    yield Finding(f"run.json: {'finished' if finished else f'not finished; go on with: orpo resume {folder}'}")
    if replayed:
        yield from _replay(folder, config, replayed)


def _fault_of_records(folder: Path, config: "RunConfig", last: int) -> str | None:
    """What is wrong with the steps recorded up to the last checkpoint."""
    from orpo_cli.reporting import records

    path = folder / records.METRICS
    steps = [record["step"] for record in records.read_records(path) if record["kind"] in ("step", "skipped")]
    twice = sorted({step for step in steps if steps.count(step) > 1})
    every = config.trainer.log_every
    missing = sorted({step for step in range(1, last + 1) if step % every == 0 or step == 1} - set(steps))
    if twice or missing:
        return f"{path}: steps missing: {missing[:10]}, twice: {twice[:10]}"
    return None if steps == sorted(steps) else f"{path}: steps are not in order"


def _replay(folder: Path, config: "RunConfig", count: int) -> Iterator["Finding"]:
    """Take steps again from a checkpoint, or from the beginning, and compare them with what was recorded."""
    from rich.console import Console

    from orpo_cli.reporting import records
    from orpo_cli.reporting.terminal import Terminal
    from orpo_cli.training import loop
    from orpo_cli.training.events import StepDone
    from orpo_cli.training.inspection import Finding
    from orpo_cli.training.threads import choose_threads

    recorded = {
        record["step"]: record for record in records.read_records(folder / records.METRICS) if record["kind"] == "step"
    }
    with Terminal(Console(stderr=True)) as screen:
        choose_threads()
        training, start, skipped, changed = _training_at(folder, config, max(recorded, default=0) - count, screen)
        for event in loop.steps(training, start + 1, skipped):
            if event.step > start + count:
                break
            if isinstance(event, StepDone) and event.step in recorded:
                difference = _difference(event.metrics, recorded[event.step])
                same = "identical" if difference is None else difference
                fault = None if difference is None or changed else difference
                yield Finding(f"step {event.step}, taken again after step {start}: {same}{changed}", fault)


def _training_at(folder: Path, config: "RunConfig", latest_start: int, screen: Any) -> tuple["Training", int, int, str]:
    """A training at the newest checkpoint up to a step, else at the beginning; its steps done and skipped; and how the
    conditions differ from those of the run."""
    from orpo_cli.cli.facts import environment
    from orpo_cli.cli.job import built_training
    from orpo_cli.cli.resume import Continuation
    from orpo_cli.data.prepare import prepare
    from orpo_cli.models import loading
    from orpo_cli.training import checkpoints
    from orpo_cli.training.hardware import find_hardware

    loading.be_quiet()
    states = [(path, checkpoints.verify(path)) for _, path in checkpoints.checkpoints(folder / "checkpoints")]
    fitting = [(path, state) for path, state in states if state.step <= latest_start]
    going_on = Continuation(*fitting[-1], []) if fitting else None
    if states:
        config = replace(config, trainer=replace(config.trainer, max_tokens=states[0][1].max_tokens, processes=1))
    hardware = find_hardware(config.trainer)
    files = loading.find_model(config.model, screen.progress)
    tokenizer = loading.load_tokenizer(files, config.model.chat_template)
    length = loading.usable_length(files, config.data.max_length)
    data = prepare(config.data, tokenizer, length, config.seed, screen.progress)
    training, _ = built_training(config, files, data, hardware, going_on)
    now = environment(config, hardware)
    then = states[-1][1].environment if states else now
    other = [key for key in now if then.get(key) != now[key]]
    changed = f" (under other conditions: {', '.join(other)})" if other else ""
    return (training, 0, 0, changed) if going_on is None else (
        training, going_on.state.step, going_on.state.skipped, changed
    )  # fmt: skip


def _difference(now: dict[str, float], then: dict[str, Any]) -> str | None:
    """The metric that differs most, relative to its size; None where all are the same to the last bit."""
    differing = {
        name: abs(value - then[name]) / max(abs(then[name]), 1e-12)
        for name, value in now.items()
        if name not in OF_THE_CLOCK and value != then[name]
    }
    if not differing:
        return None
    worst = max(differing, key=lambda name: differing[name])
    return f"{worst} {now[worst]!r}, recorded {then[worst]!r}"
