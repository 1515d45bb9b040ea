"""The Python interface: what the commands do, as functions that print nothing, never exit and hear no signals.

    import orpo_cli as orpo

    config = orpo.configure("model=tiny", "data=prefs.json", "lambda=0.1")
    run = orpo.train(config)
    print(run.metrics[-1])

Errors are those of `orpo_cli.errors`. Everything works in any thread.
"""

import contextlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orpo_cli.config.schema import ModelConfig, RunConfig
from orpo_cli.errors import ConfigError, InputNotFoundError
from orpo_cli.runs.folder import RunFolder, resolved
from orpo_cli.runs.train import Consumer

if TYPE_CHECKING:
    from orpo_cli.cli.arguments import Arguments
    from orpo_cli.data.progress import OnProgress
    from orpo_cli.machine.signals import StopRequest
    from orpo_cli.reporting.check import Report
    from orpo_cli.runs.export import Exported
    from orpo_cli.runs.generate import Generated
    from orpo_cli.statistics.evaluation import Evaluation
    from orpo_cli.statistics.leaderboard import Leaderboard
    from orpo_cli.training.events import Event


class Run:
    """A run in its folder, finished or not."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __repr__(self) -> str:
        return f"Run({str(self.folder)!r})"

    def __fspath__(self) -> str:
        """Return the folder, so that a run can be given wherever a folder can."""
        return str(self.folder)

    @property
    def config(self) -> RunConfig:
        """Return the configuration that the run began with."""
        return RunFolder(self.folder).config

    @property
    def is_finished(self) -> bool:
        """Return whether the run has taken all its steps."""
        return RunFolder(self.folder).is_finished

    @property
    def metrics(self) -> list[dict[str, Any]]:
        """Return the lines of metrics.jsonl: steps and evaluations, in order."""
        return RunFolder(self.folder).records

    def metrics_table(self) -> Any:
        """Return `metrics` as a pandas DataFrame, a row for each line; needs pandas."""
        import pandas

        return pandas.DataFrame(self.metrics)

    @property
    def checkpoints(self) -> list[Path]:
        """Return the directories of the checkpoints, the newest last."""
        from orpo_cli.checkpoints.lookup import list_checkpoints

        return [path for _, path in list_checkpoints(RunFolder(self.folder).checkpoints)]

    def model(self) -> Any:
        """Load the trained model with transformers, an adapter on its base model with peft.

        Raises:
            InputNotFoundError: if the run has not left its model yet.
        """
        directory = self._model_directory()
        if (directory / "adapter_config.json").is_file():
            return _with_adapters(replace(self.config.model, path=str(directory), base=None))
        from transformers import AutoModelForCausalLM

        return AutoModelForCausalLM.from_pretrained(directory)

    def tokenizer(self) -> Any:
        """Load the tokenizer of the trained model.

        Raises:
            InputNotFoundError: if the run has not left its model yet.
        """
        from transformers import AutoTokenizer

        return AutoTokenizer.from_pretrained(self._model_directory())

    def _model_directory(self) -> Path:
        directory = RunFolder(self.folder).model
        if not directory.is_dir():
            raise InputNotFoundError(f"{directory}: no such directory; the run has not taken all its steps")
        return directory


def _with_adapters(model: ModelConfig) -> Any:
    """Load the base of an adapter with transformers, and on it the adapter with peft."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    from orpo_cli.models.files import find_model

    files = find_model(model, lambda *_: None)
    loaded: Any = AutoModelForCausalLM.from_pretrained(files.directory)
    for adapter in files.adapters[:-1]:
        loaded = PeftModel.from_pretrained(loaded, adapter).merge_and_unload()
    return PeftModel.from_pretrained(loaded, files.adapters[-1])


def configure(*overrides: str, config_dir: str | Path | None = None) -> RunConfig:
    """Compose and check the configuration of a run, from the words that `orpo train` takes: a file, and overrides.

    Relative paths, and the time of day in the default `output_dir`, are those of this call.

    Args:
        config_dir: a directory with groups and options of your own.
    Raises:
        ConfigError: if anything is wrong with an override or with YAML.
    """
    from orpo_cli.cli.compose import compose_jobs
    from orpo_cli.config.config_yaml import from_anywhere
    from orpo_cli.config.load import load_config

    arguments = _only_overrides(overrides, None if config_dir is None else Path(config_dir))
    with arguments.entry.named():
        job = compose_jobs(arguments).jobs[0]
        config = load_config(job.config)
    data = replace(config.data, path=from_anywhere(config.data.path), eval_path=from_anywhere(config.data.eval_path))
    model = replace(config.model, path=from_anywhere(config.model.path), base=from_anywhere(config.model.base))
    output_dir = config.output_dir if config.resume else str(job.folder.absolute())
    return replace(config, data=data, model=model, output_dir=output_dir)


