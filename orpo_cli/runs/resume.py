"""What a run may change when it is resumed, and the checkpoint it is resumed from."""

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orpo_cli.checkpoints import lookup
from orpo_cli.checkpoints.lookup import TrainingState
from orpo_cli.config.config_yaml import EARLIER_DEFAULTS, from_anywhere
from orpo_cli.config.keys import FREE_KEYS, PLACES, values_of
from orpo_cli.config.schema import BETTER, RunConfig
from orpo_cli.errors import CheckpointError, ConfigError
from orpo_cli.quoting import override_of, override_value, resume_command
from orpo_cli.runs.folder import RunFolder

_KEYS_OF_THE_FOLDER = ("resume", "output_dir")

_WORDS = (
    "halt", "skip", "warn", "stop", "continue", "packed", "padded", "auto", "cpu", "cuda", "last", "best", *BETTER
)  # fmt: skip
"""Values of the keys that may change, which are typed without quotes."""

MODEL_FILES = "model files"
"""The key of an identity that stands for the content of the model, wherever it lies."""

MAX_TOKENS = "tokens at once"
"""The condition of a run that a checkpoint keeps beside its environment."""

_RESOLVED = ("tokenizer", MODEL_FILES, "trainer.precision", "model.dropout")
"""Keys of an identity that are known only once tokenizer, model and hardware are."""


@dataclass(frozen=True)
class ResumePoint:
    """The checkpoint that a run is resumed from, its state, and what the user should know about it."""

    checkpoint: Path
    state: TrainingState
    notes: list[str]


def identity(config: RunConfig) -> dict[str, Any]:
    """Return every setting that decides what is computed, by dotted key; data counts by content, not by place."""
    flat = _flat(config)
    for key in ("model.path", "model.base", "model.chat_template"):
        if flat[key] is not None and Path(flat[key]).expanduser().exists():
            flat[key] = str(Path(flat[key]).expanduser().resolve())
    ignored = {*FREE_KEYS, *_KEYS_OF_THE_FOLDER, "data.path", "data.eval_path"}
    return {key: value for key, value in flat.items() if key not in ignored}


def _flat(config: RunConfig) -> dict[str, Any]:
    values = values_of(config)
    sections = {key: part for key, part in values.items() if isinstance(part, dict)}
    flat = {key: part for key, part in values.items() if key not in sections}
    return flat | {f"{section}.{key}": value for section, part in sections.items() for key, value in part.items()}


def find_resume_point(
    config: RunConfig, folder: RunFolder, identity: dict[str, Any], environment: dict[str, Any]
) -> ResumePoint | None:
    """Find the newest whole checkpoint; None for a new run, and for one that ended before its first checkpoint.

    Args:
        identity: what decides what is computed now.
        environment: what besides can change the last digits now.
    Raises:
        CheckpointError: if no checkpoint is whole, or a finished run has none.
        ConfigError: if a setting that decides what is computed has changed.
    """
    root = folder.checkpoints
    if config.resume is None:
        return None
    if not lookup.list_checkpoints(root):
        if (root / lookup.LATEST).exists():
            raise CheckpointError(f"{root}: {lookup.LATEST} is there and no checkpoint: they have been removed")
        if folder.is_finished:
            raise CheckpointError(
                f"{folder.path}: the run is finished and its checkpoints have been removed: it cannot be trained for "
                "longer, nor its model be written again. To train on from its model, or anew, choose another output_dir"
            )
        return None
    path, problems = lookup.latest_checkpoint(root)
    state = lookup.read_state(path)
    same_model = state.identity.get(MODEL_FILES) == identity[MODEL_FILES]
    refuse_changes(without_places(state.identity) if same_model else state.identity, identity)
    newest = lookup.list_checkpoints(root)[-1][0]
    lost = [f"{newest - state.step} steps are done again, after step {state.step}"] if newest > state.step else []
    return ResumePoint(path, state, [*problems, *lost, *_notes_on_rounding(config, state, environment)])


def check_resume_point(
    resume_point: ResumePoint,
    config: RunConfig,
    data_sha256: Mapping[str, str],
    total_steps: int,
    planned: Collection[int],
) -> None:
    """Compare a checkpoint with the data and the number of steps that the run has now.

    Args:
        planned: the numbers of steps that the run had so far.

    Raises:
        CheckpointError: if the data has changed, or the checkpoint belongs to a run of other length.
        ConfigError: if the run is to be shorter than it is already.
    """
    checkpoint, state = resume_point.checkpoint, resume_point.state
    if list(state.data_sha256.values()) != list(data_sha256.values()):
        raise CheckpointError(
            f"{checkpoint}: the data has changed: {state.data_sha256} then, {dict(data_sha256)} now; "
            "a run on other data is a new run: begin it with model.path set to this checkpoint"
        )
    if state.total_steps not in planned or state.step > state.total_steps:
        raise CheckpointError(
            f"{checkpoint}: says step {state.step} of {state.total_steps}; this run has {total_steps} steps"
        )
    if state.step > total_steps:
        raise ConfigError(
            f"{_length_in_words(config)}: {total_steps} steps, and {state.step} have been taken; "
            "a run is resumed for as many or more"
        )


