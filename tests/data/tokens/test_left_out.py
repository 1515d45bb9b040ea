"""What stands in a row stands in the prompt, or the row is refused: roles, calls, results, thoughts, by template.

The templates are those that TRL ships of real models, and one of Mistral's kind.
"""

import copy
import functools
import json
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matrix import rows
from preferences import said
from small_tokenizers import small_tokenizer

from orpo_cli.data.pairs import ChatPair, Message, Problem, Source, TextPair
from orpo_cli.data.tokens import tokenization
from orpo_cli.data.tokens.chat_template import ChatTemplate
from orpo_cli.data.tokens.rendering import RenderedPair, render
from orpo_cli.data.tokens.tokenization import TokenizationSettings, TokenizedRow
from orpo_cli.errors import ConfigError

pytestmark = pytest.mark.skipif(find_spec("trl") is None, reason="TRL is a peer, installed for comparison")

HERE = Source("x.jsonl", 3)
IM = ("<|im_start|>", "<|endoftext|>")
HEADERS = ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")
TURNS = ("<start_of_turn>", "<end_of_turn>")
FAMILIES: dict[str, tuple[str, tuple[str, ...], str, str]] = {
    "qwen25": ("qwen2_5", IM, "<s>", "<|im_end|>"),
    "qwen3": ("qwen3", IM, "<s>", "<|im_end|>"),
    "qwen35": ("qwen3_5_think", IM, "<s>", "<|im_end|>"),
    "qwen35 without thoughts": ("qwen3_5_nothink", IM, "<s>", "<|im_end|>"),
    "llama3": ("llama3", HEADERS, "<|begin_of_text|>", "<|end_of_text|>"),
    "llama32": ("llama3_2", HEADERS, "<|begin_of_text|>", "<|end_of_text|>"),
    "gemma": ("gemma", TURNS, "<bos>", "<eos>"),
    "gemma3": ("gemma3", TURNS, "<bos>", "<eos>"),
    "phi35": ("phi3_5", ("<|system|>", "<|user|>", "<|assistant|>", "<|end|>"), "<s>", "<|endoftext|>"),
    "r1": (
        "deepseek_r1_distill",
        ("<｜User｜>", "<｜Assistant｜>"),
        "<｜begin▁of▁sentence｜>",
        "<｜end▁of▁sentence｜>",
    ),
    "mistral": ("", ("[INST]", "[/INST]"), "<s>", "</s>"),
}
FAMILIES["r1 for training"] = ("deepseek_r1_distill_training", *FAMILIES["r1"][1:])
"""Name -> the template among TRL's, further special tokens, BOS and end token."""


@functools.cache
def tokenizer_of(name: str) -> Any:
    file, special, bos, eos = FAMILIES[name]
    spec = find_spec("trl")
    assert spec is not None
    folder = Path(str((spec.submodule_search_locations or [""])[0])) / "chat_templates"
    path = folder / f"{file}.jinja" if file else Path(__file__).parent / "templates" / "mistral.jinja"
    return small_tokenizer("gpt2", special, bos, eos, path.read_text(encoding="utf-8"))


def call(name: str, **arguments: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, "arguments": arguments}}


def calling(content: str, *calls: dict[str, Any]) -> Message:
    return Message("assistant", content, {"tool_calls": list(calls)})


ASKED, TIDE = Message("user", "High tide?"), call("tide_times", harbour="Dover", days=31)
RESULT = Message("tool", '{"high": "14:07",\n"low": 7}')
SEQUENCES: dict[str, tuple[Message, ...]] = {
    "user": (ASKED,),
    "system": (Message("system", "Be brief."), ASKED),
    "developer": (Message("developer", "Be blunt."), ASKED),
    "earlier answer": (ASKED, said("At noon."), Message("user", "Sure?")),
    "call and result": (ASKED, calling("", TIDE), RESULT),
    "words and call": (ASKED, calling("I look it up.", TIDE), RESULT),
    "two calls": (ASKED, calling("", TIDE, call("clock", zone="Z")), RESULT, Message("tool", "It is six.")),
    "answered call": (ASKED, calling("", TIDE), RESULT, said("At two."), Message("user", "Thanks, and low?")),
    "result alone": (ASKED, said("I look."), Message("tool", "SECRET 14:07")),
    "named result": (ASKED, calling("", TIDE), Message("tool", "14:07", {"name": "tide_times"})),
    "name of a user": (Message("user", "High tide?", {"name": "Zoe"}),),
    "unknown role": (Message("critic", "Too long."), ASKED),
    "two users": (ASKED, Message("user", "Or low tide?")),
    "earlier thought": (
        ASKED,
        Message("assistant", "Noon.", {"reasoning_content": "the moon"}),
        Message("user", "So?"),
    ),
}
NO_CALLS = {"call and result", "words and call", "two calls", "answered call", "named result"}
ALTERNATING = {*NO_CALLS, "result alone", "unknown role", "two users", "name of a user"}
REFUSED = {
    "qwen25": {"name of a user", "unknown role"},
    "qwen3": {"name of a user", "unknown role"},
    "qwen35": {"name of a user", "unknown role"},
    "qwen35 without thoughts": {"name of a user", "unknown role"},
    "llama3": {*NO_CALLS, "name of a user"},
    "llama32": {"name of a user", "words and call", "two calls"},
    "gemma": {*ALTERNATING, "system", "developer"},
    "gemma3": ALTERNATING,
    "phi35": {*NO_CALLS, "result alone", "name of a user", "unknown role"},
    "r1": {*NO_CALLS, "name of a user", "unknown role"},
    "mistral": ALTERNATING,
}
REFUSED["r1 for training"] = REFUSED["r1"]


