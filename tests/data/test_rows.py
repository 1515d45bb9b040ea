"""One JSON value to one pair: text stays text, messages become a conversation, everything else is named."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orpo_cli.data.pairs import ChatPair, Message, PreferencePair, Problem, Source, TextPair
from orpo_cli.data.readers import Row
from orpo_cli.data.rows import extra_keys, to_pair

HERE = Source("x.jsonl", 3)


def turn(role: str, content: Any) -> dict[str, Any]:
    return {"role": role, "content": content}


def pair(prompt: Any = "p", chosen: Any = "c", rejected: Any = "r", **others: Any) -> PreferencePair | Problem:
    return to_pair(Row(HERE, {"prompt": prompt, "chosen": chosen, "rejected": rejected, **others}))


def test_three_texts_stay_as_they_are() -> None:
    assert pair(" p\n", "c ", "\tr") == TextPair(HERE, " p\n", "c ", "\tr")


def test_a_row_with_any_messages_is_a_conversation() -> None:
    expected = ChatPair(HERE, (Message("user", "p"),), "c", "r")
    assert pair([turn("user", "p")], [turn("assistant", "c")], [turn("assistant", "r")]) == expected
    assert pair([turn("user", "p")], "c", "r") == expected
    assert pair("p", [turn("assistant", "c")], "r") == expected


def test_a_conversation_keeps_all_its_turns() -> None:
    turns = [turn("system", "s"), turn("user", "a"), turn("assistant", "b"), turn("user", "c")]
    found = pair(turns)
    assert isinstance(found, ChatPair)
    assert [vars(message) for message in found.prompt] == turns
    assert found.as_text() == TextPair(HERE, "s\n\na\n\nb\n\nc", "c", "r")


def test_equal_responses_are_valid() -> None:
    assert isinstance(pair("p", "same", "same"), TextPair)


def test_keys_nobody_reads_are_listed_in_their_order() -> None:
    value = {"source": 1, "prompt": "p", "score_chosen": 2, "chosen": "c", "rejected": "r"}
    assert list(extra_keys(Row(HERE, value))) == ["source", "score_chosen"]
    assert list(extra_keys(Row(HERE, ["prompt"]))) == []


@pytest.mark.parametrize(
    ("fields", "reason", "said"),
    [
        (
            {"prompt": [turn("user", "p"), turn("assistant", "a")]},
            "roles",
            "prompt: its last message is the assistant's",
        ),
        (
            {"chosen": [turn("user", "c")]},
            "roles",
            "chosen: expected one message of the assistant, found the roles user",
        ),
        ({"chosen": [turn("user", "p"), turn("assistant", "c")]}, "roles", "found the roles user, assistant"),
        ({"prompt": []}, "empty_field", "prompt: an empty list of messages"),
        ({"prompt": [turn("user", " ")]}, "empty_field", 'prompt[0].content: empty (" ")'),
        ({"prompt": [turn("", "p")]}, "empty_field", 'prompt[0].role: empty ("")'),
        ({"prompt": [turn("user", None)]}, "wrong_type", "prompt[0].content: expected a text"),
        ({"prompt": [turn("user", "a"), "b"]}, "wrong_type", "prompt[1]: expected a message with role and content"),
        ({"prompt": [{"role": "user"}]}, "wrong_type", "prompt[0]: expected a message with role and content"),
        ({"rejected": [{**turn("assistant", "r"), "tool_calls": []}]}, "wrong_type", '"tool_calls" would be lost'),
        ({"rejected": [{**turn("assistant", "r"), "\ud800": 1}]}, "wrong_type", r'"\ud800" would be lost'),
        (
            {"chosen": {"role": "assistant"}},
            "wrong_type",
            "chosen: expected a text or a list of messages, found an object",
        ),
        ({"chosen": "a\udfff"}, "encoding", "chosen: lone surrogate U+DFFF"),
        ({"prompt": [turn("user", "a\ud83d")]}, "encoding", "prompt[0].content: lone surrogate U+D83D"),
        ({"chosen": [turn("assistant", "\0")]}, "encoding", "chosen[0].content: character U+0000 at position 1"),
    ],
)
def test_what_is_wrong_is_named_with_its_place(fields: dict[str, Any], reason: str, said: str) -> None:
    found = pair(**fields)
    assert isinstance(found, Problem)
    assert found.reason == reason
    assert str(found).startswith("x.jsonl:3: ")
    assert said in str(found)


@pytest.mark.parametrize("depth", range(900, 1000, 10))
def test_a_value_as_deep_as_the_parser_allows_is_described(depth: int) -> None:
    try:
        value = json.loads("[" * depth + "]" * depth)
    except RecursionError:
        return
    assert isinstance(pair(prompt=[value]), Problem)
    assert isinstance(pair(prompt=[turn("user", value)]), Problem)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["prompt", "chosen", "rejected", "role", "content", "x"]), inner, max_size=4)
    ),
    max_leaves=12,
)


@given(json_values | st.fixed_dictionaries(dict.fromkeys(("prompt", "chosen", "rejected"), json_values)))
def test_any_value_is_a_pair_with_content_or_a_problem(value: Any) -> None:
    found = to_pair(Row(HERE, value))
    if isinstance(found, Problem):
        assert found.source == HERE
        assert str(found).encode()
    else:
        text = found.as_text() if isinstance(found, ChatPair) else found
        assert all(part.strip() for part in (text.prompt, text.chosen, text.rejected))
        assert "".join((text.prompt, text.chosen, text.rejected)).encode()
