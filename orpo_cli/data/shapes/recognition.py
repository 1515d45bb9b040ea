"""Recognise the shape of a file by its first rows."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from orpo_cli.config.data import FORMATS, DataConfig
from orpo_cli.data.pairs import Row
from orpo_cli.data.shapes.conversion import turns_of
from orpo_cli.data.shapes.shape import Fields, Shape
from orpo_cli.data.shapes.values import is_messages
from orpo_cli.errors import DataError

_LABELS = ("label", "labels", "is_chosen", "preferred")
_ANSWERS = ("completion", "response", "output", "answer", "chosen")


def find_shape(rows: Sequence[Row], config: DataConfig, cells: bool) -> Shape:
    """Return the configured shape, or the one that the first rows of a file have.

    Args:
        cells: whether every value is a text, as in CSV.
    Raises:
        DataError: if the rows can be read in more than one way, or hold single responses with a label.
    """
    name = _format_of(rows, config, cells) if config.format == "auto" else config.format
    shape = known_shape(name, config, cells)
    objects = [Fields(row.value, shape) for row in rows if isinstance(row.value, dict)]
    values = [row.glimpse(field) for row in objects for field in ("system", "tools")]
    return replace(shape, conversational=any(_is_filled(value) for value in values))


def _is_filled(value: Any) -> bool:
    return value.strip() not in ("", "[]", "null") if isinstance(value, str) else bool(value)


def _format_of(rows: Sequence[Row], config: DataConfig, cells: bool) -> str:
    any_shape = known_shape("pairs", config, cells)
    readable = [(row, readings(row.value, any_shape)) for row in rows]
    seen = {name: row for row, names in reversed(readable) for name in names}
    common = [name for name in FORMATS if name in seen and all(name in names for _, names in readable if names)]
    if len(seen) > 1 and len(common) != 1:
        ways = "; ".join(f"{seen[name].source} as {name} ({_MEANING[name]})" for name in FORMATS if name in seen)
        raise DataError(
            f"{rows[0].source.file}: can be read in more than one way: {ways}; choose with data.format=NAME"
        )
    if not seen:
        for row in rows:
            _refuse_labelled(row)
    return common[0] if common else "pairs"


def known_shape(name: str, config: DataConfig, cells: bool) -> Shape:
    """Return the shape of a file whose format is known already."""
    columns = {field: column for field, column in vars(config.columns).items() if column is not None}
    return Shape(name, columns, config.pairs, config.min_score_gap, cells)


_MEANING = {
    "pairs": "a prompt and two responses",
    "conversations": "two conversations",
    "hh": "two transcripts, the prompt in each",
    "ultrafeedback": "a prompt and two conversations that begin with it",
    "rankings": "a prompt and ranked responses",
}


def readings(value: Any, shape: Shape) -> set[str]:
    """Return every format that a row could be meant in; none where each lacks something."""
    if not isinstance(value, dict):
        return set()
    row = Fields(value, shape)
    found = set()
    prompt, chosen, rejected = (row.glimpse(field) for field in ("prompt", "chosen", "rejected"))
    if None not in (chosen, rejected):
        transcripts = all(isinstance(side, str) and len(turns_of(side)) > 1 for side in (chosen, rejected))
        found |= {"hh"} if transcripts else set()
        if prompt is None:
            found |= {"conversations"} if all(map(_is_conversation, (chosen, rejected))) else set()
        else:
            found |= {"ultrafeedback" if all(map(_is_conversation, (chosen, rejected))) else "pairs"}
    responses, ranks = row.glimpse("responses"), row.glimpse("scores") or row.glimpse("ranking")
    if prompt is not None and responses is not None and ranks:
        found.add("rankings")
    return found


def _is_conversation(value: Any) -> bool:
    return isinstance(value, list) and len(value) > 1 and is_messages(value)


def _refuse_labelled(row: Row) -> None:
    """Refuse single responses that are marked good or bad: no way to pair them is the right one."""
    value = row.value if isinstance(row.value, dict) else {}
    label = next((key for key in _LABELS if isinstance(value.get(key), bool | int | str)), None)
    answer = next((key for key in _ANSWERS if key in value), None)
    if label and answer and "rejected" not in value:
        raise DataError(
            f"{row.source}: single responses with a label ({answer}, {label}): ORPO compares two responses to one "
            "prompt, and a response that is only marked good or bad has none to be compared with. Give each prompt a "
            "chosen and a rejected response, or rank several (prompt, responses, scores); as they stand, such rows are "
            "what KTO trains on"
        )
