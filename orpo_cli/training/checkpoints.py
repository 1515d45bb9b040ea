"""Checkpoints that are whole or not there.

A checkpoint is written into a temporary directory, each file flushed to disk, renamed to its step, and only then
pointed to by LATEST; older ones go last. Its manifest holds size and SHA-256 of each file, since a flipped bit in a
tensor loads without an error. Weights, optimizer state and numbers are safetensors and JSON; nothing is pickled.
"""

import contextlib
import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn
from torch.optim import Optimizer

from orpo_cli.errors import CheckpointError, WriteError
from orpo_cli.models.adapters import is_adapted

FORMAT_VERSION = 2
LATEST = "LATEST"
MANIFEST = "manifest.json"
STATE = "state.json"
OPTIMIZER = "optimizer.safetensors"
_NAME = re.compile(r"step-(\d{6,})")


@dataclass(frozen=True)
class TrainingState:
    """The numbers of a checkpoint; the rest of a run's state follows from the configuration.

    Args:
        step: optimizer steps taken.
        total_steps: of the run.
        max_tokens: of the micro-batches that fitted; gradients add up in their order.
        data_sha256: of each input file.
        identity: the settings that must not change on resume, by key.
    """

    step: int
    total_steps: int
    max_tokens: int
    data_sha256: dict[str, str]
    identity: dict[str, Any]
    format_version: int = FORMAT_VERSION


def save_checkpoint(
    root: Path, model: Any, tokenizer: Any, optimizers: Sequence[Optimizer], state: TrainingState, keep_last: int
) -> Path:
    """Write `root/step-NNNNNN`, point LATEST to it, and remove what is older than the last `keep_last`.

    Raises:
        WriteError: the disk is full or failed; the earlier checkpoints are untouched.
    """
    final = root / f"step-{state.step:06d}"
    with _publishing(final) as directory:
        save_model(directory, model, tokenizer)
        named = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
        save_file(_optimizer_tensors(named, optimizers), directory / OPTIMIZER)
        (directory / STATE).write_text(json.dumps(asdict(state), indent=2), encoding="utf-8")
        _write_manifest(directory)
    _point_latest(root, final.name)
    for step, old in checkpoints(root)[:-keep_last]:
        if step < state.step:
            shutil.rmtree(old)
    return final


def publish_model(final: Path, model: Any, tokenizer: Any, end_id: int) -> None:
    """Write the result: a directory that `from_pretrained` loads, there as a whole or not at all.

    Args:
        end_id: the token that ends an answer; generation stops at it.
    Raises:
        WriteError: the disk is full or failed.
    """
    stop_generation_at(model, end_id)
    with _publishing(final) as directory:
        save_model(directory, model, tokenizer)


def save_model(directory: Path, model: Any, tokenizer: Any) -> None:
    """Weights (or adapters), configuration and tokenizer, as transformers and peft lay them out."""
    # peft would ask the hub at every save whether the vocabulary has grown; it never does here
    options = {"save_embedding_layers": False} if is_adapted(model) else {}
    model.save_pretrained(directory, **options)
    tokenizer.save_pretrained(directory)


def stop_generation_at(model: Any, end_id: int) -> None:
    """Add the trained end token to those at which `generate` stops."""
    config = getattr(model, "generation_config", None)
    if config is None:
        return
    known = config.eos_token_id if isinstance(config.eos_token_id, list) else [config.eos_token_id]
    wanted = list(dict.fromkeys([*(token for token in known if token is not None), end_id]))
    config.eos_token_id = wanted[0] if len(wanted) == 1 else wanted


def checkpoints(root: Path) -> list[tuple[int, Path]]:
    """(step, directory) of all checkpoints, by step."""
    found = [(int(match.group(1)), path) for path in root.glob("step-*") if (match := _NAME.fullmatch(path.name))]
    return sorted((step, path) for step, path in found if path.is_dir() and not path.is_symlink())


def latest_checkpoint(root: Path) -> Path:
    """The newest checkpoint whose manifest holds.

    Raises:
        CheckpointError: there is none; the message says what is wrong with each.
    """
    faults = []
    for _, path in reversed(checkpoints(root)):
        try:
            verify(path)
        except CheckpointError as error:
            faults.append(str(error))
        else:
            return path
    raise CheckpointError("; ".join([f"{root}: no checkpoint to go on from", *faults]))


