"""Turn texts into token ids, and responses into the ids that they have behind their prompts.

Only the end of a prompt decides how a response behind it is encoded, so that a prompt is encoded once, whatever the
number of its responses: the ids are those of the whole text.
"""

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from os.path import commonprefix
from typing import Any

from orpo_cli.data.tokens.safe_cut import cuts_at_blanks, safe_end
from orpo_cli.errors import DataError


def special_ids(tokenizer: Any) -> tuple[list[int], int]:
    """Return the ids that the tokenizer puts in front of a text (often none), and the id that ends a response.

    Raises:
        DataError: if the tokenizer has no end-of-sequence token.
    """
    if tokenizer.eos_token_id is None:
        raise DataError(
            "the model's tokenizer has no end-of-sequence token: set eos_token in its tokenizer_config.json"
        )
    plain = called(tokenizer, ["a"])[0]
    framed = tokenizer("a", add_special_tokens=True)["input_ids"]
    start = next((i for i in range(len(framed)) if framed[i : i + len(plain)] == plain), 0)
    return framed[:start], int(tokenizer.eos_token_id)


class Encoder:
    """A tokenizer that adds no token which a text does not hold.

    A special token cuts a text: what stands before it has no influence on what comes after. So does a blank between
    letters with many tokenizers. A response is encoded behind the last cut of its prompt, not behind the whole prompt.

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
        self._at_blanks = self._backend is not None and cuts_at_blanks(self._backend, added.values())
        self._cut = next((number for number in self._cuts if not added[number].rstrip), None)

    def ids(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the ids of each text."""
        if self._backend is None or not texts:
            return called(self.tokenizer, list(texts)) if texts else []
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
        contexts = self._contexts(prompts, prompt_ids)
        texts = [text + response for side in sides for (text, _), response in zip(contexts, side, strict=True)]
        wholes = iter(self.ids(texts))
        return [[_behind(ids, next(wholes)) for _, ids in contexts] for _ in sides]

    def _contexts(self, prompts: Sequence[str], prompt_ids: Sequence[list[int]]) -> list[tuple[str, list[int]]]:
        """Return the end of each prompt that decides how a response behind it is encoded, and its ids."""
        contexts = [self._behind_special(*prompt) for prompt in zip(prompts, prompt_ids, strict=True)]
        if not self._at_blanks:
            return contexts
        ends = [safe_end(text) for text, _ in contexts]
        return [
            (end, ids_of_end) if ids_of_end and ids[-len(ids_of_end) :] == ids_of_end else (text, ids)
            for (text, ids), end, ids_of_end in zip(contexts, ends, self.ids(ends), strict=True)
        ]

    def _behind_special(self, prompt: str, ids: list[int]) -> tuple[str, list[int]]:
        """Return a prompt from its last special token that cuts, and the ids of this part."""
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
    expected = called(tokenizer, probes)  # which also leaves truncation and padding off
    found = [encoding.ids for encoding in backend.encode_batch_fast(probes, add_special_tokens=False)]
    return backend if found == expected else None


def called(tokenizer: Any, texts: list[str]) -> list[list[int]]:
    ids: list[list[int]] = tokenizer(
        texts, add_special_tokens=False, return_attention_mask=False, return_token_type_ids=False, verbose=False
    )["input_ids"]
    return ids
