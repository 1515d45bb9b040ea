"""Make pairs of rows that hold two responses, or one that was chosen and several that were rejected."""

import math
import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from orpo_cli.data.pairs import ChatPair, Message, PreferencePair, ProblemError, Skipped, Source, TextPair
from orpo_cli.data.shapes import messages
from orpo_cli.data.shapes.pairing import Prompt, prompt_of, text_or_chat
from orpo_cli.data.shapes.parting import CUT_AT_ANSWERS, goes_on, parted
from orpo_cli.data.shapes.shape import Fields, Shape, Verdict
from orpo_cli.data.shapes.turns import lists_of_turns
from orpo_cli.data.shapes.values import checked_score, checked_text, type_name
from orpo_cli.quoting import shortened

Pairs = list[PreferencePair | Skipped]


def from_pairs(source: Source, fields: Fields, shape: Shape) -> Pairs:
    """Return the pairs of a prompt, a chosen response and one rejected response or more.

    Raises:
        ProblemError: if the fields hold neither texts nor messages.
    """
    prompt, chosen, rejected = given = [fields.needed(field) for field in ("prompt", "chosen", "rejected")]
    if all(isinstance(item, str) for item in given):
        columns = [fields.column(field) for field in ("prompt", "chosen", "rejected")]
        if turns := lists_of_turns(columns, given):
            return [_of_turns(source, columns, shape, turns)]
        for field, item in (("prompt", prompt), ("chosen", chosen), ("rejected", rejected)):
            checked_text(fields.column(field), item)
        return [TextPair(source, prompt, chosen, rejected)]
    if goes_on(chosen) or goes_on(rejected):
        return [_of_continuations(source, fields, shape)]
    return _against_each(source, fields, shape, prompt_of(fields, shape, prompt, (chosen, rejected)))


def _against_each(source: Source, fields: Fields, shape: Shape, prompt: Prompt) -> Pairs:
    chosen, rejected = (
        messages.responses(fields.column(field), fields.needed(field), shape.ignored)
        for field in ("chosen", "rejected")
    )
    if len(chosen) > 1:
        raise ProblemError(
            f"{fields.column('chosen')}: expected one chosen response, found {len(chosen)}; a list of responses with "
            "scores is read as a ranking",
            "wrong_type",
        )
    return [text_or_chat(source, prompt, chosen[0], response) for response in rejected]


def from_instructions(source: Source, fields: Fields, shape: Shape) -> Pairs:
    """Return the pair of an instruction, its input, and two responses, which one list may hold, the better first.

    Raises:
        ProblemError: if the fields hold something else.
    """
    instruction = checked_text(fields.column("prompt"), fields.needed("prompt"))
    given = fields.get("input")
    added = checked_text(fields.column("input"), given) if not _is_blank(given) else ""
    text = f"{instruction}\n{added}" if added else instruction
    earlier = _history(fields.column("history"), fields.get("history"), shape)
    prompt = (*earlier, Message("user", text)) if earlier else text
    chosen, column = fields.needed("chosen"), fields.column("chosen")
    if isinstance(chosen, list) and fields.get("rejected") is None:
        if len(chosen) != 2:
            raise ProblemError(f"{column}: expected two responses, the better first, found {len(chosen)}", "wrong_type")
        better, worse = (messages.response(f"{column}[{place}]", chosen[place], shape.ignored) for place in (0, 1))
        return [text_or_chat(source, prompt, better, worse)]
    return _against_each(source, fields, shape, prompt)


def _is_blank(value: Any) -> bool:
    return value is None or (isinstance(value, str) and not value.strip())


def _history(column: str, given: Any, shape: Shape) -> Sequence[Message]:
    """Return the earlier turns, given as a list of [question, answer], or as messages."""
    if given in (None, "", []):
        return []
    if isinstance(given, list) and messages.is_messages(given):
        turns = messages.messages(column, given, shape.ignored)
        if turns[-1].role == "user":
            raise ProblemError(f"{column}: its last message is the user's; the instruction is the next", "roles")
        return turns
    if not isinstance(given, list) or not all(isinstance(turn, list) and len(turn) == 2 for turn in given):
        found = shortened(str(given), 40)
        raise ProblemError(f"{column}: expected a list of [question, answer], or messages, found {found}", "wrong_type")
    texts = [checked_text(f"{column}[{place}]", text) for place, turn in enumerate(given) for text in turn]
    return [Message(("user", "assistant")[place % 2], text) for place, text in enumerate(texts)]


