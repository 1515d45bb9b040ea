"""Whether what a run has left is whole: checksums, finite weights, an adapter that has learned something."""

import contextlib
import filecmp
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from orpo_cli.checkpoints import reading
from orpo_cli.checkpoints.optimizer_state import optimizer_value_problem, read_optimizer_state
from orpo_cli.errors import CheckpointError
from orpo_cli.models.adapters import ADAPTER, has_learned
from orpo_cli.models.weights import dtype_problem, stored, tensor_problem


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at. `problem` says what is wrong with it; None where nothing is."""

    what: str
    problem: str | None = None


def inspect_checkpoints(root: Path, finished: bool) -> Iterator[Finding]:
    """Each checkpoint, and whether LATEST names the newest.

    Args:
        root: of the checkpoints.
        finished: whether the run took all its steps. One that was killed may have published a checkpoint that LATEST
            does not name yet.
    """
    saved, newest = reading.checkpoints(root), None
    for _, path in saved:
        try:
            state = reading.verify(path)
        except CheckpointError as error:
            yield Finding(f"{path.name}: every file as the manifest says", str(error))
            continue
        newest = path
        yield Finding(f"{path.name}: every file as the manifest says, step {state.step} of {state.total_steps}")
        yield from inspect_weights(path, state.step - state.skipped)
        yield inspect_optimizer_state(path, state.step - state.skipped)
    pointer = root / reading.LATEST
    if newest is not None:
        problem = "; ".join(reading.pointer_problems(pointer, newest)) or None
        if problem is not None and not finished and reading.lags_behind(pointer, [path.name for _, path in saved]):
            yield Finding(f"LATEST does not name {newest.name} yet, from which a resumed run goes on")
        else:
            yield Finding(f"LATEST names {newest.name}", problem)
    elif saved or pointer.exists():
        yield Finding("a checkpoint to go on from", f"{root}: none is whole")


def inspect_end(root: Path, model: Path) -> Iterator[Finding]:
    """Of a run that says it is finished: whether its newest checkpoint is of its last step and has the model's weights.

    Args:
        root: of the checkpoints.
    """
    saved = reading.checkpoints(root)
    if not saved:
        yield Finding("a checkpoint of the last step", f"{root}: has no checkpoint")
        return
    _, path = saved[-1]
    try:
        state = reading.read_state(path)
    except CheckpointError:
        return  # its own finding says so
    early = state.step != state.total_steps
    yield Finding("a checkpoint of the last step", f"{path}: of {state.total_steps} steps" if early else None)
    same = [name.name for name in model.glob("*.safetensors") if (path / name.name).is_file()]  # none of merged weights
    other = [name for name in same if not filecmp.cmp(model / name, path / name, shallow=False)]
    if same:
        problem = f"{model / other[0]}: differs from {path / other[0]}" if other else None
        yield Finding(f"{model.name}: the weights of {path.name}", problem)


def inspect_weights(directory: Path, steps: int) -> Iterator[Finding]:
    """The tensors of a checkpoint or a model.

    Args:
        steps: that have changed them.
    """
    problem, count = None, 0
    for path in _weights(directory):
        if not path.is_file():
            problem = problem or f"{path}: is not a file"
            continue
        try:
            with safe_open(path, framework="pt") as tensors:
                for name in tensors.keys():  # noqa: SIM118 - it is no dictionary
                    tensor = tensors.get_tensor(name)
                    count += 1
                    if its_problem := tensor_problem(tensor):
                        problem = problem or f"{path}: {name} {its_problem}"
        except (OSError, SafetensorError) as error:
            problem = problem or f"{path}: {error}"
    if count == 0:
        problem = problem or f"{directory}: has no tensors"
    yield Finding(f"{directory.name}: {count} tensors" + (", all finite" if problem is None else ""), problem)
    if problem is None and (directory / ADAPTER).is_file():
        learned = steps == 0 or has_learned(directory / ADAPTER)
        untouched = None if learned else f"{directory}: the adapter is what it was before the first step"
        yield Finding(f"{directory.name}: the adapter has learned", untouched)


def inspect_optimizer_state(directory: Path, steps: int) -> Finding:
    """The optimizer's state of a checkpoint, as far as it can be judged without the model.

    Args:
        steps: that it follows.
    """
    path, what = directory / reading.OPTIMIZER, f"{directory.name}: the optimizer's state of its weights"
    try:
        problem = _optimizer_state_problem(path, _without_values(directory), steps)
    except CheckpointError as error:
        return Finding(what, str(error))
    return Finding(what, None if problem is None else f"{path}: {problem}")


def _optimizer_state_problem(path: Path, weights: dict[str, torch.Tensor], steps: int) -> str | None:
    for name, part, value in read_optimizer_state(path):
        if problem := optimizer_value_problem(part, value, steps):
            return f"{name}: {problem}"
        weight = weights.get(name.replace(".default.", "."))  # peft saves without the adapter's name
        if weight is None:
            continue
        if problem := dtype_problem(weight.dtype):
            return f"{name}: the weight {problem}"
        fits = weight.ndim == value.ndim and all(
            size in (1, whole) for size, whole in zip(value.shape, weight.shape, strict=True)
        )
        if value.ndim > 0 and not fits:
            return f"{name}: {part} is {list(value.shape)}, the weight {list(weight.shape)}"
    return None


def _without_values(directory: Path) -> dict[str, torch.Tensor]:
    """The weights of a checkpoint, by name, on the meta device."""
    weights: dict[str, torch.Tensor] = {}
    for path in _weights(directory):
        with contextlib.suppress(CheckpointError):  # a finding of its own
            weights |= stored(path)
    return weights


def _weights(directory: Path) -> list[Path]:
    return sorted(path for path in directory.glob("*.safetensors") if path.name != reading.OPTIMIZER)
