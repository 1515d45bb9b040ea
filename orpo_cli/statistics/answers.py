"""Measure whether sampled answers are damaged: do they repeat themselves, vary, and end?

The nll of one model on the answers of another does not tell good from ruined ones. That an answer repeats itself does.
"""

from collections.abc import Sequence
from dataclasses import dataclass

REPEATED = 0.1
"""The share of an answer's 4-grams of words that have stood in it before, from which on it repeats itself."""


@dataclass(frozen=True)
class Answer:
    """A prompt in words, and what the model answered.

    Args:
        answer: the greedy answer.
        sampled: one that was drawn as people sample; None in runs of earlier versions, like what follows.
        ends: whether the greedy answer has ended by itself.
        tokens: the number of its tokens.
    """

    prompt: str
    answer: str
    sampled: str | None = None
    ends: bool | None = None
    tokens: int | None = None


@dataclass(frozen=True)
class Fluency:
    """What the greedy answers to some prompts look like.

    Args:
        answers: how many there are.
        repeating: how many repeat themselves.
        ending: how many have ended by themselves; None where it was not recorded.
        distinct: the share of different ones among the pairs of neighbouring words, over all answers.
        words: the mean number of words.
    """

    answers: int
    repeating: int
    ending: int | None
    distinct: float
    words: float


def fluency(answers: Sequence[Answer]) -> Fluency:
    """Measure the greedy answers to some prompts, at least one."""
    texts = [answer.answer.split() for answer in answers]
    pairs = [_ngrams(words, 2) for words in texts]
    total = sum(map(len, pairs))
    ends = [answer.ends for answer in answers]
    return Fluency(
        answers=len(answers),
        repeating=sum(repeats(answer.answer) for answer in answers),
        ending=None if None in ends else sum(map(bool, ends)),
        distinct=sum(len(set(of_text)) for of_text in pairs) / total if total else 1.0,
        words=sum(map(len, texts)) / len(texts),
    )


_LONGEST_WORD = 20
"""The mean length of a text's words above which its characters are counted, as of languages without spaces."""


def repeats(text: str) -> bool:
    """Return whether a text repeats itself."""
    words = text.split()
    has_words = len(text) <= _LONGEST_WORD * len(words)
    ngrams = _ngrams(words, 4) if has_words else _ngrams([*"".join(words)], 4)
    return len(ngrams) - len(set(ngrams)) >= REPEATED * len(ngrams) if ngrams else False


def _ngrams(words: Sequence[str], length: int) -> list[tuple[str, ...]]:
    return [tuple(words[start : start + length]) for start in range(len(words) - length + 1)]
