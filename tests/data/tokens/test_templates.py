"""Render chat templates of the kinds real models have, and hostile ones, over tokenizers of every kind."""

import functools
import resource
import signal
import threading
import time
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matrix import rows
from preferences import said
from small_tokenizers import KINDS, small_tokenizer

from orpo_cli.data.pairs import ChatPair, Message, Problem, ProblemError, Source
from orpo_cli.data.tokens import chat_template, rendering, template_limits, tokenization
from orpo_cli.data.tokens.chat_template import ChatTemplate
from orpo_cli.data.tokens.rendering import RenderedPair
from orpo_cli.data.tokens.tokenization import TokenizationSettings, TokenizedRow
from orpo_cli.errors import DataError

TEMPLATES = Path(__file__).parent / "templates"
HERE = Source("x.jsonl", 3)


def as_it_is(content: str) -> str:
    return content


def without_first_newlines(content: str) -> str:
    return content.lstrip("\n")


@dataclass(frozen=True)
class Family:
    """Describe a chat template.

    Args:
        special: the special tokens beside bos and eos.
        end: the text it writes behind an answer, as far as that is trained.
        start: the text it writes before an answer, behind the generation prompt.
        keeps: the function that turns an answer into what it writes of it.
        writes_bos, has_system, has_tools: whether it writes a BOS, takes a system message, takes tools.
    """

    special: tuple[str, ...]
    eos: str
    end: str
    bos: str = "<s>"
    start: str = ""
    keeps: Callable[[str], str] = as_it_is
    writes_bos: bool = False
    has_system: bool = True
    has_tools: bool = False


HEADERS = ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")
IM = ("<|im_start|>", "<|endoftext|>")
FAMILIES = {
    "chatml": Family(IM, "<|im_end|>", "<|im_end|>"),
    "chatml_default_system": Family(IM, "<|im_end|>", "<|im_end|>"),
    "llama3": Family(HEADERS, "<|end_of_text|>", "<|eot_id|>", "<|begin_of_text|>", "", str.strip, True),
    "llama31": Family(HEADERS, "<|eot_id|>", "<|eot_id|>", "<|begin_of_text|>", "", str.strip, True, has_tools=True),
    "mistral": Family(("[INST]", "[/INST]"), "</s>", "</s>", start=" ", writes_bos=True),
    "gemma": Family(
        ("<start_of_turn>", "<end_of_turn>"), "<eos>", "<end_of_turn>", "<bos>", "", str.strip, True, has_system=False
    ),
    "phi3": Family(("<|system|>", "<|user|>", "<|assistant|>", "<|end|>"), "<|endoftext|>", "<|end|>"),
    "zephyr": Family((), "</s>", "</s>"),
    "qwen25": Family(IM, "<|im_end|>", "<|im_end|>", has_tools=True),
    "qwen3": Family(
        IM,
        "<|im_end|>",
        "<|im_end|>",
        start="<think>\n\n</think>\n\n",
        keeps=without_first_newlines,
        has_tools=True,
    ),
    "trimming": Family((), "</s>", "\n[END]", keeps=str.strip),
    "eos_after_assistant": Family((), "</s>", "</s>"),
    "no_special_token": Family((), "</s>", ""),
}
CHANGING = {
    "deepseek_r1": Family(
        ("<｜User｜>", "<｜Assistant｜>"),
        "<｜end▁of▁sentence｜>",
        "<｜end▁of▁sentence｜>",
        "<｜begin▁of▁sentence｜>",
        writes_bos=True,
    ),
    "mistral_nemo": Family(("[INST]", "[/INST]"), "</s>", "</s>", writes_bos=True),
}
"""Templates whose prompts change once they are answered."""


EACH_FAMILY = rows({name: name for name in FAMILIES}, "llama3", "mistral", "qwen3")


def template(name: str) -> str:
    return (TEMPLATES / f"{name}.jinja").read_text(encoding="utf-8")


@functools.cache
def tokenizer_of(name: str, kind: str, adds_bos: bool = False, pad_is_eos: bool = False) -> Any:
    family = (FAMILIES | CHANGING)[name]
    pad = family.eos if pad_is_eos else None
    return small_tokenizer(kind, family.special, family.bos, family.eos, template(name), adds_bos=adds_bos, pad=pad)


