"""The values of a row's fields, checked: texts, messages, tools, numbers; a problem names the field it is in."""

import json
import re
import reprlib
import sys
import unicodedata
from collections import Counter
from collections.abc import Sequence
from typing import Any

from orpo_cli.data.pairs import Message
from orpo_cli.quoting import listed, printable, shortened

_SURROGATE = re.compile("[\ud800-\udfff]")
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
"""Roles as ShareGPT files write them, in `from` and `value`."""

_LIKE_MESSAGES = re.compile(r"""\s*\[?\s*\{\s*(["'])(role|content|from|value)\1\s*:""")
_DEPTH = 100
"""Levels of nesting in tools and in the calls of a message."""


class FieldError(ValueError):
    """A field of a row cannot be used; `reason` is the class of the ledger."""

    def __init__(self, field: str, text: str, reason: str) -> None:
        super().__init__(f"{field}: {text}")
        self.reason = reason


def type_name(value: Any) -> str:
    """What a JSON value is, in words."""
    return _TYPE_NAMES.get(type(value), "null" if value is None else type(value).__name__)


def checked_text(field: str, text: Any) -> str:
    """A text with something in it that can be written as UTF-8.

    Raises:
        FieldError: it is none.
    """
    if not isinstance(text, str):
        shown = "" if text is None else f" ({shortened(reprlib.repr(text), 40)})"
        raise FieldError(field, f"expected a text or a list of messages, found {type_name(text)}{shown}", "wrong_type")
    if surrogate := _SURROGATE.search(text):
        raise FieldError(
            field, f"lone surrogate U+{ord(surrogate.group()):04X}, which no encoding can write", "encoding"
        )
    if "\0" in text:
        raise FieldError(field, f"character U+0000 at position {text.index(chr(0)) + 1}", "encoding")
    if all(unicodedata.category(sign) in _INVISIBLE for sign in text):
        raise FieldError(field, f"empty ({shortened(text, 20)})", "empty_field")
    return text


def checked_number(field: str, value: Any) -> float:
    """A finite number.

    Raises:
        FieldError: it is none.
    """
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) <= sys.float_info.max:
        shown = f" ({shortened(str(value), 40)})"
        raise FieldError(field, f"expected a number, found {type_name(value)}{shown}", "wrong_type")
    return float(value)


def messages(field: str, value: Any) -> tuple[Message, ...]:
    """A conversation: a list of messages, or one message.

    Raises:
        FieldError: it is none.
    """
    if isinstance(value, dict) and is_messages(value):
        return (_message(field, value),)
    if not isinstance(value, list):
        checked_text(field, value)
        raise FieldError(field, f"expected a list of messages, found {type_name(value)}", "wrong_type")
    if not value:
        raise FieldError(field, "an empty list of messages", "empty_field")
    return tuple(_message(f"{field}[{place}]", item) for place, item in enumerate(value))


def is_messages(value: Any) -> bool:
    """Whether a value is meant as messages; their problems come later."""
    items = value if isinstance(value, list) else [value]
    return bool(items) and all(isinstance(item, dict) and ("role" in item or "from" in item) for item in items)


def text_or_messages(field: str, cell: str) -> Any:
    """What a cell of text holds: messages written as JSON, or the text itself.

    Raises:
        FieldError: it begins as messages do, and is not JSON: a list as Python prints it, or one that is cut.
    """
    try:
        value = json.loads(cell) if cell.lstrip()[:1] in ("[", "{") else None
    except (ValueError, RecursionError):
        if _LIKE_MESSAGES.match(cell):
            text = f"messages, but not as JSON ({shortened(cell, 40)}); json.dumps writes them so that they can be read"
            raise FieldError(field, text, "wrong_type") from None
        return cell
    parts = value if isinstance(value, list) else [value]
    return from_json(field, cell) if any(is_messages(part) for part in parts) else cell


def prompt_messages(field: str, value: Any) -> tuple[Message, ...]:
    """The turns before the responses; a text is the user's.

    Raises:
        FieldError: it is none, or ends with the assistant's turn.
    """
    if isinstance(value, str):
        return (Message("user", checked_text(field, value)),)
    turns = messages(field, value)
    if turns[-1].role == "assistant":
        raise FieldError(field, "its last message is the assistant's; the responses are to follow the user's", "roles")
    return turns


def response(field: str, value: Any) -> str:
    """The assistant's one turn, as text or as a message.

    Raises:
        FieldError: it is none.
    """
    if isinstance(value, str):
        return checked_text(field, value)
    turns = messages(field, value)
    if len(turns) != 1 or turns[0].role != "assistant":
        found = roles(turns[:6])
        raise FieldError(field, f"expected one message of the assistant, found the roles {found}", "roles")
    return answer(f"{field}[0]", turns[0])


