"""List the runs below a directory from config.yaml and run.json alone; hundreds of them take seconds."""

import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from orpo_cli.errors import InputNotFoundError
from orpo_cli.files.untrusted import read_yaml
from orpo_cli.reporting.runs_table import ListedRun
from orpo_cli.runs.folder import RunFolder, is_run_folder
from orpo_cli.runs.state import state_of


def runs_below(directory: Path) -> list[ListedRun]:
    """Return the runs in a directory and below it, the newest last.

    Raises:
        InputNotFoundError: if there is no such directory.
    """
    root = directory.expanduser()
    if not root.is_dir():
        raise InputNotFoundError(f"{directory}: no such directory; orpo runs DIR lists the runs below DIR")
    return sorted((_listed(path, root) for path in _folders(root)), key=lambda run: (run.started, run.folder))


def _folders(root: Path) -> Iterator[Path]:
    """Yield the folders that a run has begun in; nothing inside one of them, or hidden, is looked at."""
    for place, names, files in os.walk(root):
        if is_run_folder(files):
            names.clear()
            yield Path(place)
        names[:] = [name for name in names if not name.startswith(".")]


def _listed(path: Path, root: Path) -> ListedRun:
    folder = RunFolder(path)
    state, config = state_of(folder), _values(folder)
    evaluation, end = folder.record.get("evaluation"), folder.end
    total = end.get("total_steps", _part(config, "trainer", "max_steps"))
    return ListedRun(
        folder=os.path.relpath(path, root),
        started=folder.config_yaml.stat().st_mtime,
        state=state.word,
        step=state.step,
        total_steps=total if type(total) is int else None,
        model=_short(_part(config, "model", "path")),
        data=_short(_part(config, "data", "path")),
        lambda_=_number(config.get("lambda")),
        accuracy=_number(_part(evaluation, "accuracy", "value")),
        nll=_number(_part(evaluation, "nll", "value")),
    )


def _values(folder: RunFolder) -> Mapping[str, Any]:
    try:
        _, values = read_yaml(folder.config_yaml)
    except (OSError, ValueError):
        return {}
    return values if isinstance(values, dict) else {}


def _part(values: Any, section: str, key: str) -> Any:
    of_section = values.get(section) if isinstance(values, Mapping) else None
    return of_section.get(key) if isinstance(of_section, Mapping) else None


def _short(place: Any) -> str | None:
    """Return the name of a file or a directory, and anything else as it is; of a list, the first and how many more."""
    if isinstance(place, list) and place:
        return f"{_short(place[0])}{f' and {len(place) - 1} more' if len(place) > 1 else ''}"
    return re.sub(r"^/.*/(?=[^/]+/?$)", "", place) if isinstance(place, str) else None


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None
