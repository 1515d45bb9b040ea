"""Turn rows into pairs: every shape by examples of what people publish, every problem named with its column."""

import json
import math
import unicodedata
from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from preferences import said

from orpo_cli.config.data import FORMATS, ColumnsConfig, DataConfig
from orpo_cli.config.keys import builtin_configs
from orpo_cli.data.pairs import ChatPair, Message, PreferencePair, Problem, Row, Skipped, Source, TextPair
from orpo_cli.data.shapes.conversion import extra_keys, score_gap, to_pairs
from orpo_cli.data.shapes.recognition import find_shape
from orpo_cli.data.shapes.shape import Shape
from orpo_cli.errors import DataError

HERE = Source("x.jsonl", 3)
DEFAULTS = yaml.safe_load((builtin_configs() / "data" / "file.yaml").read_text())


def config(columns: Mapping[str, str | None] | None = None, **changed: Any) -> DataConfig:
    names = ColumnsConfig(**DEFAULTS["columns"] | (columns or {}))
    return DataConfig(**DEFAULTS | {"path": "x.jsonl", "columns": names} | changed)


def shape_of(*values: Any, cells: bool = False, **changed: Any) -> Shape:
    """Return the shape of a file with these rows, one a line."""
    rows = [Row(Source("x.jsonl", line), value) for line, value in enumerate(values, 1)]
    return find_shape(rows, config(**changed), cells)


def read(value: Any, cells: bool = False, **changed: Any) -> list[PreferencePair | Skipped] | Problem:
    """Return what a row becomes that stands alone in a file, on line 3."""
    return to_pairs(Row(HERE, value), shape_of(value, cells=cells, **changed))


def only_pair(value: Any, cells: bool = False, **changed: Any) -> PreferencePair:
    found = read(value, cells, **changed)
    assert isinstance(found, list), found
    (pair,) = found
    assert not isinstance(pair, Skipped)
    return pair


def turn(role: str, content: Any) -> dict[str, Any]:
    return {"role": role, "content": content}


def chat(*turns: str) -> list[dict[str, Any]]:
    """Return turns of user and assistant, the user first."""
    return [turn(("user", "assistant")[place % 2], content) for place, content in enumerate(turns)]


def pair(prompt: Any = "p", chosen: Any = "c", rejected: Any = "r", **others: Any) -> PreferencePair | Problem:
    """Return the pair of a row of prompt, chosen and rejected, whatever these are."""
    value = {"prompt": prompt, "chosen": chosen, "rejected": rejected, **others}
    found = to_pairs(Row(HERE, value), shape_of(format="pairs"))
    if isinstance(found, Problem):
        return found
    (made,) = found
    assert not isinstance(made, Skipped)
    return made


# A prompt and two responses


def test_three_texts_stay_as_they_are() -> None:
    assert pair(" p\n", "c ", "\tr") == TextPair(HERE, " p\n", "c ", "\tr")


def test_a_row_with_any_messages_is_a_conversation() -> None:
    expected = ChatPair(HERE, (Message("user", "p"),), said("c"), said("r"))
    assert pair([turn("user", "p")], [turn("assistant", "c")], [turn("assistant", "r")]) == expected
    assert pair([turn("user", "p")], "c", "r") == expected
    assert pair("p", [turn("assistant", "c")], "r") == expected
    assert pair(turn("user", "p"), turn("assistant", "c"), turn("assistant", "r")) == expected


def test_a_conversation_keeps_all_its_turns() -> None:
    turns = [turn("system", "s"), turn("user", "a"), turn("assistant", "b"), turn("user", "c")]
    found = pair(turns)
    assert isinstance(found, ChatPair)
    assert [turn(message.role, message.content) for message in found.prompt] == turns
    assert found.as_text() == TextPair(HERE, "s\n\na\n\nb\n\nc", "c", "r")


def test_equal_responses_are_valid() -> None:
    assert isinstance(pair("p", "same", "same"), TextPair)


def test_keys_nobody_reads_are_listed_in_their_order() -> None:
    value = {"source": 1, "prompt": "p", "scores": [2], "chosen": "c", "rejected": "r", "score_chosen": 2, "tools": ""}
    assert list(extra_keys(Row(HERE, value), shape_of(value))) == ["source", "scores"]
    assert list(extra_keys(Row(HERE, value), shape_of(value, columns={"tools": None}))) == ["source", "scores", "tools"]
    assert list(extra_keys(Row(HERE, ["prompt"]), shape_of(value))) == []


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
        ({"rejected": [{**turn("assistant", "r"), "weight": 1}]}, "wrong_type", "data.ignore_keys=[weight] leaves"),
        (
            {"rejected": [{**turn("assistant", "r"), "tool_calls": [{"id": 1}]}]},
            "wrong_type",
            "rejected[0].tool_calls[0]: expected a call with a name and arguments",
        ),
        ({"rejected": [{**turn("assistant", "r"), "\ud800": 1}]}, "wrong_type", r'data.ignore_keys=["\ud800"] leaves'),
        ({"chosen": {"a": 1}}, "wrong_type", "chosen: expected a text or a list of messages, found an object"),
        ({"chosen": {"role": "assistant"}}, "wrong_type", "chosen: expected a message with role and content"),
        ({"chosen": "a\udfff"}, "encoding", "chosen: lone surrogate U+DFFF"),
        ({"prompt": [turn("user", "a\ud83d")]}, "encoding", "prompt[0].content: lone surrogate U+D83D"),
        ({"chosen": [turn("assistant", "\0")]}, "encoding", "chosen[0].content: character U+0000 at position 1"),
        ({"prompt": [{"from": ["human"], "value": "p"}]}, "wrong_type", "prompt[0].role: expected a text"),
        (
            {"prompt": [turn("user", [{"type": "image_url", "image_url": "x"}])]},
            "wrong_type",
            'prompt[0].content: a part of type "image_url"; only text can be trained on',
        ),
        (
            {"prompt": [turn("user", [{"type": "text", "text": " "}])]},
            "empty_field",
            'prompt[0].content[0].text: empty (" ")',
        ),
        ({"prompt": [turn("user", ["p"])]}, "wrong_type", 'prompt[0].content: a part of type "None"'),
        ({"prompt": [{**turn("user", "p"), "name": "\0"}]}, "encoding", "prompt[0]: a lone surrogate or U+0000"),
    ],
)
def test_what_is_wrong_is_named_with_its_place(fields: dict[str, Any], reason: str, said: str) -> None:
    found = pair(**fields)
    assert isinstance(found, Problem)
    assert found.reason == reason
    assert str(found).startswith("x.jsonl:3: ")
    assert said in str(found)


