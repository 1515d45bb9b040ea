"""Write the page of several runs: of a comparison into any file, of a sweep into its folder."""

import os
import shlex
from pathlib import Path

from orpo_cli.errors import OutputError
from orpo_cli.files.writing import write_text
from orpo_cli.quoting import in_one_line
from orpo_cli.reporting.report_page.comparison import comparison_facts
from orpo_cli.reporting.report_page.facts import ComparisonFacts, RunFacts
from orpo_cli.reporting.report_page.page import page
from orpo_cli.reporting.report_page.settings import title
from orpo_cli.runs.compare import compare
from orpo_cli.runs.folder import REPORT, RunFolder
from orpo_cli.statistics.leaderboard import Leaderboard


def write_comparison(board: Leaderboard, path: Path, again: str) -> Path:
    """Write the page of a comparison, and return its path.

    Args:
        again: the command that writes it.
    Raises:
        OutputError: if it cannot be written.
    """
    ranked = [RunFolder(Path(folder)) for place in board.places for folder in place.folders]
    records = {str(folder.path): folder.records for folder in ranked}
    everywhere = [*records, *(run.folder for run in board.unranked)]
    above = os.path.commonpath([Path(folder).parent for folder in everywhere]) if everywhere else str(path.parent)
    return write_page(path, comparison_facts(board, above, _about(board, ranked), records, again))


def write_page(path: Path, facts: RunFacts | ComparisonFacts) -> Path:
    """Write a page, and return its path.

    Raises:
        OutputError: if it cannot be written.
    """
    text = page(facts)
    try:
        write_text(path, text)
    except OSError as error:
        raise OutputError(f"{path}: cannot be written: {error.strerror or error}") from None
    return path


def _about(board: Leaderboard, ranked: list[RunFolder]) -> str:
    """Return the names of model and data, where all runs have the same."""
    differs = any(key in ("model", "data") or key.startswith(("model.", "data.")) for key in board.keys)
    return "" if differs or not ranked else title(ranked[0].config)


def write_sweep_report(sweep: Path, board: Leaderboard | None = None) -> Path:
    """Write report.html into the folder of a sweep, and return its path.

    Args:
        board: its jobs side by side, where they have been compared already.
    Raises:
        OutputError: if it cannot be written.
    """
    again = shlex.join(["orpo", "report", str(sweep)])
    return write_comparison(compare([sweep]) if board is None else board, sweep / REPORT, again)


def sweep_report_in_words(sweep: Path, board: Leaderboard) -> str:
    """Write report.html at the end of a sweep, and return where it is, or why not: no fault of it fails the sweep."""
    try:
        return f"the page of the sweep: {write_sweep_report(sweep, board)}"
    except Exception as error:
        again = shlex.join(["orpo", "report", str(sweep)])
        return f"{REPORT} was not written: {in_one_line(error)}; try again with: {again}"
