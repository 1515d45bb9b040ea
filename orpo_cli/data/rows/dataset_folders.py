"""Find the Arrow files of folders that `datasets` saved.

They are read here, since `datasets` itself fails at one without rows, and at all its splits if one has none.
"""

import json
from collections.abc import Sequence
from pathlib import Path

from orpo_cli.errors import ConfigError, DataError

_ONE, _SPLITS = "state.json", "dataset_dict.json"


def is_saved(folder: Path) -> bool:
    """Return whether `datasets` saved this folder."""
    return any((folder / name).is_file() for name in (_ONE, _SPLITS))


def arrow_files(folder: Path, path: str, split: str | None) -> tuple[str, list[Path]]:
    """Return the split that is taken, empty where there are none, and the files of its rows in their order.

    Args:
        path: the name the user gave the folder.
    Raises:
        ConfigError: if there is no such split, or several and none is named.
        DataError: if a description is damaged.
    """
    read, taken = folder / _ONE, ""
    try:
        if (folder / _SPLITS).is_file():
            read = folder / _SPLITS
            taken = chosen_split(json.loads(read.read_bytes())["splits"], path, split)
            read = folder / taken / _ONE
        elif split is not None:
            raise ConfigError(f"data.path={path}: has no split {split}: it was saved as one; leave data.split out")
        state = json.loads(read.read_bytes())
        if state.get("_indices_data_files"):
            raise ValueError("a second file chooses the rows")
        return taken, [read.parent / file["filename"] for file in state["_data_files"]]
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
        said = f"saved by `datasets`, but {read.name} is missing, damaged, or of another version"
        raise DataError(f"{path}: {said}") from None


def chosen_split(names: Sequence[str], path: str, split: str | None) -> str:
    """Return the split that is named, or the only one.

    Raises:
        ConfigError: if there is no such split, or none is named and there are several.
    """
    taken = split or (names[0] if len(names) == 1 else "")
    if taken not in names:
        wanted = f"has no split {split}" if split else "has several splits"
        raise ConfigError(f"data.path={path}: {wanted}; choose one with data.split: {', '.join(names)}")
    return taken
