"""Compare the short way from texts to ids with the plain one: the ids are the same, whatever the tokenizer."""

from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matrix import rows
from small_tokenizers import KINDS, LOSING_KINDS, small_tokenizer
from tokenizers import AddedToken
from transformers import ByT5Tokenizer, PreTrainedTokenizerFast

from orpo_cli.data.tokens.encoder import Encoder

MARKS = ("<|im_start|>", "<|im_end|>", "<|end|>", "<|end|>x", "<unk>")
PIECES = [
    *MARKS,
    *(" ", "  ", "\n", "\n\n", "\t", "\r\n", " \n"),
    *("x", "foo", "bar", "ba", "rd", " yes", "ye", "s", "user", "assistant", "don", "'t", "12", "345"),
    *("é", "e", "\u0301", "🙂", "\u200d", "東京", "İ", "ΑΣ", "☃", "\u00a0", "▁", "<0x41>", "<|im", "_end|>", "<", "|>"),
]


def texts(*more: str, least: int = 0) -> st.SearchStrategy[str]:
    """Draw texts in which special tokens stand anywhere, beside each other and beside what may merge."""
    return st.lists(st.sampled_from([*PIECES, *more]) | st.text(max_size=4), min_size=least, max_size=8).map("".join)


def called(tokenizer: Any, text: str) -> list[int]:
    ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    return ids


def plain(tokenizer: Any, prompt: str, response: str) -> list[int] | None:
    """Return what a response adds to the ids of its prompt, by calling the tokenizer on the whole text."""
    before, whole = called(tokenizer, prompt), called(tokenizer, prompt + response)
    return whole[len(before) :] if whole[: len(before)] == before else None


def assert_same(tokenizer: Any, prompts: list[str], responses: list[str]) -> None:
    encoder = Encoder(tokenizer)
    ids = encoder.ids(prompts)
    assert ids == [called(tokenizer, prompt) for prompt in prompts]
    (found,) = encoder.responses(prompts, ids, responses)
    assert found == [plain(tokenizer, *texts) for texts in zip(prompts, responses, strict=True)]


@pytest.mark.parametrize("kind", rows({kind: kind for kind in [*KINDS, *LOSING_KINDS]}, "gpt2", "llama2", "unknown"))
def test_a_response_has_the_ids_that_the_whole_text_gives_it(kind: str) -> None:
    tokenizer = small_tokenizer(kind, MARKS, "<s>", "</s>", adds_bos=True, pad="</s>")

    @settings(max_examples=80, deadline=None)
    @given(st.lists(st.tuples(texts("<s>", "</s>"), texts("<s>", "</s>")), min_size=1, max_size=6))
    def check(pairs: list[tuple[str, str]]) -> None:
        assert_same(tokenizer, [prompt for prompt, _ in pairs], [response for _, response in pairs])

    check()


@pytest.mark.parametrize(
    ("kind", "added", "prompt", "response"),
    [
        # what stands in for unknown letters has the id of a token that also stands in the prompt
        ("unknown", {"<unk>": {}}, "<unk> ☃", " ☃"),
        ("unknown", {"<unk>": {}, "x<u": {}}, "<unk> ☃ x<unk>", " yes"),
        # a longer token begins before the last one of the prompt, and ends in the response
        ("gpt2", {"ab": {}, "bc": {}, "abbczz": {}}, "abbc", "zz"),
        ("gpt2", {"xy": {}, "axyzz": {}}, "axy", "zz"),
        ("gpt2", {"<|a|>": {}, "|>b": {}}, "<|a|>", "b"),
        # a token that goes on in the response, or in the prompt
        ("gpt2", {"<|end|>": {}, "<|end|>x": {}}, "yes<|end|>", "xyz"),
        ("unknown", {"<unk>": {}, "<unk>x": {}}, "<unk> ☃ <unk>x", " yes"),
        # a token that stands there twice, or ends as it begins
        ("gpt2", {"<a>": {}}, "<a>foo<a>bar", " yes"),
        ("gpt2", {"aba": {}}, "ababa", " yes"),
        # a token that is looked for in the normalized text, where a blank precedes it
        ("llama2", {"user": {"normalized": True}}, "hi user", " yes"),
        ("unknown", {"xy": {"normalized": True}, "yz": {"normalized": True}}, "XyzYZ", "foo"),
        ("qwen", {"K": {"normalized": True}}, "\u212a K\u0327", " yes"),
        # a token that is none inside a word, and alone is a whole one
        ("gpt2", {"end": {"single_word": True}}, "friend end", " ends"),
        ("mistral", {"user": {"single_word": True}}, "<|user", "x"),
        ("gpt2", {"<a>": {}, "foobar": {"single_word": True}}, "<a>barfoobar", "foobar"),
        # tokens that take the blanks around them, on both sides of the boundary
        ("llama3", {"<a>": {"rstrip": True}}, "x<a>\n", "\n yes"),
        ("llama3", {"<a>": {"lstrip": True}}, "x<a> ", " <a>"),
        ("mistral", {"<a>": {"rstrip": True}, "<b>": {"lstrip": True}}, "<a> \n", " <b>yes"),
    ],
)
def test_where_the_end_of_a_prompt_alone_would_mislead(
    kind: str, added: dict[str, dict[str, bool]], prompt: str, response: str
) -> None:
    others = [AddedToken(name, **{"normalized": False, "special": True} | marks) for name, marks in added.items()]
    assert_same(small_tokenizer(kind, (), None, "</s>", others=others), [prompt], [response])


