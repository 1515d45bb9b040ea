"""Make pairs of transcripts of `Human:` and `Assistant:` turns."""

import re
from collections.abc import Sequence

from orpo_cli.data.pairs import ChatPair, Message, PreferencePair, ProblemError, Skipped, Source, TextPair
from orpo_cli.data.shapes.parting import CUT, NO_PROMPT
from orpo_cli.data.shapes.shape import Fields, Shape
from orpo_cli.data.shapes.values import checked_text
from orpo_cli.quoting import shortened

_TURN = re.compile(r"(?:\A\s*|\n\n)(Human|Assistant):")
_LATER = re.compile(r"\n\n(?:Human|Assistant):")
_ANSWER = "\n\nAssistant:"


def from_hh(source: Source, fields: Fields, shape: Shape) -> list[PreferencePair | Skipped]:
    """Return the pair of two transcripts that differ in the last answer.

    Raises:
        ProblemError: if they differ earlier and are not cut there, or are no such transcripts.
    """
    columns = [fields.column(field) for field in ("chosen", "rejected")]
    texts = [
        checked_text(column, fields.needed(field))
        for column, field in zip(columns, ("chosen", "rejected"), strict=True)
    ]
    same = next((at for at, (a, b) in enumerate(zip(*texts, strict=False)) if a != b), min(map(len, texts)))
    end = texts[0].rfind(_ANSWER, 0, same)
    if end < 0 or len(turns_of(texts[0])) < 2:
        expected = "expected `Human:` and `Assistant:` turns that both transcripts share"
        raise ProblemError(f"{columns[0]}: {expected}", "prompts_differ")
    prompt = texts[0][: end + len(_ANSWER)]
    rests = [text[len(prompt) :] for text in texts]
    chosen, rejected = answers = _last_answers(columns, rests, shape.cuts)
    turns = turns_of(prompt)
    messages = tuple(Message(role, checked_text(columns[0], content)) for role, content in turns if content)
    if not messages or messages[-1].role != "user" or len(messages) < len(turns) - 1:
        said = "a turn of the transcript is empty, or the answer follows no question"
        raise ProblemError(f"{columns[0]}: {said}", "roles")
    transcript = TextPair(source, prompt, chosen, rejected)
    better, worse = (Message("assistant", text.strip()) for text in (chosen, rejected))
    return [ChatPair(source, messages, better, worse, transcript=transcript, is_cut=answers != rests)]


def _last_answers(columns: Sequence[str], rests: Sequence[str], cuts: bool) -> list[str]:
    """Return the answers at which two transcripts part, from what follows the turns that they share."""
    answers = [_LATER.split(rest, maxsplit=1)[0] for rest in rests]
    for column, rest, answer in zip(columns, rests, answers, strict=True):
        if not rest.strip() or (cuts and not answer.strip()):
            raise ProblemError(f'{column}: the last answer is empty ("")', "empty_field")
        if answer != rest and not (cuts and answers[0] != answers[1]):
            advice = CUT if answers[0] != answers[1] else f"the answer is the same in both, so {NO_PROMPT} differently"
            where = f"the transcripts differ before the last answer: {shortened(rest, 40)}"
            raise ProblemError(f"{column}: {where}; {advice}", "prompts_differ")
    return answers


def turns_of(text: str) -> list[tuple[str, str]]:
    """Return (role, content) of each turn of a transcript; none where the text is not a transcript."""
    marks = list(_TURN.finditer(text))
    roles = {"Human": "user", "Assistant": "assistant"}
    ends = [mark.start() for mark in marks[1:]] + [len(text)]
    if not marks or marks[0].start() > 0:
        return []
    return [(roles[mark[1]], text[mark.end() : end].strip()) for mark, end in zip(marks, ends, strict=True)]
