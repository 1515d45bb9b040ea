"""Find, load and check a model and its tokenizer, so that a run fails before its first step, not in it."""

import hashlib
import itertools
import json
import re
import warnings
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import Any

import torch
import xxhash
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError, safe_open
from torch import nn

from orpo_cli.config.plain import read_json
from orpo_cli.config.schema import ModelConfig
from orpo_cli.data.preparation import OnProgress
from orpo_cli.errors import CheckpointError, InputNotFoundError, ModelError, UnreachableError, is_out_of_memory
from orpo_cli.models.builtin import builtin_model

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
TEMPLATES = Path(__file__).resolve().parent / "templates"
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
_WEIGHTS = "*.safetensors"
_REFUSALS = (OSError, ValueError, KeyError, ImportError, TypeError, AttributeError, StrictDataclassError)
"""What transformers raises of a damaged config.json or tokenizer."""

_MAX_CONFIG = 10_000_000
_HUB_FILES = ["*.json", _WEIGHTS, "*.model", "*.txt", "*.jinja"]


def be_quiet() -> None:
    """The display is ours: no bars and no advice of transformers between its lines."""
    from transformers.utils import logging

    logging.disable_progress_bar()
    logging.set_verbosity_error()
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers|peft|torch")


@dataclass(frozen=True)
class ModelFiles:
    """A model directory on this machine.

    Args:
        name: what the user called it.
        reference: what a saved adapter names as its base: the hub id, or the directory.
    """

    directory: Path
    name: str
    reference: str


def find_model(config: ModelConfig, on_progress: OnProgress, weights: bool = True) -> ModelFiles:
    """Put the files of a model on this machine.

    Args:
        weights: whether they are needed; without, a directory of tokenizer and config.json will do.
    Raises:
        InputNotFoundError: no such directory, or no such model on the hub.
        UnreachableError: the hub cannot be reached and the model is not in its cache.
        ModelError: the directory holds no model, or only pickled weights.
    """
    path = config.path
    if path.startswith("builtin:"):
        directory = builtin_model(path.removeprefix("builtin:"), on_progress)
        reference = str(directory)
    elif Path(path).expanduser().is_dir():
        directory = Path(path).expanduser().resolve()
        reference = str(directory)
    elif Path(path).expanduser().exists():
        raise InputNotFoundError(f"model.path={path}: is a file; expected a directory with config.json and safetensors")
    elif _HUB_ID.fullmatch(path) and ".." not in path:
        directory = _from_hub(path, config.revision, on_progress, weights)
        reference = path
    else:
        raise InputNotFoundError(f"model.path={path}: no such directory")
    _check_files(directory, path, weights)
    return ModelFiles(directory, path, reference)


def _from_hub(hub_id: str, revision: str | None, on_progress: OnProgress, weights: bool) -> Path:
    from huggingface_hub import errors, snapshot_download

    on_progress(f"fetching {hub_id}", 0, 0)
    try:
        wanted = [pattern for pattern in _HUB_FILES if weights or pattern != _WEIGHTS]
        return Path(snapshot_download(hub_id, revision=revision, allow_patterns=wanted))
    except errors.GatedRepoError:
        raise UnreachableError(
            f"model.path={hub_id}: access to this model has to be granted on the hub; "
            "accept its licence there, then `hf auth login`, or give a local copy: model.path=DIR"
        ) from None
    except (errors.RepositoryNotFoundError, errors.RevisionNotFoundError):
        at = f" at revision {revision}" if revision else ""
        raise InputNotFoundError(f"model.path={hub_id}: no such directory, and no such model on the hub{at}") from None
    except OSError as error:
        answer = error if isinstance(error, errors.HfHubHTTPError) else error.__cause__
        if isinstance(answer, errors.HfHubHTTPError):
            status = HTTPStatus(answer.response.status_code)
            reason = f"the model hub answers {status.value} {status.phrase}"
        else:
            reason = "the model hub cannot be reached"
        raise UnreachableError(
            f"model.path={hub_id}: no such directory here, and {reason}; give a local copy: model.path=DIR"
        ) from None


