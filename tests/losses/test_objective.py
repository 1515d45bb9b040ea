"""The objective against hand-derived numbers, mpmath, plain loops over logits, and the peer that `loss=trl` names."""

import itertools
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from types import SimpleNamespace
from typing import Any, ClassVar

import mpmath
import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf
from torch import Tensor

from orpo_cli.config.keys import builtin_configs
from orpo_cli.config.schema import LossConfig
from orpo_cli.data.collation import CHOSEN, PROMPT, REJECTED, ScoredTokens, padded
from orpo_cli.data.pairs import Lengths, TokenizedPair
from orpo_cli.losses import objective
from orpo_cli.losses.objective import Denominators, LossOutput, PairScores
from orpo_cli.models.scorer import Scorer

PRESETS = sorted(path.stem for path in (builtin_configs() / "loss").glob("*.yaml"))
LN2 = math.log(2)
SMALLEST_NORMAL = 1.2e-38  # below it fp32 loses digits one by one, and no relative error can be asked for


@cache
def preset(name: str) -> tuple[LossConfig, float]:
    """Return the loss and lambda that `orpo train loss=NAME` takes from configs/loss/NAME.yaml."""
    with initialize_config_dir(str(builtin_configs()), version_base="1.3"):
        values = compose("train", overrides=[f"loss={name}"])
    section: Any = OmegaConf.to_container(values.loss)
    return LossConfig(**section), float(values["lambda"])


def scores_of(
    chosen: Sequence[tuple[float, int]], rejected: Sequence[tuple[float, int]], prompt: Sequence[tuple[float, int]] = ()
) -> PairScores:
    """Return PairScores from (sum, tokens) of each pair, fp32."""
    prompt = prompt or [(0.0, 0)] * len(chosen)
    sums = [torch.tensor([total for total, _ in role]) for role in (prompt, chosen, rejected)]
    return PairScores(*sums, *(torch.tensor([tokens for _, tokens in role]) for role in (prompt, chosen, rejected)))


def odds_ratio_term(chosen: float, rejected: float, dtype: torch.dtype = torch.float32) -> tuple[float, float, float]:
    """Return or_loss of one pair of mean log-probabilities, and its gradients in them."""
    logps = torch.tensor([chosen, rejected], dtype=dtype, requires_grad=True)
    one, none = torch.tensor([1]), torch.tensor([0])
    scores = PairScores(torch.zeros(1, dtype=dtype), logps[:1], logps[1:], none, one, one)
    output = objective.loss(scores, Denominators(1, 1), preset("orpo")[0], 1.0)
    output.preference.sum().backward()
    assert logps.grad is not None
    return float(output.preference.detach()), *logps.grad.tolist()


