"""Compute the load-balancing loss of a mixture of experts from the logits of its routers, in pure functions.

A router sends each token to k of E experts. With f_e the mean, over routers and tokens, of whether expert e is among
them, and P_e the mean of the probability that it has (Fedus, Zoph, Shazeer 2022, arXiv 2101.03961, eqs. 4 to 6, over
all layers together, as transformers computes it):

    loss = E * sum over e of f_e * P_e

Tokens are those of the rows prompt + chosen and prompt + rejected, in either layout: a prompt counts twice, a pair by
its weight, padding not at all. The loss is a product of two means and no sum over micro-batches. But a choice has no
gradient, so once the choices of a whole step are counted, what is left is a sum, and a step may be cut in any way.
Shapes: B pairs, E experts, R rows of T places.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from orpo_cli.data.collation import PAD, PROMPT, Batch


@dataclass(frozen=True)
class Balancing:
    """The load-balancing loss of a model.

    Args:
        coefficient: its factor in the objective.
        experts: E.
        top_k: the number of experts that a token is sent to.
    """

    coefficient: float
    experts: int
    top_k: int


class Load(NamedTuple):
    """The load of the experts over some tokens: sums over tokens, means over routers; those of micro-batches add up.

    Args:
        choices: how many tokens each expert is chosen for, (E,) fp32, without gradient.
        probabilities: the sum of the probabilities of each expert, (E,) fp32.
    """

    choices: Tensor
    probabilities: Tensor


def token_weights(batch: Batch, weights: Tensor) -> Tensor:
    """Return how often the token at each place counts, (R*T,).

    Args:
        weights: the weights of the pairs, (B,) fp32.
    """
    if batch.shared is None:
        return (weights.repeat(2).unsqueeze(1) * (batch.segments != PAD)).flatten()
    return weights[batch.pair_of_place()] * (1 + (batch.segments[0] == PROMPT))


def load(router_logits: Sequence[Tensor], top_k: int, weights: Tensor) -> Load:
    """Return the load of the experts.

    Args:
        router_logits: the logits of each router, (R*T, E).
        weights: how often the token at each place counts, (R*T,).
    """
    choices, probabilities = weights.new_zeros(()), weights.new_zeros(())
    for logits in router_logits:
        shares = torch.softmax(logits.float(), -1)
        chosen = torch.zeros_like(shares).scatter_(-1, shares.topk(top_k).indices, 1.0)
        counted = weights.to(shares.dtype)
        choices = choices + counted @ chosen
        probabilities = probabilities + counted @ shares
    return Load(choices / len(router_logits), probabilities / len(router_logits))


def balance_loss(choices: Tensor, probabilities: Tensor, top_k: int) -> Tensor:
    """Return the load-balancing loss, or the share of it that some micro-batches have.

    Args:
        choices: the choices of all tokens of the step, (E,).
        probabilities: the sums of the whole step, or of the micro-batches, (E,).
    """
    tokens = choices.sum() / top_k
    return len(choices) * (choices * probabilities).sum() / tokens.square()
