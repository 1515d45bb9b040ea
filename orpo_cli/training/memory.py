"""What a run keeps in memory, and how many tokens a micro-batch may have so that it fits.

Sizes are worked out from the shapes of the weights and from what a layer keeps for its backward pass; they are
estimates, and where one was too low the loop makes its micro-batches smaller (`orpo_cli.training.loop`).
"""

import resource
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from orpo_cli.config.schema import NoAdapterConfig, RunConfig
from orpo_cli.models.head import CHUNK_LOGITS, KEPT_LOGITS
from orpo_cli.training.hardware import Hardware

STATE_BYTES = {"adamw": 8, "muon": 4, "sgd": 4, "adafactor": 0}
"""Bytes of optimizer state for each trained parameter; adafactor keeps rows and columns only."""

_PROCESS_BYTES = 500_000_000
"""Of a process that has torch and transformers loaded, and no model."""

_SHARE_USED = 0.7
"""Of the memory that is free; the rest is for what the estimate does not know."""

LEAST_TOKENS = 512
MOST_TOKENS = {"cpu": 2048, "cuda": 32768, "mps": 8192}
"""Where a larger micro-batch no longer makes a step faster. On a CPU measured; on the others a guess."""

_CGROUP = Path("/sys/fs/cgroup")
_STATUS = Path("/proc/self/status")


@dataclass(frozen=True)
class Footprint:
    """Bytes of a run.

    Args:
        process: of the libraries.
        weights: of the model as it is loaded.
        kept: of what training adds to it: copies to multiply with, gradients, optimizer state, the head's chunks.
        per_place: of what one place of a micro-batch keeps for the backward pass.
    """

    process: int
    weights: int
    kept: int
    per_place: int

    def total(self, places: int) -> int:
        """At its highest, with micro-batches of so many places."""
        return self.process + self.weights + self.kept + places * self.per_place


def footprint(config: RunConfig, model: Any, hardware: Hardware) -> Footprint:
    """Of a run with `model`, with or without weights."""
    counts = [(parameter.numel(), parameter.requires_grad) for parameter in model.parameters()]
    everything, trained = sum(count for count, _ in counts), sum(count for count, trains in counts if trains)
    shape = model.config.get_text_config()
    width, layers = int(shape.hidden_size), int(shape.num_hidden_layers)
    item = hardware.dtype.itemsize
    frozen_item = 4 if isinstance(config.adapter, NoAdapterConfig) or config.model.dtype == "fp32" else item
    wide = int(getattr(shape, "intermediate_size", None) or 4 * width)
    layer = item * (18 * width + 7 * wide)  # inputs of the matrices and of their adapters, norms in fp32, the gate
    kept = item * width if config.trainer.gradient_checkpointing else layer
    copies = item * trained if item == 2 else 0
    head = 3 * 4 * CHUNK_LOGITS + item * KEPT_LOGITS
    return Footprint(
        process=_PROCESS_BYTES,
        weights=4 * trained + frozen_item * (everything - trained),
        kept=copies + (4 + STATE_BYTES[config.optimizer.name]) * trained + head,
        per_place=layers * kept + layer,
    )


def fitting_tokens(needed: Footprint, free: int, hardware: Hardware) -> int:
    """Tokens of a micro-batch that fit into `free` bytes beside what training adds, no more than make a step faster."""
    share = free // hardware.processes if hardware.device.type == "cpu" else free
    tokens = int((share * _SHARE_USED - needed.kept) / needed.per_place)
    return max(LEAST_TOKENS, min(tokens, MOST_TOKENS[hardware.device.type]))


def free_memory(device: torch.device) -> int:
    """Bytes that this process may still take on the device, by what machine and container allow."""
    import psutil

    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return min(int(psutil.virtual_memory().available), _left_to_container(), _left_to_process())


def used_memory() -> int:
    """Bytes of main memory that this process has now."""
    import psutil

    return int(psutil.Process().memory_info().rss)


def peak_memory(device: torch.device) -> int:
    """Bytes of the device that this process had at its highest."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    if _STATUS.exists():  # on Linux `ru_maxrss` begins with what the process had that started this one
        line = next(line for line in _STATUS.read_text().splitlines() if line.startswith("VmHWM:"))
        return 1024 * int(line.split()[1])
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


def peak_in_words(device: torch.device) -> str:
    """For the message of a run whose memory ran out."""
    return f"at its highest this process had {peak_memory(device) / 1e9:.2f} GB"


def _left_to_process() -> int:
    """What its own limit (`ulimit -v`) leaves to a process."""
    import psutil

    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    return 2**62 if limit == resource.RLIM_INFINITY else int(limit - psutil.Process().memory_info().vms)


def _left_to_container() -> int:
    try:
        most, used = (int((_CGROUP / name).read_text()) for name in ("memory.max", "memory.current"))
        files = next(line for line in (_CGROUP / "memory.stat").read_text().splitlines() if line.startswith("file "))
        return most - used + int(files.split()[1])  # pages of files are given up when memory is short
    except (OSError, ValueError, StopIteration):
        return 2**62
