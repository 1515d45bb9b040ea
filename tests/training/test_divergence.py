"""A number that is not finite stops the run before the optimizer moves, and names where it came from."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from test_split_invariance import store_of
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from orpo_cli.config.schema import RunConfig
from orpo_cli.data.collation import Batch
from orpo_cli.data.pairs import TokenizedPair
from orpo_cli.errors import DivergedError
from orpo_cli.machine.hardware import Hardware
from orpo_cli.models.scorer import Scorer
from orpo_cli.training import loop
from orpo_cli.training.inputs import Budget, Scoring, Training
from orpo_cli.training.optimizers import build_optimizers

POISON = 30


@pytest.fixture
def training(tmp_path: Path, compose_config: Callable[..., RunConfig]) -> Training:
    """Six pairs on lines 11 to 16, two a step; only the pair on line 13 holds the token POISON."""
    pairs = [TokenizedPair([1, 2], [3, POISON if line == 13 else 4], [5, 6, 7]) for line in range(11, 17)]
    store = store_of(pairs, [1.0] * 6, tmp_path, first=11)
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(vocab_size=32, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1)
    )
    config = compose_config("trainer.pairs_per_step=2", "trainer.max_tokens=1", "optimizer.lr=0.01", "adapter=none")
    optimizers = build_optimizers(model, config.optimizer)
    scoring = Scoring(config, Scorer(model), Hardware(torch.device("cpu"), "fp32", 0, 1), "packed", Budget(1, 1))
    return Training(scoring, optimizers, store, store, total_steps=3)


def weights(training: Training) -> list[Tensor]:
    return [parameter.detach().clone() for parameter in training.parameters()]


def steps_until_divergence(training: Training) -> tuple[list[Tensor], int, str]:
    """Weights before the diverging step, steps done before it, and its message."""
    steps: Iterator[object] = loop.steps(training)
    done = 0
    while True:
        before = weights(training)
        try:
            next(steps)
        except DivergedError as error:
            return before, done, str(error)
        done += 1


def test_nan_in_a_score_names_the_row(training: Training, monkeypatch: pytest.MonkeyPatch) -> None:
    """The scorer gives NaN for the poisoned token, wherever in the epoch its pair comes."""
    forward = Scorer.forward
    monkeypatch.setattr(
        Scorer,
        "forward",
        lambda self, batch: torch.where(batch.scored.ids == POISON, torch.nan, forward(self, batch)),
    )
    before, done, message = steps_until_divergence(training)
    assert message.startswith(f"step {done + 1} of 3 is not finite: loss nan")
    assert "log-probabilities are not finite for prefs.jsonl:13 in micro-batch " in message
    assert "token 2 of its chosen response (id 30)" in message
    assert all(torch.equal(now, then) for now, then in zip(weights(training), before, strict=True))
    assert all(bool(torch.isfinite(weight).all()) for weight in before)


def test_infinite_gradient_with_a_finite_loss(training: Training, monkeypatch: pytest.MonkeyPatch) -> None:
    """x + 0 * sqrt(x - x) has the value of x and an infinite times zero, NaN, gradient."""
    forward = Scorer.forward

    def with_bad_gradient(self: Scorer, batch: Batch) -> Tensor:
        logps = forward(self, batch)
        bad = 0 * torch.sqrt((logps - logps).abs())
        return logps + torch.where(batch.scored.ids == POISON, bad, 0.0)

    monkeypatch.setattr(Scorer, "forward", with_bad_gradient)
    before, done, message = steps_until_divergence(training)
    assert f"step {done + 1} of 3 is not finite: loss " in message
    assert "loss nan" not in message
    assert "gradient norm nan" in message
    assert "all pairs have finite scores; the step's pairs are" in message
    assert "prefs.jsonl:13" in message
    assert all(torch.equal(now, then) for now, then in zip(weights(training), before, strict=True))


def test_a_healthy_run_takes_all_its_steps(training: Training) -> None:
    before = weights(training)
    assert [event.step for event in loop.steps(training)] == [1, 2, 3]
    assert not any(torch.equal(now, then) for now, then in zip(weights(training), before, strict=True) if then.ndim > 1)
