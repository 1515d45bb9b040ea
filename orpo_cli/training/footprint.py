"""What a run keeps in memory, and how many tokens a micro-batch may have so that it fits.

Sizes are worked out from the shapes of the weights and from what a layer keeps for its backward pass; they are
estimates, and where one was too low the loop makes its micro-batches smaller (`orpo_cli.training.loop`).
"""

from dataclasses import dataclass
from typing import Any

from orpo_cli.checkpoints.optimizer_state import STATE_BYTES
from orpo_cli.config.schema import NoAdapterConfig, RunConfig
from orpo_cli.machine.hardware import Hardware
from orpo_cli.models.head import CHUNK_LOGITS, KEPT_LOGITS

_PROCESS_BYTES = 500_000_000
"""Of a process that has torch and transformers loaded, and no model."""

_SHARE_USED = 0.7
"""Of the memory that is free; the rest is for what the estimate does not know."""

LEAST_TOKENS = 512
MOST_TOKENS = {"cpu": 2048, "cuda": 32768, "mps": 8192}
"""Where a larger micro-batch no longer makes a step faster. On a CPU measured; on the others a guess."""


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
