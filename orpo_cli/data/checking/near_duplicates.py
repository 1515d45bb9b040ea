"""Find pairs that share most of their words with an earlier one, by MinHash (Broder 1997) of word triples."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from orpo_cli.data.pairs import PreferencePair, Source, TextPair

_PERMUTATIONS = 128
_SEED = 42  # the library's own, so that sketches can be compared with its index


@dataclass(frozen=True)
class NearDuplicates:
    """Hold (pair, earlier pair) for each near duplicate, and the number of pairs that were looked at."""

    found: Sequence[tuple[Source, Source]] = ()
    looked_at: int = 0


def near_duplicates(pairs: Iterable[PreferencePair], similarity: float, limit: int) -> NearDuplicates:
    """Find the near duplicates of earlier pairs; exact copies, either way round, are passed over.

    Args:
        similarity: the share of common word triples (Jaccard) from which two pairs count as near.
        limit: the number of pairs to look at.
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
    return NearDuplicates(found, len(sources))


def _word_triples(text: TextPair) -> list[str]:
    words = f"{text.prompt}\n{text.chosen}\n{text.rejected}".lower().split()
    return [" ".join(words[place : place + 3]) for place in range(max(1, len(words) - 2))]
