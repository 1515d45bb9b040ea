"""Find a model's files, on this machine or on the hub, and check them before anything is loaded."""

import hashlib
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from http import HTTPStatus
from pathlib import Path
from typing import Any

import xxhash

from orpo_cli.config.schema import ModelConfig
from orpo_cli.data.progress import OnProgress
from orpo_cli.errors import ConfigError, InputNotFoundError, ModelError, UnreachableError
from orpo_cli.files.untrusted import read_json
from orpo_cli.models.adapter_files import ADAPTER, ADAPTER_CONFIG, adapter_settings, holds_adapter, read_adapter
from orpo_cli.models.builtin import builtin_model
from orpo_cli.quoting import first_line

_WEIGHTS = "*.safetensors"
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
_HUB_FILES = ["*.json", _WEIGHTS, "*.model", "*.txt", "*.jinja"]
_MAX_CONFIG = 10_000_000
_MAX_INDEX = 100_000_000


@dataclass(frozen=True)
class ModelFiles:
    """A model on this machine: a directory, and the adapters that belong on top of it.

    Args:
        name: the name that the user gave.
        reference: the name of the base model in a saved adapter: builtin:NAME, the hub id, or the directory.
        revision: the branch, tag or commit that goes with it.
        adapters: the directories of adapters, in the order in which they were trained.
    """

    directory: Path
    name: str
    reference: str
    revision: str | None = None
    adapters: tuple[Path, ...] = ()

    @property
    def tokenizer(self) -> Path:
        """Return the directory of the tokenizer: the last adapter saved with one, or the model."""
        saved_with = (path for path in reversed(self.adapters) if (path / "tokenizer_config.json").is_file())
        return next(saved_with, self.directory)


@dataclass(frozen=True)
class _Named:
    """A model as somebody named it.

    Args:
        what: the beginning of a message about it.
        key: the key that gives another place.
    """

    name: str
    revision: str | None
    what: str
    key: str


def find_model(config: ModelConfig, on_progress: OnProgress, weights: bool = True) -> ModelFiles:
    """Return the files of a model, fetched from the hub first if they are not on this machine.

    Args:
        weights: whether weights are needed; if not, a directory with tokenizer and config.json will do.
    Raises:
        ConfigError: if a base is given for what is no adapter.
        InputNotFoundError: if there is no such directory, and no such model on the hub.
        UnreachableError: if the hub cannot be reached and the model is not in its cache.
        ModelError: if the directory holds no model, a quantized one, or only pickled weights; or an adapter that is not
            trained here.
    """
    path = config.path
    files = _find(_Named(path, config.revision, f"model.path={path}", "model.path"), on_progress, weights)
    if not holds_adapter(files.directory):
        if config.base is not None:
            raise ConfigError(f"model.base={config.base}: {path} holds no adapter, which alone has a base")
        return files
    if config.base is None:
        return _with_base(files, None, on_progress, weights)
    base = _Named(config.base, None, f"model.base={config.base}", "model.base")
    return _with_base(files, base, on_progress, weights)


def _with_base(files: ModelFiles, base: _Named | None, on_progress: OnProgress, weights: bool) -> ModelFiles:
    """Return the files of the model that an adapter belongs on, and the adapter.

    Args:
        files: those of the adapter.
        base: the base where the user named it; else adapter_config.json does.
    """
    adapters = [files.directory]
    found = _find(base or _base_named_in(adapters[0], files.name), on_progress, weights)
    while holds_adapter(found.directory):  # the adapter was trained on top of another, merged
        if found.directory in adapters:
            raise ModelError(f"model.path={files.name}: {found.directory} is named as its own base model")
        adapters = [found.directory, *adapters]
        found = _find(_base_named_in(found.directory, files.name), on_progress, weights)
    return replace(found, name=files.name, adapters=tuple(adapters))


def _base_named_in(adapter: Path, name: str) -> _Named:
    """Return the base model that adapter_config.json names; a relative directory may lie beside the adapter."""
    values = read_adapter(adapter)
    base, revision = values.get("base_model_name_or_path"), values.get("revision")
    if not isinstance(base, str) or not base.strip():
        raise InputNotFoundError(f"model.path={name}: its {ADAPTER_CONFIG} names no base model; give model.base=DIR")
    beside = adapter / base
    place = str(beside) if not Path(base).expanduser().is_dir() and beside.is_dir() else base
    what = f"model.path={name}: the base model of its adapter, {base}"
    return _Named(place, revision if isinstance(revision, str) else None, what, "model.base")


