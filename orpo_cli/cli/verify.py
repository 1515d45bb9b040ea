"""`orpo verify`: whether a run's checkpoints, records and model are whole, and whether its steps can be repeated."""

import math
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orpo_cli.cli.arguments import go_on
from orpo_cli.cli.manual import VERIFY_HELP
from orpo_cli.cli.sweeps import SWEEP
from orpo_cli.errors import CheckpointError, ConfigError, InputNotFoundError
from orpo_cli.quoting import harmless
from orpo_cli.reporting.completeness import metrics_problem, notes_problem
from orpo_cli.reporting.records import in_the_way, undisturbed

if TYPE_CHECKING:
    from orpo_cli.checkpoints.inspection import Finding
    from orpo_cli.checkpoints.reading import TrainingState
    from orpo_cli.cli.resume import Continuation
    from orpo_cli.config.schema import RunConfig
    from orpo_cli.training.training import Training

OF_THE_CLOCK = ("tokens_per_second", "pairs_per_second")
"""Metrics that differ each time."""

ROUNDING = 0.01
"""How far, relative to its size, the loss of a step may be from itself on another machine."""


def main(argv: Sequence[str]) -> int:
    """Run `orpo verify ARGV`. Returns the exit code.

    Raises:
        CheckpointError: something is not whole.
    """
    if "--help" in argv or "-h" in argv:
        print(VERIFY_HELP, end="")
        return 0
    folder, replayed = _arguments(argv)
    if (folder / SWEEP).is_file():
        raise ConfigError(f"{folder}: is a sweep; verify its jobs one by one: orpo verify {shlex.quote(f'{folder}/0')}")
    if not (folder / "config.yaml").is_file():
        raise InputNotFoundError(f"{folder / 'config.yaml'}: no such file; orpo verify takes the folder of a run")
    problems = 0
    with undisturbed(folder):
        for finding in _findings(folder, replayed):
            print(f"{'ok     ' if finding.problem is None else 'PROBLEM'}  {finding.what}", flush=True)
            if finding.problem is not None:
                problems += 1
                print(f"         {harmless(finding.problem)}", flush=True)
    if problems:
        raise CheckpointError(
            f"{folder}: {problems} of the above {'is' if problems == 1 else 'are'} not as it should be"
        )
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
    from orpo_cli.checkpoints.inspection import Finding, inspect_checkpoints, inspect_end, inspect_weights
    from orpo_cli.checkpoints.reading import checkpoints
    from orpo_cli.reporting import records

    root, model = folder / "checkpoints", folder / records.MODEL
    saved = checkpoints(root)
    config = _config(folder)
    finished = records.is_finished(folder)
    steps = saved[-1][0] if saved else 0
    yield Finding(
        "config.yaml: the settings of the checkpoints", _settings_problem(config, [path for _, path in saved])
    )
    yield from inspect_checkpoints(root, finished)
    yield Finding("metrics.jsonl: no step missing, none twice", metrics_problem(folder, config, steps, finished))
    wrong = in_the_way(folder)
    yield Finding("files and directories, no links or pipes", f"{folder}: {', '.join(wrong)}" if wrong else None)
    if saved or finished:
        yield Finding("run.json and samples.jsonl: can be read", notes_problem(folder, finished))
        yield Finding("run.json: every file that it lists is as it says", _files_problem(folder, finished))
    if finished or model.is_dir():
        yield from inspect_weights(model, steps)
    if finished:
        yield from inspect_end(root, model)
    yield Finding(f"run.json: {'finished' if finished else f'not finished; go on with: {go_on(folder)}'}")
    if replayed:
        yield from _replay(folder, config, replayed)


def _config(folder: Path) -> "RunConfig":
    """The configuration of the run.

    Raises:
        CheckpointError: it is damaged.
    """
    from orpo_cli.config.saved import load_saved_config

    try:
        return load_saved_config(folder)
    except ConfigError as error:
        raise CheckpointError(str(error)) from None


def _settings_problem(config: "RunConfig", saved: Sequence[Path]) -> str | None:
    """In what the configuration differs from that of a checkpoint."""
    from orpo_cli.checkpoints.reading import read_state
    from orpo_cli.cli.resume import refuse_other_settings, wherever_the_model_is

    for path in saved:
        try:
            refuse_other_settings(config, wherever_the_model_is(read_state(path).identity))
        except ConfigError as error:
            return f"{path.name}: {error}"
        except CheckpointError:
            continue  # its own finding says so
    return None


def _files_problem(folder: Path, finished: bool) -> str | None:
    """Which of the files that run.json lists is not as the run left it: of one that goes on, those of its start; the
    model is of a run that has left it."""
    from orpo_cli.files.manifest import check_listed
    from orpo_cli.reporting import records

    listings = [records.files_left(folder), *(records.model_listings(folder)[-1:] if finished else [])]
    if finished and len(listings) == 1:
        return f"{folder / 'run.json'}: does not list the files of {records.MODEL}/"
    try:
        for files in listings:
            check_listed(folder, files, "the list in run.json")
    except CheckpointError as error:
        return str(error)
    return None


