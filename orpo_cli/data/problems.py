"""Gather the problems of a file's rows, the same one once with a count."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from orpo_cli.data.pairs import Problem, Source, lost_keys

SHOWN = 20
"""Different problems of a file that are kept."""

_PLACES = 4
_NUMBER = re.compile(r"0x[0-9a-f]+|\d+")


@dataclass(frozen=True)
class Repeated:
    """Hold a problem that some rows have.

    Args:
        places: (line, row) of the first of them, as in `Source`.
        count: the number of such rows.
    """

    text: str
    places: Sequence[tuple[int, int]]
    count: int

    def shown(self, file: str) -> str:
        """Return it as a message: the first place, the problem, and where it stands again."""
        first, *others = (Source(file, *place) for place in self.places)
        if not others:
            return f"{first}: {self.text}"
        numbers = ", ".join(f"{place.row or place.line}" for place in others)
        ending = ", ..." if self.count > len(self.places) else ""
        return f"{first}: {self.text} ({self.count - 1} more: {'row' if first.row else 'line'} {numbers}{ending})"


class Problems:
    """Count problems, and keep the first different ones; those that differ only in numbers are the same.

    All keys of messages that would be lost are one problem, so that one setting accepts them.
    """

    def __init__(self) -> None:
        self.count = 0
        self._kept: dict[str, Repeated] = {}
        self._lost_keys: dict[str, None] = {}

    def add(self, found: Iterable[Problem]) -> None:
        """Count some more problems."""
        for problem in found:
            self.count += 1
            self._lost_keys |= dict.fromkeys(problem.keys)
            key = "lost keys" if problem.keys else _NUMBER.sub("0", problem.text)
            before = self._kept.get(key, Repeated(problem.text, (), 0))
            text = lost_keys(problem.source, self._lost_keys).text if problem.keys else before.text
            if before.count or len(self._kept) < SHOWN:
                places = (*before.places, (problem.source.line, problem.source.row))[:_PLACES]
                self._kept[key] = Repeated(text, places, before.count + 1)

    @property
    def kept(self) -> list[Repeated]:
        """Return the different problems, in the order of their first rows."""
        return list(self._kept.values())

    def shown(self, file: str) -> list[str]:
        """Return the different problems as messages."""
        return [kept.shown(file) for kept in self.kept]

    def report(self, file: str) -> str:
        """Return the message that ends a run which does not leave such rows out."""
        rows = "1 invalid row" if self.count == 1 else f"{self.count} invalid rows"
        more = "" if self.count == sum(kept.count for kept in self.kept) else f" (the first {SHOWN} problems are shown)"
        head = f"{rows}{more}; data.on_bad_row=skip leaves them out and lists them"
        return "\n".join([head, *self.shown(file)])