# Conversations


WORDS = [
    *(" ", "  ", "\n", "\n\n", "\r\n", "\t", "\u2028", "\u200d", "\u00a0"),
    *("user", "assistant", "system", "model", "tool", "ASSISTANT:", "### user:", "Human:", "[INST", "/INST]", "[END"),
    *("<", "|>", "<|", "<|im", "_end|>", "im_end|>", "<|user", "<s", "</s", "s>", "<think", "of_turn>", "<0x41>"),
    *("yes", " of course", "é", "e\u0301", "東京", "🙂", "1234567", "{{ x }}", "{% if %}", "\\n", "'", '"'),
]
TOOLS = [
    {"type": "function", "function": {"name": name, "description": words, "parameters": {"type": "object"}}}
    for name, words in (("weather", 'What it is "like"\noutside: é <b>'), ("clock", "The time"))
]


def contents(family: Family) -> st.SearchStrategy[str]:
    """Draw texts of every sort, but without a whole special token and with something in them."""
    marks = (*family.special, family.bos, family.eos, "</think>", "▁")
    any_text = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=6)
    texts = st.lists(st.sampled_from(WORDS) | any_text, min_size=1, max_size=6).map("".join)
    return texts.filter(lambda text: text.strip() and not any(mark in text for mark in marks))


@st.composite
def pairs(draw: st.DrawFn, family: Family) -> ChatPair:
    text = contents(family)
    turns = [Message("system", draw(text))] if family.has_system and draw(st.booleans()) else []
    for _ in range(draw(st.integers(0, 2))):
        turns += [Message("user", draw(text)), Message("assistant", draw(text))]
    turns.append(Message("user", draw(text)))
    tools = draw(st.sampled_from([[], TOOLS[:1], TOOLS])) if family.has_tools else []
    return ChatPair(HERE, tuple(turns), said(draw(text)), said(draw(text)), tools=tuple(tools))


def turns_of(pair: ChatPair, *answer: str) -> list[dict[str, Any]]:
    turns = [{"role": turn.role, "content": turn.content, **turn.others} for turn in pair.prompt]
    return turns + [{"role": "assistant", "content": text} for text in answer]


def called(tokenizer: Any, text: str) -> list[int]:
    ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    return ids


def rendered(pair: ChatPair, tokenizer: Any) -> RenderedPair:
    texts = rendering.render(pair, ChatTemplate(tokenizer))
    assert isinstance(texts, RenderedPair), texts
    return texts


def tokenized(pair: ChatPair, tokenizer: Any) -> TokenizedRow:
    settings = TokenizationSettings.of(tokenizer, ChatTemplate(tokenizer), 100_000, "error")
    (row,) = tokenization.tokenize([rendered(pair, tokenizer)], settings)
    assert isinstance(row, TokenizedRow), row
    assert row.pair is not None
    return row


def test_every_template_is_walked_through() -> None:
    assert {path.stem for path in TEMPLATES.glob("*.jinja")} == set(FAMILIES | CHANGING)
    assert set(SAID) | REFUSED_AS_A_WHOLE <= set(HOSTILE)
    assert len(HOSTILE) == 23


# What holds for every template and every tokenizer


@pytest.mark.parametrize("name", EACH_FAMILY)
def test_texts_are_the_prompt_that_is_generated_from_and_the_answers(name: str) -> None:
    family, tokenizer = FAMILIES[name], tokenizer_of(name, "gpt2")

    @settings(max_examples=20, deadline=None)
    @given(pairs(family))
    def check(pair: ChatPair) -> None:
        texts = rendered(pair, tokenizer)
        options = {"tools": list(pair.tools) or None, "tokenize": False}
        assert texts.prompt == tokenizer.apply_chat_template(turns_of(pair), add_generation_prompt=True, **options)
        for answer, text in ((pair.chosen.content, texts.chosen), (pair.rejected.content, texts.rejected)):
            assert text == family.start + family.keeps(answer) + family.end
            whole = tokenizer.apply_chat_template(turns_of(pair, answer), **options)
            assert whole.startswith(texts.prompt + text)
        assert all(tool["function"]["name"] in texts.prompt for tool in pair.tools)

    check()


