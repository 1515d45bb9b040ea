"""Find pairs that share most of their words with an earlier one, by MinHash (Broder 1997) of word triples."""

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from operator import attrgetter

from orpo_cli.data.pairs import PreferencePair, Source

_PERMUTATIONS = 128
_SEED = 42  # the library's own, so that sketches can be compared with its index


@dataclass(frozen=True)
class NearDuplicates:
    """Hold (row, earlier row) for each near duplicate, and the number of rows that were looked at."""

    found: Sequence[tuple[Source, Source]] = ()
    looked_at: int = 0


def near_duplicates(pairs: Iterable[PreferencePair], similarity: float, limit: int) -> NearDuplicates:
    """Find the rows that nearly repeat an earlier one; exact copies, either way round, are passed over.

    The pairs of one ranking are looked at together, since they share its answers.

    Args:
        pairs: those of one row behind each other.
        similarity: the share of common word triples (Jaccard) from which two pairs count as near.
        limit: the number of pairs to look at.
    """
    from rensa import RMinHash, RMinHashDeduplicator

    known = RMinHashDeduplicator(threshold=similarity, num_perm=_PERMUTATIONS, use_lsh=True)
    sources: list[Source] = []
    seen: set[int] = set()
    found: list[tuple[Source, Source]] = []
    for source, of_row in itertools.groupby(pairs, key=attrgetter("source")):
        if len(sources) == limit:
            break
        texts = [pair.as_text() for pair in of_row]
        answers = dict.fromkeys(answer for text in texts for answer in (text.chosen, text.rejected))
        if (copy := hash((texts[0].prompt, frozenset(answers)))) in seen:
            continue
        seen.add(copy)
        triples = _word_triples(texts[0].prompt, *answers)
        sources.append(source)
        if not known.add_pairs([(str(len(sources) - 1), triples)])[0]:
            sketch = RMinHash(num_perm=_PERMUTATIONS, seed=_SEED)
            sketch.update(triples)
            first = min(map(int, known.get_duplicates(sketch)), default=None)
            found.append((source, sources[first] if first is not None else source))
    return NearDuplicates(found, len(sources))


def _word_triples(*texts: str) -> list[str]:
    words = "\n".join(texts).lower().split()
    return [" ".join(words[place : place + 3]) for place in range(max(1, len(words) - 2))]
