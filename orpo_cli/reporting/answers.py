"""Answers to prompts on the screen: those of two models beside each other, below each other where it is narrow."""

from collections.abc import Sequence
from dataclasses import dataclass

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from orpo_cli.quoting import harmless

_WIDE = 100
_STYLES = ("green", "red")
"""The styles of the last answer to a prompt, and of the one before it."""


@dataclass(frozen=True)
class AnswersShown:
    """The answers to a prompt, one for each model."""

    prompt: str
    answers: tuple[str, ...]


def answers_table(rows: Sequence[AnswersShown], names: Sequence[str], width: float) -> RenderableType:
    """Return the answers to some prompts.

    Args:
        names: what the answers are called.
        width: that of the screen, in characters.
    """
    return _beside_each_other(rows, names) if width >= _WIDE else _below_each_other(rows, names)


def print_answers(rows: Sequence[AnswersShown], names: Sequence[str], console: Console) -> None:
    """Print the answers to some prompts; where no terminal reads them, as plain lines.

    One answer to one prompt is printed by itself, so that a program can take it.
    """
    if console.is_terminal:
        console.print(answers_table(rows, names, console.width))
        return
    is_alone = len(rows) == len(names) == 1
    for row in rows:
        named = zip(("prompt", *names), (row.prompt, *row.answers), strict=True)
        lines = row.answers if is_alone else [*(f"{name}: {text}" for name, text in named), ""]
        for line in lines:
            console.print(Text(harmless(line)), soft_wrap=True)


def _beside_each_other(rows: Sequence[AnswersShown], names: Sequence[str]) -> Table:
    table = Table(box=None, pad_edge=False, expand=True, show_header=True, padding=(0, 2, 1, 0))
    table.add_column("prompt", header_style="bold", ratio=2, overflow="fold")
    for name, style in _styled(names):
        table.add_column(name, header_style=style, ratio=3, overflow="fold")
    for row in rows:
        table.add_row(Text(harmless(row.prompt)), *map(_answer, row.answers))
    return table


def _below_each_other(rows: Sequence[AnswersShown], names: Sequence[str]) -> RenderableType:
    parts: list[RenderableType] = []
    for row in rows:
        table = Table.grid(padding=(0, 2, 0, 0))
        for (name, style), answer in zip(_styled(names), row.answers, strict=True):
            table.add_row(Text(name, style=style), _answer(answer))
        parts += [Text(harmless(row.prompt), style="bold", overflow="fold"), table, Text("")]
    return Group(*parts[:-1])


def _styled(names: Sequence[str]) -> list[tuple[str, str]]:
    return list(zip(names, reversed(_STYLES[: len(names)]), strict=True))


def _answer(answer: str) -> Text:
    return Text(harmless(answer) or "(nothing)", overflow="fold")