class TestHandDerived:
    """One pair: chosen 3 tokens of probability 1/2 each, rejected 2 of 1/4, and 2 scored prompt tokens of 1/8.

    Means: log p_w = -ln 2, log p_l = -2 ln 2. Sums: chosen -3 ln 2, rejected -4 ln 2, prompt -6 ln 2.
    Odds: (1/2)/(1/2) = 1 and (1/4)/(3/4) = 1/3, so the log-odds ratio is ln 3, its sigmoid 3/4 and or_loss ln(4/3).
    Gradients: sigmoid(-ln 3) = 1/4; by 1/(1 - p): pull 1/4 * 2 = 1/2, push 1/4 * 4/3 = 1/3.
    """

    scores = scores_of([(-3 * LN2, 3)], [(-4 * LN2, 2)], [(-6 * LN2, 2)])
    rel = 1e-6  # a handful of fp32 roundings, 6e-8 each

    def loss(self, name: str, **changes: Any) -> LossOutput:
        config, lambda_ = preset(name)
        config = replace(config, **changes)
        nll_tokens = objective.nll_tokens(Lengths(prompt=3, chosen=3, rejected=2), config)
        return objective.loss(self.scores, Denominators(1, nll_tokens), config, lambda_)

    def test_orpo(self) -> None:
        output = self.loss("orpo")
        assert float(output.nll_loss) == pytest.approx(LN2, rel=self.rel)
        assert float(output.preference) == pytest.approx(math.log(4 / 3), rel=self.rel)
        assert float(output.loss) == pytest.approx(LN2 + 0.1 * math.log(4 / 3), rel=self.rel)
        assert float(output.pull) == pytest.approx(0.1 / 2, rel=self.rel)
        assert float(output.push) == pytest.approx(0.1 / 3, rel=self.rel)

    def test_trl_takes_the_nll_over_prompt_and_chosen(self) -> None:
        """(6 + 3) ln 2 over the prompt's 2 scored tokens and the response's 3; the odds ratio is untouched."""
        output = self.loss("trl")
        assert float(output.nll_loss) == pytest.approx(9 / 5 * LN2, rel=self.rel)
        assert float(output.loss) == pytest.approx(9 / 5 * LN2 + 0.1 * math.log(4 / 3), rel=self.rel)

    def test_ms_swift_is_orpo_for_one_pair(self) -> None:
        assert float(self.loss("ms_swift").loss) == pytest.approx(LN2 + 0.1 * math.log(4 / 3), rel=self.rel)

    def test_log_ratio_compares_sums(self) -> None:
        """-3 ln 2 + 4 ln 2 = ln 2; -log sigmoid(ln 2) = ln(3/2); its derivative 1/3 falls on 3 and 2 tokens a mean."""
        output = self.loss("log_ratio")
        assert float(output.preference) == pytest.approx(math.log(3 / 2), rel=self.rel)
        assert float(output.loss) == pytest.approx(LN2 + 0.1 * math.log(3 / 2), rel=self.rel)
        assert float(output.pull) == pytest.approx(0.1 * 3 / 3, rel=self.rel)
        assert float(output.push) == pytest.approx(0.1 * 2 / 3, rel=self.rel)

    def test_log_ratio_normalized_compares_means(self) -> None:
        """Chosen 3 tokens of 1/2, rejected 1 of 1/4: the sums prefer the rejected one, the means the chosen.

        The difference is -3 ln 2 + 2 ln 2 of the sums, -ln 2 + 2 ln 2 of the means;
        -log sigmoid(-ln 2) = ln 3, -log sigmoid(ln 2) = ln(3/2).
        """
        config, lambda_ = preset("log_ratio")
        scores = scores_of([(-3 * LN2, 3)], [(-2 * LN2, 1)])
        summed = objective.loss(scores, Denominators(1, 3), config, lambda_)
        means = objective.loss(scores, Denominators(1, 3), replace(config, length_normalized=True), lambda_)
        assert float(summed.preference) == pytest.approx(math.log(3), rel=self.rel)
        assert float(means.preference) == pytest.approx(math.log(3 / 2), rel=self.rel)

    def test_sft_trains_the_nll_alone_and_watches_the_odds_ratio(self) -> None:
        output = self.loss("sft")
        assert float(output.loss) == float(output.nll_loss) == pytest.approx(LN2, rel=self.rel)
        assert float(output.preference) == pytest.approx(math.log(4 / 3), rel=self.rel)
        assert float(output.pull) == float(output.push) == 0

    def test_label_smoothing(self) -> None:
        """0.9 * ln(4/3) + 0.1 * -log sigmoid(-ln 3) = 0.9 ln(4/3) + 0.1 ln 4; the derivative is 1/4 - 0.1 = 0.15."""
        output = self.loss("orpo", label_smoothing=0.1)
        assert float(output.preference) == pytest.approx(0.9 * math.log(4 / 3) + 0.1 * math.log(4), rel=self.rel)
        assert float(output.pull) == pytest.approx(0.1 * 0.15 * 2, rel=self.rel)
        assert float(output.push) == pytest.approx(0.1 * 0.15 * 4 / 3, rel=self.rel)

    @pytest.mark.parametrize(
        ("nll", "average", "expected"),
        [
            ("chosen", "sequence", (1 + 2) / 2),  # means ln 2 and 2 ln 2
            ("chosen", "token", (1 + 3 * 2) / (1 + 3)),
            ("prompt_and_chosen", "sequence", ((1 + 2 * 3) / 3 + (3 * 2 + 5) / 4) / 2),
            ("prompt_and_chosen", "token", (1 + 2 * 3 + 3 * 2 + 5) / (3 + 4)),
        ],
    )
    def test_nll_averages(self, nll: str, average: str, expected: float) -> None:
        """Unit ln 2. Pair 1: chosen 1 token at 1, prompt 2 at 3. Pair 2: chosen 3 tokens at 2, prompt 1 at 5."""
        config = replace(preset("orpo")[0], nll=nll, nll_average=average)
        scores = scores_of([(-LN2, 1), (-6 * LN2, 3)], [(-1.0, 1), (-1.0, 1)], [(-6 * LN2, 2), (-5 * LN2, 1)])
        lengths = [Lengths(prompt=3, chosen=1, rejected=1), Lengths(prompt=2, chosen=3, rejected=1)]
        tokens = sum(objective.nll_tokens(pair, config) for pair in lengths)
        output = objective.loss(scores, Denominators(2, tokens), config, 0.0)
        assert float(output.nll_loss) / LN2 == pytest.approx(expected, rel=self.rel)
        assert float(output.loss) == float(output.nll_loss)

    def test_pair_scores_sums_by_pair_and_role(self) -> None:
        """Powers of two, so that each sum names its own terms; the tokens lie in no order."""
        tokens = [(REJECTED, 1), (PROMPT, 0), (CHOSEN, 1), (CHOSEN, 0), (CHOSEN, 1), (REJECTED, 0), (REJECTED, 1)]
        roles, pairs = (torch.tensor(column) for column in zip(*tokens, strict=True))
        logps = -torch.tensor([1.0, 2, 4, 8, 16, 32, 64])
        scores = objective.pair_scores(logps, ScoredTokens(roles, roles, roles, pairs), pair_count=2)
        assert scores.prompt_sum.tolist() == [-2, 0]
        assert scores.chosen_sum.tolist() == [-8, -20]
        assert scores.rejected_sum.tolist() == [-32, -65]
        assert scores.prompt_tokens.tolist() == [1, 0]
        assert scores.chosen_tokens.tolist() == [1, 2]
        assert scores.rejected_tokens.tolist() == [1, 2]
        assert scores.chosen_mean.tolist() == [-8, -10]


