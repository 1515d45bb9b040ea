"""Look at what a run has left: checksums, finite numbers, an adapter that has learned something."""

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open

from orpo_cli.checkpoints import lookup
from orpo_cli.errors import CheckpointError
from orpo_cli.models.adapter_files import ADAPTER
from orpo_cli.models.adapters import has_learned
from orpo_cli.models.weights import tensor_problem


@dataclass(frozen=True)
class Inspected:
    """One thing that was looked at, and what is wrong with it, if anything."""

    what: str
    problem: str | None = None


def inspect_checkpoints(root: Path, finished: bool) -> Iterator[Inspected]:
    """Look at each checkpoint, and at whether LATEST names the newest.

    Args:
        root: the directory of the checkpoints.
        finished: whether the run took all its steps; if it was killed, LATEST may not name the newest yet.
    """
    saved, newest = lookup.list_checkpoints(root), None
    for _, path in saved:
        try:
            state = lookup.verify(path)
        except CheckpointError as error:
            yield Inspected(f"{path.name}: every file as the manifest says", str(error))
            continue
        newest = path
        yield Inspected(f"{path.name}: every file as the manifest says, step {state.step} of {state.total_steps}")
        yield from inspect_tensors(path, state.step - state.skipped)
    pointer = root / lookup.LATEST
    if newest is not None:
        problem = lookup.pointer_problem(pointer, newest)
        is_plain = not os.path.lexists(pointer) or (pointer.is_file() and not pointer.is_symlink())
        if problem is not None and is_plain and not finished:
            yield Inspected(f"LATEST does not name {newest.name} yet; a resumed run continues from there all the same")
        else:
            yield Inspected(f"LATEST names {newest.name}", problem)
    elif saved or pointer.exists():
        yield Inspected("a checkpoint to resume from", f"{root}: none is whole")


def inspect_end(root: Path, end: int | None) -> Iterator[Inspected]:
    """Look at whether the newest checkpoint of a finished run is of its last step.

    Args:
        root: the directory of the checkpoints.
        end: the step that the run ended after; None where that is the last that was planned.
    """
    saved = lookup.list_checkpoints(root)
    if not saved:
        yield Inspected("a checkpoint of the last step", f"{root}: has no checkpoint")
        return
    _, path = saved[-1]
    with contextlib.suppress(CheckpointError):  # `inspect_checkpoints` has said so
        state = lookup.read_state(path)
        last = state.total_steps if end is None else end
        early = state.step != last
        yield Inspected("a checkpoint of the last step", f"{path}: the run has {last} steps" if early else None)


def inspect_tensors(directory: Path, steps: int) -> Iterator[Inspected]:
    """Look at the weights of a checkpoint or a model, and at the optimizer state beside them.

    Args:
        steps: the number of steps that have changed the weights.
    """
    problem, count = None, 0
    for path in sorted(directory.glob("*.safetensors")):
        if not path.is_file():
            problem = problem or f"{path}: is not a file"
            continue
        try:
            with safe_open(path, framework="pt") as tensors:
                for name in tensors.keys():  # noqa: SIM118 - it is no dictionary
                    count += 1
                    if its_problem := tensor_problem(tensors.get_tensor(name)):
                        problem = problem or f"{path}: {name} {its_problem}"
        except (OSError, SafetensorError) as error:
            problem = problem or f"{path}: {error}"
    if count == 0:
        problem = problem or f"{directory}: has no tensors"
    yield Inspected(f"{directory.name}: {count} tensors" + (", all finite" if problem is None else ""), problem)
    if problem is None and (directory / ADAPTER).is_file():
        learned = steps == 0 or has_learned(directory / ADAPTER)
        untouched = None if learned else f"{directory}: the adapter is what it was before the first step"
        yield Inspected(f"{directory.name}: the adapter has learned", untouched)