def _only_overrides(words: Sequence[str], config_dir: Path | None = None) -> "Arguments":
    from orpo_cli.cli.arguments import Arguments, parse

    arguments = parse([*words, *([] if config_dir is None else [f"--config-dir={config_dir}"])])
    if arguments != Arguments(arguments.overrides, arguments.entry, config_dir=config_dir):
        raise ConfigError(f"{' '.join(words)}: expected overrides only, KEY=VALUE; flags are for the command line")
    return arguments


def train(config: RunConfig, consumers: Sequence[Consumer] = (), *, save_on_interrupt: bool = False) -> Run:
    """Train to the end, or until `trainer.max_time` is up.

    Args:
        consumers: told of every event, in their order; `orpo_cli.reporting.terminal.Terminal` is one.
        save_on_interrupt: whether the first Ctrl-C, or interrupt of a notebook's cell, saves after the step that is
            being taken, and only then ends the run; it needs the main thread.
    Raises:
        InterruptedRunError: if a signal came while `save_on_interrupt` was set; the state is saved.
        OrpoError: if the run does not take its steps.
    """
    for _ in training_events(config, consumers, save_on_interrupt=save_on_interrupt):
        pass
    return open_run(_folder_of(config))


def training_events(
    config: RunConfig, consumers: Sequence[Consumer] = (), *, save_on_interrupt: bool = False
) -> "Iterator[Event]":
    """Train, and yield what happens as it happens; a caller that stops asking ends the run after that event.

    What was saved by then can be resumed; leaving the loop saves nothing more.
    """
    from orpo_cli.machine.signals import StopRequest
    from orpo_cli.runs.train import train as run

    stop = StopRequest()
    events = run(config, RunFolder(_folder_of(config)), consumers, stop)
    return _hearing_signals(events, stop) if save_on_interrupt else events


def _hearing_signals(events: "Iterator[Event]", stop: "StopRequest") -> "Iterator[Event]":
    """Yield the events of a run, which a signal asks to save and end from its first step on."""
    from orpo_cli.machine.signals import stop_at_step_boundary
    from orpo_cli.training.events import RunStarted

    with contextlib.ExitStack() as stack:
        for event in events:
            if isinstance(event, RunStarted):
                stack.enter_context(stop_at_step_boundary(lambda _number: None, stop))
            yield event


def resume(
    folder: str | Path, *overrides: str, consumers: Sequence[Consumer] = (), save_on_interrupt: bool = False
) -> Run:
    """Resume a run from its last whole checkpoint; a finished one is left alone, unless it is asked for more steps.

    Args:
        overrides: new values of keys that may change on resume, as `trainer.epochs=3`.
        save_on_interrupt: as for `train`.
    Raises:
        ConfigError: if a key may not change.
        CheckpointError: if there is no whole checkpoint, or data or model have changed.
    """
    from orpo_cli.cli.compose import with_overrides
    from orpo_cli.cli.shorthand import key_of
    from orpo_cli.config.load import load_config

    words = _only_overrides(overrides).overrides
    for word in words:
        if key_of(word) in ("output_dir", "resume"):
            raise ConfigError(f"{word}: a run is resumed in its own folder; leave it out")
    config = load_config(with_overrides(RunFolder(Path(folder)).saved_config, words))
    return train(replace(config, resume=os.fspath(folder)), consumers, save_on_interrupt=save_on_interrupt)


def open_run(folder: str | Path) -> Run:
    """Open the folder of a run.

    Raises:
        InputNotFoundError: if it is not the folder of a run.
    """
    path = resolved(Path(folder))
    opened = RunFolder(path)
    if not opened.has_begun:
        raise InputNotFoundError(f"{opened.config_yaml}: no such file; expected the folder of a run")
    return Run(path)


