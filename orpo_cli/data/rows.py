"""One parsed JSON value to one preference pair, or to the problem that names the field."""

import re
import reprlib
from collections.abc import Iterator
from typing import Any

from orpo_cli.data.pairs import ChatPair, Message, PreferencePair, Problem, Source, TextPair
from orpo_cli.data.readers import Row, listed, shortened

FIELDS = ("prompt", "chosen", "rejected")
_SURROGATE = re.compile("[\ud800-\udfff]")
_TYPE_NAMES = {
    dict: "an object",
    list: "a list",
    str: "a text",
    bool: "true or false",
    int: "a number",
    float: "a number",
}


class _FieldError(ValueError):
    def __init__(self, field: str, text: str, reason: str) -> None:
        super().__init__(f"{field}: {text}")
        self.reason = reason


def to_pair(row: Row) -> PreferencePair | Problem:
    """The pair a row holds. Strings stay text; a row with any chat messages becomes a conversation."""
    try:
        return _pair(row.value, row.source)
    except _FieldError as error:
        return Problem(row.source, str(error), error.reason)


def extra_keys(row: Row) -> Iterator[str]:
    """Keys of a row that nobody reads."""
    if isinstance(row.value, dict):
        yield from (key for key in row.value if key not in FIELDS)


def _pair(value: Any, source: Source) -> PreferencePair:
    if not isinstance(value, dict):
        found = _TYPE_NAMES.get(type(value), "null")
        raise _FieldError("row", f"expected an object with prompt, chosen and rejected, found {found}", "wrong_type")
    for field in FIELDS:
        if field not in value:
            raise _FieldError(field, f"missing; the row has {listed(value) or 'no keys at all'}", "missing_field")
    prompt, chosen, rejected = (value[field] for field in FIELDS)
    if all(isinstance(item, str) for item in (prompt, chosen, rejected)):
        for field in FIELDS:
            _check_text(field, value[field])
        return TextPair(source, prompt, chosen, rejected)
    return ChatPair(source, _prompt(prompt), _response("chosen", chosen), _response("rejected", rejected))


def _check_text(field: str, text: Any) -> str:
    if not isinstance(text, str):
        found = _TYPE_NAMES.get(type(text), "null")
        shown = "" if text is None else f" ({shortened(reprlib.repr(text), 40)})"
        raise _FieldError(field, f"expected a text or a list of messages, found {found}{shown}", "wrong_type")
    if not text.strip():
        raise _FieldError(field, f"empty ({shortened(text, 20)})", "empty_field")
    if surrogate := _SURROGATE.search(text):
        raise _FieldError(
            field, f"lone surrogate U+{ord(surrogate.group()):04X}, which no encoding can write", "encoding"
        )
    if "\0" in text:
        raise _FieldError(field, f"character U+0000 at position {text.index(chr(0)) + 1}", "encoding")
    return text


def _prompt(value: Any) -> tuple[Message, ...]:
    if isinstance(value, str):
        return (Message("user", _check_text("prompt", value)),)
    messages = _messages("prompt", value)
    if messages[-1].role == "assistant":
        raise _FieldError(
            "prompt", "its last message is the assistant's; the responses are to follow the user's", "roles"
        )
    return messages


def _response(field: str, value: Any) -> str:
    if isinstance(value, str):
        return _check_text(field, value)
    messages = _messages(field, value)
    if len(messages) != 1 or messages[0].role != "assistant":
        roles = ", ".join(message.role for message in messages[:6])
        raise _FieldError(field, f"expected one message of the assistant, found the roles {roles}", "roles")
    return messages[0].content


def _messages(field: str, value: Any) -> tuple[Message, ...]:
    if not isinstance(value, list):
        _check_text(field, value)
    if not value:
        raise _FieldError(field, "an empty list of messages", "empty_field")
    return tuple(_message(f"{field}[{place}]", item) for place, item in enumerate(value))


def _message(place: str, value: Any) -> Message:
    if not isinstance(value, dict) or "role" not in value or "content" not in value:
        raise _FieldError(
            place, f"expected a message with role and content, found {shortened(reprlib.repr(value), 40)}", "wrong_type"
        )
    unread = [key for key in value if key not in ("role", "content")]
    if unread:
        raise _FieldError(
            place, f"{shortened(unread[0], 30)} would be lost: a message has role and content", "wrong_type"
        )
    return Message(_check_text(f"{place}.role", value["role"]), _check_text(f"{place}.content", value["content"]))
