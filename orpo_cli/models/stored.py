"""Load a model with its weights as precise as they are stored, the adapters of earlier runs merged into them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from orpo_cli.models.adapters import merge_saved
from orpo_cli.models.files import ModelFiles, loaded_weights
from orpo_cli.models.loading import load_model
from orpo_cli.models.weights import main_dtype, stored_weights, take_as_stored


def load_stored(files: ModelFiles, merged: Sequence[Path]) -> Any:
    """Load a model, each weight in the precision it is stored in.

    Args:
        merged: the adapters that are merged into it, in this order.
    """
    paths = loaded_weights(files.directory)
    model: Any
    model, _ = load_model(files, main_dtype(stored_weights(paths)), None, highest_token_id=0)
    take_as_stored(model, paths)
    for adapter in merged:
        model = merge_saved(model, adapter)
    return model


@torch.no_grad()
def take_weights(model: Any, other: Any) -> None:
    """Give a model the weights of another of its kind, each in the dtype that it has here."""
    weights = dict(other.named_parameters())
    for name, weight in model.named_parameters():
        weight.copy_(weights[name])
