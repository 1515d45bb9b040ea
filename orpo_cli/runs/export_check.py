"""Compare an exported model, loaded with plain transformers or peft, with the model of the run."""

import contextlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from orpo_cli.data.collation import padded
from orpo_cli.data.pairs import TokenizedPair
from orpo_cli.errors import ModelError
from orpo_cli.models.scorer import Scorer
from orpo_cli.models.weights import dtype_name

SUMMATION = 1e-3
"""Nats. What the log-probability of a token may differ by where equal weights are summed in another order, in fp32."""

DEVIATIONS = 5
"""How many times the expected size of the rounding error one token may be off: of a million, fewer than one is."""


@dataclass(frozen=True)
class Checked:
    """How an exported model compares with that of the run.

    Args:
        tokens: how many tokens were compared.
        difference: the largest difference of a token's log-probability, in nats.
        limit: the largest that rounding explains.
        dtype: the dtype of the exported weights.
    """

    tokens: int
    difference: float
    limit: float
    dtype: str


@torch.no_grad()
def logps_of_run(model: Any, pairs: Sequence[TokenizedPair]) -> list[Tensor]:
    """Return the log-probabilities of the tokens of each response, computed in fp32 as in training.

    Args:
        model: the model of the run, with its adapter beside the weights.
    """
    model.eval()
    scorer = Scorer(model)
    with _in_fp32(model), scorer.at_work("padded"):
        scorer.check_head(padded(pairs[:1], False))
        # one pair at a time, so that nothing is padded but the shorter response
        scored = [(scorer(batch), batch.scored.roles) for batch in (padded([pair], False) for pair in pairs)]
    return [logps[roles == role] for logps, roles in scored for role in (1, 2)]


@torch.no_grad()
def compared(
    model: Any, pairs: Sequence[TokenizedPair], written: Sequence[Tensor], of_run: Sequence[Tensor], dtype: torch.dtype
) -> Checked:
    """Compare what a loaded model gives to the responses with what was written, and with the model of the run.

    What was written has the same weights, so that only sums in another order differ. From the model of the run it
    differs by merging and by rounding to `dtype`, which changes weights independently of each other, each by at most
    the unit roundoff and by 1 / sqrt(3) of that in the root mean square. Where each of n matrices changes the whole
    hidden state by that share, a logit is off by roundoff * sqrt(n / 3) * the spread of the logits, and a difference of
    two logits by sqrt(2) of it. That is an upper estimate, since most matrices change a part of the hidden state;
    `DEVIATIONS` such sizes are allowed.

    Args:
        model: as transformers or peft has loaded it, in fp32.
        written, of_run: what `logps_of_run` gives for the model that was saved, and for that of the run.
        dtype: the dtype in which the weights were saved.
    Raises:
        ModelError: if they differ by more.
    """
    model.eval()
    now, spreads = list[Tensor](), list[float]()
    for pair in pairs:
        for response in (pair.chosen_ids, pair.rejected_ids):
            ids = torch.tensor([[*pair.prompt_ids, *response]])
            first = len(pair.prompt_ids)
            logits = model(input_ids=ids, use_cache=False).logits[0, first - 1 : -1].float()
            now.append(torch.log_softmax(logits, -1).gather(1, ids[0, first:, None])[:, 0])
            spreads.append(float(logits.std(-1).mean()))
    matrices = sum(weight.dim() > 1 for weight in model.parameters())
    rounding = torch.finfo(dtype).eps / 2 * math.sqrt(2 * matrices / 3) * max(spreads)
    limit = SUMMATION + DEVIATIONS * rounding
    _refuse(_largest_difference(now, written), SUMMATION, "than what was written: the files are not the model")
    difference = _largest_difference(now, of_run)
    _refuse(difference, limit, f"than the model of the run, from which it differs by rounding to {dtype_name(dtype)}")
    return Checked(sum(map(len, now)), difference, limit, dtype_name(dtype))


def _largest_difference(ours: Sequence[Tensor], theirs: Sequence[Tensor]) -> float:
    return float((torch.cat(list(ours)) - torch.cat(list(theirs))).abs().max())


def _refuse(difference: float, limit: float, what: str) -> None:
    if not difference <= limit:
        raise ModelError(
            f"the exported model, loaded again, gives other log-probabilities {what}: a token differs by "
            f"{difference:.3g} nats, expected at most {limit:.3g}; nothing was exported"
        )


def load_exported(directory: Path, base: Any) -> Any:
    """Load what was exported with plain transformers, in fp32.

    Args:
        base: the base model of an adapter, loaded, or its directory; None for a whole model.
    """
    from transformers import AutoModelForCausalLM

    options = {"dtype": torch.float32, "use_safetensors": True, "trust_remote_code": False}
    if base is None:
        return AutoModelForCausalLM.from_pretrained(directory, **options)
    from peft import PeftModel

    loaded: Any = AutoModelForCausalLM.from_pretrained(base, **options) if isinstance(base, Path) else base.float()
    return PeftModel.from_pretrained(loaded, directory)


@contextlib.contextmanager
def _in_fp32(model: Any) -> Iterator[None]:
    """Give a model fp32 copies of its weights while the block runs."""
    stored = [(weight, weight.data) for weight in model.parameters()]
    try:
        for weight, data in stored:
            weight.data = data.float()
        yield
    finally:
        for weight, data in stored:
            weight.data = data
