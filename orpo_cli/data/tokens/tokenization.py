"""Rendered texts to token ids, and the length policy.

A prompt's ids are those the model sees at generation: the prompt tokenized alone. A response's ids are what the whole
text adds to them. Where a token would grow over the boundary ("foo" + "bar" -> one token "foobar"), the response is
tokenized apart from it and the row is counted, so that the prompt's ids stay the same in both responses.
"""

import itertools
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from orpo_cli.data.pairs import Lengths, Problem, TokenizedPair
from orpo_cli.data.tokens.rendering import RenderedPair, turn_end
from orpo_cli.errors import DataError

KEPT = "kept"
PROMPT_TRUNCATED = "prompt_truncated"
RESPONSE_TRUNCATED = "response_truncated"
PROMPT_TOO_LONG = "dropped:prompt_too_long"
TOO_LONG = "dropped:too_long"


@dataclass(frozen=True)
class TokenizedRow:
    """One row of the ledger: its ids, and the class it ended in. A dropped row has no ids but keeps its lengths.

    Args:
        lengths: tokens of prompt, chosen and rejected before anything was cut.
        boundary_merged: a token would have grown over the end of the prompt.
        identical: chosen and rejected are the same tokens, so that the preference term teaches nothing.
        control_tokens: special tokens that stand in the data's own texts, as where a user writes <|im_end|>; they are
            encoded as the tokens they name, here as at generation.
    """

    pair: TokenizedPair | None
    row_class: str
    lengths: Lengths
    boundary_merged: bool
    identical: bool
    control_tokens: int


@dataclass(frozen=True)
class SpecialIds:
    """Ids that stand around a text: `bos` as the tokenizer itself puts it (often none), `eos` to end a response."""

    bos: list[int]
    eos: int


def special_ids(tokenizer: Any) -> SpecialIds:
    """What the tokenizer puts in front of a text, and the id that ends a response.

    Raises:
        DataError: the tokenizer has no end-of-sequence token.
    """
    if tokenizer.eos_token_id is None:
        raise DataError(
            "the model's tokenizer has no end-of-sequence token: set eos_token in its tokenizer_config.json"
        )
    plain = _called(tokenizer, ["a"])[0]
    framed = tokenizer("a", add_special_tokens=True)["input_ids"]
    start = next((i for i in range(len(framed)) if framed[i : i + len(plain)] == plain), 0)
    return SpecialIds(bos=framed[:start], eos=int(tokenizer.eos_token_id))


def end_id(chat: bool, tokenizer: Any) -> int:
    """The token that every response which was not cut ends in."""
    end = turn_end(tokenizer) if chat else None
    return _called(tokenizer, [end.kept])[0][-1] if end and end.has_token else special_ids(tokenizer).eos