def test_keys_of_a_message_that_say_nothing_are_no_loss() -> None:
    """Parquet writes such keys for all messages where some message of the file has them."""
    empty = {"name": None, "tool_calls": None, "weight": None, "images": []}
    assert pair([{**turn("user", "p"), **empty}], [{**turn("assistant", "c"), **empty}]) == pair([turn("user", "p")])


@pytest.mark.parametrize(
    ("column", "value", "kind"),
    [
        ("images", ["cat.png"], "image"),
        ("image", "cat.png", "image"),
        ("image", {"bytes": b"\x89PNG", "path": None}, "image"),
        ("images", [{"bytes": None, "path": "cat.png"}], "image"),
        ("videos", ["cat.mp4"], "video"),
    ],
)
def test_a_row_with_an_image_is_refused_unless_it_is_ignored(column: str, value: Any, kind: str) -> None:
    row = {"prompt": "<image>Which animal?", "chosen": "A cat.", "rejected": "A dog.", column: value}
    found = read(row)
    assert isinstance(found, Problem)
    assert str(found) == (
        f"x.jsonl:3: {column}: holds {kind} data; only text can be trained on. "
        f"data.ignore_keys=[{column}] trains on the text without it"
    )
    assert only_pair(row, ignore_keys=[column]) == TextPair(HERE, "<image>Which animal?", "A cat.", "A dog.")


@pytest.mark.parametrize("value", [None, [], [None], "", " ", "[]", "nan", {}, {"bytes": None, "path": None}])
def test_a_row_without_its_image_is_text(value: Any) -> None:
    row = {"prompt": "p", "chosen": "c", "rejected": "r", "image": value, "images": value}
    assert only_pair(row) == TextPair(HERE, "p", "c", "r")
    row = {"image": "p", "chosen": "c", "rejected": "r"}
    assert only_pair(row, columns={"prompt": "image"}) == TextPair(HERE, "p", "c", "r")


def test_a_content_in_parts_is_one_text() -> None:
    parts = [{"type": "text", "text": "Look: "}, {"type": "text", "text": "here"}]
    assert pair([turn("user", parts)]) == pair([turn("user", "Look: here")])


@pytest.mark.parametrize("depth", range(900, 1000, 10))
def test_a_value_as_deep_as_the_parser_allows_is_described(depth: int) -> None:
    try:
        value = json.loads("[" * depth + "]" * depth)
    except RecursionError:
        return
    assert isinstance(pair(prompt=[value]), Problem)
    assert isinstance(pair(prompt=[turn("user", value)]), Problem)
    assert isinstance(pair(tools=[{"name": value}]), Problem | ChatPair)
    assert isinstance(pair(prompt=[{**turn("user", "p"), "tool_calls": [value]}]), Problem | ChatPair)


@pytest.mark.parametrize(("score", "gap"), [(1, 1.5), ("1", 1.5), (None, math.inf), ("one", math.inf), ([1], math.inf)])
def test_the_gap_of_scores_that_are_no_numbers_is_unknown(score: Any, gap: float) -> None:
    """`orpo check` looks at scores that are not needed to read the row."""
    row = {"prompt": "p", "chosen": "c", "rejected": "r", "score_chosen": 2.5, "score_rejected": score}
    assert score_gap(Row(HERE, row), shape_of(row)) == gap


# As people publish them

CAT = "\n\nHuman: What's a good name for a cat?\n\nAssistant: Is it a boy?\n\nHuman: A girl.\n\nAssistant:"
HH = {"chosen": f"{CAT} Ada.", "rejected": f"{CAT} Bob"}
ULTRAFEEDBACK = {
    "prompt": "Why is the sky blue?",
    "prompt_id": "0a1b",
    "chosen": chat("Why is the sky blue?", "Blue light is scattered most."),
    "rejected": chat("Why is the sky blue?", "Because of the sea."),
    "messages": chat("Why is the sky blue?", "Blue light is scattered most."),
    "score_chosen": 8.5,
    "score_rejected": 4,
}
IMPLICIT = {
    "chosen": chat("Hi", "Hello!", "2 + 2?", "4"),
    "rejected": chat("Hi", "Hello!", "2 + 2?", "5"),
}
SHAREGPT = {
    side: [
        {"from": "system", "value": "Be brief."},
        {"from": "human", "value": "2 + 2?"},
        {"from": "gpt", "value": end},
    ]
    for side, end in (("chosen", "4"), ("rejected", "5"))
}
RANKED = {"prompt": "A colour?", "responses": ["grey", "red", "a colour"], "scores": [2, 9.5, -1]}


