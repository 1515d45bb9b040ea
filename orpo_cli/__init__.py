"""Config-driven preference fine-tuning of language models with ORPO; docs/python.md describes these functions."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from orpo_cli.interface import (
        Run,
        check,
        compare,
        configure,
        evaluate,
        export,
        generate,
        open_run,
        report,
        resume,
        train,
        training_events,
    )  # fmt: skip
    from orpo_cli.training import events

__version__ = "0.2.0"
__all__ = [
    "Run",
    "check",
    "compare",
    "configure",
    "evaluate",
    "events",
    "export",
    "generate",
    "open_run",
    "report",
    "resume",
    "train",
    "training_events",
]


def __dir__() -> list[str]:
    return __all__


def __getattr__(name: str) -> Any:
    """Import a function when it is first used: `orpo --version` needs none of what they import."""
    if name == "events":
        return import_module("orpo_cli.training.events")
    if name in __all__:
        return getattr(import_module("orpo_cli.interface"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
