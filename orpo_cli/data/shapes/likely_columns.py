"""Name the columns of a row that most likely hold what is missing, for the advice in messages."""

import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any

from orpo_cli.data.shapes.columns import value_in
from orpo_cli.data.shapes.messages import is_messages
from orpo_cli.quoting import listed

_TEXT_KEYS = ("text", "content", "answer", "response", "output", "completion", "generation", "generated_text", "value")
"""Keys of an object that hold its text, where it has other texts too."""


_LIKE_TRANSCRIPT = re.compile(r"\s*(human|user)\s*:", re.IGNORECASE)


def _is_said(value: Any) -> bool:
    return (isinstance(value, str) and bool(value.strip())) or (isinstance(value, list | dict) and is_messages(value))


def _are_said(value: Any) -> bool:
    return isinstance(value, list) and len(value) > 1 and not is_messages(value) and all(map(_is_said, value))


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) or (
        isinstance(value, str) and re.fullmatch(r"-?\d+(\.\d+)?", value) is not None
    )


def _are_numbers(value: Any) -> bool:
    return isinstance(value, list) and len(value) > 1 and all(map(_is_number, value))


def _is_verdict(value: Any) -> bool:
    return _is_number(value) or (isinstance(value, str) and 0 < len(value) < 20)


def _words(*words: str) -> re.Pattern[str]:
    """Return a pattern of names that have one of these words between `_`, `-` and `.`."""
    return re.compile(rf"(?i)(?:^|[_.-])(?:{'|'.join(words)})(?:$|[_.-])")


_LIKELY: dict[str, tuple[re.Pattern[str], Callable[[Any], bool]]] = {
    "prompt": (_words("prompt", "question", "query", "instruction", "input", "context", "conversations?"), _is_said),
    "chosen": (
        _words("chosen", "accepted", "pos(itive)?", "better", "best", "(?<!non.)preferred", "win(ner|ning)?", "good"),
        _is_said,
    ),
    "rejected": (
        _words("reject(ed)?", "neg(ative)?", "worse", "worst", "(dis|non.)preferred", "los(er|ing|es?|t)", "bad"),
        _is_said,
    ),
    "responses": (
        _words("(response|completion|answer|generation|candidate|output|choice)s?(_text)?", "replies"), _are_said
    ),
    "scores": (_words("(\\w+_)?(score|rating|reward|grade|star)s?"), _are_numbers),
    "ranking": (_words("rank(s|ing)?", "places?"), _are_numbers),
    "winner": (
        _words("winner", "won", "preference", "preferred", "label", "better(_\\w+)?", "verdict", "choice"), _is_verdict
    ),
}  # fmt: skip
"""Field -> the names that a column of it may have, and whether a value may be one."""


def what_would_do(
    row: Mapping[str, Any], field: str, needed: Sequence[str], read: Mapping[str, str], known: Collection[str]
) -> str:
    """Return the keys of a row that lacks a field, and the settings by which it would be read.

    Args:
        needed: the fields that the row has to have.
        read: field -> column, for the fields that its shape has.
        known: the columns of all shapes.
    """
    keys = f"the row has {listed(row) or 'no keys at all'}"
    likely = _settings(row, field, needed, read, known)
    sides = [value_in(row, likely.get(name, name)) for name in ("chosen", "rejected")]
    if field == "prompt" and any(isinstance(side, str) and _LIKE_TRANSCRIPT.match(side) for side in sides):
        return f"{keys}; transcripts have turns of `Human:` and `Assistant:` with a blank line before each"
    if not likely:
        return keys
    settings = " ".join(f"data.columns.{name}={column}" for name, column in likely.items())
    advice = f"{keys}; {settings} {'reads another column' if len(likely) == 1 else 'read other columns'}"
    responses = likely.get("responses", "responses")
    if likely.get("scores") == "NAME" and len(value_in(row, responses)) == 2:
        free = " data.columns.responses=null" if responses == "responses" else ""
        prompt = f" data.columns.prompt={likely['prompt']}" if "prompt" in likely else ""
        keys = f"data.format=alpaca{prompt} data.columns.chosen={responses}{free}"
        advice += f"; {keys} takes the first of the two as the better"
    return advice


