"""Read messages, responses and tools as people write them, and return them in one form whatever their dialect."""

import json
import re
import reprlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from itertools import chain
from typing import Any

from orpo_cli.data.pairs import LostKeysError, Message, ProblemError
from orpo_cli.data.rows.strict_json import from_json
from orpo_cli.data.shapes.values import check_inside, checked_text, type_name
from orpo_cli.quoting import printable, shortened

_USER = ("user", "human", "prompter")
_ASSISTANT = ("assistant", "gpt", "model", "bot", "ai", "chatgpt")
_TOOL = ("tool", "function", "observation", "ipython", "function_response", "tool_response", "tool_result")
_ROLES = {
    **dict.fromkeys(_USER, "user"),
    **dict.fromkeys(_ASSISTANT, "assistant"),
    **dict.fromkeys(_TOOL, "tool"),
    **{role: role for role in ("system", "developer")},
}
"""Role in small letters, in the dialects of chat files -> the role that chat templates know."""

_CALL = ("function_call", "tool_call", "tool_calls")
"""Roles of messages whose text is a call of a tool."""

_THOUGHTS = ("reasoning_content", "reasoning", "thinking")
_READ = ("name", "tool_calls", "tool_call_id", "function_call", *_THOUGHTS)
"""Keys of a message, beside role and content, that are read."""

MEANINGLESS = (
    "id", "uuid", "message_id", "parent_id", "turn", "turn_id", "turn_identifier", "index", "timestamp", "created_at",
    "country", "state", "hashed_ip", "header", "language", "lang", "redacted", "toxic", "model", "finish_reason",
)  # fmt: skip
"""Keys of a message that say nothing to a model; they are counted and left out."""

_SAID = ("content", "tool_calls", "function_call")
"""Keys of which a message has one at least."""

_LIKE_MESSAGES = re.compile(r"""\s*\[?\s*\{\s*(["'])(role|content|from|value)\1\s*:""")
_NOTHING: tuple[Any, ...] = (None, [], {})


def messages(field: str, value: Any, ignored: Collection[str] = MEANINGLESS) -> tuple[Message, ...]:
    """Return a conversation given as a list of messages, or as one message.

    Args:
        ignored: the keys of a message that are left out.
    Raises:
        ProblemError: if the value is neither.
    """
    if isinstance(value, dict) and is_messages(value):
        return (_message(field, value, ignored),)
    if not isinstance(value, list):
        checked_text(field, value)
        raise ProblemError(f"{field}: expected a list of messages, found {type_name(value)}", "wrong_type")
    if not value:
        raise ProblemError(f"{field}: an empty list of messages", "empty_field")
    found = (_message(f"{field}[{place}]", item, ignored) for place, item in enumerate(value) if not _is_empty(item))
    return tuple(found) or (_message(f"{field}[0]", value[0], ignored),)


def is_messages(value: Any) -> bool:
    """Return whether a value is meant as messages, valid or not."""
    items = value if isinstance(value, list) else [value]
    return bool(items) and all(isinstance(item, dict) and ("role" in item or "from" in item) for item in items)


def ignored_keys(value: Any, ignored: Collection[str]) -> Iterator[str]:
    """Yield the keys of the messages in a value that are left out."""
    return (key for key in _filled_keys(value) if key in ignored)


def lost_keys(value: Any, ignored: Collection[str]) -> Iterator[str]:
    """Yield the keys of the messages in a value that nothing reads."""
    return (key for key in _filled_keys(value) if key not in _READ and key not in ignored)


def _filled_keys(value: Any) -> Iterator[str]:
    """Yield the keys beside role and content that say something, of messages and of lists of them."""
    parts = value if isinstance(value, list) else [value]
    for message in chain.from_iterable(part if isinstance(part, list) else [part] for part in parts):
        if isinstance(message, dict) and is_messages(message):
            message = _in_usual_keys(message)
            written = ("role", "content") if "role" in message else ("from", "value")
            yield from (key for key, item in message.items() if key not in written and item not in _NOTHING)


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


