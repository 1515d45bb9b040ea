"""Evaluate: what a model gives to preference pairs, with intervals, and how that differs from another model."""

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import numpy as np

from orpo_cli.config.data import DataConfig
from orpo_cli.config.schema import ModelConfig, NoAdapterConfig, RunConfig, SavedAdapterConfig
from orpo_cli.data.progress import OnProgress
from orpo_cli.data.tokens.store import PairStore
from orpo_cli.errors import DataError
from orpo_cli.runs.assembly import Assembly
from orpo_cli.runs.folder import run_of_model
from orpo_cli.runs.starting_model import find_files
from orpo_cli.statistics.evaluation import Evaluation, Scored, evaluation_of
from orpo_cli.statistics.scored_pairs import IntArray, ScoredPairs
from orpo_cli.training.evaluation import evaluate as scored_by
from orpo_cli.training.events import Evaluated, EvaluationProgress, MemoryRanOut, PairLogps


def evaluate(config: RunConfig, against: str | None, on_progress: OnProgress = lambda *_: None) -> Evaluation:
    """Score the pairs that a configuration holds out, or all of them where it holds out none.

    Args:
        config: model and data, as for a run; no weight is changed.
        against: the model to compare with; `auto` is what the run, or the adapter, began with.
    Raises:
        DataError: if no pair is left to score, or the two models have none in common.
    """
    other = None if against is None else _model_against(config, against, on_progress)
    scored = score(config, on_progress)
    if other is None:
        return evaluation_of(scored)
    return evaluation_of(scored, score(replace(config, model=other), on_progress))


def score(config: RunConfig, on_progress: OnProgress) -> Scored:
    """Score the held-out pairs of a configuration, or all pairs where it holds out none, by its model as it is.

    Raises:
        DataError: if no pair is left to score.
    """
    adapter, trainer = _adapter_of(config.model, on_progress), replace(config.trainer, processes=1)
    config = replace(config, adapter=adapter, trainer=trainer, data=_held_out(config.data))
    assembly = Assembly(config, on_progress)
    data = assembly.data
    store = data.evaluation if len(data.evaluation) else data.train
    if not len(store):
        raise DataError(f"{', '.join(data.sha256)}: no pair is left to score")
    scoring = assembly.scoring_of(store)
    notes = list(assembly.notes)
    for event in scored_by(scoring, store, 0):
        match event:
            case EvaluationProgress(pairs=done, total_pairs=total):
                on_progress(f"scoring pairs with {config.model.path}", done, total)
            case MemoryRanOut(max_tokens=max_tokens):
                notes.append(f"memory ran out; pairs are scored at most {max_tokens} tokens at a time")
            case Evaluated(metrics=metrics, logps=logps):
                pairs = scored_pairs(store, logps, assembly.tokenizer)
                return Scored(config.model.path, pairs, metrics, store.rows, store.column("line"), notes)
    raise AssertionError("an evaluation ends with its metrics")


def scored_pairs(store: PairStore, logps: PairLogps, tokenizer: Any) -> ScoredPairs:
    """Return log-probabilities beside what else is known of each pair of a store."""
    _, chosen_tokens, rejected_tokens = store.token_counts.T.astype(np.int64)
    _, prompt = np.unique(store.column("prompt_hash"), return_inverse=True)
    pairs = [store[index] for index in range(len(store))]

    def characters(responses: Iterable[list[int]]) -> IntArray:
        return np.array([len(tokenizer.decode(ids, skip_special_tokens=True)) for ids in responses], np.int64)

    return ScoredPairs(
        chosen_logp=np.array(logps.chosen),
        rejected_logp=np.array(logps.rejected),
        chosen_tokens=chosen_tokens,
        rejected_tokens=rejected_tokens,
        chosen_characters=characters(pair.chosen_ids for pair in pairs),
        rejected_characters=characters(pair.rejected_ids for pair in pairs),
        prompt=prompt.astype(np.int64),
        turns=store.column("turns").astype(np.int64),
        source=np.array(store.files)[store.rows[:, 0]],
        weight=store.weights.astype(np.float64),
    )


def _held_out(data: DataConfig) -> DataConfig:
    """Return the configuration that reads nothing else where the held-out pairs are in files of their own."""
    if data.eval_path is None or data.eval_fraction:
        return data
    return replace(data, path=data.eval_path, split=data.eval_split, eval_path=None, eval_split=None, mixture=None)


def _adapter_of(model: ModelConfig, on_progress: OnProgress) -> NoAdapterConfig | SavedAdapterConfig:
    has_adapter = find_files(model, on_progress).adapters
    return SavedAdapterConfig("saved", 0.0, False) if has_adapter else NoAdapterConfig("none", 0.0)


def _model_against(config: RunConfig, against: str, on_progress: OnProgress) -> ModelConfig | None:
    """Return the model to compare with; None where nothing says what the model began with."""
    if against != "auto":
        return replace(config.model, path=against, revision=None, base=None)
    run = run_of_model(config.model.path)
    if run is not None:
        return run.config.model
    files = find_files(config.model, on_progress)
    if not files.adapters:
        return None
    base = str(files.adapters[-2]) if len(files.adapters) > 1 else files.reference
    return replace(config.model, path=base, revision=files.revision, base=None)
