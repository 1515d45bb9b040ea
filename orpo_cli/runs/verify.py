"""Verify: whether a run's checkpoints, records and model are whole."""

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path

from orpo_cli.checkpoints.inspection import Inspected, inspect_checkpoints, inspect_end, inspect_tensors
from orpo_cli.checkpoints.lookup import list_checkpoints, read_state
from orpo_cli.config.schema import RunConfig
from orpo_cli.errors import CheckpointError, ConfigError, InputNotFoundError
from orpo_cli.files.manifest import check_listed
from orpo_cli.files.untrusted import MAX_OWN_BYTES, read_json
from orpo_cli.quoting import first_line, resume_command
from orpo_cli.reporting.completeness import metrics_problem
from orpo_cli.runs.folder import MODEL, RunFolder
from orpo_cli.runs.resume import refuse_other_checkpoint, without_places


def verify(folder: RunFolder) -> Iterator[Inspected]:
    """Look at everything in the folder of a run; nothing in it is changed.

    Raises:
        InputNotFoundError: if it is not the folder of a run.
        OutputError: if a run works in it.
        CheckpointError: if config.yaml is damaged, so that nothing can be compared with it.
    """
    if not folder.config_yaml.is_file():
        raise InputNotFoundError(f"{folder.config_yaml}: no such file; orpo verify takes the folder of a run")
    with folder.undisturbed():
        yield from _inspected(folder)


def _inspected(folder: RunFolder) -> Iterator[Inspected]:
    saved, finished = list_checkpoints(folder.checkpoints), folder.is_finished
    config = checked_config(folder)
    steps = saved[-1][0] if saved else 0
    yield Inspected(
        "config.yaml: the settings of the checkpoints", _settings_problem(config, [path for _, path in saved])
    )
    yield from inspect_checkpoints(folder.checkpoints, finished)
    yield Inspected(
        "metrics.jsonl: no step missing, none twice",
        _metrics_problem(folder, config, saved, finished),
    )
    wrong = folder.wrong_kinds()
    yield Inspected("files and directories, no links or pipes", f"{folder.path}: {', '.join(wrong)}" if wrong else None)
    if saved or finished:
        yield Inspected("run.json and samples.jsonl: can be read", _reading_problem(folder))
        yield Inspected("run.json: every file that it lists is as it says", _files_problem(folder))
    if finished or folder.model.is_dir():
        yield from inspect_tensors(folder.model, steps)
    if finished:
        end = folder.end.get("step")
        yield from inspect_end(folder.checkpoints, end if type(end) is int else None)
    how = "finished" if finished else f"not finished; resume with: {resume_command(folder.path)}"
    yield Inspected(f"run.json: {how}")


def checked_config(folder: RunFolder) -> RunConfig:
    """Return the configuration of the run.

    Raises:
        CheckpointError: if config.yaml is damaged.
    """
    try:
        return folder.config
    except ConfigError as error:
        raise CheckpointError(str(error)) from None


def _settings_problem(config: RunConfig, saved: Sequence[Path]) -> str | None:
    """Return in what the configuration differs from that of a checkpoint."""
    for path in saved:
        try:
            refuse_other_checkpoint(config, without_places(read_state(path).identity))
        except ConfigError as error:
            return f"{path.name}: {error}"
        except CheckpointError:
            continue  # it is reported with the checkpoint itself
    return None


def _metrics_problem(
    folder: RunFolder, config: RunConfig, saved: Sequence[tuple[int, Path]], finished: bool
) -> str | None:
    """Return what is wrong with metrics.jsonl; a run that ended early may not have recorded its last step."""
    last, as_planned = 0, True
    if saved:
        last, newest = saved[-1]
        with contextlib.suppress(CheckpointError):  # it is reported with the checkpoint itself
            as_planned = read_state(newest).total_steps == last
    return metrics_problem(folder.metrics, folder.metrics_lines, config, folder.resumes, last, finished, as_planned)


def _reading_problem(folder: RunFolder) -> str | None:
    """Return what of run.json and samples.jsonl cannot be read; the last sample of a killed run may be cut short."""
    lines = folder.samples_lines
    for number, record in lines if folder.is_finished else lines[:-1]:
        if record is None:
            return f"{folder.samples}:{number}: cannot be read"
    try:
        read_json(folder.run_json, MAX_OWN_BYTES)
    except (OSError, ValueError) as error:
        return f"{folder.run_json}: cannot be read: {getattr(error, 'strerror', None) or first_line(error)}"
    return None


def _files_problem(folder: RunFolder) -> str | None:
    """Return which file that run.json lists is not as the run left it; the model counts once the run is finished."""
    if folder.is_finished and not folder.model_files:
        return f"{folder.run_json}: does not list the files of {MODEL}/"
    try:
        for files in (folder.files, *([folder.model_files] if folder.is_finished else [])):
            check_listed(folder.path, files, "the list in run.json")
    except CheckpointError as error:
        return str(error)
    return None
