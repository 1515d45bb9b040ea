"""Which tracker is which, and whether its package is there."""

from collections.abc import Callable, Sequence
from importlib import import_module
from importlib.util import find_spec

from orpo_cli.errors import ConfigError
from orpo_cli.reporting.trackers.tracker import TrackedRun, Tracker

_CLASSES = {"tensorboard": "TensorBoard", "wandb": "WeightsAndBiases", "mlflow": "MLflow", "trackio": "Trackio"}
"""Name of a tracker, of the package that it needs, and of the module here -> the class in that module."""


def check_installed(names: Sequence[str]) -> None:
    """Refuse trackers whose package is missing.

    Raises:
        ConfigError: if one is; the message has the command that installs it.
    """
    for name in names:
        found = find_spec(name)
        if found is None or found.origin is None:  # the origin of a folder that only has the name
            raise ConfigError(
                f"tracker.name={name}: the package {name} is not installed; pip install 'orpo-cli[{name}]'"
            )


def open_tracker(name: str, run: TrackedRun) -> Tracker:
    """Open a tracker for a run, which may take long."""
    opened: Callable[[TrackedRun], Tracker] = getattr(import_module(f"{__package__}.{name}"), _CLASSES[name])
    return opened(run)
