"""Read every shape through every source: it gives the same pairs, each with the line or row it stands on."""

import gzip
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml
from matrix import rows
from written import SHAPES, Values, as_array, as_cells, as_lines, ipc, parquet, table_of, write, zstd

from orpo_cli.config.data import ColumnsConfig, DataConfig
from orpo_cli.config.keys import builtin_configs
from orpo_cli.data.pairs import PreferencePair, Problem, Row, Skipped, Source
from orpo_cli.data.rows.readers import read_rows
from orpo_cli.data.rows.sources import DataFile, DatasetChoice, find_files
from orpo_cli.data.shapes.conversion import to_pairs
from orpo_cli.data.shapes.recognition import find_shape

DEFAULTS = yaml.safe_load((builtin_configs() / "data" / "file.yaml").read_text())
CONFIG = DataConfig(**DEFAULTS | {"path": "x", "columns": ColumnsConfig(**DEFAULTS["columns"])})
ONE = DatasetChoice()
pytestmark = pytest.mark.usefixtures("datasets_cache")


def numbers(values: Values, first: int = 1) -> list[int]:
    return list(range(first, first + len(values)))


class Written(NamedTuple):
    """Say where rows were written, and the lines they stand on."""

    path: Path | str
    lines: list[int]
    dataset: DatasetChoice = ONE


def cells_file(name: str, separator: str) -> Callable[[Path, Values], Written]:
    def written(folder: Path, values: Values) -> Written:
        raw, starts = as_cells(values, separator)
        return Written(write(folder / name, raw if not name.endswith(".gz") else gzip.compress(raw)), starts)

    return written


def saved(folder: Path, values: Values) -> Written:
    import datasets

    datasets.Dataset.from_list([dict(value) for value in values]).save_to_disk(folder / "saved")
    return Written(folder / "saved", numbers(values))


def saved_splits(folder: Path, values: Values) -> Written:
    import datasets

    wanted = datasets.Dataset.from_list([dict(value) for value in values])
    other = datasets.Dataset.from_list([{"text": "another split"}])
    datasets.DatasetDict({"test": other, "train_prefs": wanted}).save_to_disk(folder / "saved")
    return Written(folder / "saved", numbers(values), DatasetChoice(split="train_prefs"))


def repository(folder: Path, values: Values) -> Written:
    front = {
        "configs": [
            {"config_name": "default", "data_files": [{"split": "train_prefs", "path": "data/train-*"}]},
            {"config_name": "other", "data_files": [{"split": "test", "path": "data/test-*"}]},
        ]
    }
    write(folder / "repo" / "README.md", f"---\n{yaml.safe_dump(front)}---\n# Preferences\n".encode())
    write(folder / "repo/data/train-00000-of-00001.parquet", parquet(table_of(values)))
    write(folder / "repo/data/test-00000-of-00001.parquet", parquet(table_of([{"text": "another split"}])))
    return Written(folder / "repo", numbers(values), DatasetChoice(subset="default", split="train_prefs"))


def folder_of_files(folder: Path, values: Values) -> Written:
    write(folder / "all" / "a.jsonl", as_lines(values[:1]))
    write(folder / "all" / "b.parquet", parquet(table_of(values[1:])))
    write(folder / "all" / ".hidden.jsonl", b"{")
    write(folder / "all" / "_SUCCESS.json", b"{")
    write(folder / "all" / "LICENSE", b"{")
    return Written(folder / "all", [1, *numbers(values[1:])])


def pattern(folder: Path, values: Values) -> Written:
    write(folder / "part-1" / "x.jsonl", as_lines(values[:1]))
    write(folder / "part-2" / "x.jsonl", b"\n" + as_lines(values[1:]))
    write(folder / "part-2" / ".x.jsonl", b"{")
    write(folder / "part-3" / "y.jsonl", b"{")
    return Written(f"{folder}/part-*/x*.jsonl", [1, *numbers(values[1:], 2)])


