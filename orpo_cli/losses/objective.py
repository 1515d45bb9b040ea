"""The ORPO objective as pure functions of token log-probabilities.

For a pair (x, y_w, y_l), with logp_mean(y) the mean log-probability of a response's tokens (Hong, Lee, Thorne 2024,
arXiv 2403.07691, eqs. 4 to 7):

    log_odds(y)    = logp_mean(y) - log(1 - exp(logp_mean(y)))
    log_odds_ratio = log_odds(y_w) - log_odds(y_l)
    or_loss        = -log sigmoid(log_odds_ratio)
    loss           = nll + lambda * or_loss

A loss is a ratio of sums over pairs, each counted by its weight. The denominators belong to the whole step and are
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
    """Sums of log-probabilities and counts of tokens for each pair; all (B,), sums fp32."""

    prompt_sum: Tensor
    chosen_sum: Tensor
    rejected_sum: Tensor
    prompt_tokens: Tensor
    chosen_tokens: Tensor
    rejected_tokens: Tensor

    @property
    def chosen_mean(self) -> Tensor:
        """Mean log-probability of the chosen response's tokens, (B,)."""
        return self.chosen_sum / self.chosen_tokens

    @property
    def rejected_mean(self) -> Tensor:
        """Mean log-probability of the rejected response's tokens, (B,)."""
        return self.rejected_sum / self.rejected_tokens


@dataclass(frozen=True)
class Denominators:
    """What the sums of a whole step are divided by.

    Args:
        pairs: number of pairs, each counted by its weight.
        nll_tokens: number of tokens the nll is taken over, each counted by its pair's weight.
    """

    pairs: float
    nll_tokens: float


@dataclass(frozen=True)
class LossOutput:
    """The share of one micro-batch in the step's loss.

    Args:
        loss: scalar; the shares of all micro-batches of a step add up to its loss.
        nll_loss: scalar, the nll's part of it.
        preference: (B,), the preference term of each pair, without lambda.
        pull, push: (B,), lambda * |d preference / d logp_mean| for chosen and rejected: the weight of the preference
            term on that response, where the nll weighs 1 on the chosen one. Detached.
        weights: (B,) of the pairs.
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
        token_logps: (S,) fp32.
    """
    cells = 3 * pair_count
    cell = scored.roles * pair_count + scored.pairs
    sums = token_logps.new_zeros(cells).index_add(0, cell, token_logps).view(3, pair_count)
    counts = torch.bincount(cell, minlength=cells).view(3, pair_count)
    return PairScores(
        sums[PROMPT], sums[CHOSEN], sums[REJECTED], counts[PROMPT], counts[CHOSEN], counts[REJECTED]
    )  # fmt: skip


def log1mexp(logp: Tensor) -> Tensor:
    """log(1 - exp(logp)) for logp <= 0, finite with finite gradients everywhere.

    Switches at -ln 2 (Maechler 2012), each branch clamped into its own domain, since `torch.where` would pass the NaN
    gradient of the branch not taken.
    """
    near_zero = torch.log(-torch.expm1(logp.clamp(LOG_HALF, CLOSEST_TO_ZERO)))
    far = torch.log1p(-torch.exp(logp.clamp(max=LOG_HALF)))
    return torch.where(logp > LOG_HALF, near_zero, far)


def log_odds(logp: Tensor) -> Tensor:
    """log(p / (1 - p)) from log p, eq. 4."""
    return logp - log1mexp(logp)


def log_odds_ratio(scores: PairScores) -> Tensor:
    """Log-odds of chosen over rejected by mean log-probability, eq. 5; (B,)."""
    return log_odds(scores.chosen_mean) - log_odds(scores.rejected_mean)


def nll_tokens(lengths: Lengths, config: LossConfig) -> int:
    """Tokens of one pair that the nll is taken over; the first token of a prompt is predicted by nothing.

    Lengths may be arrays, for the tokens of each of many pairs.
    """
    return lengths.chosen + (lengths.prompt - 1 if config.nll == "prompt_and_chosen" else 0)


def loss(
    scores: PairScores, step: Denominators, config: LossConfig, lambda_: float, weights: Tensor | None = None
) -> LossOutput:
    """One micro-batch's share of nll + lambda * preference term.

    Args:
        step: denominators of the whole step.
        lambda_: weight of the preference term.
        weights: (B,) fp32, how much each pair counts in both terms; None counts each once.
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
    """(B,) preference term, and the sizes of its slopes in the mean log-probabilities.

    With z the log-odds ratio or log-ratio and e the label smoothing, the term is
    -(1-e) log sigmoid(z) - e log sigmoid(-z); its slope in z is e - sigmoid(-z).
    """
    normalized = config.length_normalized
    chosen = scores.chosen_mean if normalized else scores.chosen_sum
    rejected = scores.rejected_mean if normalized else scores.rejected_sum
    odds = config.preference != "log_ratio"
    ratio = log_odds(chosen) - log_odds(rejected) if odds else chosen - rejected
    smoothing = config.label_smoothing
    term = -(1 - smoothing) * F.logsigmoid(ratio) - smoothing * F.logsigmoid(-ratio)
    slope = (torch.sigmoid(-ratio) - smoothing).abs().detach()
    return (
        term,
        slope * _score_slope(chosen, scores.chosen_tokens, odds, normalized),
        slope * _score_slope(rejected, scores.rejected_tokens, odds, normalized),
    )


def _score_slope(score: Tensor, tokens: Tensor, odds: bool, normalized: bool) -> Tensor:
    """d score / d logp_mean: 1/(1-p) for log-odds, 1 where `log1mexp` is clamped; times the tokens for a sum."""
    in_sum = torch.ones_like(score) if normalized else tokens.to(score.dtype)
    if not odds:
        return in_sum
    logp = score.detach()
    return in_sum * torch.where(logp > CLOSEST_TO_ZERO, 1.0, 1 / -torch.expm1(logp.clamp(max=CLOSEST_TO_ZERO)))
