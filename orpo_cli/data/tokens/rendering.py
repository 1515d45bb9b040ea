"""Render a pair as three texts: the prompt as the model will see it, and the two responses it is to compare.

In text mode the texts are the row's own. In chat mode they come from the tokenizer's chat template: the prompt is
rendered with the generation prompt, so that training and generation see the same text; a response is what the template
adds to that when the assistant's turn is there, up to and including the first special token after the content (Phi and
ChatML templates put a newline or a second end token behind it, which no model generates).

A chat template is a program from somebody else. It runs in the sandbox of transformers, and here with limits on its
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

from orpo_cli.data.pairs import ChatPair, PreferencePair, Problem, ProblemError, Source
from orpo_cli.errors import DataError
from orpo_cli.quoting import escaped

RENDER_SECONDS = 20
"""The time for the conversations of one pair; a template that takes longer is broken, or hostile."""

RENDER_BYTES = 1 << 30
"""The memory that a template may take for the conversations of one pair."""

_STATM = Path("/proc/self/statm")
_ALWAYS_ALLOWED = 100_000
_GROWTH = 20
"""A template may write so many characters, or so many times as much as it is given."""

_ASKED, _ANSWERED = "PROBE-OF-THE-USER", "PROBE-OF-THE-ASSISTANT"
_VERBATIM_ROLES = ("system", "user", "assistant")
"""Roles whose messages have to stand in the prompt, except for the thinking of an earlier answer."""

_ANOTHER_TEMPLATE = "set model.chat_template=FILE to one that does"
_SHOWN = 300


@dataclass(frozen=True)
class RenderedPair:
    """Hold the texts of a pair.

    Args:
        weight: the weight of the pair in the objective.
        ends: whether the responses already end in their end-of-turn token.
        contents: the data's own texts in these, without what the template wrote.
    """

    source: Source
    weight: float
    prompt: str
    chosen: str
    rejected: str
    ends: bool
    contents: tuple[str, ...]


@dataclass(frozen=True)
class TurnEnd:
    """Hold what a chat template writes after the assistant's content.

    Args:
        full: everything it writes there.
        kept: the part that is trained, the end-of-turn token last.
        has_token: whether there is such a token; otherwise the end-of-sequence token is added.
    """

    full: str
    kept: str
    has_token: bool


def is_chat(first: PreferencePair, setting: bool | None, tokenizer: Any) -> bool:
    """Return whether the chat template is used: as `data.chat_template` says, else for data that is chat messages.

    Args:
        first: the first pair of the data, whose kind all others share where nothing is set.
    Raises:
        DataError: if the template is needed and the tokenizer has none.
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
    """Raise DataError if a pair is plain text among chat messages, or chat messages among plain text."""
    if isinstance(pair, ChatPair) != chat:
        kinds = ("plain text", "chat messages")
        raise DataError(
            f"{pair.source}: {kinds[not chat]}, but the rows before are {kinds[chat]}; "
            "data.chat_template=true renders all of them with the chat template, false none"
        )


def turn_end(tokenizer: Any) -> TurnEnd:
    """Find out how the tokenizer's chat template ends the assistant's turn, by rendering one.

    Raises:
        DataError: if the template cannot be rendered, drops a message, or writes something else each time.
    """
    turns = [{"role": "user", "content": _ASKED}, {"role": "assistant", "content": _ANSWERED}]
    try:
        with limited_time(RENDER_SECONDS), limited_memory(RENDER_BYTES):
            rendered, again = (_written(tokenizer, [turns], (), False)[0] for _ in range(2))
    except ProblemError as error:
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


def _refused(text: str) -> ProblemError:
    return ProblemError(text, "template")


def render(pair: PreferencePair, end: TurnEnd | None, tokenizer: Any) -> RenderedPair | Problem:
    """Return the texts of one pair, or the problem that the chat template has with it.

    Args:
        end: how the template ends the assistant's turn; None where the template is not used.
    """
    try:
        if end is None:
            return _in_text(pair)
        with limited_time(RENDER_SECONDS), limited_memory(RENDER_BYTES):
            return _in_chat(pair.as_chat(), end, tokenizer)
    except ProblemError as error:
        return error.problem(pair.source)


def _in_text(pair: PreferencePair) -> RenderedPair:
    if isinstance(pair, ChatPair) and (pair.tools or any(turn.others for turn in pair.prompt)):
        raise _refused("tools and their calls can only be written by a chat template")
    text = pair.as_text()
    contents = (text.prompt, text.chosen, text.rejected)
    return RenderedPair(text.source, pair.weight, *contents, False, contents)


