"""What one row of a preference file is, before and after tokenization."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple


class Source(NamedTuple):
    """Where a row came from; `line` is 1-based: the line a text file's row starts on, the row of a table."""

    file: str
    line: int

    def __str__(self) -> str:
        shown = self.file if self.file.isprintable() else self.file.encode("unicode_escape").decode()
        return f"{shown}:{self.line}"


@dataclass(frozen=True)
class Message:
    """One turn of a conversation.

    Args:
        role: system, user, assistant, tool, or whatever the chat template knows.
        others: further keys that a chat template reads, such as `name`, `tool_calls`, `tool_call_id`.
    """

    role: str
    content: str
    others: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class TextPair:
    """A preference in plain text: the responses follow the prompt as they stand."""

    source: Source
    prompt: str
    chosen: str
    rejected: str
    weight: float = 1.0

    def as_chat(self) -> "ChatPair":
        """The same pair as a conversation: the prompt is the user's, the responses the assistant's."""
        return ChatPair(self.source, (Message("user", self.prompt),), self.chosen, self.rejected, self.weight)

    def as_text(self) -> "TextPair":
        """Itself."""
        return self


@dataclass(frozen=True)
class ChatPair:
    """A preference in chat messages: both responses are the assistant's next turn.

    Args:
        weight: of the pair in the objective.
        tools: descriptions of the tools the assistant may call, for the chat template.
        transcript: the pair as plain text, where the file wrote the conversation as one.
    """

    source: Source
    prompt: tuple[Message, ...]
    chosen: str
    rejected: str
    weight: float = 1.0
    tools: tuple[Any, ...] = ()
    transcript: TextPair | None = None

    def as_chat(self) -> "ChatPair":
        """Itself."""
        return self

    def as_text(self) -> TextPair:
        """The transcript, or the contents without roles, turns separated by a blank line."""
        prompt = "\n\n".join(turn.content for turn in self.prompt)
        return self.transcript or TextPair(self.source, prompt, self.chosen, self.rejected, self.weight)


PreferencePair = TextPair | ChatPair


@dataclass(frozen=True)
class TokenizedPair:
    """Token ids of one pair. The prompt is the same in both; the end-of-sequence token is part of each response."""

    prompt_ids: list[int]
    chosen_ids: list[int]
    rejected_ids: list[int]


class Lengths(NamedTuple):
    """Tokens of one pair."""

    prompt: int
    chosen: int
    rejected: int


@dataclass(frozen=True)
class Skipped:
    """A pair that a declared policy leaves out before it is tokenized.

    Args:
        reason: short class name for the ledger: `tie`, `score_gap` or `zero_weight`.
    """

    source: Source
    reason: str


@dataclass(frozen=True)
class Problem:
    """Why one row cannot be used.

    Args:
        source: file and line.
        text: what is wrong, with the place inside the row.
        reason: short class name for the ledger, such as `not_json` or `empty_field`.
    """

    source: Source
    text: str
    reason: str

    def __str__(self) -> str:
        return f"{self.source}: {self.text}"