class TestWeightsByHand:
    """Pair A of `TestHandDerived` with weight 3, and a pair B with weight 1, in units of ln 2 where not said otherwise.

    A: chosen 3 tokens of 1/2, rejected 2 of 1/4, 2 scored prompt tokens of 1/8: or_loss ln(4/3), log-ratio ln 2.
    B: chosen 1 token of 1/4, rejected 1 of 1/2, 1 scored prompt token of 1/2: odds 1/3 against 1, so the log-odds ratio
    is -ln 3 and or_loss -log sigmoid(-ln 3) = ln 4; the log-ratio -2 + 1 = -1, and -log sigmoid(-ln 2) = ln 3.
    """

    scores = scores_of([(-3 * LN2, 3), (-2 * LN2, 1)], [(-4 * LN2, 2), (-LN2, 1)], [(-6 * LN2, 2), (-LN2, 1)])
    weights = torch.tensor([3.0, 1.0])
    rel = 1e-6  # as above
    per_sequence = (3 * 1 + 2) / 4
    odds = (3 * math.log(4 / 3) + math.log(4)) / 4
    expected: ClassVar[dict[str, tuple[float, float]]] = {
        "orpo": (per_sequence, odds),
        "orpo_small": (per_sequence, odds),
        "trl": ((3 * 9 + 3) / (3 * 5 + 2), odds),  # prompt and chosen: sums 9 and 3 over 5 and 2 tokens
        "ms_swift": ((3 * 3 + 2) / (3 * 3 + 1), odds),  # chosen: sums 3 and 2 over 3 and 1 tokens
        "log_ratio": (per_sequence, (3 * math.log(3 / 2) + math.log(3)) / 4),
        "sft": (per_sequence, odds),
    }

    def loss(self, config: LossConfig, lambda_: float) -> LossOutput:
        lengths = [Lengths(prompt=3, chosen=3, rejected=2), Lengths(prompt=2, chosen=1, rejected=1)]
        tokens = 3 * objective.nll_tokens(lengths[0], config) + objective.nll_tokens(lengths[1], config)
        return objective.loss(self.scores, Denominators(4, tokens), config, lambda_, self.weights)

    @pytest.mark.parametrize("name", PRESETS)
    def test_both_terms_are_weighted_means(self, name: str) -> None:
        config, lambda_ = preset(name)
        nll, preference = self.expected[name]
        output = self.loss(config, lambda_)
        assert float(output.nll_loss) == pytest.approx(nll * LN2, rel=self.rel)
        assert float(output.loss) == pytest.approx(nll * LN2 + lambda_ * preference, rel=self.rel)
        assert float((self.weights * output.preference).sum() / 4) == pytest.approx(preference, rel=self.rel)

    def test_prompt_and_chosen_per_sequence(self) -> None:
        """9/5 and 3/2 a token."""
        config = replace(preset("orpo")[0], nll="prompt_and_chosen")
        expected = (3 * 9 / 5 + 3 / 2) / 4
        assert float(self.loss(config, 0.0).loss) == pytest.approx(expected * LN2, rel=self.rel)

    def test_a_weight_does_not_bend_a_pair_itself(self) -> None:
        """The terms of the pairs, their pull and push are those without weights."""
        plain = objective.loss(self.scores, Denominators(2, 4), *preset("orpo"))
        weighted = self.loss(*preset("orpo"))
        for name in ("preference", "pull", "push"):
            assert getattr(plain, name).tolist() == getattr(weighted, name).tolist()
        assert plain.weights.tolist() == [1, 1]
        assert weighted.weights.tolist() == [3, 1]


def near_zero_and_far() -> st.SearchStrategy[float]:
    """fp32 numbers in [-1e4, -1e-7], as many near 0 as far from it."""
    by_exponent = st.floats(-7, 4).map(lambda exponent: float(np.float32(-(10**exponent))))
    evenly = st.floats(-1e4, -1.0).map(lambda logp: float(np.float32(logp)))
    edges = st.sampled_from([-1e4, float(np.float32(-LN2)), float(np.float32(-1e-7))])
    return by_exponent | evenly | edges


