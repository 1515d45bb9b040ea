"""Estimate the steps, tokens, memory and time of a run before any weight is loaded.

Steps and tokens follow exactly from the plan of the run. Memory is estimated from the sizes of the weights and of what
a layer keeps for its backward pass, time from the matrix products of a step and the rate of one on this machine.
"""

import itertools
import time
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from orpo_cli.config.schema import RunConfig
from orpo_cli.data import plan
from orpo_cli.data.tokens.store import PairStore
from orpo_cli.machine.hardware import Hardware
from orpo_cli.machine.memory import free_memory
from orpo_cli.training.footprint import count_parameters, fitting_tokens, footprint, loaded
from orpo_cli.training.inputs import total_steps
from orpo_cli.training.micro_batches import places_in

_STEPS_PLANNED = 100
_SHARE_OF_RATE = 0.4
"""The share of the rate of one large matrix product that whole steps reach, with the built-in model on a CPU."""


@dataclass(frozen=True)
class RunEstimate:
    """What one run takes.

    Args:
        steps: the number of optimizer steps of the run.
        pairs: the number of pairs in an epoch.
        tokens: the number of tokens in an epoch without padding; a packed prompt counts once, a padded one twice.
        placed: the share of tokens among the places of the planned micro-batches; the rest is padding.
        placed_in_file_order: the same if the pairs of a step were padded together as they come.
        parameters, trained: the numbers of the model's weights, and of those that are trained.
        processes: the number of processes that share a step.
        memory_bytes: the estimated peak of memory of each process.
        seconds: the estimated time of all steps.
    """

    steps: int
    pairs: int
    tokens: int
    placed: float
    placed_in_file_order: float
    parameters: int
    trained: int
    processes: int
    memory_bytes: int
    seconds: float


def estimate(config: RunConfig, train: PairStore, skeleton: Any, hardware: Hardware) -> RunEstimate:
    """Estimate a run.

    Args:
        skeleton: the model as it will be trained, with adapters, on the meta device, where it takes no memory.
    """
    trainer = config.trainer
    epoch = plan.Epoch.of(train.sizes, config.data.mixture)
    steps = total_steps(config, train)
    planned = list(itertools.islice(plan.steps(epoch, trainer.pairs_per_step, steps, config.seed), _STEPS_PLANNED))
    places = places_in(train, trainer.layout)
    needed = footprint(config, skeleton, hardware)
    max_tokens = trainer.max_tokens
    if isinstance(max_tokens, str):
        max_tokens = fitting_tokens(needed, free_memory(hardware.device) - loaded(needed, hardware), hardware)
    packed = trainer.layout == "packed"
    processes = hardware.processes
    batches = [
        batch
        for step in planned
        for rank in range(processes)
        for batch in plan.micro_batches(step.pairs, places, max_tokens, rank, processes, balanced=packed)
    ]
    prompts = 1 if packed else 2
    lengths = [train.lengths(pair) for step in planned for pair in step.pairs]
    scored = sum(pair.chosen + pair.rejected for pair in lengths)
    used = scored + prompts * sum(pair.prompt for pair in lengths)
    placed = sum(map(places, batches))
    everything, trained = count_parameters(skeleton)
    flops = _flops(skeleton, config, placed, scored, trained == everything)
    return RunEstimate(
        steps=steps,
        pairs=epoch.pairs,
        tokens=int(used / len(lengths) * epoch.pairs),
        placed=used / placed,
        placed_in_file_order=used / sum(places(step.pairs) for step in planned),
        parameters=everything,
        trained=trained,
        processes=processes,
        memory_bytes=needed.total(max(map(places, batches))),
        seconds=flops / len(planned) * steps / (_rate(hardware) * _SHARE_OF_RATE),
    )


def _flops(skeleton: Any, config: RunConfig, placed: int, scored: int, full: bool) -> float:
    """Return the operations of the matrix products: two for each weight, token and pass.

    The passes are forward, backward by input, backward by weight if it is trained, and forward again if recomputed.
    """
    head: int = skeleton.get_output_embeddings().weight.numel()
    body: int = sum(module.weight.numel() for module in skeleton.modules() if isinstance(module, nn.Linear)) - head
    passes = 3 if full else 2
    recomputed = int(config.trainer.gradient_checkpointing)
    return 2.0 * (body * placed * (passes + recomputed) + head * scored * (passes + 1))


def _rate(hardware: Hardware) -> float:
    """Return the operations a second of large matrix products, in the precision of the run and on all its devices."""
    left, right = (torch.randn(1024, 1024, device=hardware.device).to(hardware.dtype) for _ in range(2))
    best = float("inf")
    for _ in range(5):
        started = time.perf_counter()
        float((left @ right)[0, 0])
        best = min(best, time.perf_counter() - started)
    devices = 1 if hardware.device.type == "cpu" else hardware.processes
    return devices * 2.0 * 1024**3 / best