def _in_chat(pair: ChatPair, end: TurnEnd, tokenizer: Any) -> RenderedPair:
    turns = [{"role": turn.role, "content": turn.content, **turn.others} for turn in pair.prompt]
    (prompt,) = _written(tokenizer, [turns], pair.tools, True)
    for turn in pair.prompt:
        content = turn.content.rpartition("</think>")[2] if turn.role == "assistant" else turn.content
        if turn.role in _VERBATIM_ROLES and not _holds(prompt, content):
            raise _refused(f"the chat template does not write the {turn.role} message; {_ANOTHER_TEMPLATE}")
    if pair.tools and [prompt] == _written(tokenizer, [turns], (), True):
        raise _refused(
            f"the chat template does not write the tools; {_ANOTHER_TEMPLATE}, "
            "or data.columns.tools=null to train without them"
        )
    answered = [[*turns, {"role": "assistant", "content": text}] for text in (pair.chosen, pair.rejected)]
    wholes = _written(tokenizer, answered, pair.tools, False)
    chosen = _response(wholes[0], prompt, pair.chosen, end)
    rejected = _response(wholes[1], prompt, pair.rejected, end)
    contents = (*(turn.content for turn in pair.prompt), pair.chosen, pair.rejected)
    return RenderedPair(pair.source, pair.weight, prompt, chosen, rejected, end.has_token, contents)


def _response(whole: str, prompt: str, answer: str, end: TurnEnd) -> str:
    if not whole.startswith(prompt):
        raise _refused(
            "the chat template writes the prompt differently once it is answered: "
            f"{_difference(prompt, whole)}; such a template cannot be trained on. "
            "Set model.chat_template=FILE to one without this, or data.chat_template=false"
        )
    if not whole.endswith(end.full):
        raise _refused(f"the chat template ends this turn in another way than others: {whole[-40:]!r}")
    text = whole[len(prompt) : len(whole) - len(end.full)]
    if not _holds(text, answer):
        raise _refused(
            f"the chat template leaves out a part of the response: {answer[:40]!r} becomes {text[:40]!r}; "
            "set model.chat_template=FILE to one that does not"
        )
    return text + end.kept


def _holds(written: str, content: str) -> bool:
    """Return whether a text holds another whole, blanks aside."""
    return content.strip() in written or "".join(content.split()) in "".join(written.split())


def _difference(first: str, second: str) -> str:
    """Show two texts from where they differ."""
    shorter = min(len(first), len(second))
    same = next((place for place in range(shorter) if first[place] != second[place]), shorter)
    return f"{first[same : same + 40]!r} becomes {second[same : same + 40]!r}"


def _written(
    tokenizer: Any, conversations: list[list[dict[str, Any]]], tools: Sequence[Any], generation_prompt: bool
) -> list[str]:
    """Return each conversation as the chat template writes it."""
    try:
        texts: list[str] = tokenizer.apply_chat_template(
            conversations, tools=list(tools) or None, tokenize=False, add_generation_prompt=generation_prompt
        )
    except (ProblemError, MemoryError):
        raise
    except Exception as error:  # a template may fail in any way
        said = escaped(" ".join(str(error).split())[:_SHOWN])
        raise _refused(f"the chat template refuses these messages: {said}") from None
    for text, turns in zip(texts, conversations, strict=True):
        if len(text) > _ALWAYS_ALLOWED and len(text) > _GROWTH * len(repr((turns, tools))):
            raise _refused(f"the chat template makes {len(text):,} characters of a short conversation")
    return texts


@contextlib.contextmanager
def limited_time(seconds: float) -> Iterator[None]:
    """Raise ProblemError in a block that takes longer; only a main thread can be interrupted."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(*_: Any) -> None:
        raise _refused(f"the chat template takes longer than {seconds} seconds")

    started = time.monotonic()
    before = signal.signal(signal.SIGALRM, stop)
    left, interval = signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before or signal.SIG_DFL)
        if left:  # an alarm that was set before is still due
            signal.setitimer(signal.ITIMER_REAL, max(0.001, left - (time.monotonic() - started)), interval)


@contextlib.contextmanager
def limited_memory(size: int) -> Iterator[None]:
    """Raise ProblemError in a block that takes so many bytes more, on Linux; the limit is of the whole process.

    It is set from the main thread only, since other threads may be those of a notebook or a program of the user.
    """
    if threading.current_thread() is not threading.main_thread() or not _STATM.exists():
        yield
        return
    taken = int(_STATM.read_text(encoding="ascii").split()[0]) * resource.getpagesize()
    before = resource.getrlimit(resource.RLIMIT_AS)
    lowest = min([taken + size, *(limit for limit in before if limit != resource.RLIM_INFINITY)])
    resource.setrlimit(resource.RLIMIT_AS, (lowest, before[1]))
    try:
        yield
    except MemoryError:
        raise _refused(f"the chat template takes more than {size >> 20:,} MB of memory") from None
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)
