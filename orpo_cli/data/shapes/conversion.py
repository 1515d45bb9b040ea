"""Turn a row of any shape into pairs."""

import re
from collections.abc import Callable, Iterator, Sequence
from itertools import combinations, pairwise

from orpo_cli.data.pairs import ChatPair, Message, PreferencePair, Problem, ProblemError, Row, Skipped, Source, TextPair
from orpo_cli.data.shapes import values
from orpo_cli.data.shapes.shape import NEEDED, Fields, Shape
from orpo_cli.data.shapes.values import type_name
from orpo_cli.quoting import shortened

_TURN = re.compile(r"(?:\A\s*|\n\n)(Human|Assistant):")
_ANSWER = "\n\nAssistant:"
_LIGHTEST, _HEAVIEST = 1e-6, 1e6
"""Weights beyond which a step's sums lose their digits in fp32."""


def to_pairs(row: Row, shape: Shape) -> list[PreferencePair | Skipped] | Problem:
    """Return the pairs a row holds, or what is wrong with it; only a ranking gives more than one, and never none."""
    try:
        return _pairs(row, shape)
    except ProblemError as error:
        return error.problem(row.source)


def score_gap(row: Row, shape: Shape) -> float:
    """Return the score of chosen minus the score of rejected; infinite where a row does not have both as numbers."""
    try:
        return _gap(Fields(row.value, shape))
    except ProblemError:
        return float("inf")


def extra_keys(row: Row, shape: Shape) -> Iterator[str]:
    """Yield the keys of a row that are not read."""
    if isinstance(row.value, dict):
        read = shape.reads()
        yield from (str(key) for key in row.value if key not in read)


def _pairs(row: Row, shape: Shape) -> list[PreferencePair | Skipped]:
    if not isinstance(row.value, dict):
        *others, last = (shape.columns.get(field, field) for field in NEEDED[shape.format])
        expected = f"expected an object with {', '.join(others)} and {last}"
        raise ProblemError(f"row: {expected}, found {type_name(row.value)}", "wrong_type")
    fields = Fields(row.value, shape)
    for field in NEEDED[shape.format]:
        fields.needed(field)
    weight = _weight(fields)
    made = _MAKERS[shape.format](row.source, fields, shape)
    return [_completed(pair, weight, fields, shape) for pair in made]


def _weight(fields: Fields) -> float:
    given = fields.get("weight")
    if given is None:
        return 1.0
    column = fields.column("weight")
    weight = values.checked_number(column, given)
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
    tools = values.tools(fields.column("tools"), fields.get("tools"))
    system, column = fields.get("system"), fields.column("system")
    if system is not None and not isinstance(system, str):
        raise ProblemError(f"{column}: expected a text, found {type_name(system)}", "wrong_type")
    system = values.checked_text(column, system) if system and system.strip() else None
    if isinstance(pair, TextPair) and not (system or tools or shape.conversational):
        return TextPair(pair.source, pair.prompt, pair.chosen, pair.rejected, weight)
    chat = pair.as_chat()
    prompt = _with_system(chat.prompt, system, column)
    transcript = None if system else chat.transcript
    return ChatPair(chat.source, prompt, chat.chosen, chat.rejected, weight, tools, transcript)


def _gap(fields: Fields) -> float:
    scores = [(fields.column(field), fields.get(field)) for field in ("score_chosen", "score_rejected")]
    if any(score is None for _, score in scores):
        return float("inf")
    chosen, rejected = (values.checked_number(column, score) for column, score in scores)
    return chosen - rejected


def _with_system(prompt: tuple[Message, ...], system: str | None, column: str) -> tuple[Message, ...]:
    if system is None:
        return prompt
    if prompt[0].role != "system":
        return (Message("system", system), *prompt)
    if prompt[0].content != system:
        raise ProblemError(f"{column}: the prompt begins with another system message", "roles")
    return prompt


