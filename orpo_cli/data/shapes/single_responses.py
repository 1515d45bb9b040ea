"""Refuse files whose rows hold one response each: there is nothing to compare it with."""

from typing import Any

from orpo_cli.data.pairs import Row
from orpo_cli.data.shapes.messages import is_messages
from orpo_cli.errors import DataError

_LABELS = ("label", "labels", "is_chosen", "preferred")
_ANSWERS = ("completion", "response", "output", "answer", "chosen")
_CONVERSATIONS = ("messages", "conversations", "conversation")
_BESIDE = (
    "prompt", "question", "query", "instruction", "input", "context", "history", "system", "system_prompt", "id",
    "prompt_id", "source", "dataset", "category", "task", "type", "topic", "language", "model", "split", "url",
)  # fmt: skip
"""Keys whose texts are no second response."""


def refuse_single_responses(row: Row) -> None:
    """Raise DataError if a row holds one response, with a mark that says good or bad or without one."""
    value = row.value if isinstance(row.value, dict) else {}
    label = next((key for key in _LABELS if isinstance(value.get(key), bool | int | str)), None)
    answer = next((key for key in _ANSWERS if key in value), None)
    if label and answer and "rejected" not in value:
        raise DataError(
            f"{row.source}: single responses with a label ({answer}, {label}): ORPO compares two responses to one "
            "prompt, and a response that is only marked good or bad has none to be compared with. Give each prompt a "
            "chosen and a rejected response, or rank several (prompt, responses, scores); as they stand, such rows are "
            "what KTO trains on"
        )
    if found := _only_response(value):
        raise DataError(
            f"{row.source}: one response a row ({found}), and no rejected one beside it: orpo trains on preferences, "
            "and loss=sft, too, reads pairs of which it trains on chosen. Give each prompt a chosen and a rejected "
            "response; data.columns.rejected=NAME where another column holds it"
        )


def _only_response(value: dict[str, Any]) -> str | None:
    """Return the key of a row's only response; None where there may be others."""
    said = [key for key, item in value.items() if (isinstance(item, str) and item.strip()) or _is_talk(item)]
    answers = [key for key in said if key in _ANSWERS] or [key for key in said if key in _CONVERSATIONS]
    others = [key for key in said if key not in (*answers, *_BESIDE)]
    return answers[0] if len(answers) == 1 and not others else None


def _is_talk(value: Any) -> bool:
    return isinstance(value, list | dict) and is_messages(value)
