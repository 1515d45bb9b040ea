"""A pair to three texts: the prompt as the model will see it, and what it is to answer.

In text mode the texts are the row's own. In chat mode they come from the tokenizer's chat template: the prompt is
rendered with the generation prompt, so training and generation see the same text; a response is what the template adds
to that when the assistant's turn is there, up to and including the first special token after the content (Phi and
ChatML templates put a newline or a second end token behind it, which nobody generates).

A chat template is a program of someone else's. It runs in the sandbox of transformers, and here with a limit on its
time, its memory and the length of what it writes. A single operation inside Python's own code, such as sorting a
hundred million numbers, cannot be interrupted; it ends by itself.
"""

import contextlib
import resource
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orpo_cli.data.pairs import ChatPair, PreferencePair, Problem, Source
from orpo_cli.errors import DataError

RENDER_SECONDS = 20
"""Time for the conversations of one pair; a template that takes longer is broken, or hostile."""

RENDER_BYTES = 1 << 30
"""Memory that a template may take for the conversations of one pair."""

_ALWAYS_ALLOWED = 100_000
_GROWTH = 20
"""A template may write so many characters, or so many times what it is given."""

_ASKED, _ANSWERED = "PROBE-OF-THE-USER", "PROBE-OF-THE-ASSISTANT"
_WRITTEN = ("system", "user", "assistant")
"""Roles whose messages stand in a prompt word for word, but that templates leave out an earlier answer's thinking."""

_ANOTHER_TEMPLATE = "set model.chat_template=FILE to one that does"
_SHOWN = 300


@dataclass(frozen=True)
class RenderedPair:
    """Texts to tokenize.

    Args:
        ends: whether the responses already carry their end-of-turn token.
        contents: the data's own texts in these, without what the template wrote.
    """

    source: Source
    prompt: str
    chosen: str
    rejected: str
    ends: bool
    contents: tuple[str, ...]


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


def is_chat(first: PreferencePair, setting: bool | None, tokenizer: Any) -> bool:
    """Whether the chat template is used: `data.chat_template` if set, else whether the data is chat messages.

    Args:
        first: the first pair of the data, whose kind all others share where nothing is set.
    Raises:
        DataError: the template is needed, and there is none.
    """
    wanted = isinstance(first, ChatPair) if setting is None else setting
    if wanted and not tokenizer.chat_template:
        why = "data.chat_template=true" if setting else "the data is chat messages"
        raise DataError(
            f"{why}, but the model's tokenizer has no chat template; "
            "set model.chat_template=FILE (or builtin:zephyr), or data.chat_template=false to train on plain text"
        )
    return wanted


def refuse_other_kind(pair: PreferencePair, chat: bool) -> None:
    """Raise DataError where a pair is plain text among chat messages, or a message among plain text."""
    if isinstance(pair, ChatPair) != chat:
        kinds = ("plain text", "chat messages")
        raise DataError(
            f"{pair.source}: {kinds[not chat]}, but the rows before are {kinds[chat]}; "
            "data.chat_template=true renders all of them with the chat template, false none"
        )


def turn_end(tokenizer: Any) -> TurnEnd:
    """How the tokenizer's chat template ends the assistant's turn, found by rendering one.

    Raises:
        DataError: the template cannot be rendered, drops a message, or writes something else each time.
    """
    turns = [{"role": "user", "content": _ASKED}, {"role": "assistant", "content": _ANSWERED}]
    try:
        with _limited():
            rendered, again = (_written(tokenizer, [turns], (), False)[0] for _ in range(2))
    except _TemplateError as error:
        raise DataError(str(error)) from None
    if rendered != again:
        raise DataError(
            f"the chat template writes the same messages differently each time: {_difference(rendered, again)}; "
            "set model.chat_template=FILE to one that does not"
        )
    before, found, full = rendered.rpartition(_ANSWERED)
    if not found or not before:
        raise DataError("the chat template does not write the assistant's message; set data.chat_template=false")
    if _ASKED not in before:
        raise DataError(f"the chat template does not write the user's message; {_ANOTHER_TEMPLATE}")
    specials = {token.content for token in tokenizer.added_tokens_decoder.values()}
    ends = [(full.find(token), token) for token in specials if token.strip() and token in full]
    if not ends:
        return TurnEnd(full, full.rstrip(), False)
    first = min(place for place, _ in ends)
    token = max((token for place, token in ends if place == first), key=len)
    return TurnEnd(full, full[: first + len(token)], True)


class _TemplateError(ValueError):
    """A conversation cannot be written as the chat template writes it."""


def render(pair: PreferencePair, chat: bool, end: TurnEnd | None, tokenizer: Any) -> RenderedPair | Problem:
    """Texts of one pair; a problem where the template refuses it, or writes the prompt differently once answered."""
    try:
        if not chat:
            return _in_text(pair)
        assert end is not None
        with _limited():
            return _in_chat(pair.as_chat(), end, tokenizer)
    except _TemplateError as error:
        return Problem(pair.source, str(error), "template")


def _in_text(pair: PreferencePair) -> RenderedPair:
    if isinstance(pair, ChatPair) and (pair.tools or any(turn.others for turn in pair.prompt)):
        raise _TemplateError("tools and their calls can only be written by a chat template")
    text = pair.as_text()
    contents = (text.prompt, text.chosen, text.rejected)
    return RenderedPair(text.source, *contents, False, contents)


