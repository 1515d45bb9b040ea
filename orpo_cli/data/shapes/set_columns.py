"""Decide which files the columns that are set apply to: those that have one of them; others are read by their own."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from orpo_cli.config.data import ColumnsConfig, DataConfig
from orpo_cli.data.pairs import Row
from orpo_cli.data.shapes.columns import has_column
from orpo_cli.data.shapes.shape import FIELDS_OF
from orpo_cli.errors import ConfigError
from orpo_cli.quoting import listed


def set_columns(columns: ColumnsConfig) -> dict[str, str]:
    """Return field -> column, for the fields that are read from a column of another name."""
    return {field: column for field, column in vars(columns).items() if column not in (None, field)}


def for_file(config: DataConfig, rows: Sequence[Row]) -> DataConfig:
    """Return the configuration by which a file is read: without the columns that are set where it has none of them.

    Args:
        rows: the first rows of the file.
    """
    columns = set_columns(config.columns)
    if not columns or any(has_column(value, column) for value in _objects(rows) for column in columns.values()):
        return config
    return replace(config, columns=replace(config.columns, **{field: field for field in columns}))


def check_columns(config: DataConfig, heads: Mapping[str, Sequence[Row]]) -> None:
    """Refuse a column that is set and that no file has.

    Args:
        heads: the first rows of each file.
    Raises:
        ConfigError: if there is such a column.
    """
    values = {file: _objects(rows) for file, rows in heads.items()}
    if not any(values.values()):
        return
    for field, column in set_columns(config.columns).items():
        if not any(has_column(value, column) for of_file in values.values() for value in of_file):
            there = [f"{file} has {listed(_keys(of_file))}" for file, of_file in list(values.items())[:3]]
            more = [f"and {len(values) - 3} more files"] if len(values) > 3 else []
            what = f"data.columns.{field}={column}: no file has this column in its first rows"
            raise ConfigError("; ".join([what, *there, *more]))


def check_fields(columns: ColumnsConfig, read_as: str, rows: Sequence[Row]) -> None:
    """Refuse a column that is set for a field which the shape of a file does not have, so that nothing would read it.

    Args:
        read_as: the format of the file.
        rows: its first rows.
    Raises:
        ConfigError: if the file has such a column.
    """
    for field, column in set_columns(columns).items():
        if field not in FIELDS_OF[read_as] and any(has_column(value, column) for value in _objects(rows)):
            others = " or ".join(name for name, fields in FIELDS_OF.items() if field in fields)
            raise ConfigError(
                f"data.columns.{field}={column}: {rows[0].source.file} is read as {read_as}, which has no {field}; "
                f"set data.format to {others}"
            )


def _objects(rows: Sequence[Row]) -> list[dict[str, Any]]:
    return [row.value for row in rows if isinstance(row.value, dict)]


def _keys(values: Sequence[Mapping[str, Any]]) -> list[str]:
    return list(dict.fromkeys(key for value in values for key in value)) or ["no keys"]