def _replay(folder: Path, config: "RunConfig", count: int) -> Iterator["Finding"]:
    """Take steps again from a checkpoint, or from the beginning, and compare them with what was recorded.

    Args:
        count: of the steps, at least; with `trainer.log_every` until one of them was recorded.
    """
    from rich.console import Console

    from orpo_cli.checkpoints.inspection import Finding
    from orpo_cli.machine.threads import choose_threads
    from orpo_cli.reporting import records
    from orpo_cli.reporting.terminal import Terminal
    from orpo_cli.training import loop
    from orpo_cli.training.events import StepDone, StepSkipped

    recorded = {
        record["step"]: record
        for record in records.read_records(folder / records.METRICS)
        if record["kind"] in ("step", "skipped")
    }
    compared = 0
    with Terminal(Console(stderr=True)) as screen:
        choose_threads()
        training, start, skipped, changed = _training_at(folder, config, max(recorded, default=0) - count, screen)
        for event in loop.steps(training, start + 1, skipped):
            if not isinstance(event, StepDone | StepSkipped):
                continue
            if event.step in recorded:
                compared += 1
                metrics = event.metrics if isinstance(event, StepDone) else None
                difference, problem = _difference(metrics, recorded[event.step], bool(changed))
                yield Finding(f"step {event.step}, taken again after step {start}: {difference}{changed}", problem)
            if event.step >= start + count and compared:
                break
    none = None if compared else f"{folder / records.METRICS}: has none of the steps after step {start}"
    yield Finding(f"{compared} steps taken again and compared", none)


def _training_at(folder: Path, config: "RunConfig", latest_start: int, screen: Any) -> tuple["Training", int, int, str]:
    """A training at the newest checkpoint up to a step, else at the beginning; its steps done and skipped; and how the
    conditions differ from those of the run."""
    from orpo_cli.checkpoints import reading
    from orpo_cli.cli.building import built_training
    from orpo_cli.cli.facts import environment
    from orpo_cli.cli.resume import MODEL_FILES, TOKENS_AT_ONCE, Continuation
    from orpo_cli.data.prepare import prepare
    from orpo_cli.machine.hardware import find_hardware
    from orpo_cli.models import loading
    from orpo_cli.models.files import find_model, fingerprint

    loading.be_quiet()
    states = [(path, reading.verify(path)) for _, path in reading.checkpoints(folder / "checkpoints")]
    fitting = [(path, state) for path, state in states if state.step <= latest_start]
    going_on = Continuation(*fitting[-1], []) if fitting else None
    since = [state for _, state in states[len(fitting) :]] or [state for _, state in fitting[-1:]]
    if since:
        config = replace(config, trainer=replace(config.trainer, max_tokens=since[0].max_tokens, processes=1))
    hardware = find_hardware(config.trainer)
    files = find_model(config.model, screen.progress)
    tokenizer = loading.load_tokenizer(files, config.model.chat_template)
    length = loading.usable_length(files, config.data.max_length)
    data = prepare(config.data, tokenizer, length, config.seed, screen.progress)
    if states and list(states[-1][1].data_sha256.values()) != list(data.sha256.values()):
        raise CheckpointError(f"{states[-1][0]}: the data has changed since; its steps cannot be taken again")
    if states and states[-1][1].identity.get(MODEL_FILES) not in (None, fingerprint(files.directory)):
        raise CheckpointError(f"{states[-1][0]}: the model has changed since; its steps cannot be taken again")
    training, _ = built_training(config, files, data, hardware, going_on)
    now = environment(config, hardware) | {TOKENS_AT_ONCE: config.trainer.max_tokens}
    then = [state.environment | {TOKENS_AT_ONCE: state.max_tokens} for state in since]
    then += [now | {TOKENS_AT_ONCE: None}] if _were_cut_in_two_ways(folder, going_on, since) else []
    other = [key for key in now if any(conditions.get(key) != now[key] for conditions in then)]
    changed = f" (under other conditions: {', '.join(other)})" if other else ""
    return (training, 0, 0, changed) if going_on is None else (
        training, going_on.state.step, going_on.state.skipped, changed
    )  # fmt: skip


def _were_cut_in_two_ways(folder: Path, going_on: "Continuation | None", since: Sequence["TrainingState"]) -> bool:
    """Whether the micro-batches may have changed between the steps that are taken again: because a resume gave others,
    or because memory ran out."""
    from orpo_cli.reporting import records

    history, start = records.went_on(folder), 0 if going_on is None else going_on.state.step
    given = any("trainer.max_tokens" in part["changed"] for part in history)
    became_less = going_on is not None and since[0].max_tokens != going_on.state.max_tokens
    given_at_start = any(part["after_step"] == start and "trainer.max_tokens" in part["changed"] for part in history)
    return (given and any(part["after_step"] > start for part in history)) or (became_less and not given_at_start)


def _difference(now: dict[str, float] | None, then: dict[str, Any], to_rounding: bool) -> tuple[str, str | None]:
    """How a step differs from what was recorded of it, in words, and the same where that is a problem.

    Args:
        now: None where the step was skipped.
        to_rounding: the conditions are others, so only a loss that is clearly another is a problem.
    """
    if (now is None) != (then["kind"] == "skipped"):
        problem = f"{'skipped' if now is None else 'taken'}, recorded as {'skipped' if now is not None else 'taken'}"
        return problem, problem
    differing = {
        name: abs(value - then.get(name, math.nan)) / max(abs(then.get(name, math.nan)), 1e-12)
        for name, value in (now or {}).items()
        if name not in OF_THE_CLOCK and value != then.get(name)
    }
    if now is None or not differing:
        return "identical", None
    worst = max(differing, key=lambda name: differing[name])
    text = f"{worst} {now[worst]!r}, recorded {then.get(worst)!r}"
    return text, None if to_rounding and differing.get("loss", 0.0) < ROUNDING else text
