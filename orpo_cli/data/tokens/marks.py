"""Find the texts of a conversation that a chat template leaves out, by marks that stand in their place.

What a template writes depends on the roles of the messages and on the keys they have, hardly on their texts. So the
same sequence is rendered once with an unmistakable mark for each text; a mark that does not come out is a lost text.
"""

from collections.abc import Hashable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

_NOT_TEXT = ("role", "id", "type", "tool_call_id")
"""Keys whose values say how messages belong together; no template has to write them."""


class PlaceInTalk(NamedTuple):
    """Name a text of a conversation.

    Args:
        message: the number of the message, from 0; -1 for the tools.
        path: the key that holds the text, and the keys and places inside that.
    """

    message: int
    path: tuple[str | int, ...]

    def __str__(self) -> str:
        return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in self.path).lstrip(".")


def structure(value: Any) -> Hashable:
    """Return a key for caches, equal for conversations that a template renders alike."""
    if isinstance(value, Mapping):
        return tuple((key, item if key == "role" else structure(item)) for key, item in value.items())
    if isinstance(value, list | tuple):
        return tuple(map(structure, value))
    if isinstance(value, str):
        return bool(value.strip())
    return "number" if isinstance(value, int | float) and not isinstance(value, bool) else value


class Marks:
    """Put a mark in the place of each text of a conversation."""

    def __init__(self, turns: Sequence[Mapping[str, Any]], tools: Sequence[Any]) -> None:
        self._places: dict[str, PlaceInTalk] = {}
        self.turns = [self._marked(turn, PlaceInTalk(number, ())) for number, turn in enumerate(turns)]
        self.tools = [self._named(tool, PlaceInTalk(-1, (number,))) for number, tool in enumerate(tools)]

    def left_out(self, written: str) -> Iterator[PlaceInTalk]:
        """Yield the places of the marks that a text does not hold."""
        yield from (place for mark, place in self._places.items() if mark not in written)

    def _marked(self, value: Any, place: PlaceInTalk) -> Any:
        if isinstance(value, Mapping):
            is_data = "arguments" in place.path
            return {self._key(key, place) if is_data else key: self._item(key, value[key], place) for key in value}
        if isinstance(value, list):
            return [self._marked(item, _inside(place, number)) for number, item in enumerate(value)]
        if isinstance(value, str) and value.strip():
            return self._mark(place, "Mark{:05d}X")
        if isinstance(value, int | float) and not isinstance(value, bool):
            return int(self._mark(place, "7{:05d}731"))
        return value

    def _item(self, key: str, value: Any, place: PlaceInTalk) -> Any:
        is_kept = key in _NOT_TEXT and "arguments" not in place.path
        return value if is_kept else self._marked(value, _inside(place, key))

    def _key(self, key: str, place: PlaceInTalk) -> str:
        return self._mark(_inside(place, key), "Key{:05d}X")

    def _named(self, tool: Any, place: PlaceInTalk) -> Any:
        """Return a tool whose name is a mark."""
        if not isinstance(tool, Mapping):
            return tool
        if isinstance(tool.get("function"), Mapping):
            return {**tool, "function": self._named(tool["function"], place)}
        return {**tool, "name": self._mark(_inside(place, "name"), "Mark{:05d}X")} if "name" in tool else tool

    def _mark(self, place: PlaceInTalk, form: str) -> str:
        mark = form.format(len(self._places))
        self._places[mark] = place
        return mark


def _inside(place: PlaceInTalk, part: str | int) -> PlaceInTalk:
    return PlaceInTalk(place.message, (*place.path, part))