def _length_in_words(config: RunConfig) -> str:
    epochs, max_steps = config.trainer.epochs, config.trainer.max_steps
    return f"trainer.epochs={epochs}" if max_steps is None else f"trainer.max_steps={max_steps}"


def refuse_changes(then: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Compare identities; a key that a checkpoint of an earlier version does not have is not compared.

    Raises:
        ConfigError: if they differ.
    """
    changed = [key for key in now if key in then and _differ(then[key], now[key])]
    changed += [key for key in then if key not in now and key not in FREE_KEYS]  # which were not always free
    if changed:
        differences = ", ".join(f"{key}={now.get(key)} (was {then[key]})" for key in changed)
        raise ConfigError(
            f"{differences}: cannot change on resume; what can: {', '.join(FREE_KEYS)}; and data.path, data.eval_path, "
            "model.path and model.base, to where the same data and model are now"
        )


def _differ(then: Any, now: Any) -> bool:
    """Return whether a setting has changed; of one with keys of its own, those that both have count."""
    if isinstance(then, Mapping) and isinstance(now, Mapping):
        return any(then[key] != now[key] for key in now if key in then)
    return bool(then != now)


def refuse_changed_settings(config: RunConfig, folder: RunFolder) -> None:
    """Compare a configuration with the one that the run in the folder began with, before anything is prepared.

    A model may have been moved; `find_resume_point` compares its content with that of the checkpoint.

    Raises:
        ConfigError: if a setting that decides what is computed has changed.
    """
    if config.resume is not None and folder.has_begun:
        then = identity(folder.config)
        has_saved = bool(lookup.list_checkpoints(folder.checkpoints)) or folder.is_finished
        refuse_changes(without_places(then) if has_saved else then, identity(config))
        if config.trainer.max_steps is not None and config.trainer.epochs != folder.config.trainer.epochs:
            raise ConfigError(
                f"trainer.epochs={config.trainer.epochs}: has no effect beside "
                f"trainer.max_steps={config.trainer.max_steps}; give that, or trainer.max_steps=null too"
            )


def notes_on_defaults(config: RunConfig, folder: RunFolder) -> list[str]:
    """Say which defaults have changed since the run in the folder began, where it keeps those of then."""
    values = _flat(config)
    kept = [key for key in EARLIER_DEFAULTS if folder.has_begun and key in folder.keys_since]
    return [
        f"{key}={json.dumps(values[key])} stays, as the run began; today another value is the default" for key in kept
    ]


def refuse_other_checkpoint(config: RunConfig, identity_then: Mapping[str, Any]) -> None:
    """Compare a configuration with the identity of a checkpoint, where neither tokenizer nor hardware is known.

    Raises:
        ConfigError: if a setting that decides what is computed differs.
    """
    now = identity(config)
    refuse_changes({key: value for key, value in identity_then.items() if key in now and key not in _RESOLVED}, now)


def without_places(identity: Mapping[str, Any]) -> dict[str, Any]:
    """Return an identity without the keys that say where data and model are."""
    return {key: value for key, value in identity.items() if key not in PLACES}


def _notes_on_rounding(config: RunConfig, state: TrainingState, environment: dict[str, Any]) -> list[str]:
    """Say what differs from the run so far and can change the last digits or draw other dropout."""
    then = state.environment | {MAX_TOKENS: state.max_tokens}
    max_tokens = config.trainer.max_tokens
    now = environment | ({MAX_TOKENS: max_tokens} if isinstance(max_tokens, int) else {})
    changed = [f"{key} {then[key]} -> {value}" for key, value in now.items() if key in then and then[key] != value]
    if not changed:
        return []
    has_dropout = config.model.dropout or getattr(config.adapter, "dropout", 0) > 0
    draws = " and to the draws of dropout" if has_dropout else ""
    return [f"the run resumes under other conditions, so it is equal to rounding{draws} only: {', '.join(changed)}"]


def changed_settings(config: RunConfig, folder: RunFolder) -> dict[str, Any]:
    """Return the settings that differ from those the run in the folder began with, as they are now."""
    then, now = _flat(folder.config), _flat(config)
    for key in PLACES:
        then[key], now[key] = from_anywhere(then[key]), from_anywhere(now[key])
    return {key: value for key, value in now.items() if key not in _KEYS_OF_THE_FOLDER and then.get(key) != value}


def resume_command_with_changes(config: RunConfig, folder: RunFolder) -> str:
    """Return the command that resumes the run in the folder with the settings of `config`, as it is typed."""
    changed = changed_settings(config, folder) if folder.has_begun else {}
    may_change = (*FREE_KEYS, *PLACES)
    overrides = [f"{key}={override_of(value, _text)}" for key, value in changed.items() if key in may_change]
    return resume_command(folder.path, overrides)


def _text(value: str) -> str:
    return value if value in _WORDS else override_value(value)
