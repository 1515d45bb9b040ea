"""Find a model's files, on this machine or on the hub, and check them before anything is loaded."""

import hashlib
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import Any

import xxhash

from orpo_cli.config.schema import ModelConfig
from orpo_cli.data.progress import OnProgress
from orpo_cli.errors import InputNotFoundError, ModelError, UnreachableError
from orpo_cli.files.untrusted import read_json
from orpo_cli.models.builtin import builtin_model
from orpo_cli.quoting import first_line

_WEIGHTS = "*.safetensors"
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
_HUB_FILES = ["*.json", _WEIGHTS, "*.model", "*.txt", "*.jinja"]
_MAX_CONFIG = 10_000_000
_MAX_INDEX = 100_000_000


@dataclass(frozen=True)
class ModelFiles:
    """A model directory on this machine.

    Args:
        name: the name that the user gave.
        reference: the name of the base model in a saved adapter: the hub id, or the directory.
    """

    directory: Path
    name: str
    reference: str


def find_model(config: ModelConfig, on_progress: OnProgress, weights: bool = True) -> ModelFiles:
    """Return the files of a model, fetched from the hub first if they are not on this machine.

    Args:
        weights: whether weights are needed; if not, a directory with tokenizer and config.json will do.
    Raises:
        InputNotFoundError: if there is no such directory, and no such model on the hub.
        UnreachableError: if the hub cannot be reached and the model is not in its cache.
        ModelError: if the directory holds no model, a quantized one, or only pickled weights.
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


def loaded_weights(directory: Path) -> list[Path]:
    """Return the weight files that transformers reads; files of other layouts or precisions may lie beside them.

    Raises:
        ModelError: if the index is damaged, or names a file that is missing or outside the directory.
    """
    whole, index = directory / "model.safetensors", directory / "model.safetensors.index.json"
    if whole.is_file() or not index.is_file():
        return [whole] if whole.is_file() else []
    try:
        names = sorted({str(name) for name in read_json(index, _MAX_INDEX)["weight_map"].values()})
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise ModelError(f"{index}: cannot be read: {first_line(error)}") from None
    if outside := [name for name in names if Path(name).is_absolute() or ".." in Path(name).parts]:
        raise ModelError(f"{index}: names a file outside of its directory: {outside[0]}")
    if missing := [name for name in names if not (directory / name).is_file()]:
        raise ModelError(f"{index}: names {missing[0]}, which is missing")
    return [directory / name for name in names]


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
        raise ModelError(f"model.path={name}: config.json cannot be read: {first_line(error)}") from None
    configs = list(_nested_configs(values))
    if kernel := _foreign_kernel(configs):
        raise ModelError(f"model.path={name}: config.json asks for {kernel}, which is code of another repository")
    if "transformers_weights" in values:
        raise ModelError(
            f"model.path={name}: config.json names its weights by transformers_weights; name them model.safetensors"
        )
    if (method := _quantization_method(configs)) is not None:
        raise ModelError(
            f"model.path={name}: config.json says that its weights are quantized ({method}), and quantized weights "
            "are not trained here; give the model that it was made from"
        )
    if (directory / "adapter_config.json").exists():
        raise ModelError(f"model.path={name}: {directory} has an adapter beside the weights; merge it, or remove it")
    if weights and not loaded_weights(directory):
        pickled = [*directory.glob("*.bin"), *directory.glob("*.pt"), *directory.glob("*.pth")]
        what = (
            "only pickled weights, which can run code when loaded; convert them to safetensors"
            if pickled
            else "no weights"
        )
        raise ModelError(f"model.path={name}: {directory} has {what} (expected model.safetensors, or an index)")


def _nested_configs(value: Any) -> Iterator[dict[str, Any]]:
    """Yield the configuration of a model and those of its parts, inside it."""
    if isinstance(value, dict):
        yield value
        for part in value.values():
            yield from _nested_configs(part)


def _foreign_kernel(configs: list[dict[str, Any]]) -> str | None:
    """Return the setting that names a repository whose code transformers would fetch and run."""
    for key, value in (item for config in configs for item in config.items()):
        names = value.values() if isinstance(value, dict) else [value]
        if key.endswith("_implementation") and any("/" in str(name) for name in names):
            return f"{key}={value}"
    return None


def _quantization_method(configs: list[dict[str, Any]]) -> str | None:
    for config in configs:
        for key in ("quantization_config", "compression_config"):
            if (found := config.get(key)) is not None:
                method = found.get("quant_method") if isinstance(found, dict) else None
                return str(method or key)
    return None


def fingerprint(directory: Path) -> str:
    """Return a checksum of config.json and of every file of weights, wherever they lie."""
    config = read_json(directory / "config.json", _MAX_CONFIG)
    config.pop("transformers_version", None)  # it says who wrote the file
    digest = xxhash.xxh3_128(json.dumps(config, sort_keys=True).encode())
    for path in loaded_weights(directory):
        with path.open("rb") as stream:
            digest.update(hashlib.file_digest(stream, xxhash.xxh3_128).digest())
    return digest.hexdigest()
