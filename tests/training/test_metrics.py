"""Each metric against plain loops over pairs: means count a pair by its weight, and sums of parts are sums of all."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from orpo_cli.config.schema import LossConfig
from orpo_cli.losses import objective
from orpo_cli.losses.objective import Denominators, PairScores
from orpo_cli.training.metrics import StepSums

ORPO = LossConfig("orpo", "chosen", "sequence", "odds_ratio", True, 0.0, 0.0)
LAMBDA = 0.3
REL = 1e-5
"""fp32: a log-odds ratio is a difference of numbers up to 10, each rounded to 6e-8 of its size, and sums of 6 pairs."""

pairs = st.tuples(st.floats(-5, -0.01), st.integers(1, 9), st.floats(-5, -0.01), st.integers(1, 9), st.floats(0.01, 50))
"""Mean log-probability and tokens of chosen and of rejected, and the weight."""


def sums_of(rows: Sequence[tuple[Any, ...]], step: Denominators) -> StepSums:
    chosen, chosen_tokens, rejected, rejected_tokens, weights = (
        torch.tensor(column) for column in zip(*rows, strict=True)
    )
    nothing = torch.zeros(len(rows))
    scores = PairScores(
        nothing, chosen * chosen_tokens, rejected * rejected_tokens, nothing.long(), chosen_tokens, rejected_tokens
    )
    return StepSums.of(scores, objective.loss(scores, step, ORPO, LAMBDA, weights))


def step_of(rows: Sequence[tuple[Any, ...]]) -> Denominators:
    return Denominators(sum(row[4] for row in rows), sum(row[4] * row[1] for row in rows))


def log_odds(logp: float) -> float:
    return logp - math.log(-math.expm1(logp))


@given(st.lists(pairs, min_size=1, max_size=6), st.integers(0, 6))
def test_metrics_are_weighted_means(rows: list[tuple[Any, ...]], cut: int) -> None:
    step = step_of(rows)
    parts = [sums_of(part, step) for part in (rows[:cut], rows[cut:]) if part]
    metrics = sum(parts[1:], parts[0]).metrics()

    def mean(value: Callable[[float, float], float]) -> float:
        return sum(row[4] * value(row[0], row[2]) for row in rows) / sum(row[4] for row in rows)

    def ratio(chosen: float, rejected: float) -> float:
        return log_odds(chosen) - log_odds(rejected)

    def by_ratio(chosen: float, rejected: float) -> float:
        return LAMBDA / (1 + math.exp(ratio(chosen, rejected)))

    expected = {
        "nll": -sum(row[4] * row[0] * row[1] for row in rows) / sum(row[4] * row[1] for row in rows),
        "nll_loss": mean(lambda chosen, _: -chosen),
        "or_loss": mean(lambda chosen, rejected: math.log1p(math.exp(-ratio(chosen, rejected)))),
        "log_odds_ratio": mean(ratio),
        "margin": mean(lambda chosen, rejected: chosen - rejected),
        "logps/chosen": mean(lambda chosen, _: chosen),
        "logps/rejected": mean(lambda _, rejected: rejected),
        "or_pull": mean(lambda chosen, rejected: by_ratio(chosen, rejected) / -math.expm1(chosen)),
        "or_push": mean(lambda chosen, rejected: by_ratio(chosen, rejected) / -math.expm1(rejected)),
    }
    expected["loss"] = expected["nll_loss"] + LAMBDA * expected["or_loss"]
    assert {name: metrics[name] for name in expected} == pytest.approx(expected, rel=REL, abs=REL)
    assert set(metrics) == {*expected, "accuracy"}


def test_accuracy_is_the_weight_of_the_pairs_that_are_right() -> None:
    """The first and the third are right, of weights 1, 5 and 2: 3 of 8. Equal means do not count as right."""
    rows = [(-1.0, 2, -2.0, 1, 1.0), (-3.0, 1, -2.0, 4, 5.0), (-0.5, 1, -0.75, 1, 2.0)]
    assert sums_of(rows, step_of(rows)).metrics()["accuracy"] == 3 / 8
    equal = [(-1.0, 2, -1.0, 2, 1.0)]
    assert sums_of(equal, step_of(equal)).metrics()["accuracy"] == 0


def test_a_pair_of_weight_two_counts_twice() -> None:
    one = [(-1.0, 2, -2.0, 3, 2.0), (-0.3, 4, -0.2, 5, 1.0)]
    many = [(-1.0, 2, -2.0, 3, 1.0)] * 2 + [(-0.3, 4, -0.2, 5, 1.0)]
    weighted, repeated = (sums_of(rows, step_of(rows)).metrics() for rows in (one, many))
    assert weighted == pytest.approx(repeated, rel=REL)