def from_conversations(source: Source, fields: Fields, shape: Shape) -> Pairs:
    """Return the pair of two conversations that differ in their last message.

    Raises:
        ProblemError: if they differ earlier, or are no such conversations.
    """
    return [_of_conversations(source, fields, shape, "chosen", "rejected")]


def from_ultrafeedback(source: Source, fields: Fields, shape: Shape) -> Pairs:
    """Return the pair of two conversations that begin with the prompt beside them.

    Raises:
        ProblemError: if they begin otherwise, or are no such conversations.
    """
    pair = _of_conversations(source, fields, shape, "chosen", "rejected")
    column, prompt = fields.column("prompt"), fields.needed("prompt")
    if isinstance(prompt, str):
        if prompt.strip() in (pair.prompt[-1].content.strip(), pair.as_text().prompt.strip()):
            return [pair]
    else:
        turns = messages.messages(column, prompt, shape.ignored)
        if turns == pair.prompt or (pair.prompt[0].role == "system" and turns == pair.prompt[1:]):
            return [pair]
        if turns[0].role == "system" and turns[1:] == pair.prompt:
            return [replace(pair, prompt=turns)]
    said = "is not what the two conversations begin with; data.format=conversations reads these alone"
    raise ProblemError(f"{column}: {said}", "prompts_differ")


def from_messages(source: Source, fields: Fields, shape: Shape) -> Pairs:
    """Return the pair of a conversation that ends in the chosen response, and a rejected one beside it.

    Raises:
        ProblemError: if it ends otherwise, or the rejected conversation has another prompt.
    """
    column, rejected = fields.column("rejected"), fields.needed("rejected")
    if isinstance(rejected, list) and len(rejected) > 1 and messages.is_messages(rejected):
        return [_of_conversations(source, fields, shape, "messages", "rejected")]
    *prompt, chosen = _conversation(fields, shape, "messages")
    others = messages.responses(column, rejected, shape.ignored)
    return [ChatPair(source, tuple(prompt), chosen, other) for other in others]


def from_verdict(source: Source, fields: Fields, shape: Shape) -> Pairs:
    """Return the pair of two responses, in the order that a verdict gives them; a tie is left out.

    Raises:
        ProblemError: if the verdict cannot be read, or the fields hold neither texts nor messages.
    """
    if _is_tie(fields.get("tie")):
        return [Skipped(source, "tie")]
    won = _first_won(fields, shape.verdict) if _gives_verdict(fields) else _first_scored_more(fields)
    if won is None:
        return [Skipped(source, "tie")]
    better, worse = ("response_a", "response_b") if won else ("response_b", "response_a")
    if fields.get("prompt") is None:
        return [_of_conversations(source, fields, shape, better, worse)]
    given = [fields.needed(field) for field in ("prompt", better, worse)]
    columns = [fields.column(field) for field in ("prompt", better, worse)]
    if turns := lists_of_turns(columns, given):
        return [_of_turns(source, columns, shape, turns)]
    prompt = prompt_of(fields, shape, given[0], given[1:])
    chosen, rejected = (
        messages.response(fields.column(field), value, shape.ignored)
        for field, value in zip((better, worse), given[1:], strict=True)
    )
    return [text_or_chat(source, prompt, chosen, rejected)]


def _of_turns(source: Source, columns: Sequence[str], shape: Shape, turns: Sequence[Sequence[str]]) -> PreferencePair:
    """Return the pair of two lists of answers, the better first, to the same turns of the user."""
    asked, *answers = turns
    if len(asked) == 1:
        return TextPair(source, asked[0], answers[0][0], answers[1][0])
    chosen, rejected = (
        tuple(
            Message(role, text)
            for question, answer in zip(asked, side, strict=True)
            for role, text in (("user", question), ("assistant", answer))
        )
        for side in answers
    )
    return parted(source, columns[1:], chosen, rejected, shape.cuts)


def _gives_verdict(fields: Fields) -> bool:
    """Return whether a verdict says which response won, and not a score of each."""
    return fields.get("winner") is not None or fields.get("score_a") is None


def _first_scored_more(fields: Fields) -> bool | None:
    """Return whether the first response has the higher score; None where both have the same."""
    first, second = (checked_score(fields.column(name), fields.needed(name)) for name in ("score_a", "score_b"))
    return None if first == second else first > second