def exact_odds_ratio_term(chosen: float, rejected: float) -> tuple[Any, Any, Any]:
    """Return or_loss and its gradients in 60 digits; the gradients by numerical differentiation of the value."""

    def log_odds(logp: Any) -> Any:
        return logp - mpmath.log(1 - mpmath.exp(logp))

    def term(chosen: Any, rejected: Any) -> Any:
        return mpmath.log1p(mpmath.exp(log_odds(rejected) - log_odds(chosen)))

    with mpmath.workdps(60):
        at = (mpmath.mpf(chosen), mpmath.mpf(rejected))
        step = min(-at[0], -at[1]) * mpmath.mpf("1e-15")
        return (
            term(*at),
            mpmath.diff(term, at, (1, 0), h=step, relative=False),
            mpmath.diff(term, at, (0, 1), h=step, relative=False),
        )


class TestNumerics:
    @settings(max_examples=400, deadline=None)
    @given(near_zero_and_far(), near_zero_and_far())
    def test_value_and_gradient_equal_mpmath(self, chosen: float, rejected: float) -> None:
        """The value to 1e-5, the gradient to 1e-4, in fp32.

        A large log-odds ratio z has an absolute error of some 6e-8 * z, and where the term is near exp(-z) that is its
        relative error: 5e-6 at z = 87, where the term leaves the normal numbers of fp32. The gradient is
        sigmoid(-z) / (1 - p), so what sigmoid(-z) loses below them grows by 1 / (1 - p).
        """
        value, pull, push = odds_ratio_term(chosen, rejected)
        exact, exact_pull, exact_push = (float(number) for number in exact_odds_ratio_term(chosen, rejected))
        assert value == pytest.approx(exact, rel=1e-5, abs=SMALLEST_NORMAL)
        assert pull == pytest.approx(exact_pull, rel=1e-4, abs=SMALLEST_NORMAL / -math.expm1(chosen))
        assert push == pytest.approx(exact_push, rel=1e-4, abs=SMALLEST_NORMAL / -math.expm1(rejected))

    def test_certain_responses(self) -> None:
        """Both certain: the ratio is 0, the term ln 2, and each log-odds has gradient 1 beyond the clamp, times 1/2."""
        value, pull, push = odds_ratio_term(0.0, 0.0)
        assert value == pytest.approx(LN2, rel=1e-7)
        assert (pull, push) == (-0.5, 0.5)

    @pytest.mark.parametrize(
        ("chosen", "rejected", "value"),
        [
            # log_odds(0) is that of the clamp, -log(1e-7) = 7 ln 10; log_odds(-1) = -log(e - 1)
            (-1.0, 0.0, 7 * math.log(10) + math.log(math.e - 1)),
            (0.0, -1.0, 1e-7 / (math.e - 1)),  # log1p(exp(-z)) = exp(-z) for so large a z
            (-1e-9, -1e-9, LN2),
            (1e-7, 1e-7, LN2),  # a log-probability may be rounded to above 0
            (-1e-45, -1e-45, LN2),
            (-1e30, -1e30, LN2),
            (-1e30, -1.0, 1e30),
            (-1.0, -1e30, 0.0),
            (-1e30, 0.0, 1e30),
            (0.0, -1e30, 0.0),
        ],
    )
    def test_extremes_are_finite(self, chosen: float, rejected: float, value: float) -> None:
        """5e-6: z = 16.66 carries an fp32 rounding of 2e-6, which is the relative error of exp(-z)."""
        found, pull, push = odds_ratio_term(chosen, rejected)
        assert found == pytest.approx(value, rel=5e-6)
        assert math.isfinite(pull)
        assert math.isfinite(push)
        assert pull <= 0 <= push

    def test_gradient_far_out(self) -> None:
        """At (-1e30, -1): sigmoid(-z) = 1, so the pull is 1/(1 - 0) and the push 1/(1 - 1/e)."""
        _, pull, push = odds_ratio_term(-1e30, -1.0)
        assert pull == pytest.approx(-1, rel=1e-6)
        assert push == pytest.approx(1 / (1 - 1 / math.e), rel=1e-6)

    @given(near_zero_and_far() | st.floats(-1e30, 0), near_zero_and_far() | st.floats(-1e30, 0))
    def test_gradients_never_change_sign(self, chosen: float, rejected: float) -> None:
        _, pull, push = odds_ratio_term(chosen, rejected)
        assert pull <= 0 <= push

    @given(near_zero_and_far(), near_zero_and_far(), near_zero_and_far())
    def test_value_is_monotone(self, one: float, other: float, fixed: float) -> None:
        """A likelier chosen response never costs more, a likelier rejected one never less.

        2e-5 is twice the error of a value.
        """
        low, high = sorted((one, other))
        slack = 1 + 2e-5
        assert odds_ratio_term(high, fixed)[0] <= odds_ratio_term(low, fixed)[0] * slack + SMALLEST_NORMAL
        assert odds_ratio_term(fixed, low)[0] <= odds_ratio_term(fixed, high)[0] * slack + SMALLEST_NORMAL

    @given(near_zero_and_far(), near_zero_and_far())
    def test_log_odds_ratio_is_antisymmetric(self, one: float, other: float) -> None:
        """This is exact, since a - b = -(b - a) in floating point; and -log sigmoid(z) = -log sigmoid(-z) - z."""
        forth = float(objective.log_odds_ratio(scores_of([(one, 1)], [(other, 1)])))
        back = float(objective.log_odds_ratio(scores_of([(other, 1)], [(one, 1)])))
        assert forth == -back
        difference = odds_ratio_term(one, other)[0] - odds_ratio_term(other, one)[0]
        assert difference == pytest.approx(-forth, rel=1e-6, abs=1e-6)  # both terms are about ln 2 where z is about 0

    @given(near_zero_and_far())
    def test_equal_responses_cost_ln2(self, logp: float) -> None:
        value, pull, push = odds_ratio_term(logp, logp)
        assert value == pytest.approx(LN2, rel=1e-7)
        assert pull == -push

    @pytest.mark.parametrize("smoothing", [0.0, 0.2])
    @pytest.mark.parametrize("name", PRESETS)
    def test_gradcheck(self, name: str, smoothing: float) -> None:
        """Autograd of the loss equals finite differences, float64, through the sums over tokens."""
        config, lambda_ = preset(name)
        config = replace(config, label_smoothing=smoothing)
        roles = torch.tensor([PROMPT, CHOSEN, CHOSEN, REJECTED, CHOSEN, REJECTED, REJECTED, PROMPT, PROMPT])
        pairs = torch.tensor([0, 0, 0, 0, 1, 1, 1, 1, 1])
        scored = ScoredTokens(roles, roles, roles, pairs)

        def loss(token_logps: Tensor) -> Tensor:
            return objective.loss(
                objective.pair_scores(token_logps, scored, 2), Denominators(2, 3), config, lambda_
            ).loss

        generator = torch.Generator().manual_seed(0)
        logps = -3 * torch.rand(9, dtype=torch.float64, generator=generator) - 0.01
        torch.autograd.gradcheck(loss, logps.requires_grad_())


