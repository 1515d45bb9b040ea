"""Render and tokenize pairs: what is trained is what is generated, and no response loses its end."""

import json
import re
from dataclasses import dataclass, replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matrix import rows
from preferences import said
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from orpo_cli.data.pairs import ChatPair, Lengths, Message, PreferencePair, Problem, Source, TextPair
from orpo_cli.data.tokens import encoder, rendering, tokenization
from orpo_cli.data.tokens.chat_template import ChatTemplate
from orpo_cli.data.tokens.rendering import RenderedPair
from orpo_cli.data.tokens.tokenization import TokenizationSettings, TokenizedRow
from orpo_cli.errors import DataError
from orpo_cli.models.builtin import byte_tokenizer

HERE = Source("x.jsonl", 3)
ROOMY = 10_000

CHATML = """{% for m in messages %}<|im_start|>{{ m.role + '\\n' + m.content }}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""
LLAMA3 = """{% for m in messages %}{% if loop.first %}{{ bos_token }}{% endif -%}
<|start_header_id|>{{ m.role }}<|end_header_id|>\n
{{ m.content | trim }}<|eot_id|>{% endfor %}{% if add_generation_prompt -%}
<|start_header_id|>assistant<|end_header_id|>\n
{% endif %}"""
MISTRAL = """{{ bos_token }}{% for m in messages -%}
{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('roles must alternate') }}{% endif -%}
{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]{% else %} {{ m.content + eos_token }}{% endif %}{% endfor %}"""
GEMMA = """{{ bos_token }}{% if messages[0].role == 'system' %}{{ raise_exception('no system role') }}{% endif -%}
{% for m in messages %}<start_of_turn>{{ 'model' if m.role == 'assistant' else m.role }}
{{ m.content | trim }}<end_of_turn>
{% endfor %}{% if add_generation_prompt %}<start_of_turn>model
{% endif %}"""
PHI3 = """{% for m in messages %}<|{{ m.role }}|>
{{ m.content }}<|end|>
{% endfor %}{% if add_generation_prompt %}<|assistant|>
{% else %}{{ eos_token }}{% endif %}"""
QWEN3 = """{% for m in messages %}<|im_start|>{{ m.role + '\\n' -}}
{% if m.role == 'assistant' and loop.last %}<think>\n\n</think>\n\n{% endif %}{{ m.content }}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""
PLAIN_MARKS = """{% for m in messages %}### {{ m.role }}: {{ m.content }}
{% endfor %}{% if add_generation_prompt %}### assistant:{% endif %}"""
THINKING_PROMPT = CHATML.replace("<|im_start|>assistant\n{%", "<|im_start|>assistant\n<think>\n{%")
LAST_TURN_MARKED = (
    "{% for m in messages %}<|im_start|>{{ m.content }}{% if loop.last %}!{% endif %}<|im_end|>{% endfor %}"
)
LAST_TURN_ONLY = "{% for m in messages %}{% if loop.last %}<|im_start|>{{ m.content }}<|im_end|>{% endif %}{% endfor %}"


@dataclass(frozen=True)
class Family:
    """Hold a chat template, the special tokens it writes, and how it writes "Say hi" and the response "Yes"."""

    template: str
    specials: tuple[str, ...]
    bos: str | None
    eos: str
    prompt: str
    response: str


