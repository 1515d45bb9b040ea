"""The dropout that a model's own configuration asks for, which is switched off unless `model.dropout=true`.

Which units are dropped depends on how a step is cut into micro-batches and on their layout, so that with dropout the
result depends on hardware. The dropout of LoRA (`adapter.dropout`) is another, and is asked for by its own key.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from torch import nn

Dropout = dict[str, float]
"""Probabilities above 0 by their keys in config.json, dotted where they are those of a part."""

_OTHER_HEADS = ("classifier", "summary", "seq_classif", "qa_")
"""Beginnings of keys for heads that a causal language model does not have."""


def dropout_of(config: Any) -> Dropout:
    """Return the dropout in a configuration of transformers; the same for hidden states, attention and whole layers."""
    return {f"{prefix}{key}": value for part, prefix in _parts(config) for key, value in _own(part).items()}


def switch_off_in_config(config: Any) -> None:
    """Set the dropout in a configuration to 0, before a model is built by it."""
    for part, _ in _parts(config):
        for key in _own(part):
            setattr(part, key, 0.0)


def switch_off_in_layers(model: nn.Module) -> None:
    """Set the dropout layers of a model to 0, also those that no key of its configuration speaks of."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0


def write_as_given(path: Path, dropout: Dropout) -> None:
    """Put the dropout that a model came with into the config.json that was saved of it."""
    saved = json.loads(path.read_text(encoding="utf-8"))
    for key, value in dropout.items():
        *parts, name = key.split(".")
        place = saved
        for part in parts:
            place = place.setdefault(part, {})
        place[name] = value
    path.write_text(json.dumps(saved, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _parts(config: Any, prefix: str = "") -> Iterator[tuple[Any, str]]:
    """Yield a configuration and those of its parts, each with the beginning of its dotted keys."""
    yield config, prefix
    for name in config.sub_configs:
        if (part := getattr(config, name, None)) is not None:
            yield from _parts(part, f"{prefix}{name}.")


def _own(config: Any) -> Dropout:
    found = {key: value for key, value in vars(config).items() if "drop" in key and not key.startswith(_OTHER_HEADS)}
    return {key: value for key, value in found.items() if isinstance(value, float) and 0 < value <= 1}
