"""What a run may change when it goes on, and the checkpoint it goes on from."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from orpo_cli.checkpoints import reading
from orpo_cli.checkpoints.reading import TrainingState
from orpo_cli.cli.arguments import go_on, quoted
from orpo_cli.config.keys import FREE_KEYS, PLACES
from orpo_cli.config.saved import from_anywhere, load_saved_config
from orpo_cli.config.schema import BETTER, NoAdapterConfig, RunConfig
from orpo_cli.errors import CheckpointError, ConfigError
from orpo_cli.reporting.records import is_finished

_OF_THE_FOLDER = ("resume", "output_dir")

_CHOICES = ("halt", "skip", "warn", "stop", "continue", "packed", "padded", "auto", "cpu", "cuda", *BETTER)
"""Values of the keys that may change, which are typed without quotes."""

MODEL_FILES = "model files"
"""The part of an identity that is the content of the model, wherever it lies."""

TOKENS_AT_ONCE = "tokens at once"
"""That condition of a run which a checkpoint has beside its environment."""

_RESOLVED = ("tokenizer", MODEL_FILES, "trainer.precision")
"""Parts of an identity that are known only once tokenizer, model and hardware are."""


@dataclass(frozen=True)
class Continuation:
    """Where a run goes on, and what the user should know about that."""

    checkpoint: Path
    state: TrainingState
    notes: list[str]


def identity(config: RunConfig) -> dict[str, Any]:
    """Every setting that decides what is computed, by dotted key; data counts by content, not by place."""
    flat = _flat(config)
    for key in ("model.path", "model.chat_template"):
        if flat[key] is not None and Path(flat[key]).expanduser().exists():
            flat[key] = str(Path(flat[key]).expanduser().resolve())
    ignored = {*FREE_KEYS, *_OF_THE_FOLDER, "data.path", "data.eval_path"}
    return {key: value for key, value in flat.items() if key not in ignored}


def _flat(config: RunConfig) -> dict[str, Any]:
    values = {key.rstrip("_"): part for key, part in asdict(config).items()}
    sections = {key: part for key, part in values.items() if isinstance(part, dict)}
    flat = {key: part for key, part in values.items() if key not in sections}
    return flat | {f"{section}.{key}": value for section, part in sections.items() for key, value in part.items()}


def continuation(
    config: RunConfig, folder: Path, now: dict[str, Any], environment: dict[str, Any]
) -> Continuation | None:
    """The checkpoint to go on from; None for a new run, and for one that ended before its first checkpoint.

    Args:
        now: the identity of the run that is to go on, as `Result` has it.
        environment: as `Result` has it.

    Raises:
        CheckpointError: there is none that is whole, or none of a run that is finished.
        ConfigError: a setting that decides what is computed has changed.
    """
    root = folder / "checkpoints"
    if config.resume is None:
        return None
    if not reading.checkpoints(root):
        if (root / reading.LATEST).exists():
            raise CheckpointError(f"{root}: {reading.LATEST} is there and no checkpoint: they have been removed")
        if is_finished(folder):
            raise CheckpointError(
                f"{folder}: the run is finished; its model is not as it left it, and there is no checkpoint to write "
                "it from again. To train anew, choose another output_dir"
            )
        return None
    path, problems = reading.latest_checkpoint(root)
    state = reading.read_state(path)
    same_model = state.identity.get(MODEL_FILES) == now[MODEL_FILES]
    refuse_changes(wherever_the_model_is(state.identity) if same_model else state.identity, now)
    newest = reading.checkpoints(root)[-1][0]
    lost = [f"{newest - state.step} steps are done again, after step {state.step}"] if newest > state.step else []
    return Continuation(path, state, [*problems, *lost, *_notes_on_rounding(config, state, environment)])


def refuse_other_data(config: RunConfig, going_on: Continuation, data_sha256: Mapping[str, str]) -> None:
    """Compare the content of the input files with that of the run so far.

    Raises:
        CheckpointError: it has changed.
    """
    then = going_on.state.data_sha256
    if list(then.values()) != list(data_sha256.values()):
        whole = isinstance(config.adapter, NoAdapterConfig)
        start = "this checkpoint" if whole else "the model that this adapter has been merged into"
        raise CheckpointError(
            f"{going_on.checkpoint}: the data has changed: {then} then, {dict(data_sha256)} now; "
            f"a run on other data is a new run: begin it with model.path set to {start}"
        )


def refuse_other_length(going_on: Continuation, total_steps: int) -> None:
    """The same data and settings make the same number of steps, and no checkpoint is of a later one.

    Raises:
        CheckpointError: not so.
    """
    state = going_on.state
    if state.total_steps != total_steps or state.step > total_steps:
        raise CheckpointError(
            f"{going_on.checkpoint}: says step {state.step} of {state.total_steps}; this run has {total_steps} steps"
        )


def refuse_changes(then: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Compare identities; a key that a checkpoint of an earlier version does not have is not compared.

    Raises:
        ConfigError: they differ.
    """
    changed = [key for key in now if key in then and then[key] != now[key]]
    changed += [key for key in then if key not in now]
    if changed:
        differences = ", ".join(f"{key}={now.get(key)} (was {then[key]})" for key in changed)
        raise ConfigError(
            f"{differences}: cannot change on resume; what can: {', '.join(FREE_KEYS)}; and data.path, data.eval_path "
            "and model.path, to where the same data and model are now"
        )


