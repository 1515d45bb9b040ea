"""Compute the ORPO objective from token log-probabilities, in pure functions.

For a pair (x, y_w, y_l), with logp_mean(y) the mean log-probability of a response's tokens (Hong, Lee, Thorne 2024,
arXiv 2403.07691, eqs. 4 to 7):

    log_odds(y)    = logp_mean(y) - log(1 - exp(logp_mean(y)))
    log_odds_ratio = log_odds(y_w) - log_odds(y_l)
    or_loss        = -log sigmoid(log_odds_ratio)
    loss           = nll + lambda * or_loss

A loss is a ratio of sums over pairs, each pair counted by its weight. The denominators belong to the whole step and are
known before the first forward pass, so a step may be cut into micro-batches and spread over processes in any way.
Shapes: B pairs, S scored tokens.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from orpo_cli.config.schema import LossConfig
from orpo_cli.data.collation import CHOSEN, PROMPT, REJECTED, ScoredTokens
from orpo_cli.data.pairs import Lengths

LOG_HALF = -math.log(2.0)
CLOSEST_TO_ZERO = -1e-7  # about one fp32 step below probability 1; closer, the gradient of log(1 - p) explodes


@dataclass(frozen=True)
class PairScores:
    """The sums of log-probabilities and the numbers of tokens of each pair; all (B,), sums fp32."""

    prompt_sum: Tensor
    chosen_sum: Tensor
    rejected_sum: Tensor
    prompt_tokens: Tensor
    chosen_tokens: Tensor
    rejected_tokens: Tensor

    @property
    def chosen_mean(self) -> Tensor:
        """Return the mean log-probability of the chosen response's tokens, (B,)."""
        return self.chosen_sum / self.chosen_tokens

    @property
    def rejected_mean(self) -> Tensor:
        """Return the mean log-probability of the rejected response's tokens, (B,)."""
        return self.rejected_sum / self.rejected_tokens


@dataclass(frozen=True)
class Denominators:
    """The denominators of a whole step.

    Args:
        pairs: the number of pairs, each counted by its weight.
        nll_tokens: the number of tokens that the nll is taken over, each counted by its pair's weight.
    """

    pairs: float
    nll_tokens: float


@dataclass(frozen=True)
class LossOutput:
    """The share of one micro-batch in the step's loss.

    Args:
        loss: the scalar share; the shares of all micro-batches of a step add up to its loss.
        nll_loss: the nll's part of it.
        preference: the preference term of each pair, (B,), without lambda.
        pull, push: lambda * |d preference / d logp_mean| for chosen and rejected, (B,), detached: the weight of the
            preference term on that response, where the nll has weight 1 on the chosen one.
        weights: the weights of the pairs, (B,).
    """

    loss: Tensor
    nll_loss: Tensor
    preference: Tensor
    pull: Tensor
    push: Tensor
    weights: Tensor


def pair_scores(token_logps: Tensor, scored: ScoredTokens, pair_count: int) -> PairScores:
    """Sum token log-probabilities by pair and role.

    Args:
        token_logps: the log-probabilities of the scored tokens, (S,) fp32.
    """
    cells = 3 * pair_count
    cell = scored.roles * pair_count + scored.pairs
    sums = token_logps.new_zeros(cells).index_add(0, cell, token_logps).view(3, pair_count)
    counts = cell.new_zeros(cells).index_add(0, cell, torch.ones_like(cell)).view(3, pair_count)
    return PairScores(
        sums[PROMPT], sums[CHOSEN], sums[REJECTED], counts[PROMPT], counts[CHOSEN], counts[REJECTED]
    )  # fmt: skip


def log1mexp(logp: Tensor) -> Tensor:
    """Return log(1 - exp(logp)) for logp <= 0, finite and with finite gradients everywhere.

    The formula changes at -ln 2 (Maechler 2012). The input of each branch is clamped into its own domain, since
    `torch.where` would pass on the NaN gradient of the branch that is not taken.
    """
    near_zero = torch.log(-torch.expm1(logp.clamp(LOG_HALF, CLOSEST_TO_ZERO)))
    far = torch.log1p(-torch.exp(logp.clamp(max=LOG_HALF)))
    return torch.where(logp > LOG_HALF, near_zero, far)


