"""The command that takes a run's model home: `orpo export`."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from orpo_cli.errors import ConfigError
from orpo_cli.quoting import harmless

if TYPE_CHECKING:
    from orpo_cli.config.export import ExportConfig
    from orpo_cli.runs.export import Exported


def export(argv: Sequence[str]) -> int:
    """Run `orpo export`: write the model, say on stderr how it was checked, and print its directory."""
    if not argv or "=" in argv[0] or argv[0].startswith("-"):
        raise ConfigError("orpo export takes the folder of a run: orpo export RUN_DIR to=DIR [KEY=VALUE ...]")
    from rich.console import Console

    from orpo_cli.cli.keyboard import quiet_keys
    from orpo_cli.config.load import load_export_config
    from orpo_cli.machine.threads import choose_threads
    from orpo_cli.reporting.terminal import Terminal
    from orpo_cli.runs.folder import RunFolder, resolved

    folder, wanted = RunFolder(resolved(Path(argv[0]).expanduser())), load_export_config(argv[1:])
    with quiet_keys(), Terminal(Console(stderr=True)) as screen:
        screen.progress("loading torch and transformers", 0, 0)
        choose_threads()
        from orpo_cli.runs.export import export as write

        exported = write(folder, wanted, screen.progress)
    _print_notes(exported)
    if wanted.dry_run:
        _print_plan(exported, wanted)
    else:
        print(exported.to)
    return 0


def _print_notes(exported: "Exported") -> None:
    checked = exported.checked
    lines = [
        f"checked: loaded again, the model after step {exported.step} gives {checked.tokens} tokens of the run's pairs "
        f"the same log-probabilities to {checked.difference:.2g} nats; up to {checked.limit:.2g} is the rounding of "
        f"{checked.dtype}",
        *exported.notes,
        *([] if exported.address is None else [f"sent to {exported.address}"]),
    ]
    for line in lines:
        print(harmless(line), file=sys.stderr)


def _print_plan(exported: "Exported", wanted: "ExportConfig") -> None:
    """Print which files would be written, and where they would be sent to."""
    width = max(map(len, exported.sizes))
    for name, size in exported.sizes.items():
        print(f"{name:<{width}}  {size:>14,} bytes")
    seen = "public" if wanted.public else "private"
    to = "" if wanted.push is None else f", and sent to {wanted.push}, which is made {seen} where it is not there"
    print(f"{sum(exported.sizes.values()):,} bytes would be written to {exported.to}{to}; nothing was")
