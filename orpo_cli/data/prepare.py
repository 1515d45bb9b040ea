"""Prepare from preference files what a run trains on and what it is evaluated on, with every row accounted for."""

import itertools
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from orpo_cli.config.data import DataConfig
from orpo_cli.data.ledger import Ledger, LedgerPart
from orpo_cli.data.pairs import ChatPair, Problem, Row, Skipped
from orpo_cli.data.problems import Repeated
from orpo_cli.data.progress import OnProgress
from orpo_cli.data.rows.readers import read_rows
from orpo_cli.data.rows.sources import DataFile, DatasetChoice, find_files, may_have_splits
from orpo_cli.data.shapes.conversion import to_pairs
from orpo_cli.data.shapes.recognition import known_shape
from orpo_cli.data.shapes.set_columns import check_columns, set_columns
from orpo_cli.data.shapes.shape import Shape
from orpo_cli.data.splits import held_out_rows, shared_prompts
from orpo_cli.data.tokens.file_tokenizer import SHAPE_ROWS, FileTokenizer
from orpo_cli.data.tokens.store import PairStore, TokenizedFile
from orpo_cli.errors import ConfigError, DataError
from orpo_cli.quoting import shortened

KEYS_SHOWN = 8

QUESTIONS = 8
"""How many prompts are answered before and after training."""


@dataclass(frozen=True)
class PreparedData:
    """Hold the data of a run.

    Args:
        train: the pairs to train on; not empty where pairs are needed.
        evaluation: the pairs to evaluate on; may be empty.
        ledger: what became of every row.
        notes: things a user should know, one line each.
        sha256: the digest of each input file's bytes.
        shapes: how each input file is read.
        files: the input files.
        uses_chat_template: whether the texts were rendered with the tokenizer's chat template.
        end_id: the token that every response which was not cut ends in.
        highest_token_id: the highest id of all pairs; a model has to embed it.
        questions: some pairs with different prompts (evaluated, or else trained), and the words of each prompt.
    """

    train: PairStore
    evaluation: PairStore
    ledger: Ledger
    notes: list[str]
    sha256: dict[str, str]
    shapes: dict[str, Shape]
    files: list[DataFile]
    uses_chat_template: bool
    end_id: int
    highest_token_id: int
    questions: list[tuple[int, str]]

    @property
    def formats(self) -> dict[str, str]:
        """Return the name of each input file's shape."""
        return {file: shape.format for file, shape in self.shapes.items()}


