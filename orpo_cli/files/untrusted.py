"""Read small text files that may come from somebody else: regular files of limited size that hold plain data.

YAML can expand 200 bytes of nested aliases into gigabytes, keep the last of two equal keys, and read `012` as ten.
Reading from a pipe or a device in the place of a file never ends.
"""

import json
import os
import re
import stat
from collections import Counter
from pathlib import Path
from typing import Any

import yaml

MAX_BYTES = 1_000_000
MAX_OWN_BYTES = 16_000_000
"""Limit for files that `orpo` writes, which may name thousands of data files."""
MAX_VALUES = 10_000
"""Values in one YAML file; an aliased value counts as often as it is used."""

_SURPRISES = re.compile(
    r"[-+]?0[0-7_]+|[-+]?\d[\d_]*(:[0-5]?\d)+(\.\d*)?|[-+]?[\d.]+_[\d_.]*|yes|no|on|off", re.IGNORECASE
)
"""What YAML 1.1 reads as a number or as true and false, and people and YAML 1.2 do not."""


def read_text(path: Path, limit: int = MAX_BYTES) -> str:
    """Read a regular file of UTF-8.

    Raises:
        OSError: if it cannot be read.
        ValueError: if it is not a regular file, too large, or not UTF-8.
    """
    handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    with os.fdopen(handle, "rb") as stream:
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            raise ValueError("not a regular file")
        raw = stream.read(limit + 1)
        if len(raw) > limit:
            raise ValueError(f"{os.fstat(handle).st_size} bytes; expected at most {limit}")
    return raw.decode("utf-8")


def read_json(path: Path, limit: int = MAX_BYTES) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        OSError: if it cannot be read.
        ValueError: as for `read_text`, or if it is not a JSON object or nested too deeply.
    """
    try:
        value = json.loads(read_text(path, limit))
    except RecursionError:
        raise ValueError("nested too deeply") from None
    if not isinstance(value, dict):
        raise ValueError("not an object")
    return value


def read_yaml(path: Path, exponents: bool = False) -> tuple[str, Any]:
    """Return the text of a YAML file and the value it holds.

    Args:
        exponents: whether a plain `1e-3` is a number, as for Hydra and in YAML 1.2, and not a text.
    Raises:
        OSError: if it cannot be read.
        ValueError: if it is too large or not plain data; the message begins with the line where that is known.
    """
    try:
        text = read_text(path)
        return text, (_ExponentLoader if exponents else _Loader)(text).get_single_data()
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise ValueError(f":{line}: {error.problem}") from None
    except RecursionError:
        raise ValueError(": nested too deeply") from None
    except (yaml.YAMLError, ValueError, OverflowError) as error:
        raise ValueError(f": not YAML: {' '.join(str(error).split())[:200]}") from None


class _Loader(yaml.SafeLoader):
    """YAML's safe loader that refuses duplicate keys, aliases that multiply, and values that surprise."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._values = 0
        self._sizes: dict[int, int] = {}

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        """Count the values while they are read, so that a file with too many is not read to its end."""
        before, is_alias = self._values, self.check_event(yaml.AliasEvent)
        node: yaml.Node | None = super().compose_node(parent, index)
        self._values += self._sizes.get(id(node), MAX_VALUES) if is_alias else 1  # unknown: an alias inside itself
        if self._values > MAX_VALUES:
            raise yaml.YAMLError(f"more than {MAX_VALUES} values once its aliases are expanded")
        self._sizes[id(node)] = self._values - before
        return node

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Refuse a key that stands twice; `<<` may."""
        keys = [key for key, _ in node.value if isinstance(key, yaml.ScalarNode) and not key.tag.endswith(":merge")]
        times = Counter(key.value for key in keys)
        for key in reversed(keys):
            if times[key.value] > 1:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key `{key.value}` stands twice", key.start_mark
                )
        return super().construct_mapping(node, deep)

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        """Refuse a plain word that only YAML 1.1 takes for a number or a truth value."""
        value = super().construct_object(node, deep)
        plain = isinstance(node, yaml.ScalarNode) and node.style is None and not node.tag.endswith(":str")
        if plain and _SURPRISES.fullmatch(node.value):
            problem = f"`{node.value}` is {json.dumps(value)} in YAML: write that, or put it in quotes"
            raise yaml.constructor.ConstructorError(None, None, problem, node.start_mark)
        return value


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:timestamp"]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
"""A date stays the text that it is written as."""


class _ExponentLoader(_Loader):
    """The same loader for what people write."""


_ExponentLoader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+"), list("-+.0123456789")
)
