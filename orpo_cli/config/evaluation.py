"""The names, types, limits and meanings of the keys that `orpo evaluate` has besides those of a run."""

from dataclasses import dataclass, fields

from orpo_cli.config.limits import require


@dataclass(frozen=True)
class EvaluationConfig:
    """What `orpo evaluate` compares a model with, and what it writes.

    against: model to compare with: a directory, hub id or run; auto is what the run or adapter began with; null is none
    scores: Parquet file that gets what each pair scored; null writes none
    """

    against: str | None
    scores: str | None

    def __post_init__(self) -> None:
        require(self.against is None or self.against.strip() != "", "against", "''", "a model, auto, or null")
        is_parquet = self.scores is None or self.scores.endswith(".parquet")
        require(is_parquet, "scores", self.scores, "the name of a .parquet file, or null")


EVALUATION_KEYS = tuple(field.name for field in fields(EvaluationConfig))
"""The root keys that only an evaluation has."""