def roles(turns: Sequence[Message]) -> str:
    """The roles of messages, for a message."""
    return ", ".join(printable(turn.role, 20) for turn in turns)


def answer(place: str, message: Message) -> str:
    """The text of a message that is trained on.

    Raises:
        FieldError: it holds more than text.
    """
    if message.others:
        raise FieldError(
            place, f"{listed(message.others)} would be lost: only the text of a response is trained on", "wrong_type"
        )
    return checked_text(f"{place}.content", message.content)


def tools(field: str, value: Any) -> tuple[Any, ...]:
    """Descriptions of tools: a list of objects, or the same as JSON text.

    Raises:
        FieldError: it is none.
    """
    if isinstance(value, str):
        value = from_json(field, value) if value.strip() else None
    if value in (None, "", [], {}):
        return ()
    if not isinstance(value, list) or not all(isinstance(tool, dict) for tool in value):
        raise FieldError(field, f"expected a list of objects, found {type_name(value)}", "wrong_type")
    _checked_inside(field, value)
    return tuple(value)


def _checked_inside(field: str, value: Any) -> None:
    """What a template may write has to be JSON of texts that can be encoded, however deep it lies."""
    waiting = [(value, 0)]
    while waiting:
        item, depth = waiting.pop()
        if depth > _DEPTH:
            raise FieldError(field, "nested too deeply", "wrong_type")
        if isinstance(item, str) and (_SURROGATE.search(item) or "\0" in item):
            raise FieldError(field, "a lone surrogate or U+0000 inside, which no encoding can write", "encoding")
        if isinstance(item, dict | list):
            inside = [*item.keys(), *item.values()] if isinstance(item, dict) else item
            waiting += [(part, depth + 1) for part in inside]
        elif not isinstance(item, str | int | float | None):
            raise FieldError(field, f"{type_name(item)} inside, which JSON cannot hold", "wrong_type")


def from_json(field: str, text: str) -> Any:
    """A value that a cell of text holds.

    Raises:
        FieldError: it is not JSON.
    """
    try:
        return STRICT.decode(text)
    except RefusedError as error:
        raise FieldError(field, str(error), "not_json") from None
    except (ValueError, RecursionError):
        raise FieldError(field, f"expected JSON, found {shortened(text, 40)}", "wrong_type") from None


class RefusedError(ValueError):
    """Valid for Python's parser, refused by ours."""


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        counts = Counter(key for key, _ in pairs)
        twice = next(key for key, count in counts.items() if count > 1)
        raise RefusedError(f"{shortened(twice)}: key stands twice in one object")
    return found


def _no_constant(name: str) -> Any:
    raise RefusedError(f"{name} is not JSON")


STRICT = json.JSONDecoder(object_pairs_hook=_unique_keys, parse_constant=_no_constant)
"""Python's parser, told to refuse what JSON does not have, and keys that would be lost."""


def _message(place: str, value: Any) -> Message:
    if isinstance(value, dict) and "from" in value and "value" in value and "role" not in value:
        role = value["from"]
        value = {**value, "role": _ROLES.get(role, role) if isinstance(role, str) else role, "content": value["value"]}
        del value["from"], value["value"]
    if not isinstance(value, dict) or "role" not in value or not ("content" in value or "tool_calls" in value):
        raise FieldError(
            place, f"expected a message with role and content, found {shortened(reprlib.repr(value), 40)}", "wrong_type"
        )
    others = {key: item for key, item in value.items() if key not in ("role", "content") and item not in (None, [], {})}
    unread = [key for key in others if key not in _OTHERS]
    if unread:
        raise FieldError(
            place, f"{shortened(unread[0], 30)} would be lost: a message has role and content", "wrong_type"
        )
    if others:
        _checked_inside(place, others)
    content = _joined(f"{place}.content", value.get("content"))
    if not (others.get("tool_calls") and content in (None, "")):
        checked_text(f"{place}.content", content)
    return Message(checked_text(f"{place}.role", value["role"]), content or "", others)


def _joined(field: str, content: Any) -> Any:
    """The text of a content written as a list of parts; anything else stays as it is."""
    if not isinstance(content, list) or not content:
        return content
    kinds = [part.get("type") if isinstance(part, dict) else None for part in content]
    other = next((kind for kind in kinds if kind != "text"), "text")
    if other != "text":
        raise FieldError(
            field, f"a part of type {shortened(str(other), 20)}; only text can be trained on", "wrong_type"
        )
    items = [item for part in content if isinstance(part, dict) for item in part.items()]
    if lost := [key for key, value in items if key not in ("type", "text") and value not in (None, [], {})]:
        raise FieldError(field, f"{shortened(str(lost[0]), 30)} would be lost: a part has type and text", "wrong_type")
    return "".join(checked_text(f"{field}[{place}].text", part.get("text")) for place, part in enumerate(content))
