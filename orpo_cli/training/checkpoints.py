"""What a checkpoint holds, how it is written, and which are kept.

`step-NNNNNN/` has weights (or adapter), tokenizer, optimizer state and numbers, as safetensors and JSON: nothing is
pickled. It is published as a whole (`orpo_cli.training.publication`), verified, pointed to by LATEST, and only then
older ones go. Everything else of a run's state follows from its configuration and the number of the step.
"""

import contextlib
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import nn
from torch.optim import Optimizer

from orpo_cli.config.plain import read_json, read_text
from orpo_cli.config.schema import BETTER
from orpo_cli.errors import CheckpointError
from orpo_cli.models.adapters import is_adapted
from orpo_cli.training.publication import (
    Draft,
    check_manifest,
    fsync_growing,
    point,
    remove,
    rewrite_doubtful,
    write_manifest,
)

FORMAT_VERSION = 3
READABLE_VERSIONS = (2, 3)
LATEST = "LATEST"
BEST = "BEST"
STATE = "state.json"
OPTIMIZER = "optimizer.safetensors"
_NAME = re.compile(r"step-(\d{6,})")


@dataclass(frozen=True)
class TrainingState:
    """The numbers of a checkpoint; the rest of a run's state follows from the configuration.

    Args:
        step: optimizer steps taken, those that were skipped included.
        total_steps: of the run.
        max_tokens: of the micro-batches that fitted; gradients add up in their order.
        data_sha256: of each input file.
        identity: the settings that must not change on resume, by key.
        environment: what besides can change the last digits: versions, threads, instruction set.
        skipped: steps that were not finite and changed nothing.
        evaluation: metrics measured after this very step; None where it was not evaluated.
        evaluation_due: an evaluation after this step was begun and not finished.
    """

    step: int
    total_steps: int
    max_tokens: int
    data_sha256: dict[str, str]
    identity: dict[str, Any]
    environment: dict[str, Any]
    skipped: int = 0
    evaluation: dict[str, float] | None = None
    evaluation_due: bool = False
    format_version: int = FORMAT_VERSION


@dataclass(frozen=True)
class Retention:
    """Which checkpoints are kept: the last few, and the best by a metric of its evaluation where one is named."""

    keep_last: int
    keep_best: str | None


def begin_checkpoint(
    root: Path,
    model: Any,
    tokenizer: Any,
    optimizers: Sequence[Optimizer],
    state: TrainingState,
    retention: Retention,
) -> Callable[[], Path]:
    """Hand weights and optimizer state to the system. Returns what makes `root/step-NNNNNN` of them, in any thread.

    That is checksums, flushing (of the run's records of these steps too), publication, LATEST, and the removal of older
    checkpoints; it returns the directory. Training may go on meanwhile.

    Raises:
        WriteError: the disk is full or failed, here or in the rest; the earlier checkpoints are untouched.
    """
    named = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    tensors = _optimizer_tensors(named, optimizers)
    draft = Draft(root / f"step-{state.step:06d}", _weight_bytes(model) + sum(map(_nbytes, tensors.values())))
    with draft.writing() as directory:
        rewrite_doubtful(root.parent)
        save_model(directory, model, tokenizer)
        save_file(tensors, directory / OPTIMIZER)
        (directory / STATE).write_text(json.dumps(asdict(state), indent=2), encoding="utf-8")

    def rest() -> Path:
        with draft.writing() as directory:
            write_manifest(directory)
            for records in root.parent.glob("*.jsonl"):
                fsync_growing(records)
        draft.publish()
        verify(draft.final)
        point(root / LATEST, draft.final.name)
        _rotate(root, state.step, retention)
        return draft.final

    return rest


def publish_model(final: Path, model: Any, tokenizer: Any, end_id: int) -> None:
    """Write the result: a directory that `from_pretrained` loads, there as a whole or not at all.

    Args:
        end_id: the token that ends an answer; generation stops at it.
    Raises:
        WriteError: the disk is full or failed.
    """
    stop_generation_at(model, end_id)
    draft = Draft(final, _weight_bytes(model))
    with draft.writing() as directory:
        save_model(directory, model, tokenizer)
    draft.publish()


def save_model(directory: Path, model: Any, tokenizer: Any) -> None:
    """Weights (or adapters), configuration and tokenizer, as transformers and peft lay them out.

    Raises:
        CheckpointError: not every trained tensor of the adapters was saved.
    """
    options = {}
    if is_adapted(model):
        # peft would ask the hub at every save whether the vocabulary has grown; it never does here
        options = {"save_embedding_layers": False}
        for config in model.peft_config.values():
            if isinstance(config.target_modules, set):  # in another order in each process
                config.target_modules = sorted(config.target_modules)
    model.save_pretrained(directory, **options)
    tokenizer.save_pretrained(directory)
    if is_adapted(model):
        _check_adapter(directory, sum(parameter.requires_grad for parameter in model.parameters()))


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


