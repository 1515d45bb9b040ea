"""Translate the settings of other tools into those of a run: TRL, axolotl, LLaMA-Factory.

Each setting becomes a key here with the name it came from, or is listed: what differs in meaning, with how, and what
has no equivalent. Names and defaults are those of TRL 1.16, axolotl 0.1x and LLaMA-Factory 0.9.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass
class Translation:
    """Hold what became of the settings of another tool.

    Args:
        tool: its name.
        given: its settings; those that are null are not set.
        folder: where its file stands, to find files that it names.
        keys: key here -> value.
        sources: key here -> what it came from.
        differs: sentences on what is the same by name and another thing, or cannot be carried over.
        used: the settings that were looked at.
    """

    tool: str
    given: Mapping[str, Any]
    folder: Path
    keys: dict[str, Any] = field(default_factory=dict)
    sources: dict[str, str] = field(default_factory=dict)
    differs: list[str] = field(default_factory=list)
    used: set[str] = field(default_factory=set)

    def get(self, name: str, default: Any = None) -> Any:
        """Return a setting, which counts as looked at; `default` where it is not set."""
        self.used.add(name)
        value = self.given.get(name)
        return default if value is None else value

    def set(self, key: str, value: Any, source: str) -> None:
        """Give a key here its value."""
        self.keys[key] = value
        self.sources[key] = source

    def move(
        self, name: str, key: str, default: Any = None, convert: Callable[[Any], Any] = lambda value: value
    ) -> None:
        """Give a key here the value of a setting, or its default in the other tool, where it has one."""
        value = self.get(name, default)
        if value is not None:
            is_default = self.given.get(name) is None
            self.set(key, convert(value), f"{name}, its default there" if is_default else name)

    @property
    def left_out(self) -> list[str]:
        """Return the settings that say something and that nothing looked at."""
        return [
            name
            for name, value in self.given.items()
            if name not in self.used and value not in (None, False, "", [], {})
        ]


def as_run_yaml(translation: Translation, source: str, to: str) -> str:
    """Return the settings as run.yaml: each key with what it came from, then what could not be carried over.

    Args:
        source: the name of the file of the other tool.
        to: the file that is written, as it is typed in a shell.
    """
    lines = [f"# From {source} ({translation.tool}). Look at it, then: orpo check {to}; orpo train {to}", ""]
    sections: dict[str, list[str]] = {}
    for key, value in translation.keys.items():
        section, dot, name = key.partition(".")
        text = f"{name if dot else section}: {json.dumps(value, ensure_ascii=False)}"
        if name.startswith("columns."):
            sections.setdefault("data.columns", []).append(
                f"    {text.partition('.')[2]}  # {translation.sources[key]}"
            )
        elif dot:
            sections.setdefault(section, []).append(f"  {text}  # {translation.sources[key]}")
        else:
            lines.append(f"{text}  # {translation.sources[key]}")
    columns = sections.pop("data.columns", [])
    for section, inside in sections.items():
        lines += ["", f"{section}:", *inside]
        if section == "data" and columns:
            lines += ["  columns:", *columns]
    if translation.differs:
        lines += ["", "# What differs in meaning:", *(f"#   {said}" for said in dict.fromkeys(translation.differs))]
    if translation.left_out:
        lines += ["", "# What has no equivalent and is left out:", f"#   {', '.join(translation.left_out)}"]
    return "\n".join(lines) + "\n"
