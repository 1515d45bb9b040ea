"""No micro-batch waits for its device, which would stand still until the next one is launched.

There is no GPU here: what is looked for are operations whose result the process has to read before it can go on.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from architectures import build, lora
from test_split_invariance import PAIRS, store_of
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from orpo_cli.config.schema import RunConfig
from orpo_cli.data.pairs import Lengths
from orpo_cli.losses import balance
from orpo_cli.machine.hardware import Hardware
from orpo_cli.machine.transfer import sent
from orpo_cli.models import head
from orpo_cli.models.adapters import add_lora
from orpo_cli.models.flex_attention import row_mask
from orpo_cli.models.scorer import Scorer
from orpo_cli.training.inputs import Budget, Scoring
from orpo_cli.training.metrics import StepSums
from orpo_cli.training.micro_batches import batches, denominators_of, micro_batch_loss

CPU = torch.device("cpu")

WAITING = (
    "_local_scalar_dense", "bincount", "is_nonzero", "masked_select", "nonzero", "repeat_interleave.Tensor",
    "unique", "_unique2", "unique_consecutive", "unique_dim",
)  # fmt: skip
"""Operations whose size or value comes from the device; `repeat_interleave` by a tensor, if no size is given."""


class Waits(TorchDispatchMode):
    """Notes operations for whose result a process waits; indexing by truth values is one, too."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name, given = str(func).removeprefix("aten."), kwargs or {}
        indices = args[1] if name.startswith("index") and len(args) > 1 and isinstance(args[1], Sequence) else ()
        by_truth = any(isinstance(index, Tensor) and index.dtype == torch.bool for index in indices)
        if by_truth or (name.startswith(WAITING) and given.get("output_size") is None):
            self.found.append(name)
        return func(*args, **given)


@pytest.fixture(scope="module")
def config(compose_config: Callable[..., RunConfig]) -> RunConfig:
    return compose_config("loss=trl", "trainer.precision=bf16", "trainer.device=cpu", "trainer.max_tokens=10000")


@pytest.mark.parametrize("adapter", ["lora", "none"])
@pytest.mark.parametrize(
    "name", ["llama", *(pytest.param(name, marks=pytest.mark.slow) for name in ("mistral, window", "gemma2", "qwen3"))]
)
def test_a_micro_batch(
    config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, adapter: str
) -> None:
    """Forward pass, loss, backward pass and sums; with a trained head also where it keeps no probabilities."""
    monkeypatch.setattr(head, "KEPT_LOGITS", 1)
    store, model = store_of(PAIRS, [1.0] * len(PAIRS), tmp_path), build(name)
    scorer = Scorer(add_lora(model, lora(), 0, "base") if adapter == "lora" else model, torch.bfloat16)
    scoring = Scoring(config, scorer, Hardware(CPU, "bf16", 0, 1), "packed", Budget(10_000, 10_000))
    pairs = range(len(PAIRS))
    denominators = denominators_of(store, pairs, config)
    with scorer.at_work("packed"), Waits() as waits:
        for part in batches(scoring, store, pairs, 10_000):
            done = micro_batch_loss(scoring, store, part, denominators)
            done.output.loss.backward()  # type: ignore[no-untyped-call]
            StepSums.of(done.scores, done.output)
    assert waits.found == []


def test_a_mask() -> None:
    with Waits() as waits:
        row_mask([Lengths(100, 70, 90)] * 3, 50, CPU)
    assert waits.found == []


def test_the_load_of_experts(config: RunConfig, tmp_path: Path) -> None:
    store = store_of(PAIRS, [1.0] * len(PAIRS), tmp_path)
    scoring = Scoring(config, Scorer(build("llama")), Hardware(CPU, "fp32", 0, 1), "packed", Budget(10_000, 10_000))
    (part,) = batches(scoring, store, range(len(PAIRS)), 10_000)
    logits = torch.randn(part.batch.input_ids.numel(), 4, requires_grad=True)
    with Waits() as waits:
        weights = balance.token_weights(part.batch, torch.ones(len(PAIRS)))
        balance.load([logits], 2, weights).probabilities.sum().backward()
    assert waits.found == []


def test_the_watch_sees_what_waits() -> None:
    """This proves that its silence means something."""
    numbers = torch.tensor([1, 0, 2])
    with Waits() as waits:
        numbers[numbers > 0]
        numbers.bincount()
        numbers.repeat_interleave(numbers)
        numbers.repeat_interleave(numbers, output_size=3)
        numbers.sum().item()
    assert waits.found == [
        "index.Tensor",
        "bincount.default",
        "repeat_interleave.Tensor",
        "_local_scalar_dense.default",
    ]


def test_what_is_sent_to_a_gpu() -> None:
    """From pinned memory, without waiting; a stand-in for the tensor, since a CPU has nothing to pin."""

    class Sent:
        def __init__(self) -> None:
            self.calls: list[Any] = []

        def pin_memory(self) -> "Sent":
            self.calls.append("pinned")
            return self

        def to(self, device: torch.device, non_blocking: bool) -> "Sent":
            self.calls.append((device, non_blocking))
            return self

    gpu, tensor = torch.device("cuda:1"), Sent()
    assert sent(tensor, gpu) is tensor  # type: ignore[arg-type]
    assert tensor.calls == ["pinned", (gpu, True)]
    plain = torch.ones(2)
    assert sent(plain, CPU) is plain
