"""Each command and setting in README and docs/ is composed by the tool, and each Python snippet is executed."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from test_docs import PAGES
from tiny_runs import write_pairs

import orpo_cli as orpo
from orpo_cli.cli.answering import typed, with_model_named
from orpo_cli.cli.arguments import parse
from orpo_cli.cli.commands import COMMANDS
from orpo_cli.cli.compose import compose_jobs, with_overrides
from orpo_cli.cli.config_dir import is_of_launcher
from orpo_cli.cli.evaluated_run import evaluation_config, generation_config
from orpo_cli.cli.help import command_help, keys_of
from orpo_cli.cli.launchers import take_jobs
from orpo_cli.cli.search import search_of
from orpo_cli.cli.shorthand import key_of, with_quoted, with_trackers_named
from orpo_cli.cli.topics import TOPICS
from orpo_cli.config.config_yaml import portable_yaml
from orpo_cli.config.evaluation import EVALUATION_KEYS
from orpo_cli.config.keys import FREE_KEYS, PLACES, SECTIONS
from orpo_cli.config.load import load_check_config, load_config, load_export_config
from orpo_cli.config.sweep import SWEEP_KEYS
from orpo_cli.runs.folder import RunFolder

COMMAND = re.compile(r"(?:^|\s)(?:orpo|-m orpo_cli) ([a-z]+)(?:\s+(.*))?$")
PLACEHOLDER = re.compile(r"\b[A-Z]+(?:_[A-Z]+)*\b")
STAND_FOR = {"N": "3", "M": "9", "RUN": "RUN_DIR", "SWEEP_DIR": "RUN_DIR"}
"""Placeholders of the pages, and what is put there; others are names of files and directories as they are."""

OF_THE_DIFFS = ("loss=hinge", "optimizer=nadam")
"""Options that a diff of docs/extending.md adds; tests/test_extending.py runs them."""

ONLY_FLAGS = ("runs", "watch", "report", "verify", "compare", "init", "import", "completion")
"""Commands that take no KEY=VALUE."""


def code(page: str) -> Iterator[str]:
    """Yield the lines of a page that a shell would read, continued lines as one, without comments."""
    text = re.sub(r"(?ms)^```(?:python|json|yaml|diff)\n.*?^```$", "", PAGES[page])
    fenced = re.findall(r"(?ms)^```(?:bash)?\n(.*?)^```$", text)
    indented = [line for line in re.sub(r"\\\n\s+", "", text).splitlines() if line.startswith("    ")]
    for line in [*indented, *"\n".join(fenced).splitlines()]:
        yield re.sub(r"(^|\s)#.*", "", line).strip()


def spans(page: str) -> list[str]:
    """Return what stands between backticks."""
    return re.findall(r"`([^`\n]+)`", re.sub(r"(?ms)^```\w*\n.*?^```$", "", PAGES[page]))


def commands(page: str) -> list[str]:
    """Return the commands of a page, without the word `orpo`."""
    parts = [part.strip() for line in [*code(page), *spans(page)] for part in re.split(r";|&&|&$|\|", line)]
    found = [f"{match[1]} {match[2] or ''}".strip() for match in map(COMMAND.search, parts) if match]
    return [command for command in dict.fromkeys(found) if not any(option in command for option in OF_THE_DIFFS)]


def settings(page: str) -> list[str]:
    """Return the spans that are settings of a run, one or several: `loss=sft`, `adapter=lora adapter.rank=8`."""
    keys = {*keys_of("train"), *SECTIONS}
    found = [span for span in dict.fromkeys(spans(page)) if all("=" in word[:-1] for word in span.split())]
    is_known = {span: all(key_of(word) in keys or is_of_launcher(word) for word in span.split()) for span in found}
    return [span for span in found if is_known[span] and span not in SHOWN]


def settings_of_export(page: str) -> list[str]:
    """Return the spans that are settings of an export alone: `merge=true`, `checkpoint=best|last|40`."""
    keys = {*keys_of("export")} - {*keys_of("train"), *SECTIONS}
    found = [span for span in dict.fromkeys(spans(page)) if all("=" in word[:-1] for word in span.split())]
    return [span for span in found if all(key_of(word) in keys for word in span.split())]


SHOWN = {"data.path=prefs.json@6772c3"}
"""What a table shows, and nobody types."""

NAMES = {"data.format": "pairs", "data.first_won": "a", "data.second_won": "b"}
"""A value for each key whose value is NAME or VALUE in the pages."""

BESIDE = {
    "trainer.keep_best": ["trainer.eval_every=5"],
    "trainer.early_stop": ["trainer.eval_every=5"],
    "trainer.result=best": ["trainer.eval_every=5", "trainer.keep_best=nll"],
    "adapter.": ["adapter=lora"],
    "resume=auto": ["output_dir=DIR"],
    "hydra/launcher": ["seed=1,2"],
    "public=true": ["push=ORG/NAME"],
    "interval(": ["data.eval_fraction=0.1", "sweep.trials=3"],
    "sweep.jobs": ["seed=1,2"],
    "sweep.trials": ["data.eval_fraction=0.1", "lambda=interval(0.05,1)"],
}
"""Part of a setting, and what has to be set beside it."""


def as_typed(span: str) -> Iterator[list[str]]:
    """Yield the words of a setting as `orpo train` takes them, with what it needs beside; of `a|b` each by itself."""
    choices = re.search(r"=([\w|]*\|[\w|]*)", span)
    for choice in choices[1].split("|") if choices else [""]:
        words = [named(word) for word in words_of(span.replace(choices[1], choice) if choices else span)]
        needed = ["data=./prefs.json", *(word for part, beside in BESIDE.items() if part in span for word in beside)]
        typed_keys = {key_of(word) for word in words}
        words = [*(word for word in needed if key_of(word) not in typed_keys), *words]
        yield [*(["-m"] if any("," in re.sub(r"\[.*?\]", "", word) for word in words) else []), *words]


def named(word: str) -> str:
    key, _, value = word.partition("=")
    return f"{key}={NAMES[key]}" if value in ("NAME", "VALUE") else word


def words_of(command: str) -> list[str]:
    """Return the words of a command with values in the place of placeholders; what is optional is there."""
    bare = re.sub(r"\$\{?\w+(?:\[\$?\w+\])?\}?", "1", command)
    given = [word.strip("[]") if word[0] == "[" else word for word in shlex.split(bare) if word != "..."]
    return [with_values(word) for word in given if word[-1] != "="]


def with_values(word: str) -> str:
    key, equals, value = word.replace("experiment=NAME", "experiment=llama3_8b_lora").rpartition("=")
    filled = PLACEHOLDER.sub(lambda match: STAND_FOR.get(match[0], match[0]), value)
    is_place = PLACEHOLDER.fullmatch(filled) and key in ("", "model", "data", "against")
    return f"{key}{equals}{'./' if is_place else ''}{filled}"


def compose(name: str, words: list[str]) -> None:
    """Check a command as far as it can be checked without being run."""
    assert name in {*COMMANDS, "help"}
    given = [word for word in words if word != "--json"]
    if "--help" in words or name in ONLY_FLAGS:
        flags = {word.partition("=")[0] for word in words if word.startswith("--")} - {"--help"}
        assert flags <= {"--config-dir", *re.findall(r"--[\w-]+", command_help(name))}
    elif name == "help":
        assert words[0] == "TOPIC" or words[0] in {*COMMANDS, *TOPICS}
    elif name == "resume":
        resume([with_trackers_named(word) for word in words[1:]])
    elif name == "export":
        load_export_config(words[1:] if any(word.startswith("to=") for word in words) else ["to=DIR", *words[1:]])
    elif name == "evaluate" and given:
        quoted = [with_quoted(EVALUATION_KEYS, word) for word in with_model_named(given)]
        evaluation_config(compose_jobs(parse(quoted), root="evaluate").jobs[0])
    elif name in ("generate", "chat") and given:
        generation_config(compose_jobs(parse(typed(given)), root="generate").jobs[0])
    elif name in ("check", "doctor"):
        load_check_config(compose_jobs(parse(given), root="check").jobs[0].config)
    elif name == "train":
        arguments, _ = take_jobs(parse(words))
        search = search_of(arguments)
        for job in (compose_jobs(arguments) if search is None else search.composition()).jobs:
            load_config(job.config)


def resume(words: list[str]) -> None:
    """Check the settings with which a run is resumed."""
    assert {key_of(word) for word in words} <= {*FREE_KEYS, *PLACES, *SWEEP_KEYS}
    of_run = [word for word in words if not word.startswith("sweep.")]
    load_config(with_overrides(RunFolder(Path("RUN_DIR")).saved_config, of_run))


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The current directory, with what commands name: a folder of a run, files of settings, options of one's own."""
    monkeypatch.chdir(tmp_path)
    config = orpo.configure("model=tiny", "data=./prefs.json", "data.eval_fraction=0.1", "output_dir=RUN_DIR")
    (tmp_path / "RUN_DIR" / "model").mkdir(parents=True)
    (tmp_path / "RUN_DIR" / "config.yaml").write_text(portable_yaml(config, tmp_path / "RUN_DIR"), encoding="utf-8")
    (tmp_path / "RUN_DIR" / "run.json").write_text("{}", encoding="utf-8")
    for name in ("first", "search"):
        (tmp_path / name).symlink_to(tmp_path / "RUN_DIR")
    for name in ("my.yaml", "run.yaml"):
        (tmp_path / name).write_text("model: tiny\ndata: ./prefs.json\n", encoding="utf-8")
    for name, text in re.findall(r"(?s)```yaml\n# (my_configs/\S+)\n(.*?)```", PAGES["docs/extending.md"]):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text, encoding="utf-8")
    (tmp_path / "conf" / "experiment").mkdir(parents=True)
    mine = PAGES["docs/recipes.md"].partition("```yaml\n")[2].partition("```")[0]
    (tmp_path / "conf" / "experiment" / "mine.yaml").write_text(mine, encoding="utf-8")
    (tmp_path / "my_configs" / "optimizer" / "mine.yaml").write_text("defaults: [adamw, _self_]\nlr: 1.0e-6\n")


