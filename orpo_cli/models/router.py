"""Find the load-balancing loss that a mixture of experts is trained with."""

from typing import Any

from orpo_cli.config.schema import AUTO
from orpo_cli.errors import ConfigError
from orpo_cli.losses.balance import Balancing
from orpo_cli.models.adapters import base_of


def balancing_of(model: Any, wanted: float | str) -> Balancing | None:
    """Return the load-balancing loss of a model; None where it has none, or its coefficient is 0.

    Args:
        model: a model of transformers, with or without adapters or weights.
        wanted: `loss.router_aux_loss_coef`.
    Raises:
        ConfigError: if a coefficient is given and the model has no such loss.
    """
    own = _own_coefficient(model)
    coefficient = own if wanted == AUTO else wanted
    if not coefficient:
        return None
    if own is None:
        raise ConfigError(
            f"loss.router_aux_loss_coef={wanted}: {type(base_of(model)).__name__} has no load-balancing loss; "
            "remove it, or choose a mixture of experts that has one"
        )
    base = base_of(model)
    return Balancing(float(coefficient), base.num_experts, base.num_experts_per_tok)


def _own_coefficient(model: Any) -> float | None:
    """Return the coefficient in a model's configuration; None where it has no such loss, or no experts (Granite 4)."""
    base = base_of(model)
    return getattr(base, "router_aux_loss_coef", None) if (getattr(base, "num_experts", None) or 0) > 1 else None


def notes_on_balancing(model: Any, wanted: float | str) -> list[str]:
    """Return what to say of the load-balancing loss of a mixture of experts."""
    own, found = _own_coefficient(model), balancing_of(model, wanted)
    if own is None:
        return []
    if found is None:
        return [
            "this mixture of experts is trained without a load-balancing loss: "
            + ("the coefficient in its config.json is 0" if wanted == AUTO else "loss.router_aux_loss_coef=0")
        ]
    origin = "that of the model's config.json" if wanted == AUTO else f"loss.router_aux_loss_coef; config.json: {own:g}"
    without = "; loss.router_aux_loss_coef=0 trains without it" if wanted == AUTO else ""
    return [f"the loss includes {found.coefficient:g} ({origin}) x the load-balancing loss of the routers{without}"]
