"""The data section, and what `orpo check` looks for: the keys, with their types, limits and meanings."""

import math
from dataclasses import dataclass
from typing import Any

from orpo_cli.config.limits import require, require_choice
from orpo_cli.errors import ConfigError


@dataclass(frozen=True)
class ColumnsConfig:
    """The column of the data that holds each field; null reads none, and a.b is the key b inside the column a.

    prompt: column of the prompt, as text or messages
    chosen: column of the better response, as text, a message, or a whole conversation
    rejected: column of the worse response, likewise, or of a list of worse responses
    system: column of the system message's text
    tools: column of the tool descriptions for the chat template, a list of objects or its JSON
    weight: column of the row's weight in the objective, 0 or more
    responses: column of the list of responses to rank
    scores: column of a number for each of the responses; higher is better
    ranking: column of a rank for each of the responses; 1 is the best
    score_chosen: column of the better response's score, for min_score_gap
    score_rejected: column of the worse response's score
    input: column of the text that an instruction is about, for format=alpaca
    history: column of earlier turns as a list of [question, answer] or messages, for format=alpaca
    messages: column of the conversation that ends in the chosen response, for format=messages
    response_a: column of the first of two responses, for format=verdict
    response_b: column of the second
    winner: column of the verdict on the two
    tie: column that is true, or 1, for a tie
    score_a: column of the score of response_a, where scores and not a verdict say which is the better
    score_b: column of the score of response_b
    """

    prompt: str | None
    chosen: str | None
    rejected: str | None
    system: str | None
    tools: str | None
    weight: str | None
    responses: str | None
    scores: str | None
    ranking: str | None
    score_chosen: str | None
    score_rejected: str | None
    input: str | None
    history: str | None
    messages: str | None
    response_a: str | None
    response_b: str | None
    winner: str | None
    tie: str | None
    score_a: str | None
    score_b: str | None

    def __post_init__(self) -> None:
        taken: dict[str, str] = {}
        for field, column in vars(self).items():
            if field == "input":  # it and what follows it are read in other shapes than those before
                taken = {}
            if column is not None and column in taken:
                raise ConfigError(
                    f"data.columns.{field}={column}: data.columns.{taken[column]} is that column already; "
                    "set the one that you do not want to null"
                )
            taken[column] = field


_SAID = ("role", "content", "from", "value", "tool_calls", "function_call")
FORMATS = ("pairs", "conversations", "hh", "ultrafeedback", "rankings", "alpaca", "messages", "verdict")
"""Shapes of preference data; see `orpo_cli.data.shapes.shape`."""


def _paths(key: str, value: Any) -> tuple[str, ...]:
    """Return a path, or a list of paths, as a tuple of paths."""
    found = tuple(value) if isinstance(value, list | tuple) else (value,)
    valid = bool(found) and all(isinstance(path, str) and path.strip() for path in found)
    require(valid, key, "''" if value == "" else value, "a file, a folder, a pattern, a hub id, or a list of these")
    return found


