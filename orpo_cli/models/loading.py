"""Load and check a model and its tokenizer, so that a run fails before its first step, not in it."""

import contextlib
import itertools
import warnings
from collections.abc import Container, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

from orpo_cli.errors import InputNotFoundError, ModelError, OrpoError, is_out_of_memory
from orpo_cli.models.files import WEIGHTS, ModelFiles, loaded_weights
from orpo_cli.models.weights import (
    check_stored_as_trained,
    dtype_problem,
    first_not_finite,
    is_buffer,
    kind_in_words,
    stored,
)
from orpo_cli.quoting import first_few, in_one_line

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
TEMPLATES = Path(__file__).resolve().parent / "templates"


def be_quiet() -> None:
    """The display is ours: no bars and no advice of transformers between its lines."""
    from transformers.utils import logging

    logging.disable_progress_bar()
    logging.set_verbosity_error()
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers|peft|torch")


def load_tokenizer(files: ModelFiles, chat_template: str | None) -> Any:
    """The tokenizer of a model.

    Args:
        chat_template: Jinja file, or builtin:NAME, that replaces its chat template.
    Raises:
        ModelError: there is none that can be loaded without running its code.
        InputNotFoundError: no such chat template.
    """
    from transformers import AutoTokenizer

    _config(files)  # the tokenizer reads it too, and would be said to be at problem
    with _refused_as(f"model.path={files.name}: its tokenizer cannot be loaded"):
        tokenizer = AutoTokenizer.from_pretrained(files.directory, trust_remote_code=False)
    if chat_template is not None:
        tokenizer.chat_template = _template(chat_template)
    return tokenizer


@contextlib.contextmanager
def _refused_as(what: str) -> Iterator[None]:
    """A block in which transformers reads what may be damaged, and may raise anything of it.

    Raises:
        ModelError: it did.
    """
    try:
        yield
    except OrpoError:
        raise
    except Exception as error:
        if is_out_of_memory(error):
            raise
        if "trust_remote_code" in str(error):
            raise ModelError(f"{what}: it needs code of its own, which orpo does not run") from error
        raise ModelError(f"{what}: {in_one_line(error)}") from error


def _config(files: ModelFiles) -> Any:
    """Raises:
    ModelError: config.json is damaged, or its architecture is unknown or needs code of its own.
    """
    from transformers import AutoConfig

    with _refused_as(f"model.path={files.name}: config.json"):
        config = AutoConfig.from_pretrained(files.directory, trust_remote_code=False)
        layers = getattr(config.get_text_config(), "num_hidden_layers", None)
        if layers is not None and layers < 1:
            raise ValueError(f"num_hidden_layers is {layers}")
        return config


def _template(name: str) -> str:
    if name.startswith("builtin:"):
        path = TEMPLATES / f"{name.removeprefix('builtin:')}.jinja"
    else:
        path = Path(name).expanduser()
    if not path.is_file():
        raise InputNotFoundError(f"model.chat_template={name}: no such file")
    return path.read_text(encoding="utf-8")


def max_positions(files: ModelFiles) -> int | None:
    """How many positions the model has learned or was built for; None where it does not say.

    Raises:
        ModelError: config.json is damaged, or its architecture is unknown or needs code of its own.
    """
    with _refused_as(f"model.path={files.name}: config.json"):
        config = _config(files).get_text_config()
        limit = getattr(config, "max_position_embeddings", None) or getattr(config, "max_seq_len", None)
        if limit and int(limit) < 1:
            raise ValueError(f"has {limit} positions")
        return int(limit) if limit else None


def load_skeleton(files: ModelFiles) -> nn.Module:
    """The model without its weights, on the meta device, where it takes no memory.

    Raises:
        ModelError: config.json is damaged, or not of a causal language model.
    """
    from transformers import AutoModelForCausalLM

    config = _config(files)
    with _refused_as(f"model.path={files.name}: config.json"), torch.device("meta"):
        skeleton: nn.Module = AutoModelForCausalLM.from_config(config, dtype=torch.float32, trust_remote_code=False)
    return skeleton


def usable_length(files: ModelFiles, wanted: int) -> int:
    """`data.max_length`, or less where the model has fewer positions."""
    return min(wanted, max_positions(files) or wanted)


