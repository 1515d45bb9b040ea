"""Save the trained model, or its adapter, as a directory that transformers and peft load."""

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from orpo_cli.errors import CheckpointError, DivergedError, ModelError, WriteError, is_failed_write, is_out_of_memory
from orpo_cli.files.writing import LEFTOVER
from orpo_cli.models.adapter_files import ADAPTER
from orpo_cli.models.adapter_inits import with_replaced_part
from orpo_cli.models.adapters import base_of, is_adapted
from orpo_cli.models.dropout import write_as_given
from orpo_cli.models.loading import end_tokens, mark_as_loaded
from orpo_cli.models.weights import dtype_name, first_not_finite
from orpo_cli.quoting import in_one_line

CARD = "README.md"
"""The file that the model hub shows as the card of a model."""


def save_model(
    directory: Path,
    model: Any,
    tokenizer: Any,
    weights: Mapping[str, torch.Tensor] | None = None,
    shard_size: str | None = None,
) -> None:
    """Save weights (or adapters), configuration and tokenizer.

    Args:
        weights: tensors to save instead of the model's own of the same names.
        shard_size: the most that one file of weights holds, as 5GB; None is what transformers chooses. Adapters are
            one file.
    Raises:
        CheckpointError: if not every trained tensor of the adapters was saved.
    """
    options: dict[str, Any] = {"state_dict": model.state_dict() | (weights or {})}
    if is_adapted(model):
        options["state_dict"] = with_replaced_part(model, options["state_dict"])
        # peft would ask the hub at every save whether the vocabulary has grown; it never does here
        options["save_embedding_layers"] = False
        for config in model.peft_config.values():
            if isinstance(config.target_modules, set):  # whose order differs from process to process
                config.target_modules = sorted(config.target_modules)
    elif shard_size is not None:
        options["max_shard_size"] = shard_size
    model.save_pretrained(directory, **options)
    tokenizer.save_pretrained(directory)
    if is_adapted(model):
        (directory / CARD).unlink(missing_ok=True)  # peft's card says nothing of the training
        _check_adapter(directory, sum(parameter.requires_grad for parameter in model.parameters()))
    elif given := getattr(model, "dropout_as_given", None):
        write_as_given(directory / "config.json", given)


def check_can_be_saved(model: Any, tokenizer: Any, folder: Path, whole: bool) -> None:
    """Save everything but the weights for a trial, since transformers loads configurations that it refuses to save.

    Args:
        folder: the run's folder; the directory of the trial is made inside and removed.
        whole: whether the whole model will be saved, not only an adapter.
    Raises:
        ModelError: if it cannot be saved.
        WriteError: if the disk is full or fails.
    """
    base = base_of(model)
    parts = (base.config, base.generation_config, tokenizer) if whole else (tokenizer,)
    with tempfile.TemporaryDirectory(dir=folder, prefix=LEFTOVER) as scratch:
        try:
            for part in parts:
                part.save_pretrained(scratch)
        except Exception as error:
            if is_out_of_memory(error):
                raise
            kind = WriteError if is_failed_write(error) else ModelError
            raise kind(f"{folder}: the model could not be saved: {in_one_line(error)}") from error


def stop_generation_at(model: Any, end_id: int) -> None:
    """Add the trained end token to the tokens at which `generate` stops."""
    config = getattr(model, "generation_config", None)
    if config is None:
        return
    wanted = list(dict.fromkeys([*(token for token in end_tokens(config) if token is not None), end_id]))
    config.eos_token_id = wanted[0] if len(wanted) == 1 else wanted
    mark_as_loaded(config)


def cast_weights(model: Any, dtype: torch.dtype, key: str = "model.save_dtype") -> None:
    """Give all weights of a model, or of its adapters, another dtype.

    Args:
        key: the key that asks for it.
    Raises:
        DivergedError: if one is too large for it.
    """
    for name, weight in model.named_parameters():
        if weight.requires_grad or not is_adapted(model):
            weight.data = _cast(name, weight.data, dtype, key)


def cast_saved(path: Path, dtype: torch.dtype) -> None:
    """Give the weights of a saved adapter another dtype, as `cast_weights` does before they are saved."""
    cast = {name: _cast(name, weight, dtype, "model.save_dtype") for name, weight in load_file(path).items()}
    save_file(cast, path, {"format": "pt"})


def _cast(name: str, weight: torch.Tensor, dtype: torch.dtype, key: str) -> torch.Tensor:
    cast = weight.to(dtype)
    if first_not_finite([(name, cast)]) is not None:
        raise DivergedError(
            f"{key}: {name} has numbers that are too large for {dtype_name(dtype)}; "
            f"the checkpoints have them as trained: give another {key}"
        )
    return cast


def weight_bytes(model: Any) -> int:
    """Return the size of the weights that `save_model` saves."""
    return sum(weight.nbytes for weight in model.parameters() if weight.requires_grad or not is_adapted(model))


def _check_adapter(directory: Path, trained: int) -> None:
    """Refuse a saved adapter that lacks trained tensors: peft saves only what its filters let through."""
    path = directory / ADAPTER
    with safe_open(path, framework="pt") as tensors:
        found = len(list(tensors.keys()))
    if found < trained:  # one of tied weights may be saved under both names
        raise CheckpointError(f"{path}: {found} tensors were saved, {trained} are trained")
