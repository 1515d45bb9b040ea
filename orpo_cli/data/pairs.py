"""What one row of a preference file is, before and after tokenization."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Source:
    """Where a row came from; `line` is 1-based, the line its object starts on."""

    file: str
    line: int

    def __str__(self) -> str:
        return f"{self.file}:{self.line}"


@dataclass(frozen=True)
class Message:
    """One turn of a conversation; `role` is system, user, assistant or whatever the chat template knows."""

    role: str
    content: str


@dataclass(frozen=True)
class TextPair:
    """A preference in plain text: the responses follow the prompt as they stand."""

    source: Source
    prompt: str
    chosen: str
    rejected: str

    def as_chat(self) -> "ChatPair":
        """The same pair as a conversation: the prompt is the user's, the responses the assistant's."""
        return ChatPair(self.source, (Message("user", self.prompt),), self.chosen, self.rejected)


@dataclass(frozen=True)
class ChatPair:
    """A preference in chat messages: both responses are the assistant's next turn."""

    source: Source
    prompt: tuple[Message, ...]
    chosen: str
    rejected: str

    def as_text(self) -> TextPair:
        """The contents without roles, turns separated by a blank line."""
        return TextPair(self.source, "\n\n".join(turn.content for turn in self.prompt), self.chosen, self.rejected)


PreferencePair = TextPair | ChatPair


@dataclass(frozen=True)
class TokenizedPair:
    """Token ids of one pair. The prompt is the same in both; the end-of-sequence token is part of each response."""

    prompt_ids: list[int]
    chosen_ids: list[int]
    rejected_ids: list[int]


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
