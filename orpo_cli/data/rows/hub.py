"""Load datasets of the hub through `datasets`; what was fetched once can be read without a network."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

from orpo_cli.errors import InputNotFoundError, UnreachableError

_SECONDS = 10
"""How long the hub may take to answer."""


def load(path: str, subset: str | None, revision: str | None) -> Any:
    """Load a dataset of the hub, or the copy that was fetched before where the hub cannot be reached.

    Raises:
        InputNotFoundError: if there is no such dataset or revision.
        UnreachableError: if access has to be granted, or the hub cannot be reached and there is no copy.
    """
    import datasets

    unreachable = f"{path}: no such file here, and the dataset hub cannot be reached; give a file or folder: data=PATH"
    reached = _has_dataset(path, revision)
    try:
        with nullcontext() if reached else _offline():
            found = datasets.load_dataset(path, subset, revision=revision)
    except Exception:
        if _has_dataset(path, revision):
            raise
        raise UnreachableError(unreachable) from None
    if not reached and revision is not None and not _is_of(revision, found):
        raise UnreachableError(f"{unreachable}; the copy that was fetched before is of another revision")
    return found


def _has_dataset(path: str, revision: str | None) -> bool:
    """Return whether the hub says that it has the dataset; False where it gives no answer.

    `datasets` would ask six times over half a minute, and print a warning each time.
    """
    from datasets import config
    from huggingface_hub import HfApi, errors

    try:
        HfApi(endpoint=config.HF_ENDPOINT).dataset_info(path, revision=revision, timeout=_SECONDS)
    except errors.GatedRepoError:
        raise UnreachableError(
            f"data.path={path}: access to this dataset has to be granted on the hub; "
            "accept its licence there, then `hf auth login`, or give a local copy: data=PATH"
        ) from None
    except (errors.RepositoryNotFoundError, errors.RevisionNotFoundError, errors.HFValidationError):
        at = f" at revision {revision}" if revision else ""
        raise InputNotFoundError(f"{path}: no such file, and no such dataset on the hub{at}") from None
    except Exception:  # no name server, no route, a time-out, an answer that makes no sense
        return False
    return True


@contextmanager
def _offline() -> Iterator[None]:
    """Have `datasets` look for what was fetched before, and ask nobody."""
    from datasets import config

    before, config.HF_HUB_OFFLINE = config.HF_HUB_OFFLINE, True
    try:
        yield
    finally:
        config.HF_HUB_OFFLINE = before


def _is_of(revision: str, found: Any) -> bool:
    """Return whether the fetched files lie in the folder of a commit; branches and tags are not recorded there."""
    splits = found.values() if hasattr(found, "values") else [found]
    return all(revision in Path(entry["filename"]).parts for split in splits for entry in split.cache_files)
