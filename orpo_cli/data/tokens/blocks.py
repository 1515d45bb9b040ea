"""One block of a file to tokenized rows: the work that several processes share."""

import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from orpo_cli.data.pairs import Lengths, PreferencePair, Problem, Skipped
from orpo_cli.data.rows.readers import Block, rows_of
from orpo_cli.data.shapes.shapes import Shape, extra_keys, to_pairs
from orpo_cli.data.tokens import rendering, tokenization
from orpo_cli.data.tokens.store import StoredRow, record_batch

_NOTHING = Lengths(0, 0, 0)


@dataclass(frozen=True)
class Recipe:
    """What a process needs to know to prepare any block of any file of a run.

    Args:
        chat: whether the chat template is used.
        one_kind: whether all pairs have to be of one kind, chat messages or plain text, since nothing was chosen.
        end: how the template ends the assistant's turn; None in text mode.
        max_length, length_policy: as configured.
    """

    encoder: tokenization.Encoder
    special: tokenization.SpecialIds
    chat: bool
    one_kind: bool
    end: rendering.TurnEnd | None
    max_length: int
    length_policy: str


@dataclass(frozen=True)
class PreparedBlock:
    """What became of a block.

    Args:
        batch: its rows as a batch of Arrow; None where they were only checked.
        problems: the first of each of its invalid rows.
        unread: keys that nobody reads, with the number of rows that have them.
    """

    batch: Any
    problems: list[Problem]
    unread: Counter[str]


def prepare_block(recipe: Recipe, block: Block, file: str, shape: Shape, only_check: bool) -> PreparedBlock:
    """Check, render and tokenize the rows of a block.

    Args:
        file: its name, for messages.
        only_check: whether to stop before the texts are tokenized.
    Raises:
        DataError: plain text among chat messages, or a pair over the limit under policy `error`.
    """
    unread: Counter[str] = Counter()
    rows: list[_Given] = []
    for row in rows_of(block, file):
        if isinstance(row, Problem):
            rows.append([row])
            continue
        unread.update(extra_keys(row, shape))
        pairs = to_pairs(row, shape)
        rows.append([pairs] if isinstance(pairs, Problem) else _rendered(recipe, pairs))
    if only_check:
        return PreparedBlock(None, _problems(rows), unread)
    tokenized = _tokenized(recipe, [item for row in rows for item in row if isinstance(item, _Texts)])
    ended = [[next(tokenized) if isinstance(item, _Texts) else item for item in row] for row in rows]
    batch = record_batch([stored for row in ended for stored in _stored(row)])
    return PreparedBlock(batch, _problems(ended), unread)


@dataclass(frozen=True)
class _Texts:
    """A pair, and its texts as they are tokenized."""

    pair: PreferencePair
    texts: rendering.RenderedPair


@dataclass(frozen=True)
class _Ids:
    """A pair, its texts, and what became of them."""

    pair: PreferencePair
    texts: rendering.RenderedPair
    row: tokenization.TokenizedRow


_Given = list[_Texts | Skipped | Problem]
"""What one row of a file gives: one item, but for a ranking."""

_Ended = list[_Ids | Skipped | Problem]


def _rendered(recipe: Recipe, pairs: Sequence[PreferencePair | Skipped]) -> _Given:
    given: _Given = []
    for pair in pairs:
        if isinstance(pair, Skipped):
            given.append(pair)
            continue
        if recipe.one_kind:
            rendering.refuse_other_kind(pair, recipe.chat)
        texts = rendering.render(pair, recipe.chat, recipe.end, recipe.encoder.tokenizer)
        given.append(texts if isinstance(texts, Problem) else _Texts(pair, texts))
    return given


def _tokenized(recipe: Recipe, given: Sequence[_Texts]) -> Iterator[_Ids | Problem]:
    rows = tokenization.tokenize(
        [item.texts for item in given],
        recipe.chat, recipe.special, recipe.encoder, recipe.max_length, recipe.length_policy,
    )  # fmt: skip
    for item, row in zip(given, rows, strict=True):
        yield row if isinstance(row, Problem) else _Ids(item.pair, item.texts, row)


def _problems(rows: Sequence[Sequence[Any]]) -> list[Problem]:
    """The first problem of each row that has one."""
    firsts = (next((item for item in row if isinstance(item, Problem)), None) for row in rows)
    return [problem for problem in firsts if problem is not None]


def _stored(row: _Ended) -> Iterator[StoredRow]:
    """The records of one row; its pairs that are trained on share its weight."""
    trained = sum(isinstance(item, _Ids) and item.row.pair is not None for item in row)
    for number, item in enumerate(row):
        if isinstance(item, Problem):
            yield _without_texts(item.source.line, number, f"invalid:{item.reason}")
        elif isinstance(item, Skipped):
            yield _without_texts(item.source.line, number, f"dropped:{item.reason}")
        else:
            weight = item.pair.weight / trained if item.row.pair is not None else 0.0
            yield _with_texts(item, number, weight)


def _with_texts(item: _Ids, number: int, weight: float) -> StoredRow:
    texts, row = item.texts, item.row
    return StoredRow(
        item.pair.source.line,
        number,
        row.row_class,
        weight,
        row.lengths,
        row.boundary_merged,
        row.identical,
        row.control_tokens,
        (text_hash(texts.prompt), text_hash(texts.chosen), text_hash(texts.rejected)),
        row.pair,
    )


def text_hash(text: str) -> int:
    """64 bits of a text's digest; two of a million texts collide with a chance of 3 in 100 million."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def _without_texts(line: int, number: int, row_class: str) -> StoredRow:
    return StoredRow(line, number, row_class, 0.0, _NOTHING, False, False, 0, (0, 0, 0), None)
