"""Preference files to stores of tokenized pairs, with every row accounted for.

A file is read, checked, rendered and tokenized block by block, by several processes where it is large, and written as
it comes; nothing of it is held whole. The result is cached under a key made of the file's bytes, the tokenizer and the
settings that matter, so that a second start reads no text; touching the file or moving it changes nothing.
"""

import hashlib
import itertools
import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from orpo_cli import __version__
from orpo_cli.config.schema import DataConfig
from orpo_cli.data import rendering, tokenization
from orpo_cli.data.blocks import Recipe, prepare_block
from orpo_cli.data.fields import shortened
from orpo_cli.data.json_rows import Row
from orpo_cli.data.ledger import Ledger, LedgerPart
from orpo_cli.data.pairs import ChatPair, PreferencePair, Problem, Skipped
from orpo_cli.data.readers import explained, read_blocks, read_rows
from orpo_cli.data.recognition import find_shape, known_shape
from orpo_cli.data.shapes import Shape, to_pairs
from orpo_cli.data.sources import DataFile, Dataset, find_files, may_have_splits
from orpo_cli.data.splits import held_out_rows, shared_prompts
from orpo_cli.data.store import SCHEMA, EntryWriter, PairStore, TokenizedFile, cache_directory
from orpo_cli.data.workers import Workers, worthwhile
from orpo_cli.errors import ConfigError, DataError

OnProgress = Callable[[str, int, int], None]
"""Called with what is being done, how much of it is done, and how much there is."""

CACHE_FORMAT = 4  # raise it when what a cached entry holds, or how it comes about, changes
PROBLEMS_SHOWN = 20
KEYS_SHOWN = 8
SHAPE_ROWS = 100
"""Rows by which the shape of a file is recognised."""

_KILOBYTE = 1000


@dataclass(frozen=True)
class PreparedData:
    """What a run trains on and what it is evaluated on.

    Args:
        train: never empty.
        evaluation: may be empty.
        ledger: what became of every row.
        notes: things a user should know, one line each.
        sha256: of each input file's bytes.
        formats: the shape of each input file.
        files: the input files.
        uses_chat_template: whether the texts were rendered with the tokenizer's chat template.
        end_id: the token that every response which was not cut ends in.
        highest_token_id: over all pairs, so that a model can be asked whether it embeds it.
        question: the words of the first pair's prompt (evaluated, or else trained), without roles and template.
    """

    train: PairStore
    evaluation: PairStore
    ledger: Ledger
    notes: list[str]
    sha256: dict[str, str]
    formats: dict[str, str]
    files: list[DataFile]
    uses_chat_template: bool
    end_id: int
    highest_token_id: int
    question: str


def prepare(config: DataConfig, tokenizer: Any, max_length: int, seed: int, on_progress: OnProgress) -> PreparedData:
    """Read, validate and tokenize the preference files of a run.

    Args:
        max_length: `data.max_length`, or less where the model has fewer positions.
    Raises:
        InputNotFoundError: no such file.
        DataError: invalid rows under `on_bad_row=error`, or no pair left to train on.
    """
    _refuse_idle_keys(config)
    preparation = _Preparation(config, tokenizer, max_length, on_progress)
    of_paths = [_files(config, path, config.split) for path in config.paths]
    train_files = [file for files in of_paths for file in files]
    eval_files = [file for path in config.eval_paths for file in _files(config, path, config.eval_split)]
    _refuse_repeated([*train_files, *eval_files])
    with preparation:
        train = [preparation.tokenized(file) for file in train_files]
        evaluation = [preparation.tokenized(file) for file in eval_files]
    held_out = held_out_rows(train, config.eval_fraction, seed)
    kept = [(file, np.setdiff1d(file.trainable(), rows, True)) for file, rows in zip(train, held_out, strict=True)]
    held = [*zip(train, held_out, strict=True), *((file, file.trainable()) for file in evaluation)]
    stores = PairStore(kept, [len(files) for files in of_paths]), PairStore(held)
    parts = [LedgerPart(file, "train", rows) for file, rows in zip(train, held_out, strict=True)]
    ledger = Ledger(parts + [LedgerPart(file, "eval", np.empty(0, np.int64)) for file in evaluation])
    if not len(stores[0]):
        raise DataError(_nothing_left(train, max_length, bool(config.eval_fraction and len(stores[1]))))
    files = [*train, *evaluation]
    shared = shared_prompts(train, evaluation)
    notes = [note for file in files for note in _notes(file)]
    if files[0].notes["chat"] and "strftime_now" in str(tokenizer.chat_template):
        notes.append("the chat template writes the date into the texts: that of the day the data was first prepared")
    first = stores[1] if len(stores[1]) else stores[0]
    return PreparedData(
        *stores,
        ledger=ledger,
        notes=notes + ([f"{shared} evaluation pairs have a prompt that is also trained on"] if shared else []),
        sha256={file.file: file.notes["sha256"] for file in files},
        formats={file.file: file.notes["format"] for file in files},
        files=[*train_files, *eval_files],
        uses_chat_template=files[0].notes["chat"],
        end_id=files[0].notes["end_id"],
        highest_token_id=max(file.highest_id() for file in files),
        question=_question(first, [*train_files, *eval_files], files, config),
    )


