"""Estimate what a run keeps in memory, and how many tokens of a micro-batch fit.

The estimates follow from the shapes of the weights and from what a layer keeps for its backward pass. If one is too
low, the loop makes its micro-batches smaller (`orpo_cli.training.loop`).
"""

from dataclasses import dataclass
from typing import Any

from orpo_cli.checkpoints.optimizer_state import state_bytes
from orpo_cli.config.adapter import NoAdapterConfig, bits_of
from orpo_cli.config.schema import RunConfig
from orpo_cli.machine.hardware import Hardware
from orpo_cli.models.adapters import base_of, layers_of
from orpo_cli.models.head import KEPT_LOGITS, logits_at_once
from orpo_cli.models.quantized import WEIGHT_BYTES, quantized_layers, weight_count
from orpo_cli.models.router import balancing_of
from orpo_cli.training.optimizers import left_to_adamw

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
        loading: what it has when the model is loaded; where processes divide it, the whole beside what is its own,
            since the main process loads it twice, to divide it and to save it.
        weights: the weights that it keeps.
        kept: what training adds: copies to multiply with, gradients, optimizer state, the head's chunks and gradient.
        per_place: what one place of a micro-batch keeps for the backward pass.
    """

    process: int
    loading: int
    weights: int
    kept: int
    per_place: int

    def total(self, places: int) -> int:
        """Return the peak with micro-batches of `places` places."""
        return self.process + max(self.loading, self.weights + self.kept + places * self.per_place)


def footprint(config: RunConfig, model: Any, hardware: Hardware) -> Footprint:
    """Estimate the memory of a run with `model`, which may be without its weights."""
    everything, trained = count_parameters(model)
    frozen = everything - trained
    shape = model.config.get_text_config()
    width, layers = int(shape.hidden_size), int(shape.num_hidden_layers)
    item = hardware.dtype.itemsize
    trained_item, frozen_item = _bytes_of_a_weight(config, item)
    layer = item * (18 * width + 7 * _wide(shape))  # inputs of matrices and adapters, norms in fp32, the gate
    kept = item * width if config.trainer.gradient_checkpointing else layer
    of_training = trained_item * trained + _state(config, model, trained, trained_item)  # gradients and state
    chunk = (4 + 2 * item) * logits_at_once(int(shape.vocab_size), hardware.device)  # fp32, and the products around
    head = chunk + item * KEPT_LOGITS
    weights = trained_item * trained + frozen_item * frozen
    per_place = layers * (kept + _balanced(config, model, item)) + layer
    if bits := bits_of(config.adapter):
        layers_in_bits = [weight_count(weight) for weight in quantized_layers(model)]
        weights -= int((frozen_item - WEIGHT_BYTES[bits]) * sum(layers_in_bits))
        head += item * max(layers_in_bits, default=0)  # one at a time is expanded to be multiplied
    if divides(config, hardware):
        own, moved = weights // hardware.processes, of_training // hardware.processes
        loading = own + moved + (weights if hardware.device.type == "cpu" else 0)  # the whole is in main memory
        return Footprint(_PROCESS_BYTES, loading, own, moved + _whole_at_once(model, item, hardware) + head, per_place)
    copies = item * ((trained_item > item) * trained + (frozen_item > item) * frozen)
    added_up = item * _largest_trained(model)
    return Footprint(_PROCESS_BYTES, weights, weights, copies + of_training + head + added_up, per_place)


def _state(config: RunConfig, model: Any, trained: int, item: int) -> int:
    """Return the bytes of optimizer state; Muon's is that of AdamW for the weights that it leaves to it."""
    name = config.optimizer.name
    left = left_to_adamw(model) if name == "muon" else 0
    return int(state_bytes(name, item) * (trained - left) + state_bytes("adamw", item) * left)


def divides(config: RunConfig, hardware: Hardware) -> bool:
    """Return whether the processes of a run divide the weights among them."""
    return config.trainer.parallel == "fsdp" and hardware.processes > 1


def _whole_at_once(model: Any, item: int, hardware: Hardware) -> int:
    """Return the bytes of what is whole in each process while it computes.

    That is embeddings and head: twice while they are gathered, then with two layers and the gradient of one, and with
    their own gradient at the end. A gradient that is not fp32 has a copy that is, to be added up, and gloo, which adds
    up on a CPU, makes another one. What is gathered comes on top of what a pass keeps, since freed memory of
    activations is in pieces too small for it.
    """
    layers = [count_parameters(layer) for layer in layers_of(base_of(model))]
    everything, trained = count_parameters(model)
    ends, ends_trained = everything - sum(count for count, _ in layers), trained - sum(count for _, count in layers)
    layer, layer_trained = max(layers)
    gradient = (item if item == 4 else item + 4) + 4 * (hardware.device.type == "cpu")
    return item * ends + max(item * ends, gradient * ends_trained, 2 * item * layer + gradient * layer_trained)


def _bytes_of_a_weight(config: RunConfig, item: int) -> tuple[int, int]:
    """Return the bytes of a trained weight and of a frozen one; the weights of an adapter are fp32."""
    given = {"fp32": 4, "bf16": 2}.get(config.model.dtype)
    return (given or 4, 4) if isinstance(config.adapter, NoAdapterConfig) else (4, given or item)


def _wide(shape: Any) -> int:
    """Return the width between the two matrices of an MLP; in a mixture of experts, of all that see a token."""
    wide = getattr(shape, "moe_intermediate_size", None) or getattr(shape, "intermediate_size", None)
    experts = getattr(shape, "num_experts_per_tok", None) or 1
    return int((wide or 4 * shape.hidden_size) * experts)


def _balanced(config: RunConfig, model: Any, item: int) -> int:
    """Return the bytes that a place keeps for the load-balancing loss, in a layer: logits and fp32 probabilities."""
    balancing = balancing_of(model, config.loss.router_aux_loss_coef)
    return 0 if balancing is None else (item + 4) * balancing.experts


def _largest_trained(model: Any) -> int:
    """Return the size of the trained matrix whose gradient takes most before it is added to the sum: often the head."""
    return max((parameter.numel() for parameter in model.parameters() if parameter.requires_grad), default=0)


def count_parameters(model: Any) -> tuple[int, int]:
    """Return the number of all weights and of those that are trained."""
    counts = [(weight_count(parameter), parameter.requires_grad) for parameter in model.parameters()]
    return sum(count for count, _ in counts), sum(count for count, trains in counts if trains)


def fitting_tokens(needed: Footprint, free: int, hardware: Hardware) -> int:
    """Return the tokens of a micro-batch that fit into `free` bytes beside what training adds.

    There are no more than make a step faster, and no fewer than LEAST_TOKENS.
    """
    return max(LEAST_TOKENS, min(room(needed, free, hardware), MOST_TOKENS[hardware.device.type]))


def room(needed: Footprint, free: int, hardware: Hardware) -> int:
    """Return the tokens for which `free` bytes have room beside what training adds; below 0 where not even for that."""
    return int((share_of(free, hardware) * _SHARE_USED - needed.kept) / needed.per_place)


def loaded(needed: Footprint, hardware: Hardware) -> int:
    """Return the bytes that loading will take of what is free; main memory holds the weights of all processes."""
    return needed.weights * (hardware.processes if hardware.device.type == "cpu" else 1)


def share_of(free: int, hardware: Hardware) -> int:
    """Return what each process has of the free bytes; the processes of a machine share its main memory."""
    return free // hardware.processes if hardware.device.type == "cpu" else free