class Encoder:
    """Texts to ids, adding no token that a text does not hold.

    A special token cuts a text: what stands before it has no influence on what comes after. So a response is encoded
    behind the last such token of its prompt, not behind the whole prompt once more.

    Args:
        tokenizer: of transformers.
    """

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self._backend = _backend(tokenizer)
        added = tokenizer.added_tokens_decoder
        special = {token.content for token in added.values() if token.special and token.content.strip()}
        self._special = re.compile(_any_of(special)) if special else None
        self._cuts = {} if self._backend is None else _cuts(added)
        self._cut = next((number for number in self._cuts if not added[number].rstrip), None)

    def ids(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of each text."""
        if self._backend is None or not texts:
            return _called(self.tokenizer, list(texts)) if texts else []
        self._backend.no_truncation()  # whoever calls the tokenizer may set either for all that follows
        self._backend.no_padding()
        once = list(dict.fromkeys(texts))  # the pairs of a ranking have their texts in common
        encoded = self._backend.encode_batch_fast(once, add_special_tokens=False)
        ids = {text: encoding.ids for text, encoding in zip(once, encoded, strict=True)}
        return [ids[text] for text in texts]

    def responses(
        self, prompts: Sequence[str], prompt_ids: Sequence[list[int]], *sides: Sequence[str]
    ) -> list[list[list[int] | None]]:
        """For each side, the ids of each response behind its prompt; None where a token would grow over the boundary.

        Args:
            sides: the chosen responses, the rejected ones; each as many as there are prompts.
        """
        contexts = [self._context(*prompt) for prompt in zip(prompts, prompt_ids, strict=True)]
        texts = [text + response for side in sides for (text, _), response in zip(contexts, side, strict=True)]
        wholes = iter(self.ids(texts))
        return [[_behind(ids, next(wholes)) for _, ids in contexts] for _ in sides]

    def _context(self, prompt: str, ids: list[int]) -> tuple[str, list[int]]:
        """The end of a prompt that decides how a response behind it is encoded, and its ids."""
        number = next((number for number in reversed(ids) if number in self._cuts), None)
        if number is None or ids.count(number) != prompt.count(self._cuts[number]):
            return prompt, ids  # no cut, or its id has come about in another way, too, as an unknown token does
        return prompt[prompt.rindex(self._cuts[number]) :], ids[len(ids) - 1 - ids[::-1].index(number) :]

    def apart(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of texts that stand behind something, without the blank some tokenizers put at the start of a text."""
        if self._cut is None:
            return self.ids(texts)
        behind = self.ids([self._cuts[self._cut] + text for text in texts])
        return [ids[1:] for ids in behind]

    def control_tokens(self, texts: Iterable[str]) -> int:
        """How many special tokens stand in some texts."""
        return sum(len(self._special.findall(text)) for text in texts) if self._special else 0


def _behind(ids: list[int], whole: list[int]) -> list[int] | None:
    return whole[len(ids) :] if whole[: len(ids)] == ids else None


def _any_of(texts: Collection[str]) -> str:
    """A pattern that finds any of some texts, of several at one place the longest; fast where there are thousands."""
    alike = itertools.takewhile(lambda both: both[0] == both[1], zip(min(texts), max(texts), strict=False))
    start = "".join(character for character, _ in alike)
    by_next: dict[str, list[str]] = {}
    for text in texts:
        by_next.setdefault(text[len(start) : len(start) + 1], []).append(text[len(start) :])
    may_end = by_next.pop("", None) is not None
    ways = "|".join(_any_of(rests) for rests in by_next.values())
    return re.escape(start) + (f"(?:{ways})" if ways else "") + "?" * (may_end and bool(ways))


def _cuts(added: Mapping[int, Any]) -> dict[int, str]:
    """The special tokens that are found wherever they stand in a text, whatever is before or behind them.

    They are looked for in the text as it stands, before anything else is; and no other token that is can hold one,
    go on from one, or end in what one begins with.
    """
    first = {number: token for number, token in added.items() if not token.normalized and token.content}
    contents = [token.content for token in first.values()]
    ends = {content[place:] for content in contents for place in range(1, len(content))}
    joined = "\0".join(contents)
    return {
        number: token.content
        for number, token in first.items()
        if token.special
        and not token.single_word
        and joined.count(token.content) == 1
        and not any(token.content[:length] in ends for length in range(1, len(token.content) + 1))
    }


_PROBES = ["a", " a  b\n\n c ", "Über 12,345 — naïve 東京 🙂\u200d", "x<|im_end|>\n</s> [INST] <s>y", "\t\r\n . "]


def _backend(tokenizer: Any) -> Any:
    """The tokenizer's own encoder, where calling it gives what calling the tokenizer gives; else None."""
    if getattr(tokenizer, "backend_tokenizer", None) is None or getattr(tokenizer, "split_special_tokens", False):
        return None
    backend = tokenizer.backend_tokenizer
    if not hasattr(backend, "encode_batch_fast"):
        return None
    probes = [*_PROBES, "a".join(token.content for token in tokenizer.added_tokens_decoder.values())]
    expected = _called(tokenizer, probes)  # which also leaves truncation and padding off
    found = [encoding.ids for encoding in backend.encode_batch_fast(probes, add_special_tokens=False)]
    return backend if found == expected else None


def tokenize(
    pairs: Sequence[RenderedPair], chat: bool, special: SpecialIds, encoder: Encoder, max_length: int, policy: str
) -> list[TokenizedRow | Problem]:
    """Tokenize a batch of rendered pairs and apply the length policy to each; a problem where a text has no token.

    Args:
        max_length: tokens of prompt + one response.
    Raises:
        DataError: a pair over the limit under policy `error`.
    """
    texts = [pair.prompt for pair in pairs]
    prompts = encoder.ids(texts)
    sides = encoder.responses(texts, prompts, [pair.chosen for pair in pairs], [pair.rejected for pair in pairs])
    rows: list[TokenizedRow | Problem] = []
    for pair, prompt, *behind in zip(pairs, prompts, *sides, strict=True):
        merged = None in behind
        responses = encoder.apart([pair.chosen, pair.rejected]) if merged else behind
        begins = prompt[: len(special.bos)] == special.bos
        whole_prompt = prompt if chat or begins else special.bos + prompt
        if not (whole_prompt and responses[0] and responses[1]):
            rows.append(Problem(pair.source, "a prompt or response without a single token", "no_tokens"))
            continue
        ended = [_ended_once(ids, ids[-1] if pair.ends else special.eos) for ids in responses if ids]
        whole = TokenizedPair(whole_prompt, *ended)
        bos = len(special.bos) if begins or not chat else 0
        kept, row_class = _fitted(whole, bos, max_length, policy, str(pair.source))
        rows.append(_row(whole, kept, row_class, merged, encoder.control_tokens(pair.contents)))
    return rows


def _row(
    whole: TokenizedPair, kept: TokenizedPair | None, row_class: str, merged: bool, control_tokens: int
) -> TokenizedRow:
    trained = kept or whole
    identical = trained.chosen_ids == trained.rejected_ids
    return TokenizedRow(kept, row_class, _lengths(whole), merged, identical, control_tokens)


def _lengths(pair: TokenizedPair) -> Lengths:
    return Lengths(len(pair.prompt_ids), len(pair.chosen_ids), len(pair.rejected_ids))


def _ended_once(ids: list[int], end: int) -> list[int]:
    """One end token, also where the response's own text already ends in it."""
    length = len(ids)
    while length and ids[length - 1] == end:
        length -= 1
    return [*ids[:length], end]


def _called(tokenizer: Any, texts: list[str]) -> list[list[int]]:
    ids: list[list[int]] = tokenizer(
        texts, add_special_tokens=False, return_attention_mask=False, return_token_type_ids=False, verbose=False
    )["input_ids"]
    return ids


def _fitted(pair: TokenizedPair, bos: int, limit: int, policy: str, source: str) -> tuple[TokenizedPair | None, str]:
    """The pair within `limit`, or None, and its class. A response keeps a token at least, a prompt its BOS and one."""
    lengths = _lengths(pair)
    longest = max(lengths.chosen, lengths.rejected)
    if lengths.prompt + longest <= limit:
        return pair, KEPT
    if policy == "error":
        raise DataError(
            f"{source}: prompt {lengths.prompt} + response {longest} tokens is over data.max_length={limit}; "
            "raise it, or choose data.length_policy=drop, truncate_prompt or truncate_response"
        )
    if policy == "truncate_prompt":
        room = limit - longest - bos
        if room < 1:
            return None, TOO_LONG
        cut = pair.prompt_ids[:bos] + pair.prompt_ids[-room:]
        return TokenizedPair(cut, pair.chosen_ids, pair.rejected_ids), PROMPT_TRUNCATED
    room = limit - lengths.prompt
    if policy == "truncate_response" and room >= 1:
        return TokenizedPair(pair.prompt_ids, pair.chosen_ids[:room], pair.rejected_ids[:room]), RESPONSE_TRUNCATED
    return None, PROMPT_TOO_LONG if room < 1 else TOO_LONG
