"""Curves of Braille dots, two by four in a character, with a scale; solid or dashed, so that no colour is needed."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from rich.text import Text

_BITS = ((0x01, 0x02, 0x04, 0x40), (0x08, 0x10, 0x20, 0x80))
_BLANK = 0x2800
_MOST_POINTS = 2000
_LABEL = 8
"""The characters that the scale takes."""

Point = tuple[float, float]


@dataclass
class Trace:
    """The points of a curve as they come; where there are many, neighbours become their mean."""

    points: list[Point] = field(default_factory=list)
    _waiting: list[Point] = field(default_factory=list)
    _together: int = 1

    def add(self, x: float, y: float) -> None:
        """Add a point; one that is not finite is left out."""
        if not math.isfinite(y):
            return
        self._waiting.append((x, y))
        if len(self._waiting) < self._together:
            return
        self.points.append(_mean(self._waiting))
        self._waiting.clear()
        if len(self.points) >= _MOST_POINTS:
            self.points = [_mean(self.points[i : i + 2]) for i in range(0, len(self.points), 2)]
            self._together *= 2


@dataclass(frozen=True)
class Curve:
    """What is drawn of a trace: its name, its colour, and whether it is dashed."""

    name: str
    points: Sequence[Point]
    style: str
    is_dashed: bool = False

    @property
    def legend(self) -> str:
        """Return its name beside a piece of its line."""
        return f"{'⠒ ⠒' if self.is_dashed else '⠒⠒⠒'} {self.name}"


def four_digits(value: float) -> str:
    """Return a number with four significant digits, without a needless exponent."""
    if value == 0:
        return "0"
    return f"{value:.3e}" if abs(value) < 1e-3 or abs(value) >= 1e5 else f"{value:.4g}"


def plot(title: str, curves: Sequence[Curve], width: int, height: int) -> list[Text]:
    """Return the lines of a small figure: title with the steps, legend, and `height` lines of curves beside a scale."""
    points = [point for curve in curves for point in curve.points]
    if not points:
        return []
    (first, last), (low, high) = ((min(values), max(values)) for values in zip(*points, strict=True))
    cells = _cells(curves, (first, low), (max(last, first + 1), high), width - _LABEL - 1, height)
    heading = Text(f"{title}, steps {first:.0f} to {last:.0f}", style="bold", overflow="ellipsis", no_wrap=True)
    legend = Text("  ").join(Text(curve.legend, style=curve.style) for curve in curves if curve.points)
    rows = (
        Text.assemble(f"{label:>{_LABEL}}┤" if label else f"{'':>{_LABEL}}│", *row)
        for row, label in zip(cells, _labels(low, high, height), strict=True)
    )
    legend.no_wrap, legend.overflow = True, "ellipsis"
    return [heading, legend, *rows]


def _labels(low: float, high: float, height: int) -> list[str]:
    """Return the labels of the scale: the highest value above, the lowest below; in the middle where they are one."""
    if low == high:
        return [four_digits(low) if row == height // 2 else "" for row in range(height)]
    return [four_digits(high), *[""] * (height - 2), four_digits(low)]


def _cells(curves: Sequence[Curve], least: Point, most: Point, width: int, height: int) -> list[list[tuple[str, str]]]:
    """Return each character of the figure with its style, row by row."""
    bits = [[0] * width for _ in range(height)]
    styles = [[""] * width for _ in range(height)]
    for curve in curves:
        for x, y in _dots(curve.points, least, most, 2 * width, 4 * height):
            if curve.is_dashed and (x // 2) % 2:
                continue
            bits[y // 4][x // 2] |= _BITS[x % 2][y % 4]
            styles[y // 4][x // 2] = curve.style
    return [
        [(chr(_BLANK + dots) if dots else " ", style) for dots, style in zip(*row, strict=True)]
        for row in zip(bits, styles, strict=True)
    ]


def _dots(points: Sequence[Point], least: Point, most: Point, width: int, height: int) -> Iterator[tuple[int, int]]:
    """Yield the dots of the line through the points, of those in one column their mean; 0, 0 is above on the left."""
    columns: dict[int, list[float]] = {}
    for x, y in points:
        columns.setdefault(_scaled(x, least[0], most[0], width), []).append(y)
    line = [
        (x, height - 1 - _scaled(sum(ys) / len(ys), least[1], most[1], height)) for x, ys in sorted(columns.items())
    ]
    yield line[0] if line else (0, 0)
    for (x, y), (next_x, next_y) in pairwise(line):
        before = y
        for column in range(x + 1, next_x + 1):
            here = round(y + (next_y - y) * (column - x) / (next_x - x))
            toward = 1 if here >= before else -1
            yield from (
                (column, row) for row in range(before if here == before else before + toward, here + toward, toward)
            )
            before = here


def _scaled(value: float, low: float, high: float, count: int) -> int:
    """Return which of `count` equal steps from `low` to `high` a value is at; the middle where they are one."""
    return round((value - low) / (high - low) * (count - 1)) if high > low else count // 2


def _mean(points: Sequence[Point]) -> Point:
    return sum(x for x, _ in points) / len(points), sum(y for _, y in points) / len(points)
