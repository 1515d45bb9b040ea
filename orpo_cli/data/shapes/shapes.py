"""The shapes preference data comes in, and how a row of each becomes pairs.

| format | a row holds |
|---|---|
| pairs | prompt, chosen, rejected: texts, or messages (the responses one of the assistant's each) |
| conversations | chosen and rejected: whole conversations that differ in their last message |
| hh | chosen and rejected: transcripts of `Human:` and `Assistant:` turns that differ in the last answer |
| ultrafeedback | prompt, and chosen and rejected as conversations that begin with it |
| rankings | prompt, responses, and their scores or ranks |

Every shape may carry system, tools and weight beside these.
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, pairwise
from typing import Any

from orpo_cli.data.pairs import ChatPair, Message, PreferencePair, Problem, Skipped, TextPair
from orpo_cli.data.rows.json_rows import Row
from orpo_cli.data.shapes import fields
from orpo_cli.data.shapes.fields import FieldError, type_name
from orpo_cli.quoting import listed, shortened

_TURN = re.compile(r"(?:\A\s*|\n\n)(Human|Assistant):")
_ANSWER = "\n\nAssistant:"
_LIGHTEST, _HEAVIEST = 1e-6, 1e6
"""Weights beyond which a step's sums lose their digits in fp32."""

_COMMON = ("system", "tools", "weight")
_READ = {
    "pairs": ("prompt", "chosen", "rejected", "score_chosen", "score_rejected"),
    "conversations": ("chosen", "rejected", "score_chosen", "score_rejected"),
    "hh": ("chosen", "rejected", "score_chosen", "score_rejected"),
    "ultrafeedback": ("prompt", "chosen", "rejected", "score_chosen", "score_rejected"),
    "rankings": ("prompt", "responses", "scores", "ranking"),
}
"""Format -> the fields it reads, beside the common ones."""

_NEEDED = {
    "pairs": ("prompt", "chosen", "rejected"),
    "conversations": ("chosen", "rejected"),
    "hh": ("chosen", "rejected"),
    "ultrafeedback": ("prompt", "chosen", "rejected"),
    "rankings": ("prompt", "responses"),
}
_WRITTEN_AS_JSON = ("prompt", "chosen", "rejected")
"""Fields whose messages may stand as JSON in a text, as tables without lists have to write them."""

_EMPTY_CELLS = ("", "null", "none", "nan")


@dataclass(frozen=True)
class Shape:
    """How the rows of one file are read.

    Args:
        format: one of `FORMATS`.
        columns: field -> column, for the fields that have one.
        pairs, min_score_gap: as configured.
        cells: whether every value is a text, as in CSV, so that lists, numbers and messages stand in it as JSON.
        conversational: whether some rows have a system message or tools, so that all are conversations.
    """

    format: str
    columns: Mapping[str, str]
    pairs: str
    min_score_gap: float
    cells: bool
    conversational: bool = False

    def reads(self) -> list[str]:
        """The columns that are read where they are there."""
        return [self.columns[field] for field in (*_READ[self.format], *_COMMON) if field in self.columns]


class Fields:
    """The fields of one row, by their names here; a cell of text becomes what its field holds."""

    def __init__(self, value: dict[str, Any], shape: Shape) -> None:
        self._value = value
        self._shape = shape

    def column(self, field: str) -> str:
        """The column a field is read from, for messages."""
        return self._shape.columns.get(field, field)

    def get(self, field: str) -> Any:
        """The field's value; None where it is not there, null, or an empty cell."""
        if field not in self._shape.columns:
            return None
        value = self._value.get(self._shape.columns[field])
        if not isinstance(value, str):
            return value
        if field in _WRITTEN_AS_JSON:
            return fields.text_or_messages(self.column(field), value)
        return self._from_cell(field, value) if self._shape.cells else value

    def glimpse(self, field: str) -> Any:
        """The field's value, its own text where the cell does not hold what it should."""
        try:
            return self.get(field)
        except FieldError:
            return self._value[self.column(field)]

    def needed(self, field: str) -> Any:
        """The value of a field that has to be there.

        Raises:
            FieldError: it is not.
        """
        column = self.column(field)
        if column not in self._value or field not in self._shape.columns:
            there = listed(self._value) or "no keys at all"
            known = [name for name in self._value if name not in self._shape.columns.values()]
            hint = f"; data.columns.{field}=NAME reads another column" if known else ""
            raise FieldError(column, f"missing; the row has {there}{hint}", "missing_field")
        value = self.get(field)
        return self._value[column] if value is None else value

    def _from_cell(self, field: str, text: str) -> Any:
        """What a cell of text holds; of a text, nothing where it says so as spreadsheets and data frames do."""
        if field in ("system", "tools"):
            return None if text.strip().lower() in _EMPTY_CELLS else text
        return fields.from_json(self.column(field), text) if text.strip() else None