def _settings(
    row: Mapping[str, Any], field: str, needed: Sequence[str], read: Mapping[str, str], known: Collection[str]
) -> dict[str, str]:
    """Return field -> column, or NAME where nothing tells it, for the columns to set."""
    missing = [name for name in dict.fromkeys(needed) if value_in(row, read.get(name, name)) is None]
    found = _likely_columns(row, missing, [column for name, column in read.items() if name not in missing])
    inside = {name: key for name in needed if (key := text_key(value_in(row, read.get(name, name))))}
    likely = {
        **{name: column for name, column in found.items() if read.get(name, name) != column},
        **{name: f"{read[name]}.{key}" for name, key in inside.items()},
    }
    sides = [value_in(row, likely.get(name, name)) for name in ("chosen", "rejected")]
    if field == "prompt" and all(isinstance(side, list) and len(side) > 1 and is_messages(side) for side in sides):
        return {name: column for name, column in likely.items() if name != "prompt"}
    others_do = field != "prompt" and not found.keys() <= set(missing)  # as a ranking has no chosen
    if field not in found and not others_do and any(name not in known for name in row):
        return {field: "NAME", **likely}
    return likely


def _likely_columns(row: Mapping[str, Any], missing: Sequence[str], taken: Collection[str]) -> dict[str, str]:
    """Return field -> column for what would have a row read, as far as the names and values of its keys tell.

    Args:
        missing: the fields that are missing; where chosen is, a ranking or a verdict may stand for it.
        taken: the columns that hold other fields.
    """
    places = {name: value for name, value in _places(row) if name not in taken}
    found = _found(places, missing)
    sides = {"chosen", "rejected"} & found.keys()
    if "chosen" in missing and len(sides) < 2:
        compared = _numbered(row, places) if sides else _ranked(places) or _numbered(row, places)
        if compared or not sides:
            found = {**_found(places, [field for field in missing if field == "prompt"]), **compared}
    return found


def text_key(value: Any) -> str | None:
    """Return the key that holds the text of an object, or of the objects of a list; None where it is no such object."""
    first = value[0] if isinstance(value, list) and value else value
    if not isinstance(first, dict) or first.keys() & {"role", "from", "speaker", "author"}:
        return None
    texts = [key for key, item in first.items() if _is_said(item)]
    return next((key for key in _TEXT_KEYS if key in texts), texts[0] if len(texts) == 1 else None)


def _places(row: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yield the columns of a row and those inside objects, as a.b, with their values."""
    for key, value in row.items():
        yield key, value
        if isinstance(value, dict):
            yield from ((f"{key}.{inner}", item) for inner, item in value.items())
        elif isinstance(value, list) and value and all(isinstance(item, dict) for item in value):
            yield from ((f"{key}.{inner}", [item.get(inner) for item in value]) for inner in value[0])


def _found(places: Mapping[str, Any], fields: Sequence[str]) -> dict[str, str]:
    found: dict[str, str] = {}
    for field in fields:
        if field not in _LIKELY:
            continue
        pattern, fits = _LIKELY[field]
        names = [name for name, value in places.items() if pattern.search(name) and fits(value)]
        texts = [name for name in names if name.rpartition(".")[2] in _TEXT_KEYS]
        if len(names) == 1 or len(texts) == 1:
            found[field] = texts[0] if len(texts) == 1 else names[0]
    return found


def _ranked(places: Mapping[str, Any]) -> dict[str, str]:
    """Return the columns of responses and their scores, or ranks; none without responses."""
    found = _found(places, ("responses", "scores", "ranking"))
    if "responses" not in found:
        return {}
    return found if len(found) > 1 else {**found, "scores": "NAME"}


_NEXT = {"0": "1", "1": "2", "a": "b", "A": "B"}


def _numbered(row: Mapping[str, Any], places: Mapping[str, Any]) -> dict[str, str]:
    """Return the columns of two responses whose names differ in their last sign, and of the verdict on them."""
    for first in row:
        second = first[:-1] + _NEXT.get(first[-1:], "")
        if first[-1:] in _NEXT and second in row and _is_said(row[first]) and _is_said(row[second]):
            responses = {"response_a": first, "response_b": second}
            winner = _found(places, ("winner",)).get("winner")
            scores = {} if winner else _numbered_scores(row, first[-1:])
            return {**responses, **(scores or {"winner": winner or "NAME"})}
    return {}


def _numbered_scores(row: Mapping[str, Any], sign: str) -> dict[str, str]:
    """Return the columns of a score of each of two responses, which end in the same signs as these."""
    pattern, _ = _LIKELY["scores"]
    for first in row:
        second = first[:-1] + _NEXT[sign]
        is_score = first[-1:] == sign and pattern.search(first[:-1].rstrip("_-."))
        if is_score and second in row and _is_number(row[first]) and _is_number(row[second]):
            return {"score_a": first, "score_b": second}
    return {}