POINTS = [-30.0, -3.0, -LN2, -0.5, -1e-3, -1e-6, -1e-7, -1e-9, 0.0]


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("name", PRESETS)
def test_pull_and_push_are_the_gradients_of_the_preference_term(name: str, smoothing: float) -> None:
    """lambda * |d preference / d logp_mean|, for means from certain to hopeless, and responses of 3 and 2 tokens.

    rel 1e-5: autograd adds p/(1-p) to 1 where the closed form has 1/(1-p), each with a few fp32 roundings, and
    sigmoid(-z) of a large z has the absolute error of z. abs 1e-6: sigmoid(-z) - e is a difference of numbers below 1.
    """
    config = replace(preset(name)[0], label_smoothing=smoothing)
    chosen, rejected = torch.tensor(list(itertools.product(POINTS, POINTS))).T
    means = [chosen.clone().requires_grad_(), rejected.clone().requires_grad_()]
    tokens = [torch.full_like(chosen, 3, dtype=torch.int64), torch.full_like(chosen, 2, dtype=torch.int64)]
    scores = PairScores(
        torch.zeros_like(chosen), means[0] * tokens[0], means[1] * tokens[1], torch.zeros_like(tokens[0]), *tokens
    )
    output = objective.loss(scores, Denominators(len(chosen), 1), config, lambda_=0.3)
    gradients = torch.autograd.grad(output.preference.sum(), means)
    for reported, gradient in zip((output.pull, output.push), gradients, strict=True):
        largest = gradient.abs().clamp(min=1)
        torch.testing.assert_close(reported / largest, 0.3 * gradient.abs() / largest, rtol=1e-5, atol=1e-6)


@dataclass(frozen=True)
class Logits:
    """Token ids of pairs, and the logits of each row of the padded batch: (2B, T, V) float64."""

    pairs: list[TokenizedPair]
    values: Tensor


def random_logits(seed: int, pair_count: int = 4, vocabulary: int = 11) -> Logits:
    """Pairs of unequal lengths, so that every way of averaging gives another number."""
    random = np.random.default_rng(seed)

    def ids(most: int) -> list[int]:
        return random.integers(0, vocabulary, random.integers(1, most + 1)).tolist()

    pairs = [TokenizedPair(ids(5), ids(7), ids(7)) for _ in range(pair_count)]
    width = max(len(pair.prompt_ids) + max(len(pair.chosen_ids), len(pair.rejected_ids)) for pair in pairs)
    return Logits(pairs, torch.tensor(2 * random.standard_normal((2 * pair_count, width, vocabulary))))


