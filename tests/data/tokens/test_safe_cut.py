"""Encode the end of a prompt with each response instead of the whole prompt: the ids are those of the whole text."""

import functools
import random
from dataclasses import dataclass
from typing import Any

import pytest
from matrix import rows
from small_tokenizers import small_tokenizer
from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from orpo_cli.data.tokens.encoder import Encoder
from orpo_cli.data.tokens.safe_cut import cuts_at_blanks, safe_end
from orpo_cli.models.builtin import builtin_model

SPECIAL = ("<|endoftext|>", "<s>", "[UNK]")
PLAIN = "the user asks how many roads must a man walk down and assistant answers I don't can't They'RE we'll"
ODD = "12 345 67890 3.14 2nd x1 naïve café Übergröße İstanbul ΑΣ αβγ дом Йод שלום مرحبا ﷺ नमस्ते 東京 한국 ﬁne ½ ǅ ſ"
MARKS = [
    "e\u0301",
    "\u0301a",
    "a\u0308\u0301",
    "🙂",
    "👩\u200d💻",
    "\ufeff",
    "\u00ad",
    "…",
    "--",
    "(a)",
    "'s",
    "'",
    "▁",
]
WORDS = [*PLAIN.split(), *ODD.split(), *MARKS, *SPECIAL, "<|endoftext|", "<s", "</s>"]
BETWEEN = [*[" "] * 30, "  ", "   ", "\n", "\n\n", " \n", "\t", "\r\n", "\u00a0", "\u3000", "\u2028", ""]
ENDS = ["\n\nAssistant:", "\n\nAssistant: ", "", " ", "\n", "?", " a b", "a b ", " the", "\u0301"]
BEGINNINGS = [" ", "", "  ", "\n", "s", "'s", "\u0301", "<s>", "1", "."]


def words(chance: random.Random, most: int) -> str:
    return "".join(chance.choice(WORDS) + chance.choice(BETWEEN) for _ in range(chance.randrange(most)))


def dialogue(chance: random.Random) -> str:
    turns = "\n\nAssistant: ".join(f"\n\nHuman: {words(chance, 16)}" for _ in range(chance.randrange(1, 3)))
    return turns + chance.choice(ENDS)


def dialogues(pairs: int, seed: int) -> list[tuple[str, str, str]]:
    """Return prompts, some of them hardly one, each with two responses."""
    chance = random.Random(seed)
    return [
        (dialogue(chance), *(chance.choice(BEGINNINGS) + words(chance, 10) for _ in range(2))) for _ in range(pairs)
    ]


@functools.cache
def sentences() -> list[str]:
    return ["".join(texts) for texts in dialogues(300, seed=1)]


@dataclass(frozen=True)
class Kind:
    """Describe a tokenizer.

    Args:
        cuts: whether a prompt is to be cut.
    """

    model: str
    pre_tokenizer: Any
    normalizer: Any = None
    cuts: bool = True


def split(pattern: str, **more: bool) -> Any:
    parts = pre_tokenizers.Split(Regex(pattern), "isolated", **more)
    return pre_tokenizers.Sequence([parts, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN = LLAMA3.replace("{1,3}", "")
GPT_OSS = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
BYTES = pre_tokenizers.ByteLevel(add_prefix_space=False)
STARCODER = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), BYTES])
METASPACE = pre_tokenizers.Metaspace(prepend_scheme="first")
BERT = pre_tokenizers.BertPreTokenizer()
NFC_LOWER = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])

KINDS = {
    "GPT-2": Kind("BPE", BYTES),
    "GPT-2, NFC": Kind("BPE", BYTES, normalizers.NFC()),
    "GPT-2, a blank before each text": Kind("BPE", pre_tokenizers.ByteLevel(add_prefix_space=True)),
    "GPT-2, NFKC": Kind("BPE", BYTES, normalizers.NFKC(), cuts=False),
    "StarCoder": Kind("BPE", STARCODER),
    "Llama 3": Kind("BPE", split(LLAMA3)),
    "Llama 3, lowercase": Kind("BPE", split(LLAMA3), NFC_LOWER),
    "Qwen": Kind("BPE", split(QWEN), normalizers.NFC()),
    "gpt-oss": Kind("BPE", split(GPT_OSS)),
    "gpt-oss, NFD": Kind("BPE", split(GPT_OSS), normalizers.NFD()),
    "words of two": Kind("BPE", split(r"\p{L}+ \p{L}+|" + LLAMA3), cuts=False),
    "all but Llama 3's pieces": Kind("BPE", split(LLAMA3, invert=True), cuts=False),
    "numbers alone": Kind("BPE", split(r"\p{N}{1,3}"), cuts=False),
    "Metaspace": Kind("BPE", METASPACE, cuts=False),
    "Metaspace, NFC": Kind("BPE", METASPACE, normalizers.NFC(), cuts=False),
    "Unigram": Kind("Unigram", METASPACE, cuts=False),
    "Unigram, NFKC": Kind("Unigram", METASPACE, normalizers.NFKC(), cuts=False),
    "WordPiece": Kind("WordPiece", BERT),
    "WordPiece, BERT": Kind("WordPiece", BERT, normalizers.BertNormalizer()),
    "WordPiece, Whitespace": Kind("WordPiece", pre_tokenizers.Whitespace(), NFC_LOWER),
    "WordPiece, a blank before each text": Kind("WordPiece", BERT, normalizers.Prepend(" "), cuts=False),
    "no pre-tokenizer": Kind("BPE", None, cuts=False),
}