@dataclass(frozen=True)
class DataConfig:
    """The preferences to train on.

    path: file (JSON, JSON Lines, CSV, TSV, Parquet, Arrow; .gz, .zst), folder, pattern, hub id, - for stdin, or a list
    mixture: how often an epoch sees the pairs of each path of a list; [2,0.5]: twice, half of them; null: once
    split: split of a dataset, on the hub or in a folder; null if it has only one
    subset: configuration name of a dataset on the hub
    revision: branch, tag or commit of a dataset on the hub
    eval_path: data that is only evaluated on; anything that path may be
    eval_split: split of eval_path, or of path if eval_path is null
    eval_fraction: share of the prompts of path held out for evaluation (0 to below 1); no prompt is on both sides
    eval_seed: seed of the choice of eval_fraction; runs with another `seed` hold out the same prompts
    format: auto (recognised in each file), pairs, conversations, hh, ultrafeedback, rankings, alpaca, messages, verdict
    columns: which column holds which field, as in data.columns.prompt=question or prompt=input.messages
    first_won: the value of columns.winner at which response_a won, or negative, positive; null for a, model_a and such
    second_won: the value at which response_b won, where it is not the other of 0 and 1; all others are ties then
    ignore_keys: further keys of messages that mean nothing to a model; they are left out and counted
    pairs: pairs made of a ranking: all, adjacent, best_vs_rest; the weights of one ranking's pairs sum to one
    min_score_gap: pairs whose scores (or ranks) differ by less are left out and counted
    later_turns: where chosen and rejected part before their last turns: error, cut (what follows their first answers)
    max_length: limit in tokens for prompt and response together; each response counts on its own
    length_policy: what happens to a pair over the limit: drop, truncate_prompt, truncate_response, error
    chat_template: auto (where the tokenizer has one, for plain text too), true, false; null: only for chat messages
    fold_system: true puts a system message before the first message of the user, for templates that know no system role
    on_bad_row: error stops at invalid rows, skip counts and lists them
    workers: processes that prepare a large file; null is one for each core
    """

    path: Any
    mixture: list[float] | None
    split: str | None
    subset: str | None
    revision: str | None
    eval_path: Any
    eval_split: str | None
    eval_fraction: float
    eval_seed: int
    format: str
    columns: ColumnsConfig
    first_won: Any
    second_won: Any
    ignore_keys: list[str]
    pairs: str
    min_score_gap: float
    later_turns: str
    max_length: int
    length_policy: str
    chat_template: Any
    fold_system: bool
    on_bad_row: str
    workers: int | None

    @property
    def paths(self) -> tuple[str, ...]:
        """Return the data to train on."""
        return _paths("data.path", self.path)

    @property
    def eval_paths(self) -> tuple[str, ...]:
        """Return the data that is only evaluated on."""
        if self.eval_path is None:
            return self.paths if self.eval_split is not None else ()
        return _paths("data.eval_path", self.eval_path)

    def __post_init__(self) -> None:
        require(0 <= self.eval_fraction < 1, "data.eval_fraction", self.eval_fraction, "0 or more and below 1")
        require(0 <= self.eval_seed < 2**32, "data.eval_seed", self.eval_seed, "0 to 4294967295")
        require(self.max_length >= 2, "data.max_length", self.max_length, "2 or more tokens")
        policies = ("drop", "truncate_prompt", "truncate_response", "error")
        require_choice("data.length_policy", self.length_policy, policies)
        require_choice("data.later_turns", self.later_turns, ("error", "cut"))
        require_choice("data.on_bad_row", self.on_bad_row, ("error", "skip"))
        require_choice("data.format", self.format, ("auto", *FORMATS))
        is_known = self.chat_template is None or self.chat_template in ("auto", True, False)
        require(is_known, "data.chat_template", self.chat_template, "auto, true, false or null")
        for key in ("first_won", "second_won"):
            value = getattr(self, key)
            expected = f"""a text or a number; brackets are text in two pairs of quotes: 'data.{key}="[[A]]"'"""
            require(not isinstance(value, list | dict), f"data.{key}", value, expected)
        for key in self.ignore_keys:
            expected = "keys beside role, content and calls, which are what a message says"
            require(key not in _SAID, "data.ignore_keys", key, expected)
        require_choice("data.pairs", self.pairs, ("all", "adjacent", "best_vs_rest"))
        gap, workers = self.min_score_gap, self.workers
        require(0 <= gap < math.inf, "data.min_score_gap", gap, "0 or more")
        require(workers is None or workers >= 1, "data.workers", workers, "1 or more, or null")
        for key in ("split", "eval_split"):
            value = getattr(self, key)
            require(value is None or "[" not in value, f"data.{key}", value, "the name of a split, without a slice")
        self._check_mixture()
        self._check_evaluation()

    def _check_mixture(self) -> None:
        times, paths = self.mixture, self.paths
        valid = times is None or (len(times) == len(paths) and all(0.001 <= number <= 1000 for number in times))
        expected = f"a number from 0.001 to 1000 for each of the {len(paths)} paths of data.path"
        require(valid, "data.mixture", times, expected)

    def _check_evaluation(self) -> None:
        if self.eval_paths and self.eval_fraction > 0:
            key = "data.eval_path" if self.eval_path is not None else "data.eval_split"
            raise ConfigError(f"{key} and data.eval_fraction are both set: give one of them")
        if self.eval_path is None and self.eval_split is not None and self.eval_split == self.split:
            raise ConfigError(f"data.eval_split={self.eval_split}: is data.split too; evaluate on another one")
        builtin = [path.startswith("builtin:") for path in self.paths]
        if any(path.startswith("builtin:") for path in self.eval_paths) and not any(builtin):
            raise ConfigError(
                f"data.path={self.path} would be evaluated on the built-in demo's pairs ({self.eval_path}): "
                f"write data={self.path}, or set data.eval_path too"
            )


