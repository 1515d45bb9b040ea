"""What the texts of preference pairs look like, counted block by block, for `orpo check`."""

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from orpo_cli.data.pairs import PreferencePair, Problem, Skipped, Source, TextPair
from orpo_cli.data.rows.json_rows import Row
from orpo_cli.data.rows.readers import Block, rows_of
from orpo_cli.data.shapes.shapes import Shape, score_gap, to_pairs

EXAMPLES = 3
_OPENING_WORDS = 3
_OPENINGS_KEPT = 60
_SHORT_PROMPT = 10
_ADDRESS = re.compile(r"\W+")
_REFUSAL = re.compile(
    r"\s*(i['’]?m (very |really )?sorry|i apologi[sz]e|sorry, (but )?i|as an ai\b|as a (large )?language model|"
    r"i (can(no|['’])t|am (not able|unable)|won['’]t|will not) (to )?"
    r"(help|assist|provide|answer|do|fulfil|comply|engage)|"
    r"unfortunately, i (can|am))",
    re.IGNORECASE,
)
_DAMAGED = re.compile(
    "\ufffd|[\x01-\x08\x0b\x0c\x0e-\x1f\x7f-\x84\x86-\x9f]|Ã[\x80-\xbf©¨¤¶¼±]|â€[™œ\x9d“”˜¦]|Â[\xa0°»«]|ï»¿|[\ue000-\uf8ff]"
)
_SCRIPTS = {
    "Latin": "A-Za-zÀ-ɏ",
    "Greek": "Ͱ-Ͽ",
    "Cyrillic": "Ѐ-ӿ",
    "Hebrew": "֐-׿",
    "Arabic": "؀-ۿ",
    "Devanagari": "ऀ-ॿ",
    "Thai": "฀-๿",
    "Hangul": "가-힯",
    "Kana": "぀-ヿ",
    "Han": "一-鿿",
}
_LETTERS = {name: re.compile(f"[{letters}]") for name, letters in _SCRIPTS.items()}
_TOGETHER = {"Kana": "Han"}
"""Scripts of one language: Japanese mixes both."""


@dataclass(frozen=True)
class Seen:
    """How many pairs show a trait, and the first of them."""

    count: int = 0
    examples: tuple[tuple[Source, str], ...] = ()

    def and_then(self, later: "Seen") -> "Seen":
        """Both together, the examples of the first first."""
        return Seen(self.count + later.count, (self.examples + later.examples)[:EXAMPLES])


@dataclass(frozen=True)
class Survey:
    """Traits of the texts of many pairs.

    Args:
        pairs: how many were looked at.
        traits: by name; see `TRAITS`.
        openings: for chosen and rejected, the first words of the answers and how often they stand there.
    """

    pairs: int = 0
    traits: dict[str, Seen] = field(default_factory=dict)
    openings: tuple[Counter[str], Counter[str]] = field(default_factory=lambda: (Counter(), Counter()))

    def and_then(self, later: "Survey") -> "Survey":
        """Both together."""
        traits = {name: self.traits.get(name, Seen()).and_then(later.traits.get(name, Seen())) for name in TRAITS}
        openings = tuple(mine + theirs for mine, theirs in zip(self.openings, later.openings, strict=True))
        return Survey(self.pairs + later.pairs, traits, (openings[0], openings[1]))


def survey_block(_shared: None, block: Block, file: str, shape: Shape) -> Survey:
    """The traits of one block of a file."""
    traits: dict[str, Seen] = {}
    openings: tuple[Counter[str], Counter[str]] = Counter(), Counter()
    count = 0
    for row, pair in pairs_of(block, file, shape):
        count += 1
        text = pair.as_text()
        for name, shown in _traits(row, text, shape):
            traits[name] = traits.get(name, Seen()).and_then(Seen(1, ((pair.source, shown),)))
        for side, answer in zip(openings, (text.chosen, text.rejected), strict=True):
            if opening := _opening(answer):
                side[opening] += 1
    kept = tuple(Counter(dict(side.most_common(_OPENINGS_KEPT))) for side in openings)
    return Survey(count, traits, (kept[0], kept[1]))