def prepare(
    config: DataConfig,
    tokenizer: Any,
    max_length: int,
    on_progress: OnProgress,
    needs_pairs: bool = True,
    template_arguments: Mapping[str, Any] | None = None,
) -> PreparedData:
    """Read, validate and tokenize the preference files of a run.

    Args:
        max_length: `data.max_length`, or less where the model has fewer positions.
        needs_pairs: whether it is an error that no pair is left to train on.
        template_arguments: what the chat template is told besides the messages.
    Raises:
        ConfigError: if a key of `data` has no meaning for these files, or a file is named twice.
        InputNotFoundError: if a file is missing.
        DataError: if rows are invalid under `on_bad_row=error`, or no pair is left to train on.
    """
    _refuse_idle_keys(config)
    choice = DatasetChoice(config.split, config.subset, config.revision)
    of_paths = [find_files(path, choice) for path in config.paths]
    train_files = [file for files in of_paths for file in files]
    choice = replace(choice, split=config.eval_split)
    eval_files = [file for path in config.eval_paths for file in find_files(path, choice)]
    files = [*train_files, *eval_files]
    _refuse_repeated(files)
    _refuse_unknown_columns(config, files)
    with FileTokenizer(config, tokenizer, max_length, on_progress, template_arguments or {}) as file_tokenizer:
        train = [file_tokenizer.tokenized(file) for file in train_files]
        evaluation = [file_tokenizer.tokenized(file) for file in eval_files]
    held_out = held_out_rows(train, config.eval_fraction, config.eval_seed)
    kept = [(file, np.setdiff1d(file.trainable(), rows, True)) for file, rows in zip(train, held_out, strict=True)]
    held = [*zip(train, held_out, strict=True), *((file, file.trainable()) for file in evaluation)]
    stores = PairStore(kept, [len(files) for files in of_paths]), PairStore(held)
    parts = [LedgerPart(file, "train", rows) for file, rows in zip(train, held_out, strict=True)]
    parts += [LedgerPart(file, "eval", np.empty(0, np.int64)) for file in evaluation]
    if needs_pairs and not len(stores[0]):
        raise DataError(_nothing_left(train, max_length, bool(config.eval_fraction and len(stores[1]))))
    tokenized = [*train, *evaluation]
    uses_chat_template = tokenized[0].notes["chat"]
    shapes = {
        part.file: known_shape(
            part.notes["format"], config, file.has_cells, part.notes["columns"], part.notes["first_won"]
        )
        for file, part in zip(files, tokenized, strict=True)
    }
    notes = [note for file in tokenized for note in _notes(file, config, shapes[file.file])]
    if uses_chat_template and "strftime_now" in str(tokenizer.chat_template):
        notes.append("the chat template writes the date into the texts: that of the day the data was first prepared")
    if shared := shared_prompts(train, evaluation):
        notes.append(f"{shared} evaluation pairs have a prompt that is also trained on")
    first = stores[1] if len(stores[1]) else stores[0]
    return PreparedData(
        *stores,
        ledger=Ledger(parts),
        notes=notes,
        sha256={file.file: file.notes["sha256"] for file in tokenized},
        shapes=shapes,
        files=files,
        uses_chat_template=uses_chat_template,
        end_id=tokenized[0].notes["end_id"],
        highest_token_id=max(file.highest_id() for file in tokenized),
        questions=_questions(first, files, tokenized, shapes),
    )


def _refuse_idle_keys(config: DataConfig) -> None:
    """Refuse a split, subset or revision that none of the files can have."""
    for key, paths in (("split", config.paths), ("eval_split", config.eval_paths)):
        value = getattr(config, key)
        if value is not None and not any(map(may_have_splits, paths)):
            raise ConfigError(f"data.{key}={value}: {paths[0]} is a file, which has no splits")
    for key in ("subset", "revision"):
        value = getattr(config, key)
        if value is not None and not any(map(may_have_splits, [*config.paths, *config.eval_paths])):
            raise ConfigError(f"data.{key}={value}: {config.paths[0]} is a file, not a dataset of the hub")


def _refuse_repeated(files: Sequence[DataFile]) -> None:
    """Refuse a file that is named twice: it would be trained on twice, or trained on and evaluated on."""
    seen: set[Path] = set()
    for file in files:
        if file.path.resolve() in seen:
            raise ConfigError(
                f"{file.name}: stands twice in data.path and data.eval_path; data.mixture says how often an epoch "
                "sees it"
            )
        seen.add(file.path.resolve())


def _refuse_unknown_columns(config: DataConfig, files: Sequence[DataFile]) -> None:
    if set_columns(config.columns):
        heads = {file.name: itertools.islice(read_rows(file), SHAPE_ROWS) for file in files}
        check_columns(config, {name: [row for row in head if isinstance(row, Row)] for name, head in heads.items()})