def to_pairs(row: Row, shape: Shape) -> list[PreferencePair | Skipped] | Problem:
    """The pairs a row holds, or what is wrong with it. Only a ranking gives more than one, and never none."""
    try:
        return _pairs(row, shape)
    except FieldError as error:
        return Problem(row.source, str(error), error.reason)


def score_gap(row: Row, shape: Shape) -> float:
    """Score of chosen minus score of rejected; infinite where a row has none, or is no row of scores.

    Raises:
        FieldError: a score is no number.
    """
    return _gap(Fields(row.value, shape)) if isinstance(row.value, dict) else float("inf")


def extra_keys(row: Row, shape: Shape) -> Iterator[str]:
    """Keys of a row that nobody reads."""
    if isinstance(row.value, dict):
        read = shape.reads()
        yield from (str(key) for key in row.value if key not in read)


def _pairs(row: Row, shape: Shape) -> list[PreferencePair | Skipped]:
    if not isinstance(row.value, dict):
        expected = _and(shape.columns.get(field, field) for field in _NEEDED[shape.format])
        raise FieldError("row", f"expected an object with {expected}, found {type_name(row.value)}", "wrong_type")
    values = Fields(row.value, shape)
    for field in _NEEDED[shape.format]:
        values.needed(field)
    weight = _weight(values)
    made = _MAKERS[shape.format](row, values, shape)
    return [_checked(pair, weight, values, shape) for pair in made]


def _and(names: Iterator[str]) -> str:
    *others, last = names
    return f"{', '.join(others)} and {last}"


def _weight(values: Fields) -> float:
    given = values.get("weight")
    if given is None:
        return 1.0
    weight = fields.checked_number(values.column("weight"), given)
    if weight != 0 and not _LIGHTEST <= weight <= _HEAVIEST:
        expected = f"expected 0, or {_LIGHTEST:g} to {_HEAVIEST:g}, found {weight:g}"
        raise FieldError(values.column("weight"), expected, "wrong_type")
    return weight


def _checked(pair: PreferencePair | Skipped, weight: float, values: Fields, shape: Shape) -> PreferencePair | Skipped:
    """The pair with its system message, tools and weight, or what leaves it out."""
    if isinstance(pair, Skipped):
        return pair
    if weight == 0:
        return Skipped(pair.source, "zero_weight")
    if shape.format != "rankings" and shape.min_score_gap > 0 and _gap(values) < shape.min_score_gap:
        return Skipped(pair.source, "score_gap")
    tools = fields.tools(values.column("tools"), values.get("tools"))
    system = values.get("system")
    if system is not None and not isinstance(system, str):
        raise FieldError(values.column("system"), f"expected a text, found {type_name(system)}", "wrong_type")
    system = fields.checked_text(values.column("system"), system) if system and system.strip() else None
    if isinstance(pair, TextPair) and not (system or tools or shape.conversational):
        return TextPair(pair.source, pair.prompt, pair.chosen, pair.rejected, weight)
    chat = pair.as_chat()
    prompt = _with_system(chat.prompt, system, values.column("system"))
    transcript = None if system else chat.transcript
    return ChatPair(chat.source, prompt, chat.chosen, chat.rejected, weight, tools, transcript)


def _gap(values: Fields) -> float:
    """Score of chosen minus score of rejected; infinite where the row has none."""
    scores = [values.get(field) for field in ("score_chosen", "score_rejected")]
    if None in scores:
        return float("inf")
    chosen, rejected = (
        fields.checked_number(values.column(field), score)
        for field, score in zip(("score_chosen", "score_rejected"), scores, strict=True)
    )
    return chosen - rejected


def _with_system(prompt: tuple[Message, ...], system: str | None, column: str) -> tuple[Message, ...]:
    if system is None:
        return prompt
    if prompt[0].role != "system":
        return (Message("system", system), *prompt)
    if prompt[0].content != system:
        raise FieldError(column, "the prompt begins with another system message", "roles")
    return prompt


