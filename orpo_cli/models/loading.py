"""Load and check a model and its tokenizer, so that a run fails before its first step."""

import contextlib
import itertools
import warnings
from collections.abc import Container, Iterator, Mapping
from logging import ERROR, getLogger
from pathlib import Path
from typing import Any

import torch
from torch import nn

from orpo_cli.errors import InputNotFoundError, ModelError, OrpoError, is_out_of_memory
from orpo_cli.models.dropout import Dropout, dropout_of, switch_off_in_config, switch_off_in_layers
from orpo_cli.models.files import ModelFiles, loaded_weights
from orpo_cli.models.quantized import compute_as_in_training
from orpo_cli.models.weights import TRAINABLE, dtype_name, first_not_finite, is_buffer, stored_tensors
from orpo_cli.quoting import first_few, in_one_line

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
TEMPLATES = Path(__file__).resolve().parent / "templates"


def be_quiet() -> None:
    """Silence the progress bars and the advice of transformers, which would spoil the display."""
    from transformers.utils import logging

    logging.disable_progress_bar()
    logging.set_verbosity_error()
    getLogger("bitsandbytes").setLevel(ERROR)  # peft imports it where it is installed
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers|peft|torch")
    for category in (UserWarning, RuntimeWarning):
        warnings.filterwarnings("ignore", category=category, module="peft")


def load_tokenizer(files: ModelFiles, chat_template: str | None) -> Any:
    """Load the tokenizer of a model.

    Args:
        chat_template: a Jinja file, or builtin:NAME, that replaces its chat template.
    Raises:
        ModelError: if there is none that can be loaded without running its code.
        InputNotFoundError: if there is no such chat template.
    """
    from transformers import AutoTokenizer

    _config(files)  # the tokenizer reads it too; a problem with it would be reported as one of the tokenizer
    with _refused_as(f"model.path={files.name}: its tokenizer cannot be loaded"):
        tokenizer = AutoTokenizer.from_pretrained(files.tokenizer, trust_remote_code=False)
    if chat_template is not None:
        tokenizer.chat_template = _template(chat_template)
    return tokenizer