def token_logps_of(logits: Tensor, scored: ScoredTokens) -> Tensor:
    rows = torch.log_softmax(logits.flatten(0, 1)[scored.places], dim=-1)
    return rows.gather(1, scored.ids.unsqueeze(1)).squeeze(1)


def loss_of(
    logits: Logits, values: Tensor, config: LossConfig, lambda_: float, weights: Sequence[float] | None = None
) -> LossOutput:
    """Return our loss of all pairs as one batch."""
    batch = padded(logits.pairs, score_prompts=config.nll == "prompt_and_chosen")
    step = denominators(logits.pairs, config, weights or [1.0] * len(logits.pairs))
    scores = objective.pair_scores(token_logps_of(values, batch.scored), batch.scored, batch.pair_count)
    given = None if weights is None else torch.tensor(weights, dtype=torch.float64)
    return objective.loss(scores, step, config, lambda_, given)


def denominators(pairs: Sequence[TokenizedPair], config: LossConfig, weights: Sequence[float]) -> Denominators:
    lengths = [Lengths(len(pair.prompt_ids), len(pair.chosen_ids), len(pair.rejected_ids)) for pair in pairs]
    tokens = [objective.nll_tokens(pair, config) for pair in lengths]
    return Denominators(sum(weights), sum(weight * count for weight, count in zip(weights, tokens, strict=True)))


def logps_by_loops(row: Sequence[Sequence[float]], ids: Sequence[int], first: int) -> list[float]:
    """log softmax(row[t - 1])[ids[t]] for t from `first` on."""
    logps = []
    for t in range(first, len(ids)):
        total = 0.0
        for logit in row[t - 1]:
            total += math.exp(logit)
        logps.append(row[t - 1][ids[t]] - math.log(total))
    return logps


def mean(numbers: Sequence[float]) -> float:
    return sum(numbers) / len(numbers)


def minus_log_sigmoid(number: float) -> float:
    return math.log(1 + math.exp(-number))


def odds_term(chosen: list[float], rejected: list[float]) -> float:
    p_w, p_l = math.exp(mean(chosen)), math.exp(mean(rejected))
    return minus_log_sigmoid(math.log(p_w / (1 - p_w)) - math.log(p_l / (1 - p_l)))


def ratio_term(chosen: list[float], rejected: list[float]) -> float:
    return minus_log_sigmoid(sum(chosen) - sum(rejected))


def no_term(_chosen: list[float], _rejected: list[float]) -> float:
    return 0.0


def mean_of_means(rows: list[list[float]]) -> float:
    return mean([mean(row) for row in rows])


def mean_of_tokens(rows: list[list[float]]) -> float:
    return mean([logp for row in rows for logp in row])


REFERENCES: dict[str, tuple[bool, Callable[[list[list[float]]], float], Callable[..., float], float]] = {
    "orpo": (False, mean_of_means, odds_term, 0.1),
    "orpo_small": (False, mean_of_means, odds_term, 0.5),
    "trl": (True, mean_of_tokens, odds_term, 0.1),
    "ms_swift": (False, mean_of_tokens, odds_term, 0.1),
    "log_ratio": (False, mean_of_means, ratio_term, 0.1),
    "sft": (False, mean_of_means, no_term, 0.0),
}
"""The table of presets: the prompt in the nll or not, how the nll is averaged, the preference term, lambda."""


def test_every_preset_has_a_reference() -> None:
    assert sorted(REFERENCES) == PRESETS


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("name", PRESETS)
def test_preset_equals_plain_loops_over_logits(name: str, seed: int) -> None:
    """Both in float64: below a hundred terms, each rounded to 1e-16; 1e-12 leaves room for their conditioning."""
    with_prompt, average, term, lambda_ = REFERENCES[name]
    logits = random_logits(seed)
    nll_rows, terms = [], []
    for number, pair in enumerate(logits.pairs):
        chosen_row = logits.values[number].tolist()
        rejected_row = logits.values[len(logits.pairs) + number].tolist()
        start, chosen_ids = len(pair.prompt_ids), pair.prompt_ids + pair.chosen_ids
        chosen = logps_by_loops(chosen_row, chosen_ids, start)
        rejected = logps_by_loops(rejected_row, pair.prompt_ids + pair.rejected_ids, start)
        nll_rows.append(logps_by_loops(chosen_row, chosen_ids, 1) if with_prompt else chosen)
        terms.append(term(chosen, rejected))
    output = loss_of(logits, logits.values, *preset(name))
    assert float(output.nll_loss) == pytest.approx(-average(nll_rows), rel=1e-12)
    assert float(output.loss) == pytest.approx(-average(nll_rows) + lambda_ * mean(terms), rel=1e-12)
    if name != "sft":
        assert output.preference.tolist() == pytest.approx(terms, rel=1e-12)


