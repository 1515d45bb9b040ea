"""Evaluate: what a model gives to preference pairs, with intervals, and how that differs from another model."""

from dataclasses import replace
from pathlib import Path

from orpo_cli.config.data import DataConfig
from orpo_cli.config.evaluation import EvaluationConfig
from orpo_cli.config.schema import RunConfig
from orpo_cli.data.progress import OnProgress
from orpo_cli.errors import DataError
from orpo_cli.reporting.evaluation import write_scores
from orpo_cli.runs.assembly import Assembly
from orpo_cli.runs.scores import columns_of, scored
from orpo_cli.runs.starting_model import as_it_is, model_against
from orpo_cli.statistics.evaluation import Evaluation, Scored, evaluation_of
from orpo_cli.training.evaluation import evaluate as evaluation_events
from orpo_cli.training.events import Evaluated, EvaluationProgress, MemoryRanOut


def evaluate(config: RunConfig, wanted: EvaluationConfig, on_progress: OnProgress = lambda *_: None) -> Evaluation:
    """Score the pairs that a configuration holds out, or all of them where it holds out none.

    Args:
        config: model and data, as for a run; no weight is changed.
        wanted: the model to compare with (`auto` is what the run, or the adapter, began with), and the file that gets
            what each pair scored.
    Raises:
        DataError: if no pair is left to score, or the two models have none in common.
    """
    other = None if wanted.against is None else model_against(config.model, wanted.against, on_progress)
    ours = score(config, on_progress)
    theirs = None if other is None else score(replace(config, model=other), on_progress)
    evaluation = evaluation_of(ours) if theirs is None else evaluation_of(ours, theirs)
    if wanted.scores is not None:
        write_scores(evaluation, Path(wanted.scores))
    return evaluation


def score(config: RunConfig, on_progress: OnProgress) -> Scored:
    """Score the held-out pairs of a configuration, or all pairs where it holds out none, by its model as it is.

    Raises:
        DataError: if no pair is left to score.
    """
    config = replace(as_it_is(config, on_progress), data=_held_out(config.data))
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