NAMES = [
    *("<|end|>", "<|end|>x", "<|", "|>", "<|end|><|end|>", "d|>\n", "<unk>", "<s>"),
    *("user", "USER", "x", "xx", "foobar", "bar ", " ", "\n", "\n\n", "  ", "don", "é", "e\u0301", "▁"),
]
flags = st.fixed_dictionaries({name: st.booleans() for name in ("normalized", "lstrip", "rstrip", "single_word")})
tokens = st.lists(st.tuples(st.sampled_from(NAMES), flags, st.booleans()), max_size=6, unique_by=lambda token: token[0])


@settings(max_examples=150, deadline=None)
@given(
    st.sampled_from([*KINDS, *LOSING_KINDS]),
    tokens,
    st.lists(st.tuples(texts(*NAMES), texts(*NAMES)), min_size=1, max_size=10),
)
def test_whatever_tokens_are_added(
    kind: str, added: list[tuple[str, dict[str, bool], bool]], pairs: list[tuple[str, str]]
) -> None:
    """The tokens begin or end others, in any mix of flags, special or not.

    Left out are blanks that take the blanks before them: the tokenizers library itself fails on some texts with them.
    """
    others = [
        AddedToken(name, special=special, **marks | {"lstrip": marks["lstrip"] and not name.isspace()})
        for name, marks, special in added
    ]
    tokenizer = small_tokenizer(kind, (), None, "</s>", others=others)
    assert_same(tokenizer, [prompt for prompt, _ in pairs], [response for _, response in pairs])


# The tokenizer's own encoder, called without the tokenizer


class LowercaseTokenizer(PreTrainedTokenizerFast):
    """Change a text before it is encoded, which its encoder alone does not do."""

    def _encode_plus(self, text: Any, *arguments: Any, **options: Any) -> Any:
        lower = text.lower() if isinstance(text, str) else [one.lower() for one in text]
        return super()._encode_plus(lower, *arguments, **options)


def lowercase() -> Any:
    core = small_tokenizer("gpt2", ("<|end|>",), None, "</s>").backend_tokenizer
    return LowercaseTokenizer(tokenizer_object=core, eos_token="</s>", extra_special_tokens=["<|end|>"])


def splitting() -> Any:
    tokenizer = small_tokenizer("llama3", MARKS, None, "</s>")
    tokenizer.split_special_tokens = True
    return tokenizer


UNUSUAL = {"written in Python": ByT5Tokenizer, "splits special tokens": splitting, "changes its text": lowercase}
TEXTS = ["Hi <|end|> there", "", "a</s>", "\n \n", "ÜBER <|im_end|>\n", "one two three four five six seven"]


@pytest.mark.parametrize("name", UNUSUAL)
def test_a_tokenizer_that_is_more_than_its_encoder_is_called_itself(name: str) -> None:
    tokenizer = UNUSUAL[name]()
    assert_same(tokenizer, TEXTS, TEXTS[::-1])
    assert Encoder(tokenizer).ids([]) == []


