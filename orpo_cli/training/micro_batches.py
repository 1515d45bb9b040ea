"""Cut pairs into micro-batches and compute the loss of one, for steps and evaluations alike."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from orpo_cli.config.adapter import NoAdapterConfig
from orpo_cli.config.schema import RunConfig
from orpo_cli.data import plan
from orpo_cli.data.collation import COSTS, LAYOUTS, Batch
from orpo_cli.data.pairs import Lengths
from orpo_cli.data.tokens.store import PairStore
from orpo_cli.errors import OutOfMemoryError
from orpo_cli.losses import balance, objective
from orpo_cli.machine.memory import peak_in_words
from orpo_cli.machine.transfer import sent
from orpo_cli.training.events import PairLogps
from orpo_cli.training.inputs import Scoring


@dataclass(frozen=True)
class MicroBatchLoss:
    """The pairs of a micro-batch, their scores, and its share of the loss.

    Args:
        pairs: none for a filler, which has no part in anything that is recorded.
        load: the load of the experts, where the objective has a load-balancing loss.
    """

    pairs: tuple[int, ...]
    scores: objective.PairScores
    output: objective.LossOutput
    load: balance.Load | None = None


@dataclass(frozen=True)
class MicroBatch:
    """Some pairs, and the batch of them.

    Args:
        is_filler: whether it weighs nothing: processes that divide the weights compute as many as the busiest of them.
    """

    pairs: tuple[int, ...]
    batch: Batch
    is_filler: bool


def batches(scoring: Scoring, store: PairStore, pairs: Sequence[int], max_tokens: int) -> Iterator[MicroBatch]:
    """Yield this process's micro-batches; the next is made while the last is computed with."""
    own, fillers = _own_and_fillers(scoring, store, pairs, max_tokens)
    cut = [*own, *fillers]
    with ThreadPoolExecutor(1) as maker:
        coming = [maker.submit(collate, scoring, store, indices) for indices in cut[:1]]
        for place, indices in enumerate(cut):
            batch = coming.pop().result()
            coming += [maker.submit(collate, scoring, store, later) for later in cut[place + 1 : place + 2]]
            yield MicroBatch(indices, batch, is_filler=place >= len(own))


def _own_and_fillers(
    scoring: Scoring, store: PairStore, pairs: Sequence[int], max_tokens: int
) -> tuple[list[tuple[int, ...]], list[tuple[int, ...]]]:
    """Return this process's micro-batches, and the shortest pair as often as another process has more of them."""
    if not scoring.scorer.is_divided:
        return own_micro_batches(scoring, store, pairs, max_tokens), []
    cuts, places = _all_micro_batches(scoring, store, pairs, max_tokens), places_in(store, scoring.layout)
    own = cuts[scoring.hardware.rank]
    shortest = min(pairs, key=lambda pair: (places([pair]), pair))
    return own, [(shortest,)] * (max(map(len, cuts)) - len(own))


def collate(scoring: Scoring, store: PairStore, pairs: Sequence[int]) -> Batch:
    """Return one micro-batch in the layout of the run, on its device."""
    score_prompts = scoring.config.loss.nll == "prompt_and_chosen"
    batch: Batch = LAYOUTS[scoring.layout]([store[pair] for pair in pairs], score_prompts=score_prompts)
    return batch.to(scoring.hardware.device)


def micro_batch_loss(
    scoring: Scoring, store: PairStore, part: MicroBatch, denominators: objective.Denominators
) -> MicroBatchLoss:
    """Compute the loss of one micro-batch by a forward pass."""
    batch, weights, load = part.batch, _weights(store, part, scoring.hardware.device), None
    if scoring.balancing is None:
        token_logps = scoring.scorer(batch)
    else:
        token_logps, router_logits = scoring.scorer.routed(batch)
        load = _load(router_logits, scoring.balancing, batch, weights)
    scores = objective.pair_scores(token_logps, batch.scored, batch.pair_count)
    done = _loss_of(scores, scoring, part.pairs, weights, denominators)
    return replace(done, pairs=() if part.is_filler else part.pairs, load=load)


def choices_of(scoring: Scoring, balancing: balance.Balancing, store: PairStore, part: MicroBatch) -> Tensor:
    """Return how many tokens of a micro-batch each expert is chosen for, (E,), by a forward pass without gradient."""
    weights = _weights(store, part, scoring.hardware.device)
    return _load(scoring.scorer.router_logits(part.batch), balancing, part.batch, weights).choices