def texts_of(value: Any) -> Iterator[str]:
    """Yield every text, number and name of an argument that has to be found again."""
    if isinstance(value, Message):
        yield value.content
        yield from (text for one in value.others.get("tool_calls", ()) for text in texts_of(one["function"]))
        yield value.others.get("name", "")
    elif isinstance(value, dict):
        yield from (text for key, item in value.items() for text in [str(key), *texts_of(item)])
    else:
        yield value if isinstance(value, str) else json.dumps(value)


def holds(written: str, text: str) -> bool:
    """Whether a text is there, but for the blanks that templates trim, and inside of JSON."""
    if text in ("name", "arguments") or not text.strip():
        return True
    if text in ("true", "false") and text in written.lower():  # some write True
        return True
    return any(
        "".join(one.split()) in "".join(written.split()) for one in (text, json.dumps(text, ensure_ascii=False)[1:-1])
    )


def prompt_of(pair: ChatPair, name: str) -> str | Problem:
    """Return the decoded prompt."""
    tokenizer, template = tokenizer_of(name), ChatTemplate(tokenizer_of(name))
    found = render(pair, template)
    if isinstance(found, Problem):
        return found
    settings = TokenizationSettings.of(tokenizer, template, 100_000, "error")
    (row,) = tokenization.tokenize([found], settings)
    assert isinstance(row, TokenizedRow)
    assert row.pair is not None
    return str(tokenizer.decode(row.pair.prompt_ids))


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("sequence", SEQUENCES)
def test_each_text_is_there_or_the_row_is_refused(sequence: str, name: str) -> None:
    turns = SEQUENCES[sequence]
    answers = ("<think>\nso\n</think>\n\nYes", "<think>\nso\n</think>\n\nNo") if "r1" in name else ("Yes", "No")
    found = prompt_of(ChatPair(HERE, turns, *map(said, answers)), name)
    assert isinstance(found, Problem) == (sequence in REFUSED[name]), found
    if isinstance(found, Problem):
        assert found.reason == "template"
        return
    for turn in turns:
        assert all(holds(found, text) for text in texts_of(turn)), found


def test_what_is_left_out_is_named() -> None:
    for sequence, name, expected in (
        ("result alone", "phi35", "message 3 (tool): the chat template leaves it out; set model.chat_template=FILE"),
        ("two calls", "phi35", "message 2 (assistant): the chat template leaves its tool_calls[0].function.name out"),
        ("name of a user", "qwen25", "message 1 (user): the chat template leaves its name out; set model.chat_temp"),
    ):
        found = prompt_of(ChatPair(HERE, SEQUENCES[sequence], said("Yes"), said("No")), name)
        assert isinstance(found, Problem)
        assert found.text.startswith(expected)


words = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=8)
words = words.filter(lambda text: "</think>" not in text) | st.sampled_from(["", " ", "\n\n", "\x07", "\x1b[0m"])
plain = words.filter(str.strip)
arguments = st.dictionaries(plain, plain | st.integers(0, 10**6) | st.booleans(), max_size=3)
messages = st.one_of(
    st.builds(Message, st.sampled_from(["user", "user", "assistant", "system", "tool", "developer", "critic"]), words),
    st.builds(lambda text, name, given: calling(text, call(name, **{"x": 1} | given)), words, plain, arguments),
    st.builds(lambda text, thought: Message("assistant", text, {"reasoning_content": thought}), plain, plain),
)


@pytest.mark.parametrize("name", rows({name: name for name in FAMILIES}, "qwen25", "llama32", "r1"))
def test_any_conversation_is_there_or_refused(name: str) -> None:
    special = [str(token) for token in tokenizer_of(name).all_special_tokens]

    @settings(max_examples=60, deadline=None)
    @given(st.lists(messages, max_size=4), plain, plain)
    def check(earlier: list[Message], asked: str, answer: str) -> None:
        turns = (*earlier, Message("user", asked))
        found = prompt_of(ChatPair(HERE, turns, said(answer), said("No")), name)
        if not isinstance(found, Problem) and not any(token in str(turns) for token in special):
            assert all(holds(found, text) for turn in turns for text in texts_of(turn)), found

    check()