SOURCES: dict[str, Callable[[Path, Values], Written]] = {
    ".json": lambda folder, values: Written(write(folder / "x.json", as_array(values)), numbers(values, 2)),
    ".jsonl": lambda folder, values: Written(write(folder / "x.jsonl", as_lines(values)), numbers(values)),
    ".json.gz": lambda folder, values: Written(
        write(folder / "x.json.gz", gzip.compress(as_array(values))), numbers(values, 2)
    ),
    ".jsonl.gz": lambda folder, values: Written(
        write(folder / "x.jsonl.gz", gzip.compress(as_lines(values))), numbers(values)
    ),
    ".jsonl.zst": lambda folder, values: Written(
        write(folder / "x.jsonl.zst", zstd(as_lines(values))), numbers(values)
    ),
    ".csv": cells_file("x.csv", ","),
    ".csv.gz": cells_file("x.csv.gz", ","),
    ".tsv": cells_file("x.tsv", "\t"),
    ".parquet": lambda folder, values: Written(write(folder / "x.parquet", parquet(table_of(values))), numbers(values)),
    ".arrow": lambda folder, values: Written(
        write(folder / "x.arrow", ipc(table_of(values), is_stream=False)), numbers(values)
    ),
    ".arrow, streamed": lambda folder, values: Written(
        write(folder / "x.arrow", ipc(table_of(values), is_stream=True)), numbers(values)
    ),
    "folder": folder_of_files,
    "pattern": pattern,
    "saved dataset": saved,
    "saved splits": saved_splits,
    "repository": repository,
}


def rows_from(written: Written) -> list[tuple[DataFile, list[Row | Problem]]]:
    return [(file, list(read_rows(file))) for file in find_files(str(written.path), written.dataset)]


def pairs_of(rows: Sequence[Row | Problem], cells: bool) -> list[PreferencePair | Skipped]:
    values = [row for row in rows if isinstance(row, Row)]
    assert len(values) == len(rows), rows
    shape = find_shape(values, CONFIG, cells)
    made = [to_pairs(row, shape) for row in values]
    assert all(isinstance(pairs, list) for pairs in made), made
    return [pair for pairs in made if isinstance(pairs, list) for pair in pairs]


def without_place(pair: PreferencePair | Skipped) -> Any:
    """Return a pair whose source, and that of its transcript, is always the same."""
    nowhere = replace(pair, source=Source("x", 0))
    inner = getattr(pair, "transcript", None)
    return nowhere if inner is None else replace(nowhere, transcript=without_place(inner))  # type: ignore[call-arg]


CELLS = {f"{shape}: {source}": (shape, source) for shape in SHAPES for source in SOURCES}
DAILY = [name for name, (shape, source) in CELLS.items() if shape == "pairs of messages" or source in (".csv", ".json")]


@pytest.mark.parametrize(("shape", "source"), rows(CELLS, *DAILY))
def test_a_cell_of_shapes_and_sources(shape: str, source: str, tmp_path: Path) -> None:
    values = SHAPES[shape]
    written = SOURCES[source](tmp_path, values)
    found = rows_from(written)
    made = [pair for file, rows in found for pair in pairs_of(rows, file.has_cells)]
    given = [Row(Source("x", number), value) for number, value in enumerate(values, 1)]
    ends = list(accumulate(len(rows) for _, rows in found))
    of_files = [given[start:end] for start, end in pairwise([0, *ends])]
    assert ends[-1] == len(given)
    expected = [pair for rows in of_files for pair in pairs_of(rows, cells=False)]
    assert [without_place(pair) for pair in made] == [without_place(pair) for pair in expected]
    assert [row.source.line for _, rows in found for row in rows] == written.lines


def test_the_table_has_no_empty_cell() -> None:
    formats = {find_shape([Row(Source("x", 1), values[0])], CONFIG, False).format for values in SHAPES.values()}
    assert formats == {"pairs", "conversations", "hh", "ultrafeedback", "rankings"}
    suffixes = {name.split(",")[0] for name in SOURCES if name.startswith(".")}
    assert suffixes >= {".json", ".jsonl", ".json.gz", ".jsonl.gz", ".jsonl.zst", ".csv", ".tsv", ".parquet", ".arrow"}
    assert len(CELLS) == 10 * 16
    assert {source for _, source in map(CELLS.get, DAILY)} == set(SOURCES)
    assert {shape for shape, _ in map(CELLS.get, DAILY)} == set(SHAPES)
