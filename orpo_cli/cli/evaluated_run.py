"""The configuration of an evaluation, or of answers: of what a run left, with the settings by which the run read."""

from collections.abc import Iterable, Iterator, Set

from omegaconf import DictConfig, OmegaConf

from orpo_cli.cli.compose import Job
from orpo_cli.cli.shorthand import key_of
from orpo_cli.config.evaluation import EvaluationConfig
from orpo_cli.config.generation import GenerationConfig
from orpo_cli.config.load import load_evaluation_config, load_generation_config
from orpo_cli.config.schema import RunConfig
from orpo_cli.errors import ConfigError
from orpo_cli.runs.folder import run_of_model

_SCORING = (
    "model.chat_template", "model.chat_template_args", "model.attn_implementation", "trainer.precision",
)  # fmt: skip
_TOKENS = ("data.max_length", "data.length_policy", "data.chat_template", "data.fold_system")
"""Keys that decide which tokens a row becomes, in whichever file it is."""

_READING = ("data.format", "data.columns", "data.first_won", "data.second_won", "data.ignore_keys", "data.later_turns")
"""Keys that decide how a row is read; other data is read in the same way unless one of its columns is typed."""

_PROMPTS = (
    "model.chat_template_args", "model.attn_implementation", "trainer.precision", "data.chat_template",
    "data.fold_system",
)  # fmt: skip
"""Keys that decide how a model sees a prompt; the chat template lies beside its weights."""


def evaluation_config(job: Job) -> tuple[RunConfig, EvaluationConfig]:
    """Return the checked configuration of an evaluation.

    Raises:
        ConfigError: if anything is wrong with it, or a run that held nothing out is to be scored on its own data.
    """
    run = run_of_model(str(job.config.model.get("path"))) if "model" in job.config else None
    if run is None:
        return load_evaluation_config(job.config)
    typed = set(map(key_of, job.overrides))
    inherited = _inherited(run.saved_config, typed)
    composed = _with_settings_of_run(job.config, run.saved_config, inherited, typed)
    config, wanted = load_evaluation_config(composed)
    if _has_own_data(typed) and not (config.data.eval_path or config.data.eval_fraction):
        raise ConfigError(f"model.path={config.model.path}: this run held no pairs out; give data=FILE to score")
    return config, wanted


def generation_config(job: Job) -> tuple[RunConfig, GenerationConfig]:
    """Return the checked configuration of answers; those of a run are asked for as it asked in training.

    Raises:
        ConfigError: if anything is wrong with it.
    """
    run = run_of_model(str(job.config.model.get("path"))) if "model" in job.config else None
    if run is None:
        return load_generation_config(job.config)
    typed = set(map(key_of, job.overrides))
    composed = _with_settings_of_run(job.config, run.saved_config, _PROMPTS, typed)
    noted = run.record.get("chat")  # whether the template was used, where the setting left it to the data
    if isinstance(noted, bool) and "data.chat_template" not in typed:
        OmegaConf.update(composed, "data.chat_template", noted)
    return load_generation_config(composed)


def _has_own_data(typed: Set[str]) -> bool:
    return typed.isdisjoint({"data", "data.path"})


def _with_settings_of_run(
    composed: DictConfig, saved: DictConfig, inherited: Iterable[str], typed: Set[str]
) -> DictConfig:
    """Return a configuration with some settings of a run, but for those that were typed.

    Args:
        inherited: the keys of these settings.
        typed: the keys that were typed.
    """
    changed = composed.copy()
    for key in inherited:
        OmegaConf.update(changed, key, OmegaConf.select(saved, key))
    for key in typed:  # also a single key inside of what is the run's
        if "." in key and OmegaConf.select(composed, key) is not None:
            OmegaConf.update(changed, key, OmegaConf.select(composed, key))
    return changed


def _inherited(saved: DictConfig, typed: Set[str]) -> Iterator[str]:
    """Yield the keys that an evaluation has of a run; with other data, how it is read and cut into tokens."""
    is_read_otherwise = any(key.startswith(("data.columns", "data.format")) for key in typed)
    of_other_data = _TOKENS if is_read_otherwise else (*_READING, *_TOKENS)
    of_data = tuple(f"data.{key}" for key in saved.data) if _has_own_data(typed) else of_other_data
    of_loss = () if "loss" in typed else ("lambda", *(f"loss.{key}" for key in saved.loss))
    yield from (key for key in (*of_data, *of_loss, *_SCORING) if key not in typed)