@contextlib.contextmanager
def _refused_as(what: str) -> Iterator[None]:
    """Wrap a block in which transformers reads files that may be damaged; it may raise anything.

    Raises:
        ModelError: if it raises.
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
    from transformers import AutoConfig

    with _refused_as(f"model.path={files.name}: config.json"):
        return AutoConfig.from_pretrained(files.directory, trust_remote_code=False)


def _template(name: str) -> str:
    if name.startswith("builtin:"):
        path = TEMPLATES / f"{name.removeprefix('builtin:')}.jinja"
    else:
        path = Path(name).expanduser()
    if not path.is_file():
        raise InputNotFoundError(f"model.chat_template={name}: no such file")
    return path.read_text(encoding="utf-8")


def usable_length(files: ModelFiles, wanted: int) -> int:
    """Return `wanted` (`data.max_length`), or less if the model was built for fewer positions.

    Raises:
        ModelError: if config.json is damaged, or its architecture is unknown or needs code of its own.
    """
    with _refused_as(f"model.path={files.name}: config.json"):
        config = _config(files).get_text_config()
        limit = int(getattr(config, "max_position_embeddings", None) or getattr(config, "max_seq_len", None) or 0)
        return min(wanted, limit) if limit > 0 else wanted


def own_dropout(files: ModelFiles) -> Dropout:
    """Return the dropout that the model's own configuration asks for.

    Raises:
        ModelError: if config.json is damaged, or its architecture is unknown or needs code of its own.
    """
    return dropout_of(_config(files))


def load_skeleton(files: ModelFiles) -> nn.Module:
    """Return the model without its weights, on the meta device, where it takes no memory.

    Raises:
        ModelError: if config.json is damaged, or not that of a causal language model.
    """
    from transformers import AutoModelForCausalLM

    config = _config(files)
    with _refused_as(f"model.path={files.name}: config.json"), torch.device("meta"):
        skeleton: nn.Module = AutoModelForCausalLM.from_config(config, dtype=torch.float32, trust_remote_code=False)
    return skeleton


def load_model(
    files: ModelFiles,
    dtype: torch.dtype,
    attn_implementation: str | None,
    highest_token_id: int,
    checkpoint: Path | None = None,
    dropout: bool = True,
    quantization: Mapping[str, Any] | None = None,
) -> tuple[nn.Module, list[str]]:
    """Load a causal language model with every weight present and finite, and an embedding for every token of the data.

    Args:
        highest_token_id: the highest token id in the data; a tokenizer may know more tokens than the model embeds (as
            Gemma 3's does), if the data has none of them.
        checkpoint: a directory to take the weights from instead; its configuration is not read.
        dropout: whether the model keeps the dropout of its own configuration.
        quantization: further arguments of `from_pretrained`, which quantize the weights.
    Returns:
        the model, and notes for the user.
    Raises:
        ModelError: if it is not such a model.
    """
    from transformers import AutoModelForCausalLM

    weights = files.directory if checkpoint is None else checkpoint
    name = f"model.path={files.name}" if checkpoint is None else str(checkpoint)
    if (weights / "adapter_config.json").exists():
        raise ModelError(f"{weights}: has an adapter beside the weights")
    loaded_weights(weights)
    config = _config(files)
    own = dropout_of(config)
    if not dropout:
        switch_off_in_config(config)
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
            **(quantization or {}),
        )
    if quantization:
        compute_as_in_training(model)
    mark_as_loaded(model.generation_config)
    notes = _head_of_its_own(model)
    if not dropout:
        switch_off_in_layers(model)
        model.dropout_as_given = own
    if missing := info["missing_keys"]:
        raise ModelError(f"{name}: weights are missing: {first_few(sorted(missing))}")
    if checkpoint is None:
        if unused := [name for name in info["unexpected_keys"] if not is_buffer(name)]:
            named = first_few(sorted(unused))
            notes += [f"{len(unused)} stored weights are not in the model that config.json describes: {named}"]
        _refuse_quantized(files, {key for key, _ in model.named_parameters()})
    for weight in itertools.chain(model.parameters(), model.buffers()):
        if weight.is_floating_point():  # others are quantized
            weight.data = weight.data.clone()  # it may be pages of the file, which somebody may write to
    _check_weights(model, name, highest_token_id)
    return model, notes


def _head_of_its_own(model: Any) -> list[str]:
    """Let the configuration say so where the file has a head of its own, and return a note.

    transformers ties embeddings and head as config.json says only where the file has no other head; programs that
    believe config.json would take the embeddings for it.
    """
    head = model.get_output_embeddings() if model._tied_weights_keys else None
    is_said_to_be_tied = getattr(model.config, "tie_word_embeddings", False)
    if head is None or not is_said_to_be_tied or head.weight is model.get_input_embeddings().weight:
        return []
    for config in (model.config, model.config.get_text_config()):
        config.tie_word_embeddings = False
    return [
        "config.json says that the head is the embeddings (tie_word_embeddings), the weights hold another head: that "
        "is used, and what is saved says tie_word_embeddings=false"
    ]


def end_tokens(generation_config: Any) -> list[Any]:
    """Return the tokens at which `generate` stops; one may be None."""
    ends = generation_config.eos_token_id
    return ends if isinstance(ends, list) else [ends]


def mark_as_loaded(generation_config: Any) -> None:
    """Make transformers save these settings as they are: it validates only what has changed since it was loaded."""
    generation_config._original_object_hash = hash(generation_config)


def _generation_config(files: ModelFiles, config: Any) -> Any:
    from transformers import GenerationConfig

    if not (files.directory / "generation_config.json").exists():
        return GenerationConfig.from_model_config(config)
    with _refused_as(f"model.path={files.name}: generation_config.json"):
        return GenerationConfig.from_pretrained(files.directory)


def _refuse_quantized(files: ModelFiles, parameters: Container[str]) -> None:
    """Refuse quantized weights that config.json does not mention: transformers would drop their scales."""
    for path in loaded_weights(files.directory):
        for key, tensor in stored_tensors(path).items():
            is_weight = key in parameters or tensor.is_floating_point()
            if is_weight and tensor.dtype not in TRAINABLE:
                raise ModelError(
                    f"model.path={files.name}: the weight {key} is stored as {dtype_name(tensor.dtype)}, "
                    "which cannot be trained; give the model that it was made from"
                )


def _check_weights(model: Any, name: str, highest_token_id: int) -> None:
    if (key := first_not_finite(model.state_dict().items())) is not None:
        raise ModelError(f"{name}: the weight {key} has values that are not finite")
    rows = model.get_input_embeddings().weight.shape[0]
    if highest_token_id >= rows:
        raise ModelError(
            f"{name}: the data has token ids up to {highest_token_id}, the model embeds only {rows}: "
            "its tokenizer is that of another model"
        )
