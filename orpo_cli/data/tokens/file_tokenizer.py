"""Turn one preference file into one entry of the cache, block by block; the file is never held whole.

The entry lies under a key made of the file's bytes, the tokenizer and the settings that matter, so that a second start
reads no text; touching the file or moving it changes nothing.
"""

import hashlib
import itertools
import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict
from importlib import metadata
from typing import Any

from orpo_cli import __version__
from orpo_cli.config.data import DataConfig
from orpo_cli.data.pairs import ChatPair, PreferencePair, Problem, Row, Skipped
from orpo_cli.data.problems import Problems
from orpo_cli.data.progress import OnProgress
from orpo_cli.data.rows.readers import read_blocks, read_rows
from orpo_cli.data.rows.sources import DataFile
from orpo_cli.data.shapes.conversion import to_pairs
from orpo_cli.data.shapes.recognition import find_shape
from orpo_cli.data.shapes.shape import Shape
from orpo_cli.data.tokens.block_tokenizer import tokenize_block
from orpo_cli.data.tokens.chat_template import ChatTemplate
from orpo_cli.data.tokens.rendering import is_chat
from orpo_cli.data.tokens.store import SCHEMA, EntryWriter, TokenizedFile, open_entry
from orpo_cli.data.tokens.tokenization import TokenizationSettings
from orpo_cli.data.tokens.workers import Workers, worker_count
from orpo_cli.errors import DataError
from orpo_cli.files.cache import cache_directory

CACHE_FORMAT = 10  # raise it when what a cached entry holds, or how it comes about, changes
SHAPE_ROWS = 100
"""Rows by which the shape of a file is recognised."""

_KILOBYTE = 1000


class FileTokenizer:
    """Tokenize the files of one run with the same processes and settings. Use as a context manager.

    Args:
        template_arguments: what the chat template is told besides the messages.
    """

    def __init__(
        self,
        config: DataConfig,
        tokenizer: Any,
        max_length: int,
        on_progress: OnProgress,
        template_arguments: Mapping[str, Any],
    ) -> None:
        self._config = config
        self._tokenizer = tokenizer
        self._template_arguments = template_arguments
        self._max_length = max_length
        self._on_progress = on_progress
        self._fingerprint = tokenizer_fingerprint(tokenizer)
        self._first: TokenizedFile | None = None
        self._settings: TokenizationSettings | None = None
        self._workers: Workers | None = None

    def __enter__(self) -> "FileTokenizer":
        return self

    def __exit__(self, *error: Any) -> None:
        if self._workers is not None:
            self._workers.__exit__(*error)

    def tokenized(self, file: DataFile) -> TokenizedFile:
        """Return the rows of a file, from the cache or made now.

        Raises:
            DataError: if rows are invalid under `on_bad_row=error`, if no row is valid, or if the file holds another
                kind of data than the first.
        """
        digest = file.sha256()
        entry = cache_directory() / "tokens" / self._key(digest, file)
        found = open_entry(entry, file.name)
        if found is None:
            with EntryWriter(entry) as writer:
                notes = self._write(file, writer) | {"sha256": digest}
                if file.sha256() != digest:
                    raise DataError(f"{file.name}: changed while it was read; start again once it is written")
                writer.publish(notes)
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
        settings += [self._fingerprint, self._max_length, config.length_policy, config.chat_template]
        settings += [config.on_bad_row, config.format, asdict(config.columns), config.pairs, config.min_score_gap]
        settings += [
            config.first_won,
            config.second_won,
            config.ignore_keys,
            config.fold_system,
            config.later_turns,
            self._template_arguments,
        ]
        return hashlib.sha256(json.dumps(settings).encode()).hexdigest()

    def _write(self, file: DataFile, writer: EntryWriter) -> dict[str, Any]:
        """Tokenize the blocks of a file one after the other, and return what is to be known of the whole."""
        shape, first = _shape_and_first_pair(file, self._config)
        settings = self._settings_for(first)
        workers = self._workers_for(file, settings)
        stops = self._config.on_bad_row == "error"
        problems, unread, notes = Problems(), Counter[str](), Counter[str]()
        what = f"preparing {file.name}, kB"
        self._on_progress(what, 0, file.size // _KILOBYTE)
        try:
            blocks = (
                ((block, file.name, shape, stops and problems.count > 0), done) for block, done in read_blocks(file)
            )
            for block, done in workers.results_in_order(tokenize_block, blocks):
                problems.add(block.problems)
                unread.update(block.unread)
                notes.update(block.notes)
                if block.batch is not None:
                    writer.write(block.batch)
                self._on_progress(what, done // _KILOBYTE, file.size // _KILOBYTE)
        except DataError as error:
            raise DataError("\n".join([str(error), *problems.shown(file.name)])) from None
        if problems.count and stops:
            raise DataError(problems.report(file.name))
        return {
            "format": shape.format,
            "columns": dict(shape.columns),
            "first_won": shape.verdict.first,
            "chat": settings.chat,
            "end_id": settings.end_id,
            "unread_keys": dict(unread),
            "pairs": dict(notes),
            "numbered": first.source.row > 0,
            "problems": [vars(kept) for kept in problems.kept],
        }

    def _settings_for(self, first: PreferencePair) -> TokenizationSettings:
        """Return the settings of all files; the first file decides whether the chat template is used."""
        if self._settings is None:
            wanted, tokenizer = self._config.chat_template, self._tokenizer
            chat = self._first.notes["chat"] if self._first else is_chat(isinstance(first, ChatPair), wanted, tokenizer)
            one_kind = wanted is None or (wanted == "auto" and not tokenizer.chat_template)
            template = ChatTemplate(tokenizer, self._template_arguments, self._config.fold_system) if chat else None
            policy = self._config.length_policy
            self._settings = TokenizationSettings.of(tokenizer, template, self._max_length, policy, one_kind)
        return self._settings

    def _workers_for(self, file: DataFile, settings: TokenizationSettings) -> Workers:
        """Return the processes, started when the first large file needs them; a small one is left to this process."""
        count = worker_count(file.size, self._config.workers)
        if self._workers is None and count > 1:
            self._workers = Workers(settings, count).__enter__()
        return self._workers or Workers(settings, 1)


def _shape_and_first_pair(file: DataFile, config: DataConfig) -> tuple[Shape, PreferencePair]:
    """Return the shape of a file and its first valid pair.

    Raises:
        DataError: if the file has no valid row, or more than one shape.
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
    left_out: Counter[str] = Counter()
    for found in itertools.chain(head, rows):
        made = found if isinstance(found, Problem) else to_pairs(found, shape)
        if isinstance(made, Problem):
            problems.append(made)
            continue
        left_out.update(item.reason for item in made if isinstance(item, Skipped))
        if pair := next((item for item in made if not isinstance(item, Skipped)), None):
            return shape, pair
    if not head and not problems:
        raise DataError(f"{file.name}: no rows")
    if not problems:
        counts = ", ".join(f"{count} dropped:{reason}" for reason, count in left_out.items())
        raise DataError(f"{file.name}: no pair is left: {counts}")
    different = Problems()
    different.add(sorted(problems, key=lambda bad: bad.source))
    raise DataError("\n".join([f"{file.name}: no valid rows", *different.shown(file.name)]))


def tokenizer_fingerprint(tokenizer: Any) -> str:
    """Return a digest of everything that decides a text's ids."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    vocabulary = backend.to_str() if backend is not None else json.dumps(tokenizer.get_vocab(), sort_keys=True)
    parts = [vocabulary, str(tokenizer.chat_template), str(tokenizer.special_tokens_map)]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()
