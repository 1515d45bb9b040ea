"""Preference files to stores of tokenized pairs, with every row accounted for.

The result is cached under a key made of the file's bytes, the tokenizer and the settings that matter, so that a second
start reads no JSON; touching the file or moving it changes nothing.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from orpo_cli import __version__
from orpo_cli.config.schema import DataConfig
from orpo_cli.data import rendering, tokenization
from orpo_cli.data.pairs import PreferencePair, Problem
from orpo_cli.data.readers import read_rows, shortened
from orpo_cli.data.rows import extra_keys, to_pair
from orpo_cli.data.store import SCHEMA, PairStore, StoredRow, TokenizedFile, cache_directory, write_rows
from orpo_cli.errors import DataError, InputNotFoundError

OnProgress = Callable[[str, int, int], None]
"""Called with what is being done, how much of it is done, and how much there is."""

CACHE_FORMAT = 2  # raise it when what a cached file holds, or how it comes about, changes
BATCH_ROWS = 1000
PROBLEMS_SHOWN = 20
KEYS_SHOWN = 8


@dataclass(frozen=True)
class PreparedData:
    """What a run trains on and what it is evaluated on.

    Args:
        train: never empty.
        evaluation: may be empty.
        classes: rows by class and split, such as ("train", "kept"); adds up to the rows of the input.
        notes: things a user should know, one line each.
        sha256: of each input file's bytes.
        uses_chat_template: whether the texts were rendered with the tokenizer's chat template.
        end_id: the token that every response which was not cut ends in.
        highest_token_id: over all pairs, so that a model can be asked whether it embeds it.
        ledger: one record a row, in the order of the input.
    """

    train: PairStore
    evaluation: PairStore
    classes: dict[tuple[str, str], int]
    notes: list[str]
    sha256: dict[str, str]
    uses_chat_template: bool
    end_id: int
    highest_token_id: int
    ledger: list[dict[str, Any]]


def prepare(config: DataConfig, tokenizer: Any, max_length: int, seed: int, on_progress: OnProgress) -> PreparedData:
    """Read, validate and tokenize the preference files of a run.

    Args:
        max_length: `data.max_length`, or less where the model has fewer positions.
    Raises:
        InputNotFoundError: no such file.
        DataError: invalid rows under `on_bad_row=error`, or no pair left to train on.
    """
    file = _tokenized_file(locate(config.path), config, tokenizer, max_length, on_progress)
    rows = file.trainable()
    if config.eval_path is None:
        held_out = _held_out(file, rows, config.eval_fraction, seed)
        train, evaluation = [row for row in rows if row not in held_out], [row for row in rows if row in held_out]
        eval_file = file
    else:
        train, held_out = rows, set()
        eval_file = _tokenized_file(locate(config.eval_path), config, tokenizer, max_length, on_progress)
        _check_same_rendering(file, eval_file)
        evaluation = eval_file.trainable()
    files = {"train": file} if eval_file is file else {"train": file, "eval": eval_file}
    if not train:
        raise DataError(_nothing_left(file, max_length, bool(held_out)))
    stores = PairStore(file, train), PairStore(eval_file, evaluation)
    ledger = [record for split, part in files.items() for record in _ledger(part, split, held_out)]
    return PreparedData(
        *stores,
        classes=dict(Counter((record["split"], record["class"]) for record in ledger)),
        notes=[note for part in files.values() for note in _notes(part)]
        + (_shared_prompts(file, eval_file) if eval_file is not file else []),
        sha256={part.file: part.notes["sha256"] for part in files.values()},
        uses_chat_template=file.notes["chat"] == "true",
        end_id=int(file.notes["end_id"]),
        highest_token_id=max(part.highest_id() for part in files.values()),
        ledger=ledger,
    )


def locate(path: str) -> Path:
    """The file a `data.path` names; `builtin:NAME` lies inside the package.

    Raises:
        InputNotFoundError: no such file.
    """
    if path.startswith("builtin:"):
        found = Path(__file__).resolve().parent.parent / path.removeprefix("builtin:")
    else:
        found = Path(path).expanduser()
    if not found.is_file():
        what = "is a directory; expected a JSON or JSON Lines file" if found.is_dir() else "no such file"
        raise InputNotFoundError(f"{path}: {what}")
    return found


def _tokenized_file(
    path: Path, config: DataConfig, tokenizer: Any, max_length: int, on_progress: OnProgress
) -> TokenizedFile:
    digest = _sha256(path)
    key = _cache_key(digest, config, tokenizer, max_length)
    cached = cache_directory() / "tokens" / f"{key}.arrow"
    try:
        return TokenizedFile(cached, str(path))
    except (OSError, pa.ArrowInvalid):  # not there yet, or damaged
        pass
    pairs, problems, notes = _read(path, config, on_progress)
    chat = rendering.is_chat(pairs, config.chat_template, tokenizer)
    batches = list(_tokenized_batches(pairs, chat, config, tokenizer, max_length, path.name, on_progress))
    batches.append([_invalid_row(bad) for bad in problems])
    listed = [(bad.source.line, bad.text) for bad in problems[:PROBLEMS_SHOWN]]
    notes |= {"sha256": digest, "chat": str(chat).lower(), "problems": json.dumps(listed)}
    notes |= {"end_id": str(tokenization.end_id(chat, tokenizer))}
    write_rows(cached, batches, notes)
    return TokenizedFile(cached, str(path))


def _invalid_row(problem: Problem) -> StoredRow:
    return StoredRow(problem.source.line, f"invalid:{problem.reason}", (0, 0, 0), False, False, b"", None)


def _check_same_rendering(train: TokenizedFile, evaluation: TokenizedFile) -> None:
    if train.notes["chat"] != evaluation.notes["chat"]:
        kinds = {"true": "chat messages", "false": "plain text"}
        raise DataError(
            f"{evaluation.file}: {kinds[evaluation.notes['chat']]}, but {train.file} is {kinds[train.notes['chat']]}; "
            "data.chat_template=true renders both with the chat template, false none"
        )


def _read(
    path: Path, config: DataConfig, on_progress: OnProgress
) -> tuple[list[PreferencePair], list[Problem], dict[str, str]]:
    pairs: list[PreferencePair] = []
    problems: list[Problem] = []
    unread: Counter[str] = Counter()
    for row in read_rows(path):
        found = row if isinstance(row, Problem) else to_pair(row)
        if isinstance(found, Problem):
            problems.append(found)
        else:
            pairs.append(found)
        if not isinstance(row, Problem):
            unread.update(extra_keys(row))
        if (len(pairs) + len(problems)) % BATCH_ROWS == 0:
            on_progress(f"reading {path.name}", len(pairs) + len(problems), 0)
    if problems and config.on_bad_row == "error":
        raise DataError(_problem_report(problems))
    if not pairs:
        what = "no valid rows" if problems else "no rows"
        raise DataError("\n".join([f"{path}: {what}", *(str(bad) for bad in problems[:PROBLEMS_SHOWN])]))
    return pairs, problems, {"unread_keys": json.dumps(dict(unread))}


def _problem_report(problems: Sequence[Problem]) -> str:
    shown = [str(problem) for problem in problems[:PROBLEMS_SHOWN]]
    more = f" (the first {PROBLEMS_SHOWN} are shown)" if len(problems) > PROBLEMS_SHOWN else ""
    rows = "1 invalid row" if len(problems) == 1 else f"{len(problems)} invalid rows"
    return "\n".join([f"{rows}{more}; data.on_bad_row=skip leaves them out and lists them", *shown])


def _tokenized_batches(
    pairs: Sequence[PreferencePair],
    chat: bool,
    config: DataConfig,
    tokenizer: Any,
    max_length: int,
    name: str,
    on_progress: OnProgress,
) -> Iterator[list[StoredRow]]:
    special = tokenization.special_ids(tokenizer)
    end = rendering.turn_end(tokenizer) if chat else None
    for start in range(0, len(pairs), BATCH_ROWS):
        part = [rendering.render(pair, chat, end, tokenizer) for pair in pairs[start : start + BATCH_ROWS]]
        rows = tokenization.tokenize(part, chat, special, tokenizer, max_length, config.length_policy)
        yield [
            StoredRow(
                pair.source.line,
                row.row_class,
                row.lengths,
                row.boundary_merged,
                row.identical,
                hashlib.sha256(pair.prompt.encode()).digest(),
                row.pair,
            )
            for pair, row in zip(part, rows, strict=True)
        ]
        on_progress(f"tokenizing {name}", start + len(part), len(pairs))


def _cache_key(digest: str, config: DataConfig, tokenizer: Any, max_length: int) -> str:
    settings = [__version__, CACHE_FORMAT, SCHEMA.names, digest, tokenizer_fingerprint(tokenizer), max_length]
    settings += [config.length_policy, config.chat_template, config.on_bad_row]
    return hashlib.sha256(json.dumps(settings).encode()).hexdigest()


def tokenizer_fingerprint(tokenizer: Any) -> str:
    """A digest of everything that decides a text's ids."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    vocabulary = backend.to_str() if backend is not None else json.dumps(tokenizer.get_vocab(), sort_keys=True)
    parts = [vocabulary, str(tokenizer.chat_template), str(tokenizer.special_tokens_map)]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


