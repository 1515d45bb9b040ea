"""Make pairs of ranked responses."""

from collections.abc import Callable, Sequence
from itertools import combinations, pairwise

from orpo_cli.data.pairs import PreferencePair, ProblemError, Skipped, Source
from orpo_cli.data.shapes import messages
from orpo_cli.data.shapes.pairing import prompt_of, text_or_chat
from orpo_cli.data.shapes.shape import Fields, Shape
from orpo_cli.data.shapes.values import checked_score, type_name


def from_rankings(source: Source, fields: Fields, shape: Shape) -> list[PreferencePair | Skipped]:
    """Return the pairs of a ranking; responses without a score are left out where others have one.

    Raises:
        ProblemError: if there are not two responses, or no numbers that rank them.
    """
    column, prompt = fields.column("responses"), fields.needed("prompt")
    given = _listed_responses(column, fields.needed("responses"))
    scores = _scores(fields, len(given))
    rated = [place for place, score in enumerate(scores) if score is not None]
    if len(rated) < 2:
        return [Skipped(source, "unscored")]
    texts = [messages.response(f"{column}[{place}]", given[place], shape.ignored) for place in rated]
    numbers = [score for score in scores if score is not None]
    order = sorted(range(len(texts)), key=lambda place: -numbers[place])
    prompt = prompt_of(fields, shape, prompt, (given[place] for place in rated))

    def pair(better: int, worse: int) -> PreferencePair | Skipped:
        gap = numbers[better] - numbers[worse]
        if gap == 0 or gap < shape.min_score_gap:
            return Skipped(source, "score_gap" if gap else "tie")
        return text_or_chat(source, prompt, texts[better], texts[worse])

    return [pair(better, worse) for better, worse in PAIRINGS[shape.pairs](order)]


def _listed_responses(column: str, given: object) -> list[object]:
    if not isinstance(given, list) or len(given) < 2:
        found = f"{len(given)}" if isinstance(given, list) else type_name(given)
        raise ProblemError(f"{column}: expected a list of two responses or more, found {found}", "wrong_type")
    return given


PAIRINGS: dict[str, Callable[[Sequence[int]], list[tuple[int, int]]]] = {
    "all": lambda order: list(combinations(order, 2)),
    "adjacent": lambda order: list(pairwise(order)),
    "best_vs_rest": lambda order: [(order[0], other) for other in order[1:]],
}
"""`data.pairs` -> (better, worse) places of a ranking given best first."""


def _scores(fields: Fields, count: int) -> list[float | None]:
    """Return a number for each response, where higher is better; the signs of ranks are turned.

    Raises:
        ProblemError: if there are neither scores nor ranks, not one for each response, or they contradict each other.
    """
    scores, ranks = (_numbers(fields, field, count) for field in ("scores", "ranking"))
    if ranks is not None and any(rank is not None and rank < 1 for rank in ranks):
        raise ProblemError(f"{fields.column('ranking')}: ranks count from 1, which is the best", "wrong_type")
    if scores is None and ranks is None:
        column = fields.column("scores")
        either = f"{column} or {fields.column('ranking')}"
        raise ProblemError(f"{column}: missing; a ranking needs {either}", "missing_field")
    turned = None if ranks is None else [None if rank is None else -rank for rank in ranks]
    if scores is not None and turned is not None:
        both = [(a, b) for a, b in zip(scores, turned, strict=True) if a is not None and b is not None]
        if any((first[0] - second[0]) * (first[1] - second[1]) < 0 for first, second in combinations(both, 2)):
            raise ProblemError(f"{fields.column('ranking')}: contradicts {fields.column('scores')}", "wrong_type")
    return scores if scores is not None else turned or []


def _numbers(fields: Fields, field: str, count: int) -> list[float | None] | None:
    given, column = fields.get(field), fields.column(field)
    if given is None:
        return None
    if not isinstance(given, list) or len(given) != count:
        found = f"{len(given)}" if isinstance(given, list) else type_name(given)
        raise ProblemError(
            f"{column}: expected a number for each of the {count} responses, found {found}", "wrong_type"
        )
    return [None if item is None else checked_score(f"{column}[{place}]", item) for place, item in enumerate(given)]