@pytest.mark.parametrize("name", EACH_FAMILY)
def test_ids_are_those_of_the_whole_conversation_with_one_end_and_no_second_beginning(name: str) -> None:
    family = FAMILIES[name]

    @settings(max_examples=40, deadline=None)
    @given(pairs(family), st.sampled_from(list(KINDS)), st.booleans(), st.booleans())
    def check(pair: ChatPair, kind: str, adds_bos: bool, pad_is_eos: bool) -> None:
        tokenizer = tokenizer_of(name, kind, adds_bos, pad_is_eos)
        row, texts = tokenized(pair, tokenizer), rendered(pair, tokenizer)
        assert row.pair is not None
        options = {"tools": list(pair.tools) or None, "return_dict": True}
        generation = tokenizer.apply_chat_template(turns_of(pair), add_generation_prompt=True, **options)
        assert row.pair.prompt_ids == generation["input_ids"]
        end = TokenizationSettings.of(tokenizer, ChatTemplate(tokenizer), 100_000, "error").end_id
        answers = (
            (pair.chosen.content, texts.chosen, row.pair.chosen_ids),
            (pair.rejected.content, texts.rejected, row.pair.rejected_ids),
        )
        for answer, text, ids in answers:
            whole = row.pair.prompt_ids + ids
            assert ids.index(end) == len(ids) - 1
            assert whole.count(tokenizer.bos_token_id) == family.writes_bos
            scored = whole if texts.ends else whole[:-1]
            if not row.boundary_merged:
                assert scored == called(tokenizer, texts.prompt + text)
            if not row.boundary_merged and texts.ends:
                conversation = tokenizer.apply_chat_template(turns_of(pair, answer), **options)["input_ids"]
                assert conversation[: len(whole)] == whole
            assert_read_back(tokenizer, kind, row.pair.prompt_ids, scored, text, family.keeps(answer))

    check()


def assert_read_back(tokenizer: Any, kind: str, prompt: list[int], ids: list[int], text: str, answer: str) -> None:
    """Check that ids give the response back; some tokenizers take or give blanks beside their special tokens."""
    before, read = tokenizer.decode(prompt), tokenizer.decode(ids)
    if KINDS[kind].keeps_blanks:
        form = KINDS[kind].normal_form
        assert read == before + (unicodedata.normalize(form, text) if form else text)
    else:
        assert answer.strip() in read[len(before) :]


@pytest.mark.parametrize("name", EACH_FAMILY)
def test_special_tokens_that_the_data_writes_are_counted(name: str) -> None:
    """They become the tokens they name, in training as at generation, so that a user can end a turn."""
    family = FAMILIES[name]
    marks = [*family.special, family.bos, family.eos]

    @settings(max_examples=20, deadline=None)
    @given(pairs(family), st.sampled_from(list(KINDS)), st.lists(st.sampled_from(marks), max_size=4), st.booleans())
    def check(pair: ChatPair, kind: str, injected: list[str], in_answer: bool) -> None:
        tokenizer = tokenizer_of(name, kind)
        text = "".join(f"a{mark}b" for mark in injected) + "c"
        *earlier, last = pair.prompt
        asked = (*earlier, last if in_answer else Message("user", text))
        changed = ChatPair(HERE, asked, said(text) if in_answer else pair.chosen, pair.rejected, tools=pair.tools)
        row = tokenized(changed, tokenizer)
        assert row.control_tokens == len(injected)
        assert row.pair is not None
        options = {"tools": list(pair.tools) or None, "return_dict": True}
        generation = tokenizer.apply_chat_template(turns_of(changed), add_generation_prompt=True, **options)
        assert row.pair.prompt_ids == generation["input_ids"]
        for mark in marks:
            number = tokenizer.convert_tokens_to_ids(mark)
            written = rendered(changed, tokenizer)
            assert (row.pair.prompt_ids + row.pair.chosen_ids).count(number) == (
                (written.prompt + written.chosen).count(mark) + (mark == family.eos and not written.ends)
            )

    check()


# Against templates written by others


REFERENCES = {
    "llama3": "llama3",
    "llama31": "llama3_1",
    "gemma": "gemma",
    "phi3": "phi3",
    "qwen25": "qwen2_5",
    "qwen3": "qwen3",
    "deepseek_r1": "deepseek_r1_distill",
}
"""Our template -> the file among TRL's that holds the real model's."""