def _load(router_logits: Sequence[Tensor], balancing: balance.Balancing, batch: Batch, weights: Tensor) -> balance.Load:
    return balance.load(router_logits, balancing.top_k, balance.token_weights(batch, weights))


def _weights(store: PairStore, part: MicroBatch, device: torch.device) -> Tensor:
    return sent(torch.from_numpy(store.weights[list(part.pairs)] * (not part.is_filler)), device)


def recorded_loss(
    scoring: Scoring, store: PairStore, pairs: tuple[int, ...], known: PairLogps, denominators: objective.Denominators
) -> MicroBatchLoss:
    """Compute the loss of one micro-batch from what its responses scored before; it must not need the prompts' scores.

    Args:
        known: the log-probabilities of all pairs of the store.
    """
    device, zeros = scoring.hardware.device, torch.zeros(len(pairs))
    sums = [
        torch.tensor([side[pair] for pair in pairs], dtype=torch.float32) for side in (known.chosen, known.rejected)
    ]
    counts = torch.from_numpy(store.token_counts[list(pairs)].T.astype(np.int64))
    scores = objective.PairScores(*(sent(column, device) for column in (zeros, *sums, *counts)))
    weights = sent(torch.from_numpy(store.weights[list(pairs)]), device)
    return _loss_of(scores, scoring, pairs, weights, denominators)


def _loss_of(
    scores: objective.PairScores,
    scoring: Scoring,
    pairs: tuple[int, ...],
    weights: Tensor,
    denominators: objective.Denominators,
) -> MicroBatchLoss:
    config = scoring.config
    return MicroBatchLoss(pairs, scores, objective.loss(scores, denominators, config.loss, config.lambda_, weights))


def denominators_of(store: PairStore, pairs: Sequence[int], config: RunConfig) -> objective.Denominators:
    """Return the denominators of a step, or evaluation, of these pairs."""
    chosen = np.asarray(pairs)
    weights = store.weights[chosen].astype(np.float64)
    tokens = objective.nll_tokens(Lengths(*store.token_counts[chosen].T), config.loss)
    return objective.Denominators(float(weights.sum()), float((weights * tokens).sum()))


def places_in(store: PairStore, layout: str) -> Callable[[Sequence[int]], int]:
    """Return a function of the number of places that pairs take in one micro-batch."""

    def places(pairs: Sequence[int]) -> int:
        count: int = COSTS[layout]([store.lengths(pair) for pair in pairs])
        return count

    return places


def own_micro_batches(
    scoring: Scoring, store: PairStore, pairs: Sequence[int], max_tokens: int
) -> list[tuple[int, ...]]:
    """Return the micro-batches that this process computes of some pairs."""
    return _micro_batches(scoring, store, pairs, max_tokens, scoring.hardware.rank)


def _micro_batches(
    scoring: Scoring, store: PairStore, pairs: Sequence[int], max_tokens: int, rank: int
) -> list[tuple[int, ...]]:
    places, processes = places_in(store, scoring.layout), scoring.hardware.processes
    return plan.micro_batches(pairs, places, max_tokens, rank, processes, balanced=scoring.layout == "packed")


def _all_micro_batches(
    scoring: Scoring, store: PairStore, pairs: Sequence[int], max_tokens: int
) -> list[list[tuple[int, ...]]]:
    """Return the micro-batches of each process."""
    return [_micro_batches(scoring, store, pairs, max_tokens, rank) for rank in range(scoring.hardware.processes)]


def smaller(scoring: Scoring, store: PairStore, pairs: Sequence[int], max_tokens: int) -> int:
    """Return half the size of the largest micro-batch of several pairs that any process cut from these.

    Raises:
        OutOfMemoryError: if each pair was alone already.
    """
    places = places_in(store, scoring.layout)
    cuts = _all_micro_batches(scoring, store, pairs, max_tokens)
    shared = [places(batch) for cut in cuts for batch in cut if len(batch) > 1]
    if not shared:
        longest = max(pairs, key=lambda pair: places([pair]))
        config, peak = scoring.config, peak_in_words(scoring.hardware.device)
        checkpointing = "" if config.trainer.gradient_checkpointing else "set trainer.gradient_checkpointing=true, "
        lora = "adapter=lora or " if isinstance(config.adapter, NoAdapterConfig) else ""
        raise OutOfMemoryError(
            f"out of memory with one pair at a time; the longest has {places([longest])} tokens "
            f"({store.source(longest)}), and {peak}. "
            f"Lower data.max_length={config.data.max_length}, {checkpointing}or choose {lora}a smaller model"
        )
    return max(1, max(shared) // 2)