def log_odds(logp: Tensor) -> Tensor:
    """Return log(p / (1 - p)) from log p, eq. 4."""
    return logp - log1mexp(logp)


def log_odds_ratio(scores: PairScores) -> Tensor:
    """Return the log-odds of chosen over rejected by mean log-probability, eq. 5; (B,)."""
    return log_odds(scores.chosen_mean) - log_odds(scores.rejected_mean)


def nll_tokens(lengths: Lengths, config: LossConfig) -> int:
    """Return how many tokens of a pair the nll is taken over; the first token of a prompt is predicted by nothing.

    The lengths may be arrays, for many pairs at once.
    """
    return lengths.chosen + (lengths.prompt - 1 if config.nll == "prompt_and_chosen" else 0)


def loss(
    scores: PairScores, step: Denominators, config: LossConfig, lambda_: float, weights: Tensor | None = None
) -> LossOutput:
    """Return one micro-batch's share of nll + lambda * preference term.

    Args:
        step: the denominators of the whole step.
        lambda_: the weight of the preference term.
        weights: the weight of each pair in both terms, (B,) fp32; 1 by default.
    """
    weights = torch.ones_like(scores.chosen_sum) if weights is None else weights
    nll = _nll_share(scores, step, config, weights)
    preference, pull, push = _preference(scores, config)
    total = nll + lambda_ * (weights * preference).sum() / step.pairs
    return LossOutput(total, nll, preference, (lambda_ * pull).detach(), (lambda_ * push).detach(), weights)


def _nll_share(scores: PairScores, step: Denominators, config: LossConfig, weights: Tensor) -> Tensor:
    with_prompt = config.nll == "prompt_and_chosen"
    sums = -weights * (scores.chosen_sum + scores.prompt_sum if with_prompt else scores.chosen_sum)
    if config.nll_average == "token":
        return sums.sum() / step.nll_tokens
    tokens = scores.chosen_tokens + scores.prompt_tokens if with_prompt else scores.chosen_tokens
    return (sums / tokens).sum() / step.pairs


def _preference(scores: PairScores, config: LossConfig) -> tuple[Tensor, Tensor, Tensor]:
    """Return the preference term, (B,), and the absolute values of its gradients in the mean log-probabilities.

    With z the log-odds ratio or log-ratio and e the label smoothing, the term is
    -(1-e) log sigmoid(z) - e log sigmoid(-z); its derivative in z is e - sigmoid(-z).
    """
    normalized = config.length_normalized
    chosen = scores.chosen_mean if normalized else scores.chosen_sum
    rejected = scores.rejected_mean if normalized else scores.rejected_sum
    odds = config.preference != "log_ratio"
    ratio = log_odds(chosen) - log_odds(rejected) if odds else chosen - rejected
    smoothing = config.label_smoothing
    term = -(1 - smoothing) * F.logsigmoid(ratio) - smoothing * F.logsigmoid(-ratio)
    by_ratio = (torch.sigmoid(-ratio) - smoothing).abs().detach()
    return (
        term,
        by_ratio * _score_gradient(chosen, scores.chosen_tokens, odds, normalized),
        by_ratio * _score_gradient(rejected, scores.rejected_tokens, odds, normalized),
    )


def _score_gradient(score: Tensor, tokens: Tensor, odds: bool, normalized: bool) -> Tensor:
    """Return d score / d logp_mean: 1/(1-p) for log-odds, 1 where `log1mexp` is clamped; times the tokens for a sum."""
    in_sum = torch.ones_like(score) if normalized else tokens.to(score.dtype)
    if not odds:
        return in_sum
    logp = score.detach()
    return in_sum * torch.where(logp > CLOSEST_TO_ZERO, 1.0, 1 / -torch.expm1(logp.clamp(max=CLOSEST_TO_ZERO)))