CALLS = (
    Message("user", "How is it in 東京?"),
    Message(
        "assistant",
        "I look.",
        {
            "tool_calls": [
                {"type": "function", "function": {"name": "weather", "arguments": {"place": "東京", "days": 1}}}
            ]
        },
    ),
    Message("tool", "rain <b>", {"name": "weather"}),
    Message("assistant", "It rains."),
    Message("user", "And <think>now?"),
)
THOUGHTS = (
    Message("user", "a"),
    Message("assistant", "<think>\nhm\n</think>\n\nb"),
    Message("user", "c"),
)


@pytest.mark.skipif(find_spec("trl") is None, reason="TRL is a peer, installed for comparison")
@pytest.mark.parametrize("name", rows({name: name for name in REFERENCES}, "qwen3"))
def test_templates_write_what_the_real_ones_write(name: str) -> None:
    family = (FAMILIES | CHANGING)[name]
    tokenizer = tokenizer_of(name, "gpt2")
    trl = Path(str(find_spec("trl").submodule_search_locations[0]))  # type: ignore[union-attr,index]
    real = (trl / "chat_templates" / f"{REFERENCES[name]}.jinja").read_text(encoding="utf-8")

    def assert_same(pair: ChatPair) -> None:
        for turns, opens in ((turns_of(pair), True), (turns_of(pair, pair.chosen.content), False)):
            options = {"tools": list(pair.tools) or None, "tokenize": False, "add_generation_prompt": opens}
            found = tokenizer.apply_chat_template(turns, **options)
            assert found == tokenizer.apply_chat_template(turns, chat_template=real, **options)

    @settings(max_examples=40, deadline=None)
    @given(pairs(family))
    def check(pair: ChatPair) -> None:
        assert_same(pair)

    check()
    assert_same(ChatPair(HERE, THOUGHTS, said("<think>\nso\n</think>\n\nd"), said("d")))
    if family.has_tools:
        assert_same(ChatPair(HERE, CALLS, said("Yes"), said("No"), tools=tuple(TOOLS)))


# Thinking, and prompts that change


def test_thinking_of_the_answer_is_trained_and_that_of_earlier_turns_is_left_out() -> None:
    texts = rendered(
        ChatPair(HERE, THOUGHTS, said("<think>\nso\n</think>\n\nd"), said("\ne")), tokenizer_of("qwen3", "qwen")
    )
    assert "hm" not in texts.prompt
    assert texts.chosen == "<think>\nso\n</think>\n\nd<|im_end|>"
    assert texts.rejected == "<think>\n\n</think>\n\ne<|im_end|>"


def test_a_prompt_that_changes_once_it_is_answered_is_shown_both_ways() -> None:
    tokenizer = tokenizer_of("mistral_nemo", "gpt2")
    turns = (Message("system", "Be kind"), Message("user", "Hi"))
    found = rendering.render(ChatPair(HERE, turns, said("Yes"), said("No")), ChatTemplate(tokenizer))
    assert isinstance(found, Problem)
    assert str(found) == (
        "x.jsonl:3: the chat template writes the prompt differently once it is answered: "
        "'Be kind\\n\\nHi[/INST]' becomes 'Hi[/INST]Yes</s>'; such a template cannot be trained on. "
        "Set model.chat_template=FILE to one without this, or data.chat_template=false"
    )
    assert found.reason == "template"


def test_a_template_that_changes_some_prompts_only_takes_the_others() -> None:
    pair = ChatPair(HERE, (Message("user", "Hi"),), said("Yes"), said("No"))
    assert rendered(pair, tokenizer_of("mistral_nemo", "mistral")).chosen == "Yes</s>"


# Hostile templates