def test_snippets_were_found() -> None:
    assert sum(len(commands(page)) for page in PAGES) > 100
    assert sum(len(settings(page)) for page in PAGES) > 100
    for page in ("choosing", "devices", "evaluation", "compare", "extending", "resume", "run_folder"):
        assert len(commands(f"docs/{page}.md")) >= 3, page


@pytest.mark.slow
@pytest.mark.parametrize("page", [page for page in PAGES if commands(page)])
@pytest.mark.usefixtures("here")
def test_commands_compose(page: str) -> None:
    wrong = []
    for command in commands(page):
        name, *words = words_of(command)
        try:
            compose(name, words)
        except Exception as error:
            wrong.append(f"orpo {command}: {error!r}")
    assert wrong == []


@pytest.mark.slow
@pytest.mark.parametrize("page", [page for page in PAGES if settings(page)])
@pytest.mark.usefixtures("here")
def test_settings_compose(page: str) -> None:
    wrong = []
    for span in settings(page):
        for words in as_typed(span):
            try:
                compose("train", words)
            except Exception as error:
                wrong.append(f"{span}: {error!r}")
    assert wrong == []


@pytest.mark.slow
def test_settings_of_an_export_are_read() -> None:
    found = settings_of_export("docs/export.md")
    assert len(found) > 5
    for span in found:
        for words in as_typed(span):
            load_export_config([word for word in ["to=DIR", *words] if not word.startswith("data=")])


