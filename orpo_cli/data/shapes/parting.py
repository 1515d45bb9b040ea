"""Find the answers at which two conversations part: they are what a preference compares."""

from collections.abc import Sequence
from typing import Any

from orpo_cli.data.pairs import ChatPair, Message, ProblemError, Source
from orpo_cli.data.shapes.messages import is_messages, role_of

CUT = "data.later_turns=cut keeps both up to this answer and leaves out what follows"
CUT_AT_ANSWERS = "data.later_turns=cut leaves out what follows the answers at which chosen and rejected part"
NO_PROMPT = "there is no prompt to which both answer"


def goes_on(response: Any) -> bool:
    """Return whether a response is an answer and further turns."""
    is_list = isinstance(response, list) and len(response) > 1 and is_messages(response)
    roles = [role_of(turn) for turn in response] if is_list else ["user"]
    return roles[0] == "assistant" and any(role != "assistant" for role in roles)


def parted(
    source: Source, columns: Sequence[str], chosen: tuple[Message, ...], rejected: tuple[Message, ...], cuts: bool
) -> ChatPair:
    """Return the pair of the two answers that come after the turns which two conversations share.

    Args:
        columns: those of the two conversations.
        cuts: whether turns behind these answers are left out.
    Raises:
        ProblemError: if there are such turns and they are not left out, or if they part at no answer.
    """
    shortest = min(len(chosen), len(rejected))
    turns = enumerate(zip(chosen, rejected, strict=False))
    place = next((number for number, (a, b) in turns if a != b), shortest)
    if chosen == rejected:
        place -= 1
    roles = [turns[place].role for turns in (chosen, rejected) if place < len(turns)]
    are_answers = roles == ["assistant", "assistant"] and chosen[place - 1].role != "assistant"
    is_cut = not len(chosen) == len(rejected) == place + 1
    if are_answers and (cuts or not is_cut):
        return ChatPair(source, chosen[:place], chosen[place], rejected[place], is_cut=is_cut)
    where = f"{columns[1]}: differs from {columns[0]} at message {place + 1}; only the last messages may differ"
    found = (
        f"it is not an answer in both, so {NO_PROMPT}" if place < shortest else f"one ends before it, so {NO_PROMPT}"
    )
    raise ProblemError(f"{where}; {CUT if are_answers else found}", "prompts_differ")
