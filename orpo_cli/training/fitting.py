"""Choose what lets a run fit into memory and leaves its result as it is: `trainer.fit=auto`.

The chunk of the head is no choice: half of it, the least that is worth a product, would save 0.1 GB with a vocabulary
of 128k, which is 0.4 % of 24 GB.
"""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from orpo_cli.config.schema import RunConfig
from orpo_cli.machine.hardware import Hardware
from orpo_cli.models.adapters import base_of
from orpo_cli.training.footprint import divides, footprint, loaded, room, share_of


def fitted(config: RunConfig, model: Any, places: int, hardware: Hardware, free: int) -> tuple[RunConfig, str]:
    """Return the configuration that fits with the least work, and a line that says what was chosen and why.

    Args:
        model: the model as it will be trained; it may be without its weights.
        places: the tokens of the longest pair in the layout of the run.
        free: the free bytes of the device before the weights are loaded.
    """
    reason = ""
    for choice, chosen in _choices(config, model, hardware):
        needed = footprint(choice, model, hardware)
        taken = needed.total(places) - needed.process
        has_room = room(needed, free - loaded(needed, hardware), hardware) >= places
        sizes = f"{taken / 1e9:.1f} GB of {share_of(free, hardware) / 1e9:.1f} GB free"
        if has_room:
            return choice, f"trainer.fit=auto: {chosen}; the longest pair takes about {sizes}{reason}"
        reason = reason or f", and {sizes} without"
    less = "adapter=lora, a lower data.max_length, more devices or a smaller model take less"
    return choice, f"trainer.fit=auto: {chosen}, and even so the longest pair takes about {sizes}; {less}"


def _choices(config: RunConfig, model: Any, hardware: Hardware) -> Iterator[tuple[RunConfig, str]]:
    """Yield configurations, each with more work and less memory than the one before, and what they change in words."""
    dividing = hardware.processes > 1 and not divides(config, hardware) and config.needs_whole_weights is None
    recomputing = not config.trainer.gradient_checkpointing and base_of(model).supports_gradient_checkpointing
    for recomputes in (False, True) if recomputing else (False,):
        for divided in (False, True) if dividing else (False,):
            changed: dict[str, Any] = {"parallel": "fsdp"} if divided else {}
            changed |= {"gradient_checkpointing": True} if recomputes else {}
            named = [f"trainer.{key}={str(value).lower()}" for key, value in changed.items()]
            yield replace(config, trainer=replace(config.trainer, **changed)), " and ".join(named) or "nothing changes"
