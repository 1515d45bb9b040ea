"""Add `adapter=saved` where `model=` names a saved adapter and no `adapter=` was typed.

It is only the option: runs/starting_model.py finds the adapter and its base, runs/assembly.py trains it further.
"""

import os
from collections.abc import Sequence
from pathlib import Path

from orpo_cli.cli.shorthand import alternatives, key_of
from orpo_cli.config.schema import AUTO
from orpo_cli.errors import ConfigError
from orpo_cli.models.adapter_files import holds_adapter
from orpo_cli.runs.folder import model_place


def with_saved_adapter(words: Sequence[str]) -> list[str]:
    """Return the overrides, with `adapter=saved` where model.path is an adapter, which is then trained further.

    Raises:
        ConfigError: if a sweep has adapters and whole models.
    """
    typed = {key_of(word): word.partition("=")[2] for word in words}
    if "model.path" not in typed or "adapter" in typed or typed.get("resume", AUTO) not in (AUTO, "null"):
        return list(words)
    paths = alternatives(typed["model.path"])
    adapters = [path for path in paths if _is_adapter(path)]
    if 0 < len(adapters) < len(paths):
        raise ConfigError(
            f"model.path={typed['model.path']}: {adapters[0]} is an adapter, others are whole models; "
            "choose for all of them: adapter=lora, or sweep over one kind"
        )
    return [*words, "adapter=saved"] if adapters else list(words)


def _is_adapter(path: str) -> bool:
    return holds_adapter(Path(os.path.expanduser(model_place(path))))  # noqa: PTH111 - a `~` of nobody is a file name
