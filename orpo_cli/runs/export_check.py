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
def check(model: Any, pairs: Sequence[TokenizedPair], expected: Sequence[Tensor], dtype: torch.dtype) -> Checked:
    """Compare what a loaded model gives to the responses with what the model of the run gave.

    The weights of the two differ by their rounding to `dtype` only. Rounding changes a weight by up to its unit
    roundoff, independently of the others; to first order each of the n matrices between a token and its logits adds
    that share of the hidden state, so that a logit is off by about roundoff * sqrt(n) * (spread of the logits), and
    the difference of two of them by sqrt(2) of it; `DEVIATIONS` such sizes are allowed.

    Args:
        model: as transformers or peft has loaded it, in fp32.
        expected: the result of `logps_of_run`.
        dtype: the dtype in which the weights were saved.
    Raises:
        ModelError: if they differ by more.
    """
    model.eval()
    worst, tokens, spreads = 0.0, 0, []
    responses = [(pair.prompt_ids, response) for pair in pairs for response in (pair.chosen_ids, pair.rejected_ids)]
    for (prompt, response), then in zip(responses, expected, strict=True):
        ids = torch.tensor([[*prompt, *response]])
        logits = model(input_ids=ids, use_cache=False).logits[0, len(prompt) - 1 : -1].float()
        now = torch.log_softmax(logits, -1).gather(1, ids[0, len(prompt) :, None])[:, 0]
        difference = float((now - then).abs().max())
        worst = difference if math.isnan(difference) else max(worst, difference)
        tokens += len(now)
        spreads.append(float(logits.std(-1).mean()))
    matrices = sum(weight.dim() > 1 for weight in model.parameters())
    rounding = torch.finfo(dtype).eps / 2 * math.sqrt(2 * matrices) * max(spreads)
    checked = Checked(tokens, worst, SUMMATION + DEVIATIONS * rounding, dtype_name(dtype))
    if not worst <= checked.limit:
        raise ModelError(
            f"the exported model, loaded again, gives other log-probabilities than that of the run: a token differs by "
            f"{worst:.3g} nats, and rounding to {checked.dtype} explains {checked.limit:.3g}; nothing was exported"
        )
    return checked


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
