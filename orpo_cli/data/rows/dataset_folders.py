"""Folders that `datasets` saved: which Arrow files hold the rows.

They are read here, since `datasets` itself fails at one without rows, and at all its splits if one has none.
"""

import json
from pathlib import Path
from typing import Any

from orpo_cli.errors import ConfigError, DataError

_ONE, _SPLITS = "state.json", "dataset_dict.json"


def is_saved(folder: Path) -> bool:
    """Whether `datasets` saved this folder."""
    return any((folder / name).is_file() for name in (_ONE, _SPLITS))


def arrow_files(folder: Path, path: str, split: str | None) -> tuple[str, list[Path]]:
    """The split that is taken, empty where there are none, and the files of its rows in their order.

    Args:
        path: what the user called the folder.
    Raises:
        ConfigError: no such split, or several and none is named.
        DataError: a description is damaged.
    """
    if (folder / _SPLITS).is_file():
        names = _listed(_description(folder / _SPLITS, path).get("splits"), folder / _SPLITS, path)
        taken = chosen_split(names, path, split)
        folder = folder / taken
    elif split is not None:
        raise ConfigError(f"data.path={path}: has no split {split}: it was saved as one; leave data.split out")
    else:
        taken = ""
    state = _description(folder / _ONE, path)
    files = state.get("_data_files")
    if not isinstance(files, list) or state.get("_indices_data_files"):
        raise _damaged(folder / _ONE, path)
    names = _listed([file.get("filename") if isinstance(file, dict) else None for file in files], folder / _ONE, path)
    return taken, [folder / name for name in names]


def chosen_split(names: list[str], path: str, split: str | None) -> str:
    """The split that is named, or the only one.

    Raises:
        ConfigError: there is no such split, or none is named and there are several.
    """
    taken = split or (names[0] if len(names) == 1 else None)
    if taken not in names:
        wanted = f"has no split {split}" if split else "has several splits"
        raise ConfigError(f"data.path={path}: {wanted}; choose one with data.split: {', '.join(names)}")
    return taken


def _description(file: Path, path: str) -> dict[str, Any]:
    try:
        found = json.loads(file.read_bytes())
    except (OSError, ValueError, RecursionError):
        raise _damaged(file, path) from None
    if not isinstance(found, dict):
        raise _damaged(file, path)
    return found


def _listed(names: Any, file: Path, path: str) -> list[str]:
    if not isinstance(names, list) or not all(isinstance(name, str) and "/" not in name for name in names):
        raise _damaged(file, path)
    return names


def _damaged(file: Path, path: str) -> DataError:
    return DataError(f"{path}: saved by `datasets`, but {file.name} is missing, damaged, or of another version")