def test_transcripts_of_human_and_assistant() -> None:
    """The prompt is what both share, up to the last `Assistant:`; the transcript itself stays for text mode."""
    found = only_pair(HH)
    assert isinstance(found, ChatPair)
    expected = chat("What's a good name for a cat?", "Is it a boy?", "A girl.")
    assert [turn(message.role, message.content) for message in found.prompt] == expected
    assert (found.chosen, found.rejected) == (said("Ada."), said("Bob"))
    text = found.as_text()
    assert (text.prompt + text.chosen, text.prompt + text.rejected) == (HH["chosen"], HH["rejected"])
    assert text.prompt.endswith("A girl.\n\nAssistant:")


@pytest.mark.parametrize("prompt", ["Why is the sky blue?", [turn("user", "Why is the sky blue?")]])
def test_a_prompt_and_two_conversations_that_begin_with_it(prompt: Any) -> None:
    found = only_pair(ULTRAFEEDBACK | {"prompt": prompt})
    assert found == ChatPair(
        HERE,
        (Message("user", "Why is the sky blue?"),),
        said("Blue light is scattered most."),
        said("Because of the sea."),
    )
    assert list(extra_keys(Row(HERE, ULTRAFEEDBACK), shape_of(ULTRAFEEDBACK))) == ["prompt_id", "messages"]


def test_two_conversations_that_differ_in_their_last_message() -> None:
    assert only_pair(IMPLICIT) == pair(chat("Hi", "Hello!", "2 + 2?"), "4", "5")
    assert only_pair(IMPLICIT | {"prompt": None}) == only_pair(IMPLICIT)


def test_conversations_of_from_and_value() -> None:
    assert only_pair(SHAREGPT) == pair([turn("system", "Be brief."), turn("user", "2 + 2?")], "4", "5")
    assert pair([{"from": "human", "value": "p"}], {"from": "gpt", "value": "c"}) == pair([turn("user", "p")])
    assert pair([{"from": "tool", "value": "p"}]) == pair([turn("tool", "p")])


def test_a_system_column_comes_first() -> None:
    expected = pair([turn("system", "Be kind."), turn("user", "p")])
    assert pair(system="Be kind.") == expected
    assert pair([turn("user", "p")], system="Be kind.") == expected
    assert pair([turn("system", "Be kind."), turn("user", "p")], system="Be kind.") == expected
    assert [pair(system=nothing) for nothing in (None, "", " \n")] == [pair()] * 3
    found = only_pair(HH | {"system": "Be kind."})
    assert isinstance(found, ChatPair)
    assert found.prompt[0] == Message("system", "Be kind.")
    assert found.as_text().prompt.startswith("Be kind.\n\nWhat's a good name")


TOOL = {"type": "function", "function": {"name": "weather", "parameters": {"city": {"type": "string"}}}}


def test_tools_are_a_list_or_its_json() -> None:
    expected = ChatPair(HERE, (Message("user", "p"),), said("c"), said("r"), tools=(TOOL,))
    assert pair(tools=[TOOL]) == pair(tools=json.dumps([TOOL])) == expected
    assert [pair(tools=nothing) for nothing in (None, [], "", "[]", " ")] == [pair()] * 5


def test_calls_of_tools_stay_in_the_prompt() -> None:
    calls = [{"type": "function", "function": {"name": "weather", "arguments": {"city": "Rome"}}}]
    turns = [
        turn("user", "Warm in Rome?"),
        {"role": "assistant", "tool_calls": calls},
        {**turn("tool", "31 C"), "name": "weather", "tool_call_id": "1"},
    ]
    found = pair(turns, "Yes, 31 C.", "No.", tools=[TOOL])
    assert isinstance(found, ChatPair)
    assert found.prompt == (
        Message("user", "Warm in Rome?"),
        Message("assistant", "", {"tool_calls": calls}),
        Message("tool", "31 C", {"name": "weather", "tool_call_id": "1"}),
    )


# Rankings


def both_sides(value: Any, **changed: Any) -> list[tuple[str, str] | str]:
    """Return (chosen, rejected) of each pair, or why it is skipped."""
    found = read(value, **changed)
    assert isinstance(found, list), found
    return [item.reason if isinstance(item, Skipped) else (item.chosen, item.rejected) for item in found]


@pytest.mark.parametrize(
    ("pairs", "expected"),
    [
        ("all", [("red", "grey"), ("red", "a colour"), ("grey", "a colour")]),
        ("adjacent", [("red", "grey"), ("grey", "a colour")]),
        ("best_vs_rest", [("red", "grey"), ("red", "a colour")]),
    ],
)
def test_a_ranking_becomes_pairs_best_first(pairs: str, expected: list[tuple[str, str]]) -> None:
    assert both_sides(RANKED, pairs=pairs) == expected
    ranks = {"prompt": RANKED["prompt"], "responses": RANKED["responses"], "ranking": [2, 1, 3]}
    assert both_sides(ranks, pairs=pairs) == expected
    assert both_sides(RANKED | {"ranking": [2, 1, 3]}, pairs=pairs) == expected


def test_text_responses_stay_text_and_messages_make_conversations() -> None:
    (found, *_) = read(RANKED)  # type: ignore[misc]
    assert found == TextPair(HERE, "A colour?", "red", "grey")
    messages = [[turn("assistant", text)] for text in RANKED["responses"]]
    (found, *_) = read(RANKED | {"responses": messages})  # type: ignore[misc]
    assert found == ChatPair(HERE, (Message("user", "A colour?"),), said("red"), said("grey"))
    (found, *_) = read(RANKED | {"responses": [message for (message,) in messages]})  # type: ignore[misc]
    assert found == ChatPair(HERE, (Message("user", "A colour?"),), said("red"), said("grey"))
    (found, *_) = read(RANKED | {"prompt": [turn("user", "A colour?")]})  # type: ignore[misc]
    assert found == ChatPair(HERE, (Message("user", "A colour?"),), said("red"), said("grey"))