def _sha256(path: Path) -> str:
    try:
        with path.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise InputNotFoundError(f"{path}: cannot be read: {error.strerror}") from None


def _held_out(file: TokenizedFile, rows: Sequence[int], fraction: float, seed: int) -> set[int]:
    """Rows for evaluation: whole prompts until the share is reached, in an order that only prompt and seed decide."""
    if fraction == 0:
        return set()
    by_prompt: dict[bytes, list[int]] = {}
    digests = file.column("prompt_digest")
    for row in rows:
        by_prompt.setdefault(hashlib.sha256(f"{seed}:".encode() + digests[row]).digest(), []).append(row)
    wanted = max(1, round(fraction * len(rows)))
    held_out: set[int] = set()
    for prompt in sorted(by_prompt):
        if len(held_out) + len(by_prompt[prompt]) / 2 > wanted and held_out:
            break
        held_out.update(by_prompt[prompt])
    return held_out


def _ledger(file: TokenizedFile, split: str, held_out: set[int]) -> list[dict[str, Any]]:
    names = ("line", "row_class", "prompt_tokens", "chosen_tokens", "rejected_tokens", "boundary_merged", "identical")
    columns = zip(*(file.column(name) for name in names), strict=True)
    records = [
        {
            "file": file.file,
            "line": line,
            "class": row_class,
            "split": "eval" if row in held_out else split,
            "prompt_tokens": prompt,
            "chosen_tokens": chosen,
            "rejected_tokens": rejected,
            "boundary_merged": merged,
            "identical": identical,
        }
        for row, (line, row_class, prompt, chosen, rejected, merged, identical) in enumerate(columns)
    ]
    return sorted(records, key=lambda record: record["line"])


