"""Load and check a model and its tokenizer, so that a run fails before its first step, not in it."""

import itertools
import warnings
from collections.abc import Container
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from torch import nn

from orpo_cli.errors import InputNotFoundError, ModelError, first_line, is_out_of_memory
from orpo_cli.models.files import WEIGHTS, ModelFiles, loaded_weights
from orpo_cli.models.weights import (
    check_stored_as_trained,
    fault_of_kind,
    first_not_finite,
    kind_in_words,
    stored_dtypes,
)

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
TEMPLATES = Path(__file__).resolve().parent / "templates"
_REFUSALS = (OSError, ValueError, KeyError, ImportError, TypeError, AttributeError, StrictDataclassError)
"""What transformers raises of a damaged config.json or tokenizer."""


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

    try:
        tokenizer = AutoTokenizer.from_pretrained(files.directory, trust_remote_code=False)
    except _REFUSALS as error:
        raise ModelError(f"model.path={files.name}: its tokenizer cannot be loaded: {first_line(error)}") from None
    if chat_template is not None:
        tokenizer.chat_template = _template(chat_template)
    return tokenizer


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
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(files.directory, trust_remote_code=False).get_text_config()
    except _REFUSALS as error:
        raise ModelError(f"model.path={files.name}: {first_line(error)}") from None
    limit = getattr(config, "max_position_embeddings", None) or getattr(config, "max_seq_len", None)
    return int(limit) if limit else None


def stored_dtype(files: ModelFiles) -> torch.dtype:
    """What config.json says the weights are stored in; fp32 where it does not say."""
    from transformers import AutoConfig

    stored = AutoConfig.from_pretrained(files.directory, trust_remote_code=False).get_text_config().dtype
    return stored if isinstance(stored, torch.dtype) else torch.float32


def load_skeleton(files: ModelFiles) -> nn.Module:
    """The model without its weights, on the meta device, where it takes no memory.

    Raises:
        ModelError: config.json is damaged, or not of a causal language model.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    try:
        config = AutoConfig.from_pretrained(files.directory, trust_remote_code=False)
        with torch.device("meta"):
            skeleton: nn.Module = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    except _REFUSALS as error:
        raise ModelError(f"model.path={files.name}: {first_line(error)}") from None
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
) -> nn.Module:
    """The causal language model, with every weight present and finite, and an embedding for every token of the data.

    Args:
        highest_token_id: in the data; a tokenizer may know more tokens than the model (as Gemma 3's), if none is used.
        checkpoint: where the weights are taken from instead; of what it says about itself nothing is believed.
    Raises:
        ModelError: not so, or not a causal language model.
        CheckpointError: the weights of the checkpoint are numbers of another kind.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    weights = files.directory if checkpoint is None else checkpoint
    name = f"model.path={files.name}" if checkpoint is None else str(checkpoint)
    if (weights / "adapter_config.json").exists():
        raise ModelError(f"{weights}: has an adapter beside the weights")
    try:
        model, info = AutoModelForCausalLM.from_pretrained(
            weights,
            config=AutoConfig.from_pretrained(files.directory, trust_remote_code=False),
            dtype=dtype,
            attn_implementation=attn_implementation,
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
        )
    except (*_REFUSALS, RuntimeError, AssertionError, SafetensorError) as error:
        if is_out_of_memory(error):
            raise
        raise ModelError(f"{name}: cannot be loaded: {first_line(error)}") from None
    missing = sorted(info["missing_keys"])
    if missing:
        more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        raise ModelError(f"{name}: weights are missing: {', '.join(missing[:3])}{more}")
    if checkpoint is None:
        _refuse_quantized(files, {key for key, _ in model.named_parameters()})
    else:
        for path in sorted(checkpoint.glob(WEIGHTS)):
            check_stored_as_trained(path, dict(model.named_parameters()))
    _leave_the_file(model)
    _check_weights(model, name, highest_token_id)
    loaded: nn.Module = model
    return loaded


def _refuse_quantized(files: ModelFiles, parameters: Container[str]) -> None:
    """transformers would take them for plain numbers, and leave out by what they are to be multiplied."""
    for path in loaded_weights(files.directory):
        for key, dtype in stored_dtypes(path).items():
            is_weight = key in parameters or dtype.is_floating_point
            if is_weight and fault_of_kind(dtype):
                raise ModelError(
                    f"model.path={files.name}: the weight {key} is stored as {kind_in_words(dtype)}, "
                    "which cannot be trained; give the model that it was made from"
                )


def _leave_the_file(model: nn.Module) -> None:
    """Weights of the dtype they are stored in are pages of the file: who writes it during the run would change them."""
    for weight in itertools.chain(model.parameters(), model.buffers()):
        weight.data = weight.data.clone()


def _check_weights(model: Any, name: str, highest_token_id: int) -> None:
    if (key := first_not_finite(model.named_parameters())) is not None:
        raise ModelError(f"{name}: the weight {key} has values that are not finite")
    rows = model.get_input_embeddings().weight.shape[0]
    if highest_token_id >= rows:
        raise ModelError(
            f"{name}: the data has token ids up to {highest_token_id}, the model embeds only {rows}: "
            "its tokenizer is that of another model"
        )
