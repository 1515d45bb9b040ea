"""Rows as datasets of the field have them: recognised without a key, and read as what they mean."""

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import pytest
from preferences import data_config, said

from orpo_cli.data.pairs import ChatPair, Message, PreferencePair, Problem, Row, Skipped, Source, TextPair
from orpo_cli.data.shapes.conversion import extra_keys, score_gap, to_pairs
from orpo_cli.data.shapes.recognition import find_shape
from orpo_cli.errors import ConfigError, DataError

HERE = Source("x.jsonl", 3)
USER, ANSWER, OTHER = Message("user", "Q"), said("good"), said("bad")
TEXT, CHAT = TextPair(HERE, "Q", "good", "bad"), ChatPair(HERE, (USER,), ANSWER, OTHER)


def read(value: Mapping[str, Any], **changed: Any) -> list[PreferencePair | Skipped] | Problem:
    row = Row(HERE, value)
    return to_pairs(row, find_shape([row], data_config("x.jsonl", **changed), cells=False))


def turn(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


def value(role: str, text: str) -> dict[str, str]:
    return {"from": role, "value": text}


QUESTION, GOOD, BAD = turn("user", "Q"), turn("assistant", "good"), turn("assistant", "bad")
DATASETS: dict[str, tuple[Mapping[str, Any], PreferencePair]] = {
    "ShareGPT": (
        {"conversations": [value("human", "Q")], "chosen": value("gpt", "good"), "rejected": value("gpt", "bad")}, CHAT
    ),
    "messages and two answers": ({"messages": [QUESTION], "chosen": "good", "rejected": "bad"}, CHAT),
    "Swift, a text": ({"messages": [QUESTION, GOOD], "rejected_response": "bad"}, CHAT),
    "Swift, a list of texts": ({"messages": [QUESTION, GOOD], "rejected_response": ["bad"]}, CHAT),
    "messages and a rejected answer": ({"messages": [QUESTION, GOOD], "rejected": [BAD]}, CHAT),
    "ShareGPT, the answer in it": (
        {"conversations": [value("human", "Q"), value("gpt", "good")], "rejected": value("gpt", "bad")}, CHAT
    ),
    "texts of messages": (
        {"prompt": [{"role": "user", "text": "Q"}], "chosen": {"role": "assistant", "text": "good"}, "rejected": "bad"},
        CHAT,
    ),
    "Alpaca, both outputs": ({"instruction": "Q", "input": "", "output": "good", "rejected_output": "bad"}, TEXT),
    "Swift, messages": ({"messages": [QUESTION, GOOD], "rejected_messages": [QUESTION, BAD]}, CHAT),
    "OpenAI": (
        {"input": {"messages": [QUESTION]}, "preferred_output": [GOOD], "non_preferred_output": [BAD]}, CHAT
    ),
    "Orca": (
        {"system": "S", "question": "Q", "chosen": "good", "rejected": "bad"},
        ChatPair(HERE, (Message("system", "S"), USER), ANSWER, OTHER),
    ),
    "Alpaca": ({"instruction": "Q", "input": "", "chosen": "good", "rejected": "bad"}, TEXT),
    "Alpaca, with input": (
        {"instruction": "Sum up:", "input": "a b", "chosen": "good", "rejected": "bad"},
        TextPair(HERE, "Sum up:\na b", "good", "bad"),
    ),
    "Alpaca, with history": (
        {"instruction": "Q", "history": [["A?", "B."]], "chosen": "good", "rejected": "bad"},
        ChatPair(HERE, (Message("user", "A?"), said("B."), USER), ANSWER, OTHER),
    ),
    "Alpaca, with messages before": (
        {"instruction": "Q", "history": [turn("user", "A?"), turn("assistant", "B.")], "chosen": "good",
         "rejected": "bad"},
        ChatPair(HERE, (Message("user", "A?"), said("B."), USER), ANSWER, OTHER),
    ),
    "Alpaca, the answer and a rejected one": (
        {"instruction": "Q", "input": "", "output": "good", "rejected": "bad"}, TEXT
    ),
    "Swift before 3": ({"query": "Q", "response": "good", "rejected_response": "bad", "history": []}, TEXT),
    "Swift before 3, with turns before": (
        {"system": "S", "query": "Q", "response": "good", "rejected_response": "bad", "history": [["A?", "B."]]},
        ChatPair(HERE, (Message("system", "S"), Message("user", "A?"), said("B."), USER), ANSWER, OTHER),
    ),
    "a prompt called input": (
        {"system": "S", "input": "Q", "chosen": "good", "rejected": "bad"},
        ChatPair(HERE, (Message("system", "S"), USER), ANSWER, OTHER),
    ),
    "Alpaca, a list": ({"instruction": "Q", "input": "", "output": ["good", "bad"]}, TEXT),
    "StackExchange": ({"question": "Q", "response_j": "good", "response_k": "bad"}, TEXT),
    "UltraFeedback": (
        {"instruction": "Q", "completions": [
            {"response": "bad", "overall_score": 2.0}, {"response": "good", "overall_score": 8.5},
        ]}, TEXT,
    ),
    "UltraFeedback, fine-grained scores as text": (
        {"instruction": "Q", "completions": [
            {"response": "bad", "fine-grained_score": "2.5"}, {"response": "good", "fine-grained_score": "10"},
        ]}, TEXT,
    ),
    "Nectar": (
        {"prompt": "Q", "answers": [
            {"answer": "bad", "model": "m", "rank": 2.0}, {"answer": "good", "model": "n", "rank": 1.0},
        ]}, TEXT,
    ),
    "raw StackExchange": (
        {"question": "Q", "answers": [
            {"text": "bad", "pm_score": 0, "selected": False}, {"text": "good", "pm_score": 3, "selected": True},
        ]}, TEXT,
    ),
    "distilabel": ({"instruction": "Q", "generations": ["bad", None, "good"], "ratings": [1, None, 5]}, TEXT),
    "SHP, the first": ({"history": "Q", "human_ref_A": "good", "human_ref_B": "bad", "labels": 1}, TEXT),
    "SHP, the second": ({"history": "Q", "human_ref_A": "bad", "human_ref_B": "good", "labels": 0}, TEXT),
    "SHP, one label": ({"history": "Q", "human_ref_A": "bad", "human_ref_B": "good", "label": 0}, TEXT),
    "HelpSteer2, the first": (
        {"prompt": "Q", "response_1": "good", "response_2": "bad", "preference_strength": -1}, TEXT
    ),
    "HelpSteer2, the second": (
        {"prompt": "Q", "response_1": "bad", "response_2": "good", "preference_strength": 3}, TEXT
    ),
    "SafeRLHF, the first": (
        {"prompt": "Q", "response_0": "good", "response_1": "bad", "better_response_id": 0}, TEXT
    ),
    "SafeRLHF, the second": (
        {"prompt": "Q", "response_0": "bad", "response_1": "good", "better_response_id": 1}, TEXT
    ),
    "two numbered responses": (
        {"prompt": "Q", "response_1": "bad", "response_2": "good", "winner": "response_2"}, TEXT
    ),
    "HelpSteer, the first": (
        {"context": [QUESTION], "response1": "good", "response2": "bad", "overall_preference": -3}, CHAT
    ),
    "HelpSteer, the second": (
        {"context": [QUESTION], "response1": "bad", "response2": "good", "overall_preference": 1}, CHAT
    ),
    "arena, the first": ({"prompt": "Q", "response_a": "good", "response_b": "bad", "winner": "model_a"}, TEXT),
    "arena, a preference": ({"prompt": "Q", "response_a": "bad", "response_b": "good", "preference": "B"}, TEXT),
    "arena, lists of turns as JSON": (
        {"prompt": '["Q"]', "response_a": '["bad"]', "response_b": '["good"]', "winner_model_a": 0, "winner_tie": 0},
        TEXT,
    ),
    "arena, a model's name": (
        {"prompt": "Q", "response_a": "bad", "response_b": "good", "model_a": "x-7b", "model_b": "Y", "winner": "y"},
        TEXT,
    ),
    "WebGPT": (
        {"question": {"full_text": "Q", "id": "7"}, "answer_0": "bad", "score_0": -0.5, "answer_1": "good",
         "score_1": 0.5}, TEXT,
    ),
    "a score of each": ({"prompt": "Q", "response_a": "good", "response_b": "bad", "score_a": "3", "score_b": 1}, TEXT),
    "arena, conversations": (
        {"conversation_a": [QUESTION, BAD], "conversation_b": [QUESTION, GOOD], "winner": "model_b"}, CHAT
    ),
}  # fmt: skip


@pytest.mark.parametrize(("row", "pair"), DATASETS.values(), ids=DATASETS)
def test_the_columns_are_recognised(row: Mapping[str, Any], pair: PreferencePair) -> None:
    assert read(row) == [pair]


@pytest.mark.parametrize(
    "row",
    [
        {"history": "Q", "human_ref_A": "a", "human_ref_B": "b", "labels": "tie"},
        {"context": [QUESTION], "response1": "a", "response2": "b", "overall_preference": 0},
        {"prompt": "Q", "response_a": "a", "response_b": "b", "winner": "tie (bothbad)"},
    ],
)
def test_a_tie_is_left_out_and_counted(row: Mapping[str, Any]) -> None:
    assert read(row) == [Skipped(HERE, "tie")]


FIRST, SECOND = TextPair(HERE, "Q", "A", "B"), TextPair(HERE, "Q", "B", "A")
SHP = {"history": "Q", "human_ref_A": "A", "human_ref_B": "B"}
ARENA = {"prompt": "Q", "response_a": "A", "response_b": "B"}


@pytest.mark.parametrize(
    ("labels", "pair"),
    [(1, FIRST), (1.0, FIRST), (True, FIRST), ("1", FIRST), (0, SECOND), (0.0, SECOND), (False, SECOND), ("A", FIRST)],
)
def test_a_verdict_is_the_same_number_in_every_spelling(labels: Any, pair: TextPair) -> None:
    """Tables turn a column of integers with a missing one into floats."""
    assert read(SHP | {"labels": labels}) == [pair]


@pytest.mark.parametrize("labels", [None, "", "nan", float("nan"), 2, -1, 0.5, "unsure"])
def test_a_verdict_without_a_meaning_refuses_the_row(labels: Any) -> None:
    assert isinstance(read(SHP | {"labels": labels}), Problem)


@pytest.mark.parametrize(
    ("outcomes", "expected"),
    [((1, 0, 0), FIRST), ((0, 1, 0), SECOND), ((0, 0, 1), Skipped(HERE, "tie"))],
)
def test_an_outcome_may_have_a_column_each(outcomes: tuple[int, ...], expected: Any) -> None:
    names = ("winner_model_a", "winner_model_b", "winner_tie")
    assert read(ARENA | dict(zip(names, outcomes, strict=True))) == [expected]


def test_turns_behind_the_first_answers_are_left_out_where_that_is_asked_for() -> None:
    row = {"prompt": ["Q", "So?"], "response_a": ["bad", "x"], "response_b": ["good", "y"], "winner": "b"}
    cut = replace(CHAT, is_cut=True)
    assert read(row, later_turns="cut") == [cut]
    found = read(row)
    assert isinstance(found, Problem)
    assert "data.later_turns=cut keeps both up to this answer" in found.text
    row = {"chosen": [QUESTION, GOOD, turn("user", "So?")], "rejected": [QUESTION, BAD, turn("user", "No.")]}
    assert read(row, later_turns="cut") == [cut]
    found = read(row)
    assert isinstance(found, Problem)
    assert "; data.later_turns=cut leaves out what follows the answers" in found.text


def test_an_answer_that_is_null_is_no_answer() -> None:
    found = read({"prompt": '["Q"]', "response_a": "[null]", "response_b": '["y"]', "winner": "b"})
    assert isinstance(found, Problem)
    assert found.text == "response_a[0]: expected a text or a list of messages, found null"


def test_equal_scores_are_a_tie() -> None:
    assert read({"prompt": "Q", "response_a": "x", "response_b": "y", "score_a": 2, "score_b": 2.0}) == [
        Skipped(HERE, "tie")
    ]


def test_a_system_message_of_the_prompt_alone_or_of_the_conversations_alone_is_kept() -> None:
    system = turn("system", "S")
    expected = [replace(CHAT, prompt=(Message("system", "S"), USER))]
    assert read({"prompt": [system, QUESTION], "chosen": [QUESTION, GOOD], "rejected": [QUESTION, BAD]}) == expected
    conversations = {"chosen": [system, QUESTION, GOOD], "rejected": [system, QUESTION, BAD]}
    assert read({"prompt": [QUESTION], **conversations}) == expected


def test_what_a_verdict_means_can_be_said() -> None:
    found = read(ARENA | {"winner": 1})
    assert isinstance(found, Problem)
    assert found.text.startswith('winner: "1" (a number) does not say which response won; data.first_won=VALUE')
    assert read(ARENA | {"winner": 1}, first_won=1) == [FIRST]
    assert read(ARENA | {"winner": 1}, first_won=0) == [SECOND]
    assert read(ARENA | {"winner": 1}, first_won="negative") == [SECOND]
    found = read(ARENA | {"winner": "bad"}, first_won="good")
    assert isinstance(found, Problem)
    assert "data.second_won=VALUE says at which value the second did" in found.text
    assert read(ARENA | {"winner": "bad"}, first_won="good", second_won="bad") == [SECOND]
    assert read(ARENA | {"winner": 0}, first_won=1, second_won=2) == [Skipped(HERE, "tie")]
    assert read(ARENA | {"winner": "model_a"}, first_won="modela") == [FIRST]


SET = {"response_a": "answer_1", "response_b": "answer_2", "winner": "better"}


@pytest.mark.parametrize(
    ("row", "columns"),
    [
        ({"prompt": "Q"}, SET),  # as HelpSteer2 but for its columns, whose negative numbers mean the first
        ({"question": "Q"}, SET | {"prompt": "question"}),  # as SHP, whose 1 means the first
    ],
)
@pytest.mark.parametrize("verdict", [0, 1, 2])
def test_a_verdict_in_a_column_that_is_set_has_no_meaning_of_a_dataset(
    verdict: int, row: dict[str, Any], columns: dict[str, str]
) -> None:
    row = row | {"answer_1": "A", "answer_2": "B", "better": verdict}
    found = read(row, columns=columns)
    assert isinstance(found, Problem)
    assert "data.first_won=VALUE" in found.text
    assert read(row, columns=columns, first_won=verdict) == [FIRST]


def test_the_own_columns_of_a_dataset_keep_their_meaning_when_they_are_set() -> None:
    columns = {"response_a": "human_ref_A", "response_b": "human_ref_B", "winner": "labels"}
    assert read(SHP | {"labels": 1}, columns=columns) == read(SHP | {"labels": 1})


def test_a_verdict_may_name_the_column_that_won() -> None:
    """`response_1` is the second of two where the first is `response_0`."""
    columns = {"response_a": "response_0", "response_b": "response_1"}
    row = {"prompt": "Q", "response_0": "A", "response_1": "B", "winner": "Response_1"}
    assert read(row, columns=columns) == [SECOND]
    row = {"prompt": "Q", "response_1": "A", "response_2": "B"}
    assert read(row | {"winner": "response_1"}) == [FIRST]
    found = read(row | {"winner": 1})
    assert isinstance(found, Problem)
    assert "data.first_won=VALUE" in found.text
    assert read(row | {"winner": 1}, first_won=1, second_won=2) == [FIRST]
    assert read(row | {"winner": 2}, first_won=1, second_won=2) == [SECOND]


def test_a_history_ends_with_an_answer() -> None:
    row = {"instruction": "Q", "history": [turn("user", "A?")], "chosen": "good", "rejected": "bad"}
    found = read(row)
    assert isinstance(found, Problem)
    assert found.text == "history: its last message is the user's; the instruction is the next"


def test_texts_of_cells_stand_as_they_are() -> None:
    def read_cells(value: dict[str, str]) -> Any:
        row = Row(HERE, value)
        return to_pairs(row, find_shape([row], data_config("x.csv"), cells=True))

    assert read_cells(ARENA | {"winner": "model_b"}) == [SECOND]
    alpaca = {"instruction": "Sum up:", "input": "a b", "chosen": "A", "rejected": "B"}
    assert read_cells(alpaca) == [TextPair(HERE, "Sum up:\na b", "A", "B")]


def test_a_system_prompt_is_the_system_text() -> None:
    row = {"system_prompt": "S", "question": "Q", "chosen": "good", "rejected": "bad"}
    assert read(row) == [ChatPair(HERE, (Message("system", "S"), USER), ANSWER, OTHER)]


def test_a_system_message_under_another_key_is_not_dropped() -> None:
    found = read({"prompt": [{"role": "system", "message": "S"}, QUESTION], "chosen": "good", "rejected": "bad"})
    assert isinstance(found, Problem)
    assert found.text.startswith("prompt[0]: expected a message with role and content, found ")


def test_empty_system_messages_and_thoughts_say_nothing() -> None:
    prompt = [turn("system", ""), QUESTION]
    assert read({"prompt": prompt, "chosen": [GOOD | {"reasoning_content": ""}], "rejected": [BAD]}) == [CHAT]
    result = [QUESTION, {"role": "assistant", "content": "", "tool_calls": [CALL]}, turn("tool", "")]
    assert isinstance(read({"prompt": result, "chosen": "good", "rejected": "bad"}), list)


def test_one_chosen_response_stands_against_each_rejected_one() -> None:
    other = TextPair(HERE, "Q", "good", "worse")
    assert read({"prompt": "Q", "chosen": "good", "rejected": ["bad", "worse"]}) == [TEXT, other]
    assert read({"prompt": "Q", "chosen": ["good"], "rejected": ["bad"]}) == [TEXT]
    worse = turn("assistant", "worse")
    pairs = [CHAT, ChatPair(HERE, (USER,), ANSWER, said("worse"))]
    assert read({"prompt": [QUESTION], "chosen": [GOOD], "rejected": [BAD, worse]}) == pairs
    assert read({"prompt": [QUESTION], "chosen": [GOOD], "rejected": [[BAD], [worse]]}) == pairs
    found = read({"prompt": "Q", "chosen": ["a", "b"], "rejected": "c"})
    assert isinstance(found, Problem)
    assert found.text.startswith("chosen: expected one chosen response, found 2")


def test_a_dotted_column_is_a_key_inside() -> None:
    row = {"ask": {"text": "Q"}, "best": {"answer": "good"}, "worst": {"answer": "bad"}, "a.b": 1}
    columns = {"prompt": "ask.text", "chosen": "best.answer", "rejected": "worst.answer"}
    assert read(row, columns=columns) == [TEXT]
    shape = find_shape([Row(HERE, row)], data_config("x", columns=columns), cells=False)
    assert list(extra_keys(Row(HERE, row), shape)) == ["a.b"]
    found = read(row, columns=columns | {"prompt": "ask.question"})
    assert isinstance(found, Problem)
    assert found.text.startswith('ask.question: missing; the row has "ask", "best", "worst", "a.b"')


def test_keys_inside_that_are_not_read_are_listed() -> None:
    completions = [
        {"response": "good", "overall_score": 8, "model": "m", "critique": None},
        {"response": "bad", "overall_score": 2, "model": "m", "notes": {"a": 1}},
    ]
    row = Row(HERE, {"instruction": "Q", "completions": completions, "source": "s"})
    shape = find_shape([row], data_config("x"), cells=False)
    assert list(extra_keys(row, shape)) == ["completions.model", "completions.notes", "source"]
    row = Row(HERE, {"prompt": "Q", "a": {"b": {"c": "good", "d": 1}, "e": 2}, "rejected": "bad"})
    shape = find_shape([row], data_config("x", columns={"chosen": "a.b.c"}), cells=False)
    assert list(extra_keys(row, shape)) == ["a.b.d", "a.e"]


@pytest.mark.parametrize(
    ("chosen", "rejected"),
    [
        ("score_chosen", "score_rejected"), ("chosen_score", "rejected_score"), ("chosen_rating", "rejected_rating"),
        ("chosen-rating", "rejected-rating"), ("rating_chosen", "rating_rejected"),
    ],
)  # fmt: skip
def test_scores_of_both_responses_have_several_names(chosen: str, rejected: str) -> None:
    value = {"prompt": "Q", "chosen": "good", "rejected": "bad", chosen: 2, rejected: "4.5"}
    row = Row(HERE, value)
    shape = find_shape([row], data_config("x"), cells=False)
    assert score_gap(row, shape) == -2.5
    assert list(extra_keys(row, shape)) == []
    assert read(value, min_score_gap=1) == [Skipped(HERE, "score_gap")]
    if chosen != "score_chosen":
        shape = find_shape([row], data_config("x", columns={"score_chosen": None}), cells=False)
        assert next(extra_keys(row, shape)) == chosen


def test_columns_that_are_set_go_before_those_of_a_dataset() -> None:
    row = {"conversations": [value("human", "no")], "asked": "Q", "chosen": "good", "rejected": "bad"}
    assert read(row, columns={"prompt": "asked"}) == [TEXT]


# What would do

OTHERS: dict[str, tuple[Mapping[str, Any], str]] = {
    "nested answers": (
        {"question": "Q", "pos_answer": {"answer": "good", "by": "m"}, "neg_answer": {"answer": "bad", "by": "n"}},
        "prompt=question chosen=pos_answer.answer rejected=neg_answer.answer",
    ),
    "good and bad": (
        {"query": "Q", "good_answer": "good", "bad_answer": "bad", "non_preferred_id": 3},
        "prompt=query chosen=good_answer rejected=bad_answer",
    ),
    "not preferred": (
        {"prompt": "Q", "preferred_output": "good", "non_preferred_output": "bad"},
        "chosen=preferred_output rejected=non_preferred_output",
    ),
    "two numbered": (
        {"instruction": "Q", "output_1": "good", "output_2": "bad", "preference": "output_1"},
        "prompt=instruction response_a=output_1 response_b=output_2 winner=preference",
    ),
    "objects with a score": (
        {"prompt": "Q", "candidates": [{"text": "bad", "reward": 1, "by": "m"}, {"text": "good", "reward": "2"}]},
        "responses=candidates.text scores=candidates.reward",
    ),
    "accepted": ({"question": "Q", "accepted": "good", "rejected": "bad"}, "prompt=question chosen=accepted"),
    "lose": ({"prompt": "Q", "win": "good", "lose": "bad"}, "chosen=win rejected=lose"),
    "two replies and a verdict": (
        {"question": "Q", "reply_A": "bad", "reply_B": "good", "better": "B"},
        "prompt=question response_a=reply_A response_b=reply_B winner=better",
    ),
    "two scores": (
        {"prompt": "Q", "answer_1": "bad", "rating_1": 2, "answer_2": "good", "rating_2": "4"},
        "response_a=answer_1 response_b=answer_2 score_a=rating_1 score_b=rating_2",
    ),
    "texts with ranks": (
        {"question": "Q", "outputs": ["bad", "good"], "ranks": [2, 1]},
        "prompt=question responses=outputs ranking=ranks",
    ),
}


@pytest.mark.parametrize(("row", "columns"), OTHERS.values(), ids=OTHERS)
def test_a_row_that_is_not_recognised_is_refused_with_the_keys_that_read_it(row: Any, columns: str) -> None:
    found = read(row)
    assert isinstance(found, Problem)
    keys = " ".join(f"data.columns.{column}" for column in columns.split())
    assert found.text.endswith(f"; {keys} read other columns")
    assert read(row, columns=dict(column.split("=") for column in columns.split())) == [TEXT]


@pytest.mark.parametrize(
    ("row", "columns"),
    [
        ({"chosen_messages": [QUESTION, GOOD], "rejected_messages": [QUESTION, BAD]},
         {"chosen": "chosen_messages", "rejected": "rejected_messages"}),
        ({"chosen": {"conversations": [QUESTION, GOOD]}, "rejected": {"conversations": [QUESTION, BAD]}},
         {"chosen": "chosen.conversations", "rejected": "rejected.conversations"}),
    ],
)  # fmt: skip
def test_conversations_in_other_columns_need_no_prompt(row: Any, columns: dict[str, str]) -> None:
    found = read(row)
    assert isinstance(found, Problem)
    keys = " ".join(f"data.columns.{field}={column}" for field, column in columns.items())
    assert found.text.endswith(f"; {keys} read other columns")
    assert read(row, columns=columns) == [CHAT]


def test_a_list_of_two_texts_may_have_the_better_first() -> None:
    found = read({"q": "Q", "output": ["good", "bad"]})
    assert isinstance(found, Problem)
    keys = "data.format=alpaca data.columns.prompt=NAME data.columns.chosen=output"
    assert found.text.endswith(f"; {keys} takes the first of the two as the better")
    assert read(
        {"q": "Q", "output": ["good", "bad"]}, format="alpaca", columns={"prompt": "q", "chosen": "output"}
    ) == [TEXT]
    found = read({"prompt": "Q", "responses": ["good", "bad"]})
    assert isinstance(found, Problem)
    keys = "data.format=alpaca data.columns.chosen=responses data.columns.responses=null"
    assert found.text.endswith(f"; {keys} takes the first of the two as the better")
    columns: dict[str, Any] = {"chosen": "responses", "responses": None}
    assert read({"prompt": "Q", "responses": ["good", "bad"]}, format="alpaca", columns=columns) == [TEXT]


def test_messages_of_another_form_are_no_answers() -> None:
    turns = [{"speaker": "user", "text": "hm"}, {"speaker": "bot", "text": "bad"}]
    found = read({"prompt": "Q", "chosen": "good", "rejected": turns})
    assert isinstance(found, Problem)
    assert "reads the text in it" not in found.text


@pytest.mark.parametrize("row", [
    {"response_a": "x", "response_b": "y", "winner": None},
    {"response_a": "x", "response_b": "y", "preference": None},
    {"response_1": "x", "response_2": "y", "preference_strength": None},
    {"response_0": "x", "response_1": "y", "better_response_id": None},
])  # fmt: skip
def test_a_verdict_of_null_refuses_the_row(row: dict[str, Any]) -> None:
    """Beside a row that has one, by which the file is recognised."""
    column = list(row)[-1]
    first = Row(HERE, {"prompt": "Q", **row, column: 1 if column != "preference" else "a"})
    rows = [first, Row(HERE, {"prompt": "Q", **row})]
    for changed in ({}, {"first_won": "A"}, {"first_won": "A", "second_won": "B"}):
        found = to_pairs(rows[1], find_shape(rows, data_config("x.jsonl", **changed), cells=False))
        assert isinstance(found, Problem)
        assert found.text == f"{column}: is empty; write tie for a tie"


@pytest.mark.parametrize(("outcomes", "expected"), [
    ((0, 0, None), [Skipped(HERE, "tie")]), ((0, 0, 0), [Skipped(HERE, "tie")]), ((1, 0, None), [TEXT]),
    ((1, 1, 0), "winner_model_a: both responses won"),
])  # fmt: skip
def test_outcomes_of_both_responses_are_read(outcomes: tuple[Any, ...], expected: Any) -> None:
    names = ("winner_model_a", "winner_model_b", "winner_tie")
    row = {"prompt": "Q", "response_a": "good", "response_b": "bad", **dict(zip(names, outcomes, strict=True))}
    found = read(row)
    assert (found.text if isinstance(found, Problem) else found) == expected


@pytest.mark.parametrize(("verdict", "is_tie"), [
    ("tie (bothbad)", True), ("Equally good", True), ("both_bad", True), ("equall/saul-7b", False), ("samey", False),
])  # fmt: skip
def test_ties_are_whole_words(verdict: str, is_tie: bool) -> None:
    found = read({"prompt": "Q", "response_a": "x", "response_b": "y", "winner": verdict})
    assert (found == [Skipped(HERE, "tie")]) == is_tie
    assert isinstance(found, Problem) != is_tie


@pytest.mark.parametrize(("prompt", "first", "said"), [
    ('["Q", "R"]', '["x"]', "response_a: 1 answers to the 2 turns of prompt"),
    ('["Q"]', '["x cut of', "response_a: a list of turns, but not as JSON"),
    ("['Q']", '["x"]', "prompt: a list of turns, but not as JSON"),
])  # fmt: skip
def test_lists_of_turns_that_do_not_fit_are_refused(prompt: str, first: str, said: str) -> None:
    count = prompt.count(",") + 1
    found = read(
        {"prompt": prompt, "response_a": first, "response_b": str(["y"] * count).replace("'", '"'), "winner": "b"}
    )
    assert isinstance(found, Problem)
    assert found.text.startswith(said)


def test_lists_of_turns_are_read_in_pairs_too() -> None:
    assert read({"prompt": ' ["Q"]', "chosen": '["good"]', "rejected": '["bad"]'}) == [TEXT]
    text = '["not", "turns"]'
    assert read({"prompt": "Q", "chosen": text, "rejected": "bad"}) == [TextPair(HERE, "Q", text, "bad")]


def test_a_dotted_column_is_a_key_of_the_json_in_a_cell() -> None:
    row = {"question": '{"full_text": "Q", "id": 1}', "answer_0": "bad", "answer_1": "good", "score_0": "0"}
    row["score_1"] = "1"
    shape = find_shape([Row(HERE, row)], data_config("x.csv"), cells=True)
    assert to_pairs(Row(HERE, row), shape) == [TEXT]


def test_transcripts_of_another_form_are_refused_with_the_form_that_is_read() -> None:
    found = read({"chosen": "User: Q\nAssistant: good", "rejected": "User: Q\nAssistant: bad"})
    assert isinstance(found, Problem)
    assert found.text.endswith("; transcripts have turns of `Human:` and `Assistant:` with a blank line before each")


def test_an_object_for_an_answer_is_refused_with_the_way_to_write_it() -> None:
    found = read({"prompt": "Q", "chosen": {"a": 1}, "rejected": {"a": 2}})
    assert isinstance(found, Problem)
    assert found.text.endswith("; json.dumps makes a text of it, if the model is to write it")


@pytest.mark.parametrize(("field", "read_as"), [("history", "pairs"), ("input", "pairs"), ("messages", "rankings")])
def test_a_column_is_refused_where_the_shape_does_not_have_its_field(field: str, read_as: str) -> None:
    row = {"prompt": "Q", "chosen": "good", "rejected": "bad", "mine": [["A?", "B."]]}
    if read_as == "rankings":
        row = {"prompt": "Q", "responses": ["good", "bad"], "scores": [2, 1], "mine": "x"}
    with pytest.raises(ConfigError) as caught:
        read(row, columns={field: "mine"})
    others = "messages" if field == "messages" else "alpaca"
    assert str(caught.value) == (
        f"data.columns.{field}=mine: x.jsonl is read as {read_as}, which has no {field}; set data.format to {others}"
    )
    if field == "history":
        turns = (Message("user", "A?"), said("B."), USER)
        expected = ChatPair(HERE, turns, ANSWER, OTHER)
        assert read(row, columns={field: "mine"}, format=others) == [expected]


def test_brackets_of_a_verdict_are_text() -> None:
    row = {"prompt": "Q", "response_a": "good", "response_b": "bad", "winner": "[[A]]"}
    with pytest.raises(ConfigError, match=r"""'data.first_won="\[\[A\]\]"'"""):
        read(row, first_won=[["A"]])
    assert read(row, first_won="[[A]]") == [TEXT]


@pytest.mark.parametrize(
    ("row", "keys"),
    [
        ({"prompt": "Q", "response": "x", "bad_response": "bad"}, "chosen=NAME data.columns.rejected=bad_response"),
        ({"answer": "x", "best": "good", "other": "y"}, "prompt=NAME data.columns.chosen=best"),
        ({"prompt": "Q", "first": "x", "second": "y"}, "chosen=NAME"),
        ({"prompt": "Q", "good_one": "x", "good_two": "y"}, "chosen=NAME"),
        ({"prompt": "Q", "outputs": ["x", "y", "z"]}, "responses=outputs data.columns.scores=NAME"),
        ({"prompt": "Q", "responses": ["x", "y"]}, "scores=NAME"),
        ({"prompt": "Q", "text_a": "x", "text_b": "y"}, "response_a=text_a data.columns.response_b=text_b "
         "data.columns.winner=NAME"),
    ],
)  # fmt: skip
def test_a_column_that_nothing_tells_is_left_to_the_user(row: Any, keys: str) -> None:
    found = read(row)
    assert isinstance(found, Problem)
    assert f"; data.columns.{keys} read" in found.text


def test_an_object_in_the_place_of_a_text_is_refused_with_the_key_inside() -> None:
    completions = [{"response": "bad", "overall_score": 1, "model": "m"}, {"response": "good", "overall_score": 2}]
    found = read({"instruction": "Q", "completions": completions}, columns={"responses": "completions"})
    expected = "expected a text or a list of messages, found an object"
    assert isinstance(found, Problem)
    assert found.text == (
        f"completions[0]: {expected}; data.columns.responses=completions.response reads the text in it"
    )
    columns = {"responses": "completions.response"}
    assert read({"instruction": "Q", "completions": completions}, columns=columns) == [TEXT]
    found = read({"prompt": "Q", "chosen": {"answer": "good", "score": 1}, "rejected": {"answer": "bad", "score": 0}})
    assert isinstance(found, Problem)
    assert found.text == f"chosen: {expected}; data.columns.chosen=chosen.answer reads the text in it"


def test_all_keys_of_a_row_are_accounted_for_in_its_refusal() -> None:
    found = read({f"k{number}": number for number in range(11)})
    assert isinstance(found, Problem)
    assert found.text.startswith(
        'prompt: missing; the row has "k0", "k1", "k2", "k3", "k4", "k5", "k6", "k7" and 3 more'
    )


@pytest.mark.parametrize(
    ("row", "key"),
    [
        ({"prompt": "Q", "completion": "good"}, "completion"),
        ({"instruction": "Q", "input": "", "output": "good", "id": "7"}, "output"),
        ({"messages": [QUESTION, GOOD], "source": "s"}, "messages"),
        ({"prompt": "Q", "chosen": "good"}, "chosen"),
    ],
)
def test_one_response_a_row_is_refused_with_what_it_lacks(row: Any, key: str) -> None:
    with pytest.raises(DataError) as caught:
        read(row)
    assert str(caught.value).startswith(f"x.jsonl:3: one response a row ({key}), and no rejected one beside it")
    assert "and loss=sft, too, reads pairs of which it trains on chosen" in str(caught.value)


# Roles and calls


CALL = {"type": "function", "function": {"name": "tide", "arguments": {"harbour": "Dover"}}}
DIALECTS = {
    "user": ("user", "human", "Human", "HUMAN", "prompter"),
    "assistant": ("assistant", "gpt", "GPT", "model", "bot", "Assistant"),
    "tool": ("tool", "observation", "ipython", "function", "tool_response"),
    "system": ("system", "System"),
    "developer": ("developer", "Developer"),
    "critic": ("critic",),
}


@pytest.mark.parametrize(("role", "dialect"), [(role, word) for role, words in DIALECTS.items() for word in words])
@pytest.mark.parametrize("keys", [("role", "content"), ("from", "value")])
def test_a_role_is_the_same_in_every_dialect(role: str, dialect: str, keys: tuple[str, str]) -> None:
    prompt = [dict(zip(keys, (dialect, "x"), strict=True)), QUESTION]
    assert read({"prompt": prompt, "chosen": "good", "rejected": "bad"}) == [
        ChatPair(HERE, (Message(role, "x"), USER), ANSWER, OTHER)
    ]


@pytest.mark.parametrize(
    "message",
    [
        {"role": "assistant", "content": "", "tool_calls": [CALL]},
        {"role": "assistant", "content": None, "tool_calls": [{"name": "tide", "arguments": {"harbour": "Dover"}}]},
        {"role": "assistant", "content": None, "function_call": {"name": "tide", "arguments": '{"harbour": "Dover"}'}},
        {"role": "assistant", "tool_calls": [{"function": {"name": "tide", "arguments": '{"harbour": "Dover"}'}}]},
        {"from": "function_call", "value": '{"name": "tide", "arguments": {"harbour": "Dover"}}'},
        {"from": "tool_call", "value": '[{"name": "tide", "arguments": {"harbour": "Dover", "at": null}}]'},
    ],
)
def test_a_call_is_the_same_however_it_is_written(message: dict[str, Any]) -> None:
    prompt = [QUESTION, message, turn("tool", "14:07")]
    expected = (USER, Message("assistant", "", {"tool_calls": [CALL]}), Message("tool", "14:07"))
    assert read({"prompt": prompt, "chosen": "good", "rejected": "bad"}) == [ChatPair(HERE, expected, ANSWER, OTHER)]


def test_a_call_that_is_not_json_is_named() -> None:
    found = read(
        {"prompt": [QUESTION, value("function_call", "tide(Dover)"), QUESTION], "chosen": "a", "rejected": "b"}
    )
    assert isinstance(found, Problem)
    assert found.text == (
        'prompt[1]: function_call: expected a call as JSON, {"name": ..., "arguments": {...}}, found "tide(Dover)"'
    )


@pytest.mark.parametrize("call", [
    {"name": "tide", "input": {"harbour": "Dover"}},
    {"name": "tide", "args": '{"harbour": "Dover"}', "arguments": {}},
    {"function": {"name": "tide"}, "arguments": {"harbour": "Dover"}, "index": 0},
    {"name": "tide", "kwargs": {"harbour": "Dover"}, "thought": None},
])  # fmt: skip
def test_arguments_are_found_wherever_they_stand(call: dict[str, Any]) -> None:
    pair = read({"prompt": [QUESTION], "chosen": [{"role": "assistant", "tool_calls": [call]}], "rejected": [BAD]})
    assert isinstance(pair, list)
    assert isinstance(pair[0], ChatPair)
    assert pair[0].chosen.others["tool_calls"][0]["function"] == {"name": "tide", "arguments": {"harbour": "Dover"}}


@pytest.mark.parametrize(("message", "said"), [
    ({"tool_calls": [{"name": "tide", "arguments": {"a": 1}, "input": {"b": 2}}]}, "arguments and input: a call has"),
    ({"tool_calls": [{"name": "tide", "arguments": {}, "thought": "hm"}]}, '"thought" would be lost'),
    ({"tool_calls": [{"name": "a"}], "function_call": {"name": "b"}}, "function_call and tool_calls: a message has"),
])  # fmt: skip
def test_what_a_call_would_lose_is_named(message: dict[str, Any], said: str) -> None:
    found = read({"prompt": [QUESTION], "chosen": [{"role": "assistant", **message}], "rejected": [BAD]})
    assert isinstance(found, Problem)
    assert said in found.text


def test_an_answer_may_be_a_thought_and_calls() -> None:
    chosen = {"role": "assistant", "content": "good", "reasoning": "why", "tool_calls": [CALL]}
    expected = Message("assistant", "good", {"reasoning_content": "why", "tool_calls": [CALL]})
    (pair,) = read({"prompt": [QUESTION], "chosen": [chosen], "rejected": [BAD]})  # type: ignore[misc]
    assert pair == ChatPair(HERE, (USER,), expected, OTHER)


def test_keys_without_meaning_are_left_out_and_counted() -> None:
    row = {"prompt": [QUESTION | {"country": "France", "turn_identifier": 4}], "chosen": "good", "rejected": "bad"}
    assert read(row) == [CHAT]
    shape = find_shape([Row(HERE, row)], data_config("x"), cells=False)
    assert list(extra_keys(Row(HERE, row), shape)) == ["prompt.country", "prompt.turn_identifier"]


@pytest.mark.parametrize("written", [lambda value: value, json.dumps], ids=["as messages", "as JSON in a text"])
def test_all_keys_of_a_row_that_would_be_lost_are_named_at_once(written: Callable[[Any], Any]) -> None:
    """Beside those that are read, that say nothing, or that have no value; each once, in any field that is read."""
    asked = [QUESTION | {"mood": "glad", "my key": 0, "id": 1, "name": "bob", "note": None}]
    answers = {"chosen": [GOOD | {"score": 0.5, "mood": ""}], "rejected": [value("gpt", "bad") | {"from now on": 1}]}
    row = {key: written(item) for key, item in {"prompt": asked, **answers}.items()} | {"more": [GOOD | {"x": 1}]}
    found = read(row)
    assert isinstance(found, Problem)
    assert found.text == (
        "beside role and content, messages have keys that would be lost; where they mean nothing to a model, "
        'data.ignore_keys=[mood,"my key",score,"from now on"] leaves them out'
    )
    keys = ["mood", "my key", "score", "from now on", "name"]
    assert read(row, ignore_keys=keys) == [CHAT], "a key that is read is left out too where that is asked for"


def test_keys_of_candidates_are_named_too() -> None:
    candidates = [[GOOD | {"mood": 1}], [BAD | {"score": 2}]]
    found = read({"prompt": [QUESTION], "responses": candidates, "scores": [2, 1]})
    assert isinstance(found, Problem)
    assert found.keys == ("mood", "score")
