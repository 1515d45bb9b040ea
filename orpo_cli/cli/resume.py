"""What a run may change when it goes on, and the checkpoint it goes on from."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

from orpo_cli.config.schema import RunConfig
from orpo_cli.data.preparation import tokenizer_fingerprint
from orpo_cli.data.prepare import PreparedData
from orpo_cli.errors import CheckpointError, ConfigError
from orpo_cli.training import checkpoints

FREE_KEYS = (
    "resume",
    "output_dir",
    "data.workers",
    "trainer.device",
    "trainer.processes",
    "trainer.max_tokens",
    "trainer.eval_max_tokens",
    "trainer.layout",
    "trainer.gradient_checkpointing",
    "trainer.eval_every",
    "trainer.save_every",
    "trainer.log_every",
    "trainer.keep_last",
    "trainer.sample_tokens",
)
"""Keys that may change on resume; all others decide what is computed."""


def identity(config: RunConfig, tokenizer: Any) -> dict[str, Any]:
    """Every setting that decides what is computed, by dotted key; data and tokenizer count by content, not by place."""
    values = asdict(config)
    sections = {key: part for key, part in values.items() if isinstance(part, dict)}
    flat = {key: part for key, part in values.items() if key not in sections}
    flat |= {f"{section}.{key}": value for section, part in sections.items() for key, value in part.items()}
    for key in ("model.path", "model.chat_template"):
        if flat[key] is not None and Path(flat[key]).expanduser().exists():
            flat[key] = str(Path(flat[key]).expanduser().resolve())
    ignored = {*FREE_KEYS, "data.path", "data.eval_path"}
    settings = {key.rstrip("_"): value for key, value in flat.items() if key not in ignored}
    return settings | {"tokenizer": tokenizer_fingerprint(tokenizer)}


def resumed_from(config: RunConfig, folder: Path, data: PreparedData, now: dict[str, Any]) -> Path | None:
    """The checkpoint to go on from; None for a new run, and for one that ended before its first checkpoint.

    Args:
        now: `identity` of the run that is to go on.

    Raises:
        CheckpointError: there is none that is whole, or the data has changed.
        ConfigError: a setting that decides what is computed has changed.
    """
    if config.resume is None or not checkpoints.checkpoints(folder / "checkpoints"):
        return None
    latest = checkpoints.latest_checkpoint(folder / "checkpoints")
    state = checkpoints.read_state(latest)
    if list(state.data_sha256.values()) != list(data.sha256.values()):
        raise CheckpointError(f"{latest}: the data has changed: {state.data_sha256} then, {data.sha256} now")
    changed = [key for key in {**state.identity, **now} if state.identity.get(key) != now.get(key)]
    if changed:
        differences = ", ".join(f"{key}={now.get(key)} (was {state.identity.get(key)})" for key in changed)
        raise ConfigError(f"{differences}: cannot change on resume; what can: {', '.join(FREE_KEYS)}")
    return latest
