"""Define what a row of a preference file is, before and after tokenization, and why it cannot be used."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from orpo_cli.quoting import shortened


class Source(NamedTuple):
    """Name the file and the place that a row came from.

    Args:
        line: the 1-based line that a row of text starts on, or the 1-based number of a table's row.
        row: the 1-based number of a row that may share its line, as in a JSON array; else 0.
    """

    file: str
    line: int
    row: int = 0

    def __str__(self) -> str:
        shown = self.file if self.file.isprintable() else self.file.encode("unicode_escape").decode()
        return f"{shown}:{self.line}" + (f" row {self.row}" if self.row else "")


@dataclass(frozen=True)
class Row:
    """Hold one value of a file, of any JSON type, and where it starts."""

    source: Source
    value: Any


@dataclass(frozen=True)
class Message:
    """Hold one turn of a conversation.

    Args:
        role: system, developer, user, assistant, tool, or another role that the chat template knows.
        others: further keys that a chat template reads: `name`, `tool_calls`, `tool_call_id`, `reasoning_content`.
    """

    role: str
    content: str
    others: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class TextPair:
    """A preference in plain text, where the responses directly follow the prompt."""

    source: Source
    prompt: str
    chosen: str
    rejected: str
    weight: float = 1.0

    def as_chat(self) -> "ChatPair":
        """Return the same pair as one turn of the user and the assistant's responses to it."""
        chosen, rejected = (Message("assistant", text) for text in (self.chosen, self.rejected))
        return ChatPair(self.source, (Message("user", self.prompt),), chosen, rejected, self.weight)

    def as_text(self) -> "TextPair":
        """Return the pair itself."""
        return self


@dataclass(frozen=True)
class ChatPair:
    """A preference in chat messages, where each response is the assistant's next turn.

    Args:
        weight: the weight of the pair in the objective.
        tools: descriptions of the tools the assistant may call, for the chat template.
        transcript: the pair as plain text, where the file wrote the conversation as one text.
        is_cut: whether turns behind the answers were left out.
    """

    source: Source
    prompt: tuple[Message, ...]
    chosen: Message
    rejected: Message
    weight: float = 1.0
    tools: tuple[Any, ...] = ()
    transcript: TextPair | None = None
    is_cut: bool = False

    def as_chat(self) -> "ChatPair":
        """Return the pair itself."""
        return self

    def as_text(self) -> TextPair:
        """Return the transcript, or else the contents without roles, a blank line between turns."""
        prompt = "\n\n".join(turn.content for turn in self.prompt)
        return self.transcript or TextPair(self.source, prompt, self.chosen.content, self.rejected.content, self.weight)


PreferencePair = TextPair | ChatPair


class Lengths(NamedTuple):
    """Hold the numbers of tokens of one pair."""

    prompt: int
    chosen: int
    rejected: int


@dataclass(frozen=True)
class TokenizedPair:
    """Hold the token ids of one pair; the end-of-sequence token is part of each response."""

    prompt_ids: list[int]
    chosen_ids: list[int]
    rejected_ids: list[int]

    @property
    def lengths(self) -> Lengths:
        """Return the numbers of tokens."""
        return Lengths(len(self.prompt_ids), len(self.chosen_ids), len(self.rejected_ids))


@dataclass(frozen=True)
class Skipped:
    """A pair that a setting or its weight leaves out before it is tokenized.

    Args:
        reason: the class in the ledger: `tie`, `unscored`, `score_gap` or `zero_weight`.
    """

    source: Source
    reason: str


@dataclass(frozen=True)
class Problem:
    """Say why one row cannot be used.

    Args:
        text: what is wrong, with the place inside the row.
        reason: the class in the ledger, such as `not_json` or `empty_field`.
        keys: the keys of messages that would be lost, where that is the problem.
    """

    source: Source
    text: str
    reason: str
    keys: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"{self.source}: {self.text}"


class ProblemError(ValueError):
    """Raised while a row is read, where it has a problem, before the place of the row is known."""

    def __init__(self, text: str, reason: str) -> None:
        super().__init__(text)
        self.reason = reason

    def problem(self, source: Source) -> Problem:
        """Return the problem of the row that came from `source`."""
        return Problem(source, str(self), self.reason)


class LostKeysError(ProblemError):
    """Raised at a message with keys that nothing reads."""

    def __init__(self, place: str, keys: Sequence[str]) -> None:
        super().__init__(f"{place}: keys that would be lost", "wrong_type")
        self.keys = keys


def lost_keys(source: Source, keys: Iterable[str]) -> Problem:
    """Return the problem of rows whose messages have keys that nothing reads, with the setting that accepts them."""
    names = tuple(dict.fromkeys(keys))
    shown = ",".join(name if re.fullmatch(r"[\w-]+", name) else shortened(name) for name in names)
    text = (
        "beside role and content, messages have keys that would be lost; where they mean nothing to a model, "
        f"data.ignore_keys=[{shown}] leaves them out"
    )
    return Problem(source, text, "wrong_type", names)
