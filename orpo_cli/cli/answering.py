"""`orpo generate`: the prompts that are given, and the answers on the screen, in a pipe or as JSON."""

import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from orpo_cli.cli import entry_file
from orpo_cli.cli.evaluated_run import generation_config
from orpo_cli.cli.keyboard import quiet_keys
from orpo_cli.cli.shorthand import at_paths, is_path, with_quoted
from orpo_cli.errors import ConfigError
from orpo_cli.machine.threads import choose_threads
from orpo_cli.quoting import harmless, override_value

if TYPE_CHECKING:
    from orpo_cli.cli.compose import Job
    from orpo_cli.config.generation import GenerationConfig
    from orpo_cli.config.schema import RunConfig
    from orpo_cli.data.prompts import Prompt
    from orpo_cli.runs.generate import Generated

_PIPE = "-"
_WAYS = 'prompt="...", prompts=FILE, or a pipe, as in `... | orpo generate model=RUN_DIR`'


def typed(argv: Sequence[str]) -> list[str]:
    """Return the overrides of answers: `prompt=` is any text, a model may stand first without its key."""
    return [_override(word) for word in with_model_named(argv)]


def with_model_named(argv: Sequence[str]) -> list[str]:
    """Return the words with `model=` before the first, where that is the name or the place of a model alone."""
    words = list(argv)
    if words and "=" not in words[0] and not words[0].startswith("-") and not entry_file.is_meant(words[0]):
        words[:1] = at_paths("model", words[:1]) if is_path(words[0]) else [f"model={words[0]}"]
    return words


def _override(word: str) -> str:
    key, equals, value = word.partition("=")
    if word == _PIPE:
        return f"prompts={override_value(_PIPE)}"
    return (
        f"prompt={override_value(value)}" if equals and key == "prompt" else with_quoted(("prompts", "against"), word)
    )


def answer(job: "Job", as_json: bool) -> int:
    """Answer the prompts that a configuration gives."""
    config, wanted = generation_config(job)
    prompts = given_prompts(config, wanted)
    choose_threads()
    with quiet_keys():
        if len(prompts) == 1 and sys.stdout.isatty() and not as_json:
            _stream(config, wanted, prompts[0])
        else:
            _answer_all(config, wanted, prompts, as_json)
    return 0


def given_prompts(config: "RunConfig", wanted: "GenerationConfig") -> list["Prompt"]:
    """Return the prompts that a configuration gives, by itself, in a file or in a pipe.

    Raises:
        ConfigError: if it gives none.
        InputNotFoundError: if there is no such file.
        DataError: if a row holds no prompt.
    """
    from orpo_cli.data.prompts import Prompt, read_prompts

    column = config.data.columns.prompt or "prompt"
    if wanted.prompt is not None:
        return [Prompt(wanted.prompt)]
    if wanted.prompts not in (None, _PIPE):
        return read_prompts(Path(str(wanted.prompts)).expanduser(), column)
    if sys.stdin is None or sys.stdin.isatty():
        raise ConfigError(f"no prompt is given: {_WAYS}")
    with tempfile.NamedTemporaryFile() as copy:
        copy.write(sys.stdin.buffer.read())
        copy.flush()
        if not Path(copy.name).stat().st_size:
            raise ConfigError(f"no prompt is given, and standard input is empty: {_WAYS}")
        return read_prompts(Path(copy.name), column, "standard input")


def _answer_all(config: "RunConfig", wanted: "GenerationConfig", prompts: list["Prompt"], as_json: bool) -> None:
    """Print all answers; as JSON in a pipe, each when it is there."""
    from rich.console import Console

    from orpo_cli.reporting.answers import AnswersShown, print_answers
    from orpo_cli.reporting.terminal import Terminal

    found: list[Generated] = []
    with Terminal(Console(stderr=True)) as screen:
        screen.progress("loading torch and transformers", 0, 0)
        from orpo_cli.runs.generate import BASE, TUNED, generate

        for answered in generate(config, wanted, prompts, screen.progress):
            if as_json and not sys.stdout.isatty():
                _print_line(answered)
            else:
                found.append(answered)
    if as_json:
        for answered in found:
            _print_line(answered)
        return
    has_base = found[0].base is not None
    rows = [
        AnswersShown(one.prompt.text, (*([one.base] if one.base is not None else []), one.tuned)) for one in found
    ]  # fmt: skip
    print_answers(rows, (BASE, TUNED) if has_base else (TUNED,), Console())


def _print_line(answered: "Generated") -> None:
    values = {"prompt": answered.prompt.as_json, "base": answered.base, "tuned": answered.tuned}
    print(json.dumps(values, ensure_ascii=False), flush=True)


def _stream(config: "RunConfig", wanted: "GenerationConfig", prompt: "Prompt") -> None:
    """Show the answers to one prompt as they come, that of the model to compare with first."""
    from rich.console import Console
    from rich.text import Text

    from orpo_cli.reporting.terminal import Terminal

    console, screen = Console(), Terminal(Console(stderr=True))
    with screen:
        screen.progress("loading torch and transformers", 0, 0)
        from orpo_cli.runs.generate import BASE, answerers, sampling_of

        has_messages = not prompt.is_text
    sides = answerers(config, wanted.compared_with, has_messages, lambda *progress: screen.progress(*progress))
    is_compared = False
    while True:
        with Terminal(Console(stderr=True)) as screen:
            name, answerer = next(sides, ("", None))
            if answerer is None:
                return
            answerer.ids([prompt])
            answerer.load()
        is_compared = is_compared or name == BASE
        if is_compared:
            console.print(Text(name, style="red" if name == BASE else "green"))
        said = answerer.streamed(prompt, sampling_of(config, wanted), show_piece)
        print(("" if said else "(nothing)") + ("\n" if name == BASE else ""))
        del answerer


def show_piece(text: str) -> None:
    """Show a piece of an answer, without anything that the terminal would obey."""
    print(harmless(text.replace("\t", "    ")), end="", flush=True)
