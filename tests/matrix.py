"""Rows of a matrix of tests."""

from collections.abc import Mapping
from typing import Any

import pytest


def rows(table: Mapping[str, Any], *daily: str) -> list[Any]:
    """Return the rows by name as parameters: those named run always, the others are slow tests."""
    assert table.keys() >= set(daily)
    values = {name: row if isinstance(row, tuple) else (row,) for name, row in table.items()}
    return [pytest.param(*values[name], id=name, marks=() if name in daily else pytest.mark.slow) for name in values]