_FIRST = ("a", "model_a", "response_a", "answer_a", "first", "left")
_SECOND = ("b", "model_b", "response_b", "answer_b", "second", "right")
_TIE = re.compile(r"(ties?|tied|both|neither|equal(ly)?|draw|same)(?![a-z0-9])(?!.*/)")


def _is_tie(value: Any) -> bool:
    return str(value).strip().lower() in ("1", "1.0", "true", "yes")


def _first_won(fields: Fields, meaning: Verdict) -> bool | None:
    """Return whether the first response won, which a verdict may name by its column; None for a tie.

    Raises:
        ProblemError: if the verdict says nothing, or something that has no meaning.
    """
    column, verdict = fields.column("winner"), fields.needed("winner")
    found = _plain(verdict)
    if found in (None, "", "none", "null", "nan"):
        raise ProblemError(f"{column}: is empty; write tie for a tie", "empty_field")
    first, second = _plain(meaning.first), _plain(meaning.second)
    if first in ("negative", "positive") and isinstance(found, float):
        return None if found == 0 else (found < 0) == (first == "negative")
    if second is None and first in (0.0, 1.0):
        second = 1 - first
        if found in (first, second) and _plain(fields.other_outcome) == found:
            if found:
                raise ProblemError(f"{column}: both responses won", "wrong_type")
            return None
    if found in (first, second):
        return bool(found == first)
    columns = [fields.column(field).lower() for field in ("response_a", "response_b")]
    for names in (columns, fields.models):
        if found in names and names[0] != names[1]:
            return found == names[0]
    if isinstance(found, str) and _TIE.match(found):
        return None
    if found in (*_FIRST, *_SECOND):
        return found in _FIRST
    if first is not None and meaning.second is not None:
        return None
    key = "data.second_won" if first is not None else "data.first_won"
    raise ProblemError(
        f"{column}: {shortened(str(verdict), 20)} ({type_name(verdict)}) does not say which response won; "
        f"{key}=VALUE says at which value the {'second' if first is not None else 'first'} did",
        "wrong_type",
    )


def _plain(value: Any) -> float | str | None:
    """Return a verdict as a number where it is one, in any spelling, else as text in small letters."""
    if value is None:
        return None
    text = str(value).strip().lower()
    try:
        number = float({"true": "1", "false": "0"}.get(text, text))
    except ValueError:
        return text
    return number if math.isfinite(number) else "nan"


def _of_conversations(source: Source, fields: Fields, shape: Shape, better: str, worse: str) -> ChatPair:
    columns = [fields.column(field) for field in (better, worse)]
    chosen, rejected = (_conversation(fields, shape, field, shape.cuts) for field in (better, worse))
    return parted(source, columns, chosen, rejected, shape.cuts)


def _of_continuations(source: Source, fields: Fields, shape: Shape) -> ChatPair:
    """Return the pair of a prompt that goes on in two ways for several turns each."""
    columns = [fields.column(field) for field in ("chosen", "rejected")]
    prompt = messages.prompt_messages(fields.column("prompt"), fields.needed("prompt"), shape.ignored)
    given = [fields.needed(field) for field in ("chosen", "rejected")]
    chosen, rejected = (
        messages.messages(column, value, shape.ignored)
        if isinstance(value, list)
        else (messages.response(column, value, shape.ignored),)
        for column, value in zip(columns, given, strict=True)
    )
    return parted(source, columns, prompt + chosen, prompt + rejected, shape.cuts)


def _conversation(fields: Fields, shape: Shape, field: str, may_go_on: bool = False) -> tuple[Message, ...]:
    """Return a conversation that ends with one answer, unless it may go on behind it."""
    column = fields.column(field)
    turns = messages.messages(column, fields.needed(field), shape.ignored)
    ends_with_answer = len(turns) > 1 and turns[-1].role == "assistant" != turns[-2].role
    if not ends_with_answer and not may_go_on:
        expected = "expected a conversation that ends with one answer"
        advice = f"; {CUT_AT_ANSWERS}" if turns[-1].role == "user" and field != "messages" and len(turns) > 2 else ""
        raise ProblemError(f"{column}: {expected}, found the roles {messages.roles(turns[-6:])}{advice}", "roles")
    return turns
