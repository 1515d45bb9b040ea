"""The tracker section: the keys, with their types, limits and meanings."""

from dataclasses import dataclass
from typing import Any

from orpo_cli.config.limits import require

NO_TRACKER = "none"
TRACKERS = ("tensorboard", "wandb", "mlflow", "trackio")


@dataclass(frozen=True)
class TrackerConfig:
    """Where the metrics are shown besides, of no effect on the run.

    name: none, tensorboard, wandb, mlflow, trackio, or a list of several; each is an extra of the package
    project: project of wandb and trackio, experiment of mlflow
    run_name: name of the run there; null is made of the last two parts of its folder
    entity: user or team of wandb; null is your own default there
    uri: tracking URI of mlflow; null is what mlflow itself takes
    """

    name: Any
    project: str
    run_name: str | None
    entity: str | None
    uri: str | None

    @property
    def names(self) -> tuple[str, ...]:
        """Return the trackers of the run."""
        named = tuple(self.name) if isinstance(self.name, list | tuple) else (self.name,)
        return () if named == (NO_TRACKER,) else named

    def __post_init__(self) -> None:
        names = self.names
        is_known = all(name in TRACKERS for name in names) and len(set(names)) == len(names)
        expected = f"{NO_TRACKER}, {', '.join(TRACKERS)}, or a list of several of these, each once"
        require(is_known, "tracker.name", self.name, expected)
        require(self.project.strip() != "", "tracker.project", "''", "a name")