IM = ("<|im_start|>", "<|im_end|>", "<|endoftext|>")
FAMILIES = {
    "chatml": Family(
        CHATML, IM, None, "<|im_end|>", "<|im_start|>user\nSay hi<|im_end|>\n<|im_start|>assistant\n", "Yes<|im_end|>"
    ),
    "llama-3": Family(
        LLAMA3,
        ("<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
        "<|begin_of_text|>",
        "<|eot_id|>",
        "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\nSay hi<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n",
        "Yes<|eot_id|>",
    ),
    "mistral": Family(
        MISTRAL, ("<s>", "</s>", "[INST]", "[/INST]"), "<s>", "</s>", "<s>[INST] Say hi [/INST]", " Yes</s>"
    ),
    "gemma": Family(
        GEMMA,
        ("<bos>", "<eos>", "<start_of_turn>", "<end_of_turn>"),
        "<bos>",
        "<eos>",
        "<bos><start_of_turn>user\nSay hi<end_of_turn>\n<start_of_turn>model\n",
        "Yes<end_of_turn>",
    ),
    "phi-3": Family(
        PHI3,
        ("<|user|>", "<|assistant|>", "<|end|>", "<|endoftext|>"),
        None,
        "<|endoftext|>",
        "<|user|>\nSay hi<|end|>\n<|assistant|>\n",
        "Yes<|end|>",
    ),
    "qwen3": Family(
        QWEN3,
        (*IM, "<think>", "</think>"),
        None,
        "<|im_end|>",
        "<|im_start|>user\nSay hi<|im_end|>\n<|im_start|>assistant\n",
        "<think>\n\n</think>\n\nYes<|im_end|>",
    ),
    "no end token": Family(PLAIN_MARKS, ("</s>",), None, "</s>", "### user: Say hi\n### assistant:", " Yes</s>"),
}


def bytes_with(specials: tuple[str, ...], bos: str | None, eos: str | None, template: str | None = None) -> Any:
    """Return a tokenizer of bytes and special tokens; it puts a BOS, if any, in front of a text, as Llama's does."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    core = Tokenizer(models.BPE(vocab={character: place for place, character in enumerate(alphabet)}, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    core.add_special_tokens(list(specials))
    if bos:
        core.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", special_tokens=[(bos, core.token_to_id(bos))]
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token=bos, eos_token=eos, extra_special_tokens=list(specials), chat_template=template
    )


@pytest.fixture(scope="module")
def merging() -> Any:
    """Return a BPE tokenizer without pre-tokenizer, trained so that " yes", "foobar" and "?\\n" are one token each."""
    core = Tokenizer(models.BPE())
    core.decoder = decoders.Fuse()
    texts = ["foobar" * 50, "a yes a yes a yes " * 50, "ok?\n" * 50, "the quick brown fox jumps over a lazy dog" * 2]
    trainer = trainers.BpeTrainer(vocab_size=80, special_tokens=["</s>"], max_token_length=6, show_progress=False)
    core.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=core, eos_token="</s>")


def render(pair: PreferencePair, tokenizer: Any, chat: bool = True) -> RenderedPair | Problem:
    return rendering.render(pair, ChatTemplate(tokenizer) if chat else None)


def rendered(pair: PreferencePair, tokenizer: Any, chat: bool = True) -> RenderedPair:
    texts = render(pair, tokenizer, chat)
    assert isinstance(texts, RenderedPair), texts
    return texts


def refusal(pair: PreferencePair, tokenizer: Any) -> str:
    """Return why a pair cannot be rendered: the template as a whole is refused, or this row."""
    try:
        found = render(pair, tokenizer)
    except DataError as error:
        return str(error)
    assert isinstance(found, Problem)
    assert (found.source, found.reason) == (pair.source, "template")
    return str(found)


def tokenize(
    pair: PreferencePair, tokenizer: Any, chat: bool = True, max_length: int = ROOMY, policy: str = "drop"
) -> TokenizedRow | Problem:
    settings = TokenizationSettings.of(tokenizer, ChatTemplate(tokenizer) if chat else None, max_length, policy)
    (row,) = tokenization.tokenize([rendered(pair, tokenizer, chat)], settings)
    return row


def tokenized(
    pair: PreferencePair, tokenizer: Any, chat: bool = True, max_length: int = ROOMY, policy: str = "drop"
) -> TokenizedRow:
    row = tokenize(pair, tokenizer, chat, max_length, policy)
    assert isinstance(row, TokenizedRow), row
    return row


def family_tokenizer(name: str) -> Any:
    family = FAMILIES[name]
    return bytes_with(family.specials, family.bos, family.eos, family.template)


def say_hi(chosen: str = "Yes", rejected: str = "No") -> ChatPair:
    return ChatPair(HERE, (Message("user", "Say hi"),), said(chosen), said(rejected))


# Rendering


@pytest.mark.parametrize("name", FAMILIES)
def test_prompt_and_response_are_those_of_the_family(name: str) -> None:
    family, tokenizer = FAMILIES[name], family_tokenizer(name)
    texts = rendered(say_hi(), tokenizer)
    assert texts.prompt == family.prompt
    expected = family.response if texts.ends else family.response.removesuffix(family.eos)
    assert texts.chosen == expected
    assert texts.rejected == expected.replace("Yes", "No")
    row = tokenized(say_hi(), tokenizer)
    assert row.pair is not None
    assert tokenizer.decode(row.pair.prompt_ids) == family.prompt
    assert tokenizer.decode(row.pair.chosen_ids) == family.response
    assert tokenizer.decode(row.pair.rejected_ids) == family.response.replace("Yes", "No")


@pytest.mark.parametrize("name", FAMILIES)
def test_bos_stands_once_where_the_family_has_one(name: str) -> None:
    family, tokenizer = FAMILIES[name], family_tokenizer(name)
    row = tokenized(say_hi(), tokenizer)
    assert row.pair is not None
    assert tokenizer.decode(row.pair.prompt_ids).count(family.bos or "<|nothing|>") == (family.bos is not None)
    if family.bos:
        assert row.pair.prompt_ids[0] == tokenizer.bos_token_id
        assert tokenizer.bos_token_id not in row.pair.chosen_ids + row.pair.rejected_ids


@pytest.mark.parametrize("name", rows({name: name for name in FAMILIES}, "llama-3", "no end token"))
@pytest.mark.parametrize("repeats", [0, 1, 2])
def test_exactly_one_end_token_is_trained(name: str, repeats: int) -> None:
    """It is so where the response's text already ends in it, too, as in data that was rendered before."""
    family, tokenizer = FAMILIES[name], family_tokenizer(name)
    ids = tokenizer(family.response, add_special_tokens=False)["input_ids"]
    end = tokenizer.decode(ids[-1:])
    row = tokenized(say_hi("Yes" + end * repeats), tokenizer)
    assert row.pair is not None
    assert row.pair.chosen_ids == ids
    assert row.pair.chosen_ids.count(ids[-1]) == 1


@pytest.mark.parametrize("name", FAMILIES)
def test_generation_sees_the_trained_prompt(name: str) -> None:
    """Compare with the tokenizer's own way from messages to ids."""
    tokenizer = family_tokenizer(name)
    row = tokenized(say_hi(), tokenizer)
    turns = [{"role": "user", "content": "Say hi"}]
    assert row.pair is not None
    generation = tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_dict=True)
    assert row.pair.prompt_ids == generation["input_ids"]


