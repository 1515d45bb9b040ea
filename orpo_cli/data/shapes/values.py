"""Check the values of a row's fields: texts and numbers. A problem names the field it is in."""

import json
import re
import reprlib
import sys
import unicodedata
from typing import Any

from orpo_cli.data.pairs import ProblemError
from orpo_cli.quoting import printable, shortened

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
_INVISIBLE = ("Cc", "Cf", "Zl", "Zp", "Zs")
"""Categories of Unicode that leave no mark: controls, joiners and marks of direction, blanks."""


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
        advice = "; json.dumps makes a text of it, if the model is to write it" if isinstance(text, dict | list) else ""
        raise ProblemError(f"{field}: {expected}, found {type_name(text)}{shown}{advice}", "wrong_type")
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


def checked_score(field: str, value: Any) -> float:
    """Return a score or rank, which judges that are models often write as text.

    Raises:
        ProblemError: if the value is neither a finite number nor the text of one.
    """
    try:
        number = float(value) if isinstance(value, str) else value
    except ValueError:
        number = value
    return checked_number(field, number)


def check_inside(field: str, value: Any) -> None:
    """Refuse what a chat template could not write: what is not JSON, or a text that no encoding can write.

    Raises:
        ProblemError: if there is such a value inside.
    """
    try:
        text = json.dumps(value, ensure_ascii=False)
    except RecursionError:
        raise ProblemError(f"{field}: nested too deeply", "wrong_type") from None
    except (TypeError, ValueError) as error:
        raise ProblemError(f"{field}: cannot be written as JSON: {printable(str(error))}", "wrong_type") from None
    if _SURROGATE.search(text) or _ESCAPED_NUL.search(text):
        said = "a lone surrogate or U+0000 inside, which no encoding can write"
        raise ProblemError(f"{field}: {said}", "encoding")
