"""Put a prompt and two responses together: as plain text where all are texts, else as messages."""

from collections.abc import Iterable
from typing import Any

from orpo_cli.data.pairs import ChatPair, Message, PreferencePair, Source, TextPair
from orpo_cli.data.shapes import messages
from orpo_cli.data.shapes.shape import Fields, Shape

Prompt = str | tuple[Message, ...]


def prompt_of(fields: Fields, shape: Shape, prompt: Any, responses: Iterable[Any]) -> Prompt:
    """Return the text of a prompt to which all responses are texts too, else its turns.

    Raises:
        ProblemError: if the prompt is neither text nor messages.
    """
    turns = messages.prompt_messages(fields.column("prompt"), prompt, shape.ignored)
    return prompt if isinstance(prompt, str) and not any(map(_holds_messages, responses)) else turns


def _holds_messages(value: Any) -> bool:
    return messages.is_messages(value) or (isinstance(value, list) and any(map(messages.is_messages, value)))


def text_or_chat(source: Source, prompt: Prompt, chosen: Message, rejected: Message) -> PreferencePair:
    """Return a pair of plain text where the prompt is one, else of messages."""
    if isinstance(prompt, str):
        return TextPair(source, prompt, chosen.content, rejected.content)
    return ChatPair(source, prompt, chosen, rejected)
