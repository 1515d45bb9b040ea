"""Other people's text inside messages and commands: errors of libraries in one line, names cut short, values quoted."""

import json
import re
import shlex
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any


def first_line(error: BaseException) -> str:
    """Return the first line of another library's error, or its class if it says nothing."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[0] if lines else type(error).__name__)[:300]


def in_one_line(error: BaseException) -> str:
    """Return all lines of another library's error as one, for errors whose first line does not give the reason."""
    return " ".join(str(error).split())[:300] or type(error).__name__


def first_few(names: Sequence[str]) -> str:
    """Return the first three names and how many more there are."""
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def shortened(text: str, limit: int = 60) -> str:
    """Return a text cut to `limit` characters, in quotes and escaped."""
    cut = text if len(text) <= limit else text[: limit - 3] + "..."
    return json.dumps(cut)


def listed(keys: Iterable[str]) -> str:
    """Return the first eight keys of a row, quoted, and how many more there are."""
    names = [shortened(str(key), 30) for key in keys]
    return ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")


def printable(text: str, limit: int = 200) -> str:
    """Return the first line of a text, cut and escaped."""
    line = next((line for line in text.splitlines() if line.strip()), "")[:limit]
    return escaped(line)


def escaped(text: str) -> str:
    """Return a text as one line in which whatever a terminal would not print is escaped."""
    return (
        text if text.isprintable() else "".join(sign if sign.isprintable() else shortened(sign)[1:-1] for sign in text)
    )


def harmless(text: str) -> str:
    """Return a text with its line breaks, in which whatever else a terminal would not print is escaped."""
    return "\n".join(map(escaped, text.split("\n")))


def override_value(text: str) -> str:
    """Quote a text as the value of an override, in Hydra's grammar with OmegaConf's inside it.

    Backslashes are literal except before `${` (which must not interpolate), before a quote, and at the end.
    """
    return with_references(re.sub(r"(\\*)\$\{", r"\1\1\\${", text))


def with_references(text: str) -> str:
    """Quote a text as the value of an override whose `${...}` are references to other keys."""
    for special, escaped in (("'", r"\\'"), (r"\Z", "")):
        text = re.sub(rf"(\\*){special}", rf"\1\1{escaped}", text)
    return f"'{text}'"


def override_of(value: Any, text: Callable[[str], str] = override_value) -> str:
    """Return a value as an override has it in Hydra's grammar.

    Args:
        text: how a text is written.
    """
    if isinstance(value, Mapping):
        return f"{{{','.join(f'{key}:{override_of(item, text)}' for key, item in value.items())}}}"
    if isinstance(value, list | tuple):
        return f"[{','.join(override_of(item, text) for item in value)}]"
    if isinstance(value, str):
        return text(value)
    return json.dumps(value) if value is None or isinstance(value, bool) else repr(value)


def evaluate_command(run: Path, on_own_pairs: bool) -> str:
    """Return the command that scores a run on the pairs that it held out, or on a file still to be named."""
    return shlex.join(["orpo", "evaluate", f"model={run}", *([] if on_own_pairs else ["data=FILE"])])


def chat_command(run: Path) -> str:
    """Return the command that talks with the model of a run."""
    return shlex.join(["orpo", "chat", str(run)])


def export_command(run: Path) -> str:
    """Return the command that exports the model of a run, into a folder that is still to be named."""
    return shlex.join(["orpo", "export", str(run), "to=DIR"])


def resume_command(folder: Path, overrides: Sequence[str] = ()) -> str:
    """Return the command that resumes the run or the sweep in a folder, as it is typed in a shell."""
    return shlex.join(["orpo", "resume", str(folder), *overrides])