def verify(directory: Path) -> None:
    """Compare every file with the manifest.

    Raises:
        CheckpointError: a file is missing, has another size, or another checksum.
    """
    try:
        manifest = json.loads((directory / MANIFEST).read_text(encoding="utf-8"))
        files = {str(name): (int(entry["size"]), str(entry["sha256"])) for name, entry in manifest["files"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise CheckpointError(f"{directory}: {MANIFEST} is missing or damaged") from None
    if not {STATE, OPTIMIZER} <= set(files):
        raise CheckpointError(f"{directory}: {MANIFEST} does not list {STATE} and {OPTIMIZER}")
    for name, (size, digest) in files.items():
        path = directory / name
        if Path(name).name != name or not path.is_file():
            raise CheckpointError(f"{directory}: {name} is missing")
        if path.stat().st_size != size:
            raise CheckpointError(f"{path}: {path.stat().st_size} bytes, expected {size}")
        if _sha256(path) != digest:
            raise CheckpointError(f"{path}: its checksum is not that of the manifest")


def read_state(directory: Path) -> TrainingState:
    """The numbers of a verified checkpoint.

    Raises:
        CheckpointError: written by another version of the format.
    """
    values = json.loads((directory / STATE).read_text(encoding="utf-8"))
    if values.get("format_version") != FORMAT_VERSION:
        raise CheckpointError(
            f"{directory}: format version {values.get('format_version')}; this orpo reads {FORMAT_VERSION}"
        )
    return TrainingState(**values)


def load_optimizers(directory: Path, model: nn.Module, optimizers: Sequence[Optimizer]) -> None:
    """Put the saved state into freshly built optimizers; a parameter that never had a gradient has none."""
    tensors = load_file(directory / OPTIMIZER)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                prefix = names[id(parameter)] + "|"
                state = {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
                if state:
                    optimizer.state[parameter] = {
                        key: value if key == "step" else value.to(parameter.device) for key, value in state.items()
                    }


def _optimizer_tensors(
    named: Sequence[tuple[str, nn.Parameter]], optimizers: Sequence[Optimizer]
) -> dict[str, torch.Tensor]:
    names = {id(parameter): name for name, parameter in named}
    return {
        f"{names[id(parameter)]}|{key}": value.detach().cpu().contiguous()
        for optimizer in optimizers
        for parameter, state in optimizer.state.items()
        for key, value in state.items()
        if isinstance(value, torch.Tensor)
    }


@contextlib.contextmanager
def _publishing(final: Path) -> Any:
    """A temporary directory that becomes `final` when the block ends, every file of it on the disk."""
    final.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=final.parent, prefix=".tmp-"))
    try:
        yield temporary
        _share_as_umask_says(temporary)
        for path in [*temporary.rglob("*"), temporary]:
            _fsync(path)
        if final.exists():
            shutil.rmtree(final)
        temporary.rename(final)
        _fsync(final.parent)
    except (OSError, SafetensorError) as error:
        raise WriteError(f"{final}: not written: {error}; what was saved before is untouched") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _share_as_umask_says(directory: Path) -> None:
    """mkdtemp and safetensors create files for their owner only; give them the permissions any new file gets."""
    mask = os.umask(0)
    os.umask(mask)
    directory.chmod(0o777 & ~mask)
    for path in directory.rglob("*"):
        path.chmod((0o777 if path.is_dir() else 0o666) & ~mask)


def _write_manifest(directory: Path) -> None:
    files = {
        path.name: {"size": path.stat().st_size, "sha256": _sha256(path)}
        for path in sorted(directory.iterdir())
        if path.is_file()
    }
    (directory / MANIFEST).write_text(
        json.dumps({"format_version": FORMAT_VERSION, "files": files}, indent=2), encoding="utf-8"
    )


def _point_latest(root: Path, name: str) -> None:
    temporary = root / f".tmp-{LATEST}"
    temporary.write_text(name + "\n", encoding="utf-8")
    _fsync(temporary)
    temporary.replace(root / LATEST)
    _fsync(root)


def _fsync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