def _from_pairs(row: Row, values: Fields, _shape: Shape) -> list[PreferencePair | Skipped]:
    names = ("prompt", "chosen", "rejected")
    prompt, chosen, rejected = (values.needed(field) for field in names)
    columns = [values.column(field) for field in names]
    if all(isinstance(item, str) for item in (prompt, chosen, rejected)):
        for column, item in zip(columns, (prompt, chosen, rejected), strict=True):
            fields.checked_text(column, item)
        return [TextPair(row.source, prompt, chosen, rejected)]
    turns = fields.prompt_messages(columns[0], prompt)
    return [ChatPair(row.source, turns, fields.response(columns[1], chosen), fields.response(columns[2], rejected))]


def _from_conversations(row: Row, values: Fields, _shape: Shape) -> list[PreferencePair | Skipped]:
    sides = [_conversation(values, field) for field in ("chosen", "rejected")]
    (chosen_prompt, chosen), (rejected_prompt, rejected) = sides
    if chosen_prompt != rejected_prompt:
        turns = zip(chosen_prompt, rejected_prompt, strict=False)
        place = next(
            (number for number, (a, b) in enumerate(turns) if a != b), min(len(chosen_prompt), len(rejected_prompt))
        )
        raise FieldError(
            values.column("rejected"),
            f"differs from {values.column('chosen')} at message {place + 1}; only the last messages may differ",
            "prompts_differ",
        )
    return [ChatPair(row.source, chosen_prompt, chosen, rejected)]


def _conversation(values: Fields, field: str) -> tuple[tuple[Message, ...], str]:
    """The turns before the last, and the last, which is the assistant's."""
    column = values.column(field)
    turns = fields.messages(column, values.needed(field))
    if len(turns) < 2 or turns[-1].role != "assistant" or turns[-2].role == "assistant":
        found = fields.roles(turns[-6:])
        raise FieldError(column, f"expected a conversation that ends with one answer, found the roles {found}", "roles")
    return turns[:-1], fields.answer(f"{column}[{len(turns) - 1}]", turns[-1])


def _from_ultrafeedback(row: Row, values: Fields, shape: Shape) -> list[PreferencePair | Skipped]:
    (pair,) = _from_conversations(row, values, shape)
    assert isinstance(pair, ChatPair)
    column, prompt = values.column("prompt"), values.needed("prompt")
    if isinstance(prompt, str):
        same = pair.prompt[-1].content.strip() == prompt.strip() or pair.as_text().prompt.strip() == prompt.strip()
    else:
        same = fields.messages(column, prompt) == pair.prompt
    if not same:
        raise FieldError(column, "is not what the two conversations begin with", "prompts_differ")
    return [pair]


def _from_hh(row: Row, values: Fields, _shape: Shape) -> list[PreferencePair | Skipped]:
    columns = [values.column(field) for field in ("chosen", "rejected")]
    texts = [
        fields.checked_text(column, values.needed(field))
        for column, field in zip(columns, ("chosen", "rejected"), strict=True)
    ]
    same = next((at for at, (a, b) in enumerate(zip(*texts, strict=False)) if a != b), min(map(len, texts)))
    end = texts[0].rfind(_ANSWER, 0, same)
    if end < 0 or len(turns_of(texts[0])) < 2:
        raise FieldError(
            columns[0], "expected `Human:` and `Assistant:` turns that both transcripts share", "prompts_differ"
        )
    prompt = texts[0][: end + len(_ANSWER)]
    for column, text in zip(columns, texts, strict=True):
        _check_last_answer(column, text, prompt)
    turns = turns_of(prompt)
    messages = tuple(Message(role, fields.checked_text(columns[0], content)) for role, content in turns if content)
    if not messages or messages[-1].role != "user" or len(messages) < len(turns) - 1:
        raise FieldError(columns[0], "a turn of the transcript is empty, or the answer follows no question", "roles")
    chosen, rejected = (text[len(prompt) :] for text in texts)
    transcript = TextPair(row.source, prompt, chosen, rejected)
    return [ChatPair(row.source, messages, chosen.strip(), rejected.strip(), transcript=transcript)]


