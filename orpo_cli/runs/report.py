"""Report: gather what the folder of a run says into one page, report.html, for a run that is finished or not."""

import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

from orpo_cli.config.defaults import differences
from orpo_cli.errors import InputNotFoundError
from orpo_cli.quoting import in_one_line
from orpo_cli.reporting.metrics_file import MetricsFile
from orpo_cli.reporting.report_page.facts import RunFacts
from orpo_cli.reporting.report_page.figures import Figure, held_out_figures, training_figures
from orpo_cli.reporting.report_page.margins import MarginFigure, margin_figure
from orpo_cli.reporting.report_page.result import first_and_last, left_out, numbers, samples, tiles
from orpo_cli.reporting.report_page.settings import commands, formula, ledger, resumed, title, what_was_run
from orpo_cli.reporting.report_page.thinning import some_of, thinning_in_words
from orpo_cli.runs.comparison_page import write_page, write_sweep_report
from orpo_cli.runs.folder import SWEEP, RunFolder
from orpo_cli.runs.outcome import evaluation_of_run
from orpo_cli.runs.scores import read_part, read_scored
from orpo_cli.runs.session import seconds_so_far
from orpo_cli.statistics.evaluation import Evaluation
from orpo_cli.statistics.scored_pairs import ScoredPairs
from orpo_cli.statistics.summary import Summary, summarize

_SAMPLED = {
    True: "Held-out prompts, answered greedily; the model has not been trained on them.",
    False: "Prompts of the training data, since nothing was held out, answered greedily.",
}


def write_report(folder: RunFolder) -> Path:
    """Write report.html into the folder of a run, and return its path.

    Raises:
        InputNotFoundError: if it is not the folder of a run.
        OutputError: if the page cannot be written.
    """
    if not folder.has_begun:
        raise InputNotFoundError(f"{folder.config_yaml}: no such file; expected the folder of a run or of a sweep")
    return write_page(folder.report, facts_of(folder))


def write_report_of(path: Path) -> Path:
    """Write report.html into the folder of a run or of a sweep, and return its path.

    Raises:
        InputNotFoundError: if it is neither.
        OutputError: if the page cannot be written.
    """
    return write_sweep_report(path) if (path / SWEEP).is_file() else write_report(RunFolder(path))


def write_report_or_warn(folder: RunFolder, written: MetricsFile, warn: Callable[[str], None]) -> None:
    """Write report.html where a run ends, which is on the disk by now: no fault of the page fails it.

    Args:
        written: the records of the run.
    """
    try:
        write_report(folder.with_records(written))
    except Exception as error:
        again = shlex.join(["orpo", "report", str(folder.path)])
        warn(f"report.html was not written: {in_one_line(error)}; try again with: {again}")


def facts_of(folder: RunFolder) -> RunFacts:
    """Return what the page of a run says."""
    config, record, records = folder.config, folder.record, folder.records
    evaluations = [line for line in records if line["kind"] == "eval"]
    parts = [line for line in records if line["kind"] == "eval_part"]
    drawn = parts or evaluations
    steps = [line["step"] for line in records if line["kind"] == "step"]
    last = evaluations[-1]["step"] if evaluations else None
    evaluation = evaluation_of_run(folder, evaluations, folder.end.get("model_step", last or 0))
    answered = [line for _, line in folder.samples_lines if line is not None]
    before, after = first_and_last(answered)
    summaries = _summaries(folder, drawn)
    skipped = [line["step"] for line in records if line["kind"] == "skipped"]
    return RunFacts(
        title=title(config),
        folder=str(folder.path),
        state=_state(folder, max(steps, default=0), last),
        tiles=tiles(evaluation, records, before, after),
        reading=record.get("reading", []),
        numbers=numbers(evaluation),
        held_out=_held_out(drawn, summaries, evaluation),
        training=training_figures(records, drawn, summaries),
        thinning=thinning_in_words(len(steps)),
        samples=samples(answered),
        samples_note=_SAMPLED[bool(evaluations)] + left_out(answered),
        formula=formula(config.loss, config.lambda_, record.get("router_aux_loss_coef", 0.0)),
        what=[*what_was_run(config, record | _time_taken(folder), skipped), *resumed(folder.resumes)],
        differences=differences(config),
        ledger=ledger(record),
        notes=record.get("notes", []),
        commands=commands(folder.path, config, folder.is_finished, bool(evaluations)),
    )


def _time_taken(folder: RunFolder) -> dict[str, float]:
    """Return how long a run that has not finished has worked, by its files; run.json says it at the end."""
    if folder.is_finished or "seconds" not in folder.record:
        return {}
    return {"seconds": seconds_so_far(folder.record, folder.records)}


def _state(folder: RunFolder, last_step: int, evaluated: int | None) -> str:
    """Return whether a run is finished.

    Args:
        evaluated: the step after which all held-out pairs were last evaluated, if they were.
    """
    if not folder.is_finished:
        if not last_step:
            return "No step was taken yet."
        when = "before training" if evaluated == 0 else f"after step {evaluated}"
        of = "" if evaluated in (None, last_step) else f" All held-out pairs were last evaluated {when}."
        return f"Not finished: step {last_step:,} is the last that was recorded.{of}"
    end = folder.end
    step, total = end.get("step", last_step), end.get("total_steps", last_step)
    early = f", ended by trainer.early_stop={end['early_stop']}" if end.get("early_stop") is not None else ""
    best = f"; the model is that of step {end['model_step']:,}, the best" if end.get("model_step", step) != step else ""
    return f"Finished after {step:,} of {total:,} steps{early}{best}."


def _summaries(folder: RunFolder, evaluations: list[dict[str, Any]]) -> dict[int, Summary]:
    """Return the summary of each evaluation that is drawn, by its step; a run of an earlier version has none."""
    steps = [line["step"] for line in some_of(evaluations)]
    scored = {step: _scores_of(folder, step, evaluations[0]["kind"]) for step in steps}
    return {step: summarize(pairs) for step, pairs in scored.items() if pairs is not None}


def _scores_of(folder: RunFolder, step: int, kind: str) -> ScoredPairs | None:
    if kind == "eval_part":
        return read_part(folder.evaluations, step)
    found = read_scored(folder.evaluations, "", step, {})
    return None if found is None else found.pairs


def _held_out(
    evaluations: list[dict[str, Any]], summaries: dict[int, Summary], evaluation: Evaluation | None
) -> list[Figure | MarginFigure]:
    figures: list[Figure | MarginFigure] = [*held_out_figures(evaluations, summaries)]
    return figures if evaluation is None else [*figures, margin_figure(evaluation)]
