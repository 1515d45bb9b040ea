"""The commands that look at several runs: `orpo compare` and `orpo runs`."""

import json
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from orpo_cli.cli.arguments import Parser
from orpo_cli.errors import DataError

_TABLES = ("csv", "markdown", "latex")


def compare(argv: Sequence[str]) -> int:
    """Run `orpo compare`: 0, or 65 where there are finished runs and none of them can be ranked."""
    parser = Parser(
        usage="orpo compare DIR... [--by METRIC] [--html FILE] [--json]", add_help=False, allow_abbrev=False
    )
    parser.add_argument("directories", nargs="+", type=Path, metavar="DIR")
    parser.add_argument("--by", default="accuracy", metavar="METRIC")
    parser.add_argument("--json", action="store_true")
    for kind in (*_TABLES, "html"):
        parser.add_argument(f"--{kind}", type=Path, metavar="FILE")
    given = parser.parse_intermixed_args(argv)
    from rich.console import Console

    from orpo_cli.reporting.leaderboard import print_leaderboard
    from orpo_cli.reporting.leaderboard_files import json_leaderboard, write_files
    from orpo_cli.runs.compare import compare as look
    from orpo_cli.runs.comparison_page import write_comparison

    board = look(given.directories, given.by)
    write_files(board, {kind: getattr(given, kind) for kind in _TABLES})
    if given.html is not None:
        write_comparison(board, given.html, shlex.join(["orpo", "compare", *argv]))
        print(f"the page is {given.html}", file=sys.stderr)
    if given.json:
        json.dump(json_leaderboard(board), sys.stdout, indent=2, ensure_ascii=False, default=str)
        print()
    else:
        print_leaderboard(board, Console())
    if not board.places and any(run.state == "finished" for run in board.unranked):
        raise DataError(f"no two of these runs can be ranked by {given.by}; the reason is beside each of them")
    return 0


def runs(argv: Sequence[str]) -> int:
    """Run `orpo runs`."""
    parser = Parser(usage="orpo runs [DIR]", add_help=False, allow_abbrev=False)
    parser.add_argument("directory", nargs="?", type=Path, default=Path("outputs"), metavar="DIR")
    directory = parser.parse_args(argv).directory
    from rich.console import Console

    from orpo_cli.reporting.runs_table import print_runs
    from orpo_cli.runs.listing import runs_below

    found = runs_below(directory)
    if found:
        print_runs(found, Console())
    else:
        print(f"{directory}: there is no run below it", file=sys.stderr)
    return 0