def _refuse_idle_keys(config: DataConfig) -> None:
    """A split that nothing has would be left out without a word."""
    for key, paths in (("split", config.paths), ("eval_split", config.eval_paths)):
        value = getattr(config, key)
        if value is not None and not any(map(may_have_splits, paths)):
            raise ConfigError(f"data.{key}={value}: {paths[0]} is a file, which has no splits")
    for key in ("subset", "revision"):
        value = getattr(config, key)
        if value is not None and not any(map(may_have_splits, [*config.paths, *config.eval_paths])):
            raise ConfigError(f"data.{key}={value}: {config.paths[0]} is a file, not a dataset of the hub")


def _files(config: DataConfig, path: str, split: str | None) -> list[DataFile]:
    return find_files(path, Dataset(split, config.subset, config.revision))


def _refuse_repeated(files: Sequence[DataFile]) -> None:
    """A file that is named twice would be trained on twice, or trained on and evaluated on."""
    seen: set[Path] = set()
    for file in files:
        if file.path.resolve() in seen:
            raise ConfigError(
                f"{file.name}: stands twice in data.path and data.eval_path; data.mixture says how often an epoch "
                "sees it"
            )
        seen.add(file.path.resolve())


class _Preparation:
    """Tokenizes the files of one run, with the same processes and in the same way. Use as a context manager."""

    def __init__(self, config: DataConfig, tokenizer: Any, max_length: int, on_progress: OnProgress) -> None:
        self._config = config
        self._tokenizer = tokenizer
        self._max_length = max_length
        self._on_progress = on_progress
        self._fingerprint = tokenizer_fingerprint(tokenizer)
        self._first: TokenizedFile | None = None
        self._recipe: Recipe | None = None
        self._workers: Workers | None = None

    def __enter__(self) -> "_Preparation":
        return self

    def __exit__(self, *error: Any) -> None:
        if self._workers is not None:
            self._workers.__exit__(*error)

    def tokenized(self, file: DataFile) -> TokenizedFile:
        """The rows of a file, from the cache or made now.

        Raises:
            DataError: invalid rows under `on_bad_row=error`, no valid row, or another kind of data than the first file.
        """
        digest = file.sha256()
        entry = cache_directory() / "tokens" / self._key(digest, file)
        try:
            found = TokenizedFile(entry, file.name)
        except (OSError, pa.ArrowInvalid, ValueError):  # not there yet, or damaged
            with EntryWriter(entry) as writer:
                writer.publish(self._write(file, writer) | {"sha256": digest})
            found = TokenizedFile(entry, file.name)
        self._first = self._first or found
        if found.notes["chat"] != self._first.notes["chat"]:
            kinds = {True: "chat messages", False: "plain text"}
            raise DataError(
                f"{found.file}: {kinds[found.notes['chat']]}, but {self._first.file} is "
                f"{kinds[self._first.notes['chat']]}; data.chat_template=true renders both with the chat template, "
                "false none"
            )
        return found

    def _key(self, digest: str, file: DataFile) -> str:
        config = self._config
        versions = [metadata.version(name) for name in ("transformers", "tokenizers", "jinja2")]
        settings = [__version__, CACHE_FORMAT, SCHEMA.to_string(), versions, digest, file.kind, file.packing]
        settings += [file.is_lines, self._fingerprint, self._max_length, config.length_policy, config.chat_template]
        settings += [config.on_bad_row, config.format, asdict(config.columns), config.pairs, config.min_score_gap]
        return hashlib.sha256(json.dumps(settings).encode()).hexdigest()

    def _write(self, file: DataFile, writer: EntryWriter) -> dict[str, Any]:
        """Prepare the blocks of a file one after the other. Returns what is to be known of the whole."""
        shape, first = _recognised(file, self._config)
        recipe = self._recipe_for(first)
        workers = self._workers_for(file, recipe)
        stops = self._config.on_bad_row == "error"
        problems, count, unread = list[Problem](), 0, Counter[str]()
        what = f"preparing {file.name}, kB"
        self._on_progress(what, 0, file.size // _KILOBYTE)
        try:
            blocks = (((block, file.name, shape, stops and count > 0), done) for block, done in read_blocks(file))
            for block, done in workers.map(prepare_block, blocks):
                count += len(block.problems)
                problems += [explained(bad, file) for bad in block.problems[: PROBLEMS_SHOWN - len(problems)]]
                unread.update(block.unread)
                if block.batch is not None:
                    writer.write(block.batch)
                self._on_progress(what, done // _KILOBYTE, file.size // _KILOBYTE)
        except DataError as error:
            raise DataError("\n".join([str(error), *map(str, problems)])) from None
        if count and stops:
            raise DataError(_problem_report(problems, count))
        return {
            "format": shape.format,
            "chat": recipe.chat,
            "end_id": tokenization.end_id(recipe.chat, self._tokenizer),
            "unread_keys": dict(unread),
            "problems": [(bad.source.line, bad.text) for bad in problems],
        }

    def _recipe_for(self, first: PreferencePair) -> Recipe:
        """The same for all files: the first decides whether the chat template is used."""
        if self._recipe is None:
            setting, tokenizer = self._config.chat_template, self._tokenizer
            chat = self._first.notes["chat"] if self._first else rendering.is_chat(first, setting, tokenizer)
            self._recipe = Recipe(
                tokenization.Encoder(tokenizer),
                tokenization.special_ids(tokenizer),
                chat,
                setting is None,
                rendering.turn_end(tokenizer) if chat else None,
                self._max_length,
                self._config.length_policy,
            )
        return self._recipe

    def _workers_for(self, file: DataFile, recipe: Recipe) -> Workers:
        """Processes, started when the first large file needs them; this process alone for a small one."""
        wanted = worthwhile(file.size, self._config.workers)
        if wanted == 1:
            return self._workers if self._workers is not None else Workers(recipe, 1)
        if self._workers is None:
            self._workers = Workers(recipe, wanted).__enter__()
        return self._workers


def _recognised(file: DataFile, config: DataConfig) -> tuple[Shape, PreferencePair]:
    """The shape of a file, and its first valid pair.

    Raises:
        DataError: it has no valid row, or more than one shape.
    """
    rows = read_rows(file)
    problems: list[Problem] = []
    head: list[Row] = []
    for found in rows:
        if isinstance(found, Problem):
            problems.append(found)
        else:
            head.append(found)
        if len(head) == SHAPE_ROWS:
            break
    shape = find_shape(head, config, file.has_cells)
    for found in itertools.chain(head, rows):
        made = found if isinstance(found, Problem) else to_pairs(found, shape)
        if isinstance(made, Problem):
            problems.append(made)
        elif pair := next((item for item in made if not isinstance(item, Skipped)), None):
            return shape, pair
    if not problems:
        raise DataError(f"{file.name}: no rows" if not head else f"{file.name}: no pair is left: all are ties")
    problems.sort(key=lambda bad: bad.source.line)
    raise DataError("\n".join([f"{file.name}: no valid rows", *map(str, problems[:PROBLEMS_SHOWN])]))


def _problem_report(problems: Sequence[Problem], count: int) -> str:
    more = f" (the first {PROBLEMS_SHOWN} are shown)" if count > PROBLEMS_SHOWN else ""
    rows = "1 invalid row" if count == 1 else f"{count} invalid rows"
    return "\n".join([f"{rows}{more}; data.on_bad_row=skip leaves them out and lists them", *map(str, problems)])


def tokenizer_fingerprint(tokenizer: Any) -> str:
    """A digest of everything that decides a text's ids."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    vocabulary = backend.to_str() if backend is not None else json.dumps(tokenizer.get_vocab(), sort_keys=True)
    parts = [vocabulary, str(tokenizer.chat_template), str(tokenizer.special_tokens_map)]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


def _notes(file: TokenizedFile) -> list[str]:
    notes = []
    name = file.file.rpartition("/")[2]
    if unread := file.notes["unread_keys"]:
        shown = [f"{shortened(key, 30)} ({count} rows)" for key, count in list(unread.items())[:KEYS_SHOWN]]
        more = [f"and {len(unread) - KEYS_SHOWN} more keys"] if len(unread) > KEYS_SHOWN else []
        notes.append(f"{name}: not read: " + ", ".join(shown + more))
    if identical := int(file.column("identical").sum()):
        notes.append(f"{name}: {identical} pairs have the same chosen and rejected; their preference term is constant")
    if merged := int(file.column("boundary_merged").sum()):
        notes.append(
            f"{name}: in {merged} pairs a token would span prompt and response; the two were tokenized apart "
            "(a space or newline at the end of the prompt, or at the start of the responses, avoids it)"
        )
    if controls := int((file.column("control_tokens") > 0).sum()):
        notes.append(
            f"{name}: {controls} pairs hold special tokens of the model in their own texts; they are encoded as such"
        )
    return notes + [f"skipped {file.file}:{line}: {text}" for line, text in file.notes["problems"]]


def _question(
    store: PairStore, files: Sequence[DataFile], tokenized: Sequence[TokenizedFile], config: DataConfig
) -> str:
    """The words of the first pair's prompt, without roles and template."""
    first, row = store.place(0)
    file = next(file for file, part in zip(files, tokenized, strict=True) if part is first)
    given = next(itertools.islice(read_rows(file), first.ordinal(row), None))
    shape = known_shape(first.notes["format"], config, file.has_cells)
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
    return (
        f"{names}: no pair left to train on: {classes_text}; "
        f"raise data.max_length={max_length} or change data.length_policy"
    )
