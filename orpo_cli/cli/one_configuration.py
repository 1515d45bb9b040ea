"""The commands that look at one configuration: `orpo check`, `evaluate`, `generate` and `chat`."""

import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from orpo_cli.cli.arguments import Arguments, parse
from orpo_cli.cli.shorthand import hidden_places
from orpo_cli.errors import ConfigError, DataError

if TYPE_CHECKING:
    from orpo_cli.cli.compose import Job


def say_what_is_hidden(arguments: Arguments) -> None:
    """Say which options are taken though a file or folder has their name; once, where several processes work."""
    from orpo_cli.machine.processes import has_parent, is_main

    for line in hidden_places(arguments.overrides) if is_main() and not has_parent() else ():
        print(f"! {line}", file=sys.stderr)


def _composed(arguments: Arguments, root: str, run: Callable[["Job"], int]) -> int:
    """Run a command that looks at one configuration, or show it where that is asked for."""
    from orpo_cli.cli.compose import compose_jobs, show
    from orpo_cli.cli.stdin import kept

    arguments = replace(arguments, overrides=kept(arguments.overrides))
    with arguments.entry.named():
        if arguments.cfg or arguments.info:
            show(arguments, root=root)
            return 0
        say_what_is_hidden(arguments)
        return run(compose_jobs(arguments, root=root).jobs[0])


def _print_json(value: Any) -> None:
    json.dump(value, sys.stdout, indent=2, ensure_ascii=False)
    print()


def check(argv: Sequence[str]) -> int:
    """Run `orpo check`: 0, or 65 where a run would stop at invalid rows, or a finding is named in `check.fail_on`."""
    arguments = parse([word for word in argv if word != "--json"])
    if arguments.multirun:
        raise ConfigError("-m: a check looks at one configuration")
    return _composed(arguments, "check", lambda job: _check(job, "--json" in argv))


def _check(job: "Job", as_json: bool) -> int:
    from rich.console import Console

    from orpo_cli.cli.keyboard import quiet_keys
    from orpo_cli.config.load import load_check_config
    from orpo_cli.reporting.terminal import Terminal
    from orpo_cli.runs.train import refuse_missing_data

    run, sought = load_check_config(job.config)
    refuse_missing_data(run)
    with quiet_keys(), Terminal(Console(stderr=True)) as screen:
        screen.progress("loading torch and transformers", 0, 0)
        from orpo_cli.reporting.check import json_report, print_report
        from orpo_cli.runs.check import check as look

        try:
            report = look(run, sought, screen.progress)
        except DataError as error:
            if as_json:
                print(json.dumps({"error": str(error)}, ensure_ascii=False))
            raise
    if as_json:
        _print_json(json_report(report))
    else:
        print_report(report, Console())
    fatal = [finding.name for finding in report.findings if {"all", finding.name} & set(sought.fail_on)]
    if report.invalid and run.data.on_bad_row == "error":
        raise DataError(
            f"{report.invalid} of {report.rows} rows are invalid; they are listed above; data.on_bad_row=skip leaves "
            "them out"
        )
    if fatal:
        raise DataError(f"found, and named in check.fail_on: {', '.join(fatal)}")
    return 0


def evaluate(argv: Sequence[str]) -> int:
    """Run `orpo evaluate`."""
    from orpo_cli.cli.answering import with_model_named
    from orpo_cli.cli.shorthand import with_quoted
    from orpo_cli.config.evaluation import EVALUATION_KEYS

    words = with_model_named([word for word in argv if word != "--json"])
    arguments = parse([with_quoted(EVALUATION_KEYS, word) for word in words])
    if arguments.multirun:
        raise ConfigError("-m: an evaluation looks at one model; `against=MODEL` compares it with another")
    return _composed(arguments, "evaluate", lambda job: _evaluate(job, "--json" in argv))


def _evaluate(job: "Job", as_json: bool) -> int:
    from rich.console import Console

    from orpo_cli.cli.evaluated_run import evaluation_config
    from orpo_cli.cli.keyboard import quiet_keys
    from orpo_cli.machine.threads import choose_threads
    from orpo_cli.reporting.terminal import Terminal

    config, wanted = evaluation_config(job)
    with quiet_keys(), Terminal(Console(stderr=True)) as screen:
        screen.progress("loading torch and transformers", 0, 0)
        choose_threads()
        from orpo_cli.reporting.evaluation import json_report, print_report
        from orpo_cli.runs.evaluate import evaluate as look

        evaluation = look(config, wanted, screen.progress)
    if as_json:
        _print_json(json_report(evaluation))
    else:
        print_report(evaluation, Console())
    return 0


def generate(argv: Sequence[str]) -> int:
    """Run `orpo generate`."""
    from orpo_cli.cli.answering import answer, typed

    arguments = parse(typed([word for word in argv if word != "--json"]))
    if arguments.multirun:
        raise ConfigError("-m: one model answers, and the one it began with; against=MODEL names another")
    return _composed(arguments, "generate", lambda job: answer(job, "--json" in argv))


def chat(argv: Sequence[str]) -> int:
    """Run `orpo chat`."""
    from orpo_cli.cli.answering import typed
    from orpo_cli.cli.conversation import talk

    arguments = parse(typed(argv))
    if arguments.multirun:
        raise ConfigError("-m: a conversation is with one model; against=MODEL names another for /base")
    return _composed(arguments, "generate", talk)