def load_model(
    files: ModelFiles,
    dtype: torch.dtype,
    attn_implementation: str | None,
    highest_token_id: int,
    checkpoint: Path | None = None,
) -> tuple[nn.Module, list[str]]:
    """The causal language model, with every weight present and finite, and an embedding for every token of the data.

    Args:
        highest_token_id: in the data; a tokenizer may know more tokens than the model (as Gemma 3's), if none is used.
        checkpoint: where the weights are taken from instead; of what it says about itself nothing is believed.
    Returns:
        the model, and what the user should know of it.
    Raises:
        ModelError: not so, or not a causal language model.
        CheckpointError: the weights of the checkpoint are numbers of another kind.
    """
    from transformers import AutoModelForCausalLM

    weights = files.directory if checkpoint is None else checkpoint
    name = f"model.path={files.name}" if checkpoint is None else str(checkpoint)
    if (weights / "adapter_config.json").exists():
        raise ModelError(f"{weights}: has an adapter beside the weights")
    loaded_weights(weights)
    config = _config(files)
    generation = _generation_config(files, config)
    with _refused_as(f"{name}: cannot be loaded"):
        model, info = AutoModelForCausalLM.from_pretrained(
            weights,
            config=config,
            generation_config=generation,
            dtype=dtype,
            attn_implementation=attn_implementation,
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
        )
    mark_as_loaded(model.generation_config)
    if missing := info["missing_keys"]:
        raise ModelError(f"{name}: weights are missing: {first_few(sorted(missing))}")
    notes = []
    if checkpoint is None:
        if unused := [name for name in info["unexpected_keys"] if not is_buffer(name)]:
            named = first_few(sorted(unused))
            notes = [f"{len(unused)} stored weights are not part of the model by its config.json: {named}"]
        _refuse_quantized(files, {key for key, _ in model.named_parameters()})
    else:
        for path in sorted(checkpoint.glob(WEIGHTS)):
            check_stored_as_trained(path, dict(model.named_parameters()))
    _leave_the_file(model)
    _check_weights(model, name, highest_token_id)
    return model, notes


def end_tokens(generation_config: Any) -> list[Any]:
    """At which `generate` stops; one may be None."""
    ends = generation_config.eos_token_id
    return ends if isinstance(ends, list) else [ends]


def mark_as_loaded(generation_config: Any) -> None:
    """transformers saves what it has loaded as it is, but nothing that was changed and does not pass all its rules."""
    generation_config._original_object_hash = hash(generation_config)


def _generation_config(files: ModelFiles, config: Any) -> Any:
    """How the model answers.

    Raises:
        ModelError: it is damaged.
    """
    from transformers import GenerationConfig

    if not (files.directory / "generation_config.json").exists():
        return GenerationConfig.from_model_config(config)
    with _refused_as(f"model.path={files.name}: generation_config.json"):
        generation = GenerationConfig.from_pretrained(files.directory)
        if not all(end is None or type(end) is int for end in end_tokens(generation)):
            raise ValueError(f"eos_token_id is {generation.eos_token_id}")
        return generation


def _refuse_quantized(files: ModelFiles, parameters: Container[str]) -> None:
    """transformers would take them for plain numbers, and leave out by what they are to be multiplied."""
    for path in loaded_weights(files.directory):
        for key, tensor in stored(path).items():
            is_weight = key in parameters or tensor.is_floating_point()
            if is_weight and dtype_problem(tensor.dtype):
                raise ModelError(
                    f"model.path={files.name}: the weight {key} is stored as {kind_in_words(tensor.dtype)}, "
                    "which cannot be trained; give the model that it was made from"
                )


def _leave_the_file(model: nn.Module) -> None:
    """Weights of the dtype they are stored in are pages of the file: who writes it during the run would change them."""
    for weight in itertools.chain(model.parameters(), model.buffers()):
        weight.data = weight.data.clone()


def _check_weights(model: Any, name: str, highest_token_id: int) -> None:
    if (key := first_not_finite(model.state_dict().items())) is not None:
        raise ModelError(f"{name}: the weight {key} has values that are not finite")
    rows = model.get_input_embeddings().weight.shape[0]
    if highest_token_id >= rows:
        raise ModelError(
            f"{name}: the data has token ids up to {highest_token_id}, the model embeds only {rows}: "
            "its tokenizer is that of another model"
        )