@pytest.mark.parametrize("name", ["chatml", "llama-3", "phi-3", "qwen3"])
def test_earlier_turns_belong_to_the_prompt(name: str) -> None:
    tokenizer = family_tokenizer(name)
    turns = (Message("system", "Be kind"), Message("user", "a"), Message("assistant", "b"), Message("user", "c"))
    row = tokenized(ChatPair(HERE, turns, said("d"), said("e")), tokenizer)
    assert row.pair is not None
    prompt, chosen = tokenizer.decode(row.pair.prompt_ids), tokenizer.decode(row.pair.chosen_ids)
    assert [prompt.find(text) >= 0 for text in ("Be kind", "a", "b", "c")] == [True] * 4
    assert "d" in chosen
    assert "b" not in chosen


contents = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=20).filter(str.strip)


@pytest.mark.parametrize("name", rows({name: name for name in FAMILIES}, "llama-3", "no end token"))
def test_a_response_can_be_read_back_from_its_ids(name: str) -> None:
    family, tokenizer = FAMILIES[name], family_tokenizer(name)
    strips = "trim" in family.template

    @settings(max_examples=25, deadline=None)
    @given(contents, contents, contents)
    def check(prompt: str, chosen: str, rejected: str) -> None:
        row = tokenized(ChatPair(HERE, (Message("user", prompt),), said(chosen), said(rejected)), tokenizer)
        assert row.pair is not None
        for ids, text in ((row.pair.chosen_ids, chosen), (row.pair.rejected_ids, rejected)):
            assert tokenizer.decode(ids) == family.response.replace("Yes", text.strip() if strips else text)
        assert row.identical == (row.pair.chosen_ids == row.pair.rejected_ids)

    check()