HOSTILE = sorted(path.stem for path in (TEMPLATES / "hostile").iterdir())
SAID = {
    "endless_loops": "the chat template takes longer than 0.4 seconds",
    "long_list": "the chat template takes ",  # what comes first is the machine's
    "multiplied_text": "the chat template takes more than 100 MB of memory",
    "multiplied_list": "the chat template takes more than 100 MB of memory",
    "padded_text": "the chat template takes more than 100 MB of memory",
    "formatted_number": "the chat template takes more than 100 MB of memory",
    "doubled_text": "the chat template takes more than 100 MB of memory",
    "repeated_content": "the chat template makes ",
    "different_each_time": "the chat template writes the same messages differently each time: ",
    "writes_nothing": "the chat template does not write the assistant's message",
    "raises_at_length": "the chat template refuses these messages: no \\u001b[31mred red",
}
REFUSED_AS_A_WHOLE = {"extends_a_file", "huge_number", "not_a_template"}
"""Templates that fail before they are run, or that can only stand alone."""

REFUSED = "the chat template refuses these messages: "


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_template_ends_in_a_refusal(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It ends in time, and nothing is run."""
    monkeypatch.setattr(chat_template, "RENDER_SECONDS", 0.4)
    monkeypatch.setattr(chat_template, "RENDER_BYTES", 100 << 20)
    monkeypatch.setenv("ORPO_TEST_MARK", str(tmp_path / "mark"))
    tokenizer = small_tokenizer("gpt2", ("<|end|>",), None, "</s>", template(f"hostile/{name}"))
    started = time.monotonic()
    with pytest.raises(DataError) as refusal:
        ChatTemplate(tokenizer)
    assert time.monotonic() - started < 5
    assert not (tmp_path / "mark").exists()
    said = str(refusal.value)
    assert said.startswith(SAID.get(name, REFUSED))
    assert len(said) < 600
    assert said.isprintable()


@pytest.mark.parametrize("name", [name for name in HOSTILE if name not in REFUSED_AS_A_WHOLE])
def test_a_template_that_is_hostile_to_one_row_costs_that_row(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chat_template, "RENDER_SECONDS", 0.4)
    monkeypatch.setattr(chat_template, "RENDER_BYTES", 100 << 20)
    hostile = template(f"hostile/{name}").removesuffix("\n")
    both = f"{{%- if messages[0].content == 'now' -%}}{hostile}{{%- else -%}}{template('chatml')}{{%- endif -%}}"
    tokenizer = small_tokenizer("gpt2", IM, None, "<|im_end|>", both)
    chat = ChatTemplate(tokenizer)
    started = time.monotonic()
    found = rendering.render(ChatPair(HERE, (Message("user", "now"),), said("Yes"), said("No")), chat)
    assert time.monotonic() - started < 5
    assert isinstance(found, Problem), found
    assert (found.source, found.reason) == (HERE, "template")
    assert (
        rendered(ChatPair(HERE, (Message("user", "later"),), said("Yes"), said("No")), tokenizer).chosen
        == "Yes<|im_end|>"
    )


# The limits themselves


def test_an_alarm_that_somebody_else_has_set_still_goes_off() -> None:
    """A test runner that limits the time of a test sets one."""
    heard: list[int] = []
    handler = signal.signal(signal.SIGALRM, lambda *_: heard.append(1))
    timer = signal.setitimer(signal.ITIMER_REAL, 0.3)
    try:
        with template_limits.limited_time(5):
            time.sleep(0.1)
        left = signal.getitimer(signal.ITIMER_REAL)[0]
        assert 0 < left <= 0.2
        assert not heard
        time.sleep(left + 0.05)
        assert heard == [1]
    finally:
        signal.signal(signal.SIGALRM, handler)
        signal.setitimer(signal.ITIMER_REAL, *timer)


def test_the_memory_limit_ends_with_what_it_limits() -> None:
    before = resource.getrlimit(resource.RLIMIT_AS)
    with pytest.raises(ProblemError, match="more than 100 MB"), template_limits.limited_memory(100 << 20):
        bytearray(2000 << 20)  # far more than what was freed before and is still the process's
    assert resource.getrlimit(resource.RLIMIT_AS) == before
    with template_limits.limited_memory(100 << 20):
        assert len(bytearray(60 << 20)) == 60 << 20
        assert resource.getrlimit(resource.RLIMIT_AS)[1] == before[1]


def test_a_thread_renders_without_a_limit_on_time() -> None:
    """Only a main thread can be interrupted."""
    found: list[bool] = []

    def work() -> None:
        with template_limits.limited_time(0.01):
            time.sleep(0.05)
            found.append(True)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [True]