def _notes(file: TokenizedFile) -> list[str]:
    notes = []
    name = Path(file.file).name
    if unread := json.loads(file.notes["unread_keys"]):
        shown = [f"{shortened(key, 30)} ({count} rows)" for key, count in list(unread.items())[:KEYS_SHOWN]]
        more = [f"and {len(unread) - KEYS_SHOWN} more keys"] if len(unread) > KEYS_SHOWN else []
        notes.append(f"{name}: not read: " + ", ".join(shown + more))
    if identical := sum(file.column("identical")):
        notes.append(f"{name}: {identical} pairs have the same chosen and rejected; their preference term is constant")
    if merged := sum(file.column("boundary_merged")):
        notes.append(
            f"{name}: in {merged} pairs a token would span prompt and response; the two were tokenized apart "
            "(a space or newline at the end of the prompt, or at the start of the responses, avoids it)"
        )
    notes += [f"skipped {file.file}:{line}: {text}" for line, text in json.loads(file.notes["problems"])]
    return notes


def _shared_prompts(train: TokenizedFile, evaluation: TokenizedFile) -> list[str]:
    trained, evaluated = train.column("prompt_digest"), evaluation.column("prompt_digest")
    known = {trained[row] for row in train.trainable()}
    shared = sum(evaluated[row] in known for row in evaluation.trainable())
    return [f"{shared} evaluation pairs have a prompt that is also trained on"] if shared else []


def _nothing_left(file: TokenizedFile, max_length: int, held_out: bool) -> str:
    if held_out:
        return f"{file.file}: every pair is held out for evaluation; lower data.eval_fraction"
    classes = ", ".join(f"{count} {name}" for name, count in Counter(file.column("row_class")).items())
    return (
        f"{file.file}: no pair left to train on: {classes}; "
        f"raise data.max_length={max_length} or change data.length_policy"
    )
