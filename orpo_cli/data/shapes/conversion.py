"""Turn a row of any shape into pairs."""

from collections.abc import Callable, Iterator
from typing import Any

from orpo_cli.data.pairs import (
    ChatPair,
    LostKeysError,
    Message,
    PreferencePair,
    Problem,
    ProblemError,
    Row,
    Skipped,
    Source,
    TextPair,
    lost_keys,
)
from orpo_cli.data.shapes import messages
from orpo_cli.data.shapes.rankings import from_rankings
from orpo_cli.data.shapes.shape import NEEDED, Fields, Shape
from orpo_cli.data.shapes.transcripts import from_hh
from orpo_cli.data.shapes.two_responses import (
    from_conversations,
    from_instructions,
    from_messages,
    from_pairs,
    from_ultrafeedback,
    from_verdict,
)
from orpo_cli.data.shapes.values import checked_number, checked_score, checked_text, type_name

_LIGHTEST, _HEAVIEST = 1e-6, 1e6
"""Weights beyond which a step's sums lose their digits in fp32."""

_PICTURES = ("image", "images", "videos", "audios")
"""Columns of what a text refers to with <image> and the like."""

_NO_PICTURE = ("", "[]", "null", "none", "nan")


def to_pairs(row: Row, shape: Shape) -> list[PreferencePair | Skipped] | Problem:
    """Return the pairs a row holds, or what is wrong with it; there is always one at least."""
    try:
        return _pairs(row, shape)
    except LostKeysError as error:
        return lost_keys(row.source, [*error.keys, *_lost_keys(Fields(row.value, shape), shape)])
    except ProblemError as error:
        return error.problem(row.source)


def _lost_keys(fields: Fields, shape: Shape) -> Iterator[str]:
    """Yield the keys of all messages of a row that nothing reads."""
    for field, column in shape.columns.items():
        if column in shape.reads:
            yield from messages.lost_keys(fields.glimpse(field), shape.ignored)


def score_gap(row: Row, shape: Shape) -> float:
    """Return the score of chosen minus the score of rejected; infinite where a row does not have both as numbers."""
    try:
        return _gap(Fields(row.value, shape))
    except ProblemError:
        return float("inf")


def extra_keys(row: Row, shape: Shape) -> Iterator[str]:
    """Yield the keys of a row that are not read, a.b inside another, and those of its messages that are left out."""
    if isinstance(row.value, dict):
        for key, value in row.value.items():
            if key not in shape.reads:
                yield str(key)
            elif isinstance(value, list | dict):
                yield from (f"{key}.{ignored}" for ignored in messages.ignored_keys(value, shape.ignored))
                yield from _unread_inside(key, value, shape)


def _unread_inside(name: str, value: Any, shape: Shape) -> Iterator[str]:
    """Yield the keys inside an object, or the objects of a list, of which only some are columns."""
    columns = shape.read_columns.values()
    if name in columns:
        return
    if not any(column.startswith(f"{name}.") for column in columns):
        yield name
        return
    inside: dict[str, list[Any]] = {}
    for item in value if isinstance(value, list) else [value]:
        for key, inner in item.items() if isinstance(item, dict) else ():
            if inner is not None:  # Parquet fills the keys that other rows have
                inside.setdefault(key, []).append(inner)
    for key, inner in inside.items():
        yield from _unread_inside(f"{name}.{key}", inner, shape)


def _pairs(row: Row, shape: Shape) -> list[PreferencePair | Skipped]:
    if not isinstance(row.value, dict):
        *others, last = (shape.columns.get(field, field) for field in NEEDED[shape.format])
        expected = f"expected an object with {', '.join(others)} and {last}"
        raise ProblemError(f"row: {expected}, found {type_name(row.value)}", "wrong_type")
    fields = Fields(row.value, shape)
    for field in NEEDED[shape.format]:
        fields.needed(field)
    _refuse_pictures(row.value, shape)
    weight = _weight(fields)
    made = _MAKERS[shape.format](row.source, fields, shape)
    return [_completed(pair, weight, fields, shape) for pair in made]


def _refuse_pictures(row: dict[str, Any], shape: Shape) -> None:
    """Refuse a row with an image: without it the answers are about nothing that the model sees."""
    for column in _PICTURES:
        if column in row and column not in shape.reads and column not in shape.ignored and _is_filled(row[column]):
            kind = column.removesuffix("s")
            raise ProblemError(
                f"{column}: holds {kind} data; only text can be trained on. "
                f"data.ignore_keys=[{column}] trains on the text without it",
                "wrong_type",
            )


def _is_filled(value: Any) -> bool:
    """Return whether there is a path, bytes, or an object or a list with one."""
    parts = value if isinstance(value, list) else list(value.values()) if isinstance(value, dict) else [value]
    return any(part.strip().lower() not in _NO_PICTURE if isinstance(part, str) else bool(part) for part in parts)


def _weight(fields: Fields) -> float:
    given = fields.get("weight")
    if given is None:
        return 1.0
    column = fields.column("weight")
    weight = checked_number(column, given)
    if weight != 0 and not _LIGHTEST <= weight <= _HEAVIEST:
        expected = f"expected 0, or {_LIGHTEST:g} to {_HEAVIEST:g}"
        raise ProblemError(f"{column}: {expected}, found {weight:g}", "wrong_type")
    return weight


def _completed(pair: PreferencePair | Skipped, weight: float, fields: Fields, shape: Shape) -> PreferencePair | Skipped:
    """Return the pair with its system message, tools and weight, or what leaves it out."""
    if isinstance(pair, Skipped):
        return pair
    if weight == 0:
        return Skipped(pair.source, "zero_weight")
    if shape.format != "rankings" and shape.min_score_gap > 0 and _gap(fields) < shape.min_score_gap:
        return Skipped(pair.source, "score_gap")
    tools = messages.tools(fields.column("tools"), fields.get("tools"))
    system, column = fields.get("system"), fields.column("system")
    if system is not None and not isinstance(system, str):
        raise ProblemError(f"{column}: expected a text, found {type_name(system)}", "wrong_type")
    system = checked_text(column, system) if system and system.strip() else None
    if isinstance(pair, TextPair) and not (system or tools or shape.conversational):
        return TextPair(pair.source, pair.prompt, pair.chosen, pair.rejected, weight)
    chat = pair.as_chat()
    prompt = _with_system(chat.prompt, system, column)
    transcript = None if system else chat.transcript
    return ChatPair(chat.source, prompt, chat.chosen, chat.rejected, weight, tools, transcript, chat.is_cut)


def _gap(fields: Fields) -> float:
    scores = [(fields.column(field), fields.get(field)) for field in ("score_chosen", "score_rejected")]
    if any(score is None for _, score in scores):
        return float("inf")
    chosen, rejected = (checked_score(column, score) for column, score in scores)
    return chosen - rejected


def _with_system(prompt: tuple[Message, ...], system: str | None, column: str) -> tuple[Message, ...]:
    if system is None:
        return prompt
    if prompt[0].role != "system":
        return (Message("system", system), *prompt)
    if prompt[0].content != system:
        raise ProblemError(f"{column}: the prompt begins with another system message", "roles")
    return prompt


_MAKERS: dict[str, Callable[[Source, Fields, Shape], list[PreferencePair | Skipped]]] = {
    "pairs": from_pairs,
    "conversations": from_conversations,
    "hh": from_hh,
    "ultrafeedback": from_ultrafeedback,
    "rankings": from_rankings,
    "alpaca": from_instructions,
    "messages": from_messages,
    "verdict": from_verdict,
}