# Thoughts, system messages and arguments of the template


def rendered(pair: ChatPair | TextPair, name: str, **options: Any) -> RenderedPair:
    found = render(pair, ChatTemplate(tokenizer_of(name), **options))
    assert isinstance(found, RenderedPair), found
    return found


THOUGHT, BLANK = "<think>\n12*12 is 144.\n</think>\n\n144", "120"


@pytest.mark.parametrize(
    ("name", "opens", "chosen", "rejected"),
    [
        ("qwen3", "<|im_start|>assistant\n", f"{THOUGHT}<|im_end|>", "<think>\n\n</think>\n\n120<|im_end|>"),
        ("qwen35", "<think>\n", "12*12 is 144.\n</think>\n\n144<|im_end|>", "\n</think>\n\n120<|im_end|>"),
        ("qwen25", "<|im_start|>assistant\n", f"{THOUGHT}<|im_end|>", "120<|im_end|>"),
    ],
)
def test_a_thought_that_the_prompt_opens_is_not_opened_again(name: str, opens: str, chosen: str, rejected: str) -> None:
    for pair in (
        ChatPair(HERE, (Message("user", "12*12?"),), said(THOUGHT), said(BLANK)),
        TextPair(HERE, "12*12?", THOUGHT, BLANK),
    ):
        texts = rendered(pair, name)
        assert texts.prompt.endswith(opens)
        assert (texts.chosen, texts.rejected) == (chosen, rejected)


@pytest.mark.parametrize("name", ["qwen3", "qwen35"])
def test_reasoning_content_is_the_thought(name: str) -> None:
    asked, thought = (Message("user", "12*12?"),), {"reasoning_content": "12*12 is 144."}
    answer = Message("assistant", "144", thought)
    assert rendered(ChatPair(HERE, asked, answer, said(BLANK)), name).chosen == (
        rendered(ChatPair(HERE, asked, said(THOUGHT), said(BLANK)), name).chosen
    )
    found = prompt_of(ChatPair(HERE, asked, answer, said(BLANK)), "qwen25")
    assert isinstance(found, Problem)
    assert found.text.startswith("message 2 (assistant): the chat template leaves its reasoning_content out")


@pytest.mark.parametrize("name", ["r1", "r1 for training"])
def test_a_template_that_drops_every_thought_is_completed(name: str) -> None:
    """That of DeepSeek-R1 drops them for the next turn; the model is to write them."""
    asked = (Message("user", "12*12?"),)
    texts = rendered(ChatPair(HERE, asked, said(THOUGHT), said("<think>\nHm.\n</think>\n\n120")), name)
    assert texts.prompt.endswith("<｜Assistant｜><think>\n")
    assert texts.chosen == "12*12 is 144.\n</think>\n\n144<｜end▁of▁sentence｜>"
    assert texts.rejected == "Hm.\n</think>\n\n120<｜end▁of▁sentence｜>"
    inside = Message("assistant", "144", {"reasoning_content": "12*12 is 144."})
    assert rendered(ChatPair(HERE, asked, inside, said("<think>\nHm.\n</think>\n\n120")), name).chosen == texts.chosen
    goes_on = said(THOUGHT.removeprefix("<think>\n"))
    before = said("SECRET <think>so</think> 144")
    assert isinstance(
        render(ChatPair(HERE, asked, before, said("Hm.</think>120")), ChatTemplate(tokenizer_of(name))), Problem
    )
    without = rendered(ChatPair(HERE, asked, goes_on, said("Hm.</think>120")), name)
    assert (without.chosen, without.rejected) == (texts.chosen, "Hm.</think>120<｜end▁of▁sentence｜>")
    found = prompt_of(ChatPair(HERE, asked, said(THOUGHT), said(BLANK)), name)
    assert isinstance(found, Problem)
    assert found.text.startswith("the chat template opens a thought (<think>) that this response does not have")


def test_thoughts_of_earlier_answers_are_counted_where_they_are_left_out() -> None:
    turns = (Message("user", "a"), said("<think>\nhm\n</think>\n\nb"), Message("user", "c"))
    assert rendered(ChatPair(HERE, turns, said("d"), said("e")), "qwen3").notes == ("earlier_thoughts",)
    assert rendered(ChatPair(HERE, turns, said("d"), said("e")), "qwen25").notes == ()
    assert rendered(ChatPair(HERE, SEQUENCES["earlier thought"], said("d"), said("e")), "qwen3").notes == (
        "earlier_thoughts",
    )