def test_a_template_that_strips_makes_responses_that_differ_in_blanks_identical() -> None:
    assert tokenized(say_hi("hi", " hi\n"), family_tokenizer("gemma")).identical
    assert not tokenized(say_hi("hi", " hi\n"), family_tokenizer("chatml")).identical


def test_an_added_token_of_blanks_does_not_end_a_turn() -> None:
    """GPT-NeoX, Phi-2 and Gemma have added tokens that are runs of blanks."""
    template = CHATML.replace("{{ m.role + '\\n' + m.content }}", "{{ m.role + '\\n' + m.content }}\n\n")
    end = ChatTemplate(bytes_with((*IM, "\n\n"), None, "<|im_end|>", template)).end
    assert (end.kept, end.has_token) == ("\n\n<|im_end|>", True)


def test_a_longer_end_token_wins_over_its_own_beginning() -> None:
    template = "{% for m in messages %}{{ m.role }}: {{ m.content }}<end>x{% endfor %}"
    assert ChatTemplate(bytes_with(("<end>", "<end>x"), None, "<end>", template)).end.kept == "<end>x"


def test_text_is_a_users_turn_under_a_template_and_messages_are_text_without() -> None:
    tokenizer = family_tokenizer("chatml")
    as_text, as_chat = rendered(TextPair(HERE, "Say hi", "Yes", "No"), tokenizer), rendered(say_hi(), tokenizer)
    assert (as_text.notes, as_chat.notes) == (("plain_text",), ())
    assert replace(as_text, notes=()) == as_chat
    turns = (Message("user", "a"), Message("assistant", "b"), Message("user", "c"))
    texts = rendered(ChatPair(HERE, turns, said("d"), said("e")), tokenizer, chat=False)
    assert (texts.prompt, texts.chosen, texts.rejected) == ("a\n\nb\n\nc", "d", "e")


@pytest.mark.parametrize(
    ("template", "said"),
    [
        (THINKING_PROMPT, "x.jsonl:3: the chat template opens a thought (<think>) that this response does not have"),
        (LAST_TURN_MARKED, "x.jsonl:3: the chat template writes the prompt differently once it is answered: '!<|im"),
        (LAST_TURN_ONLY, "the chat template does not write the user's message"),
        ("{% for m in messages %}{{ m.role }}{% endfor %}", "does not write the assistant's message"),
        ("{{ messages[-1].content }}", "does not write the assistant's message"),
        ("{{ messages[-1].content | upper }}", "does not write the assistant's message"),
        ("{% for m in messages %}", "the chat template refuses these messages"),
        ("{{ 1 / 0 }}", "the chat template refuses these messages"),
        ("{{ messages[9].content }}", "the chat template refuses these messages"),
        ("{{ messages.__class__.__mro__ }}", "the chat template"),
        ("{{ cycler.__init__.__globals__.os.system('true') }}", "the chat template refuses these messages"),
        ("{% for i in range(10 ** 9) %}x{% endfor %}", "the chat template refuses these messages"),
        ("{{ raise_exception('not\\nthis one') }}", "the chat template refuses these messages"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "the chat template refuses these messages"),
        (
            "{% for m in messages %}[{{ m.role }}]{{ m.content }}<|im_end|>{% endfor %}"
            "{% if messages[-1].content == 'Yes' %}!{% endif %}{% if add_generation_prompt %}[assistant]{% endif %}",
            "x.jsonl:3: the chat template ends this turn in another way than others",
        ),
    ],
)
def test_a_template_that_cannot_be_trained_on_is_refused(template: str, said: str) -> None:
    assert said in refusal(say_hi(), bytes_with(IM, None, "<|im_end|>", template))


