"""The summary of a set of pairs and of its parts."""

import math
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from made_pairs import made_pairs, prompts_of

from orpo_cli.config.schema import LossConfig
from orpo_cli.errors import DataError
from orpo_cli.losses import objective
from orpo_cli.losses.objective import Denominators, PairScores
from orpo_cli.statistics.comparison import compare
from orpo_cli.statistics.intervals import Estimate
from orpo_cli.statistics.scored_pairs import ScoredPairs
from orpo_cli.statistics.summary import BreakdownRow, breakdown, summarize
from orpo_cli.training.metrics import StepSums

ORPO = LossConfig(
    "orpo", "chosen", "sequence", "odds_ratio", length_normalized=True, label_smoothing=0.0, router_aux_loss_coef=0.0
)


def random_pairs(count: int = 90, shift: float = 0.0) -> ScoredPairs:
    """Return pairs of three sources and one to three turns, whose chosen sums are higher by `shift`."""
    random = np.random.default_rng(5)
    chosen, rejected = random.integers(5, 60, size=(2, count))
    return ScoredPairs(
        chosen_logp=-chosen * (2 + random.random(count)) + shift,
        rejected_logp=-rejected * (2 + random.random(count)),
        chosen_tokens=chosen,
        rejected_tokens=rejected,
        chosen_characters=4 * chosen + random.integers(0, 9, size=count),
        rejected_characters=4 * rejected,
        prompt=prompts_of(count, 4),
        turns=np.arange(count) % 3,
        source=np.array(["b.jsonl", "a.jsonl", "c.jsonl"])[np.arange(count) // 3 % 3],
        weight=random.choice([0.5, 1.0, 2.0], size=count),
    )


def test_values_are_the_metrics_of_training() -> None:
    """The same scores and weights as an evaluation inside a run sums them."""
    pairs = random_pairs()
    columns = (
        np.zeros(90), pairs.chosen_logp, pairs.rejected_logp, np.zeros(90), pairs.chosen_tokens, pairs.rejected_tokens,
    )  # fmt: skip
    scores, weights = PairScores(*map(torch.tensor, columns)), torch.tensor(pairs.weight)
    step = Denominators(float(weights.sum()), float(weights @ scores.chosen_tokens.double()))
    metrics = StepSums.of(scores, objective.loss(scores, step, ORPO, 0.1, weights)).metrics()
    summary = asdict(summarize(pairs))
    for name in ("nll", "accuracy", "margin", "log_odds_ratio"):
        assert summary[name]["value"] == pytest.approx(metrics[name], rel=1e-6), (
            name
        )  # sums of a step are of fp32 terms
    assert summary["logps_chosen"]["value"] == pytest.approx(metrics["logps/chosen"], rel=1e-6)
    assert summary["logps_rejected"]["value"] == pytest.approx(metrics["logps/rejected"], rel=1e-6)


def test_every_number_by_plain_loops() -> None:
    pairs = random_pairs()
    rows = list(zip(*(getattr(pairs, name).tolist() for name in ScoredPairs.__dataclass_fields__), strict=True))
    total = sum(row[-1] for row in rows)
    summary = summarize(pairs)
    assert (summary.pairs, summary.prompts) == (90, len({row[6] for row in rows}))
    by_sum = sum(row[-1] for row in rows if row[0] > row[1]) / total
    tokens = sum(row[-1] * (1.0 if row[2] > row[3] else 0.5 if row[2] == row[3] else 0.0) for row in rows) / total
    signs = sum(row[-1] * (1.0 if row[4] > row[5] else 0.5 if row[4] == row[5] else 0.0) for row in rows) / total
    nll = -sum(row[-1] * row[0] for row in rows) / sum(row[-1] * row[2] for row in rows)
    nll_rejected = -sum(row[-1] * row[1] for row in rows) / sum(row[-1] * row[3] for row in rows)
    sides = []
    for sign in (1, -1):
        side = [row for row in rows if sign * (row[2] - row[3]) > 0]
        sides.append(sum(row[-1] for row in side if row[0] / row[2] > row[1] / row[3]) / sum(row[-1] for row in side))
    assert isinstance(summary.balanced_accuracy, Estimate)
    found = (
        summary.accuracy_sum, summary.longer_wins, summary.longer_wins_characters, summary.nll, summary.nll_rejected,
        summary.perplexity, summary.perplexity_rejected, summary.balanced_accuracy,
    )  # fmt: skip
    expected = (by_sum, tokens, signs, nll, nll_rejected, math.exp(nll), math.exp(nll_rejected), sum(sides) / 2)
    assert [estimate.value for estimate in found] == pytest.approx(expected, rel=1e-12)
    assert summary.perplexity.high == pytest.approx(math.exp(summary.nll.high or 0))


def test_a_ruined_model_has_a_perplexity_that_can_be_written() -> None:
    summary = summarize(made_pairs([True, False], chosen_logp=np.array([-1e5, -2e5])))
    assert summary.nll.value == 1500
    assert summary.perplexity.value == math.exp(700)


@pytest.mark.filterwarnings("error")
@given(
    st.lists(
        st.tuples(st.booleans(), st.integers(0, 3), st.integers(-2, 2), st.sampled_from([0.0, 1.0, 0.3])),
        min_size=1,
        max_size=30,
    )
)
def test_no_set_of_pairs_gives_nan_or_a_warning(rows: list[tuple[bool, int, int, float]]) -> None:
    """Few prompts, ties, equal lengths, equal outcomes, weights of zero; against a model that wins the rest."""
    wins, prompt, more, weight = (np.array(column) for column in zip(*rows, strict=True))
    pairs = made_pairs(wins, prompt, more, weight=weight)
    against = made_pairs(~wins, prompt, more, weight=weight)
    if not weight.any():
        with pytest.raises(DataError, match="has a weight above 0"):
            summarize(pairs)
        with pytest.raises(DataError, match="has a weight above 0"):
            breakdown(pairs)
        return
    records = [asdict(summarize(pairs)), asdict(compare(pairs, against)), *map(asdict, breakdown(pairs, against))]
    for record in records:
        for name, value in record.items():
            numbers = value.values() if isinstance(value, dict) else [value]
            flat = [number for item in numbers for number in (item.values() if isinstance(item, dict) else [item])]
            for number in flat:
                assert number is None or type(number) in (int, float, str), (name, value)
                assert not isinstance(number, float) or math.isfinite(number), (name, value)


def test_parts_are_by_source_turns_and_quarters_of_length() -> None:
    """Lengths 1 to 40: ten in each quarter. Sources in the order of the data; 0 turns means unknown."""
    count = np.arange(40)
    pairs = made_pairs(
        count % 2 == 0,
        chosen_tokens=count + 1,
        source=np.where(count < 30, "second.jsonl", "first.jsonl"),
        turns=count // 20,
    )
    rows = breakdown(pairs)
    assert [(row.by, row.name, row.pairs) for row in rows] == [
        ("source", "second.jsonl", 30),
        ("source", "first.jsonl", 10),
        ("turns", "unknown", 20),
        ("turns", "1", 20),
        ("length", "1 to 10", 10),
        ("length", "11 to 20", 10),
        ("length", "21 to 30", 10),
        ("length", "31 to 40", 10),
    ]
    part = pairs.take(count >= 30)
    whole = summarize(part)
    expected = BreakdownRow("source", "first.jsonl", 10, 10, whole.accuracy, whole.nll, whole.margin)
    assert rows[1] == expected


def test_what_all_pairs_share_is_no_part() -> None:
    """One source, one number of turns, all responses of 100 tokens; and 19 pairs are too few for two lengths."""
    assert breakdown(made_pairs([True, False] * 30)) == ()
    assert breakdown(made_pairs([True] * 19, more_tokens=np.arange(19))) == ()
    assert [row.name for row in breakdown(made_pairs([True] * 20, more_tokens=np.arange(20)))] == [
        "100 to 109",
        "110 to 119",
    ]


def test_p_of_parts_is_adjusted_for_their_number() -> None:
    """8 of 8 flips in one source: 2 / 2^8 times two rows. 3 of 3 in the other: 0.25."""
    count = np.arange(40)
    source = np.where(count < 20, "a", "b")
    gains = (count < 8) | (count >= 37)
    rows = breakdown(made_pairs(gains, source=source), made_pairs(count < 0, source=source))
    assert [row.p for row in rows] == pytest.approx([2 * 2 / 2**8, 0.25])
    assert [row.change.value for row in rows if row.change] == [0.4, 0.15]


def test_parts_of_other_pairs_are_refused() -> None:
    pairs = random_pairs()
    with pytest.raises(DataError, match=r"^Pair 1 of 90 .* \(prompt: 0 and 1\)"):
        breakdown(pairs, replace(pairs, prompt=pairs.prompt + 1))
