"""`orpo check`: what is in preference data and what training would make of it, before any weight is loaded."""

import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from orpo_cli.cli.arguments import expand
from orpo_cli.cli.manual import check_help
from orpo_cli.errors import ConfigError, DataError

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from orpo_cli.config.preferences import CheckConfig, DataConfig
    from orpo_cli.config.schema import RunConfig
    from orpo_cli.data.checking.findings import Near
    from orpo_cli.data.checking.survey import Survey
    from orpo_cli.data.pairs import PreferencePair
    from orpo_cli.data.prepare import PreparedData
    from orpo_cli.data.tokens.cached_files import OnProgress
    from orpo_cli.reporting.check import Report


def main(argv: Sequence[str]) -> int:
    """Run `orpo check ARGV`. Returns 0, or 65 where rows are invalid or a finding is fatal."""
    if "--help" in argv or "-h" in argv:
        print(check_help(), end="")
        return 0
    from orpo_cli.cli import compose
    from orpo_cli.cli.stdin import kept

    as_json = "--json" in argv
    arguments = kept(expand([word for word in argv if word != "--json"]))
    if "--multirun" in arguments:
        raise ConfigError("-m: a check looks at one configuration")
    composed: list[DictConfig] = []
    compose.run(arguments, composed.append, root="check")
    return _check(composed[0], as_json) if composed else 0


def _check(cfg: "DictConfig", as_json: bool) -> int:
    from rich.console import Console

    from orpo_cli.config.load import load_check_config
    from orpo_cli.reporting.check import json_report, print_report
    from orpo_cli.reporting.terminal import Terminal

    run, check = load_check_config(cfg)
    if run.resume is not None:
        raise ConfigError(f"resume={run.resume}: a check looks at data; give data=... and model=... instead")
    with Terminal(Console(stderr=True)) as screen:
        screen.progress("loading torch and transformers", 0, 0)
        try:
            report = _report(run, check, screen.progress)
        except DataError as error:
            if as_json:
                print(json.dumps({"error": str(error)}, ensure_ascii=False))
            raise
    if as_json:
        json.dump(json_report(report), sys.stdout, indent=2, ensure_ascii=False)
        print()
    else:
        print_report(report, Console())
    fatal = [finding.name for finding in report.findings if {"all", finding.name} & set(check.fail_on)]
    invalid = sum(count for (_, name), count in report.classes.items() if name.startswith("invalid:"))
    if invalid:
        raise DataError(f"{invalid} of {report.rows} rows are invalid; they are listed above")
    if fatal:
        raise DataError(f"found, and named in check.fail_on: {', '.join(fatal)}")
    return 0


def _report(run: "RunConfig", check: "CheckConfig", on_progress: "OnProgress") -> "Report":
    from orpo_cli.config.schema import LoraConfig
    from orpo_cli.data.checking.findings import findings
    from orpo_cli.data.prepare import prepare
    from orpo_cli.machine.hardware import find_hardware
    from orpo_cli.models import adapters, loading
    from orpo_cli.models.files import find_model
    from orpo_cli.reporting.check import Report, decoded
    from orpo_cli.training.estimate import estimate

    loading.be_quiet()
    files = find_model(run.model, on_progress, weights=False)
    tokenizer = loading.load_tokenizer(files, run.model.chat_template)
    max_length = loading.usable_length(files, run.data.max_length)
    data = prepare(
        replace(run.data, on_bad_row="skip"), tokenizer, max_length, run.seed, on_progress, needs_pairs=False
    )
    survey = _surveyed(data, run.data, on_progress)
    near = _near(data, run.data, check, on_progress)
    on_progress("estimating memory and time", 0, 0)
    skeleton = loading.load_skeleton(files)
    if isinstance(run.adapter, LoraConfig):
        skeleton = adapters.add_lora(skeleton, run.adapter, run.seed, files.reference)
    return Report(
        model=files.name,
        data=data,
        max_length=max_length,
        policy=run.data.length_policy,
        findings=findings(data, survey, near, check, tokenizer.bos_token_id),
        sample=decoded(data.train[0], tokenizer) if len(data.train) else {},
        source=data.train.source(0) if len(data.train) else None,
        estimate=estimate(run, data.train, skeleton, find_hardware(run.trainer)) if len(data.train) else None,
    )


def _surveyed(data: "PreparedData", config: "DataConfig", on_progress: "OnProgress") -> "Survey":
    """The texts of all files, looked through by as many processes as their size is worth."""
    from orpo_cli.data.checking.survey import Survey, survey_block
    from orpo_cli.data.rows.readers import read_blocks
    from orpo_cli.data.rows.sources import total_size
    from orpo_cli.data.shapes.recognition import known_shape
    from orpo_cli.data.tokens.workers import Workers, worthwhile

    survey = Survey()
    with Workers(None, worthwhile(total_size(data.files), config.workers)) as workers:
        for file in data.files:
            shape = known_shape(data.formats[file.name], config, file.has_cells)
            blocks = (((block, file.name, shape), done) for block, done in read_blocks(file))
            for part, done in workers.map(survey_block, blocks):
                survey = survey.and_then(part)
                on_progress(f"looking through {file.name}, kB", done // 1000, file.size // 1000)
    return survey


def _near(data: "PreparedData", config: "DataConfig", check: "CheckConfig", on_progress: "OnProgress") -> "Near":
    from orpo_cli.data.checking.findings import Near
    from orpo_cli.data.checking.survey import near_duplicates

    if check.near_duplicates is None:
        return Near([], 0)
    pairs = _pairs(data, config)
    on_progress("looking for near duplicates", 0, 0)
    return Near(*near_duplicates(pairs, check.near_duplicates, check.near_duplicate_pairs))


def _pairs(data: "PreparedData", config: "DataConfig") -> "Iterator[PreferencePair]":
    from orpo_cli.data.checking.survey import pairs_of
    from orpo_cli.data.rows.readers import read_blocks
    from orpo_cli.data.shapes.recognition import known_shape

    for file in data.files:
        shape = known_shape(data.formats[file.name], config, file.has_cells)
        for block, _ in read_blocks(file):
            yield from (pair for _, pair in pairs_of(block, file.name, shape))