@pytest.mark.parametrize("name", ["mistral", "gemma"])
def test_a_role_the_template_refuses_is_named_with_its_line(name: str) -> None:
    pair = ChatPair(HERE, (Message("system", "s"), Message("user", "u")), said("c"), said("r"))
    assert re.match(
        r"x\.jsonl:3: the chat template refuses these messages: (roles must|no system)",
        refusal(pair, family_tokenizer(name)),
    )


@pytest.mark.parametrize("role", ["system", "user"])
def test_a_template_that_leaves_a_message_out_is_refused(role: str) -> None:
    """The first templates of Phi-3 left out the system message without a word."""
    template = CHATML.replace("in messages %}", "in messages if m.content != 'Be kind' %}")
    pair = ChatPair(
        HERE, (Message(role, "Be kind"), Message("assistant", "Ok"), Message("user", "Hi")), said("c"), said("r")
    )
    assert refusal(pair, bytes_with(IM, None, "<|im_end|>", template)) == (
        f"x.jsonl:3: message 1 ({role}): the chat template leaves it out; set model.chat_template=FILE to one that does"
        + (f"; {rendering._FOLDED}" if role == "system" else "")
    )
    assert isinstance(render(pair, family_tokenizer("chatml")), RenderedPair)


@pytest.mark.parametrize(
    ("answer", "shown"),
    [
        ("<think>\nhm\n</think>\n\nYes", "'<think>\\nhm\\n</think>\\n\\nYes' becomes 'Yes'"),
        ("Yes, but<think>", "'Yes, but<think>' becomes ''"),
    ],
)
def test_a_template_that_leaves_out_a_part_of_the_response_is_refused(answer: str, shown: str) -> None:
    """Templates leave out the thinking, some of them also that of the last answer."""
    template = CHATML.replace("m.content }}", "m.content.split('think>')[-1].strip() }}")
    assert refusal(say_hi("No", answer), bytes_with(IM, None, "<|im_end|>", template)) == (
        f"x.jsonl:3: the chat template leaves out a part of the response: {shown}; "
        "set model.chat_template=FILE to one that does not"
    )


def test_a_template_may_change_the_blanks_of_a_message() -> None:
    template = CHATML.replace("m.content }}", "m.content.split() | join('  ') }}")
    texts = rendered(say_hi(" a b\n", "c\td"), bytes_with(IM, None, "<|im_end|>", template))
    assert texts.prompt == "<|im_start|>user\nSay  hi<|im_end|>\n<|im_start|>assistant\n"
    assert (texts.chosen, texts.rejected) == ("a  b<|im_end|>", "c  d<|im_end|>")


TOOL = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}
TOOLS = CHATML.replace("{% for m", "{% if tools %}{{ tools | tojson }}{% endif %}{% for m", 1)


def test_tools_stand_in_the_prompt_or_the_row_is_refused() -> None:
    pair = ChatPair(HERE, (Message("user", "Say hi"),), said("Yes"), said("No"), tools=(TOOL,))
    with_tools = rendered(pair, bytes_with(IM, None, "<|im_end|>", TOOLS))
    without = rendered(say_hi(), family_tokenizer("chatml"))
    assert with_tools.prompt == f"[{json.dumps(TOOL)}]{without.prompt}"
    assert (with_tools.chosen, with_tools.rejected) == (without.chosen, without.rejected)
    assert refusal(pair, family_tokenizer("chatml")) == (
        "x.jsonl:3: the chat template does not write the tools; set model.chat_template=FILE to one that does, "
        "or data.columns.tools=null to train without them"
    )


@pytest.mark.parametrize(
    "pair",
    [
        ChatPair(HERE, (Message("user", "Say hi"),), said("Yes"), said("No"), tools=(TOOL,)),
        ChatPair(HERE, (Message("assistant", "", {"tool_calls": [{}]}), Message("user", "u")), said("Yes"), said("No")),
    ],
)
def test_tools_and_their_calls_are_no_plain_text(pair: ChatPair) -> None:
    found = render(pair, family_tokenizer("chatml"), chat=False)
    assert found == Problem(HERE, "tools, their calls and thoughts can only be written by a chat template", "template")