def test_arguments_reach_the_template() -> None:
    pair = ChatPair(HERE, (Message("user", "12*12?"),), said("144"), said(BLANK))
    texts = rendered(pair, "qwen3", arguments={"enable_thinking": False})
    assert texts.prompt.endswith("<|im_start|>assistant\n<think>\n\n</think>\n\n")
    assert (texts.chosen, texts.rejected) == ("144<|im_end|>", "120<|im_end|>")


@pytest.mark.parametrize(
    ("name", "arguments", "says"),
    [
        ("qwen3", {"enable_thinking": False}, "with enable_thinking=false the chat template"),
        ("qwen35", {"enable_thinking": False}, "with enable_thinking=false the chat template"),
        ("qwen35 without thoughts", {}, "with enable_thinking=false the chat template"),
        ("qwen35 without a switch", {}, "the chat template"),
    ],
)
@pytest.mark.parametrize(
    "answer", [said(THOUGHT), Message("assistant", "144", {"reasoning_content": "12*12 is 144."})], ids=["text", "key"]
)
def test_a_thought_behind_a_prompt_that_ends_it_is_refused_with_both_ways_out(
    answer: Message, name: str, arguments: dict[str, Any], says: str
) -> None:
    """As enable_thinking=false does, by itself or asked for; the empty thought that the prompt holds is not trained."""
    asked = (Message("user", "12*12?"),)
    tokenizer = copy.copy(tokenizer_of(name.replace("a switch", "thoughts")))
    if name.endswith("a switch"):
        tokenizer.chat_template = tokenizer.chat_template.replace("enable_thinking", "mode")
    template = ChatTemplate(tokenizer, arguments)
    found = render(ChatPair(HERE, asked, said("144"), answer), template)
    assert isinstance(found, Problem)
    args, file = "model.chat_template_args={enable_thinking: true}", "model.chat_template=FILE to one that does not"
    assert found.text == (
        f"{says} ends the thought in the prompt, but this response has one. To train on the thoughts, set "
        f"{args if 'enable' in says else file}; to train without them, take <think>...</think> out of the responses "
        "(data.ignore_keys=[reasoning_content] leaves out a thought under that key)"
    )
    texts = render(ChatPair(HERE, asked, said("<think>\n\n</think>\n\n144"), said("120")), template)
    assert isinstance(texts, RenderedPair)
    assert texts.prompt.endswith("<think>\n\n</think>\n\n")
    assert (texts.chosen, texts.rejected) == ("144<|im_end|>", "120<|im_end|>")


def test_arguments_that_the_template_has_no_use_for_are_refused() -> None:
    for name in ("enable_thinkin", "add_generation_prompt"):
        with pytest.raises(ConfigError, match=f"model.chat_template_args: {name} "):
            ChatTemplate(tokenizer_of("qwen3"), {name: False})


def test_a_system_message_is_folded_where_that_is_asked_for() -> None:
    pair = ChatPair(HERE, SEQUENCES["system"], said("Yes"), said("No"))
    found = prompt_of(pair, "gemma")
    assert isinstance(found, Problem)
    assert found.text.endswith("data.fold_system=true puts the system message before the first message of the user")
    folded = "<bos><start_of_turn>user\nBe brief.\n\nHigh tide?<end_of_turn>\n<start_of_turn>model\n"
    assert rendered(pair, "gemma", fold_system=True).prompt == folded
    named = Message("system", "Be brief.", {"name": "Zoe"})
    found = render(
        ChatPair(HERE, (named, ASKED), said("Yes"), said("No")), ChatTemplate(tokenizer_of("gemma"), None, True)
    )
    assert isinstance(found, Problem)  # the name would stand nowhere
    twice = ChatPair(HERE, (Message("system", "Be kind."), *pair.prompt), said("Yes"), said("No"))
    assert rendered(twice, "gemma", fold_system=True).prompt == folded.replace("Be brief", "Be kind.\n\nBe brief")


def test_a_developer_is_the_system_where_the_template_knows_none() -> None:
    developer, system = (rendered(ChatPair(HERE, (Message(role, "Be brief."), ASKED), said("a"), said("b")), "qwen25")
                         for role in ("developer", "system"))  # fmt: skip
    assert developer.prompt == system.prompt


def test_calls_of_an_answer_are_trained_on_or_refused() -> None:
    pair = ChatPair(HERE, (ASKED,), calling("", TIDE), said("No"))
    assert rendered(pair, "qwen25").chosen == (
        '<tool_call>\n{"name": "tide_times", "arguments": {"harbour": "Dover", "days": 31}}\n</tool_call><|im_end|>'
    )
    found = prompt_of(pair, "phi35")
    assert isinstance(found, Problem)
    assert "leaves its tool_calls[0].function.name out" in found.text
