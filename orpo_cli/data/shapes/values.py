"""Check the values of a row's fields: texts, messages, tools, numbers. A problem names the field it is in."""

import json
import re
import reprlib
import sys
import unicodedata
from collections.abc import Sequence
from typing import Any

from orpo_cli.data.pairs import Message, ProblemError
from orpo_cli.data.rows.strict_json import from_json
from orpo_cli.quoting import listed, printable, shortened

_SURROGATE = re.compile("[\ud800-\udfff]")
_ESCAPED_NUL = re.compile(r"(?<!\\)(?:\\\\)*\\u0000")
_TYPE_NAMES = {
    dict: "an object",
    list: "a list",
    str: "a text",
    bool: "true or false",
    int: "a number",
    float: "a number",
}
_OTHERS = ("name", "tool_calls", "tool_call_id", "reasoning_content")
"""Keys of a message, beside role and content, that chat templates read."""

_INVISIBLE = ("Cc", "Cf", "Zl", "Zp", "Zs")
"""Categories of Unicode that leave no mark: controls, joiners and marks of direction, blanks."""

_ROLES = {"human": "user", "gpt": "assistant"}
"""Roles as ShareGPT files write them, whose messages have the keys `from` and `value`."""

_LIKE_MESSAGES = re.compile(r"""\s*\[?\s*\{\s*(["'])(role|content|from|value)\1\s*:""")


def type_name(value: Any) -> str:
    """Name the type of a JSON value in words."""
    return _TYPE_NAMES.get(type(value), "null" if value is None else type(value).__name__)


def checked_text(field: str, text: Any) -> str:
    """Return a text that has visible characters and can be written as UTF-8.

    Raises:
        ProblemError: if the value is not such a text.
    """
    if not isinstance(text, str):
        shown = "" if text is None else f" ({shortened(reprlib.repr(text), 40)})"
        expected = "expected a text or a list of messages"
        raise ProblemError(f"{field}: {expected}, found {type_name(text)}{shown}", "wrong_type")
    if surrogate := _SURROGATE.search(text):
        code = f"U+{ord(surrogate.group()):04X}"
        raise ProblemError(f"{field}: lone surrogate {code}, which no encoding can write", "encoding")
    if "\0" in text:
        raise ProblemError(f"{field}: character U+0000 at position {text.index(chr(0)) + 1}", "encoding")
    if all(unicodedata.category(sign) in _INVISIBLE for sign in text):
        raise ProblemError(f"{field}: empty ({shortened(text, 20)})", "empty_field")
    return text


def checked_number(field: str, value: Any) -> float:
    """Return a finite number.

    Raises:
        ProblemError: if the value is not one.
    """
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) <= sys.float_info.max:
        shown = shortened(str(value), 40)
        raise ProblemError(f"{field}: expected a number, found {type_name(value)} ({shown})", "wrong_type")
    return float(value)


def messages(field: str, value: Any) -> tuple[Message, ...]:
    """Return a conversation given as a list of messages, or as one message.

    Raises:
        ProblemError: if the value is neither.
    """
    if isinstance(value, dict) and is_messages(value):
        return (_message(field, value),)
    if not isinstance(value, list):
        checked_text(field, value)
        raise ProblemError(f"{field}: expected a list of messages, found {type_name(value)}", "wrong_type")
    if not value:
        raise ProblemError(f"{field}: an empty list of messages", "empty_field")
    return tuple(_message(f"{field}[{place}]", item) for place, item in enumerate(value))


def is_messages(value: Any) -> bool:
    """Return whether a value is meant as messages, valid or not."""
    items = value if isinstance(value, list) else [value]
    return bool(items) and all(isinstance(item, dict) and ("role" in item or "from" in item) for item in items)


def text_or_messages(field: str, cell: str) -> Any:
    """Return what a cell of text holds: messages written as JSON, or the text itself.

    Raises:
        ProblemError: if it begins as messages do but is not JSON: a list as Python prints it, or one that is cut.
    """
    try:
        value = json.loads(cell) if cell.lstrip()[:1] in ("[", "{") else None
    except (ValueError, RecursionError):
        if _LIKE_MESSAGES.match(cell):
            what = f"messages, but not as JSON ({shortened(cell, 40)})"
            text = f"{field}: {what}; json.dumps writes them so that they can be read"
            raise ProblemError(text, "wrong_type") from None
        return cell
    parts = value if isinstance(value, list) else [value]
    return from_json(field, cell) if any(is_messages(part) for part in parts) else cell


