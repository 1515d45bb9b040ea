"""Train small tokenizers of the kinds that real models have, on a few sentences."""

import functools
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

_SENTENCES = [
    "The assistant answers the user: yes, of course.\n\nThe user asks the system again and again.\n",
    "How many roads must a man walk down?\n\n1234567 roads, and 89 more.\r\n\tThe answer is blowing in the wind.\n",
    "### user: say hi ### assistant: hi there <think> no </think> [INST] words [/INST] im_end|> <|im\n\n\n",
    "foobar foobard barfoo don't can't   there  are   blanks    between   words \n \n and lines\n\n",
    "Übergrößenträger naïve café 東京 東京タワー 🙂🙂 İstanbul ΑΒΓ αβγ e\u0301 \u200d\n",
] * 20
_BLANK = "▁"
_UNKNOWN = "<unk>"


@dataclass(frozen=True)
class Kind:
    """Describe a kind of tokenizer.

    Args:
        core: the function that makes one without added tokens.
        marks: the flags of the special tokens that are added.
        normal_form: the normal form of Unicode that it turns texts into.
        keeps_blanks: whether a text can be read back with all its blanks.
    """

    core: Callable[[], Tokenizer]
    marks: tuple[str, ...] = ()
    normal_form: str | None = None
    keeps_blanks: bool = True


def _trained(pre_tokenizer: Any, alphabet: list[str]) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Learn vocabulary and merges of byte-pair encoding from the sentences."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizer
    core.train_from_iterator(
        _SENTENCES, trainers.BpeTrainer(vocab_size=700, initial_alphabet=alphabet, show_progress=False)
    )
    model = json.loads(core.to_str())["model"]
    return model["vocab"], [tuple(merge) for merge in model["merges"]]


def _byte_level(pre_tokenizer: Any, normalizer: Any = None) -> Tokenizer:
    core = Tokenizer(models.BPE(*_trained(pre_tokenizer, pre_tokenizers.ByteLevel.alphabet())))
    core.pre_tokenizer = pre_tokenizer
    core.decoder = decoders.ByteLevel()
    if normalizer is not None:
        core.normalizer = normalizer
    return core


def _like_gpt2() -> Tokenizer:
    return _byte_level(pre_tokenizers.ByteLevel(add_prefix_space=False))


def _like_gpt2_with_blank() -> Tokenizer:
    return _byte_level(pre_tokenizers.ByteLevel(add_prefix_space=True))


def _words_and_newlines() -> Any:
    words = Regex(r"\p{N}{1,3}|[^\r\n\p{L}\p{N}]?\p{L}+| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+")
    return pre_tokenizers.Sequence(
        [pre_tokenizers.Split(words, "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )


def _like_llama3() -> Tokenizer:
    return _byte_level(_words_and_newlines())


def _like_qwen() -> Tokenizer:
    return _byte_level(_words_and_newlines(), normalizers.NFC())


def _with_byte_fallback(pre_tokenizer: Any, byte_fallback: bool = True) -> Tokenizer:
    vocabulary, merges = _trained(pre_tokenizer, [_BLANK])
    pieces = [_UNKNOWN, *(f"<0x{byte:02X}>" for byte in range(256)), *vocabulary]
    model = models.BPE(
        {piece: place for place, piece in enumerate(pieces)},
        merges,
        unk_token=_UNKNOWN,
        fuse_unk=True,
        byte_fallback=byte_fallback,
    )
    core = Tokenizer(model)
    core.decoder = decoders.Sequence([decoders.Replace(_BLANK, " "), decoders.ByteFallback(), decoders.Fuse()])
    return core


def _like_mistral() -> Tokenizer:
    """Put a blank before the text, and nowhere else."""
    core = _with_byte_fallback(pre_tokenizers.Metaspace(prepend_scheme="first"))
    core.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    return core


def _like_llama2() -> Tokenizer:
    """Put a blank before each piece of text between special tokens."""
    core = _with_byte_fallback(pre_tokenizers.Metaspace(prepend_scheme="always"))
    core.normalizer = normalizers.Sequence([normalizers.Prepend(_BLANK), normalizers.Replace(" ", _BLANK)])
    return core


def _like_gemma() -> Tokenizer:
    core = _with_byte_fallback(pre_tokenizers.Metaspace(prepend_scheme="never"))
    core.normalizer = normalizers.Replace(" ", _BLANK)
    core.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    return core


def _with_unknown() -> Tokenizer:
    """Turn what has not been seen into one and the same token, and capitals into small letters."""
    core = _with_byte_fallback(pre_tokenizers.Metaspace(prepend_scheme="never"), byte_fallback=False)
    core.normalizer = normalizers.Lowercase()
    core.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never")
    return core


KINDS = {
    "gpt2": Kind(_like_gpt2),
    "llama3": Kind(_like_llama3),
    "qwen": Kind(_like_qwen, normal_form="NFC"),
    "mistral": Kind(_like_mistral),
    "gemma": Kind(_like_gemma),
    "llama2": Kind(_like_llama2, keeps_blanks=False),
    "gpt2, a blank before each text": Kind(_like_gpt2_with_blank, keeps_blanks=False),
    "special tokens take the blanks behind them": Kind(_like_llama3, ("rstrip",), keeps_blanks=False),
    "special tokens take the blanks before them": Kind(_like_mistral, ("lstrip",), keeps_blanks=False),
}
"""Kinds that can write any text."""

LOSING_KINDS = {"unknown": Kind(_with_unknown, keeps_blanks=False)}
"""A kind that cannot."""


@functools.cache
def _core(kind: str) -> str:
    return (KINDS | LOSING_KINDS)[kind].core().to_str()


def small_tokenizer(
    kind: str,
    special: Sequence[str],
    bos: str | None = None,
    eos: str | None = None,
    template: str | None = None,
    *,
    adds_bos: bool = False,
    pad: str | None = None,
    others: Sequence[AddedToken] = (),
) -> Any:
    """Return a tokenizer of transformers.

    Args:
        special: the special tokens beside `bos` and `eos`.
        adds_bos: whether calling it puts `bos` before a text.
        others: the further added tokens.
    """
    core = Tokenizer.from_str(_core(kind))
    marks = dict.fromkeys((KINDS | LOSING_KINDS)[kind].marks, True)
    names = dict.fromkeys([*(name for name in (bos, eos) if name), *special])
    core.add_special_tokens([AddedToken(name, special=True, normalized=False, **marks) for name in names])
    core.add_tokens(list(others))
    if adds_bos and bos:
        core.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", special_tokens=[(bos, core.token_to_id(bos))]
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        bos_token=bos,
        eos_token=eos,
        pad_token=pad,
        extra_special_tokens=list(special),
        chat_template=template,
    )
