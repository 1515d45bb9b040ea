"""Compute the metrics. Only `loss` is scaled by lambda; means count pairs by their weights.

| name | meaning |
|---|---|
| loss | the objective of the step, as its gradient is taken; with the load-balancing loss where there is one |
| nll_loss | the nll term of the loss, averaged as the preset says: loss = nll_loss + lambda * or_loss |
| router_aux_loss | of a mixture of experts: its load-balancing loss, without its coefficient, which the loss has too |
| nll | mean negative log-probability of a token of the chosen responses; the same in every preset |
| or_loss | the preset's preference term, mean over pairs; for `sft` the odds-ratio term, watched but not trained |
| log_odds_ratio | log-odds of chosen over rejected by mean log-probability, mean over pairs; the same in every preset |
| accuracy | share of pairs whose chosen response has the higher mean log-probability |
| margin | mean log-probability of chosen minus that of rejected, mean over pairs |
| logps/chosen, logps/rejected | mean log-probability of a response's tokens, mean over pairs |
| or_pull, or_push | weight of the preference term on chosen and rejected, where the nll weighs 1; mean over pairs |
| grad_norm | norm of the gradient before clipping |
| lr | learning rate of the step |
| tokens_per_second, pairs_per_second | speed of the step, without padding; evaluation and saving are not counted |
| peak_memory_gb | highest memory use of the main process so far, in 10^9 bytes: on its GPU, or else in main memory |
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from orpo_cli.losses.balance import Balancing, Load, balance_loss
from orpo_cli.losses.objective import LossOutput, PairScores, log_odds_ratio
from orpo_cli.training.events import BALANCE

_SUMS = (
    "loss", "nll_loss", "chosen_nll", "chosen_tokens", "or_loss", "log_odds_ratio", "accuracy", "margin",
    "logps/chosen", "logps/rejected", "or_pull", "or_push", "pairs",
)  # fmt: skip
_MEANS_OVER_PAIRS = _SUMS[4:-1]


@dataclass(frozen=True)
class StepSums:
    """Sums over pairs from which every metric follows; those of micro-batches and processes simply add up.

    Args:
        values: those of `_SUMS`, then the choices and the probabilities of each expert, where they are counted.
    """

    values: Tensor

    @classmethod
    def zero(cls, device: torch.device, balancing: Balancing | None = None) -> "StepSums":
        """Return the sums over no pairs."""
        count = len(_SUMS) + (0 if balancing is None else 2 * balancing.experts)
        return cls(torch.zeros(count, dtype=torch.float64, device="cpu" if device.type == "mps" else device))

    @classmethod
    def of(cls, scores: PairScores, output: LossOutput, load: Load | None = None) -> "StepSums":
        """Return the sums of one micro-batch; they stay on the device, so that nobody waits for them."""
        margin = scores.chosen_mean - scores.rejected_mean
        columns = (
            output.loss,
            output.nll_loss,
            -scores.chosen_sum,
            scores.chosen_tokens,
            output.preference,
            log_odds_ratio(scores),
            margin > 0,
            margin,
            scores.chosen_mean,
            scores.rejected_mean,
            output.pull,
            output.push,
            torch.ones_like(margin),
        )
        weighted = [column if column.ndim == 0 else output.weights * column for column in columns]
        sums = torch.stack([column.detach().float().sum() for column in weighted])
        sums = sums if load is None else torch.cat((sums, load.choices, load.probabilities.detach()))
        return cls(sums.cpu().double() if sums.device.type == "mps" else sums.double())

    def __add__(self, other: "StepSums") -> "StepSums":
        return StepSums(self.values + other.values)

    def metrics(self, balancing: Balancing | None = None) -> dict[str, float]:
        """Return all metrics but those of the optimizer and the clock."""
        sums = dict(zip(_SUMS, self.values[: len(_SUMS)].tolist(), strict=True))
        metrics = {
            "loss": sums["loss"],
            "nll_loss": sums["nll_loss"],
            "nll": sums["chosen_nll"] / sums["chosen_tokens"],
        }
        metrics |= {name: sums[name] / sums["pairs"] for name in _MEANS_OVER_PAIRS}
        if balancing is not None:
            choices, probabilities = self.values[len(_SUMS) :].chunk(2)
            metrics[BALANCE] = float(balance_loss(choices, probabilities, balancing.top_k))
            metrics["loss"] += balancing.coefficient * metrics[BALANCE]
        return metrics