def check_settings(config: RunConfig, folder: Path) -> None:
    """Compare with what the run in `folder` began with, before anything is prepared for it.

    A model may have been moved; whether it is the same, `continuation` compares with the checkpoint.

    Raises:
        ConfigError: a setting that decides what is computed has changed, be there a checkpoint or not.
    """
    if config.resume is not None and (folder / "config.yaml").is_file():
        then = identity(load_saved_config(folder))
        has_saved = bool(reading.checkpoints(folder / "checkpoints")) or is_finished(folder)
        refuse_changes(wherever_the_model_is(then) if has_saved else then, identity(config))


def wherever_the_model_is(identity: Mapping[str, Any]) -> dict[str, Any]:
    """An identity that fits one of a model that lies somewhere else, or is taken from there."""
    return {key: value for key, value in identity.items() if key not in PLACES}


def _notes_on_rounding(config: RunConfig, state: TrainingState, environment: dict[str, Any]) -> list[str]:
    """What is other than it was for the run so far, and can change the last digits or draw other dropout."""
    then = state.environment | {TOKENS_AT_ONCE: state.max_tokens}
    max_tokens = config.trainer.max_tokens
    now = environment | ({TOKENS_AT_ONCE: max_tokens} if isinstance(max_tokens, int) else {})
    changed = [f"{key} {then[key]} -> {value}" for key, value in now.items() if key in then and then[key] != value]
    if not changed:
        return []
    draws = " and to the draws of dropout" if getattr(config.adapter, "dropout", 0) > 0 else ""
    return [f"the run goes on under other conditions, so it is equal to rounding{draws} only: {', '.join(changed)}"]


def changed_settings(config: RunConfig, folder: Path) -> dict[str, Any]:
    """Settings that differ from those saved in the folder of a run, as they are now."""
    then, now = (_flat(settings) for settings in (load_saved_config(folder), config))
    for key in PLACES:
        then[key], now[key] = from_anywhere(then[key]), from_anywhere(now[key])
    return {key: value for key, value in now.items() if key not in _OF_THE_FOLDER and then.get(key) != value}


def way_on(config: RunConfig, folder: Path) -> str:
    """The command that goes on with the run in a folder as `config` has it; what is saved of that is left out."""
    changed = changed_settings(config, folder) if (folder / "config.yaml").exists() else {}
    may_change = (*FREE_KEYS, *PLACES)
    return go_on(folder, [f"{key}={_typed(value)}" for key, value in changed.items() if key in may_change])


def _typed(value: Any) -> str:
    """In Hydra's grammar."""
    if isinstance(value, list | tuple):
        return f"[{','.join(_typed(part) for part in value)}]"
    if isinstance(value, str):
        return value if value in _CHOICES else quoted(value)
    return json.dumps(value)


def refuse_other_settings(config: RunConfig, identity_then: Mapping[str, Any]) -> None:
    """Compare a configuration with the identity of a checkpoint, where neither tokenizer nor hardware is known.

    Raises:
        ConfigError: they differ in what decides what is computed.
    """
    now = identity(config)
    refuse_changes({key: value for key, value in identity_then.items() if key in now and key not in _RESOLVED}, now)
