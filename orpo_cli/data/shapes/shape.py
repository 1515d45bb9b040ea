"""Define the shapes preference data comes in, and find the fields of a row of each.

| format | a row holds |
|---|---|
| pairs | prompt, chosen, rejected: texts, or messages (the responses one of the assistant's each) |
| conversations | chosen and rejected: whole conversations that differ in their last message |
| hh | chosen and rejected: transcripts of `Human:` and `Assistant:` turns that differ in the last answer |
| ultrafeedback | prompt, and chosen and rejected as conversations that begin with it |
| rankings | prompt, responses, and their scores or ranks |
| alpaca | prompt (an instruction), its input and the history, chosen and rejected, or a list of both in chosen |
| messages | messages that end in the chosen response, and rejected: a response, or messages that end in it |
| verdict | prompt, response_a and response_b, and winner, which says which is the better, or a score of each |

Every shape may carry system, tools and weight beside these. `chosen` of pairs may be beside several `rejected`.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from orpo_cli.data.pairs import ProblemError
from orpo_cli.data.rows.strict_json import from_json
from orpo_cli.data.shapes import messages
from orpo_cli.data.shapes.columns import has_column, value_in
from orpo_cli.data.shapes.likely_columns import text_key, what_would_do

NEEDED = {
    "pairs": ("prompt", "chosen", "rejected"),
    "conversations": ("chosen", "rejected"),
    "hh": ("chosen", "rejected"),
    "ultrafeedback": ("prompt", "chosen", "rejected"),
    "rankings": ("prompt", "responses"),
    "alpaca": ("prompt", "chosen"),
    "messages": ("messages", "rejected"),
    "verdict": ("response_a", "response_b"),
}
"""Format -> the fields that every row has to have."""

_COMMON = ("system", "tools", "weight")
_OF_PAIRS = ("score_chosen", "score_rejected", *_COMMON)
_OPTIONAL = {
    "rankings": ("scores", "ranking", *_COMMON),
    "alpaca": ("input", "history", "rejected", *_OF_PAIRS),
    "verdict": ("prompt", "winner", "tie", "score_a", "score_b", *_COMMON),
}
"""Format -> the fields that a row may have beside; those of pairs for the others."""

FIELDS_OF = {name: (*needed, *_OPTIONAL.get(name, _OF_PAIRS)) for name, needed in NEEDED.items()}
"""Format -> all the fields that a row may have."""

_WRITTEN_AS_JSON = ("prompt", "chosen", "rejected", "messages", "response_a", "response_b")
"""Fields whose messages may stand as JSON in a text, as tables without lists have to write them."""

_TEXTS_OR_MESSAGES = ("prompt", "chosen", "rejected", "responses", "response_a", "response_b")

_TEXTS = ("system", "tools", "input", "winner", "tie")
"""Fields that a cell holds as it stands."""

_EMPTY_CELLS = ("", "null", "none", "nan")


@dataclass(frozen=True)
class Verdict:
    """Say what the values of `winner` mean.

    Args:
        first: the value at which the first response won, or `negative` or `positive` for the sign of a number.
        second: the value at which the second won; all others are ties then.
    """

    first: str | None = None
    second: str | None = None


@dataclass(frozen=True)
class Shape:
    """Say how the rows of one file are read.

    Args:
        format: one of `FORMATS`.
        columns: field -> column, for the fields that have one.
        pairs, min_score_gap: the settings of these names.
        cells: whether every value is a text, as in CSV, so that lists, numbers and messages stand in it as JSON.
        ignored: the keys of messages that are left out.
        verdict: what the values of `winner` mean.
        conversational: whether some rows have a system message or tools, so that all are conversations.
        cuts: whether turns behind the answers at which two conversations part are left out.
    """

    format: str
    columns: Mapping[str, str]
    pairs: str
    min_score_gap: float
    cells: bool
    ignored: frozenset[str] = frozenset(messages.MEANINGLESS)
    verdict: Verdict = Verdict()
    conversational: bool = False
    cuts: bool = False

    @cached_property
    def read_columns(self) -> dict[str, str]:
        """Return field -> column, for the fields that this format has."""
        return {field: self.columns[field] for field in FIELDS_OF[self.format] if field in self.columns}

    @property
    def renamed(self) -> dict[str, str]:
        """Return field -> column, for the fields that are read from a column of another name."""
        return {field: column for field, column in self.read_columns.items() if column != field}

    @cached_property
    def reads(self) -> frozenset[str]:
        """Return the columns that are read where they are there, and those whose keys inside are."""
        read = self.read_columns.values()
        return frozenset([*read, *(column.partition(".")[0] for column in read)])


class Fields:
    """Find the fields of one row by their names here; a cell of text becomes what its field holds."""

    def __init__(self, row: dict[str, Any], shape: Shape) -> None:
        self._row = row
        self._shape = shape

    def column(self, field: str) -> str:
        """Return the name of the column that a field is read from, for messages."""
        return self._shape.columns.get(field, field)

    @property
    def models(self) -> list[str]:
        """Return the names of the models that gave the two responses, in small letters, where a row has them."""
        return [str(self._row.get(column, "")).strip().lower() for column in ("model_a", "model_b")]

    @property
    def other_outcome(self) -> Any:
        """Return what stands in the column of the other response's outcome, where each response has one."""
        column = self.column("winner")
        return self._row.get(f"{column[:-1]}b") if column.endswith("_a") else None

    def get(self, field: str) -> Any:
        """Return the field's value, or None where it is missing, null, or an empty cell."""
        if field not in self._shape.columns:
            return None
        value = value_in(self._row, self._shape.columns[field])
        if not isinstance(value, str):
            return value
        if field == "rejected" and self._shape.cells and (texts := self._texts(value)):
            return texts
        if field in _WRITTEN_AS_JSON:
            return messages.text_or_messages(self.column(field), value)
        return self._from_cell(field, value) if self._shape.cells else value

    def glimpse(self, field: str) -> Any:
        """Return the field's value, or the cell's text where it does not hold what it should."""
        try:
            return self.get(field)
        except ProblemError:
            return value_in(self._row, self.column(field))

    def needed(self, field: str) -> Any:
        """Return the value of a field that has to be there.

        Raises:
            ProblemError: if it is not.
        """
        column, value = self.column(field), self.get(field)
        is_inside = "." in column  # then a list of nothing stands for objects without the key
        if (value is None or is_inside) and (field not in self._shape.columns or not has_column(self._row, column)):
            needed = (*NEEDED[self._shape.format], field)
            what = what_would_do(self._row, field, needed, self._shape.read_columns, self._shape.columns.values())
            raise ProblemError(f"{column}: missing; {what}", "missing_field")
        if field in _TEXTS_OR_MESSAGES and (key := text_key(value)):
            place = f"{column}[0]" if isinstance(value, list) else column
            expected = f"{place}: expected a text or a list of messages, found an object"
            raise ProblemError(f"{expected}; data.columns.{field}={column}.{key} reads the text in it", "wrong_type")
        return value_in(self._row, column) if value is None else value

    def _texts(self, cell: str) -> list[str] | None:
        """Return several rejected responses, which a cell holds as JSON; none where the chosen one is JSON as well."""
        chosen = value_in(self._row, self.column("chosen"))
        if cell.lstrip()[:1] != "[" or (isinstance(chosen, str) and chosen.lstrip()[:1] in ("[", "{")):
            return None
        try:
            value = json.loads(cell)
        except (ValueError, RecursionError):
            return None
        return value if all(isinstance(item, str) for item in value) else None

    def _from_cell(self, field: str, text: str) -> Any:
        if field in _TEXTS:  # spreadsheets and data frames write a missing text in words
            return None if text.strip().lower() in _EMPTY_CELLS else text
        return from_json(self.column(field), text) if text.strip() else None