def prompt_messages(field: str, value: Any, ignored: Collection[str] = MEANINGLESS) -> tuple[Message, ...]:
    """Return the turns before the responses; a text is one turn of the user.

    Raises:
        ProblemError: if the value is neither text nor messages, or ends with the assistant's turn.
    """
    if isinstance(value, str):
        return (Message("user", checked_text(field, value)),)
    turns = messages(field, value, ignored)
    if turns[-1].role == "assistant":
        said = "its last message is the assistant's; the responses are to follow the user's"
        raise ProblemError(f"{field}: {said}", "roles")
    return turns


def response(field: str, value: Any, ignored: Collection[str] = MEANINGLESS) -> Message:
    """Return the assistant's one turn, given as text or as a message.

    Raises:
        ProblemError: if the value is neither.
    """
    if isinstance(value, str):
        return Message("assistant", checked_text(field, value))
    turns = messages(field, value, ignored)
    if len(turns) != 1 or turns[0].role != "assistant":
        found = roles(turns[:6])
        hint = "; the turns that both responses share belong into the prompt" if len(turns) > 1 else ""
        raise ProblemError(f"{field}: expected one message of the assistant, found the roles {found}{hint}", "roles")
    return turns[0]


def responses(field: str, value: Any, ignored: Collection[str] = MEANINGLESS) -> list[Message]:
    """Return the responses of a value that holds one, or a list of them: texts, or one message each.

    Raises:
        ProblemError: if the value holds neither.
    """
    is_list = isinstance(value, list) and len(value) > 0
    if is_list and (not is_messages(value) or all(role_of(item) == "assistant" for item in value)):
        return [response(f"{field}[{place}]", item, ignored) for place, item in enumerate(value)]
    return [response(field, value, ignored)]


def roles(turns: Sequence[Message]) -> str:
    """List the roles of some messages."""
    return ", ".join(printable(turn.role, 20) for turn in turns)


def tools(field: str, value: Any) -> tuple[Any, ...]:
    """Return descriptions of tools, given as a list of objects, or as the same in JSON.

    A key whose value is null is left out, since tables fill missing keys with nulls.

    Raises:
        ProblemError: if the value is neither.
    """
    if isinstance(value, str):
        value = from_json(field, value) if value.strip() else None
    if value in (None, "", [], {}):
        return ()
    if not isinstance(value, list) or not all(isinstance(tool, dict) for tool in value):
        raise ProblemError(f"{field}: expected a list of objects, found {type_name(value)}", "wrong_type")
    check_inside(field, value)
    return tuple(_without_nulls(field, value))


def _without_nulls(field: str, value: Any) -> Any:
    """Return a JSON value whose objects have no keys with null."""

    def kept(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: kept(item) for key, item in value.items() if item is not None}
        return [kept(item) for item in value] if isinstance(value, list) else value

    try:
        return kept(value)
    except RecursionError:
        raise ProblemError(f"{field}: nested too deeply", "wrong_type") from None


def role_of(value: Any) -> str | None:
    """Return the role of a message as chat templates know it; one that no dialect has stays as it is."""
    given = value.get("role", value.get("from")) if isinstance(value, dict) else None
    return _ROLES.get(given.strip().lower(), given) if isinstance(given, str) else None


def _is_empty(value: Any) -> bool:
    """Return whether a message is a system message without a text, which says nothing."""
    return role_of(value) == "system" and all(
        item in ("", None) for key, item in value.items() if key not in ("role", "from", *MEANINGLESS)
    )


def _in_usual_keys(value: Any) -> Any:
    """Return a message with role and content, where it has from and value, or role and text, in their place."""
    for role, content in (("from", "value"), ("role", "text")):
        if isinstance(value, dict) and value.keys() & {"role", "content", role, content} == {role, content}:
            others = {key: item for key, item in value.items() if key not in (role, content)}
            return {"role": value[role], "content": value[content], **others}
    return value


def _message(place: str, value: Any, ignored: Collection[str]) -> Message:
    value = _in_usual_keys(value)
    if not isinstance(value, dict) or "role" not in value or value.keys().isdisjoint(_SAID):
        found = shortened(reprlib.repr(value), 40)
        raise ProblemError(f"{place}: expected a message with role and content, found {found}", "wrong_type")
    given = checked_text(f"{place}.role", value["role"])
    others = {key: item for key, item in value.items() if key not in ("role", "content") and item not in _NOTHING}
    if others:
        others = _read(place, others, ignored)
    content = _joined(f"{place}.content", value.get("content"))
    if given.strip().lower() in _CALL:
        calls = _calls(place, _call_of(place, given, content), ignored)
        return Message("assistant", "", {**others, "tool_calls": calls})
    role = _ROLES.get(given.strip().lower(), given)
    if not ((others.get("tool_calls") or role == "tool") and content in (None, "")):
        checked_text(f"{place}.content", content)
    return Message(role, content or "", others)


