"""The command that reads the settings of other tools: `orpo import`."""

import shlex
from collections.abc import Sequence
from pathlib import Path

from orpo_cli.cli.arguments import Parser
from orpo_cli.errors import ConfigError, InputNotFoundError, OutputError


def import_settings(argv: Sequence[str]) -> int:
    """Run `orpo import`: write run.yaml, and print what could not be carried over.

    Raises:
        ConfigError: if the file is no YAML, or not of a tool that is known.
        InputNotFoundError: if there is no such file.
        OutputError: if run.yaml is there already.
    """
    parser = Parser(usage="orpo import FILE [RUN.yaml]", add_help=False, allow_abbrev=False)
    parser.add_argument("file", type=Path, metavar="FILE")
    parser.add_argument("to", type=Path, nargs="?", default=Path("run.yaml"), metavar="RUN.yaml")
    given = parser.parse_args(argv)
    from orpo_cli.config.translated_tools import translated
    from orpo_cli.config.translation import as_run_yaml
    from orpo_cli.files.untrusted import read_yaml
    from orpo_cli.files.writing import write_text

    file, to = given.file.expanduser(), given.to.expanduser()
    if not file.is_file():
        raise InputNotFoundError(f"{file}: no such file; expected the YAML of TRL, axolotl or LLaMA-Factory")
    if to.exists():
        raise OutputError(f"{to}: is there already; name another file: orpo import {shlex.quote(str(file))} FILE")
    try:
        _, settings = read_yaml(file, exponents=True)
    except ValueError as error:
        raise ConfigError(f"{file}{error}") from None
    if not isinstance(settings, dict):
        raise ConfigError(f"{file}: expected names and their values")
    try:
        found = translated({str(name): value for name, value in settings.items()}, file.parent)
    except ConfigError as error:
        raise ConfigError(f"{file}: {error}") from None
    write_text(to, as_run_yaml(found, file.name, shlex.quote(str(to))))
    print(f"{to}: {len(found.keys)} keys of {found.tool}'s settings")
    for said in dict.fromkeys(found.differs):
        print(f"! {said}")
    if found.left_out:
        print(f"! no equivalent, left out: {', '.join(found.left_out)}")
    print(f"next: orpo check {shlex.quote(str(to))}")
    return 0