FINDINGS = {
    "empty_field": "an empty or blank prompt or answer",
    "template": "rows that the chat template refuses",
    "identical": "chosen and rejected are the same",
    "contradictory": "the same two answers both ways round",
    "duplicates": "exact copies of an earlier pair",
    "near_duplicates": "nearly the words of an earlier pair",
    "repeated_answer": "one chosen answer under many prompts",
    "boundary_merges": "a token would span prompt and answer",
    "double_bos": "two beginning-of-sequence tokens",
    "double_eos": "an end token inside an answer",
    "missing_eos": "an answer without its end token",
    "refusals": "refusals or apologies mostly on one side",
    "openings": "one opening mostly on one side",
    "length_bias": "chosen is nearly always longer, or shorter",
    "scores_contradict": "chosen has the lower score",
    "swapped_columns": "chosen answers that are questions",
    "prompt_repeated": "an answer begins with the whole prompt",
    "open_thought": "an answer whose thought never ends",
    "transcript_prompt": "a prompt of Human: and Assistant: turns in one message",
    "unread_verdict": "a column that looks like a verdict is not read",
    "unread_text": "a column that looks like a part of the prompt is not read",
    "earlier_thoughts": "thoughts of earlier answers that the chat template leaves out",
    "special_tokens": "special tokens of the tokenizer in a text",
    "encoding": "damaged characters",
    "language": "chosen and rejected in different scripts",
    "shared_prompts": "prompts both trained and evaluated on",
}
"""The findings of `orpo check`; each name may stand in check.fail_on."""


@dataclass(frozen=True)
class CheckConfig:
    """What `orpo check` looks for, and what ends it with an error.

    fail_on: names of findings that are fatal, or all; with [] only invalid rows are
    near_duplicates: share of common word triples that makes two pairs near duplicates (above 0 to 1); null: never
    near_duplicate_pairs: how many of the first pairs are compared for near duplicates
    length_bias: share of pairs with chosen longer (or shorter) that is a finding (above 0.5 to 1)
    one_sided: share of pairs with a habit on one side only that is a finding (0 to 1)
    """

    fail_on: list[str]
    near_duplicates: float | None
    near_duplicate_pairs: int
    length_bias: float
    one_sided: float

    def __post_init__(self) -> None:
        for name in self.fail_on:
            known = ("all", *FINDINGS)
            require(name in known, "check.fail_on", name, "all, or names of " + ", ".join(FINDINGS))
        near = self.near_duplicates
        require(near is None or 0 < near <= 1, "check.near_duplicates", near, "a number above 0 and up to 1, or null")
        require(self.near_duplicate_pairs >= 1, "check.near_duplicate_pairs", self.near_duplicate_pairs, "1 or more")
        require(0.5 < self.length_bias <= 1, "check.length_bias", self.length_bias, "a number above 0.5 and up to 1")
        require(0 <= self.one_sided <= 1, "check.one_sided", self.one_sided, "0 to 1")
