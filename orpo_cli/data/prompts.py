"""Read the prompts that a model is to answer: lines of text, or rows that hold a text or a conversation."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orpo_cli.data.pairs import Message, Problem, ProblemError, Row, Source
from orpo_cli.data.rows import text_lines
from orpo_cli.data.rows.readers import read_rows
from orpo_cli.data.rows.sources import KINDS, DataFile, data_file, opened
from orpo_cli.data.shapes import messages
from orpo_cli.data.shapes.columns import value_in
from orpo_cli.data.shapes.values import checked_text, type_name
from orpo_cli.errors import DataError, InputNotFoundError
from orpo_cli.quoting import listed

_TEXT = (".txt", ".text", ".md")
_LIKE_JSON = re.compile(rb'\s*(\{|\[\s*[\[{"])')
_HEAD_BYTES = 1000
_SHOWN = 5


@dataclass(frozen=True)
class Prompt:
    """Hold what is asked: a text, or a conversation whose next turn is the assistant's.

    Args:
        given: the text or the messages.
        tools: descriptions of the tools that the assistant may call.
    """

    given: str | tuple[Message, ...]
    tools: tuple[Any, ...] = ()

    @property
    def is_text(self) -> bool:
        """Return whether it is a text."""
        return isinstance(self.given, str)

    @property
    def messages(self) -> tuple[Message, ...]:
        """Return the conversation; a text is one turn of the user."""
        return (Message("user", self.given),) if isinstance(self.given, str) else self.given

    @property
    def text(self) -> str:
        """Return the text; of a conversation the contents without roles, a blank line between turns."""
        return "\n\n".join(turn.content for turn in self.messages)

    @property
    def as_json(self) -> str | list[dict[str, Any]]:
        """Return the text, or the messages as objects."""
        if isinstance(self.given, str):
            return self.given
        return [{"role": turn.role, "content": turn.content, **turn.others} for turn in self.given]


def to_prompt(value: Any, column: str = "prompt") -> Prompt:
    """Return the prompt that a value stands for: a text, messages, or an object that holds either.

    Args:
        column: the key of an object that holds it; `messages` is read too.
    Raises:
        ProblemError: if it holds none.
    """
    tools: tuple[Any, ...] = ()
    if isinstance(value, Mapping):
        if messages.is_messages(value):
            said = 'a message by itself; a conversation is written as {"messages": [...]}'
            raise ProblemError(said, "wrong_type")
        found = {name: value_in(value, name) for name in (column, "messages")}
        name = next((name for name, inside in found.items() if inside is not None), None)
        if name is None:
            raise ProblemError(f"expected {column} or messages, found {listed(map(str, value))}", "missing_field")
        tools = messages.tools("tools", value.get("tools"))
        column, value = name, found[name]
        if isinstance(value, str):
            value = messages.text_or_messages(column, value)
    if isinstance(value, str):
        return Prompt(checked_text(column, value), tools)
    if not isinstance(value, list):
        raise ProblemError(f"{column}: expected a text or messages, found {type_name(value)}", "wrong_type")
    return Prompt(messages.prompt_messages(column, value), tools)


def prompts_of(values: Sequence[Any]) -> list[Prompt]:
    """Return the prompts of some texts, conversations or objects that hold one.

    Raises:
        DataError: if one of them holds none.
    """
    try:
        return [to_prompt(value) for value in values]
    except ProblemError as error:
        raise DataError(f"prompts: {error}") from None


def read_prompts(path: Path, column: str = "prompt", name: str | None = None) -> list[Prompt]:
    """Read a file of prompts: JSON, CSV and tables by their rows, other text line by line.

    Args:
        column: the key of a row that holds its prompt.
        name: the name of the file in messages.
    Raises:
        InputNotFoundError: if there is no such file.
        DataError: if it cannot be read, holds no prompt, or a row without one.
    """
    if not path.is_file():
        raise InputNotFoundError(f"prompts={path}: no such file")
    file = data_file(path)
    file = DataFile(name or file.name, file.path, file.kind, file.packing)
    made: list[Prompt] = []
    problems: list[Problem] = []
    for row in _lines(file) if _is_text(file) else read_rows(file):
        found = row if isinstance(row, Problem) else _made(row, column)
        problems.append(found) if isinstance(found, Problem) else made.append(found)
    if problems:
        more = f"\n({len(problems) - _SHOWN} more)" if len(problems) > _SHOWN else ""
        raise DataError("\n".join(map(str, problems[:_SHOWN])) + more)
    if not made:
        raise DataError(f"{file.name}: no prompts")
    return made


def _made(row: Row, column: str) -> Prompt | Problem:
    try:
        return to_prompt(row.value, column)
    except ProblemError as error:
        return error.problem(row.source)


def _is_text(file: DataFile) -> bool:
    """Return whether a file is read line by line; where its name does not say so, by how it begins."""
    suffixes = [suffix.lower() for suffix in file.path.suffixes]
    if any(suffix in suffixes for suffix in (*KINDS, *_TEXT)):
        return not any(suffix in suffixes for suffix in KINDS)
    with opened(file) as (stream, _):
        return _LIKE_JSON.match(text_lines.without_bom(stream.read(_HEAD_BYTES))) is None


def _lines(file: DataFile) -> Iterator[Row | Problem]:
    with opened(file) as (stream, _):
        for block in text_lines.line_blocks(stream, file.name):
            for line in text_lines.lines_of(block, file.name):
                yield line if isinstance(line, Problem) else Row(Source(file.name, line.number), line.text)
