"""Small files of text that may come from somebody else: regular, bounded, and plain data.

YAML can expand 200 bytes of nested aliases into gigabytes, keep the last of two equal keys, and read `012` as ten;
a pipe or a device in the place of a file never ends.
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
"""Of a file that `orpo` wrote: it may name thousands of files of data."""
MAX_VALUES = 10_000
"""Values in one file of YAML, an alias counted as often as it is used."""
MAX_BRACKETS = 50
"""Open at the same time; the scanner's work grows with their square."""

_SURPRISES = re.compile(
    r"[-+]?0[0-7_]+|[-+]?\d[\d_]*(:[0-5]?\d)+(\.\d*)?|[-+]?[\d.]+_[\d_.]*|yes|no|on|off", re.IGNORECASE
)
"""What YAML 1.1 reads as a number or as true and false, and people and YAML 1.2 do not."""


def read_text(path: Path, limit: int = MAX_BYTES) -> str:
    """A regular file of UTF-8.

    Raises:
        OSError: it cannot be read.
        ValueError: it is no regular file, too large, or not UTF-8.
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
    """An object of JSON.

    Raises:
        OSError: it cannot be read.
        ValueError: as `read_text`, or it is no object of JSON, or nested too deeply.
    """
    try:
        value = json.loads(read_text(path, limit))
    except RecursionError:
        raise ValueError("nested too deeply") from None
    if not isinstance(value, dict):
        raise ValueError("not an object")
    return value


def read_yaml(path: Path) -> tuple[str, Any]:
    """The text of a file of YAML, and what it holds.

    Raises:
        OSError: it cannot be read.
        ValueError: it is too large, or no plain data; the message begins with the line where that is known.
    """
    try:
        text = read_text(path)
        return text, _Loader(text).get_single_data()
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise ValueError(f":{line}: {error.problem}") from None
    except RecursionError:
        raise ValueError(": nested too deeply") from None
    except (yaml.YAMLError, ValueError, OverflowError) as error:
        raise ValueError(f": not YAML: {' '.join(str(error).split())[:200]}") from None


class _Loader(yaml.SafeLoader):
    """YAML's safe loader that refuses duplicate keys, aliases that multiply, and values that surprise."""

    nodes = 0

    def fetch_flow_collection_start(self, TokenClass: Any) -> None:  # noqa: N803 - PyYAML's name
        """As an opening bracket; of too many the rest is not read."""
        if self.flow_level >= MAX_BRACKETS:
            raise RecursionError
        super().fetch_flow_collection_start(TokenClass)

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        """As a node; a file of too many is not read to its end."""
        self.nodes += 1
        if self.nodes > 2 * MAX_VALUES:
            raise yaml.YAMLError(f"more than {MAX_VALUES} values")
        node: yaml.Node | None = super().compose_node(parent, index)
        return node

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """As a mapping whose keys differ."""
        times = Counter(key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode) and not _is_merge(key))
        for key, _ in reversed(node.value):
            if isinstance(key, yaml.ScalarNode) and times[key.value] > 1:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key `{key.value}` stands twice", key.start_mark
                )
        return super().construct_mapping(node, deep)

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        """As any value but one that is a number, or true or false, in old YAML only."""
        plain = isinstance(node, yaml.ScalarNode) and node.style is None
        if plain and not node.tag.endswith(":str") and _SURPRISES.fullmatch(node.value):
            value = super().construct_object(node, deep)
            raise yaml.constructor.ConstructorError(
                None, None, f"`{node.value}` is {json.dumps(value)} in YAML: write that, or put it in quotes",
                node.start_mark,
            )  # fmt: skip
        return super().construct_object(node, deep)

    def get_single_node(self) -> yaml.Node | None:
        """The only document, once it is known to be small when expanded."""
        node: yaml.Node | None = super().get_single_node()
        if node is not None and _size(node, {}) > MAX_VALUES:
            raise yaml.YAMLError(f"more than {MAX_VALUES} values once its aliases are expanded")
        return node


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:timestamp"]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
"""A date stays the text it is written as."""


def _is_merge(key: yaml.Node) -> bool:
    return key.tag == "tag:yaml.org,2002:merge"


def _size(node: yaml.Node, known: dict[int, int]) -> int:
    """Values below `node`; each node is visited once."""
    if id(node) not in known:
        known[id(node)] = MAX_VALUES + 1  # of an alias that holds itself
        parts = [node for pair in node.value for node in pair] if isinstance(node, yaml.MappingNode) else node.value
        known[id(node)] = 1 if isinstance(node, yaml.ScalarNode) else 1 + sum(_size(part, known) for part in parts)
    return known[id(node)]