@functools.cache
def tokenizer_of(name: str) -> Any:
    """Train the model on dialogues of the same words."""
    kind = KINDS[name]
    alphabet = pre_tokenizers.ByteLevel.alphabet() if kind.model == "BPE" else []
    options = {"vocab_size": 900, "initial_alphabet": alphabet, "special_tokens": list(SPECIAL), "show_progress": False}
    unknown = {"unk_token": "[UNK]"}
    model, trainer = {
        "BPE": (models.BPE(**unknown), trainers.BpeTrainer),
        "Unigram": (models.Unigram(), functools.partial(trainers.UnigramTrainer, **unknown)),
        "WordPiece": (models.WordPiece(**unknown), trainers.WordPieceTrainer),
    }[kind.model]
    core = Tokenizer(model)
    if kind.normalizer is not None:
        core.normalizer = kind.normalizer
    if kind.pre_tokenizer is not None:
        core.pre_tokenizer = kind.pre_tokenizer
    core.train_from_iterator(sentences(), trainer(**options))
    return PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<|endoftext|>")


def called(tokenizer: Any, texts: list[str]) -> list[list[int]]:
    ids: list[list[int]] = tokenizer(texts, add_special_tokens=False)["input_ids"]
    return ids


def assert_same(tokenizer: Any, pairs: list[tuple[str, str, str]]) -> None:
    """Compare with whole texts, each given to the tokenizer as it stands."""
    encoder = Encoder(tokenizer)
    prompts, chosen, rejected = (list(texts) for texts in zip(*pairs, strict=True))
    ids = encoder.ids(prompts)
    assert ids == called(tokenizer, prompts)
    for found, side in zip(encoder.responses(prompts, ids, chosen, rejected), (chosen, rejected), strict=True):
        wholes = called(tokenizer, [prompt + text for prompt, text in zip(prompts, side, strict=True)])
        for prompt, behind, whole in zip(ids, found, wholes, strict=True):
            assert behind == (whole[len(prompt) :] if whole[: len(prompt)] == prompt else None)


DAILY = ("GPT-2", "Llama 3, lowercase", "Metaspace", "Unigram", "WordPiece, BERT")


@pytest.mark.parametrize("name", rows({name: name for name in KINDS}, *DAILY))
def test_a_response_has_the_ids_that_the_whole_text_gives_it(name: str) -> None:
    assert_same(tokenizer_of(name), dialogues(400 if name in DAILY else 4000, seed=2))


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_of_the_built_in_model_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ORPO_CACHE")  # the converted model is 540 MB; one copy will do
    tokenizer = PreTrainedTokenizerFast.from_pretrained(builtin_model("smollm2", lambda *_: None))
    assert_same(tokenizer, dialogues(4000, seed=3))


@pytest.mark.parametrize("name", KINDS)
def test_prompts_are_cut_where_the_tokenizer_begins_a_piece_at_a_blank(name: str) -> None:
    tokenizer = tokenizer_of(name)
    added = tokenizer.added_tokens_decoder.values()
    assert cuts_at_blanks(tokenizer.backend_tokenizer, added) == KINDS[name].cuts


@pytest.mark.parametrize(
    ("added", "cuts"),
    [
        (AddedToken("<think>", normalized=False), True),
        (AddedToken("  ", normalized=False), True),
        (AddedToken("user", normalized=False, single_word=True), True),
        (AddedToken("new york", normalized=False), False),
        (AddedToken(" york", normalized=False), False),
        (AddedToken("new ", normalized=False), False),
        (AddedToken(" ", normalized=False), False),
        (AddedToken("new", normalized=False, rstrip=True), False),
        (AddedToken("new", normalized=True), False),  # looked for behind the normalizer
    ],
    ids=str,
)
def test_an_added_token_may_reach_over_a_blank(added: AddedToken, cuts: bool) -> None:
    tokenizer = small_tokenizer("qwen", ("<|end|>",), None, "</s>", others=[added])
    assert cuts_at_blanks(tokenizer.backend_tokenizer, tokenizer.added_tokens_decoder.values()) == cuts
    prompts = ["we asked the user  for new york", "it was the new york", "they went to the new y", "they saw new"]
    assert_same(tokenizer, [(prompt, " york", "  york") for prompt in prompts])


@pytest.mark.parametrize(
    ("prompt", "end"),
    [
        ("\n\nHuman: how many roads are there?\n\nAssistant:", " there?\n\nAssistant:"),
        ("how many roads are  there", " are  there"),
        ("сколько дорог пройти", " пройти"),
        ("room 12 is on the 3rd", " the 3rd"),
        ("a b and then a very long word", " word"),
        ("a b, 1 2 3 4 5 6 7 8 9", ""),  # the end is longer than half of the prompt
        ("one\ntwo", ""),
        ("", ""),
    ],
)
def test_the_end_of_a_prompt_begins_with_its_last_blank_between_letters(prompt: str, end: str) -> None:
    assert safe_end(prompt) == end


def test_a_prompt_is_encoded_once_for_all_its_responses() -> None:
    """Each text is given to the tokenizer once: the prompt, its end, and the end with each response."""
    tokenizer = tokenizer_of("GPT-2")
    encoder, given = Encoder(tokenizer), list[str]()
    encode = encoder.ids
    encoder.ids = lambda texts: given.extend(dict.fromkeys(texts)) or encode(texts)  # type: ignore[func-returns-value, method-assign]
    prompt, responses = "how many roads must a man walk down?", [" One.", " Two.", " Three."]
    prompts = [prompt] * 3
    ids = encoder.ids(prompts)
    encoder.responses(prompts, ids, responses, responses[1:] + responses[:1])
    assert given == [prompt, " down?", *(" down?" + text for text in responses)]
