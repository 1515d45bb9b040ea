"""Render a pair as three texts: the prompt as the model will see it, and the two responses it is to compare.

In text mode the texts are the row's own. In chat mode they come from the tokenizer's chat template: the prompt is
rendered with the generation prompt, so that training and generation see the same text; a response is what the template
adds to that when the assistant's turn is there, up to and including the first special token after the content (Phi and
ChatML templates put a newline or a second end token behind it, which no model generates). What stands in the row stands
in these texts, or the row is refused; only the thoughts of earlier answers may be missing, and are counted.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from orpo_cli.data.pairs import ChatPair, Message, PreferencePair, Problem, ProblemError, Source, TextPair
from orpo_cli.data.prompts import Prompt
from orpo_cli.data.tokens import chat_template
from orpo_cli.data.tokens.chat_template import ANOTHER_TEMPLATE, ChatTemplate, difference, folded
from orpo_cli.data.tokens.marks import PlaceInTalk
from orpo_cli.data.tokens.template_limits import limited_memory, limited_time, template_problem
from orpo_cli.errors import DataError

_THOUGHT, _THOUGHT_ENDS = "<think>", "</think>"
_EMPTY_THOUGHT = re.compile(rf"\s*{_THOUGHT}\s*{_THOUGHT_ENDS}\s*")
_NEEDS_TEMPLATE = "tools, their calls and thoughts can only be written by a chat template"
_FOLDED = "data.fold_system=true puts the system message before the first message of the user"


@dataclass(frozen=True)
class RenderedPair:
    """Hold the texts of a pair.

    Args:
        weight: the weight of the pair in the objective.
        ends: whether the responses already end in their end-of-turn token.
        contents: the data's own texts in these, without what the template wrote.
        notes: what became of the pair besides: `plain_text` where a template was put around plain text,
            `earlier_thoughts` where it leaves out thoughts of earlier answers, `later_turns` where turns behind the
            answers were left out.
        turns: the number of the user's messages in the prompt; 0 of plain text.
    """

    source: Source
    weight: float
    prompt: str
    chosen: str
    rejected: str
    ends: bool
    contents: tuple[str, ...]
    notes: tuple[str, ...] = ()
    turns: int = 0


def is_chat(has_messages: bool, setting: bool | str | None, tokenizer: Any) -> bool:
    """Return whether the chat template is used, as `data.chat_template` says.

    Args:
        has_messages: whether the data is chat messages, by its first pair; it decides where the setting does not.
    Raises:
        DataError: if the template is needed and the tokenizer has none.
    """
    if setting == "auto":
        wanted = has_messages or bool(tokenizer.chat_template)
    else:
        wanted = has_messages if setting is None else bool(setting)
    if wanted and not tokenizer.chat_template:
        why = "data.chat_template=true" if setting is True else "the data is chat messages"
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


def render(pair: PreferencePair, template: ChatTemplate | None) -> RenderedPair | Problem:
    """Return the texts of one pair, or the problem that the chat template has with it.

    Args:
        template: None where no chat template is used.
    """
    try:
        if template is None:
            return _in_text(pair)
        with limited_time(chat_template.RENDER_SECONDS), limited_memory(chat_template.RENDER_BYTES):
            return _in_chat(pair, template)
    except ProblemError as error:
        return error.problem(pair.source)


def render_prompt(prompt: Prompt, template: ChatTemplate | None) -> str:
    """Return the text that the model sees when it is to answer, as in training.

    Args:
        template: None where no chat template is used.
    Raises:
        ProblemError: if the template refuses the prompt, or leaves a part of it out.
    """
    if template is None:
        if prompt.tools or any(turn.others for turn in prompt.messages):
            raise template_problem(_NEEDS_TEMPLATE)
        return prompt.text
    turns = template.turns(prompt.messages)
    with limited_time(chat_template.RENDER_SECONDS), limited_memory(chat_template.RENDER_BYTES):
        written = _written_prompt(turns, prompt.tools, template)
        _refuse_left_out_of_prompt(written, turns, prompt.tools, template)
    return written


def _in_text(pair: PreferencePair) -> RenderedPair:
    if isinstance(pair, ChatPair) and (
        pair.tools or any(turn.others for turn in (*pair.prompt, pair.chosen, pair.rejected))
    ):
        raise template_problem(_NEEDS_TEMPLATE)
    text = pair.as_text()
    contents = (text.prompt, text.chosen, text.rejected)
    notes = _cut(pair) if isinstance(pair, ChatPair) else ()
    return RenderedPair(text.source, pair.weight, *contents, False, contents, notes)


def _cut(pair: ChatPair) -> tuple[str, ...]:
    return ("later_turns",) if pair.is_cut else ()


def _in_chat(given: PreferencePair, template: ChatTemplate) -> RenderedPair:
    pair = given.as_chat()
    turns = template.turns(pair.prompt)
    prompt = _written_prompt(turns, pair.tools, template)
    notes = ("plain_text",) if isinstance(given, TextPair) else _cut(given)
    if _refuse_left_out_of_prompt(prompt, turns, pair.tools, template):
        notes = (*notes, "earlier_thoughts")
    answers = [_with_thought(turns, answer, pair.tools, template) for answer in (pair.chosen, pair.rejected)]
    if prompt.rstrip().endswith(_THOUGHT_ENDS):
        answers = [_behind_thought(answer, template) for answer in answers]
    wholes = template.written([[*turns, answer] for answer in answers], pair.tools, False)
    texts = []
    for answer, whole in zip(answers, wholes, strict=True):
        if len(answer) > 2:
            _refuse_left_out_of_answer([*turns, answer], len(turns), pair.tools, template)
        texts.append(_response(whole, prompt, answer["content"], template))
    contents = (*(turn.content for turn in pair.prompt), pair.chosen.content, pair.rejected.content)
    asked = sum(turn.role == "user" for turn in pair.prompt)
    return RenderedPair(
        pair.source, pair.weight, prompt, texts[0], texts[1], template.end.has_token, contents, notes, asked
    )  # fmt: skip


def _written_prompt(turns: list[dict[str, Any]], tools: Sequence[Any], template: ChatTemplate) -> str:
    try:
        return template.written([turns], tools, True)[0]
    except ProblemError as error:
        if folded(turns) == turns or not _is_taken(folded(turns), tools, template):
            raise
        raise template_problem(f"{error}; {_FOLDED}") from None


def _is_taken(turns: list[dict[str, Any]], tools: Sequence[Any], template: ChatTemplate) -> bool:
    try:
        return bool(template.written([turns], tools, True))
    except ProblemError:
        return False


def _refuse_left_out_of_prompt(
    prompt: str, turns: Sequence[Mapping[str, Any]], tools: Sequence[Any], template: ChatTemplate
) -> bool:
    """Refuse a prompt in which the template drops a message, a tool or a call.

    Returns:
        whether it drops thoughts of earlier answers, which is allowed.
    Raises:
        ProblemError: if it drops anything else.
    """
    misses = False
    for place in template.left_out(turns, tools, True):
        if place.message >= 0 and turns[place.message]["role"] == "assistant" and place.path[0] == "reasoning_content":
            misses = True
        elif not _stands_elsewhere(place, turns):
            raise _left_out_error(place, turns)
    for number, turn in enumerate(turns):
        text = turn["content"]
        if text and not _holds(prompt, text):
            answer = text.rpartition(_THOUGHT_ENDS)[2] if turn["role"] == "assistant" else ""
            if answer == "" or answer == text or not _holds(prompt, answer):
                raise _left_out_error(PlaceInTalk(number, ("content",)), turns)
            misses = True
    return misses


def _with_thought(
    turns: Sequence[Mapping[str, Any]], answer: Message, tools: Sequence[Any], template: ChatTemplate
) -> dict[str, Any]:
    """Return an answer as the template takes it, its thought inside its text where the template knows it only there."""
    (turn,) = template.turns([answer])
    if "reasoning_content" in turn and template.knows_thoughts:
        lost = [place.path for place in template.left_out([*turns, turn], tools, False) if place.message == len(turns)]
        if ("reasoning_content",) in lost:
            thought = turn.pop("reasoning_content")
            return {**turn, "content": f"{_THOUGHT}\n{thought}\n{_THOUGHT_ENDS}\n\n{turn['content']}"}
    return turn


def _behind_thought(answer: dict[str, Any], template: ChatTemplate) -> dict[str, Any]:
    """Return an answer to a prompt that ends the thought: an empty one is the prompt's already.

    Raises:
        ProblemError: if the answer has a thought of its own.
    """
    content = answer["content"]
    said = content[match.end() :] if (match := _EMPTY_THOUGHT.match(content)) else content
    if "reasoning_content" not in answer and not said.lstrip().startswith(_THOUGHT):
        return {**answer, "content": said}
    switch = template.thought_switch
    why = f"with {switch}=false the chat template" if switch else "the chat template"
    with_thoughts = "chat_template_args={" + switch + ": true}" if switch else "chat_template=FILE to one that does not"
    raise template_problem(
        f"{why} ends the thought in the prompt, but this response has one. To train on the thoughts, set "
        f"model.{with_thoughts}; to train without them, take {_THOUGHT}...{_THOUGHT_ENDS} out of the responses "
        "(data.ignore_keys=[reasoning_content] leaves out a thought under that key)"
    )


def _refuse_left_out_of_answer(
    turns: Sequence[Mapping[str, Any]], since: int, tools: Sequence[Any], template: ChatTemplate
) -> None:
    """Refuse an answer with calls or a thought that the template leaves out."""
    for place in template.left_out(turns, tools, False):
        if place.message >= since:
            raise _left_out_error(place, turns)


def _stands_elsewhere(place: PlaceInTalk, turns: Sequence[Mapping[str, Any]]) -> bool:
    """Return whether a text is the name of a tool whose result this is, which the call before has already said."""
    if place.path != ("name",) or place.message < 0:
        return False
    calls = [call for turn in turns[: place.message] for call in turn.get("tool_calls", ())]
    return turns[place.message]["name"] in [call["function"]["name"] for call in calls if "function" in call]


def _left_out_error(place: PlaceInTalk, turns: Sequence[Mapping[str, Any]]) -> ProblemError:
    if place.message < 0:
        return template_problem(
            f"the chat template does not write the tools; {ANOTHER_TEMPLATE}, "
            "or data.columns.tools=null to train without them"
        )
    turn = turns[place.message]
    role, key = turn["role"], place.path[0]
    what = "it" if key == "content" else f"its {place}"
    advice = f"; {ANOTHER_TEMPLATE}"
    if role == "system":
        advice += f"; {_FOLDED}"
    elif key == "name":
        advice += ", or data.ignore_keys=[name] to train without it"
    return template_problem(f"message {place.message + 1} ({role}): the chat template leaves {what} out{advice}")


def _response(whole: str, prompt: str, answer: str, template: ChatTemplate) -> str:
    """Return what the model is to write behind the prompt, its end-of-turn token last where the template has one.

    A template that opens a thought in the prompt is not to open it again. One that drops the thoughts of all answers,
    as that of DeepSeek-R1 does for the next turn, is completed: the model has to write them.
    """
    end, opens = template.end, prompt.rstrip().endswith(_THOUGHT)
    text = whole[len(prompt) : len(whole) - len(end.full)]
    looked_for = answer.lstrip().removeprefix(_THOUGHT) if opens else answer
    if whole.startswith(prompt) and whole.endswith(end.full) and _holds(text, looked_for):
        return text + end.kept
    thought, _, said = answer.lstrip().rpartition(_THOUGHT_ENDS)
    unopened = prompt.rstrip().removesuffix(_THOUGHT) if opens else prompt
    has_thought = thought.startswith(_THOUGHT) or (opens and thought and _THOUGHT not in thought)
    if has_thought and said.strip() and whole.startswith(unopened) and whole.endswith(said + end.full):
        written = answer.lstrip().removeprefix(_THOUGHT) if opens else answer.lstrip()
        return (written.lstrip("\n") if opens and prompt.endswith("\n") else written) + end.kept
    if not whole.startswith(prompt):
        raise _changed_prompt(whole, prompt, opens and whole.startswith(unopened))
    if not whole.endswith(end.full):
        raise template_problem(f"the chat template ends this turn in another way than others: {whole[-40:]!r}")
    raise template_problem(
        f"the chat template leaves out a part of the response: {answer[:40]!r} becomes {text[:40]!r}; "
        "set model.chat_template=FILE to one that does not"
    )


def _changed_prompt(whole: str, prompt: str, lacks_thought: bool) -> ProblemError:
    if lacks_thought:
        return template_problem(
            f"the chat template opens a thought ({_THOUGHT}) that this response does not have; give the responses one, "
            "or set model.chat_template=FILE to a template that opens none"
        )
    return template_problem(
        "the chat template writes the prompt differently once it is answered: "
        f"{difference(prompt, whole)}; such a template cannot be trained on. "
        "Set model.chat_template=FILE to one without this, or data.chat_template=false"
    )


def _holds(written: str, content: str) -> bool:
    """Return whether a text holds another whole, blanks aside, as it is or inside of JSON."""
    if content.strip() in written or "".join(content.split()) in "".join(written.split()):
        return True
    return json.dumps(content.strip(), ensure_ascii=False)[1:-1] in written
