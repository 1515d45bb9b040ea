"""The names, types, limits and meanings of the keys that `orpo generate` and `orpo chat` have beside those of a run."""

import math
from dataclasses import dataclass, fields

from orpo_cli.config.limits import require


@dataclass(frozen=True)
class GenerationConfig:
    """What a model is asked, and how its answers are chosen.

    prompt: text to answer
    prompts: file of prompts: lines of text, or rows of JSON, CSV or Parquet with prompt or messages; - reads a pipe
    against: model that answers too: a directory, hub id or run; auto is what the run or adapter began with; or none
    temperature: 0 takes the likeliest token each time; above 0 tokens are drawn, the higher the more freely
    top_p: tokens are drawn from the likeliest that have this probability together; 1 draws from all
    top_k: number of likeliest tokens that one is drawn from; null draws from all
    max_tokens: most tokens of an answer
    batch_size: prompts that are answered at once
    """

    prompt: str | None
    prompts: str | None
    against: str | None
    temperature: float
    top_p: float
    top_k: int | None
    max_tokens: int
    batch_size: int

    def __post_init__(self) -> None:
        for key in ("prompt", "prompts", "against"):
            value = getattr(self, key)
            require(value is None or value.strip() != "", key, "''", "a text, or null")
        require(self.prompt is None or self.prompts is None, "prompt", self.prompt, "no prompts=FILE beside it")
        require(0 <= self.temperature < math.inf, "temperature", self.temperature, "a number, 0 or more")
        require(0 < self.top_p <= 1, "top_p", self.top_p, "above 0 and at most 1")
        require(self.top_k is None or self.top_k >= 1, "top_k", self.top_k, "1 or more, or null")
        for key in ("max_tokens", "batch_size"):
            require(getattr(self, key) >= 1, key, getattr(self, key), "1 or more")

    @property
    def compared_with(self) -> str | None:
        """`against`, or None where no other model is to answer."""
        return None if self.against == "none" else self.against


GENERATION_KEYS = tuple(field.name for field in fields(GenerationConfig))
"""The root keys that only these commands have."""
