"""The command that examines the machine: `orpo doctor`."""

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from orpo_cli.cli.arguments import parse
from orpo_cli.errors import ConfigError, DataError


def doctor(argv: Sequence[str]) -> int:
    """Run `orpo doctor`: 0, or 65 where something is not as it should be."""
    arguments = parse([word for word in argv if word != "--json"])
    if arguments.multirun:
        raise ConfigError("-m: doctor looks at one model and its data")
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from orpo_cli.cli.compose import compose_jobs
    from orpo_cli.cli.keyboard import quiet_keys
    from orpo_cli.config.load import load_check_config
    from orpo_cli.reporting.terminal import Terminal

    with quiet_keys(), arguments.entry.named(), Terminal(Console(stderr=True)) as screen:
        screen.progress("looking at this machine", 0, 0)
        from orpo_cli.runs.doctor import examine, examine_run

        facts = list(examine(Path("outputs")))
        if arguments.overrides:
            run, sought = load_check_config(compose_jobs(arguments, root="check").jobs[0].config)
            facts += examine_run(run, sought, screen.progress)
    if "--json" in argv:
        json.dump([asdict(fact) for fact in facts], sys.stdout, indent=2, ensure_ascii=False)
        print()
    else:
        table = Table.grid(padding=(0, 2, 0, 0))
        for fact in facts:
            mark = Text("!", "bold red") if fact.is_problem else Text("·", "dim")
            said = Text.assemble(fact.value, "\n", (fact.meaning, "red" if fact.is_problem else "dim"))
            table.add_row(mark, Text(fact.name, "bold"), said)
        Console().print(table)
    return DataError.exit_code if any(fact.is_problem for fact in facts) else 0
