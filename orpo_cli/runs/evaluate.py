"""Evaluate: what a model gives to preference pairs, with intervals, and how that differs from another model."""

from dataclasses import replace

from orpo_cli.config.data import DataConfig
from orpo_cli.config.schema import ModelConfig, NoAdapterConfig, RunConfig, SavedAdapterConfig
from orpo_cli.data.progress import OnProgress
from orpo_cli.errors import DataError
from orpo_cli.runs.assembly import Assembly
from orpo_cli.runs.folder import run_of_model
from orpo_cli.runs.scores import columns_of, scored
from orpo_cli.runs.starting_model import find_files
from orpo_cli.statistics.evaluation import Evaluation, Scored, evaluation_of
from orpo_cli.training.evaluation import evaluate as evaluation_events
from orpo_cli.training.events import Evaluated, EvaluationProgress, MemoryRanOut


def evaluate(config: RunConfig, against: str | None, on_progress: OnProgress = lambda *_: None) -> Evaluation:
    """Score the pairs that a configuration holds out, or all of them where it holds out none.

    Args:
        config: model and data, as for a run; no weight is changed.
        against: the model to compare with; `auto` is what the run, or the adapter, began with.
    Raises:
        DataError: if no pair is left to score, or the two models have none in common.
    """
    other = None if against is None else _model_against(config, against, on_progress)
    ours = score(config, on_progress)
    if other is None:
        return evaluation_of(ours)
    return evaluation_of(ours, score(replace(config, model=other), on_progress))


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
    for event in evaluation_events(scoring, store, 0):
        match event:
            case EvaluationProgress(pairs=done, total_pairs=total):
                on_progress(f"scoring pairs with {config.model.path}", done, total)
            case MemoryRanOut(max_tokens=max_tokens):
                notes.append(f"memory ran out; pairs are scored at most {max_tokens} tokens at a time")
            case Evaluated(metrics=metrics, logps=logps):
                return scored(config.model.path, columns_of(store, assembly.tokenizer), logps, metrics, notes)
    raise AssertionError("an evaluation ends with its metrics")


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
