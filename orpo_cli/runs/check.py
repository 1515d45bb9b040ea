"""Check: what is in preference data and what training would make of it, before any weight is loaded."""

from collections.abc import Iterator
from dataclasses import replace

from orpo_cli.config.data import CheckConfig, DataConfig
from orpo_cli.config.schema import RunConfig
from orpo_cli.data.checking.findings import findings
from orpo_cli.data.checking.near_duplicates import NearDuplicates, near_duplicates
from orpo_cli.data.checking.survey import Survey, pairs_of, survey_block
from orpo_cli.data.pairs import PreferencePair
from orpo_cli.data.prepare import PreparedData
from orpo_cli.data.progress import OnProgress
from orpo_cli.data.rows.readers import read_blocks
from orpo_cli.data.tokens.workers import Workers, worker_count
from orpo_cli.reporting.check import Report, decoded
from orpo_cli.runs.assembly import Assembly
from orpo_cli.training.estimate import RunEstimate, estimate


def check(run: RunConfig, sought: CheckConfig, on_progress: OnProgress = lambda *_: None) -> Report:
    """Look through preference data as a run of the same configuration would read it.

    Args:
        sought: what is looked for.
    Raises:
        DataError: if a file cannot be read at all; invalid rows are counted in the report.
    """
    assembly = Assembly(replace(run, data=replace(run.data, on_bad_row="skip")), on_progress, for_training=False)
    data = assembly.data
    survey = _survey(data, run.data, on_progress)
    near = _near_duplicates(data, sought, on_progress)
    on_progress("estimating memory and time", 0, 0)
    has_pairs = len(data.train) > 0
    plan, said = _plan(assembly) if has_pairs else (None, [])
    return Report(
        model=assembly.files.name,
        data=data,
        notes=[*assembly.notes, *said, *assembly.model.notes_on_dropout()],
        max_length=assembly.max_length,
        policy=run.data.length_policy,
        skips=run.data.on_bad_row == "skip",
        findings=findings(data, survey, near, sought, assembly.tokenizer.bos_token_id, run.data.ignore_keys),
        sample=decoded(data.train[0], assembly.tokenizer) if has_pairs else {},
        source=data.train.source(0) if has_pairs else None,
        estimate=plan,
    )


def _plan(assembly: Assembly) -> tuple[RunEstimate, list[str]]:
    """Return what the run takes with all its processes, of which none is started here, and what `trainer.fit` chose."""
    trainer, here = assembly.config.trainer, assembly.hardware
    hardware = replace(here, processes=max(here.processes, trainer.processes))
    config, said = assembly.config, list[str]()
    if trainer.fit is not None:
        config, chosen = assembly.fitted_to(hardware)
        said.append(chosen)
    return estimate(config, assembly.data.train, assembly.skeleton, hardware), said


def _survey(data: PreparedData, config: DataConfig, on_progress: OnProgress) -> Survey:
    """Look through the texts of all files, in as many processes as their size is worth."""
    survey = Survey()
    size = sum(file.size for file in data.files)
    with Workers(None, worker_count(size, config.workers)) as workers:
        for file in data.files:
            blocks = (((block, file.name, data.shapes[file.name]), done) for block, done in read_blocks(file))
            for part, done in workers.results_in_order(survey_block, blocks):
                survey = survey.plus(part)
                on_progress(f"looking through {file.name}, kB", done // 1000, file.size // 1000)
    return survey


def _near_duplicates(data: PreparedData, sought: CheckConfig, on_progress: OnProgress) -> NearDuplicates:
    if sought.near_duplicates is None:
        return NearDuplicates()
    on_progress("looking for near duplicates", 0, 0)
    return near_duplicates(_pairs(data), sought.near_duplicates, sought.near_duplicate_pairs)


def _pairs(data: PreparedData) -> Iterator[PreferencePair]:
    for file in data.files:
        for block, _ in read_blocks(file):
            yield from (pair for _, pair in pairs_of(block, file.name, data.shapes[file.name]))
