"""Read conversations that are written as three lists: the turns of the user, and two lists of answers to them."""

import json
import re
from collections.abc import Sequence
from typing import Any

from orpo_cli.data.pairs import ProblemError
from orpo_cli.data.shapes.values import checked_text
from orpo_cli.quoting import shortened

_LIKE_TEXTS = re.compile(r"""\s*\[\s*(["']|null\b|None\b)""")


def lists_of_turns(columns: Sequence[str], values: Sequence[Any]) -> list[list[str]] | None:
    """Return the lists, which may be written as JSON; None where one of the values is meant as something else.

    Args:
        columns: the columns of the values, for messages.
    Raises:
        ProblemError: if one is no JSON, or they are not equally long, or hold something else than texts.
    """
    if not all(map(_is_meant, values)):
        return None
    lists = [_read(column, value) for column, value in zip(columns, values, strict=True)]
    for column, texts in zip(columns[1:], lists[1:], strict=True):
        if len(texts) != len(lists[0]):
            said = f"{len(texts)} answers to the {len(lists[0])} turns of {columns[0]}"
            raise ProblemError(f"{column}: {said}", "wrong_type")
    return lists


def _is_meant(value: Any) -> bool:
    if isinstance(value, str):
        return _LIKE_TEXTS.match(value) is not None
    return isinstance(value, list) and bool(value) and all(text is None or isinstance(text, str) for text in value)


def _read(column: str, value: Any) -> list[str]:
    try:
        texts = json.loads(value) if isinstance(value, str) else value
    except (ValueError, RecursionError):
        text = f"{column}: a list of turns, but not as JSON ({shortened(value, 40)}); json.dumps writes it"
        raise ProblemError(text, "wrong_type") from None
    return [checked_text(f"{column}[{place}]", text) for place, text in enumerate(texts)]
