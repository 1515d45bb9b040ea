"""Whether evaluations have stopped to become better."""

from collections.abc import Mapping, Sequence

from orpo_cli.config.schema import BETTER


def without_improvement(evaluations: Sequence[Mapping[str, float]], metric: str) -> int:
    """Return how many of the last evaluations in a row have no better value than the best before them.

    An equal value is no better one. The first evaluation, before the first step, counts as any other.

    Args:
        evaluations: the metrics of at least one evaluation, in order.
        metric: a key of `BETTER`.
    """
    values = [evaluation[metric] for evaluation in evaluations]
    return len(values) - 1 - values.index(BETTER[metric](values))
