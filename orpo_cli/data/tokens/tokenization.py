"""Turn rendered texts into token ids, and apply the length policy.

A prompt's ids are those the model sees at generation: the prompt tokenized alone. A response's ids are what the whole
text adds to them. Where a token would grow over the boundary ("foo" + "bar" -> one token "foobar"), the response is
tokenized apart from it and the row is counted, so that the prompt's ids stay the same in both responses.
"""

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from os.path import commonprefix
from typing import Any

from orpo_cli.data.pairs import Lengths, Problem, TokenizedPair
from orpo_cli.data.tokens.chat_template import ChatTemplate
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


def special_ids(tokenizer: Any) -> tuple[list[int], int]:
    """Return the ids that the tokenizer puts in front of a text (often none), and the id that ends a response.

    Raises:
        DataError: if the tokenizer has no end-of-sequence token.
    """
    if tokenizer.eos_token_id is None:
        raise DataError(
            "the model's tokenizer has no end-of-sequence token: set eos_token in its tokenizer_config.json"
        )
    plain = _called(tokenizer, ["a"])[0]
    framed = tokenizer("a", add_special_tokens=True)["input_ids"]
    start = next((i for i in range(len(framed)) if framed[i : i + len(plain)] == plain), 0)
    return framed[:start], int(tokenizer.eos_token_id)


class Encoder:
    """A tokenizer that adds no token which a text does not hold.

    A special token cuts a text: what stands before it has no influence on what comes after. So a response is encoded
    behind the last such token of its prompt, not behind the whole prompt once more.

    Args:
        tokenizer: a tokenizer of transformers.
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
        """Return the ids of each text."""
        if self._backend is None or not texts:
            return _called(self.tokenizer, list(texts)) if texts else []
        self._backend.no_truncation()  # a call of the tokenizer elsewhere may set either for all that follows
        self._backend.no_padding()
        once = list(dict.fromkeys(texts))  # the pairs of a ranking have their texts in common
        encoded = self._backend.encode_batch_fast(once, add_special_tokens=False)
        ids = {text: encoding.ids for text, encoding in zip(once, encoded, strict=True)}
        return [ids[text] for text in texts]

    def responses(
        self, prompts: Sequence[str], prompt_ids: Sequence[list[int]], *sides: Sequence[str]
    ) -> list[list[list[int] | None]]:
        """Return the ids of each response behind its prompt; None where a token would grow over the boundary.

        Args:
            sides: the chosen responses and the rejected ones, each as many as there are prompts.
        Returns:
            a list for each side.
        """
        contexts = [self._context(*prompt) for prompt in zip(prompts, prompt_ids, strict=True)]
        texts = [text + response for side in sides for (text, _), response in zip(contexts, side, strict=True)]
        wholes = iter(self.ids(texts))
        return [[_behind(ids, next(wholes)) for _, ids in contexts] for _ in sides]

    def _context(self, prompt: str, ids: list[int]) -> tuple[str, list[int]]:
        """Return the end of a prompt that decides how a response behind it is encoded, and its ids."""
        number = next((number for number in reversed(ids) if number in self._cuts), None)
        if number is None or ids.count(number) != prompt.count(self._cuts[number]):
            return prompt, ids  # no cut, or its id also stands for something else, such as an unknown token
        return prompt[prompt.rindex(self._cuts[number]) :], ids[len(ids) - 1 - ids[::-1].index(number) :]

    def apart(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the ids of texts that stand behind others, without the blank some tokenizers put first."""
        if self._cut is None:
            return self.ids(texts)
        behind = self.ids([self._cuts[self._cut] + text for text in texts])
        return [ids[1:] for ids in behind]

    def control_tokens(self, texts: Iterable[str]) -> int:
        """Count the special tokens in some texts."""
        return sum(len(self._special.findall(text)) for text in texts) if self._special else 0


def _behind(ids: list[int], whole: list[int]) -> list[int] | None:
    return whole[len(ids) :] if whole[: len(ids)] == ids else None


def _any_of(texts: Collection[str]) -> str:
    """Return a pattern that finds any of some texts, at one place the longest; it is fast where there are thousands."""
    start = commonprefix(list(texts))  # noqa: RUF071 - no paths, so character by character is right
    by_next: dict[str, list[str]] = {}
    for text in texts:
        by_next.setdefault(text[len(start) : len(start) + 1], []).append(text[len(start) :])
    may_end = by_next.pop("", None) is not None
    ways = "|".join(_any_of(rests) for rests in by_next.values())
    return re.escape(start) + (f"(?:{ways})" if ways else "") + "?" * (may_end and bool(ways))


def _cuts(added: Mapping[int, Any]) -> dict[int, str]:
    """Return the special tokens that are found wherever they stand in a text, whatever is before or behind them.

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
    """Return the tokenizer's own encoder, or None where it does not give what calling the tokenizer gives."""
    if getattr(tokenizer, "backend_tokenizer", None) is None or getattr(tokenizer, "split_special_tokens", False):
        return None
    backend = tokenizer.backend_tokenizer
    if not hasattr(backend, "encode_batch_fast"):
        return None
    probes = [*_PROBES, "a".join(token.content for token in tokenizer.added_tokens_decoder.values())]
    expected = _called(tokenizer, probes)  # which also leaves truncation and padding off
    found = [encoding.ids for encoding in backend.encode_batch_fast(probes, add_special_tokens=False)]
    return backend if found == expected else None


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
            return _called(self.encoder.tokenizer, [self.template.end.kept])[0][-1]
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


def _called(tokenizer: Any, texts: list[str]) -> list[list[int]]:
    ids: list[list[int]] = tokenizer(
        texts, add_special_tokens=False, return_attention_mask=False, return_token_type_ids=False, verbose=False
    )["input_ids"]
    return ids


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
