"""Curves of Braille dots: which dots, the scale, dashes, and many points as few."""

import math

from orpo_cli.reporting.curves import Curve, Trace, plot

SCALE = 9
"""Characters beside the curves."""


def rows(*curves: Curve, width: int, height: int) -> list[str]:
    return [line.plain for line in plot("loss", curves, width + SCALE, height)]


def test_a_line_goes_up_through_every_row() -> None:
    """Dots of a character from above, left 1 2 3 7, right 4 5 6 8: below left 7, right 4 5 6; above right 4 5 6 8."""
    assert rows(Curve("training", [(1, 0.5), (2, 1.5)], ""), width=1, height=2) == [
        "loss, steps 1 to 2",
        "⠒⠒⠒ training",
        f"     1.5┤{chr(0x2800 + 0b10111000)}",
        f"     0.5┤{chr(0x2800 + 0b01111000)}",
    ]


def test_a_constant_is_in_the_middle_and_dashes_leave_every_second_character_out() -> None:
    solid, dashed = (Curve(name, [(0, 2.0), (7, 2.0)], "", name == "b") for name in "ab")
    assert rows(solid, width=4, height=2)[2:] == ["        │⣀⣀⣀⣀", "       2┤    "]
    assert rows(dashed, width=4, height=2)[2:] == ["        │⣀ ⣀ ", "       2┤    "]


def test_points_of_one_column_are_their_mean() -> None:
    """Nine steps on four columns of dots: 3 and 4 are halfway up together though neither is."""
    points = [(0, 0.0), (3, 0.0), (4, 7.0), (8, 7.0)]
    column = rows(Curve("a", points, ""), width=2, height=2)
    assert column[0] == "loss, steps 0 to 8"
    mean = rows(Curve("a", [(0, 0.0), (3, 3.5), (8, 7.0)], ""), width=2, height=2)
    assert rows(Curve("a", [(0, 0.0), (3, 3.0), (3, 4.0), (8, 7.0)], ""), width=2, height=2) == mean


def test_nothing_to_draw_is_no_line() -> None:
    assert plot("loss", [Curve("training", [], "")], 40, 5) == []


def test_many_points_become_means_of_neighbours() -> None:
    """4,000 points: at 2,000 two become one, at 2,000 means of two again, so each is the mean of four in the end."""
    trace = Trace()
    for step in range(4000):
        trace.add(step, step / 2)
    trace.add(4000, math.nan)
    assert trace.points == [(4 * i + 1.5, (4 * i + 1.5) / 2) for i in range(1000)]
