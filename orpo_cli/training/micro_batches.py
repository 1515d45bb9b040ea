"""What a step and an evaluation share: a run's parts, its micro-batches, and what is measured of one."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch

from orpo_cli.config.schema import NoAdapterConfig, RunConfig
from orpo_cli.data import plan
from orpo_cli.data.collation import COSTS, LAYOUTS, Batch
from orpo_cli.data.pairs import Lengths
from orpo_cli.data.tokens.store import PairStore
from orpo_cli.errors import OutOfMemoryError
from orpo_cli.losses import objective
from orpo_cli.machine.memory import peak_in_words
from orpo_cli.training.training import Training


@dataclass(frozen=True)
class Measured:
    """One micro-batch after its forward pass."""

    pairs: tuple[int, ...]
    scores: objective.PairScores
    output: objective.LossOutput


def batches(
    training: Training, store: PairStore, pairs: Sequence[int], max_tokens: int
) -> Iterator[tuple[tuple[int, ...], Batch]]:
    """This process's micro-batches, each with its pairs; the next is made while the last is computed with."""
    micro_batches = _micro_batches(training, store, pairs, max_tokens, training.hardware.rank)
    with ThreadPoolExecutor(1) as maker:
        coming = [maker.submit(collate, training, store, indices) for indices in micro_batches[:1]]
        for place, indices in enumerate(micro_batches):
            batch = coming.pop().result()
            coming += [maker.submit(collate, training, store, later) for later in micro_batches[place + 1 : place + 2]]
            yield indices, batch


def collate(training: Training, store: PairStore, pairs: Sequence[int]) -> Batch:
    """One micro-batch in the layout of the run, on its device."""
    score_prompts = training.config.loss.nll == "prompt_and_chosen"
    batch: Batch = LAYOUTS[training.layout]([store[pair] for pair in pairs], score_prompts=score_prompts)
    return batch.to(training.hardware.device)


def measure(
    training: Training, store: PairStore, pairs: tuple[int, ...], batch: Batch, denominators: objective.Denominators
) -> Measured:
    token_logps = training.scorer(batch)
    scores = objective.pair_scores(token_logps, batch.scored, batch.pair_count)
    config = training.config
    weights = torch.from_numpy(store.weights[list(pairs)]).to(token_logps.device)
    return Measured(pairs, scores, objective.loss(scores, denominators, config.loss, config.lambda_, weights))


def denominators_of(store: PairStore, pairs: Sequence[int], config: RunConfig) -> objective.Denominators:
    chosen = np.asarray(pairs)
    weights = store.weights[chosen].astype(np.float64)
    tokens = objective.nll_tokens(Lengths(*store.token_counts[chosen].T), config.loss)
    return objective.Denominators(float(weights.sum()), float((weights * tokens).sum()))


def _micro_batches(
    training: Training, store: PairStore, pairs: Sequence[int], max_tokens: int, rank: int
) -> list[tuple[int, ...]]:
    cost, processes = _cost(training, store), training.hardware.processes
    return plan.micro_batches(pairs, cost, max_tokens, rank, processes, balanced=training.layout == "packed")


def _cost(training: Training, store: PairStore) -> Callable[[Sequence[int]], int]:
    places = COSTS[training.layout]

    def cost(indices: Sequence[int]) -> int:
        count: int = places([store.lengths(index) for index in indices])
        return count

    return cost


def smaller(training: Training, store: PairStore, pairs: Sequence[int], max_tokens: int) -> int:
    """Half of the largest micro-batch that these pairs were cut into, by any process.

    Raises:
        OutOfMemoryError: each pair was alone already.
    """
    cost = _cost(training, store)
    cuts = [_micro_batches(training, store, pairs, max_tokens, rank) for rank in range(training.hardware.processes)]
    shared = [cost(batch) for cut in cuts for batch in cut if len(batch) > 1]
    if not shared:
        longest = max(pairs, key=lambda pair: cost([pair]))
        config, peak = training.config, peak_in_words(training.hardware.device)
        checkpointing = "" if config.trainer.gradient_checkpointing else "set trainer.gradient_checkpointing=true, "
        lora = "adapter=lora or " if isinstance(config.adapter, NoAdapterConfig) else ""
        raise OutOfMemoryError(
            f"out of memory with one pair at a time; the longest has {cost([longest])} tokens "
            f"({store.source(longest)}), and {peak}. "
            f"Lower data.max_length={config.data.max_length}, {checkpointing}or choose {lora}a smaller model"
        )
    return max(1, max(shared) // 2)


def is_finite(value: float) -> bool:
    return value - value == 0
