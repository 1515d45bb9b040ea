"""Estimate what a run keeps in memory, and how many tokens of a micro-batch fit.

The estimates follow from the shapes of the weights and from what a layer keeps for its backward pass. If one is too
low, the loop makes its micro-batches smaller (`orpo_cli.training.loop`).
"""

from dataclasses import dataclass
from typing import Any

from orpo_cli.checkpoints.optimizer_state import STATE_BYTES
from orpo_cli.config.schema import NoAdapterConfig, RunConfig
from orpo_cli.machine.hardware import Hardware
from orpo_cli.models.head import CHUNK_LOGITS, KEPT_LOGITS

_PROCESS_BYTES = 500_000_000
"""Memory of a process that has loaded torch and transformers, and no model."""

_SHARE_USED = 0.7
"""The share of free memory that may be used; the rest is for what the estimate does not know."""

LEAST_TOKENS = 512
MOST_TOKENS = {"cpu": 2048, "cuda": 32768, "mps": 8192}
"""The size from which larger micro-batches make a step no faster: measured on a CPU, guessed for the others."""


@dataclass(frozen=True)
class Footprint:
    """The memory of a run, in bytes.

    Args:
        process: the libraries.
        weights: the model as it is loaded.
        kept: what training adds: copies to multiply with, gradients, optimizer state, the head's chunks.
        per_place: what one place of a micro-batch keeps for the backward pass.
    """

    process: int
    weights: int
    kept: int
    per_place: int

    def total(self, places: int) -> int:
        """Return the peak with micro-batches of `places` places."""
        return self.process + self.weights + self.kept + places * self.per_place


def footprint(config: RunConfig, model: Any, hardware: Hardware) -> Footprint:
    """Estimate the memory of a run with `model`, which may be without its weights."""
    everything, trained = count_parameters(model)
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


def count_parameters(model: Any) -> tuple[int, int]:
    """Return the number of all weights and of those that are trained."""
    counts = [(parameter.numel(), parameter.requires_grad) for parameter in model.parameters()]
    return sum(count for count, _ in counts), sum(count for count, trains in counts if trains)


def fitting_tokens(needed: Footprint, free: int, hardware: Hardware) -> int:
    """Return the tokens of a micro-batch that fit into `free` bytes beside what training adds.

    There are no more than make a step faster, and no fewer than LEAST_TOKENS.
    """
    share = free // hardware.processes if hardware.device.type == "cpu" else free
    tokens = int((share * _SHARE_USED - needed.kept) / needed.per_place)
    return max(LEAST_TOKENS, min(tokens, MOST_TOKENS[hardware.device.type]))