def test_what_a_template_says_is_shown_on_one_line_and_cut() -> None:
    template = (
        CHATML + "{% if messages[0].content == 'Say hi' %}{{ raise_exception('no\n\x1b[31m' ~ 'x' * 999) }}{% endif %}"
    )
    assert refusal(say_hi(), bytes_with(IM, None, "<|im_end|>", template)) == (
        f"x.jsonl:3: the chat template refuses these messages: no \\u001b[31m{'x' * 292}"
    )


def test_when_the_template_is_used() -> None:
    with_template, without = family_tokenizer("chatml"), bytes_with(("</s>",), None, "</s>")
    assert rendering.is_chat(True, None, with_template)
    assert not rendering.is_chat(False, None, with_template)
    assert not rendering.is_chat(False, None, without)
    assert rendering.is_chat(True, "auto", with_template)
    assert rendering.is_chat(False, "auto", with_template)
    assert not rendering.is_chat(False, "auto", without)
    for has_messages in (False, True):
        assert rendering.is_chat(has_messages, True, with_template)
        assert not rendering.is_chat(has_messages, False, without)
    for has_messages, setting in ((True, None), (True, "auto"), (False, True)):
        with pytest.raises(DataError, match="no chat template"):
            rendering.is_chat(has_messages, setting, without)


def test_a_row_of_the_other_kind_is_named_with_its_line() -> None:
    text, chat = TextPair(Source("x", 7), "p", "c", "r"), say_hi()
    rendering.refuse_other_kind(text, False)
    rendering.refuse_other_kind(chat, True)
    with pytest.raises(DataError, match=r"^x:7: plain text, but the rows before are chat messages; "):
        rendering.refuse_other_kind(text, True)
    with pytest.raises(DataError, match=r"^x\.jsonl:3: chat messages, but the rows before are plain text; "):
        rendering.refuse_other_kind(chat, False)


# Tokenization of plain text


@pytest.mark.parametrize("bos", [None, "<s>"])
def test_plain_text_has_the_tokenizers_bos_and_one_end(bos: str | None) -> None:
    tokenizer = bytes_with(("<s>", "</s>"), bos, "</s>")
    row = tokenized(TextPair(HERE, "ab", "cd", "e</s>"), tokenizer, chat=False)
    assert row.pair is not None
    assert tokenizer.decode(row.pair.prompt_ids) == (bos or "") + "ab"
    assert tokenizer.decode(row.pair.chosen_ids) == "cd</s>"
    assert tokenizer.decode(row.pair.rejected_ids) == "e</s>"


def test_a_bos_in_the_text_is_not_doubled() -> None:
    tokenizer = bytes_with(("<s>", "</s>"), "<s>", "</s>")
    row = tokenized(TextPair(HERE, "<s>ab", "cd", "ef"), tokenizer, chat=False)
    assert row.pair is not None
    assert tokenizer.decode(row.pair.prompt_ids) == "<s>ab"


def test_a_response_that_is_only_the_end_is_never_empty() -> None:
    tokenizer = bytes_with(("</s>",), None, "</s>")
    row = tokenized(TextPair(HERE, "p", "</s></s>", "r"), tokenizer, chat=False)
    assert row.pair is not None
    assert row.pair.chosen_ids == [tokenizer.eos_token_id]


def test_a_tokenizer_without_an_end_is_refused() -> None:
    with pytest.raises(DataError, match="no end-of-sequence token: set eos_token"):
        encoder.special_ids(bytes_with(("</s>",), None, None))


def test_a_text_that_leaves_no_token_is_a_problem_of_its_row() -> None:
    tokenizer = bytes_with(("</s>",), None, "</s>")
    tokenizer.backend_tokenizer.normalizer = normalizers.Replace("-", "")
    pairs = [
        TextPair(Source("x", line), *texts)
        for line, texts in enumerate(
            [("p", "c", "r"), ("-", "c", "r"), ("p", "--", "r"), ("p", "c", "-"), ("-p", "c", "r")], 1
        )
    ]
    plain = TokenizationSettings.of(tokenizer, None, ROOMY, "drop")
    rows = tokenization.tokenize([rendered(pair, tokenizer, chat=False) for pair in pairs], plain)
    lost = "a prompt or response without a single token"
    assert rows[1:4] == [Problem(Source("x", line), lost, "no_tokens") for line in (2, 3, 4)]
    assert rows[4] == rows[0]
    assert tokenization.tokenize([], plain) == []