def test_ties_and_small_gaps_are_skipped_and_counted() -> None:
    value = {"prompt": "p", "responses": ["a", "b", "c", "d"], "scores": [3, 3, 2.5, 1]}
    assert both_sides(value) == ["tie", ("a", "c"), ("a", "d"), ("b", "c"), ("b", "d"), ("c", "d")]
    expected = ["tie", "score_gap", ("a", "d"), "score_gap", ("b", "d"), ("c", "d")]
    assert both_sides(value, min_score_gap=1.5) == expected
    assert both_sides(value, pairs="adjacent") == ["tie", ("b", "c"), ("c", "d")]
    assert both_sides(value | {"scores": [1, 1, 1, 1]}, pairs="best_vs_rest") == ["tie"] * 3
    ranks = {"prompt": "p", "responses": ["a", "b", "c"], "ranking": [1, 1, 3]}
    assert both_sides(ranks, min_score_gap=3) == ["tie", "score_gap", "score_gap"]


@given(
    st.lists(st.integers(-99, 99) | st.floats(-1e9, 1e9), min_size=2, max_size=7, unique_by=float),
    st.randoms(use_true_random=False),
)
@settings(deadline=None)
def test_a_ranking_of_distinct_scores(scores: list[float], random: Any) -> None:
    """There are k(k-1)/2, k-1 and k-1 pairs, each the better over the worse, whatever the order of the responses."""
    k = len(scores)
    of_text = {f"response {place}": score for place, score in enumerate(scores)}
    shuffled = list(of_text)
    random.shuffle(shuffled)
    made = {}
    for texts in (list(of_text), shuffled):
        value = {"prompt": "p", "responses": texts, "scores": [of_text[text] for text in texts]}
        ranks = [1 + sum(of_text[other] > of_text[text] for other in texts) for text in texts]
        for pairs in ("all", "adjacent", "best_vs_rest"):
            found = both_sides(value, pairs=pairs)
            assert both_sides({"prompt": "p", "responses": texts, "ranking": ranks}, pairs=pairs) == found
            assert all(of_text[better] > of_text[worse] for better, worse in found)  # type: ignore[misc]
            assert set(found) == made.setdefault(pairs, set(found))
            assert len(found) == len(set(found)) == (k * (k - 1) // 2 if pairs == "all" else k - 1)
    assert {frozenset(two) for two in made["all"]} == {frozenset(two) for two in combinations(of_text, 2)}


# The same preference in every shape


def leaves_a_mark(text: str) -> bool:
    """Return whether a text is more than controls, joiners and blanks, which are empty to a reader."""
    return any(unicodedata.category(sign)[0] not in "CZ" for sign in text)


contents = (
    st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=12)
    .map(str.strip)
    .filter(leaves_a_mark)
)


@st.composite
def preferences(draw: st.DrawFn) -> tuple[list[dict[str, Any]], str, str]:
    """Draw a conversation that ends with the user's turn, and two answers."""
    turns = draw(st.lists(contents, min_size=1, max_size=5).filter(lambda turns: len(turns) % 2 == 1))
    systems = contents.filter(lambda text: text.lower() not in ("null", "none", "nan"))  # empty cells of a table
    system = [turn("system", draw(systems))] if draw(st.booleans()) else []
    return system + chat(*turns), draw(contents), draw(contents)


