"""What a run starts from: a model, the adapters that are merged into it first, and the adapter that is trained."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from orpo_cli.config.adapter import LoraConfig, NoAdapterConfig, SavedAdapterConfig, bits_of
from orpo_cli.config.defaults import place_of_model
from orpo_cli.config.limits import require_installed
from orpo_cli.config.schema import ModelConfig, RunConfig
from orpo_cli.data.progress import OnProgress
from orpo_cli.errors import ConfigError
from orpo_cli.models.adapter_files import adapter_settings
from orpo_cli.models.adapters import Settings
from orpo_cli.models.files import ModelFiles, find_model, loaded_weights
from orpo_cli.models.new_adapters import language_layers
from orpo_cli.models.weights import dtype_name, main_dtype, stored_weights
from orpo_cli.runs.folder import model_place, run_of_model


@dataclass(frozen=True)
class Start:
    """What a run starts from.

    Args:
        lora: the settings of the adapter that is trained; None where the whole model is.
        merged: the adapters that are merged into the model before the first step.
    """

    files: ModelFiles
    lora: Settings | None
    merged: tuple[Path, ...]

    @property
    def reference(self) -> str:
        """Return the name of the base model in the adapter that is saved."""
        return str(self.merged[-1]) if self.merged else self.files.reference

    @property
    def is_found_by_transformers(self) -> bool:
        """Return whether transformers finds the base of the adapter that is saved, not only `orpo`."""
        return not (self.merged or self.files.reference.startswith("builtin:"))


def find_model_files(model: ModelConfig, on_progress: OnProgress, weights: bool = True) -> ModelFiles:
    """Return the files of a model as `find_model` does; for the folder of a run, those of the model that it trained."""
    base = None if model.base is None else model_place(model.base)
    found = find_model(replace(model, path=model_place(model.path), base=base), on_progress, weights)
    return replace(found, name=model.path)


def as_it_is(config: RunConfig, on_progress: OnProgress) -> RunConfig:
    """Return the configuration that loads a model with the adapter it has, to be used and not trained, here alone."""
    has_adapter = find_model_files(config.model, on_progress).adapters
    adapter = SavedAdapterConfig("saved", 0.0, None, False) if has_adapter else NoAdapterConfig("none", 0.0)
    return replace(config, adapter=adapter, trainer=replace(config.trainer, processes=1))


def model_against(model: ModelConfig, against: str, on_progress: OnProgress) -> ModelConfig | None:
    """Return the model to compare another with; None where nothing says what that one began with.

    Args:
        against: a built-in option, a directory, run or hub id; `auto` is what the run, or the adapter, began with.
    """
    if against != "auto":
        return replace(model, path=place_of_model(against) or against, revision=None, base=None)
    run = run_of_model(model.path)
    if run is not None:
        return run.config.model
    files = find_model_files(model, on_progress)
    if not files.adapters:
        return None
    base = str(files.adapters[-2]) if len(files.adapters) > 1 else files.reference
    return replace(model, path=base, revision=files.revision, base=None)


def find_start(config: RunConfig, on_progress: OnProgress, weights: bool) -> Start:
    """Find what a run starts from.

    Args:
        weights: whether weights are needed; if not, a directory with tokenizer and config.json will do.
    Raises:
        ConfigError: if the model is an adapter and nothing says what becomes of it, or the other way round; or if
            weights cannot be quantized.
    """
    if bits := bits_of(config.adapter):
        require_installed(f"adapter.bits={bits}", "bitsandbytes", "bitsandbytes")
    path, files = config.model.path, find_model_files(config.model, on_progress, weights)
    match config.adapter:
        case NoAdapterConfig() if files.adapters:
            raise ConfigError(
                f"adapter=none: model.path={path} is an adapter; adapter=saved trains it further, "
                "adapter=lora puts a new one on top of the merged weights"
            )
        case SavedAdapterConfig() if not files.adapters:
            raise ConfigError(f"adapter=saved: model.path={path} is no adapter; adapter=lora makes a new one")
        case SavedAdapterConfig(bits=bits):
            if bits == 8 and adapter_settings(files.adapters[-1]).get("use_dora"):
                raise ConfigError(f"adapter.bits=8: {path} is DoRA, which needs a base in 4 bits, or as it is")
            return Start(files, files.adapters[-1], files.adapters[:-1])
        case LoraConfig() as new:
            if new.bits and files.adapters:
                raise ConfigError(
                    f"adapter.bits={new.bits}: a new adapter on the merged weights of {path} needs them quantized; "
                    "adapter=saved trains that adapter further, orpo export RUN to=DIR merge=true writes a model"
                )
            return Start(files, new, files.adapters)
    return Start(files, None, ())


def notes_on(start: Start, model: Any, config: RunConfig) -> list[str]:
    """Return what the user should know of the part of a model that is trained, and of how it is saved.

    Args:
        model: the model as it is loaded, without adapters.
    """
    if start.lora is None:
        return _notes_on_dtype(start.files, model, config.model.save_dtype)
    notes = []
    if isinstance(start.lora, LoraConfig) and language_layers(model) is not None:
        notes.append("the model has other parts than language: the adapter is put into the language part only")
    if (bits := bits_of(config.adapter)) and any(weight.dim() > 2 for weight in model.parameters()):
        notes.append(
            f"adapter.bits={bits}: the experts of this model are no linear layers, and stay in "
            f"{dtype_name(model.get_input_embeddings().weight.dtype)}"
        )
    if start.merged and not config.merges:
        notes.append(
            f"model/ will be an adapter on the merged weights of {start.merged[-1]}, which orpo puts together and peft "
            "alone does not; adapter.merge=true saves the whole model"
        )
    return notes


def _notes_on_dtype(files: ModelFiles, model: Any, save_dtype: str | None) -> list[str]:
    stored, trained = main_dtype(stored_weights(loaded_weights(files.directory))), next(model.parameters()).dtype
    if stored.itemsize >= trained.itemsize or save_dtype is not None:
        return []
    return [
        f"the model is stored in {dtype_name(stored)} and trained in {dtype_name(trained)}, in which model/ will be "
        "saved, at twice the size; model.save_dtype=bf16 rounds it then"
    ]
