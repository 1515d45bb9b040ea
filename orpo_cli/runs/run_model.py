"""The model of a run: loaded with what is trained of it, given the weights of a checkpoint, and merged at the end."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from orpo_cli.config.adapter import FrozenConfig, bits_of
from orpo_cli.config.schema import RunConfig
from orpo_cli.errors import ModelError
from orpo_cli.machine.hardware import Hardware
from orpo_cli.models import adapters, loading
from orpo_cli.models.dropout import Dropout
from orpo_cli.models.files import fingerprint
from orpo_cli.models.freezing import freeze
from orpo_cli.models.quantized import loading_options
from orpo_cli.models.stored import load_stored, take_weights
from orpo_cli.runs.starting_model import Start, notes_on


@dataclass(frozen=True)
class RunModel:
    """Knows how the model of a run is made from the files it starts from.

    Args:
        lora: what the adapter that is trained is made from, its tokens as ids; None where the model is trained.
        own_dropout: the dropout that the model's own configuration asks for.
    """

    config: RunConfig
    start: Start
    lora: adapters.Settings | None
    own_dropout: Dropout
    hardware: Hardware

    def skeleton(self) -> Any:
        """Return the model as it will be trained, without weights."""
        model = loading.load_skeleton(self.start.files)
        with torch.device("meta"):  # else the adapter's first weights are drawn, which takes seconds
            return self._with_trained_part(model)

    def load(self, highest_token_id: int, checkpoint: Path | None, trains: bool) -> tuple[Any, list[str]]:
        """Load the model, with the weights of a checkpoint where one is given.

        Args:
            highest_token_id: the highest id in the pairs, which the model has to embed.
            trains: whether it is to be trained, and not only used.
        Returns:
            the model in main memory, or on the device if it is quantized; and what the user should know of it.
        """
        config, start, lora = self.config, self.start, self.lora
        model: Any
        model, notes = loading.load_model(
            start.files,
            self._dtype(frozen=lora is not None or not trains),
            config.model.attn_implementation,
            highest_token_id,
            None if lora is not None else checkpoint,
            config.model.dropout and trains,
            self._quantization(),
        )
        if trains:
            notes += [*notes_on(start, model, config), *self.notes_on_dropout()]
        if start.merged:
            take_weights(model, load_stored(start.files, start.merged))
        weights = checkpoint or (lora if isinstance(lora, Path) else None)
        model = self._with_trained_part(model, begins=weights is None)
        if lora is not None and weights is not None:
            adapters.load_weights(model, weights)
        return model, notes

    def on_device(self, model: Any) -> Any:
        """Return a model where the run computes; quantized weights have been loaded there."""
        return model if bits_of(self.config.adapter) else model.to(self.hardware.device)

    def notes_on_dropout(self) -> list[str]:
        """Return what to say of dropout that the model's own configuration asks for."""
        if not self.own_dropout:
            return []
        named = ", ".join(f"{key} {value:g}" for key, value in self.own_dropout.items())
        if self.config.model.dropout:
            return [f"dropout of the model's own configuration is on, and depends on how a step is cut: {named}"]
        return [f"dropout of the model's own configuration is off: {named}; model.dropout=true trains with it"]

    def take_checkpoint(self, model: Any, checkpoint: Path) -> None:
        """Give a loaded model the weights of a checkpoint."""
        if self.lora is not None:
            adapters.load_weights(model, checkpoint)
            return
        saved, _ = loading.load_model(self.start.files, self._dtype(frozen=False), None, 0, checkpoint)
        model.load_state_dict(saved.state_dict())

    def stored_base(self, then: str) -> Any:
        """Load the model that the run began with, adapters of earlier runs merged, as precise as it is stored.

        Args:
            then: the fingerprint of its files when the run began.
        Raises:
            ModelError: if it has changed since.
        """
        files = self.start.files
        try:
            is_same = fingerprint(files) == then
        except (OSError, ValueError, ModelError):
            is_same = False
        if not is_same:
            raise ModelError(
                f"model.path={files.name}: has changed while the adapter was trained, which is not merged into it; "
                "the checkpoints have the adapter by itself"
            )
        return load_stored(files, self.start.merged)

    def _with_trained_part(self, model: Any, begins: bool = False) -> Any:
        """Return a model with its adapter, if there is one, and with nothing trained that is to stay as it is."""
        config, start = self.config, self.start
        if self.lora is not None:
            return adapters.add_lora(model, self.lora, config.seed, start.reference, start.files.revision, begins)
        if isinstance(config.adapter, FrozenConfig):
            freeze(model, config.adapter)
        return model

    def _quantization(self) -> dict[str, Any] | None:
        bits = bits_of(self.config.adapter)
        return None if bits is None else loading_options(bits, self.hardware.dtype, self.hardware.device)

    def _dtype(self, frozen: bool) -> torch.dtype:
        if self.config.model.dtype != "auto":
            return loading.DTYPES[self.config.model.dtype]
        return loading.DTYPES[self.hardware.precision] if frozen else torch.float32
