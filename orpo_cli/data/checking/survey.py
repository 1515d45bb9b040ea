"""Count what the texts of preference pairs look like, block by block, for `orpo check`."""

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

from orpo_cli.data.pairs import PreferencePair, Problem, Row, Skipped, Source, TextPair
from orpo_cli.data.rows.readers import Block, rows_of
from orpo_cli.data.shapes.conversion import score_gap, to_pairs
from orpo_cli.data.shapes.shape import Shape
from orpo_cli.data.shapes.transcripts import turns_of

EXAMPLES = 3
_OPENING_WORDS = 3
_OPENINGS_KEPT = 60
_SHORT_PROMPT = 10
_NOT_A_WORD = re.compile(r"\W+")
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
_COUNTED_AS = {"Kana": "Han"}
"""Scripts that are counted as another, since Japanese mixes both."""


@dataclass(frozen=True)
class Trait:
    """Count the pairs that show a trait, with places and excerpts of the first."""

    count: int = 0
    examples: tuple[tuple[Source, str], ...] = ()

    def plus(self, later: "Trait") -> "Trait":
        """Return both together."""
        return Trait(self.count + later.count, (self.examples + later.examples)[:EXAMPLES])


@dataclass(frozen=True)
class Survey:
    """Hold the traits of the texts of many pairs.

    Args:
        pairs: the number of pairs that were looked at.
        traits: the traits that were found, by the names that `_traits` gives them.
        openings: for chosen and rejected, the first words of the answers and how often they stand there.
    """

    pairs: int = 0
    traits: dict[str, Trait] = field(default_factory=dict)
    openings: tuple[Counter[str], Counter[str]] = field(default_factory=lambda: (Counter(), Counter()))

    def trait(self, name: str) -> Trait:
        """Return a trait, also one that no pair shows."""
        return self.traits.get(name, Trait())

    def plus(self, later: "Survey") -> "Survey":
        """Return both together."""
        traits = {name: self.trait(name).plus(later.trait(name)) for name in [*self.traits, *later.traits]}
        chosen, rejected = (mine + theirs for mine, theirs in zip(self.openings, later.openings, strict=True))
        return Survey(self.pairs + later.pairs, traits, (chosen, rejected))


def survey_block(_shared: None, block: Block, file: str, shape: Shape) -> Survey:
    """Return the traits of one block of a file."""
    traits: dict[str, Trait] = {}
    openings: tuple[Counter[str], Counter[str]] = Counter(), Counter()
    count = 0
    for row, pair in pairs_of(block, file, shape):
        count += 1
        text = pair.as_text()
        for name, shown in _traits(row, pair, shape):
            traits[name] = traits.get(name, Trait()).plus(Trait(1, ((pair.source, shown),)))
        for side, answer in zip(openings, (text.chosen, text.rejected), strict=True):
            if opening := _opening(answer):
                side[opening] += 1
    chosen, rejected = (Counter(dict(side.most_common(_OPENINGS_KEPT))) for side in openings)
    return Survey(count, traits, (chosen, rejected))


def pairs_of(block: Block, file: str, shape: Shape) -> Iterator[tuple[Row, PreferencePair]]:
    """Yield the valid pairs of a block, each with its row."""
    for row in rows_of(block, file):
        if isinstance(row, Problem):
            continue
        made = to_pairs(row, shape)
        if not isinstance(made, Problem):
            yield from ((row, pair) for pair in made if not isinstance(pair, Skipped))


def _traits(row: Row, pair: PreferencePair, shape: Shape) -> Iterator[tuple[str, str]]:
    """Yield (trait, excerpt that shows it) for one pair."""
    text = pair.as_text()
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
    for _, answer in sides:
        if "<think>" in answer and "</think>" not in answer.rpartition("<think>")[2]:
            yield "open_thought", answer[-60:]
            break
    if text.chosen.rstrip().endswith("?") and not prompt.endswith("?"):
        yield "swapped_columns", text.chosen
    if shape.format != "rankings" and score_gap(row, shape) < 0:
        yield "scores_contradict", text.chosen
    if isinstance(pair, TextPair) and len(turns_of(pair.prompt)) > 1:
        yield "transcript_prompt", pair.prompt


def _opening(answer: str) -> str:
    return " ".join(_NOT_A_WORD.sub(" ", answer[:80]).lower().split()[:_OPENING_WORDS])


def _script(text: str) -> str | None:
    """Return the script that most letters of a text are of, or None where it has few letters."""
    if text.isascii():
        return "Latin" if sum(map(str.isalpha, text[:200])) > 10 else None
    counts: Counter[str] = Counter()
    for name, letters in _LETTERS.items():
        counts[_COUNTED_AS.get(name, name)] += len(letters.findall(text[:1000]))
    name, most = counts.most_common(1)[0]
    return name if most > 10 else None