def check(*overrides: str) -> "Report":
    """Look through preference data, from the same words as `orpo check` takes.

    Returns:
        the report: `findings`, `classes` of rows, `lengths`, an `estimate` of the run.
    Raises:
        DataError: if a file cannot be read at all; invalid rows are counted in the report.
    """
    from orpo_cli.cli.compose import compose_jobs
    from orpo_cli.config.load import load_check_config
    from orpo_cli.runs.check import check as look

    arguments = _only_overrides(overrides)
    with arguments.entry.named():
        return look(*load_check_config(compose_jobs(arguments, root="check").jobs[0].config))


def evaluate(*overrides: str, on_progress: "OnProgress" = lambda *_: None) -> "Evaluation":
    """Score held-out pairs, from the same words as `orpo evaluate` takes.

    Returns:
        the evaluation: a `summary` with intervals, its `breakdown`, the `comparison` with another model.
    Raises:
        DataError: if no pair is left to score.
    """
    from orpo_cli.cli.compose import compose_jobs
    from orpo_cli.cli.evaluated_run import evaluation_config
    from orpo_cli.cli.shorthand import with_quoted
    from orpo_cli.config.evaluation import EVALUATION_KEYS
    from orpo_cli.runs.evaluate import evaluate as look

    arguments = _only_overrides([with_quoted(EVALUATION_KEYS, word) for word in overrides])
    with arguments.entry.named():
        config, wanted = evaluation_config(compose_jobs(arguments, root="evaluate").jobs[0])
    return look(config, wanted, on_progress)


def generate(
    *overrides: str, prompts: Sequence[Any] | None = None, on_progress: "OnProgress" = lambda *_: None
) -> "list[Generated]":
    """Answer prompts with a model and with the one that it began with, from the same words as `orpo generate` takes.

    Args:
        prompts: texts or lists of messages, instead of `prompt=` or `prompts=`.
    Returns:
        for each prompt the answers `base` and `tuned`.
    Raises:
        ConfigError: if no prompt is given.
        DataError: if the chat template refuses a prompt, or it leaves the model no room for an answer.
    """
    from orpo_cli.cli.answering import given_prompts, typed
    from orpo_cli.cli.compose import compose_jobs
    from orpo_cli.cli.evaluated_run import generation_config
    from orpo_cli.data.prompts import prompts_of
    from orpo_cli.runs.generate import generate as answer

    arguments = _only_overrides(typed(overrides))
    with arguments.entry.named():
        config, wanted = generation_config(compose_jobs(arguments, root="generate").jobs[0])
    if prompts is None and wanted.prompt is None and wanted.prompts in (None, "-"):
        raise ConfigError('no prompt is given: prompts=[...], "prompt=..." or "prompts=FILE"')
    asked = given_prompts(config, wanted) if prompts is None else prompts_of(prompts)
    return list(answer(config, wanted, asked, on_progress)) if asked else []


def export(folder: str | Path, *words: str, on_progress: "OnProgress" = lambda *_: None) -> "Exported":
    """Write the model of a run in the form that others load, from the same words as `orpo export` takes.

    Returns:
        the export: its directory `to`, the `sizes` of its files, how it was `checked`, and `notes`.
    Raises:
        OutputError: if the directory is not empty.
        ModelError: if what was written is not the run's model.
    """
    from orpo_cli.config.load import load_export_config
    from orpo_cli.runs.export import export as write

    return write(RunFolder(resolved(Path(folder))), load_export_config(words), on_progress)


def compare(*directories: str | Path, by: str = "accuracy") -> "Leaderboard":
    """Put the runs in some folders of runs and sweeps side by side, as `orpo compare` does.

    Args:
        by: the metric to rank by: `accuracy`, `balanced_accuracy`, `nll`, `margin` or `loss`.
    Returns:
        the leaderboard: its `places`, `winner` and `verdict`, and with their reasons the runs that are not ranked.
    Raises:
        InputNotFoundError: if a directory is neither of a run nor of a sweep.
    """
    from orpo_cli.runs.compare import compare as look

    return look(directories, by)


def report(folder: str | Path) -> Path:
    """Write report.html, the page of a run or of a sweep, into its folder again, and return its path.

    Raises:
        InputNotFoundError: if it is the folder of neither.
        OutputError: if the page cannot be written.
    """
    from orpo_cli.runs.report import write_report_of

    return write_report_of(resolved(Path(folder)))


def _folder_of(config: RunConfig) -> Path:
    named = config.resume not in (None, "auto")
    return resolved(Path(str(config.resume) if named else config.output_dir))