def of_sharegpt(messages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    names = {"user": "human", "assistant": "gpt"}
    return [{"from": names.get(item["role"], item["role"]), "value": item["content"]} for item in messages]


def transcript(messages: Sequence[Mapping[str, Any]]) -> str:
    names = {"user": "Human", "assistant": "Assistant"}
    return "".join(f"\n\n{names[item['role']]}: {item['content']}" for item in messages)


def in_all_shapes(prompt: list[dict[str, Any]], chosen: str, rejected: str) -> list[tuple[str, dict[str, Any]]]:
    """Return (format, row) for every way to write a preference."""
    sides = [[turn("assistant", text)] for text in (chosen, rejected)]
    whole = [prompt + side for side in sides]
    parts = [{**item, "content": [{"type": "text", "text": item["content"]}]} for item in prompt]
    written = [
        ("pairs", {"prompt": prompt, "chosen": chosen, "rejected": rejected}),
        ("pairs", {"prompt": parts, "chosen": sides[0], "rejected": sides[1][0]}),
        ("pairs", {"prompt": of_sharegpt(prompt), "chosen": of_sharegpt(sides[0]), "rejected": rejected}),
        ("conversations", {"chosen": whole[0], "rejected": whole[1]}),
        ("conversations", {"chosen": of_sharegpt(whole[0]), "rejected": of_sharegpt(whole[1])}),
        ("ultrafeedback", {"prompt": prompt[-1]["content"], "chosen": whole[0], "rejected": whole[1]}),
        ("ultrafeedback", {"prompt": prompt, "chosen": whole[0], "rejected": whole[1]}),
        ("rankings", {"prompt": prompt, "responses": [rejected, chosen], "scores": [1, 2]}),
        ("rankings", {"prompt": prompt, "responses": sides, "ranking": [1, 2]}),
    ]
    if prompt[0]["role"] == "system":
        rest, system = prompt[1:], prompt[0]["content"]
        columns = [{"prompt": rest}, {"prompt": rest[0]["content"]}] if len(rest) == 1 else [{"prompt": rest}]
        written += [
            ("pairs", {**prompt_, "chosen": chosen, "rejected": rejected, "system": system}) for prompt_ in columns
        ]
        written += [("conversations", {"chosen": rest + sides[0], "rejected": rest + sides[1], "system": system})]
    else:
        written += [("hh", {"chosen": transcript(whole[0]), "rejected": transcript(whole[1])})]
    return written


def in_cells(row: Mapping[str, Any]) -> dict[str, str]:
    """Return a row as CSV has it: what is not a text stands there as JSON."""
    return {key: value if isinstance(value, str) else json.dumps(value) for key, value in row.items()}


@given(preferences())
@settings(max_examples=60)
def test_every_shape_of_the_same_preference_gives_the_same_pair(
    preference: tuple[list[dict[str, Any]], str, str],
) -> None:
    prompt, chosen, rejected = preference
    expected = (tuple(Message(item["role"], item["content"]) for item in prompt), said(chosen), said(rejected))
    for name, value in in_all_shapes(*preference):
        for cells in (False, True):
            given_row = in_cells(value) if cells else value
            assert shape_of(given_row, cells=cells).format == name
            found = only_pair(given_row, cells).as_chat()
            assert (found.prompt, found.chosen, found.rejected) == expected


# Recognition

BY_FORMAT = {
    "pairs": {"prompt": "p", "chosen": "c", "rejected": "r"},
    "conversations": IMPLICIT,
    "hh": HH,
    "ultrafeedback": ULTRAFEEDBACK,
    "rankings": RANKED,
}
"""The shapes that default columns can hold; the others are those of test_known_columns.py."""


def test_each_shape_is_recognised_alone() -> None:
    for name, value in BY_FORMAT.items():
        assert shape_of(value).format == name
        assert shape_of("no object", {"x": 1}, value, value, cells=False).format == name
        assert shape_of(in_cells(value), cells=True).format == name


@pytest.mark.parametrize(("first", "second"), list(combinations(BY_FORMAT, 2)))
def test_two_shapes_in_one_file_are_an_error_that_names_a_line_of_each(first: str, second: str) -> None:
    with pytest.raises(DataError) as caught:
        shape_of({}, BY_FORMAT[second], BY_FORMAT[second], BY_FORMAT[first])
    text = str(caught.value)
    assert text.startswith("x.jsonl: can be read in more than one way: ")
    assert text.index(f"x.jsonl:4 as {first} (") < text.index(f"x.jsonl:2 as {second} (")
    assert text.endswith("; choose with data.format=NAME")


def test_a_row_with_two_readings_is_an_error_that_lists_them() -> None:
    both = HH | {"prompt": "What's a good name for a cat?"}
    with pytest.raises(DataError, match=r"x\.jsonl:1 as pairs \(a prompt and two responses\); x\.jsonl:1 as hh \("):
        shape_of(both)
    with pytest.raises(DataError, match=r"x\.jsonl:1 as pairs \(.*; x\.jsonl:1 as rankings \("):
        shape_of(BY_FORMAT["pairs"] | RANKED)


def test_a_row_with_one_reading_settles_the_others() -> None:
    both = HH | {"prompt": "What's a good name for a cat?"}
    assert shape_of(both, BY_FORMAT["pairs"]).format == "pairs"
    assert shape_of(both, HH).format == "hh"
    assert shape_of(both, both, columns={"prompt": None}).format == "hh"


def test_a_configured_format_is_taken_as_it_is() -> None:
    both = HH | {"prompt": "A name?"}
    assert isinstance(only_pair(both, format="hh"), ChatPair)
    assert only_pair(both, format="pairs") == TextPair(HERE, "A name?", HH["chosen"], HH["rejected"])
    for name in BY_FORMAT:
        assert shape_of(*BY_FORMAT.values(), format=name).format == name
    found = read(BY_FORMAT["pairs"], format="conversations")
    assert isinstance(found, Problem)
    assert found.text.startswith("chosen: expected a list of messages, found a text")


def test_rows_of_no_shape_are_read_as_pairs_so_that_their_problems_are_named() -> None:
    assert shape_of().format == shape_of({}, [], {"text": "x"}, None).format == "pairs"
    found = read({"text": "p", "chosen": "c", "rejected": "r"})
    assert isinstance(found, Problem)
    said = 'prompt: missing; the row has "text", "chosen", "rejected"; data.columns.prompt=NAME reads another column'
    assert (found.text, found.reason) == (said, "missing_field")


@pytest.mark.parametrize("answer", ["completion", "response", "output", "answer"])
@pytest.mark.parametrize("label", [True, 0, "bad"])
def test_single_responses_with_a_label_are_refused_with_the_reason(answer: str, label: Any) -> None:
    rows = [{"prompt": "p", answer: text, "label": label} for text in ("a", "b")]
    with pytest.raises(DataError) as caught:
        shape_of({}, *rows)
    text = str(caught.value)
    assert text.startswith(f"x.jsonl:2: single responses with a label ({answer}, label): ORPO compares two responses")
    assert "Give each prompt a chosen and a rejected response, or rank several (prompt, responses, scores)" in text
    assert "KTO" in text
    assert shape_of(*rows, BY_FORMAT["pairs"]).format == "pairs"
    found = read(rows[0], format="pairs")
    assert isinstance(found, Problem)
    assert found.text.startswith("chosen: missing; ")


# Columns

RENAMED = {
    "prompt": "question",
    "chosen": "good",
    "rejected": "bad",
    "system": "rules",
    "tools": "functions",
    "weight": "w",
    "responses": "answers",
    "scores": "stars",
    "ranking": "places",
    "score_chosen": "plus",
    "score_rejected": "minus",
}


def renamed(value: Mapping[str, Any]) -> dict[str, Any]:
    return {RENAMED.get(key, key): item for key, item in value.items()}


@pytest.mark.parametrize("name", BY_FORMAT)
def test_columns_may_have_any_name(name: str) -> None:
    value = BY_FORMAT[name] | {"system": "s", "tools": [TOOL], "weight": 0.5}
    assert read(renamed(value), columns=RENAMED) == read(value)
    assert shape_of(renamed(value), columns=RENAMED).format == name


def test_two_columns_can_be_exchanged() -> None:
    swapped = {"chosen": "rejected", "rejected": "chosen"}
    assert only_pair(BY_FORMAT["pairs"], columns=swapped) == TextPair(HERE, "p", "r", "c")


def test_a_column_set_to_null_is_not_read() -> None:
    value = BY_FORMAT["pairs"] | {
        "weight": "heavy",
        "tools": "none",
        "system": 7,
        "score_chosen": 1,
        "score_rejected": 9,
    }
    nothing = dict.fromkeys(("weight", "tools", "system", "score_chosen"))
    assert only_pair(value, columns=nothing) == TextPair(HERE, "p", "c", "r")
    found = read(BY_FORMAT["pairs"], columns={"rejected": None})
    assert isinstance(found, Problem)
    assert found.text.startswith("rejected: missing; ")


def bad_row(name: str, changed: Mapping[str, Any], said: str, reason: str = "wrong_type") -> Any:
    return pytest.param(name, changed, said, reason, id=said)


NO_MESSAGES = "expected a text or a list of messages, found"
FAULTS = [
    bad_row("pairs", {"prompt": 7}, f'prompt: {NO_MESSAGES} a number ("7")'),
    bad_row("pairs", {"chosen": None}, f"chosen: {NO_MESSAGES} null"),
    bad_row("pairs", {"rejected": " "}, 'rejected: empty (" ")', "empty_field"),
    bad_row("pairs", {"system": 7}, "system: expected a text, found a number"),
    bad_row("pairs", {"system": "\0"}, "system: character U+0000 at position 1", "encoding"),
    bad_row(
        "pairs",
        {"prompt": [turn("system", "s"), turn("user", "p")], "system": "t"},
        "system: the prompt begins with another system message",
        "roles",
    ),
    bad_row("pairs", {"tools": 7}, "tools: expected a list of objects, found a number"),
    bad_row("pairs", {"tools": ["x"]}, "tools: expected a list of objects, found a list"),
    bad_row("pairs", {"tools": "{"}, 'tools: expected JSON, found "{"'),
    bad_row("pairs", {"tools": '[{"a": 1, "a": 2}]'}, 'tools: "a": key stands twice in one object', "not_json"),
    bad_row("pairs", {"tools": '[{"a": NaN}]'}, "tools: NaN is not JSON", "not_json"),
    bad_row("pairs", {"tools": [{"a": {"b": ["\ud800"]}}]}, "tools: a lone surrogate or U+0000 inside", "encoding"),
    bad_row("pairs", {"tools": [{"a\0": 1}]}, "tools: a lone surrogate or U+0000 inside", "encoding"),
    bad_row("pairs", {"tools": [{"a": b"x"}]}, "tools: cannot be written as JSON: Object of type bytes"),
    bad_row("pairs", {"weight": 1e300}, "weight: expected 0, or 1e-06 to 1e+06, found 1e+300"),
    bad_row("pairs", {"weight": 1e-30}, "weight: expected 0, or 1e-06 to 1e+06, found 1e-30"),
    bad_row("pairs", {"weight": -1}, "weight: expected 0, or 1e-06 to 1e+06, found -1"),
    bad_row("pairs", {"weight": float("nan")}, 'weight: expected a number, found a number ("nan")'),
    bad_row("pairs", {"weight": float("inf")}, 'weight: expected a number, found a number ("inf")'),
    bad_row("pairs", {"weight": 10**400}, "weight: expected a number, found a number ("),
    bad_row("pairs", {"weight": "heavy"}, 'weight: expected a number, found a text ("heavy")'),
    bad_row("pairs", {"weight": True}, 'weight: expected a number, found true or false ("True")'),
    bad_row("pairs", {"weight": [1]}, 'weight: expected a number, found a list ("[1]")'),
    bad_row("pairs", {"score_chosen": "eight", "score_rejected": 1}, "score_chosen: expected a number, found a text"),
    bad_row("pairs", {"score_chosen": 8, "score_rejected": {}}, "score_rejected: expected a number, found an object"),
    bad_row("conversations", {"chosen": "text"}, "chosen: expected a list of messages, found a text"),
    bad_row(
        "conversations", {"chosen": chat("a", "b", "c")}, "chosen: expected a conversation that ends with", "roles"
    ),
    bad_row("conversations", {"rejected": chat("a")}, "found the roles user", "roles"),
    bad_row(
        "conversations",
        {"rejected": [*chat("a", "b"), turn("assistant", "c")]},
        "one answer, found the roles user, assistant, assistant",
        "roles",
    ),
    bad_row(
        "conversations",
        {"rejected": chat("Hi", "Bye!", "2 + 2?", "5")},
        "rejected: differs from chosen at message 2; only the last messages may differ",
        "prompts_differ",
    ),
    bad_row(
        "conversations", {"rejected": chat("Hi", "5")}, "rejected: differs from chosen at message 2", "prompts_differ"
    ),
    bad_row(
        "conversations",
        {"rejected": [*IMPLICIT["chosen"][:-1], turn("assistant", "")]},
        'rejected[3].content: empty ("")',
        "empty_field",
    ),
    bad_row("hh", {"chosen": 7}, f"chosen: {NO_MESSAGES} a number"),
    bad_row("hh", {"rejected": None}, f"rejected: {NO_MESSAGES} null"),
    bad_row("hh", {"chosen": "Ada."}, "chosen: expected `Human:` and `Assistant:` turns that both", "prompts_differ"),
    bad_row(
        "hh",
        {"rejected": HH["rejected"].removesuffix(" Bob")},
        'rejected: the last answer is empty ("")',
        "empty_field",
    ),
    bad_row(
        "hh",
        {"rejected": HH["rejected"].replace("A girl", "A boy")},
        'chosen: the transcripts differ before the last answer: " Is it a boy?',
        "prompts_differ",
    ),
    bad_row(
        "hh",
        {"rejected": HH["rejected"] + "\n\nHuman: Thanks\n\nAssistant: Yes"},
        'rejected: the transcripts differ before the last answer: " Bob',
        "prompts_differ",
    ),
    bad_row(
        "hh",
        {side: HH[side].replace("A girl.", "") for side in HH},
        "chosen: a turn of the transcript is empty, or the answer follows no question",
        "roles",
    ),
    bad_row("ultrafeedback", {"prompt": "Why?"}, "prompt: is not what the two conversations", "prompts_differ"),
    bad_row("ultrafeedback", {"prompt": chat("Why?")}, "prompt: is not what the two conversations", "prompts_differ"),
    bad_row("ultrafeedback", {"prompt": 7}, f"prompt: {NO_MESSAGES} a number"),
    bad_row("ultrafeedback", {"score_chosen": "high"}, "score_chosen: expected a number, found a text"),
    bad_row("rankings", {"prompt": None}, f"prompt: {NO_MESSAGES} null"),
    bad_row("rankings", {"responses": "red"}, "responses: expected a list of two responses or more, found a text"),
    bad_row("rankings", {"responses": ["red"]}, "responses: expected a list of two responses or more, found 1"),
    bad_row("rankings", {"responses": ["a", "b", 7]}, f"responses[2]: {NO_MESSAGES} a number"),
    bad_row("rankings", {"responses": ["a", " ", "c"]}, 'responses[1]: empty (" ")', "empty_field"),
    bad_row("rankings", {"responses": ["a", "b", chat("a")]}, "responses[2]: expected one message of the", "roles"),
    bad_row("rankings", {"scores": [1, 2]}, "scores: expected a number for each of the 3 responses, found 2"),
    bad_row("rankings", {"scores": 7}, "scores: expected a number for each of the 3 responses, found a number"),
    bad_row("rankings", {"scores": [1, "two", 3]}, 'scores[1]: expected a number, found a text ("two")'),
    bad_row("rankings", {"scores": [1, 2, float("nan")]}, 'scores[2]: expected a number, found a number ("nan")'),
    bad_row("rankings", {"scores": None}, "scores: missing; a ranking needs scores or ranking", "missing_field"),
    bad_row("rankings", {"scores": None, "ranking": [0, 1, 2]}, "ranking: ranks count from 1, which is the best"),
    bad_row("rankings", {"ranking": [1, 2, 3]}, "ranking: contradicts scores"),
    bad_row("rankings", {"prompt": chat("a", "b")}, "prompt: its last message is the assistant's", "roles"),
]


@pytest.mark.parametrize(("name", "changed", "said", "reason"), FAULTS)
def test_every_problem_is_named_with_its_column(name: str, changed: Mapping[str, Any], said: str, reason: str) -> None:
    value = BY_FORMAT[name] | changed
    found = read(value, format=name, min_score_gap=1)
    assert isinstance(found, Problem), found
    assert said in found.text
    assert found.reason == reason
    other = read(renamed(value), format=name, min_score_gap=1, columns=RENAMED)
    assert isinstance(other, Problem)
    first = said.split(": ")[0].split("[")[0]
    if first in RENAMED:
        assert other.text.startswith(found.text.split(first)[0] + RENAMED[first])
    assert other.reason == reason


@pytest.mark.parametrize(("name", "field"), [(name, field) for name in BY_FORMAT for field in BY_FORMAT[name]])
def test_a_missing_field_is_named(name: str, field: str) -> None:
    value = {key: item for key, item in BY_FORMAT[name].items() if key != field}
    found = read(value, format=name)
    if field in ("prompt_id", "messages", "score_chosen", "score_rejected"):
        assert isinstance(found, list)
        return
    assert isinstance(found, Problem)
    assert found.text.startswith(f"{field}: missing; ")
    assert found.reason == "missing_field"


# Weights and scores


@pytest.mark.parametrize(("given_weight", "expected"), [(None, 1.0), (1, 1.0), (0.25, 0.25), (7, 7.0), (1e-6, 1e-6)])
def test_a_row_may_have_a_weight(given_weight: Any, expected: float) -> None:
    for value in BY_FORMAT.values():
        found = read(value | {"weight": given_weight})
        assert isinstance(found, list)
        assert [item.weight for item in found if not isinstance(item, Skipped)] == [expected] * len(found)


def test_a_row_of_no_weight_is_left_out_and_counted() -> None:
    for name, value in BY_FORMAT.items():
        found = read(value | {"weight": 0})
        assert found == [Skipped(HERE, "zero_weight")] * (3 if name == "rankings" else 1)


@pytest.mark.parametrize("name", ["pairs", "conversations", "hh", "ultrafeedback"])
def test_pairs_with_too_small_a_gap_of_scores_are_left_out_and_counted(name: str) -> None:
    def kept(chosen: Any, rejected: Any, gap: float) -> bool:
        found = read(BY_FORMAT[name] | {"score_chosen": chosen, "score_rejected": rejected}, min_score_gap=gap)
        assert isinstance(found, list)
        assert found == [Skipped(HERE, "score_gap")] or isinstance(found[0], TextPair | ChatPair)
        return found != [Skipped(HERE, "score_gap")]

    assert kept(3, 1, 2.0)
    assert not kept(3, 1, 2.1)
    assert kept(3, 3, 0.0)
    assert not kept(1, 3, 0.1)
    assert kept(1, 3, 0.0)  # nothing is left out where nothing is asked for
    assert kept("high", 3, 0.0)
    assert kept(None, 3, 2.0)
    assert kept(3, None, 2.0)


# Cells of text, as in CSV


def test_cells_hold_lists_and_numbers_as_json() -> None:
    ranked = in_cells(RANKED | {"weight": 2})
    assert ranked["scores"] == "[2, 9.5, -1]"
    assert read(ranked, cells=True) == read(RANKED | {"weight": 2})
    scored = {"score_chosen": "1.5", "score_rejected": "1"}
    assert read(BY_FORMAT["pairs"] | scored, cells=True, min_score_gap=1) == [Skipped(HERE, "score_gap")]


def test_a_cell_may_hold_several_rejected_responses() -> None:
    cells = {"prompt": "p", "chosen": "c", "rejected": json.dumps(["r", "[s]"])}
    assert read(cells, cells=True) == [TextPair(HERE, "p", "c", "r"), TextPair(HERE, "p", "c", "[s]")]
    assert read(cells) == [TextPair(HERE, "p", "c", cells["rejected"])]
    for chosen in ('["x", "y"]', '{"x": 1}'):  # both answers are JSON
        assert read(cells | {"chosen": chosen}, cells=True) == [TextPair(HERE, "p", chosen, cells["rejected"])]
    for text in ("[1, 2]", "[]", '["a", 1]', '["a"', "[" * 5000):
        assert read(cells | {"rejected": text}, cells=True) == [TextPair(HERE, "p", "c", text)]


def test_empty_cells_hold_nothing() -> None:
    nothing = dict.fromkeys(("system", "tools", "weight", "score_chosen", "scores", "ranking"), "")
    assert only_pair(BY_FORMAT["pairs"] | nothing, cells=True) == TextPair(HERE, "p", "c", "r")


@pytest.mark.parametrize(
    "text", ["[1] see below", "[]", "{}", '{"a": 1, "a": 2}', "[1, 2]", '["role"]', "[" * 5000, "{x}"]
)
def test_a_text_in_brackets_is_a_text(text: str) -> None:
    assert only_pair({"prompt": text, "chosen": text, "rejected": "r"}, cells=True) == TextPair(HERE, text, text, "r")
    assert only_pair({"prompt": text, "chosen": text, "rejected": "r"}) == TextPair(HERE, text, text, "r")


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"chosen": str(chat("a"))}, "chosen: messages, but not as JSON (\"[{'role': "),
        ({"chosen": json.dumps([turn("assistant", "a")])[:-1]}, "chosen: messages, but not as JSON ("),
        ({"prompt": '[{"role": "user", "role": "user", "content": "p"}]'}, 'prompt: "role": key stands twice'),
        ({"prompt": '[{"role": "user", "content": "p"}, 7]'}, "prompt[1]: expected a message with role and content"),
        ({"weight": "heavy"}, 'weight: expected JSON, found "heavy"'),
        ({"weight": '"2"'}, "weight: expected a number, found a text"),
        ({"weight": "NaN"}, "weight: NaN is not JSON"),
        ({"tools": "weather"}, 'tools: expected JSON, found "weather"'),
    ],
)
def test_a_cell_that_does_not_hold_what_it_should_is_named(changed: dict[str, str], said: str) -> None:
    value = BY_FORMAT["pairs"] | changed
    found = read(value, cells=True)
    assert isinstance(found, Problem)
    assert said in found.text