def pairs_of(block: Block, file: str, shape: Shape) -> Iterator[tuple[Row, PreferencePair]]:
    """The valid pairs of a block, each with its row."""
    for row in rows_of(block, file):
        if isinstance(row, Problem):
            continue
        made = to_pairs(row, shape)
        if not isinstance(made, Problem):
            yield from ((row, pair) for pair in made if not isinstance(pair, Skipped))


def _traits(row: Row, text: TextPair, shape: Shape) -> Iterator[tuple[str, str]]:
    """(trait, excerpt that shows it) of one pair."""
    sides = (("chosen", text.chosen), ("rejected", text.rejected))
    for name, answer in sides:
        if _REFUSAL.match(answer):
            yield f"refusal_{name}", answer
    for answer in (text.prompt, text.chosen, text.rejected):
        if found := _DAMAGED.search(answer):
            yield "encoding", answer[max(0, found.start() - 10) : found.end() + 20]
            break
    scripts = [_script(answer) for answer in (text.chosen, text.rejected)]
    if None not in scripts and scripts[0] != scripts[1]:
        yield "language", f"{scripts[0]} against {scripts[1]}"
    prompt = text.prompt.strip()
    if len(prompt) > _SHORT_PROMPT and any(answer.lstrip().startswith(prompt) for _, answer in sides):
        yield "prompt_repeated", prompt
    if text.chosen.rstrip().endswith("?") and not prompt.endswith("?"):
        yield "swapped_columns", text.chosen
    if shape.format != "rankings" and score_gap(row, shape) < 0:
        yield "scores_contradict", text.chosen


TRAITS = (
    "refusal_chosen",
    "refusal_rejected",
    "encoding",
    "language",
    "prompt_repeated",
    "swapped_columns",
    "scores_contradict",
)


def _opening(answer: str) -> str:
    return " ".join(_ADDRESS.sub(" ", answer[:80]).lower().split()[:_OPENING_WORDS])


def _script(text: str) -> str | None:
    """The script most of a text's letters are of; None where it has few."""
    if text.isascii():
        return "Latin" if sum(map(str.isalpha, text[:200])) > 10 else None
    counts: Counter[str] = Counter()
    for name, letters in _LETTERS.items():
        counts[_TOGETHER.get(name, name)] += len(letters.findall(text[:1000]))
    name, most = counts.most_common(1)[0]
    return name if most > 10 else None


def near_duplicates(
    pairs: Iterable[PreferencePair], similarity: float, limit: int
) -> tuple[list[tuple[Source, Source]], int]:
    """Pairs that share most of their words with an earlier one, found by MinHash (Broder 1997) of word triples.

    Exact copies of an earlier pair, either way round, are passed over.

    Args:
        similarity: share of common word triples (Jaccard) from which two pairs count as near.
        limit: pairs that are looked at.
    Returns:
        (pair, earlier pair) for each, and how many pairs were looked at.
    """
    from rensa import RMinHash, RMinHashDeduplicator

    known = RMinHashDeduplicator(threshold=similarity, num_perm=_PERMUTATIONS, use_lsh=True)
    sources: list[Source] = []
    seen: set[int] = set()
    found: list[tuple[Source, Source]] = []
    for pair in pairs:
        if len(sources) == limit:
            break
        text = pair.as_text()
        if (copy := hash((text.prompt, frozenset((text.chosen, text.rejected))))) in seen:
            continue
        seen.add(copy)
        triples = _word_triples(text)
        sources.append(pair.source)
        if not known.add_pairs([(str(len(sources) - 1), triples)])[0]:
            sketch = RMinHash(num_perm=_PERMUTATIONS, seed=_SEED)
            sketch.update(triples)
            first = min(map(int, known.get_duplicates(sketch)), default=None)
            found.append((pair.source, sources[first] if first is not None else pair.source))
    return found, len(sources)


_PERMUTATIONS = 128
_SEED = 42  # the library's own, so that sketches can be compared with its index


def _word_triples(text: TextPair) -> list[str]:
    words = f"{text.prompt}\n{text.chosen}\n{text.rejected}".lower().split()
    return [" ".join(words[place : place + 3]) for place in range(max(1, len(words) - 2))]
