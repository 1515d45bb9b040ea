"""Turn one block of a file into tokenized rows: the work that several processes share."""

import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from orpo_cli.data.pairs import Lengths, PreferencePair, Problem, Skipped
from orpo_cli.data.rows.readers import Block, rows_of
from orpo_cli.data.shapes.conversion import extra_keys, to_pairs
from orpo_cli.data.shapes.shape import Shape
from orpo_cli.data.tokens import rendering
from orpo_cli.data.tokens.rendering import RenderedPair
from orpo_cli.data.tokens.store import StoredRow, record_batch
from orpo_cli.data.tokens.tokenization import TokenizationSettings, TokenizedRow, tokenize


@dataclass(frozen=True)
class TokenizedBlock:
    """Hold what became of a block.

    Args:
        batch: its rows as a batch of Arrow; None where they were only checked.
        problems: the first problem of each of its invalid rows.
        unread: keys that are not read, with the number of rows that have them.
        notes: how many pairs have each of the notes of `RenderedPair`.
    """

    batch: Any
    problems: list[Problem]
    unread: Counter[str]
    notes: Counter[str]


def tokenize_block(
    settings: TokenizationSettings, block: Block, file: str, shape: Shape, only_check: bool
) -> TokenizedBlock:
    """Check, render and tokenize the rows of a block.

    Args:
        file: the name of the file, for messages.
        only_check: whether to stop before the texts are tokenized.
    Raises:
        DataError: if there is plain text among chat messages, or a pair over the limit under the policy `error`.
    """
    unread: Counter[str] = Counter()
    rows: list[list[RenderedPair | Skipped | Problem]] = []
    for row in rows_of(block, file):
        if isinstance(row, Problem):
            rows.append([row])
            continue
        unread.update(extra_keys(row, shape))
        pairs = to_pairs(row, shape)
        rows.append([pairs] if isinstance(pairs, Problem) else [_rendered(settings, pair) for pair in pairs])
    rendered = [item for row in rows for item in row if isinstance(item, RenderedPair)]
    notes = Counter(note for pair in rendered for note in pair.notes)
    if only_check:
        return TokenizedBlock(None, [problem for row in rows for problem in _first_problem(row)], unread, notes)
    tokenized = iter(tokenize(rendered, settings))
    stored: list[StoredRow] = []
    problems: list[Problem] = []
    for items in rows:
        results = [next(tokenized) if isinstance(item, RenderedPair) else item for item in items]
        problems += _first_problem(results)
        stored += _stored(items, results)
    return TokenizedBlock(record_batch(stored), problems, unread, notes)


def _rendered(settings: TokenizationSettings, pair: PreferencePair | Skipped) -> RenderedPair | Skipped | Problem:
    if isinstance(pair, Skipped):
        return pair
    if settings.one_kind:
        rendering.refuse_other_kind(pair, settings.chat)
    return rendering.render(pair, settings.template)


def _first_problem(row: Sequence[Any]) -> list[Problem]:
    return [item for item in row if isinstance(item, Problem)][:1]


def _stored(texts: Sequence[Any], results: Sequence[TokenizedRow | Skipped | Problem]) -> Iterator[StoredRow]:
    """Yield the records of one row; its pairs that are trained on share its weight."""
    trained = sum(isinstance(result, TokenizedRow) and result.pair is not None for result in results)
    for number, (text, result) in enumerate(zip(texts, results, strict=True)):
        if isinstance(result, TokenizedRow):
            weight = text.weight / trained if result.pair is not None else 0.0
            hashes = (text_hash(text.prompt), text_hash(text.chosen), text_hash(text.rejected))
            yield StoredRow(
                text.source.line, number, result.row_class, weight, result.lengths, result.boundary_merged,
                result.identical, result.control_tokens, hashes, result.pair, text.turns,
            )  # fmt: skip
        else:
            row_class = f"{'invalid' if isinstance(result, Problem) else 'dropped'}:{result.reason}"
            line, no_tokens, no_hashes = result.source.line, Lengths(0, 0, 0), (0, 0, 0)
            yield StoredRow(line, number, row_class, 0.0, no_tokens, False, False, 0, no_hashes, None)


def text_hash(text: str) -> int:
    """Return 64 bits of a text's digest; two of a million texts collide with a chance of 3 in 100 million."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")
