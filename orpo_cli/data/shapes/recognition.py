"""Recognise the shape of a file by its first rows."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from orpo_cli.config.data import FORMATS, DataConfig
from orpo_cli.data.pairs import Row
from orpo_cli.data.shapes.messages import MEANINGLESS, is_messages
from orpo_cli.data.shapes.parting import goes_on
from orpo_cli.data.shapes.set_columns import check_fields, for_file
from orpo_cli.data.shapes.shape import NEEDED, Fields, Shape, Verdict
from orpo_cli.data.shapes.single_responses import refuse_single_responses
from orpo_cli.data.shapes.transcripts import turns_of
from orpo_cli.errors import DataError


@dataclass(frozen=True)
class KnownColumns:
    """Name the columns that a kind of dataset has.

    Args:
        columns: field -> column, where they differ.
        first_won: what `data.first_won` has to be.
        needs: optional fields that a row of the kind has too.
    """

    format: str
    columns: Mapping[str, str] = field(default_factory=dict)
    first_won: str | None = None
    needs: tuple[str, ...] = ()


KNOWN_COLUMNS = {
    "ms-swift": KnownColumns("messages", {"rejected": "rejected_response"}),
    "ms-swift, messages": KnownColumns("messages", {"rejected": "rejected_messages"}),
    "ms-swift before 3": KnownColumns("alpaca", {
        "prompt": "query", "chosen": "response", "rejected": "rejected_response",
    }, needs=("rejected",)),
    "ShareGPT": KnownColumns("pairs", {"prompt": "conversations"}),
    "a prompt called messages": KnownColumns("pairs", {"prompt": "messages"}),
    "OpenAI": KnownColumns("pairs", {
        "prompt": "input.messages", "tools": "input.tools", "chosen": "preferred_output",
        "rejected": "non_preferred_output",
    }),
    "Alpaca": KnownColumns("alpaca", {"prompt": "instruction"}, needs=("rejected",)),
    "Alpaca, the answer and a rejected one": KnownColumns("alpaca", {
        "prompt": "instruction", "chosen": "output",
    }, needs=("rejected",)),
    "Alpaca, both outputs": KnownColumns("alpaca", {
        "prompt": "instruction", "chosen": "output", "rejected": "rejected_output",
    }, needs=("rejected",)),
    "Alpaca, both in a list": KnownColumns("alpaca", {"prompt": "instruction", "chosen": "output"}),
    "Orca": KnownColumns("pairs", {"prompt": "question"}),
    "StackExchange": KnownColumns("pairs", {"prompt": "question", "chosen": "response_j", "rejected": "response_k"}),
    "raw StackExchange": KnownColumns("rankings", {
        "prompt": "question", "responses": "answers.text", "scores": "answers.pm_score",
    }, needs=("scores",)),
    "raw UltraFeedback": KnownColumns("rankings", {
        "prompt": "instruction", "responses": "completions.response", "scores": "completions.overall_score",
    }, needs=("scores",)),
    "raw UltraFeedback, without an overall score": KnownColumns("rankings", {
        "prompt": "instruction", "responses": "completions.response", "scores": "completions.fine-grained_score",
    }, needs=("scores",)),
    "Nectar": KnownColumns("rankings", {
        "responses": "answers.answer", "ranking": "answers.rank",
    }, needs=("ranking",)),
    "distilabel": KnownColumns("rankings", {
        "prompt": "instruction", "responses": "generations", "scores": "ratings",
    }, needs=("scores",)),
    "SHP": KnownColumns("verdict", {
        "prompt": "history", "response_a": "human_ref_A", "response_b": "human_ref_B", "winner": "labels",
    }, "1", ("prompt",)),
    "SHP, one label": KnownColumns("verdict", {
        "prompt": "history", "response_a": "human_ref_A", "response_b": "human_ref_B", "winner": "label",
    }, "1", ("prompt",)),
    "HelpSteer": KnownColumns("verdict", {
        "prompt": "context", "response_a": "response1", "response_b": "response2", "winner": "overall_preference",
    }, "negative", ("prompt",)),
    "HelpSteer2": KnownColumns("verdict", {
        "response_a": "response_1", "response_b": "response_2", "winner": "preference_strength",
    }, "negative", ("prompt",)),
    "PKU-SafeRLHF": KnownColumns("verdict", {
        "response_a": "response_0", "response_b": "response_1", "winner": "better_response_id",
    }, "0", ("prompt",)),
    "two numbered responses": KnownColumns("verdict", {
        "response_a": "response_1", "response_b": "response_2", "score_a": "score_1", "score_b": "score_2",
    }, needs=("prompt",)),
    "WebGPT": KnownColumns("verdict", {
        "prompt": "question.full_text", "response_a": "answer_0", "response_b": "answer_1", "score_a": "score_0",
        "score_b": "score_1",
    }, needs=("prompt",)),
    "arena": KnownColumns("verdict", needs=("prompt",)),
    "arena, a preference": KnownColumns("verdict", {"winner": "preference"}, needs=("prompt",)),
    "arena, a column for each outcome": KnownColumns("verdict", {
        "winner": "winner_model_a", "tie": "winner_tie",
    }, "1", ("prompt",)),
    "arena, conversations": KnownColumns("verdict", {
        "response_a": "conversation_a", "response_b": "conversation_b",
    }),
    "a prompt called input": KnownColumns("pairs", {"prompt": "input"}),
    "messages": KnownColumns("messages"),
    "ShareGPT, the answer in it": KnownColumns("messages", {"messages": "conversations"}),
}  # fmt: skip
"""By the name of the dataset, what is looked for, in this order, where the columns that are set hold no shape."""


_OTHER_NAMES = (
    {"system": "system_prompt"},
    *({"score_chosen": chosen, "score_rejected": chosen.replace("chosen", "rejected")}
      for chosen in ("chosen_score", "chosen_rating", "chosen-rating", "rating_chosen")),
)  # fmt: skip
"""Optional field -> another name of its column, for fields that have it together."""


_OF_VERDICT = ("response_a", "response_b", "winner")


def find_shape(rows: Sequence[Row], config: DataConfig, cells: bool) -> Shape:
    """Return the configured shape, or the one that the first rows of a file have.

    Args:
        cells: whether every value is a text, as in CSV.
    Raises:
        ConfigError: if a column is set for a field that this shape does not have.
        DataError: if the rows can be read in more than one way, or hold single responses.
    """
    shape = _with_other_names(_recognised(rows, for_file(config, rows), cells), rows)
    check_fields(config.columns, shape.format, rows)
    objects = [Fields(row.value, shape) for row in rows if isinstance(row.value, dict)]
    values = [row.glimpse(field) for row in objects for field in ("system", "tools")]
    return replace(shape, conversational=any(_is_filled(value) for value in values))


def _with_other_names(shape: Shape, rows: Sequence[Row]) -> Shape:
    """Read optional fields by the other names that many files have for them, where no row has the first."""
    keys = {key for row in rows if isinstance(row.value, dict) for key in row.value}
    for names in _OTHER_NAMES:
        is_free = all(shape.read_columns.get(name) == name and name not in keys for name in names)
        if is_free and keys.issuperset(names.values()):
            shape = replace(shape, columns={**shape.columns, **names})
    return shape


def _is_filled(value: Any) -> bool:
    return value.strip() not in ("", "[]", "null") if isinstance(value, str) else bool(value)


def _recognised(rows: Sequence[Row], config: DataConfig, cells: bool) -> Shape:
    if config.format != "auto":
        return known_shape(config.format, config, cells)
    any_shape = known_shape("pairs", config, cells)
    readable = [(row, readings(row.value, any_shape)) for row in rows]
    seen = {name: row for row, names in reversed(readable) for name in names}
    common = [name for name in FORMATS if name in seen and all(name in names for _, names in readable if names)]
    if len(seen) > 1 and len(common) != 1:
        ways = "; ".join(f"{seen[name].source} as {name} ({_MEANING[name]})" for name in FORMATS if name in seen)
        raise DataError(
            f"{rows[0].source.file}: can be read in more than one way: {ways}; choose with data.format=NAME"
        )
    if seen:
        return known_shape(common[0], config, cells)
    for known in KNOWN_COLUMNS.values():
        shape = _shape_of(known, config, cells)
        if any(_fits(row.value, shape, known.needs) for row in rows):
            return shape
    for row in rows:
        refuse_single_responses(row)
    return any_shape


def _shape_of(known: KnownColumns, config: DataConfig, cells: bool) -> Shape:
    """Return the shape of a kind of dataset; columns that were set go before its own.

    What a verdict means is known only of the dataset's own columns.
    """
    own = {name: column for name, column in known_shape(known.format, config, cells).columns.items() if column != name}
    is_its_own = all(own.get(name) in (None, known.columns.get(name)) for name in _OF_VERDICT)
    shape = known_shape(known.format, config, cells, None, known.first_won if is_its_own else None)
    return replace(shape, columns={**shape.columns, **known.columns, **own})


def _fits(value: Any, shape: Shape, needs: Sequence[str]) -> bool:
    if not isinstance(value, dict):
        return False
    row = Fields(value, shape)
    found = [row.glimpse(name) for name in (*NEEDED[shape.format], *needs)]
    if any(item is None or (isinstance(item, list) and not any(part is not None for part in item)) for item in found):
        return False
    if shape.format == "verdict" and row.glimpse("winner") is None and row.glimpse("score_a") is None:
        return False
    lists_both = shape.format != "alpaca" or "rejected" in needs or isinstance(row.glimpse("chosen"), list)
    return lists_both and (shape.format != "verdict" or "prompt" in needs or all(map(_is_conversation, found[:2])))


def known_shape(
    name: str, config: DataConfig, cells: bool, columns: Mapping[str, str] | None = None, first_won: str | None = None
) -> Shape:
    """Return the shape of a file whose format is known already.

    Args:
        columns, first_won: what was recognised; what the configuration says where there is nothing.
    """
    configured = {field: column for field, column in vars(config.columns).items() if column is not None}
    ignored = frozenset([*MEANINGLESS, *config.ignore_keys])
    wins = first_won if config.first_won is None else str(config.first_won)
    verdict = Verdict(wins, None if config.second_won is None else str(config.second_won))
    cuts = config.later_turns == "cut"
    return Shape(name, columns or configured, config.pairs, config.min_score_gap, cells, ignored, verdict, cuts=cuts)


_MEANING = {
    "pairs": "a prompt and two responses",
    "conversations": "two conversations",
    "hh": "two transcripts, the prompt in each",
    "ultrafeedback": "a prompt and two conversations that begin with it",
    "rankings": "a prompt and ranked responses",
}


def readings(value: Any, shape: Shape) -> set[str]:
    """Return every format that a row could be meant in by the columns that are set; none where each lacks something."""
    if not isinstance(value, dict):
        return set()
    row = Fields(value, shape)
    found = set()
    prompt, chosen, rejected = (row.glimpse(field) for field in ("prompt", "chosen", "rejected"))
    if None not in (chosen, rejected):
        transcripts = all(isinstance(side, str) and len(turns_of(side)) > 1 for side in (chosen, rejected))
        found |= {"hh"} if transcripts else set()
        if prompt is None:
            found |= {"conversations"} if all(map(_is_conversation, (chosen, rejected))) else set()
        else:
            with_prompt = all(_is_conversation(side) and not goes_on(side) for side in (chosen, rejected))
            found |= {"ultrafeedback" if with_prompt else "pairs"}
    responses, ranks = row.glimpse("responses"), row.glimpse("scores") or row.glimpse("ranking")
    if prompt is not None and responses is not None and ranks:
        found.add("rankings")
    return found


def _is_conversation(value: Any) -> bool:
    return isinstance(value, list) and len(value) > 1 and is_messages(value)
