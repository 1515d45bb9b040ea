"""Measures of damage of sampled answers, counted by hand."""

import pytest

from orpo_cli.statistics.answers import Answer, fluency, repeats


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", False),
        ("a b c", False),  # no 4-gram
        ("a b c d e f g h", False),
        ("a b c d a b c d", True),  # abcd stands twice: 1 of 5 4-grams
        ("go on and on " * 10, True),
        ("a b c d e f g h i a b c d", True),  # 1 of 10
        ("a b c d e f g h i j a b c d", False),  # 1 of 11
    ],
)
def test_what_repeats_itself(text: str, expected: bool) -> None:
    """A tenth of the 4-grams of words have stood before."""
    assert repeats(text) is expected


def test_fluency_by_hand() -> None:
    """Pairs of neighbours: ab ba ab (2 of 3 different), and cd: 3 of 4."""
    found = fluency([Answer("p", "a b a b", "", True, 5), Answer("q", "c d", "", False, 2)])
    assert (found.answers, found.repeating, found.ending, found.distinct, found.words) == (2, 0, 1, 3 / 4, 3.0)


def test_answers_of_earlier_versions_do_not_say_whether_they_ended() -> None:
    assert fluency([Answer("p", "a")]).ending is None
    assert fluency([Answer("p", "")]).distinct == 1.0