def _in_chat(pair: ChatPair, end: TurnEnd, tokenizer: Any) -> RenderedPair:
    turns = [{"role": turn.role, "content": turn.content, **turn.others} for turn in pair.prompt]
    (prompt,) = _written(tokenizer, [turns], pair.tools, True)
    for turn in pair.prompt:
        content = turn.content.rpartition("</think>")[2] if turn.role == "assistant" else turn.content
        if turn.role in _WRITTEN and not _holds(prompt, content):
            raise _TemplateError(f"the chat template does not write the {turn.role} message; {_ANOTHER_TEMPLATE}")
    if pair.tools and [prompt] == _written(tokenizer, [turns], (), True):
        raise _TemplateError(
            f"the chat template does not write the tools; {_ANOTHER_TEMPLATE}, "
            "or data.columns.tools=null to train without them"
        )
    answered = [[*turns, {"role": "assistant", "content": text}] for text in (pair.chosen, pair.rejected)]
    wholes = _written(tokenizer, answered, pair.tools, False)
    chosen = _response(wholes[0], prompt, pair.chosen, end)
    rejected = _response(wholes[1], prompt, pair.rejected, end)
    contents = (*(turn.content for turn in pair.prompt), pair.chosen, pair.rejected)
    return RenderedPair(pair.source, prompt, chosen, rejected, end.has_token, contents)


def _response(whole: str, prompt: str, answer: str, end: TurnEnd) -> str:
    if not whole.startswith(prompt):
        raise _TemplateError(
            "the chat template writes the prompt differently once it is answered: "
            f"{_difference(prompt, whole)}; such a template cannot be trained on. "
            "Set model.chat_template=FILE to one without this, or data.chat_template=false"
        )
    if not whole.endswith(end.full):
        raise _TemplateError(f"the chat template ends this turn in another way than others: {whole[-40:]!r}")
    text = whole[len(prompt) : len(whole) - len(end.full)]
    if not _holds(text, answer):
        raise _TemplateError(
            f"the chat template leaves out a part of the response: {answer[:40]!r} becomes {text[:40]!r}; "
            "set model.chat_template=FILE to one that does not"
        )
    return text + end.kept


def _holds(written: str, content: str) -> bool:
    """Whether a text holds another whole, blanks aside."""
    return content.strip() in written or "".join(content.split()) in "".join(written.split())


def _difference(first: str, second: str) -> str:
    """Both texts from where they differ."""
    shorter = min(len(first), len(second))
    same = next((place for place in range(shorter) if first[place] != second[place]), shorter)
    return f"{first[same : same + 40]!r} becomes {second[same : same + 40]!r}"


def _written(
    tokenizer: Any, conversations: list[list[dict[str, Any]]], tools: Sequence[Any], generation_prompt: bool
) -> list[str]:
    """Each conversation as the chat template writes it."""
    try:
        texts: list[str] = tokenizer.apply_chat_template(
            conversations, tools=list(tools) or None, tokenize=False, add_generation_prompt=generation_prompt
        )
    except (TimeoutError, MemoryError):
        raise
    except Exception as error:  # it may fail in any way
        raise _TemplateError(f"the chat template refuses these messages: {_one_line(str(error))}") from None
    for text, turns in zip(texts, conversations, strict=True):
        if len(text) > _ALWAYS_ALLOWED and len(text) > _GROWTH * len(repr((turns, tools))):
            raise _TemplateError(f"the chat template makes {len(text):,} characters of a short conversation")
    return texts


def _one_line(text: str) -> str:
    """What a template says, on one line and without what a terminal would obey."""
    words = "".join(character if character.isprintable() else " " for character in text[:_SHOWN])
    return " ".join(words.split()) + ("..." if len(text) > _SHOWN else "")


@contextlib.contextmanager
def _limited() -> Iterator[None]:
    """The limits of one pair."""
    try:
        with time_limit(RENDER_SECONDS), memory_limit(RENDER_BYTES):
            yield
    except TimeoutError:
        raise _TemplateError(f"the chat template takes longer than {RENDER_SECONDS} seconds") from None
    except MemoryError:
        raise _TemplateError(f"the chat template takes more than {RENDER_BYTES >> 20:,} MB of memory") from None


@contextlib.contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raise TimeoutError after some seconds, where the system can interrupt: in a main thread, on POSIX."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(*_: Any) -> None:
        raise TimeoutError(f"it takes longer than {seconds} seconds")

    started = time.monotonic()
    before = signal.signal(signal.SIGALRM, stop)
    left, interval = signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before or signal.SIG_DFL)
        if left:  # somebody else's alarm goes on where it was
            signal.setitimer(signal.ITIMER_REAL, max(0.001, left - (time.monotonic() - started)), interval)


_STATM = Path("/proc/self/statm")


@contextlib.contextmanager
def memory_limit(size: int) -> Iterator[None]:
    """Raise MemoryError where the process takes so many bytes more, where the system tells its size: on Linux."""
    try:
        with _STATM.open("rb", buffering=0) as stream:
            taken = int(stream.read(40).split()[0]) * resource.getpagesize()
    except OSError:
        yield
        return
    before = resource.getrlimit(resource.RLIMIT_AS)
    lowest = min([taken + size, *(limit for limit in before if limit != resource.RLIM_INFINITY)])
    resource.setrlimit(resource.RLIMIT_AS, (lowest, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)
