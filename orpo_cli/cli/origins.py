"""Where the values of a composed configuration come from, written beside them as comments."""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import yaml
from omegaconf import OmegaConf

from orpo_cli.quoting import escaped

_WIDEST = 60
"""Columns. Comments of longer lines are not aligned with the others."""

_MISSING = "???"
_REFERENCE = re.compile(r"(?<!\\)\$\{")


@dataclass(frozen=True)
class Layer:
    """What one source sets.

    Args:
        source: the name of a file, or the command line.
        values: with references as they are written.
        key: the dotted key that the values are of; None of a whole file.
    """

    source: str
    values: Any
    key: str | None = None


def with_origins(text: str, layers: Iterable[Layer], package: str | None = None, resolved: bool = False) -> str:
    """Return the YAML of a composed configuration with the source of each value as a comment.

    The layers are merged once more, by OmegaConf as for the configuration itself, with numbers in place of values.

    Args:
        text: YAML in blocks, as OmegaConf writes it.
        layers: in the order in which they were merged.
        package: the part of the configuration that the text is of; None and _global_ are the whole.
        resolved: whether the text has values in place of references.
    """
    comments: list[str] = []
    merged = OmegaConf.create()
    for layer in layers:
        numbers = _numbered(layer.values, layer.source, resolved, comments)
        if layer.key is None:
            merged.merge_with(numbers)
        else:
            OmegaConf.update(merged, layer.key, numbers, force_add=True)
    part: Any = merged if package in (None, "_global_") else OmegaConf.select(merged, package)
    root: Any = yaml.compose(text, Loader=yaml.SafeLoader)
    found = _by_line(root, OmegaConf.to_container(part) if OmegaConf.is_config(part) else part)
    said = {line: ", ".join(dict.fromkeys(_texts(numbers, comments))) for line, numbers in found}
    return _beside(text, {line: comment for line, comment in said.items() if comment})


def _numbered(value: Any, source: str, resolved: bool, comments: list[str]) -> Any:
    """Return values with the number of its comment in the place of each; what is empty has one inside."""
    if isinstance(value, dict) and value:
        return {str(key): _numbered(item, source, resolved, comments) for key, item in value.items()}
    if isinstance(value, list) and value:
        return [_numbered(item, source, resolved, comments) for item in value]
    if value == _MISSING:  # which replaces no value
        return value
    is_reference = resolved and isinstance(value, str) and _REFERENCE.search(value)
    comments.append(escaped(f"{value} in {source}" if is_reference else source))
    number = len(comments) - 1
    return {"": number} if value == {} else [number] if value == [] else number


def _by_line(node: yaml.Node, found: Any) -> Iterator[tuple[int, Any]]:
    """Yield lines of the text, and the numbers of what is said there.

    Args:
        found: the numbers of the values in the node; of one that a reference stands for, one number.
    """
    if isinstance(node, yaml.SequenceNode):
        of_items = found if isinstance(found, list) else [found] * len(node.value)
        parts = [(value, value, numbers) for value, numbers in zip(node.value, of_items, strict=False)]
    else:
        of_keys = found if isinstance(found, dict) else {key.value: found for key, _ in node.value}
        parts = [(key, value, of_keys.get(key.value)) for key, value in node.value]
    for key, value, numbers in parts:
        if isinstance(value, yaml.MappingNode) and value.value:
            yield from _by_line(value, numbers)
        else:
            is_in_one_line = isinstance(value, yaml.ScalarNode) and value.style not in ("|", ">")
            yield (value.end_mark.line if is_in_one_line else key.start_mark.line), numbers


def _texts(numbers: Any, comments: list[str]) -> Iterator[str]:
    """Yield the comments of a value, or of all values in it."""
    if isinstance(numbers, dict | list):
        for inside in numbers.values() if isinstance(numbers, dict) else numbers:
            yield from _texts(inside, comments)
    elif numbers is not None:
        yield "has to be given" if numbers == _MISSING else comments[numbers]


def _beside(text: str, comments: dict[int, str]) -> str:
    """Return a text with comments at the ends of lines, one below the other but for lines that are wide."""
    lines = text.splitlines(keepends=True)
    bodies = {number: lines[number].rstrip("\n") for number in comments}
    width = max((len(body) for body in bodies.values() if len(body) <= _WIDEST), default=0)
    for number, body in bodies.items():
        lines[number] = f"{body:<{width}}  # {comments[number]}\n"
    return "".join(lines)