def _notes(file: TokenizedFile, config: DataConfig, shape: Shape) -> list[str]:
    notes, name, pairs = [], file.file.rpartition("/")[2], file.notes["pairs"]
    others = [f"{field}={column}" for field, column in shape.renamed.items()]
    idle = [
        f"{key}={column}" for key, column in set_columns(config.columns).items() if shape.columns.get(key) != column
    ]
    if others:
        notes.append(f"{name}: read as {shape.format}, with data.columns." + ", ".join(others))
    if idle:
        notes.append(f"{name}: has none of data.columns." + ", ".join(idle) + f"; read as {shape.format} without them")
    if texts := pairs.get("plain_text", 0) * (config.chat_template == "auto"):
        notes.append(
            f"{name}: {texts} pairs of plain text are put into the model's chat template, as one message of the user "
            "and its answer; data.chat_template=false trains on them as they stand"
        )
    if thoughts := pairs.get("earlier_thoughts"):
        notes.append(
            f"{name}: in {thoughts} pairs the chat template leaves out the thoughts of earlier answers, as it does at "
            "generation"
        )
    if cut := pairs.get("later_turns"):
        notes.append(f"{name}: in {cut} pairs the turns behind the answers that differ are left out")
    if unread := file.notes["unread_keys"]:
        shown = [f"{shortened(key, 30)} ({count} rows)" for key, count in list(unread.items())[:KEYS_SHOWN]]
        more = [f"and {len(unread) - KEYS_SHOWN} more keys"] if len(unread) > KEYS_SHOWN else []
        notes.append(f"{name}: not read: " + ", ".join(shown + more))
    weights = file.column("weight")
    weights = weights[weights > 0]  # others are not trained on
    if len(weights) and weights.min() != weights.max():
        notes.append(
            f"{name}: data.columns.weight={config.columns.weight} weighs the pairs, {weights.min():g} to "
            f"{weights.max():g}; loss and metrics count them so"
        )
    if identical := int(file.column("identical").sum()):
        notes.append(f"{name}: pairs with the same chosen and rejected: {identical}; their preference term is constant")
    if merged := int(file.column("boundary_merged").sum()):
        notes.append(
            f"{name}: in {merged} pairs a token would span prompt and response; the two were tokenized apart "
            "(a space or newline at the end of the prompt, or at the start of the responses, avoids it)"
        )
    if controls := int((file.column("control_tokens") > 0).sum()):
        notes.append(
            f"{name}: {controls} pairs hold special tokens of the model in their own texts; they are encoded as such"
        )
    return notes + [f"skipped {problem}" for problem in _problems(file)]


def _problems(file: TokenizedFile) -> list[str]:
    return [Repeated(**kept).shown(file.file) for kept in file.notes["problems"]]


def _questions(
    store: PairStore, files: Sequence[DataFile], tokenized: Sequence[TokenizedFile], shapes: Mapping[str, Shape]
) -> list[tuple[int, str]]:
    """Return the first pairs with different prompts, and the words of these, without roles and template."""
    _, first = np.unique(store.column("prompt_hash"), return_index=True)
    places = [(index, *store.place(index)) for index in sorted(first.tolist())[:QUESTIONS]]
    found = []
    for file, part in zip(files, tokenized, strict=True):
        wanted = {part.ordinal(row): index for index, owner, row in places if owner is part}
        rows = itertools.islice(read_rows(file), max(wanted, default=-1) + 1)
        found += [
            (wanted[number], _words_of_prompt(given, shapes[part.file]))
            for number, given in enumerate(rows)
            if number in wanted
        ]
    return found


def _words_of_prompt(given: Row | Problem | None, shape: Shape) -> str:
    made = to_pairs(given, shape) if isinstance(given, Row) else []
    pair = next((item for item in made if not isinstance(item, Skipped)), None) if isinstance(made, list) else None
    if pair is None:
        return ""
    return pair.prompt[-1].content if isinstance(pair, ChatPair) else pair.prompt


def _nothing_left(files: Sequence[TokenizedFile], max_length: int, held_out: bool) -> str:
    names = ", ".join(file.file for file in files)
    if held_out:
        return f"{names}: every pair is held out for evaluation; lower data.eval_fraction"
    counts: Counter[str] = Counter()
    for file in files:
        codes, classes = file.classes()
        counts.update({name: int((codes == code).sum()) for code, name in enumerate(classes)})
    classes_text = ", ".join(f"{count} {name}" for name, count in counts.items())
    too_long = any(name.endswith("too_long") for name in counts)
    hint = f"; raise data.max_length={max_length} or change data.length_policy" if too_long else ""
    skipped = [problem for file in files for problem in _problems(file)]
    return "\n".join([f"{names}: no pair left to train on: {classes_text}{hint}", *skipped])
