"""The command that makes a working folder to begin in: `orpo init`."""

import json
import shlex
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from orpo_cli.cli.arguments import Parser, parse
from orpo_cli.cli.help import key_meanings
from orpo_cli.config import schema
from orpo_cli.config.keys import SECTIONS, builtin_configs, values_of
from orpo_cli.errors import OutputError
from orpo_cli.files.writing import write_text

_WIDTH = 110

_SET: dict[str, Any] = {"model": "smollm2", "data.path": "prefs.json", "trainer.epochs": 3}
"""The keys that run.yaml sets, with their values; those below stand there as comments with their defaults."""

_SHOWN = {
    "adapter.name": "lora_small",
    "data.columns": {key: key for key in ("prompt", "chosen", "rejected")},
    "output_dir": "outputs/mine",
}
"""Comments that do not show the value as composed: the chosen option, three columns of twenty, a folder by example."""

_COMMON = {
    "data": "path eval_path eval_fraction format columns max_length length_policy chat_template on_bad_row",
    "adapter": "name rank alpha dropout targets bits merge",
    "optimizer": "name lr weight_decay betas",
    "scheduler": "name warmup_ratio min_lr_ratio",
    "trainer": "epochs max_steps pairs_per_step max_tokens gradient_checkpointing precision device processes "
    "max_grad_norm eval_every save_every keep_last keep_best early_stop result max_time",
    "tracker": "name",
    "": "seed output_dir",
}
"""Section -> the keys of it that people change."""

_MODEL = (
    "an option (smollm2, llama, qwen, ...), a directory written ./my-llama, a hub id ORG/NAME, or the folder of a run"
)
_HEAD = """\
# Settings of a run. Start it with
#
#   orpo train run.yaml
#
# What is typed behind the file wins: orpo train run.yaml lambda=0.2 trainer.epochs=1
# Take the first # away from a line, and from the name of its section, to change a default. All keys: orpo train --help
"""

_PREFERENCES = [
    {
        "prompt": "Explain quantum entanglement in simple terms.",
        "chosen": "Imagine you have two coins that are magically linked. When one lands on heads, the other lands on "
        "tails, however far apart they are. You cannot choose how they land, but once you see one, you know the other.",
        "rejected": "Quantum entanglement is a phenomenon in quantum mechanics where the state of a composite system "
        "cannot be factored into the states of its parts, so that the reduced density operators are mixed.",
    },
    {
        "prompt": "Write a short story about a cat who discovers a hidden portal.",
        "chosen": "Whiskers, a ginger tabby with more courage than sense, squeezed behind the bookcase and fell into "
        "a garden where it was always evening. She came home each night with moonlight on her paws, and told nobody.",
        "rejected": "The cat, a fluffy Persian named Snowball, was bored. She found a portal. She went in. It was "
        "nice. She came out. The end.",
    },
]

_EXPERIMENT = """\
# @package _global_
# Settings that belong together, under a name. Use them with
#
#   orpo train run.yaml --config-dir conf +experiment=mine
#
# Keys that run.yaml sets win over these.
# Beside them, conf/ may hold options of your own for any group: conf/optimizer/mine.yaml is optimizer=mine.
defaults:
  - override /scheduler: cosine

optimizer:
  weight_decay: 0.01
"""

_README = """\
# A working folder of orpo

    orpo doctor                       # is this machine ready?
    orpo check run.yaml               # what is in prefs.json, and what training will make of it
    orpo train run.yaml               # train; the model, its page and its numbers are below outputs/
    orpo train run.yaml lambda=0.2    # what is typed wins over the file
    orpo train run.yaml data.eval_fraction=0.2     # hold a fifth of the prompts out, to see whether training helps
    orpo train run.yaml -m data.eval_fraction=0.2 lambda=0.1,0.2,0.5      # several values, and a leaderboard
    orpo train run.yaml --config-dir conf +experiment=mine

Put your own preferences into prefs.json: a prompt, the answer you prefer, and one that is worse, a few hundred times.
"""


def init(argv: Sequence[str]) -> int:
    """Run `orpo init`: write the files of a working folder, and print what to type next.

    Raises:
        OutputError: if one of the files is there already.
    """
    parser = Parser(usage="orpo init DIR", add_help=False, allow_abbrev=False)
    parser.add_argument("directory", type=Path, metavar="DIR")
    directory = parser.parse_args(argv).directory.expanduser()
    files = {
        "run.yaml": _settings(),
        "prefs.json": json.dumps(_PREFERENCES, indent=2, ensure_ascii=False) + "\n",
        "conf/experiment/mine.yaml": _EXPERIMENT,
        "README.md": _README,
    }
    for name in files:
        if (directory / name).exists():
            raise OutputError(f"{directory / name}: is there already; orpo init writes over nothing")
    for name, text in files.items():
        path = directory / name
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OutputError(f"{path.parent}: cannot be made: {error.strerror}") from None
        write_text(path, text)
        print(path)
    print(f"\nnext: cd {shlex.quote(str(directory))} && orpo train run.yaml")
    return 0


def _settings() -> str:
    """Return run.yaml, whose comments are the schema's own words and whose values are those a run has by default."""
    from orpo_cli.cli.compose import compose_jobs
    from orpo_cli.config.load import load_config

    job = compose_jobs(parse([f"model={_SET['model']}", f"data=./{_SET['data.path']}"])).jobs[0]
    values = values_of(load_config(job.config))
    lines = [_HEAD, f"# {_MODEL}", f"model: {_SET['model']}", "", *_key("lambda", "", values, schema.RootConfig)]
    for section, keys in _COMMON.items():
        kinds = SECTIONS.get(section, schema.RootConfig)
        kind = kinds[values[section]["name"]] if isinstance(kinds, dict) else kinds
        lines.append("")
        if section:
            is_set = any(key.startswith(f"{section}.") for key in _SET)
            lines.append(f"{section}:" if is_set else f"#{section}:")
        for key in keys.split():
            lines += _key(key, section, values[section] if section else values, kind)
    return "\n".join(lines) + "\n"


def _key(key: str, section: str, values: Mapping[str, Any], kind: type) -> Iterator[str]:
    """Yield the lines of a key: what it means, and its value, as a comment where run.yaml leaves the default."""
    indent, dotted = ("  ", f"{section}.{key}") if section else ("", key)
    options = sorted(path.stem for path in (builtin_configs() / section).glob("*.yaml")) if key == "name" else []
    meaning = ", ".join(options) if options else key_meanings(kind)[key]
    yield from textwrap.wrap(meaning, _WIDTH, initial_indent=f"{indent}# ", subsequent_indent=f"{indent}# ")
    value = {**_SHOWN, **_SET}.get(dotted, values[key])
    written = yaml.safe_dump([value], default_flow_style=True, sort_keys=False, width=1000).strip()[1:-1]
    yield f"{'' if dotted in _SET else '#'}{indent}{key}: {written}"