def prompt_messages(field: str, value: Any) -> tuple[Message, ...]:
    """Return the turns before the responses; a text is one turn of the user.

    Raises:
        ProblemError: if the value is neither text nor messages, or ends with the assistant's turn.
    """
    if isinstance(value, str):
        return (Message("user", checked_text(field, value)),)
    turns = messages(field, value)
    if turns[-1].role == "assistant":
        said = "its last message is the assistant's; the responses are to follow the user's"
        raise ProblemError(f"{field}: {said}", "roles")
    return turns


def response(field: str, value: Any) -> str:
    """Return the text of the assistant's one turn, given as text or as a message.

    Raises:
        ProblemError: if the value is neither.
    """
    if isinstance(value, str):
        return checked_text(field, value)
    turns = messages(field, value)
    if len(turns) != 1 or turns[0].role != "assistant":
        found = roles(turns[:6])
        raise ProblemError(f"{field}: expected one message of the assistant, found the roles {found}", "roles")
    return trained_text(f"{field}[0]", turns[0])


def roles(turns: Sequence[Message]) -> str:
    """List the roles of some messages."""
    return ", ".join(printable(turn.role, 20) for turn in turns)


def trained_text(place: str, message: Message) -> str:
    """Return the text of a message that is trained on.

    Raises:
        ProblemError: if the message holds more than text.
    """
    if message.others:
        lost = f"{listed(message.others)} would be lost"
        raise ProblemError(f"{place}: {lost}: only the text of a response is trained on", "wrong_type")
    return checked_text(f"{place}.content", message.content)


def tools(field: str, value: Any) -> tuple[Any, ...]:
    """Return descriptions of tools, given as a list of objects, or as the same in JSON.

    Raises:
        ProblemError: if the value is neither.
    """
    if isinstance(value, str):
        value = from_json(field, value) if value.strip() else None
    if value in (None, "", [], {}):
        return ()
    if not isinstance(value, list) or not all(isinstance(tool, dict) for tool in value):
        raise ProblemError(f"{field}: expected a list of objects, found {type_name(value)}", "wrong_type")
    _check_inside(field, value)
    return tuple(value)


def _check_inside(field: str, value: Any) -> None:
    """Refuse what a chat template could not write: what is not JSON, or a text that no encoding can write."""
    try:
        text = json.dumps(value, ensure_ascii=False)
    except RecursionError:
        raise ProblemError(f"{field}: nested too deeply", "wrong_type") from None
    except (TypeError, ValueError) as error:
        raise ProblemError(f"{field}: cannot be written as JSON: {printable(str(error))}", "wrong_type") from None
    if _SURROGATE.search(text) or _ESCAPED_NUL.search(text):
        said = "a lone surrogate or U+0000 inside, which no encoding can write"
        raise ProblemError(f"{field}: {said}", "encoding")


def _message(place: str, value: Any) -> Message:
    if isinstance(value, dict) and "from" in value and "value" in value and "role" not in value:
        role = value["from"]
        value = {**value, "role": _ROLES.get(role, role) if isinstance(role, str) else role, "content": value["value"]}
        del value["from"], value["value"]
    if not isinstance(value, dict) or "role" not in value or not ("content" in value or "tool_calls" in value):
        found = shortened(reprlib.repr(value), 40)
        raise ProblemError(f"{place}: expected a message with role and content, found {found}", "wrong_type")
    others = {key: item for key, item in value.items() if key not in ("role", "content") and item not in (None, [], {})}
    if unread := [key for key in others if key not in _OTHERS]:
        lost = f"{shortened(unread[0], 30)} would be lost"
        raise ProblemError(f"{place}: {lost}: a message has role and content", "wrong_type")
    if others:
        _check_inside(place, others)
    content = _joined(f"{place}.content", value.get("content"))
    if not (others.get("tool_calls") and content in (None, "")):
        checked_text(f"{place}.content", content)
    return Message(checked_text(f"{place}.role", value["role"]), content or "", others)


def _joined(field: str, content: Any) -> Any:
    """Return the text of a content written as a list of parts; anything else stays as it is."""
    if not isinstance(content, list) or not content:
        return content
    kinds = [part.get("type") if isinstance(part, dict) else None for part in content]
    other = next((kind for kind in kinds if kind != "text"), "text")
    if other != "text":
        kind = shortened(str(other), 20)
        raise ProblemError(f"{field}: a part of type {kind}; only text can be trained on", "wrong_type")
    items = [item for part in content for item in part.items()]
    if lost := [key for key, value in items if key not in ("type", "text") and value not in (None, [], {})]:
        key = shortened(str(lost[0]), 30)
        raise ProblemError(f"{field}: {key} would be lost: a part has type and text", "wrong_type")
    return "".join(checked_text(f"{field}[{place}].text", part.get("text")) for place, part in enumerate(content))
