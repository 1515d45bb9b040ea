"""Find the end of a text that can be encoded apart from the rest, whatever is written behind it.

The cut is before a single blank between two letters. It is safe where each stage of the tokenizer stops there:

- added tokens: none holds such a blank, takes the blanks around it, or is looked for in the normalized text;
- the normalizer: a blank is not moved, and does not compose with the letter before it;
- the pre-tokenizer: it drops the blank or begins a piece with it, and no rule looks back. In all patterns of `_KNOWN`
  a blank is the first character of a piece or the piece is blanks alone, and only blanks look at what is behind them.

The model sees one piece at a time, so that nothing needs to be known of it.
"""

import json
import re
from collections.abc import Collection, Mapping
from typing import Any

_BEFORE_LAST_BLANK = re.compile(r".*[^\W\d_](?= [^\W\d_])", re.DOTALL)
_LONE_BLANK = re.compile(r"(?<!\s) (?!\s)")

_WORTH_IT = 2
"""How many times as long as its end a text has to be: the end is encoded once more."""

_O200K = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]%s[\p{Ll}\p{Lm}\p{Lo}\p{M}]%s"
_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_PIECES = [
    *("'s", "'t", "'re", "'ve", "'m", "'ll", "'d", r" ?\p{L}+", r" ?\p{N}+", r" ?[^\s\p{L}\p{N}]+"),  # GPT-2
    *(_CONTRACTIONS, r"[^\r\n\p{L}\p{N}]?\p{L}+", r"\p{N}{1,3}", r" ?[^\s\p{L}\p{N}]+[\r\n]*"),  # Llama 3
    *(r"\p{N}", r"\s*[\r\n]+"),  # Qwen
    *(_O200K % repeats + end for repeats in (("*", "+"), ("+", "*")) for end in ("", _CONTRACTIONS + "?")),
    r" ?[^\s\p{L}\p{N}]+[\r\n/]*",  # gpt-oss, Llama 4, Mistral NeMo
]
_KNOWN = re.compile(rf"(?:(?:{'|'.join(map(re.escape, _PIECES))})\|)+" + re.escape(r"\s+(?!\S)|\s+"))
_DROP_BLANKS = {"BertPreTokenizer", "Whitespace", "WhitespaceSplit"}


def cuts_at_blanks(backend: Any, added: Collection[Any]) -> bool:
    """Return whether a tokenizer encodes what is on the two sides of a single blank between letters apart.

    Args:
        backend: a tokenizer of the tokenizers library.
        added: its added tokens.
    """
    normalizers = _parts(backend.normalizer, "normalizers")
    splitters = [part for part in _parts(backend.pre_tokenizer, "pretokenizers") if part["type"] != "Digits"]
    if not splitters or not _begins_piece(splitters[0]):
        return False
    harmless = {"NFC", "NFD", "Lowercase"} | ({"BertNormalizer"} if splitters[0]["type"] in _DROP_BLANKS else set())
    return (
        all(part["type"] == "ByteLevel" or _begins_piece(part) for part in splitters)
        and all(part["type"] in harmless for part in normalizers)
        and not any(token.lstrip or token.rstrip or _LONE_BLANK.search(token.content) for token in added)
        and not any(normalizers and token.normalized for token in added)
    )


def safe_end(text: str) -> str:
    """Return the part of a text behind its last safe cut, or nothing where that would not save work."""
    found = _BEFORE_LAST_BLANK.match(text)
    return text[found.end() :] if found and len(text) > _WORTH_IT * (len(text) - found.end()) else ""


def _parts(stage: Any, name: str) -> list[Mapping[str, Any]]:
    """Return the parts that a normalizer or pre-tokenizer consists of, as a tokenizer.json describes them."""
    if stage is None:
        return []
    described = json.loads(stage.__getstate__())
    parts: list[Mapping[str, Any]] = described[name] if described["type"] == "Sequence" else [described]
    return parts


def _begins_piece(splitter: Mapping[str, Any]) -> bool:
    """Return whether a pre-tokenizer is known to begin a piece at the blank, or to drop it."""
    if splitter["type"] == "Split":
        pattern = splitter["pattern"].get("Regex", "")
        isolates = splitter["behavior"] == "Isolated" and not splitter["invert"]
        return isolates and _KNOWN.fullmatch(pattern) is not None
    return splitter["type"] in _DROP_BLANKS or bool(splitter["type"] == "ByteLevel" and splitter["use_regex"])
