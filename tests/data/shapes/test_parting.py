"""Conversations that part before their last turn: refused with what would do, or cut behind the answers that differ."""

from collections.abc import Mapping
from typing import Any

import pytest
from preferences import data_config, said

from orpo_cli.data.pairs import ChatPair, Message, PreferencePair, Problem, Row, Skipped, Source, TextPair
from orpo_cli.data.shapes.conversion import to_pairs
from orpo_cli.data.shapes.recognition import find_shape

HERE = Source("x.jsonl", 3)
CUT = "data.later_turns=cut keeps both up to this answer and leaves out what follows"


def read(value: Mapping[str, Any], **changed: Any) -> list[PreferencePair | Skipped] | Problem:
    row = Row(HERE, value)
    return to_pairs(row, find_shape([row], data_config("x.jsonl", **changed), cells=False))


def chat(*texts: str, first: str = "user") -> list[dict[str, str]]:
    """Return turns of user and assistant in turn."""
    roles = ("user", "assistant") if first == "user" else ("assistant", "user")
    return [{"role": roles[place % 2], "content": text} for place, text in enumerate(texts)]


def answers(*texts: str) -> list[dict[str, str]]:
    return chat(*texts, first="assistant")


def transcript(*texts: str) -> str:
    return "".join(f"\n\n{('Human', 'Assistant')[place % 2]}: {text}" for place, text in enumerate(texts))


HIKE = ChatPair(HERE, (Message("user", "Help me plan a hike."),), said("How long?"), said("Walk."), is_cut=True)
ROWS: dict[str, Mapping[str, Any]] = {
    "after a prompt": {
        "prompt": chat("Help me plan a hike."),
        "chosen": answers("How long?", "Two hours.", "Take the lake path."),
        "rejected": answers("Walk."),
    },
    "after a prompt that is a text": {
        "prompt": "Help me plan a hike.", "chosen": answers("How long?", "Two hours.", "The lake."), "rejected": "Walk."
    },
    "conversations": {
        "chosen": chat("Help me plan a hike.", "How long?", "Two hours.", "Take the lake path."),
        "rejected": chat("Help me plan a hike.", "Walk."),
    },
    "conversations beside their prompt": {
        "prompt": "Help me plan a hike.",
        "chosen": chat("Help me plan a hike.", "How long?", "Two hours.", "The lake."),
        "rejected": chat("Help me plan a hike.", "Walk.", "Where?", "There."),
    },
    "messages": {
        "messages": chat("Help me plan a hike.", "How long?", "Two hours.", "The lake."),
        "rejected_messages": chat("Help me plan a hike.", "Walk."),
    },
    "a verdict": {
        "conversation_a": chat("Help me plan a hike.", "How long?", "Two hours.", "Take the lake path."),
        "conversation_b": chat("Help me plan a hike.", "Walk."),
        "winner": "a",
    },
}  # fmt: skip


@pytest.mark.parametrize("row", ROWS.values(), ids=ROWS)
def test_the_answers_at_which_two_conversations_part_are_the_pair(row: Mapping[str, Any]) -> None:
    found = read(row)
    assert isinstance(found, Problem)
    assert found.reason == "prompts_differ"
    assert "at message 2; only the last messages may differ; " in found.text
    assert found.text.endswith(CUT)
    assert read(row, later_turns="cut") == [HIKE]


def test_turns_that_both_responses_share_belong_to_the_prompt() -> None:
    row = {"prompt": "Q", "chosen": answers("Why?", "So.", "good"), "rejected": answers("Why?", "So.", "bad")}
    prompt = (Message("user", "Q"), said("Why?"), Message("user", "So."))
    assert read(row) == read(row, later_turns="cut") == [ChatPair(HERE, prompt, said("good"), said("bad"))]


def test_transcripts_that_part_earlier_are_cut_there() -> None:
    row = {
        "chosen": transcript("Hi", "Hello!", "A cat?", "Ada.", "Thanks", "Yes"),
        "rejected": transcript("Hi", "Hello!", "A cat?", "Bob."),
    }
    found = read(row)
    assert isinstance(found, Problem)
    assert found.text == (
        'chosen: the transcripts differ before the last answer: " Ada.\\n\\nHuman: Thanks\\n\\nAssistant: Yes"; ' + CUT
    )
    prompt = transcript("Hi", "Hello!", "A cat?") + "\n\nAssistant:"
    turns = (Message("user", "Hi"), said("Hello!"), Message("user", "A cat?"))
    transcribed = TextPair(HERE, prompt, " Ada.", " Bob.")
    assert read(row, later_turns="cut") == [
        ChatPair(HERE, turns, said("Ada."), said("Bob."), transcript=transcribed, is_cut=True)
    ]


@pytest.mark.parametrize("later_turns", ["error", "cut"])
@pytest.mark.parametrize(
    ("row", "said"),
    [
        (
            {"chosen": chat("Hi", "Yes?", "A cat?", "Ada."), "rejected": chat("Hi", "Yes?", "A dog?", "Rex.")},
            "rejected: differs from chosen at message 3; only the last messages may differ; it is not an answer in "
            "both, so there is no prompt to which both answer",
        ),
        (
            {"chosen": chat("A cat?", "Ada."), "rejected": chat("A cat?", "Ada.", "More", "Eve.")},
            "rejected: differs from chosen at message 3; only the last messages may differ; one ends before it, so "
            "there is no prompt to which both answer",
        ),
        (
            {"chosen": transcript("Hi", "Yes?", "A cat?", "Ada."), "rejected": transcript("Hi", "Yes?", "A dog?", "R")},
            'chosen: the transcripts differ before the last answer: " Yes?\\n\\nHuman: A cat?\\n\\nAssistant: Ada."; '
            "the answer is the same in both, so there is no prompt to which both answer differently",
        ),
    ],
)
def test_where_nothing_would_do_the_row_says_where_they_part(row: Any, said: str, later_turns: str) -> None:
    found = read(row, later_turns=later_turns)
    assert isinstance(found, Problem)
    assert found.text == said


def test_an_answer_that_a_cut_leaves_empty_is_none() -> None:
    row = {"chosen": transcript("Hi", "", "A cat?", "Ada."), "rejected": transcript("Hi", "Yes?")}
    found = read(row, later_turns="cut")
    assert isinstance(found, Problem)
    assert found.text == 'chosen: the last answer is empty ("")'
