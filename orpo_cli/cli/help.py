"""The help of each command: groups and options from `configs/`, keys and meanings from the schema.

The options and values shown are those of the command line at hand. Imports neither Hydra nor torch.
"""

import json
import re
import shutil
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import yaml

from orpo_cli.cli.help_texts import TEXTS
from orpo_cli.config import data, evaluation, export, generation, schema, sweep
from orpo_cli.config.keys import FREE_KEYS, PLACES, SECTIONS, builtin_configs, dotted, nested_kinds

_OF_RUN = ("seed", "model.chat_template", "model.base", "trainer.device", "trainer.precision")
"""Keys of a run that the commands which answer take too."""

_OF_ANSWERS = ("generate", "chat")
_NOT_OF_CHAT = ("prompt", "prompts", "batch_size")


@dataclass(frozen=True)
class Composed:
    """Hold what a command line composes: group -> the option that is chosen, and key -> its value."""

    choices: Mapping[str, str] = field(default_factory=dict)
    values: Mapping[str, Any] = field(default_factory=dict)


_OWN: dict[str, tuple[tuple[type, str], ...]] = {
    "check": ((data.CheckConfig, "check."), (data.DataConfig, "data.")),
    "evaluate": ((evaluation.EvaluationConfig, ""), (data.DataConfig, "data.")),
    "generate": ((generation.GenerationConfig, ""),),
    "chat": ((generation.GenerationConfig, ""),),
    "export": ((export.ExportConfig, ""),),
}
"""Command -> the classes of the keys that its help lists, with what stands before them; `train` lists all."""

COMPOSED = ("train", "check", "evaluate", "generate", "chat", "export")
"""The commands whose help shows the values that a command line composes."""


def composed(name: str, argv: Sequence[str]) -> Composed:
    """Return what a command with these words composes.

    Raises:
        ConfigError: if anything is wrong with the words.
    """
    words = [word for word in argv if word not in ("-h", "--help", "--json")]
    if name == "export":
        typed = dict(word.partition("=")[::2] for word in words if "=" in word)
        return Composed(values=yaml.safe_load((builtin_configs() / "export.yaml").read_text(encoding="utf-8")) | typed)
    from omegaconf import OmegaConf

    from orpo_cli.cli import answering
    from orpo_cli.cli.arguments import parse
    from orpo_cli.cli.compose import compose_jobs

    if name in _OF_ANSWERS:
        name, words = "generate", answering.typed(words)
    elif name == "evaluate":
        words = answering.with_model_named(words)
    words = [word for word in words if not (word.startswith(sweep.SWEEP_KEYS) or "interval(" in word)]
    job = compose_jobs(parse(words), root=name).jobs[0]
    values: Any = OmegaConf.to_container(job.config)
    return Composed(job.choices, dict(dotted(values)))


def command_help(name: str, shown: Composed | None = None) -> str:
    """Return the whole help text of a command.

    Args:
        shown: the options and values to show beside the keys.
    """
    shown = shown or Composed()
    lines = {"train": _train_help, "check": _check_help, "evaluate": _own_help, "export": _own_help,
             "generate": _answers_help, "chat": _answers_help}.get(name)  # fmt: skip
    return TEXTS[name] if lines is None else "\n".join([TEXTS[name], *lines(name, shown)]) + "\n"


def kinds_of(name: str) -> list[tuple[type, str]]:
    """Return the classes of the keys that a command takes, with what stands before the keys."""
    variants = [(section, kinds if isinstance(kinds, dict) else {"": kinds}) for section, kinds in SECTIONS.items()]
    every = [
        (schema.RootConfig, ""),
        *((kind, f"{section}.") for section, kinds in variants for kind in kinds.values()),
    ]
    of_run = {"train": [*every, (sweep.SweepConfig, "sweep.")], "check": every, "evaluate": every, "doctor": every}
    return [*_OWN.get(name, ()), *of_run.get(name, [])]