@pytest.mark.parametrize("changed", [{"responses": "a, b"}, {"scores": "1, 2"}, {"scores": "[1, NaN]"}])
def test_a_ranking_whose_cells_are_not_json_is_recognised_all_the_same(changed: dict[str, str]) -> None:
    value = in_cells(RANKED) | changed
    assert shape_of(value, cells=True).format == "rankings"
    found = read(value, cells=True)
    assert isinstance(found, Problem)
    assert found.text.startswith(f"{next(iter(changed))}: ")


# Any value

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.just(10**400),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["prompt", "chosen", "rejected", "role", "content", "from", "value", "type", "text", "x"]),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)
any_rows = json_values | st.fixed_dictionaries(
    dict.fromkeys(("prompt", "chosen", "rejected"), json_values),
    optional={field: json_values for field in DEFAULTS["columns"] if field not in ("prompt", "chosen", "rejected")},
)


@given(any_rows, st.sampled_from(("auto", *FORMATS)))
@settings(max_examples=300)
def test_any_value_is_a_pair_with_content_or_a_problem(value: Any, name: str) -> None:
    try:
        found = read(value, format=name)
    except DataError:
        assert name == "auto"
        return
    if isinstance(found, Problem):
        assert found.source == HERE
        assert str(found).encode()
        return
    for item in found:
        if not isinstance(item, Skipped):
            text = item.as_text()
            assert all(part.strip() for part in (text.prompt, text.chosen, text.rejected))
            assert "".join((text.prompt, text.chosen, text.rejected)).encode()


@given(st.dictionaries(st.sampled_from(list(DEFAULTS["columns"])), st.text('[]{}",: \\rolecntu1\n', max_size=20)))
@settings(max_examples=300)
def test_any_cells_are_a_pair_or_a_problem(value: dict[str, str]) -> None:
    for name in ("auto", *FORMATS):
        try:
            assert read(value, cells=True, format=name)
        except DataError:
            assert name == "auto"


def test_a_system_message_in_some_rows_makes_conversations_of_all() -> None:
    plain, brief, blank = (
        {"prompt": "p", "chosen": "c", "rejected": "r"} | more
        for more in ({}, {"system": "Be brief."}, {"system": " "})
    )
    shape = shape_of(plain, brief, blank)
    made = [to_pairs(Row(HERE, value), shape) for value in (plain, brief, blank)]
    roles = [[turn.role for turn in pair.prompt] for pairs in made for pair in pairs]
    assert roles == [["user"], ["system", "user"], ["user"]]
    assert all(isinstance(to_pairs(Row(HERE, value), shape_of(plain, blank))[0], TextPair) for value in (plain, blank))