def test_lengths_that_a_tokenizer_file_asks_for_are_not_kept_to(tmp_path: Path) -> None:
    """A tokenizer.json may carry truncation and padding, and whoever calls the tokenizer may set them again."""
    expected = [called(small_tokenizer("gpt2", MARKS, None, "</s>", pad="</s>"), text) for text in TEXTS]
    made = small_tokenizer("gpt2", MARKS, None, "</s>", pad="</s>")
    made.backend_tokenizer.enable_truncation(3)
    made.backend_tokenizer.enable_padding(length=40)
    made.backend_tokenizer.save(str(tmp_path / "tokenizer.json"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(tmp_path / "tokenizer.json"), eos_token="</s>")
    tokenizer.pad_token = "</s>"
    assert tokenizer.backend_tokenizer.truncation is not None
    assert tokenizer.backend_tokenizer.padding is not None
    encoder = Encoder(tokenizer)
    assert encoder.ids(TEXTS) == expected
    tokenizer(TEXTS, padding="max_length", truncation=True, max_length=4)
    assert tokenizer.backend_tokenizer.truncation is not None
    assert encoder.ids(TEXTS) == expected
    assert encoder.responses(TEXTS, expected, TEXTS[::-1]) == [
        [plain(tokenizer, *both) for both in zip(TEXTS, TEXTS[::-1], strict=True)]
    ]


def in_another_process(encoder: Encoder) -> tuple[Any, Any]:
    ids = encoder.ids(TEXTS)
    return ids, encoder.responses(TEXTS, ids, TEXTS[::-1])


def test_another_process_gives_the_same_ids() -> None:
    encoders = [Encoder(small_tokenizer(kind, MARKS, "<s>", "</s>", adds_bos=True)) for kind in KINDS]
    encoders += [Encoder(make()) for make in UNUSUAL.values()]
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        assert list(pool.map(in_another_process, encoders)) == [in_another_process(encoder) for encoder in encoders]


# Texts encoded apart from what stands before them


@pytest.mark.parametrize("kind", rows({kind: kind for kind in KINDS}, "gpt2", "llama2"))
def test_a_response_that_would_merge_with_its_prompt_is_read_back_as_it_is(kind: str) -> None:
    """It gets no blank, which the tokenizer would put before a text of its own, where that can be avoided."""
    tokenizer = small_tokenizer(kind, MARKS, "<s>", "</s>")
    encoder = Encoder(tokenizer)
    prompt = called(tokenizer, "foo")
    (apart,) = encoder.apart(["bar yes"])
    blank = " " * (kind in ("llama2", "gpt2, a blank before each text"))
    assert tokenizer.decode(prompt + apart) == tokenizer.decode(prompt) + blank + "bar yes"
    assert encoder.apart(["<|end|>x", ""]) == [called(tokenizer, "<|end|>x"), []]


def test_a_text_apart_is_as_it_stands_alone_where_no_token_cuts() -> None:
    encoder = Encoder(ByT5Tokenizer())
    assert encoder.apart(["bar yes"]) == encoder.ids(["bar yes"])


# Special tokens in the data's own texts


def test_special_tokens_in_texts_are_counted() -> None:
    others = [AddedToken("<think>", special=False), AddedToken("\n\n", special=True)]
    encoder = Encoder(small_tokenizer("qwen", MARKS, None, "<|im_end|>", others=others))
    assert encoder.control_tokens(["no < mark |> of <|im any_end|> kind", "<think>\n\n"]) == 0
    assert encoder.control_tokens(["a <|im_end|>\n<|im_start|>system", "<|end|>x<|end|>"]) == 4
    assert Encoder(small_tokenizer("qwen", (), None, None)).control_tokens(["<|im_end|>"]) == 0


@settings(max_examples=60, deadline=None)
@given(
    st.sets(st.text("ab<|", min_size=1, max_size=5), min_size=1, max_size=8),
    st.text("ab<| c", max_size=40),
)
def test_special_tokens_are_counted_where_the_tokenizer_finds_them(names: set[str], text: str) -> None:
    """Where names begin or end others, the first counts, and of those at one place the longest."""
    others = [AddedToken(name, special=True, normalized=False) for name in sorted(names)]
    tokenizer = small_tokenizer("gpt2", (), None, None, others=others)
    special = {tokenizer.convert_tokens_to_ids(name) for name in names}
    assert Encoder(tokenizer).control_tokens([text]) == sum(number in special for number in called(tokenizer, text))
