"""Turn rendered texts into token ids, and apply the length policy.

A prompt's ids are those the model sees at generation: the prompt tokenized alone. A response's ids are what the whole
text adds to them. Where a token would grow over the boundary ("foo" + "bar" -> one token "foobar"), the response is
tokenized apart from it and the row is counted, so that the prompt's ids stay the same in both responses.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from orpo_cli.data.pairs import Lengths, Problem, TokenizedPair
from orpo_cli.data.tokens.chat_template import ChatTemplate
from orpo_cli.data.tokens.encoder import Encoder, called, special_ids
from orpo_cli.data.tokens.rendering import RenderedPair
from orpo_cli.errors import DataError


@dataclass(frozen=True)
class TokenizedRow:
    """Hold the ids of one pair and the class it ended in; a dropped pair has no ids but keeps its lengths.

    Args:
        lengths: numbers of tokens before anything was cut.
        boundary_merged: whether a token would have grown over the end of the prompt.
        identical: whether chosen and rejected are the same tokens, so that the preference term teaches nothing.
        control_tokens: the number of special tokens in the data's own texts, as where a user writes <|im_end|>; they
            are encoded as the tokens they name, here as at generation.
    """

    pair: TokenizedPair | None
    row_class: str
    lengths: Lengths
    boundary_merged: bool
    identical: bool
    control_tokens: int


@dataclass(frozen=True)
class TokenizationSettings:
    """Hold what a process needs to know to tokenize any pair of a run.

    Args:
        bos: the ids that the tokenizer puts in front of a text.
        eos: the id that ends a response.
        template: the chat template; None where it is not used.
        max_length: the limit for the tokens of prompt + one response.
        length_policy: what happens to a pair over the limit.
        one_kind: whether all pairs have to be of one kind, chat messages or plain text, since nothing was chosen.
    """

    encoder: Encoder
    bos: list[int]
    eos: int
    template: ChatTemplate | None
    max_length: int
    length_policy: str
    one_kind: bool

    @classmethod
    def of(
        cls,
        tokenizer: Any,
        template: ChatTemplate | None,
        max_length: int,
        length_policy: str,
        one_kind: bool = False,
    ) -> "TokenizationSettings":
        """Return the settings for a tokenizer, with its chat template or without."""
        return cls(Encoder(tokenizer), *special_ids(tokenizer), template, max_length, length_policy, one_kind)

    @property
    def chat(self) -> bool:
        """Return whether the chat template is used."""
        return self.template is not None

    @property
    def end_id(self) -> int:
        """Return the token that every response which was not cut ends in."""
        if self.template is not None and self.template.end.has_token:
            return called(self.encoder.tokenizer, [self.template.end.kept])[0][-1]
        return self.eos


def tokenize(pairs: Sequence[RenderedPair], settings: TokenizationSettings) -> list[TokenizedRow | Problem]:
    """Tokenize a batch of rendered pairs; a pair with a text that leaves no token is a problem.

    Raises:
        DataError: if a pair is over the limit under the length policy `error`.
    """
    encoder, bos = settings.encoder, settings.bos
    texts = [pair.prompt for pair in pairs]
    prompts = encoder.ids(texts)
    sides = encoder.responses(texts, prompts, [pair.chosen for pair in pairs], [pair.rejected for pair in pairs])
    rows: list[TokenizedRow | Problem] = []
    for pair, prompt, *behind in zip(pairs, prompts, *sides, strict=True):
        merged = None in behind
        responses = encoder.apart([pair.chosen, pair.rejected]) if merged else behind
        begins = prompt[: len(bos)] == bos
        whole_prompt = _begun(prompt, settings)
        if not (whole_prompt and responses[0] and responses[1]):
            rows.append(Problem(pair.source, "a prompt or response without a single token", "no_tokens"))
            continue
        ended = [_ended_once(ids, ids[-1] if pair.ends else settings.eos) for ids in responses if ids]
        whole = TokenizedPair(whole_prompt, *ended)
        bos_length = len(bos) if begins or not settings.chat else 0
        kept, row_class = _fitted(whole, bos_length, settings, str(pair.source))
        trained = kept or whole
        identical = trained.chosen_ids == trained.rejected_ids
        control_tokens = encoder.control_tokens(pair.contents)
        rows.append(TokenizedRow(kept, row_class, whole.lengths, merged, identical, control_tokens))
    return rows


def prompt_ids(texts: Sequence[str], settings: TokenizationSettings) -> list[list[int]]:
    """Return the ids of rendered prompts, as the model sees them in training and at generation."""
    return [_begun(ids, settings) for ids in settings.encoder.ids(texts)]


def _begun(prompt: list[int], settings: TokenizationSettings) -> list[int]:
    """Return the ids of a prompt behind those that the tokenizer puts first; a chat template writes them itself."""
    bos = settings.bos
    return prompt if settings.chat or prompt[: len(bos)] == bos else bos + prompt


def _ended_once(ids: list[int], end: int) -> list[int]:
    """Put one end token behind a response, also where its own text already ends in it."""
    length = len(ids)
    while length and ids[length - 1] == end:
        length -= 1
    return [*ids[:length], end]


def _fitted(
    pair: TokenizedPair, bos_length: int, settings: TokenizationSettings, source: str
) -> tuple[TokenizedPair | None, str]:
    """Return the pair within the limit, or None, and its class.

    A response keeps at least a token, a prompt its BOS and another one.
    """
    lengths, limit, policy = pair.lengths, settings.max_length, settings.length_policy
    longest = max(lengths.chosen, lengths.rejected)
    if lengths.prompt + longest <= limit:
        return pair, "kept"
    if policy == "error":
        raise DataError(
            f"{source}: prompt {lengths.prompt} + response {longest} tokens is over data.max_length={limit}; "
            "raise it, or choose data.length_policy=drop, truncate_prompt or truncate_response"
        )
    if policy == "truncate_prompt":
        room = limit - longest - bos_length
        if room < 1:
            return None, "dropped:too_long"
        cut = pair.prompt_ids[:bos_length] + pair.prompt_ids[-room:]
        return TokenizedPair(cut, pair.chosen_ids, pair.rejected_ids), "prompt_truncated"
    room = limit - lengths.prompt
    if policy == "truncate_response" and room >= 1:
        return TokenizedPair(pair.prompt_ids, pair.chosen_ids[:room], pair.rejected_ids[:room]), "response_truncated"
    return None, "dropped:prompt_too_long" if room < 1 else "dropped:too_long"