@given(
    st.integers(0, 2**32 - 1),
    st.sampled_from(PRESETS),
    st.integers(1, 5),
    st.none() | st.lists(st.floats(1e-3, 1e3), min_size=6, max_size=6),
)
def test_shares_of_micro_batches_add_up_to_the_step(
    seed: int, name: str, cut: int, weights: list[float] | None
) -> None:
    """Float64, so 1e-12 as above."""
    config, lambda_ = preset(name)
    logits = random_logits(seed, pair_count=6)
    rows = logits.values
    step = denominators(logits.pairs, config, weights or [1.0] * 6)
    shares = []
    for part in (slice(0, cut), slice(cut, 6)):
        batch = padded(logits.pairs[part], score_prompts=config.nll == "prompt_and_chosen")
        values = torch.cat([rows[:6][part], rows[6:][part]])[:, : batch.input_ids.shape[1]]
        scores = objective.pair_scores(token_logps_of(values, batch.scored), batch.scored, batch.pair_count)
        given = None if weights is None else torch.tensor(weights[part], dtype=torch.float64)
        shares.append(float(objective.loss(scores, step, config, lambda_, given).loss))
    assert sum(shares) == pytest.approx(float(loss_of(logits, rows, config, lambda_, weights).loss), rel=1e-12)


@pytest.mark.parametrize("name", PRESETS)
@pytest.mark.parametrize("seed", range(3))
def test_a_pair_of_weight_two_is_the_pair_twice(name: str, seed: int) -> None:
    """Loss and gradient; float64, so 1e-12. The gradients of a pair's copies add up to that of the weighted one."""
    config, lambda_ = preset(name)
    logits = random_logits(seed)
    count = len(logits.pairs)
    weights = [1, 2, 3, 1]
    copies = [number for number, weight in enumerate(weights) for _ in range(weight)]
    rows = [*copies, *(count + number for number in copies)]
    weighted, repeated = (logits.values.clone().requires_grad_() for _ in range(2))
    one = loss_of(logits, weighted, config, lambda_, [float(weight) for weight in weights])
    many = loss_of(Logits([logits.pairs[number] for number in copies], repeated), repeated[rows], config, lambda_)
    assert one.loss.item() == pytest.approx(many.loss.item(), rel=1e-12)
    assert one.nll_loss.item() == pytest.approx(many.nll_loss.item(), rel=1e-12)
    one.loss.backward()  # type: ignore[no-untyped-call]
    many.loss.backward()  # type: ignore[no-untyped-call]
    torch.testing.assert_close(weighted.grad, repeated.grad, rtol=1e-12, atol=1e-14)


@given(st.integers(0, 2**32 - 1), st.sampled_from(PRESETS), st.floats(1e-3, 1e3))
def test_only_the_ratios_of_weights_matter(seed: int, name: str, factor: float) -> None:
    """Float64, so 1e-12; and no weights are weights of one."""
    logits = random_logits(seed)
    weights = np.random.default_rng(seed).uniform(0.1, 5, len(logits.pairs)).tolist()
    one, scaled = (
        float(loss_of(logits, logits.values, *preset(name), given).loss)
        for given in (weights, [factor * weight for weight in weights])
    )
    assert scaled == pytest.approx(one, rel=1e-12)
    plain, ones = (float(loss_of(logits, logits.values, *preset(name), given).loss) for given in (None, [1.0] * 4))
    assert plain == ones


def test_nll_tokens_of_many_pairs_at_once() -> None:
    """Arrays give the same as numbers one by one."""
    counts = np.random.default_rng(0).integers(1, 9, (20, 3))
    for config in (preset("orpo")[0], preset("trl")[0]):
        at_once: Any = objective.nll_tokens(Lengths(*counts.T), config)
        assert at_once.tolist() == [objective.nll_tokens(Lengths(*row), config) for row in counts.tolist()]


def trl_batch(pairs: Sequence[TokenizedPair]) -> dict[str, Tensor]:
    """Return what TRL's collator returns: each side padded to its own width, the prompt masked in the labels."""
    batch = {}
    for side in ("chosen", "rejected"):
        rows = [(pair.prompt_ids, getattr(pair, f"{side}_ids")) for pair in pairs]
        width = max(len(prompt) + len(response) for prompt, response in rows)
        fills = {"input_ids": 0, "attention_mask": 0, "labels": -100}
        columns: dict[str, list[list[int]]] = {name: [] for name in fills}
        for prompt, response in rows:
            columns["input_ids"].append(prompt + response)
            columns["attention_mask"].append([1] * len(prompt + response))
            columns["labels"].append([-100] * len(prompt) + response)
        for name, fill in fills.items():
            batch[f"{side}_{name}"] = torch.tensor([row + [fill] * (width - len(row)) for row in columns[name]])
    return batch