def _check_files(directory: Path, name: str, weights: bool) -> None:
    if not (directory / "config.json").is_file():
        raise ModelError(f"model.path={name}: {directory} has no config.json; expected a Hugging Face model directory")
    try:
        values = read_json(directory / "config.json", _MAX_CONFIG)
    except (OSError, ValueError) as error:
        raise ModelError(f"model.path={name}: config.json cannot be read: {_first_line(error)}") from None
    if kernel := _foreign_kernel(values):
        raise ModelError(f"model.path={name}: config.json asks for {kernel}, which is code of another repository")
    if (directory / "adapter_config.json").exists():
        raise ModelError(f"model.path={name}: {directory} has an adapter beside the weights; merge it, or remove it")
    if weights and not any(directory.glob(_WEIGHTS)):
        pickled = [*directory.glob("*.bin"), *directory.glob("*.pt"), *directory.glob("*.pth")]
        what = (
            "only pickled weights, which can run code when loaded; convert them to safetensors"
            if pickled
            else "no weights"
        )
        raise ModelError(f"model.path={name}: {directory} has {what} (expected *.safetensors)")


def _foreign_kernel(value: Any) -> str | None:
    """`attn_implementation` and the like may name a repository whose code transformers fetches and runs."""
    if not isinstance(value, dict):
        return None
    for key, part in value.items():
        names = part.values() if isinstance(part, dict) else [part]
        if key.endswith("_implementation") and any("/" in str(name) for name in names):
            return f"{key}={part}"
        if kernel := _foreign_kernel(part):
            return kernel
    return None


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
        raise ModelError(f"model.path={files.name}: its tokenizer cannot be loaded: {_first_line(error)}") from None
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


def fingerprint(files: ModelFiles, weights: bool) -> str:
    """Of what a run takes from the model's files each time it begins or goes on.

    Args:
        weights: they are part of it, as those below adapters are; others are in each checkpoint.
    """
    config = read_json(files.directory / "config.json", _MAX_CONFIG)
    config.pop("transformers_version", None)  # says who wrote it
    digest = xxhash.xxh3_128(json.dumps(config, sort_keys=True).encode())
    for path in sorted(files.directory.glob(_WEIGHTS)) if weights else ():
        with path.open("rb") as stream:
            digest.update(hashlib.file_digest(stream, xxhash.xxh3_128).digest())
    return digest.hexdigest()


def max_positions(files: ModelFiles) -> int | None:
    """How many positions the model has learned or was built for; None where it does not say.

    Raises:
        ModelError: config.json is damaged, or its architecture is unknown or needs code of its own.
    """
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(files.directory, trust_remote_code=False).get_text_config()
    except _REFUSALS as error:
        raise ModelError(f"model.path={files.name}: {_first_line(error)}") from None
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
        raise ModelError(f"model.path={files.name}: {_first_line(error)}") from None
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
        name = f"model.path={files.name}" if checkpoint is None else checkpoint
        raise ModelError(f"{name}: cannot be loaded: {_first_line(error)}") from None
    missing = sorted(info["missing_keys"])
    if missing:
        more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        raise ModelError(f"model.path={files.name}: weights are missing: {', '.join(missing[:3])}{more}")
    if checkpoint is not None:
        _check_stored_as_trained(checkpoint, model)
    _leave_the_file(model)
    _check_weights(model, files.name, highest_token_id)
    loaded: nn.Module = model
    return loaded


def _check_stored_as_trained(checkpoint: Path, model: nn.Module) -> None:
    """transformers would convert numbers of any other kind, and lose what they were."""
    trained = dict(model.named_parameters())
    for path in sorted(checkpoint.glob(_WEIGHTS)):
        try:
            with safe_open(path, framework="pt") as tensors:
                stored = {name: tensors.get_tensor(name).dtype for name in trained.keys() & set(tensors.keys())}
        except (OSError, SafetensorError) as error:
            raise CheckpointError(f"{path}: cannot be read: {error}") from None
        for name, dtype in stored.items():
            if dtype != trained[name].dtype:
                raise CheckpointError(f"{path}: {name} is stored as {dtype}, trained as {trained[name].dtype}")


def _leave_the_file(model: nn.Module) -> None:
    """Weights of the dtype they are stored in are pages of the file: who writes it during the run would change them."""
    for weight in itertools.chain(model.parameters(), model.buffers()):
        weight.data = weight.data.clone()


def _check_weights(model: Any, name: str, highest_token_id: int) -> None:
    for key, weight in model.named_parameters():
        if not bool(torch.isfinite(weight).all()):
            raise ModelError(f"model.path={name}: the weight {key} has values that are not finite")
    rows = model.get_input_embeddings().weight.shape[0]
    if highest_token_id >= rows:
        raise ModelError(
            f"model.path={name}: the data has token ids up to {highest_token_id}, the model embeds only {rows}: "
            "its tokenizer is that of another model"
        )


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[0] if lines else type(error).__name__)[:300]