def keys_of(name: str) -> list[str]:
    """Return the keys that a command takes; of those that answer, the ones that its help lists."""
    if name == "resume":
        return [*FREE_KEYS, *PLACES, *sweep.SWEEP_KEYS]
    keys = dict.fromkeys(key for kind, prefix in kinds_of(name) for key, _ in _meanings(kind, prefix))
    without = _NOT_OF_CHAT if name == "chat" else ()
    return [*(key for key in keys if key not in without), *(_OF_RUN if name in _OF_ANSWERS else ())]


def _own_help(name: str, shown: Composed) -> Iterator[str]:
    yield _keys_head(shown)
    for kind, prefix in _OWN[name]:
        yield from _documented_keys(kind, prefix, shown.values)


def _check_help(name: str, shown: Composed) -> Iterator[str]:
    yield from ("Findings", *(f"  {finding:<18} {meaning}" for finding, meaning in data.FINDINGS.items()), "")
    yield from _own_help(name, shown)


def _answers_help(name: str, shown: Composed) -> Iterator[str]:
    without = _NOT_OF_CHAT if name == "chat" else ()
    yield from (line for line in _own_help(name, shown) if line.split()[0] not in without)
    yield f"  {'seed':<32} seed of the tokens that are drawn"
    yield f"  {'model.chat_template, .base':<32} another chat template; the base of an adapter"
    yield f"  {'trainer.device, .precision':<32} where and how the model computes"


def _train_help(_name: str, shown: Composed) -> Iterator[str]:
    chosen = "; [in brackets]: what this command line chooses" if shown.choices else ""
    yield from (f"Groups and their options{chosen}", *_options(shown.choices), "", _keys_head(shown), *_keys(shown))


def _keys_head(shown: Composed) -> str:
    return "Keys; [in brackets]: the value that this command line composes" if shown.values else "Keys"


def _options(choices: Mapping[str, str]) -> Iterator[str]:
    root = builtin_configs()
    for group in [*SECTIONS, "experiment"]:
        names = sorted({path.stem for path in (root / group).glob("*.yaml")} | {choices.get(group, "")} - {""})
        marked = [f"[{name}]" if name == choices.get(group) else name for name in names]
        head = f"  {group + '=':<14}"
        yield textwrap.fill(", ".join(marked), _width(), initial_indent=head, subsequent_indent=" " * len(head))


def _keys(shown: Composed) -> Iterator[str]:
    """Yield the lines of all keys: of a section with variants, those of the one in use first."""
    yield from _documented_keys(schema.RootConfig, "", shown.values)
    for section, kinds in SECTIONS.items():
        variants = kinds if isinstance(kinds, dict) else {"": kinds}
        used = shown.values.get(f"{section}.name")
        seen: set[str] = set()
        for name in sorted(variants, key=lambda name: name != used):
            is_used = len(variants) == 1 or name == used
            values = shown.values if is_used else {}
            lines = list(_documented_keys(variants[name], f"{section}.", values))
            further = [line for line in lines if line.partition(" [")[0] not in seen]
            seen.update(line.partition(" [")[0] for line in lines)
            if further:
                yield f"\n{section}={name}" if name else ""
                yield from further
    yield ""
    yield from _documented_keys(sweep.SweepConfig, "sweep.", shown.values)


def key_meanings(kind: type) -> dict[str, str]:
    """Return the `key: meaning` lines of a configuration class's docstring."""
    return dict(re.findall(r"^    (\w+): (.+)$", kind.__doc__ or "", re.MULTILINE))


def _meanings(kind: type, prefix: str) -> Iterator[tuple[str, str]]:
    """Yield the keys of a configuration class, also those inside others, with what they mean."""
    inside = nested_kinds(kind)
    for key, meaning in key_meanings(kind).items():
        if key in inside:
            yield from _meanings(inside[key], f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", meaning


def _documented_keys(kind: type, prefix: str, values: Mapping[str, Any]) -> Iterator[str]:
    for key, meaning in _meanings(kind, prefix):
        value = f" [{_written(values[key])}]" if key in values else ""
        yield textwrap.fill(
            meaning + value,
            _width(),
            initial_indent=f"  {key:<32} ",
            subsequent_indent=" " * 35,
            break_on_hyphens=False,
        )


def _width() -> int:
    return min(118, max(60, shutil.get_terminal_size((118, 24)).columns))


def _written(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