def _find(named: _Named, on_progress: OnProgress, weights: bool) -> ModelFiles:
    path, revision = named.name, None
    if path.startswith("builtin:"):
        directory, reference = builtin_model(path.removeprefix("builtin:"), on_progress), path
    elif Path(path).expanduser().is_dir():
        directory = Path(path).expanduser().resolve()
        reference, revision = _name_on_hub(directory) or (str(Path(path).expanduser().absolute()), None)
    elif Path(path).expanduser().exists():
        raise InputNotFoundError(f"{named.what}: is a file; expected a directory with config.json and safetensors")
    elif _HUB_ID.fullmatch(path) and ".." not in path:
        directory, reference, revision = _from_hub(named, on_progress, weights), path, named.revision
    else:
        raise InputNotFoundError(f"{named.what}: no such directory{_elsewhere(named)}")
    if holds_adapter(directory):
        read_adapter(directory)
    else:
        _check_files(directory, named.what, weights)
    return ModelFiles(directory, path, reference, revision)


def _name_on_hub(directory: Path) -> tuple[str, str] | None:
    """Return the hub id and the revision of a directory in the hub's cache, which others have elsewhere."""
    repository = directory.parent.parent
    if directory.parent.name != "snapshots" or not repository.name.startswith("models--"):
        return None
    from huggingface_hub import constants

    is_found_by_name = repository.parent == Path(constants.HF_HUB_CACHE).resolve()
    return (repository.name.removeprefix("models--").replace("--", "/"), directory.name) if is_found_by_name else None


def _elsewhere(named: _Named) -> str:
    return "" if named.key == "model.path" else f"; give its place: {named.key}=DIR"


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


def _from_hub(named: _Named, on_progress: OnProgress, weights: bool) -> Path:
    from huggingface_hub import errors, snapshot_download

    hub_id, revision = named.name, named.revision
    on_progress(f"fetching {hub_id}", 0, 0)
    try:
        wanted = [pattern for pattern in _HUB_FILES if weights or pattern != _WEIGHTS]
        return Path(snapshot_download(hub_id, revision=revision, allow_patterns=wanted))
    except errors.GatedRepoError:
        raise UnreachableError(
            f"{named.what}: access to this model has to be granted on the hub; "
            f"accept its licence there, then `hf auth login`, or give a local copy: {named.key}=DIR"
        ) from None
    except (errors.RepositoryNotFoundError, errors.RevisionNotFoundError):
        at = f" at revision {revision}" if revision else ""
        raise InputNotFoundError(
            f"{named.what}: no such directory, and no such model on the hub{at}{_elsewhere(named)}"
        ) from None
    except OSError as error:
        answer = error if isinstance(error, errors.HfHubHTTPError) else error.__cause__
        if isinstance(answer, errors.HfHubHTTPError):
            status = HTTPStatus(answer.response.status_code)
            reason = f"the model hub answers {status.value} {status.phrase}"
        else:
            reason = "the model hub cannot be reached"
        raise UnreachableError(
            f"{named.what}: no such directory here, and {reason}; give a local copy: {named.key}=DIR"
        ) from None


def _check_files(directory: Path, what: str, weights: bool) -> None:
    if not (directory / "config.json").is_file():
        raise ModelError(f"{what}: {directory} has no config.json; expected a Hugging Face model directory")
    try:
        values = read_json(directory / "config.json", _MAX_CONFIG)
    except (OSError, ValueError) as error:
        raise ModelError(f"{what}: config.json cannot be read: {first_line(error)}") from None
    configs = list(_nested_configs(values))
    if kernel := _foreign_kernel(configs):
        raise ModelError(f"{what}: config.json asks for {kernel}, which is code of another repository")
    if "transformers_weights" in values:
        raise ModelError(f"{what}: config.json names its weights by transformers_weights; name them model.safetensors")
    if (method := _quantization_method(configs)) is not None:
        raise ModelError(
            f"{what}: config.json says that its weights are quantized ({method}), and quantized weights "
            "are not trained here; give the model that it was made from"
        )
    if (directory / ADAPTER_CONFIG).exists():
        raise ModelError(f"{what}: {directory} has an adapter beside the weights; merge it, or remove it")
    if weights and not loaded_weights(directory):
        pickled = [*directory.glob("*.bin"), *directory.glob("*.pt"), *directory.glob("*.pth")]
        found = (
            "only pickled weights, which can run code when loaded; convert them to safetensors"
            if pickled
            else "no weights"
        )
        raise ModelError(f"{what}: {directory} has {found} (expected model.safetensors, or an index)")


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


def fingerprint(files: ModelFiles) -> str:
    """Return a checksum of config.json, the settings of adapters, and every file of weights, wherever they lie."""
    config = read_json(files.directory / "config.json", _MAX_CONFIG)
    config.pop("transformers_version", None)  # it says who wrote the file
    settings = [config, *(adapter_settings(adapter) for adapter in files.adapters)]
    digest = xxhash.xxh3_128("".join(json.dumps(part, sort_keys=True) for part in settings).encode())
    for path in (*loaded_weights(files.directory), *(adapter / ADAPTER for adapter in files.adapters)):
        with path.open("rb") as stream:
            digest.update(hashlib.file_digest(stream, xxhash.xxh3_128).digest())
    return digest.hexdigest()
