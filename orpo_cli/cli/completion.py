"""Shell completion: the scripts of three shells, and the words that may follow what was typed.

The scripts ask `orpo completion -- WORD...`, whose last word is the one at the cursor, and get one candidate a line.
Imports neither Hydra nor torch.
"""

import ast
import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields
from pathlib import Path

from orpo_cli.cli.arguments import FLAGS, Parser
from orpo_cli.cli.help import keys_of, kinds_of
from orpo_cli.cli.topics import TOPICS
from orpo_cli.config import schema
from orpo_cli.config.keys import SECTIONS, builtin_configs

_BASH = """\
_orpo() {
    local line=${COMP_LINE:0:COMP_POINT} typed IFS=$' \\t\\n'
    read -ra typed <<< "$line"
    [[ $line == *" " ]] && typed+=("")
    local word=${typed[-1]}
    IFS=$'\\n'
    COMPREPLY=($(orpo completion -- "${typed[@]:1}" 2> /dev/null))
    if [[ $word == *=* && $COMP_WORDBREAKS == *=* ]]; then
        COMPREPLY=("${COMPREPLY[@]#"${word%"${word##*=}"}"}")
    fi
    [[ ${#COMPREPLY[@]} == 1 && ${COMPREPLY[0]} == *[=/] ]] && compopt -o nospace
}
complete -F _orpo orpo
"""

_ZSH = """\
_orpo() {
    local candidate
    for candidate in ${(f)"$(orpo completion -- "${words[@]:1:$((CURRENT - 1))}" 2> /dev/null)"}; do
        case $candidate in
            *[=/]) compadd -S '' -- $candidate ;;
            *) compadd -- $candidate ;;
        esac
    done
}
compdef _orpo orpo
"""

_FISH = """\
complete -c orpo -f -a '(orpo completion -- (commandline -opc)[2..] (commandline -ct) 2> /dev/null)'
"""

_SCRIPTS = {"bash": _BASH, "zsh": _ZSH, "fish": _FISH}

_OF_FOLDERS = ("resume", "verify", "compare", "runs", "watch", "report", "export", "chat", "generate", "evaluate")
"""Commands whose first word may be the folder of a run."""

_OF_SETTINGS = ("train", "check", "evaluate", "generate", "chat", "doctor")
"""Commands that compose settings: they take their flags, and a file of them as the first word."""

_FLAGS = {
    "compare": ("--by", "--csv", "--html", "--json", "--latex", "--markdown"), "verify": ("--replay",),
    **dict.fromkeys(("check", "evaluate", "generate", "doctor"), ("--json",)),
}  # fmt: skip
"""Command -> the flags that only it has."""

_PATHS = ("model", "data", "against", "output_dir", "scores", "prompts", "to", "base", "model.base")
"""Keys whose value may be a path, beside those that end in `path`."""

_NAMES = {"against": ("auto", "none"), "checkpoint": ("best", "last"), "resume": ("auto",)}
"""Keys whose value may be one of a few names, beside those that the schema restricts to them."""


def completion(argv: Sequence[str], commands: Sequence[str]) -> int:
    """Run `orpo completion`: print the script of a shell, or what the script asks for."""
    if argv[:1] == ["--"]:
        _answer(argv[1:], commands)
        return 0
    parser = Parser(usage="orpo completion bash|zsh|fish", add_help=False, allow_abbrev=False)
    parser.add_argument("shell", choices=sorted(_SCRIPTS))
    print(_SCRIPTS[parser.parse_args(argv).shell], end="")
    return 0


def _answer(words: Sequence[str], commands: Sequence[str]) -> None:
    """Print what the last word may become, given those before it."""
    *before, word = [*words] or [""]
    for candidate in _candidates(before, word, commands):
        if candidate.startswith(word):
            print(candidate)


def _candidates(before: Sequence[str], word: str, commands: Sequence[str]) -> Iterator[str]:
    if not before:
        yield from (*commands, "help", "--help", "--version")
        return
    command, is_first = before[0], len(before) == 1
    if command in ("help", "completion"):
        yield from _SCRIPTS if command == "completion" else (*commands, *TOPICS)
    elif "=" in word:
        yield from _values(word)
    else:
        yield from ("--help", *_FLAGS.get(command, ()))
        yield from (flag for flag in FLAGS if command in _OF_SETTINGS and (flag != "--multirun" or command == "train"))
        if not is_first or command in _OF_SETTINGS:
            yield from _keys(command, "+" if word.startswith("+") else "")
        if is_first or command == "compare":
            yield from _first_words(command, word)


def _keys(command: str, plus: str) -> Iterator[str]:
    """Yield groups and keys: a name is that of a group."""
    if command in _OF_SETTINGS:
        yield from (f"{plus}{group}=" for group in SECTIONS)
        yield "+experiment="
    if command in (*_OF_SETTINGS, "export", "resume"):
        yield from (f"{plus}{key}=" for key in keys_of(command) if not key.endswith(".name"))


def _first_words(command: str, word: str) -> Iterator[str]:
    """Yield files of settings, where a command reads them, and directories."""
    if command in (*_OF_SETTINGS, *_OF_FOLDERS, "init", "import"):
        reads_settings = command in (*_OF_SETTINGS, "import")
        yield from _paths(word, lambda path: reads_settings and path.suffix in (".yaml", ".yml"))


def _values(word: str) -> Iterator[str]:
    """Yield the options of a group, or what is known of the values of a key."""
    key, _, value = word.partition("=")
    name = key.lstrip("+~")
    yield from (f"{key}={option}" for option in (*_options(name), *_NAMES.get(name, ()), *_named_values(name)))
    if name.rpartition(".")[2] in ("path", "eval_path") or name in _PATHS:
        yield from (f"{key}={path}" for path in _paths(value, lambda _: True))


def _options(group: str) -> list[str]:
    names = sorted(path.stem for path in (builtin_configs() / group).glob("*.yaml")) if group.isidentifier() else []
    return [name for name in names if name not in ("file", "pretrained", "saved")]


def _named_values(key: str) -> list[str]:
    """Return the values of a key that takes only a few: as its type says, or the code of its class."""
    kinds = [kind for command in ("check", "generate", "export") for kind in kinds_of(command)]
    types = [part.type for kind, prefix in kinds for part in fields(kind) if f"{prefix}{part.name}" == key]
    if {bool, bool | None} & set(types):
        return ["true", "false"]
    code = "".join(path.read_text(encoding="utf-8") for path in Path(schema.__file__).parent.glob("*.py"))
    found = re.search(rf'require_choice\(\s*"{re.escape(key)}",\s*self\.\w+,\s*(\("[^()]*"\))', code)
    return list(ast.literal_eval(found[1])) if found else []


def _paths(typed: str, fits: Callable[[Path], bool]) -> Iterator[str]:
    """Yield the directories that a path may become, with a slash behind, and the files that fit."""
    folder, _, name = typed.rpartition("/")
    place = Path(os.path.expanduser(folder or ("/" if typed.startswith("/") else ".")))  # noqa: PTH111 - keeps `./`
    head = typed[: len(typed) - len(name)]
    try:
        found = sorted(place.iterdir())
    except OSError:
        return
    for path in found:
        if path.name.startswith(name) and (name.startswith(".") or not path.name.startswith(".")):
            if path.is_dir():
                yield f"{head}{path.name}/"
            elif fits(path):
                yield f"{head}{path.name}"
