"""Find what stands in a column of a row, which may be a key inside another."""

import json
from collections.abc import Mapping
from typing import Any

_ABSENT = object()


def has_column(row: Mapping[str, Any], column: str) -> bool:
    """Return whether a row has a column, or one object of the list in it the key inside, whatever it holds."""
    found = value_in(row, column, _ABSENT)
    return any(item is not _ABSENT for item in found) if isinstance(found, list) and found else found is not _ABSENT


def value_in(value: Any, column: str, otherwise: Any = None) -> Any:
    """Return what stands in a column; `a.b` is the key b of the object in a, or of each object of a list there."""
    if isinstance(value, dict) and column in value:
        return value[column]
    if isinstance(value, list):
        return [value_in(item, column, otherwise) for item in value]
    first, dot, rest = column.partition(".")
    inside = value.get(first) if isinstance(value, dict) and dot else None
    if isinstance(inside, str) and inside.lstrip()[:1] == "{":  # as tables without objects have to write them
        try:
            inside = json.loads(inside)
        except (ValueError, RecursionError):
            return otherwise
    return otherwise if inside is None else value_in(inside, rest, otherwise)
