"""What a run will take: steps, tokens, memory and time, estimated before any weight is loaded.

Steps and tokens are exact, from the plan of the run itself. Memory and time are estimates: memory from the sizes of the
weights and what a layer keeps for its backward pass, time from the matrix products of a step at the rate that this
machine reaches on one such product.
"""

import itertools
import time
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from orpo_cli.config.schema import RunConfig
from orpo_cli.data import plan
from orpo_cli.data.collation import COSTS
from orpo_cli.data.tokens.store import PairStore
from orpo_cli.machine.hardware import Hardware
from orpo_cli.machine.memory import free_memory
from orpo_cli.training.footprint import fitting_tokens, footprint
from orpo_cli.training.training import total_steps

_STEPS_PLANNED = 100
_SHARE_OF_RATE = 0.4
"""Share of the rate of one large matrix product that whole steps reach; measured with the built-in model on a CPU."""


@dataclass(frozen=True)
class Estimate:
    """What one run takes.

    Args:
        steps: optimizer steps of the run.
        pairs, tokens: that an epoch sees, tokens without padding; a packed prompt counts once, a padded one twice.
        placed: share of tokens among the places of the planned micro-batches; the rest is padding.
        placed_in_file_order: the same if the pairs of a step were padded together as they come.
        parameters, trained: of the model.
        memory_bytes: at its highest, about.
        seconds: of all steps, about.
    """

    steps: int
    pairs: int
    tokens: int
    placed: float
    placed_in_file_order: float
    parameters: int
    trained: int
    memory_bytes: int
    seconds: float


def estimate(config: RunConfig, train: PairStore, skeleton: Any, hardware: Hardware) -> Estimate:
    """Estimate a run.

    Args:
        skeleton: the model as it will be trained, adapters included, on the meta device, where it takes no memory.
    """
    trainer = config.trainer
    epoch = plan.Epoch.of(train.sizes, config.data.mixture)
    steps = total_steps(config, train)
    planned = list(itertools.islice(plan.steps(epoch, trainer.pairs_per_step, steps, config.seed), _STEPS_PLANNED))
    cost = COSTS[trainer.layout]

    def places(pairs: Any) -> int:
        total: int = cost([train.lengths(pair) for pair in pairs])
        return total

    needed = footprint(config, skeleton, hardware)
    max_tokens = trainer.max_tokens
    if isinstance(max_tokens, str):
        max_tokens = fitting_tokens(needed, free_memory(hardware.device) - needed.weights, hardware)
    packed = trainer.layout == "packed"
    batches = [
        batch for step in planned for batch in plan.micro_batches(step.pairs, places, max_tokens, balanced=packed)
    ]
    prompts = 1 if packed else 2
    used = sum(
        prompts * lengths.prompt + lengths.chosen + lengths.rejected
        for step in planned
        for lengths in map(train.lengths, step.pairs)
    )
    placed = sum(map(places, batches))
    largest = max(map(places, batches))
    counts = [(parameter.numel(), parameter.requires_grad) for parameter in skeleton.parameters()]
    trained = sum(count for count, trains in counts if trains)
    everything = sum(count for count, _ in counts)
    scored = sum(lengths.chosen + lengths.rejected for step in planned for lengths in map(train.lengths, step.pairs))
    flops = _flops(skeleton, config, placed, scored, trained == everything)
    return Estimate(
        steps=steps,
        pairs=epoch.pairs,
        tokens=int(used / sum(len(step.pairs) for step in planned) * epoch.pairs),
        placed=used / placed,
        placed_in_file_order=used / sum(places(step.pairs) for step in planned),
        parameters=everything,
        trained=trained,
        memory_bytes=needed.total(largest),
        seconds=flops / len(planned) * steps / (_product_rate(hardware) * _SHARE_OF_RATE),
    )


def _flops(skeleton: Any, config: RunConfig, placed: int, scored: int, full: bool) -> float:
    """Of the matrix products, two for each weight and token: forward, backward by input, and by weight if trained."""
    head: int = skeleton.get_output_embeddings().weight.numel()
    body: int = sum(module.weight.numel() for module in skeleton.modules() if isinstance(module, nn.Linear)) - head
    passes = 3 if full else 2
    recomputed = int(config.trainer.gradient_checkpointing)
    return 2.0 * (body * placed * (passes + recomputed) + head * scored * (passes + 1))


def _product_rate(hardware: Hardware) -> float:
    """Floating point operations a second of one large matrix product, in the precision of the run."""
    dtype = torch.bfloat16 if hardware.precision == "bf16" else torch.float32
    left, right = (torch.randn(1024, 1024, device=hardware.device).to(dtype) for _ in range(2))
    best = float("inf")
    for _ in range(5):
        started = time.perf_counter()
        float((left @ right)[0, 0])
        best = min(best, time.perf_counter() - started)
    return 2.0 * 1024**3 / best
