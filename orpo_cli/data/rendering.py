"""A pair to three texts: the prompt as the model will see it, and what it is to answer.

In text mode the texts are the row's own. In chat mode they come from the tokenizer's chat template: the prompt is
rendered with the generation prompt, so training and generation see the same text; a response is what the template adds
to that when the assistant's turn is there, up to and including the first special token after the content (Phi and
ChatML templates put a newline or a second end token behind it, which nobody generates).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from orpo_cli.data.pairs import ChatPair, Message, PreferencePair, Source, TextPair
from orpo_cli.errors import DataError

_PROBE = "PROBE-OF-THE-TEMPLATE"


@dataclass(frozen=True)
class RenderedPair:
    """Texts to tokenize. `ends` tells whether the responses already carry their end-of-turn token."""

    source: Source
    prompt: str
    chosen: str
    rejected: str
    ends: bool


@dataclass(frozen=True)
class TurnEnd:
    """What a chat template puts after the assistant's content.

    Args:
        full: everything it puts there.
        kept: the part that is trained, the end-of-turn token last.
        has_token: whether there is such a token; otherwise the end-of-sequence token is added.
    """

    full: str
    kept: str
    has_token: bool


def is_chat(pairs: Sequence[PreferencePair], setting: bool | None, tokenizer: Any) -> bool:
    """Whether the chat template is used: `data.chat_template` if set, else whether the data is chat messages.

    Raises:
        DataError: the data mixes both and nothing is set, or the template is asked for and there is none.
    """
    chats = sum(isinstance(pair, ChatPair) for pair in pairs)
    if setting is None and 0 < chats < len(pairs):
        first = next(pair for pair in pairs if isinstance(pair, ChatPair) != isinstance(pairs[0], ChatPair))
        raise DataError(
            f"{first.source}: plain text and chat messages in one file ({chats} of {len(pairs)} rows are chat); "
            "data.chat_template=true renders all of them with the chat template, false none"
        )
    wanted = chats > 0 if setting is None else setting
    if wanted and not tokenizer.chat_template:
        why = "data.chat_template=true" if setting else "the data is chat messages"
        raise DataError(
            f"{why}, but the model's tokenizer has no chat template; "
            "set model.chat_template=FILE (or builtin:zephyr), or data.chat_template=false to train on plain text"
        )
    return wanted


def turn_end(tokenizer: Any) -> TurnEnd:
    """How the tokenizer's chat template ends the assistant's turn, found by rendering one.

    Raises:
        DataError: the template cannot be rendered, or drops the assistant's content.
    """
    rendered = _apply(tokenizer, [Message("user", "x"), Message("assistant", _PROBE)], "the chat template", False)
    before, found, full = rendered.rpartition(_PROBE)
    if not found or not before:
        raise DataError("the chat template does not write the assistant's message; set data.chat_template=false")
    specials = {token.content for token in tokenizer.added_tokens_decoder.values()}
    ends = [(full.find(token), token) for token in specials if token.strip() and token in full]
    if not ends:
        return TurnEnd(full, full.rstrip(), False)
    first = min(place for place, _ in ends)
    token = max((token for place, token in ends if place == first), key=len)
    return TurnEnd(full, full[: first + len(token)], True)


def render(pair: PreferencePair, chat: bool, end: TurnEnd | None, tokenizer: Any) -> RenderedPair:
    """Texts of one pair.

    Raises:
        DataError: the template refuses the conversation, or writes the prompt differently once it is answered.
    """
    if not chat:
        text = pair if isinstance(pair, TextPair) else pair.as_text()
        return RenderedPair(text.source, text.prompt, text.chosen, text.rejected, False)
    assert end is not None
    turn = pair if isinstance(pair, ChatPair) else pair.as_chat()
    prompt = _apply(tokenizer, turn.prompt, str(turn.source), True)
    chosen, rejected = (_response(tokenizer, turn, text, prompt, end) for text in (turn.chosen, turn.rejected))
    return RenderedPair(turn.source, prompt, chosen, rejected, end.has_token)


def _response(tokenizer: Any, pair: ChatPair, content: str, prompt: str, end: TurnEnd) -> str:
    whole = _apply(tokenizer, [*pair.prompt, Message("assistant", content)], str(pair.source), False)
    if not whole.startswith(prompt):
        same = next((i for i, (a, b) in enumerate(zip(whole, prompt, strict=False)) if a != b), len(whole))
        raise DataError(
            f"{pair.source}: the chat template writes the prompt differently once it is answered: "
            f"{prompt[same : same + 40]!r} becomes {whole[same : same + 40]!r}; such a template cannot be trained on. "
            "Set model.chat_template=FILE to one without this, or data.chat_template=false"
        )
    if not whole.endswith(end.full):
        raise DataError(f"{pair.source}: the chat template ends this turn in another way than others: {whole[-40:]!r}")
    return whole[len(prompt) : len(whole) - len(end.full)] + end.kept


def _apply(tokenizer: Any, messages: Sequence[Message], where: str, generation_prompt: bool) -> str:
    turns = [{"role": message.role, "content": message.content} for message in messages]
    try:
        text: str = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=generation_prompt)
    except Exception as error:  # a template is a program of someone else's, and may fail in any way
        raise DataError(f"{where}: the chat template refuses these messages: {error}") from None
    return text