def latest_checkpoint(root: Path) -> tuple[Path, list[str]]:
    """The newest checkpoint whose manifest holds, and what is wrong with newer ones and with LATEST.

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
            return path, faults + _faults_of_pointer(root / LATEST, path)
    raise CheckpointError("; ".join([f"{root}: no checkpoint to go on from", *faults]))


def _faults_of_pointer(pointer: Path, newest: Path) -> list[str]:
    """LATEST is written last, so it may lag behind; a search finds the newest, whatever LATEST says."""
    if pointer.is_symlink():
        return [f"{pointer}: is a link, which is not followed"]
    try:
        name = read_text(pointer, 1000).strip()
    except (OSError, ValueError):
        return [f"{pointer}: cannot be read"]
    return [] if name == newest.name else [f"{pointer}: says {name[:100]!r}, the newest that is whole is {newest.name}"]


def verify(directory: Path) -> TrainingState:
    """Compare every file with the manifest. Returns the numbers.

    Raises:
        CheckpointError: a file is missing, has another size or checksum, or is of another version of the format.
    """
    check_manifest(directory, {STATE, OPTIMIZER})
    if not any(path.name != OPTIMIZER for path in directory.glob("*.safetensors")):
        raise CheckpointError(f"{directory}: has no weights")
    state = read_state(directory)
    named = _NAME.fullmatch(directory.name)
    if named and int(named.group(1)) != state.step:
        raise CheckpointError(f"{directory}: {STATE} is of step {state.step}")
    return state


def read_state(directory: Path) -> TrainingState:
    """The numbers of a verified checkpoint.

    Raises:
        CheckpointError: written by another version of the format.
    """
    try:
        values = read_json(directory / STATE)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{directory}: {STATE} cannot be read: {error}") from None
    version = values.get("format_version")
    if version not in READABLE_VERSIONS:
        raise CheckpointError(
            f"{directory}: format version {version}; this orpo reads {' and '.join(map(str, READABLE_VERSIONS))}"
        )
    try:
        state = TrainingState(**({"environment": {}} | values))
    except TypeError:
        raise CheckpointError(f"{directory}: {STATE} has other keys than version {version}") from None
    for key, value in asdict(state).items():
        if not _is_of_its_kind(key, value):
            raise CheckpointError(f"{directory}: {STATE}: {key}={str(value)[:100]}: not what is saved there")
    return state


def _is_of_its_kind(key: str, value: Any) -> bool:
    if key == "evaluation_due":
        return isinstance(value, bool)
    if key == "evaluation" and value is None:
        return True
    if key in ("data_sha256", "identity", "environment", "evaluation"):
        kinds = {"data_sha256": str, "evaluation": int | float}.get(key, object)
        return isinstance(value, dict) and all(isinstance(part, kinds) for part in value.values())
    return type(value) is int and 0 <= value < 1 << 53


def load_optimizers(directory: Path, model: nn.Module, optimizers: Sequence[Optimizer]) -> None:
    """Put the saved state into freshly built optimizers; a parameter that never had a gradient has none.

    Raises:
        CheckpointError: the state is of other parameters.
    """
    saved: dict[str, dict[str, torch.Tensor]] = {}
    try:
        tensors = load_file(directory / OPTIMIZER)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{directory / OPTIMIZER}: cannot be read: {error}") from None
    for key, tensor in tensors.items():
        name, _, part = key.rpartition("|")
        saved.setdefault(name, {})[part] = tensor
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                if state := saved.pop(names[id(parameter)], None):
                    optimizer.state[parameter] = {  # copied: what is read are pages of the file, which may be written
                        key: value.clone() if key == "step" else value.to(parameter.device, copy=True)
                        for key, value in state.items()
                    }
    if saved:
        raise CheckpointError(f"{directory}: {OPTIMIZER} has state of {sorted(saved)[0]}, which is not trained here")


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


def _weight_bytes(model: Any) -> int:
    """Of what `save_model` saves."""
    return sum(_nbytes(weight) for weight in model.parameters() if weight.requires_grad or not is_adapted(model))


def _nbytes(tensor: torch.Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def _check_adapter(directory: Path, expected: int) -> None:
    """peft saves what its filters let through; a saved adapter has each trained tensor."""
    path = directory / "adapter_model.safetensors"
    with safe_open(path, framework="pt") as tensors:
        found = len(list(tensors.keys()))
    if found != expected:
        raise CheckpointError(f"{path}: {found} tensors were saved, {expected} are trained")


def _rotate(root: Path, newest: int, retention: Retention) -> None:
    """Remove what is older than the last few, but the best. `newest` has been verified."""
    best = _best(root, retention.keep_best)
    if best is not None:
        point(root / BEST, best.name)
    for step, old in checkpoints(root)[: -retention.keep_last]:
        if step < newest and old != best:
            with contextlib.suppress(OSError):  # what cannot be removed now goes with the next
                remove(old)


def _best(root: Path, metric: str | None) -> Path | None:
    """The checkpoint with the best value of a metric of its evaluation; the earlier of equal ones."""
    if metric is None:
        return None
    values: list[tuple[float, Path]] = []
    for _, path in checkpoints(root):
        with contextlib.suppress(CheckpointError):
            evaluation = read_state(path).evaluation
            if evaluation is not None and metric in evaluation:
                values.append((evaluation[metric], path))
    return BETTER[metric](values, key=lambda value: value[0])[1] if values else None