def _from_pairs(source: Source, fields: Fields, _shape: Shape) -> list[PreferencePair | Skipped]:
    names = ("prompt", "chosen", "rejected")
    prompt, chosen, rejected = (fields.needed(field) for field in names)
    columns = [fields.column(field) for field in names]
    if all(isinstance(item, str) for item in (prompt, chosen, rejected)):
        for column, item in zip(columns, (prompt, chosen, rejected), strict=True):
            values.checked_text(column, item)
        return [TextPair(source, prompt, chosen, rejected)]
    turns = values.prompt_messages(columns[0], prompt)
    return [ChatPair(source, turns, values.response(columns[1], chosen), values.response(columns[2], rejected))]


def _conversations(source: Source, fields: Fields) -> ChatPair:
    (prompt, chosen), (rejected_prompt, rejected) = (_conversation(fields, field) for field in ("chosen", "rejected"))
    if prompt != rejected_prompt:
        turns = enumerate(zip(prompt, rejected_prompt, strict=False))
        place = next((number for number, (a, b) in turns if a != b), min(len(prompt), len(rejected_prompt)))
        where = f"differs from {fields.column('chosen')} at message {place + 1}"
        raise ProblemError(f"{fields.column('rejected')}: {where}; only the last messages may differ", "prompts_differ")
    return ChatPair(source, prompt, chosen, rejected)


def _conversation(fields: Fields, field: str) -> tuple[tuple[Message, ...], str]:
    """Return the turns before the last, and the text of the last, which is the assistant's."""
    column = fields.column(field)
    turns = values.messages(column, fields.needed(field))
    if len(turns) < 2 or turns[-1].role != "assistant" or turns[-2].role == "assistant":
        expected = "expected a conversation that ends with one answer"
        raise ProblemError(f"{column}: {expected}, found the roles {values.roles(turns[-6:])}", "roles")
    return turns[:-1], values.trained_text(f"{column}[{len(turns) - 1}]", turns[-1])


def _from_ultrafeedback(source: Source, fields: Fields, _shape: Shape) -> list[PreferencePair | Skipped]:
    pair = _conversations(source, fields)
    column, prompt = fields.column("prompt"), fields.needed("prompt")
    if isinstance(prompt, str):
        same = prompt.strip() in (pair.prompt[-1].content.strip(), pair.as_text().prompt.strip())
    else:
        same = values.messages(column, prompt) == pair.prompt
    if not same:
        raise ProblemError(f"{column}: is not what the two conversations begin with", "prompts_differ")
    return [pair]


def _from_hh(source: Source, fields: Fields, _shape: Shape) -> list[PreferencePair | Skipped]:
    columns = [fields.column(field) for field in ("chosen", "rejected")]
    texts = [
        values.checked_text(column, fields.needed(field))
        for column, field in zip(columns, ("chosen", "rejected"), strict=True)
    ]
    same = next((at for at, (a, b) in enumerate(zip(*texts, strict=False)) if a != b), min(map(len, texts)))
    end = texts[0].rfind(_ANSWER, 0, same)
    if end < 0 or len(turns_of(texts[0])) < 2:
        expected = "expected `Human:` and `Assistant:` turns that both transcripts share"
        raise ProblemError(f"{columns[0]}: {expected}", "prompts_differ")
    prompt = texts[0][: end + len(_ANSWER)]
    for column, text in zip(columns, texts, strict=True):
        _check_last_answer(column, text[len(prompt) :])
    turns = turns_of(prompt)
    messages = tuple(Message(role, values.checked_text(columns[0], content)) for role, content in turns if content)
    if not messages or messages[-1].role != "user" or len(messages) < len(turns) - 1:
        said = "a turn of the transcript is empty, or the answer follows no question"
        raise ProblemError(f"{columns[0]}: {said}", "roles")
    chosen, rejected = (text[len(prompt) :] for text in texts)
    transcript = TextPair(source, prompt, chosen, rejected)
    return [ChatPair(source, messages, chosen.strip(), rejected.strip(), transcript=transcript)]


def _check_last_answer(column: str, answer: str) -> None:
    if not answer.strip():
        raise ProblemError(f'{column}: the last answer is empty ("")', "empty_field")
    if re.search(r"\n\n(Human|Assistant):", answer):
        where = shortened(answer, 40)
        raise ProblemError(f"{column}: the transcripts differ before the last answer: {where}", "prompts_differ")