def test_functions_of_the_package_exist() -> None:
    named = {name for page in PAGES.values() for name in re.findall(r"(?<![\w/])orpo\.([a-z_]+)\(", page)}
    assert len(named) > 5
    assert named <= set(orpo.__all__)


@pytest.mark.slow
def test_python_snippets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Those that are not executed by test_interface.py and test_extending.py, on a run of the tiny model."""
    monkeypatch.chdir(tmp_path)
    for name in ("prefs.jsonl", "other.jsonl"):
        write_pairs(tmp_path / name)
    config = orpo.configure(
        "model=tiny", "data=prefs.jsonl", "data.eval_fraction=0.25", "trainer.max_steps=1", "trainer.sample_tokens=0",
        "output_dir=outputs/my-run",
    )  # fmt: skip
    names: dict[str, Any] = {"config": config, "orpo": orpo}
    exec(python("docs/python.md")[1], names)
    assert names["run"].is_finished
    exec(python("docs/evaluation.md")[0], names)
    found = names["found"].summary
    assert 0 <= found.accuracy.low <= found.accuracy.value <= found.accuracy.high <= 1
    exec(python("docs/run_folder.md")[0].replace("RUN_DIR", "outputs/my-run"), names)
    [before, *_] = [line for line in names["run"].metrics if line["kind"] == "eval"]
    assert names["accuracy"] == before["accuracy"]
    capsys.readouterr()
    shell = re.findall(r'^    python -c "(.*)"$', PAGES["docs/run_folder.md"], re.MULTILINE)
    assert [exec(line.replace("RUN_DIR", "outputs/my-run"), names) for line in shell] == [None]
    assert capsys.readouterr().out == "True\n"
    assert {page: len(python(page)) for page in PAGES if python(page)} == {
        "docs/evaluation.md": 1, "docs/extending.md": 1, "docs/python.md": 2, "docs/run_folder.md": 1,
    }  # fmt: skip


def python(page: str) -> list[str]:
    return re.findall(r"(?ms)^```python\n(.*?)^```$", PAGES[page])