@pytest.fixture(scope="module")
def trl_trainer() -> Any:
    """Return TRL's trainer with the attributes that its loss reads, and no training loop around it."""
    os.environ["TRL_EXPERIMENTAL_SILENCE"] = "1"
    from trl.experimental.orpo import ORPOTrainer

    trainer = ORPOTrainer.__new__(ORPOTrainer)
    trainer.beta = preset("trl")[1]
    trainer.is_encoder_decoder = False
    trainer.aux_loss_enabled = False
    trainer.padding_value = 0
    trainer.accelerator = SimpleNamespace(device=torch.device("cpu"), gather_for_metrics=lambda values: values)
    return trainer


class TestTrl:
    """fp32 on both sides, the same formulas in another order: a few roundings of 6e-8, sums of some 30 terms."""

    rel = 2e-6

    @pytest.mark.parametrize("seed", range(5))
    def test_same_logits_give_the_same_loss_and_gradient(self, trl_trainer: Any, seed: int) -> None:
        logits = random_logits(seed)
        theirs, ours = (logits.values.float().requires_grad_() for _ in range(2))

        def model(_input_ids: Tensor, **_options: Any) -> SimpleNamespace:
            return SimpleNamespace(logits=theirs)

        their_loss, metrics = trl_trainer.get_batch_loss_metrics(model, trl_batch(logits.pairs))
        config, lambda_ = preset("trl")
        output = loss_of(logits, ours, config, lambda_)
        assert output.loss.item() == pytest.approx(their_loss.item(), rel=self.rel)
        assert output.nll_loss.item() == pytest.approx(metrics["nll_loss"], rel=self.rel)
        assert output.preference.mean().item() == pytest.approx(-metrics["log_odds_ratio"], rel=self.rel)
        their_loss.backward()
        output.loss.backward()  # type: ignore[no-untyped-call]
        assert theirs.grad is not None
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-5, atol=1e-7 * float(theirs.grad.abs().max()))

    @pytest.mark.parametrize("seed", range(5))
    def test_logps_and_odds_ratio(self, trl_trainer: Any, seed: int) -> None:
        logits = random_logits(seed)
        values = logits.values.float()
        batch = trl_trainer.concatenated_inputs(trl_batch(logits.pairs), device=torch.device("cpu"))
        means = trl_trainer.get_batch_logps(values, batch["concatenated_labels"], average_log_prob=True)
        scored = padded(logits.pairs, score_prompts=True)
        scores = objective.pair_scores(token_logps_of(values, scored.scored), scored.scored, scored.pair_count)
        assert torch.cat([scores.chosen_mean, scores.rejected_mean]).tolist() == pytest.approx(
            means.tolist(), rel=self.rel
        )
        losses, *_, log_odds_ratio = trl_trainer.odds_ratio_loss(*means.chunk(2))
        assert float(objective.log_odds_ratio(scores).mean()) == pytest.approx(
            float(log_odds_ratio), rel=self.rel, abs=self.rel
        )
        output = objective.loss(scores, Denominators(len(logits.pairs), 1), preset("trl")[0], trl_trainer.beta)
        assert (trl_trainer.beta * output.preference).tolist() == pytest.approx((-losses).tolist(), rel=self.rel)

    def test_same_model_gives_the_same_loss_and_gradient(self, trl_trainer: Any) -> None:
        """A two-layer Llama, theirs with attention mask and whole logits, ours with neither."""
        from transformers import LlamaConfig, LlamaForCausalLM

        torch.manual_seed(0)
        model = LlamaForCausalLM(
            LlamaConfig(
                vocab_size=11,
                hidden_size=16,
                intermediate_size=32,
                num_hidden_layers=2,
                num_attention_heads=2,
                num_key_value_heads=1,
            )
        )
        pairs = random_logits(1).pairs
        config, lambda_ = preset("trl")
        their_loss, _ = trl_trainer.get_batch_loss_metrics(model, trl_batch(pairs))
        theirs = torch.autograd.grad(their_loss, list(model.parameters()))
        batch = padded(pairs, score_prompts=True)
        scores = objective.pair_scores(Scorer(model)(batch), batch.scored, batch.pair_count)
        nll_tokens = sum(len(pair.prompt_ids) - 1 + len(pair.chosen_ids) for pair in pairs)
        loss = objective.loss(scores, Denominators(len(pairs), nll_tokens), config, lambda_).loss
        assert loss.item() == pytest.approx(their_loss.item(), rel=self.rel)
        for ours, expected in zip(torch.autograd.grad(loss, list(model.parameters())), theirs, strict=True):
            torch.testing.assert_close(ours, expected, rtol=0, atol=1e-5 * float(expected.abs().max()))
