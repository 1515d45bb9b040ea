"""Parse JSON with the standard library, but refuse what JSON does not have or what would be lost silently."""

import json
from collections import Counter
from typing import Any

from orpo_cli.data.pairs import ProblemError
from orpo_cli.quoting import shortened


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        (twice, _), *_ = Counter(key for key, _ in pairs).most_common(1)
        raise ProblemError(f"{shortened(twice)}: key stands twice in one object", "not_json")
    return found


def _no_constant(name: str) -> Any:
    raise ProblemError(f"{name} is not JSON", "not_json")


STRICT = json.JSONDecoder(object_pairs_hook=_unique_keys, parse_constant=_no_constant)
"""A parser that raises ProblemError at NaN, Infinity and keys that stand twice in one object."""


def from_json(field: str, text: str) -> Any:
    """Return the value that a cell of text holds as JSON.

    Raises:
        ProblemError: if the text is not JSON.
    """
    try:
        return STRICT.decode(text)
    except ProblemError as error:
        raise ProblemError(f"{field}: {error}", error.reason) from None
    except (ValueError, RecursionError):
        raise ProblemError(f"{field}: expected JSON, found {shortened(text, 40)}", "wrong_type") from None
