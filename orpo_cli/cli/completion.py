"""Shell completion: the scripts of three shells, and the words that may follow what was typed.

The scripts ask `orpo completion -- WORD...`, whose last word is the one at the cursor, and get one candidate a line.
Imports neither Hydra nor torch.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from orpo_cli.cli.arguments import FLAGS, Parser
from orpo_cli.cli.help import COMPOSED, keys_of
from orpo_cli.cli.topics import TOPICS
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

_OF_FOLDERS = ("resume", "verify", "compare", "runs", "watch", "report", "export", "chat")
"""Commands that take the folder of a run."""

_OF_KEYS = (*COMPOSED, "doctor")
"""Commands that take keys and their values."""

_PATHS = ("model", "data", "against", "output_dir", "scores", "prompts", "to")
"""Keys whose value may be a path, beside those that end in `path`."""


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
    command = before[0]
    if command == "help":
        yield from (*commands, *TOPICS)
    elif command == "completion":
        yield from _SCRIPTS
    elif command == "init":
        yield from _paths(word, lambda _: False)
    elif command == "import":
        yield from _paths(word, _is_yaml)
    elif command in _OF_FOLDERS and "=" not in word:
        yield "--help"
        yield from _paths(word, lambda _: False)
    if command in _OF_KEYS or (command in _OF_FOLDERS and "=" in word):
        yield from _words(command, word, len(before) == 1)


def _words(command: str, word: str, is_first: bool) -> Iterator[str]:
    """Yield flags, keys and groups, the values of a key, and files of settings where one may stand."""
    key, equals, value = word.partition("=")
    if equals:
        yield from (f"{key}={option}" for option in _options(key.lstrip("+~")))
        if key.rpartition(".")[2] == "path" or key in (*_PATHS, "data.eval_path", "model.base"):
            yield from (f"{key}={path}" for path in _paths(value, lambda _: True))
        return
    yield from (*FLAGS, "--help") if command == "train" else ("--json", "--help")
    plus = "+" if word.startswith("+") else ""
    yield from (f"{plus}{name}=" for name in [*SECTIONS, *_keys(command)])
    yield "+experiment="
    if is_first:
        yield from _paths(word, _is_yaml)


def _options(group: str) -> list[str]:
    names = sorted(path.stem for path in (builtin_configs() / group).glob("*.yaml")) if group.isidentifier() else []
    return [name for name in names if name not in ("file", "pretrained", "saved")]


def _keys(command: str) -> list[str]:
    return [key for key in keys_of(command) if not key.endswith(".name")]


def _is_yaml(path: Path) -> bool:
    return path.suffix in (".yaml", ".yml")


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
