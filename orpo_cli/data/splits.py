"""Choose the pairs that are held out, and find prompts on both sides; prompts are compared by their texts' hashes."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from orpo_cli.data.tokens.store import TokenizedFile


def held_out_rows(files: Sequence[TokenizedFile], fraction: float, seed: int) -> list[Any]:
    """Return the rows of each file that are held out: whole prompts until the share of all pairs is reached.

    Which prompts come first is decided by their texts and the seed alone, so that the order of rows and files does not
    matter.
    """
    rows = [file.trainable() for file in files]
    if fraction == 0:
        return [np.empty(0, np.int64) for _ in files]
    prompts = [file.column("prompt_hash")[of_file] for file, of_file in zip(files, rows, strict=True)]
    drawn = [_drawn(hashes, seed) for hashes in prompts]
    order, counts = np.unique(np.concatenate(drawn), return_counts=True)
    before = np.cumsum(counts) - counts
    wanted = max(1, round(fraction * sum(map(len, rows))))
    beyond = np.flatnonzero((before + counts / 2 > wanted) & (before > 0))
    taken = order[: beyond[0]] if len(beyond) else order
    return [of_file[np.isin(lots, taken)] for of_file, lots in zip(rows, drawn, strict=True)]


def _drawn(hashes: Any, seed: int) -> Any:
    """Draw a lot for each hash by the finalizer of splitmix64, which maps 64 bits one to one."""
    with np.errstate(over="ignore"):
        lots = hashes + np.uint64((seed + 1) * 0x9E3779B97F4A7C15 % 2**64)
        lots = (lots ^ (lots >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        lots = (lots ^ (lots >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return lots ^ (lots >> np.uint64(31))


def shared_prompts(train: Sequence[TokenizedFile], evaluation: Sequence[TokenizedFile]) -> int:
    """Count the pairs in files to evaluate on whose prompt is also trained on."""
    if not evaluation:
        return 0
    trained, evaluated = (
        np.concatenate([file.column("prompt_hash")[file.trainable()] for file in side]) for side in (train, evaluation)
    )
    return int(np.isin(evaluated, trained).sum())
