"""What the held-out pairs of a run scored: a Parquet file for each evaluation, beside one of the pairs themselves.

evaluations/pairs.parquet          what is known of each pair without a model, and its tokens
evaluations/step-000100.parquet    the sums of the log-probabilities after that step, in the same order
evaluations/part-000050.parquet    the same of some of the pairs, and their places among all
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from orpo_cli.data.tokens.store import PairStore
from orpo_cli.files.writing import replacing
from orpo_cli.statistics.evaluation import Scored
from orpo_cli.statistics.scored_pairs import ScoredPairs
from orpo_cli.training.events import Evaluated, PairLogps, PartEvaluated

_PAIRS = "pairs.parquet"
_COLUMNS = (
    "chosen_tokens", "rejected_tokens", "chosen_characters", "rejected_characters", "prompt", "turns", "source",
    "weight",
)  # fmt: skip


def columns_of(store: PairStore, tokenizer: Any) -> dict[str, Any]:
    """Return the columns of `ScoredPairs` that no model decides, and where each pair is from."""
    pairs = [store[index] for index in range(len(store))]
    sides = {"chosen": [pair.chosen_ids for pair in pairs], "rejected": [pair.rejected_ids for pair in pairs]}
    _, prompt = np.unique(store.column("prompt_hash"), return_inverse=True)
    return {
        **{f"{side}_tokens": np.array([len(ids) for ids in responses], np.int64) for side, responses in sides.items()},
        **{
            f"{side}_characters": np.array(
                [len(tokenizer.decode(ids, skip_special_tokens=True)) for ids in responses], np.int64
            )
            for side, responses in sides.items()
        },
        "prompt": prompt.astype(np.int64),
        "turns": store.column("turns").astype(np.int64),
        "source": np.array(store.files)[store.rows[:, 0]],
        "weight": store.weights.astype(np.float64),
        "file": store.rows[:, 0],
        "row": store.rows[:, 1],
        "line": store.column("line"),
    }


def scored(
    model: str, columns: Mapping[str, Any], logps: PairLogps, metrics: Mapping[str, float], notes: list[str]
) -> Scored:
    """Return what a model gave to pairs.

    Args:
        columns: those of `columns_of`.
    """
    pairs = ScoredPairs(
        chosen_logp=np.array(logps.chosen, np.float64),
        rejected_logp=np.array(logps.rejected, np.float64),
        **{name: columns[name] for name in _COLUMNS},
    )
    rows = np.stack([columns["file"], columns["row"]], 1)
    return Scored(model, pairs, metrics, rows, columns["line"], notes)


def write_pairs(directory: Path, columns: Mapping[str, Any]) -> None:
    """Write what is known of each pair."""
    directory.mkdir(exist_ok=True)
    _write(directory / _PAIRS, columns)


def write(directory: Path, event: Evaluated | PartEvaluated) -> None:
    """Write the log-probabilities of an evaluation, of all held-out pairs or of some."""
    columns: dict[str, Any] = {"chosen_logp": event.logps.chosen, "rejected_logp": event.logps.rejected}
    if isinstance(event, Evaluated):
        _write(_place(directory, event.step), columns)
    else:
        _write(_place_of_part(directory, event.step), {"place": event.places, **columns})


def read_part(directory: Path, step: int) -> ScoredPairs | None:
    """Return what some of the held-out pairs scored after a step; None where it was not recorded."""
    return read_file(directory, _place_of_part(directory, step))


def read_scored(directory: Path, model: str, step: int, metrics: Mapping[str, float]) -> Scored | None:
    """Return what the model after a step gave to the held-out pairs of a run; None where it was not recorded."""
    return _read_scored(directory, _place(directory, step), model, metrics)


def evaluation_files(directory: Path) -> dict[int, Path]:
    """Return the file of each evaluation by its step: of a part of the held-out pairs, or else of all."""
    for kind in ("part", "step"):
        names = {path.stem.removeprefix(f"{kind}-"): path for path in directory.glob(f"{kind}-*.parquet")}
        files = {int(step): path for step, path in names.items() if step.isdecimal()}
        if files:
            return dict(sorted(files.items()))
    return {}


def read_file(directory: Path, path: Path) -> ScoredPairs | None:
    """Return what held-out pairs scored in an evaluation; None where its file cannot be read."""
    found = _read_scored(directory, path, "", {})
    return None if found is None else found.pairs


def _read_scored(directory: Path, path: Path, model: str, metrics: Mapping[str, float]) -> Scored | None:
    try:
        columns, logps = _read(directory / _PAIRS), _read(path)
        if "place" in logps:  # of a part of the pairs
            columns = {name: column[logps["place"]] for name, column in columns.items()}
        return scored(model, columns, PairLogps(logps["chosen_logp"], logps["rejected_logp"]), metrics, [])
    except (OSError, pa.ArrowException, KeyError, ValueError, IndexError):
        return None


def _place(directory: Path, step: int) -> Path:
    return directory / f"step-{step:06d}.parquet"


def _place_of_part(directory: Path, step: int) -> Path:
    return directory / f"part-{step:06d}.parquet"


def _write(path: Path, columns: Mapping[str, Any]) -> None:
    with replacing(path) as stream:
        pq.write_table(pa.table(dict(columns)), stream)


def _read(path: Path) -> dict[str, Any]:
    table = pq.read_table(path)
    return {name: np.asarray(table.column(name)) for name in table.column_names}