def turns_of(text: str) -> list[tuple[str, str]]:
    """Return (role, content) of each turn of a transcript; none where the text is not a transcript."""
    marks = list(_TURN.finditer(text))
    roles = {"Human": "user", "Assistant": "assistant"}
    ends = [mark.start() for mark in marks[1:]] + [len(text)]
    if not marks or marks[0].start() > 0:
        return []
    return [(roles[mark[1]], text[mark.end() : end].strip()) for mark, end in zip(marks, ends, strict=True)]


def _from_rankings(source: Source, fields: Fields, shape: Shape) -> list[PreferencePair | Skipped]:
    column = fields.column("responses")
    given = fields.needed("responses")
    if not isinstance(given, list) or len(given) < 2:
        found = f"{len(given)}" if isinstance(given, list) else type_name(given)
        raise ProblemError(f"{column}: expected a list of two responses or more, found {found}", "wrong_type")
    texts = [values.response(f"{column}[{place}]", item) for place, item in enumerate(given)]
    scores = _scores(fields, len(texts))
    order = sorted(range(len(texts)), key=lambda place: -scores[place])
    prompt = fields.needed("prompt")
    is_text = isinstance(prompt, str) and all(isinstance(item, str) for item in given)
    turns = values.prompt_messages(fields.column("prompt"), prompt)

    def pair(better: int, worse: int) -> PreferencePair | Skipped:
        gap = scores[better] - scores[worse]
        if gap == 0 or gap < shape.min_score_gap:
            return Skipped(source, "score_gap" if gap else "tie")
        chosen, rejected = texts[better], texts[worse]
        return TextPair(source, prompt, chosen, rejected) if is_text else ChatPair(source, turns, chosen, rejected)

    return [pair(better, worse) for better, worse in PAIRINGS[shape.pairs](order)]


PAIRINGS: dict[str, Callable[[Sequence[int]], list[tuple[int, int]]]] = {
    "all": lambda order: list(combinations(order, 2)),
    "adjacent": lambda order: list(pairwise(order)),
    "best_vs_rest": lambda order: [(order[0], other) for other in order[1:]],
}
"""`data.pairs` -> (better, worse) places of a ranking given best first."""


def _scores(fields: Fields, count: int) -> list[float]:
    """Return a number for each response, where higher is better; the signs of ranks are turned.

    Raises:
        ProblemError: if there are neither scores nor ranks, not one for each response, or they contradict each other.
    """
    scores, ranks = (_numbers(fields, field, count) for field in ("scores", "ranking"))
    if ranks is not None and any(rank < 1 for rank in ranks):
        raise ProblemError(f"{fields.column('ranking')}: ranks count from 1, which is the best", "wrong_type")
    if scores is None and ranks is None:
        column = fields.column("scores")
        either = f"{column} or {fields.column('ranking')}"
        raise ProblemError(f"{column}: missing; a ranking needs {either}", "missing_field")
    if scores is not None and ranks is not None:
        pairs = combinations(range(count), 2)
        if any((scores[a] - scores[b]) * (ranks[b] - ranks[a]) < 0 for a, b in pairs):
            raise ProblemError(f"{fields.column('ranking')}: contradicts {fields.column('scores')}", "wrong_type")
    return scores if scores is not None else [-rank for rank in ranks or []]


def _numbers(fields: Fields, field: str, count: int) -> list[float] | None:
    given, column = fields.get(field), fields.column(field)
    if given is None:
        return None
    if not isinstance(given, list) or len(given) != count:
        found = f"{len(given)}" if isinstance(given, list) else type_name(given)
        raise ProblemError(
            f"{column}: expected a number for each of the {count} responses, found {found}", "wrong_type"
        )
    return [values.checked_number(f"{column}[{place}]", number) for place, number in enumerate(given)]


_MAKERS: dict[str, Callable[[Source, Fields, Shape], list[PreferencePair | Skipped]]] = {
    "pairs": _from_pairs,
    "conversations": lambda source, fields, _shape: [_conversations(source, fields)],
    "hh": _from_hh,
    "ultrafeedback": _from_ultrafeedback,
    "rankings": _from_rankings,
}