def test_special_tokens_that_a_user_wrote_are_counted() -> None:
    """They are encoded as the tokens they name, as at generation; in a response one ends the turn too early."""
    tokenizer = family_tokenizer("chatml")
    turns = (Message("system", "Be kind"), Message("user", "Hi<|im_end|>\n<|im_start|>system"))
    row = tokenized(ChatPair(HERE, turns, said("Yes<|im_end|> or no"), said("No")), tokenizer)
    assert row.control_tokens == 3
    assert row.pair is not None
    assert row.pair.prompt_ids.count(tokenizer.eos_token_id) == 3
    assert row.pair.chosen_ids.count(tokenizer.eos_token_id) == 2
    assert tokenized(say_hi(), tokenizer).control_tokens == 0
    text = TextPair(HERE, "<|im_start|>p", "c", "r<|im_end|>")
    assert tokenized(text, tokenizer, chat=False).control_tokens == 2


MERGES = [("foo", "bar", "bard"), ("a", " yes", " no"), ("ok?", "\nfox", "dog")]


@pytest.mark.parametrize(("prompt", "chosen", "rejected"), MERGES)
def test_a_token_over_the_boundary_is_counted_and_avoided(
    merging: Any, prompt: str, chosen: str, rejected: str
) -> None:
    alone = merging(prompt)["input_ids"]
    whole = merging(prompt + chosen)["input_ids"]
    assert whole[: len(alone)] != alone, "no merge over the boundary: the test says nothing"
    row = tokenized(TextPair(HERE, prompt, chosen, rejected), merging, chat=False)
    assert row.boundary_merged
    assert row.pair is not None
    assert row.pair.prompt_ids == alone
    assert row.pair.chosen_ids == [*merging(chosen)["input_ids"], merging.eos_token_id]
    assert row.pair.rejected_ids == [*merging(rejected)["input_ids"], merging.eos_token_id]


def test_without_a_merge_the_response_is_what_the_whole_text_adds(merging: Any) -> None:
    row = tokenized(TextPair(HERE, "fox", "jumps", "dog"), merging, chat=False)
    assert not row.boundary_merged
    assert row.pair is not None
    assert row.pair.prompt_ids + row.pair.chosen_ids[:-1] == merging("foxjumps")["input_ids"]


words = st.lists(
    st.sampled_from(["foo", "bar", "a", " yes", "ok?", "\n", " dog", "fox", "o", "y"]), min_size=1, max_size=5
)


@given(words.map("".join), words.map("".join), words.map("".join))
@settings(deadline=None)
def test_texts_survive_any_merge(merging: Any, prompt: str, chosen: str, rejected: str) -> None:
    row = tokenized(TextPair(HERE, prompt, chosen, rejected), merging, chat=False)
    assert row.pair is not None
    assert row.pair.prompt_ids == merging(prompt)["input_ids"]
    for ids, text in ((row.pair.chosen_ids, chosen), (row.pair.rejected_ids, rejected)):
        assert merging.decode(ids) == text + "</s>"


# The length policies: prompt of 6 tokens with its BOS, responses of 4 and 3 with their end; 10 in all


SIX_FOUR_THREE = TextPair(HERE, "abcde", "fgh", "ij")


