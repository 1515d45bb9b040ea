"""Write conversations with the chat template of a tokenizer.

A chat template is a program from somebody else. It runs in the sandbox of transformers, and here with limits on its
time, its memory and the length of what it writes. Many leave out what they do not know, without an error: another role,
a call of a tool, a thought. rendering.py refuses such rows, with the marks of marks.py.
"""

import re
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from orpo_cli.data.pairs import Message, ProblemError
from orpo_cli.data.tokens.marks import Marks, PlaceInTalk, structure
from orpo_cli.data.tokens.template_limits import limited_memory, limited_time, template_problem
from orpo_cli.errors import ConfigError, DataError
from orpo_cli.quoting import escaped

RENDER_SECONDS = 20
"""The time for the conversations of one pair; a template that takes longer is broken, or hostile."""

RENDER_BYTES = 1 << 30
"""The memory that a template may take for the conversations of one pair."""

ANOTHER_TEMPLATE = "set model.chat_template=FILE to one that does"
_ALWAYS_ALLOWED = 100_000
_GROWTH = 20
"""A template may write so many characters, or so many times as much as it is given."""

_ASKED, _ANSWERED = "PROBE-OF-THE-USER", "PROBE-OF-THE-ASSISTANT"
_SHOWN = 300
_GIVEN = ("messages", "conversation", "tools", "add_generation_prompt", "tokenize", "chat_template", "documents")


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


class ChatTemplate:
    """The chat template of a tokenizer, and how it ends the assistant's turn.

    Args:
        tokenizer: a tokenizer of transformers.
        arguments: what the template is told besides the messages.
        fold_system: whether a system message is put before the first message of the user.
    Raises:
        ConfigError: if the template has no use for an argument.
        DataError: if the template cannot be rendered, drops the probe's messages, or writes something else each time.
    """

    def __init__(self, tokenizer: Any, arguments: Mapping[str, Any] | None = None, fold_system: bool = False) -> None:
        self._tokenizer = tokenizer
        self._arguments = dict(arguments or {})
        for name in self._arguments:
            if name in _GIVEN or not re.search(rf"\b{re.escape(name)}\b", str(tokenizer.chat_template)):
                why = "is given by the data" if name in _GIVEN else "stands nowhere in the chat template"
                raise ConfigError(f"model.chat_template_args: {name} {why}")
        self._fold_system = fold_system
        self._knows_developer = "developer" in str(tokenizer.chat_template)
        self._left_out: dict[Hashable, tuple[PlaceInTalk, ...]] = {}
        self.end = self._turn_end()

    @property
    def thought_switch(self) -> str | None:
        """Return the argument that decides whether the model is to think, where the template has one."""
        off = (name for name, value in self._arguments.items() if value is False and "think" in name)
        return next(off, "enable_thinking" if "enable_thinking" in str(self._tokenizer.chat_template) else None)

    @property
    def knows_thoughts(self) -> bool:
        """Return whether the template does something about thoughts."""
        return "</think>" in str(self._tokenizer.chat_template)

    def turns(self, messages: Sequence[Message]) -> list[dict[str, Any]]:
        """Return messages as the template takes them."""
        turns = [{"role": turn.role, "content": turn.content, **turn.others} for turn in messages]
        if not self._knows_developer:
            turns = [{**turn, "role": "system"} if turn["role"] == "developer" else turn for turn in turns]
        return folded(turns) if self._fold_system else turns

    def written(
        self, conversations: Sequence[list[dict[str, Any]]], tools: Sequence[Any], generation_prompt: bool
    ) -> list[str]:
        """Return each conversation as the template writes it.

        Raises:
            ProblemError: if it refuses one, or writes without end.
        """
        try:
            texts: list[str] = self._tokenizer.apply_chat_template(
                list(conversations), tools=list(tools) or None, tokenize=False,
                add_generation_prompt=generation_prompt, **self._arguments,
            )  # fmt: skip
        except (ProblemError, MemoryError):
            raise
        except Exception as error:  # a template may fail in any way
            said = escaped(" ".join(str(error).split())[:_SHOWN])
            raise template_problem(f"the chat template refuses these messages: {said}") from None
        for text, turns in zip(texts, conversations, strict=True):
            if len(text) > _ALWAYS_ALLOWED and len(text) > _GROWTH * len(repr((turns, tools))):
                raise template_problem(f"the chat template makes {len(text):,} characters of a short conversation")
        return texts

    def left_out(
        self, turns: Sequence[Mapping[str, Any]], tools: Sequence[Any], generation_prompt: bool
    ) -> tuple[PlaceInTalk, ...]:
        """Return the texts that the template leaves out of conversations with these roles and keys."""
        try:
            key = (generation_prompt, structure(turns), structure(tools))
        except RecursionError:
            raise template_problem("tools or their calls are nested too deeply") from None
        if key not in self._left_out:
            marks = Marks(turns, tools)
            try:
                (written,) = self.written([marks.turns], marks.tools, generation_prompt)
                self._left_out[key] = tuple(marks.left_out(written))
            except ProblemError:  # a template that wants a certain text
                self._left_out[key] = ()
        return self._left_out[key]

    def _turn_end(self) -> TurnEnd:
        turns = [{"role": "user", "content": _ASKED}, {"role": "assistant", "content": _ANSWERED}]
        try:
            with limited_time(RENDER_SECONDS), limited_memory(RENDER_BYTES):
                rendered, again = (self.written([turns], (), False)[0] for _ in range(2))
        except ProblemError as error:
            raise DataError(str(error)) from None
        if rendered != again:
            raise DataError(
                f"the chat template writes the same messages differently each time: {difference(rendered, again)}; "
                "set model.chat_template=FILE to one that does not"
            )
        before, found, full = rendered.rpartition(_ANSWERED)
        if not found or not before:
            raise DataError("the chat template does not write the assistant's message; set data.chat_template=false")
        if _ASKED not in before:
            raise DataError(f"the chat template does not write the user's message; {ANOTHER_TEMPLATE}")
        specials = {token.content for token in self._tokenizer.added_tokens_decoder.values()}
        ends = [(full.find(token), token) for token in specials if token.strip() and token in full]
        if not ends:
            return TurnEnd(full, full.rstrip(), False)
        first = min(place for place, _ in ends)
        token = max((token for place, token in ends if place == first), key=len)
        return TurnEnd(full, full[: first + len(token)], True)


def folded(turns: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return a conversation whose system messages stand before the first words of the user."""
    first = next((place for place, turn in enumerate(turns) if turn["role"] != "system"), 0)
    if first == 0 or turns[first]["role"] != "user" or any(len(turn) > 2 for turn in turns[:first]):
        return turns  # what else a system message has would not stand anywhere
    content = "\n\n".join(turn["content"] for turn in turns[: first + 1])
    return [{**turns[first], "content": content}, *turns[first + 1 :]]


def difference(first: str, second: str) -> str:
    """Show two texts from where they differ."""
    shorter = min(len(first), len(second))
    same = next((place for place in range(shorter) if first[place] != second[place]), shorter)
    return f"{first[same : same + 40]!r} becomes {second[same : same + 40]!r}"