def _read(place: str, others: Mapping[str, Any], ignored: Collection[str]) -> dict[str, Any]:
    """Return the keys of a message that chat templates read, by the names they have there."""
    if lost := [key for key in others if key not in _READ and key not in ignored]:
        raise LostKeysError(place, lost)
    kept = {key: item for key, item in others.items() if key not in ignored}
    check_inside(place, kept)
    thoughts = [key for key in _THOUGHTS if kept.get(key, "") != "" or kept.pop(key, None)]
    if thoughts:
        kept["reasoning_content"] = checked_text(f"{place}.{thoughts[0]}", kept.pop(thoughts[0]))
    if "function_call" in kept and "tool_calls" in kept:
        raise ProblemError(f"{place}: function_call and tool_calls: a message has its calls once", "wrong_type")
    calls = kept.pop("tool_calls", kept.pop("function_call", None))
    return kept if calls is None else {**kept, "tool_calls": _calls(place, calls, ignored)}


def _call_of(place: str, role: str, content: Any) -> Any:
    """Return the call, or calls, that the text of a message holds as JSON."""
    try:
        return json.loads(content) if isinstance(content, str) else content
    except (ValueError, RecursionError):
        shown = shortened(content, 40)
        expected = 'expected a call as JSON, {"name": ..., "arguments": {...}}'
        raise ProblemError(f"{place}: {printable(role, 20)}: {expected}, found {shown}", "wrong_type") from None


_ARGUMENTS = ("arguments", "parameters", "args", "kwargs", "input", "params")
"""Keys of a call under which its arguments stand, by dialect."""

_OF_CALL = ("id", "type", "index", "name", "function", *_ARGUMENTS)


def _calls(place: str, given: Any, ignored: Collection[str]) -> list[dict[str, Any]]:
    """Return the calls of tools, each as {"type": "function", "function": {"name", "arguments"}}."""
    calls = []
    for number, call in enumerate(given if isinstance(given, list) else [given]):
        where = f"{place}.tool_calls[{number}]"
        inner = call.get("function", call) if isinstance(call, dict) else None
        if not isinstance(inner, dict) or not isinstance(inner.get("name"), str):
            found = shortened(reprlib.repr(call), 40)
            raise ProblemError(f"{where}: expected a call with a name and arguments, found {found}", "wrong_type")
        parts = {key: item for part in (call, inner) for key, item in part.items() if item not in (*_NOTHING, "")}
        if lost := [key for key in parts if key not in _OF_CALL and key not in ignored]:
            key = shortened(str(lost[0]), 30)
            raise ProblemError(f"{where}: {key} would be lost: a call has a name and arguments", "wrong_type")
        named = [key for key in _ARGUMENTS if key in parts]
        if len(named) > 1:
            raise ProblemError(f"{where}: {named[0]} and {named[1]}: a call has its arguments once", "wrong_type")
        outer = {key: item for key, item in call.items() if key in ("id", "type") and item is not None}
        name = checked_text(f"{where}.name", inner["name"])
        function = {"name": name, "arguments": _arguments(where, parts[named[0]] if named else None)}
        calls.append({"type": "function", **outer, "function": function})
    return calls


def _arguments(where: str, given: Any) -> dict[str, Any]:
    if isinstance(given, str):
        given = from_json(f"{where}.arguments", given) if given.strip() else {}
    if given is None:
        return {}
    if not isinstance(given, dict):
        raise ProblemError(f"{where}.arguments: expected an object, found {type_name(given)}", "wrong_type")
    found: dict[str, Any] = _without_nulls(f"{where}.arguments", given)
    return found


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
    if lost := [key for key, value in items if key not in ("type", "text") and value not in _NOTHING]:
        key = shortened(str(lost[0]), 30)
        raise ProblemError(f"{field}: {key} would be lost: a part has type and text", "wrong_type")
    return "".join(checked_text(f"{field}[{place}].text", part.get("text")) for place, part in enumerate(content))
