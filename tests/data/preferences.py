"""Write preference files of a few rows, and prepare them with defaults for all that a test is not about."""

import functools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from orpo_cli.config.data import ColumnsConfig, DataConfig
from orpo_cli.config.keys import builtin_configs
from orpo_cli.data.pairs import Message
from orpo_cli.data.prepare import PreparedData, prepare
from orpo_cli.data.tokens.store import PairStore


def said(text: str) -> Message:
    """Return an answer of the assistant."""
    return Message("assistant", text)


@functools.cache
def shared_tokenizer() -> Any:
    """Return the tokenizer of the tiny model, whose tokens are bytes."""
    from orpo_cli.models import builtin

    return builtin.byte_tokenizer()


def row(prompt: Any = "p", chosen: Any = "c", rejected: Any = "r", **others: Any) -> dict[str, Any]:
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected, **others}


def chat_row(text: str) -> dict[str, Any]:
    return row([{"role": "user", "content": text}])


def ranking(prompt: str, *scores: float, **others: Any) -> dict[str, Any]:
    """Return a row with a response for each of the scores."""
    responses = [f"response {place}" for place in range(len(scores))]
    return {"prompt": prompt, "responses": responses, "scores": list(scores), **others}


def written(path: Path, rows: Sequence[Any]) -> str:
    """Write a file with these rows, one a line, and return its path; a row that is bytes stands as it is."""
    path.write_bytes(
        b"".join((item if isinstance(item, bytes) else json.dumps(item).encode()) + b"\n" for item in rows)
    )
    return str(path)


def data_config(path: Any, **changed: Any) -> DataConfig:
    """Return `data=file` with some keys changed; a dict of columns changes those that it names.

    Plain text stays as it is, whatever the tokenizer.
    """
    values = yaml.safe_load((builtin_configs() / "data" / "file.yaml").read_text(encoding="utf-8"))
    columns = ColumnsConfig(**(values["columns"] | changed.pop("columns", {})))
    return DataConfig(**(values | {"chat_template": None} | changed | {"path": path, "columns": columns}))


def prepared(path: Any, tokenizer: Any = None, max_length: int = 200, **changed: Any) -> PreparedData:
    config = data_config(path, max_length=max_length, **changed)
    return prepare(config, tokenizer or shared_tokenizer(), max_length, lambda *_: None)


def ledger_records(data: PreparedData) -> list[dict[str, Any]]:
    """Return the records of the ledger."""
    return [json.loads(line) for chunk in data.ledger.lines() for line in chunk.splitlines()]


def lines_of(store: PairStore) -> list[int]:
    return [store.source(index).line for index in range(len(store))]


def entries(cache: Path) -> set[Path]:
    """Return the entries of the cache, without what is hidden beside them."""
    return {entry for entry in (cache / "tokens").glob("*") if not entry.name.startswith(".")}
