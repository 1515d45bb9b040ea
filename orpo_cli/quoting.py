"""Other people's text inside messages: errors of libraries in one line, names cut short, nothing a terminal obeys."""

import json
from collections.abc import Iterable, Sequence


def first_line(error: BaseException) -> str:
    """What an error of another library says first, or its kind where it says nothing."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[0] if lines else type(error).__name__)[:300]


def in_one_line(error: BaseException) -> str:
    """What an error of another library says whose reason does not stand in its first line."""
    return " ".join(str(error).split())[:300] or type(error).__name__


def first_few(names: Sequence[str]) -> str:
    """Three, and how many more there are."""
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def shortened(text: str, limit: int = 60) -> str:
    """`text` escaped and cut for a message."""
    cut = text if len(text) <= limit else text[: limit - 3] + "..."
    return json.dumps(cut)


def printable(text: str, limit: int = 200) -> str:
    """The first line of a text of someone else's, without what a terminal would not print as it is."""
    line = next((line for line in text.splitlines() if line.strip()), "")[:limit]
    return escaped(line)


def escaped(text: str) -> str:
    """A text on one line, without what a terminal would obey."""
    return (
        text if text.isprintable() else "".join(sign if sign.isprintable() else shortened(sign)[1:-1] for sign in text)
    )


def harmless(text: str) -> str:
    """A text in its lines, without what a terminal would obey."""
    return "\n".join(map(escaped, text.split("\n")))


def listed(keys: Iterable[str]) -> str:
    """The first few keys for a message."""
    return ", ".join(shortened(str(key), 30) for key in list(keys)[:8])