def _check_last_answer(column: str, text: str, prompt: str) -> None:
    rest = text[len(prompt) :]
    if not rest.strip():
        raise FieldError(column, 'the last answer is empty ("")', "empty_field")
    if re.search(r"\n\n(Human|Assistant):", rest):
        raise FieldError(
            column, f"the transcripts part before the last answer: {shortened(rest, 40)}", "prompts_differ"
        )


def turns_of(text: str) -> list[tuple[str, str]]:
    """(role, content) of each turn of a transcript."""
    marks = list(_TURN.finditer(text))
    roles = {"Human": "user", "Assistant": "assistant"}
    ends = [mark.start() for mark in marks[1:]] + [len(text)]
    if not marks or marks[0].start() > 0:
        return []
    return [(roles[mark[1]], text[mark.end() : end].strip()) for mark, end in zip(marks, ends, strict=True)]


def _from_rankings(row: Row, values: Fields, shape: Shape) -> list[PreferencePair | Skipped]:
    column = values.column("responses")
    given = values.needed("responses")
    if not isinstance(given, list) or len(given) < 2:
        found = f"{len(given)}" if isinstance(given, list) else type_name(given)
        raise FieldError(column, f"expected a list of two responses or more, found {found}", "wrong_type")
    texts = [fields.response(f"{column}[{place}]", item) for place, item in enumerate(given)]
    scores = _scores(values, len(texts))
    order = sorted(range(len(texts)), key=lambda place: -scores[place])
    prompt = values.needed("prompt")
    is_text = isinstance(prompt, str) and all(isinstance(item, str) for item in given)
    turns = fields.prompt_messages(values.column("prompt"), prompt)

    def pair(better: int, worse: int) -> PreferencePair | Skipped:
        gap = scores[better] - scores[worse]
        if gap == 0 or gap < shape.min_score_gap:
            return Skipped(row.source, "score_gap" if gap else "tie")
        chosen, rejected = texts[better], texts[worse]
        return (
            TextPair(row.source, prompt, chosen, rejected) if is_text else ChatPair(row.source, turns, chosen, rejected)
        )

    return [pair(better, worse) for better, worse in PAIRINGS[shape.pairs](order)]


PAIRINGS: dict[str, Callable[[Sequence[int]], list[tuple[int, int]]]] = {
    "all": lambda order: list(combinations(order, 2)),
    "adjacent": lambda order: list(pairwise(order)),
    "best_vs_rest": lambda order: [(order[0], other) for other in order[1:]],
}
"""`data.pairs` -> (better, worse) places of a ranking given best first."""


def _scores(values: Fields, count: int) -> list[float]:
    """A number for each response, higher is better; ranks are turned round.

    Raises:
        FieldError: there is neither, they are not one a response, or they contradict each other.
    """
    scores, ranks = (_numbers(values, field, count) for field in ("scores", "ranking"))
    if ranks is not None and any(rank < 1 for rank in ranks):
        raise FieldError(values.column("ranking"), "ranks count from 1, which is the best", "wrong_type")
    if scores is None and ranks is None:
        either = f"{values.column('scores')} or {values.column('ranking')}"
        raise FieldError(values.column("scores"), f"missing; a ranking needs {either}", "missing_field")
    if scores is not None and ranks is not None:
        pairs = combinations(range(count), 2)
        if any((scores[a] - scores[b]) * (ranks[b] - ranks[a]) < 0 for a, b in pairs):
            raise FieldError(values.column("ranking"), f"contradicts {values.column('scores')}", "wrong_type")
    return scores if scores is not None else [-rank for rank in ranks or []]


def _numbers(values: Fields, field: str, count: int) -> list[float] | None:
    given, column = values.get(field), values.column(field)
    if given is None:
        return None
    if not isinstance(given, list) or len(given) != count:
        found = f"{len(given)}" if isinstance(given, list) else type_name(given)
        raise FieldError(column, f"expected a number for each of the {count} responses, found {found}", "wrong_type")
    return [fields.checked_number(f"{column}[{place}]", number) for place, number in enumerate(given)]


_MAKERS: dict[str, Callable[[Row, Fields, Shape], list[PreferencePair | Skipped]]] = {
    "pairs": _from_pairs,
    "conversations": _from_conversations,
    "hh": _from_hh,
    "ultrafeedback": _from_ultrafeedback,
    "rankings": _from_rankings,
}