@pytest.mark.parametrize(
    ("policy", "limit", "row_class", "kept"),
    [
        ("drop", 10, "kept", ("<s>abcde", "fgh</s>", "ij</s>")),
        ("drop", 9, "dropped:too_long", None),
        ("drop", 7, "dropped:too_long", None),
        ("drop", 6, "dropped:prompt_too_long", None),
        ("truncate_prompt", 10, "kept", ("<s>abcde", "fgh</s>", "ij</s>")),
        ("truncate_prompt", 9, "prompt_truncated", ("<s>bcde", "fgh</s>", "ij</s>")),
        ("truncate_prompt", 6, "prompt_truncated", ("<s>e", "fgh</s>", "ij</s>")),
        ("truncate_prompt", 5, "dropped:too_long", None),
        ("truncate_response", 10, "kept", ("<s>abcde", "fgh</s>", "ij</s>")),
        ("truncate_response", 9, "response_truncated", ("<s>abcde", "fgh", "ij</s>")),
        ("truncate_response", 8, "response_truncated", ("<s>abcde", "fg", "ij")),
        ("truncate_response", 7, "response_truncated", ("<s>abcde", "f", "i")),
        ("truncate_response", 6, "dropped:prompt_too_long", None),
        ("error", 10, "kept", ("<s>abcde", "fgh</s>", "ij</s>")),
    ],
)
def test_each_length_policy_at_its_borders(
    policy: str, limit: int, row_class: str, kept: tuple[str, ...] | None
) -> None:
    tokenizer = bytes_with(("<s>", "</s>"), "<s>", "</s>")
    row = tokenized(SIX_FOUR_THREE, tokenizer, False, limit, policy)
    assert row.row_class == row_class
    assert row.lengths == Lengths(prompt=6, chosen=4, rejected=3)
    found = row.pair and tuple(tokenizer.decode(ids) for ids in vars(row.pair).values())
    assert found == kept


def test_the_error_policy_names_the_row_and_the_way_out() -> None:
    with pytest.raises(
        DataError, match=r"^x\.jsonl:3: prompt 6 \+ response 4 tokens is over data\.max_length=9; raise"
    ):
        tokenized(SIX_FOUR_THREE, bytes_with(("<s>", "</s>"), "<s>", "</s>"), False, 9, "error")


def test_a_templates_own_bos_survives_a_cut_prompt() -> None:
    tokenizer = family_tokenizer("llama-3")
    whole = tokenized(say_hi(), tokenizer)
    cut = tokenized(
        say_hi(), tokenizer, max_length=whole.lengths.prompt + whole.lengths.chosen - 5, policy="truncate_prompt"
    )
    assert whole.pair is not None
    assert cut.pair is not None
    assert cut.pair.prompt_ids == [tokenizer.bos_token_id, *whole.pair.prompt_ids[6:]]


def test_responses_cut_to_the_same_tokens_are_counted_as_identical() -> None:
    tokenizer = bytes_with(("</s>",), None, "</s>")
    pair = TextPair(HERE, "ab", "same start", "same end")
    assert tokenized(pair, tokenizer, False, 7, "truncate_response").identical
    assert not tokenized(pair, tokenizer, False, 10, "truncate_response").identical


@given(
    contents, contents, contents, st.integers(2, 60), st.sampled_from(["drop", "truncate_prompt", "truncate_response"])
)
@settings(deadline=None)
def test_what_is_kept_fits_and_has_no_empty_part(
    prompt: str, chosen: str, rejected: str, limit: int, policy: str
) -> None:
    row = tokenized(TextPair(HERE, prompt, chosen, rejected), byte_tokenizer(), False, limit, policy)
    assert (row.pair is None) == row.row_class.startswith("dropped:")
    if row.pair is not None:
        longest = max(len(row.pair.chosen_ids), len(row.pair.rejected_ids))
        assert all(vars(row.pair).values())
        assert len(row.pair.prompt_ids) + longest <= limit
    if policy != "truncate_response" and row.pair is not None:
        assert row.lengths[1:] == (len(row.pair.chosen_ids), len(row.pair.rejected_ids))


def test_a_batch_gives_each_pair_the_ids_it_has_alone(merging: Any) -> None:
    pairs = [TextPair(Source("x", line), *texts) for line, texts in enumerate([*MERGES, ("fox", "jumps", "dog")], 1)]
    texts = [rendered(pair, merging, chat=False) for pair in pairs]
    together = tokenization.tokenize(texts, TokenizationSettings.of(merging, None, ROOMY, "drop"))
    assert together == [tokenized(pair, merging, chat=False) for pair in pairs]
