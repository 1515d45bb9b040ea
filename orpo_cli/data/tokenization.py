"""Rendered texts to token ids, and the length policy.

A prompt's ids are those the model sees at generation: the prompt tokenized alone. A response's ids are what the whole
text adds to them. Where a token would grow over the boundary ("foo" + "bar" -> one token "foobar"), the response is
tokenized alone instead and the row is counted, so that the prompt's ids stay the same in both responses.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from orpo_cli.data.pairs import TokenizedPair
from orpo_cli.data.rendering import RenderedPair, turn_end
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
    """

    pair: TokenizedPair | None
    row_class: str
    lengths: tuple[int, int, int]
    boundary_merged: bool
    identical: bool


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
    plain = tokenizer("a", add_special_tokens=False)["input_ids"]
    framed = tokenizer("a", add_special_tokens=True)["input_ids"]
    start = next((i for i in range(len(framed)) if framed[i : i + len(plain)] == plain), 0)
    return SpecialIds(bos=framed[:start], eos=int(tokenizer.eos_token_id))


def end_id(chat: bool, tokenizer: Any) -> int:
    """The token that every response which was not cut ends in."""
    end = turn_end(tokenizer) if chat else None
    return _ids(tokenizer, [end.kept])[0][-1] if end and end.has_token else special_ids(tokenizer).eos


def tokenize(
    pairs: Sequence[RenderedPair], chat: bool, special: SpecialIds, tokenizer: Any, max_length: int, policy: str
) -> list[TokenizedRow]:
    """Tokenize a batch of rendered pairs and apply the length policy to each.

    Args:
        max_length: tokens of prompt + one response.
    Raises:
        DataError: a pair over the limit under policy `error`, or a text without a single token.
    """
    prompts = _ids(tokenizer, [pair.prompt for pair in pairs])
    chosen = _ids(tokenizer, [pair.prompt + pair.chosen for pair in pairs])
    rejected = _ids(tokenizer, [pair.prompt + pair.rejected for pair in pairs])
    rows = []
    for pair, prompt, whole_chosen, whole_rejected in zip(pairs, prompts, chosen, rejected, strict=True):
        merged = whole_chosen[: len(prompt)] != prompt or whole_rejected[: len(prompt)] != prompt
        if merged:
            responses = _ids(tokenizer, [pair.chosen, pair.rejected])
        else:
            responses = [whole_chosen[len(prompt) :], whole_rejected[len(prompt) :]]
        begins = prompt[: len(special.bos)] == special.bos
        prompt = prompt if chat or begins else special.bos + prompt
        if not (prompt and responses[0] and responses[1]):
            raise DataError(f"{pair.source}: a prompt or response without a single token")
        ended = [_ended_once(ids, ids[-1] if pair.ends else special.eos) for ids in responses]
        bos = len(special.bos) if begins or not chat else 0
        rows.append(_fitted(TokenizedPair(prompt, *ended), bos, max_length, policy, merged, str(pair.source)))
    return rows


def _ended_once(ids: list[int], end: int) -> list[int]:
    """One end token, also where the response's own text already ends in it."""
    length = len(ids)
    while length and ids[length - 1] == end:
        length -= 1
    return [*ids[:length], end]


def _ids(tokenizer: Any, texts: list[str]) -> list[list[int]]:
    ids: list[list[int]] = tokenizer(
        texts, add_special_tokens=False, return_attention_mask=False, return_token_type_ids=False, verbose=False
    )["input_ids"]
    return ids


def _fitted(pair: TokenizedPair, bos: int, limit: int, policy: str, merged: bool, source: str) -> TokenizedRow:
    """The pair within `limit`, or dropped. A response keeps at least one token, a prompt its BOS and one more."""
    lengths = (len(pair.prompt_ids), len(pair.chosen_ids), len(pair.rejected_ids))
    longest = max(lengths[1:])

    def row(kept: TokenizedPair | None, row_class: str) -> TokenizedRow:
        trained = kept or pair
        identical = trained.chosen_ids == trained.rejected_ids
        return TokenizedRow(kept, row_class, lengths, merged, identical)

    if lengths[0] + longest <= limit:
        return row(pair, KEPT)
    if policy == "error":
        raise DataError(
            f"{source}: prompt {lengths[0]} + response {longest} tokens is over data.max_length={limit}; "
            "raise it, or choose data.length_policy=drop, truncate_prompt or truncate_response"
        )
    if policy == "truncate_prompt":
        room = limit - longest - bos
        if room < 1:
            return row(None, TOO_LONG)
        cut = pair.prompt_ids[:bos] + pair.prompt_ids[-room:]
        return row(TokenizedPair(cut, pair.chosen_ids, pair.rejected_ids), PROMPT_TRUNCATED)
    room = limit - lengths[0]
    if policy == "truncate_response" and room >= 1:
        return row(TokenizedPair(pair.prompt_ids, pair.chosen_ids[:room], pair.rejected_ids[:room]), RESPONSE_TRUNCATED)
    return row(None, PROMPT_TOO_LONG if room < 1 else TOO_LONG)
