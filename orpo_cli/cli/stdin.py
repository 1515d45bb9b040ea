"""Keep what `data=-` reads from standard input in the cache, so that every process can read it."""

import hashlib
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from orpo_cli.errors import ConfigError
from orpo_cli.files.cache import cache_directory
from orpo_cli.quoting import override_value

_WAYS = ("data.path='-'", "data.path=-")


def kept(arguments: Sequence[str]) -> list[str]:
    """Return the overrides with the path of the kept file instead of `-`.

    Args:
        arguments: as `shorthand.expand` returns them.
    Raises:
        ConfigError: if standard input is a terminal.
    """
    if not any(word in _WAYS for word in arguments):
        return list(arguments)
    if sys.stdin is None or sys.stdin.isatty():
        raise ConfigError(
            "data=-: standard input is a terminal; pipe the preferences in, as in `... | orpo train data=-`"
        )
    path = _keep()
    return [f"data.path={override_value(str(path))}" if word in _WAYS else word for word in arguments]


def _keep() -> Path:
    folder = cache_directory() / "stdin"
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=folder, prefix=".tmp-", delete=False) as copy:
        temporary = Path(copy.name)
        try:
            shutil.copyfileobj(sys.stdin.buffer, copy)
            copy.flush()
            with temporary.open("rb") as stream:
                digest = hashlib.file_digest(stream, "sha256").hexdigest()
            return temporary.replace(folder / f"{digest[:16]}.json")
        finally:
            temporary.unlink(missing_ok=True)
