"""`data=FILE` and `model=DIR_OR_HUB_ID`: what Hydra is given, and that the composed value is the path as typed."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import example, given
from hypothesis import strategies as st
from matrix import rows
from omegaconf import OmegaConf

from orpo_cli.cli.answering import typed as answers
from orpo_cli.cli.arguments import Arguments, parse
from orpo_cli.cli.compose import compose_jobs
from orpo_cli.cli.one_configuration import say_what_is_hidden
from orpo_cli.cli.shorthand import REWRITES
from orpo_cli.config.defaults import place_of_model
from orpo_cli.config.load import load_config
from orpo_cli.errors import ConfigError
from orpo_cli.quoting import override_value

ODD_NAMES = [
    "./prefs.json",
    "/data/prefs.json",
    "../up/prefs.jsonl",
    "my prefs.json",
    " leading and trailing .json ",
    "a=b.json",
    "lr=1e-5,beta=0.1.json",
    "prefs (1).json",
    "prefs[1].json",
    "{a:1}.json",
    "a,b.json",
    "it's.json",
    'a "quoted" name.json',
    "'.json",
    r"back\slash.json",
    r"ends in a backslash.\\",
    r"C:\data\prefs.json",
    "$HOME.json",
    "${x}.json",
    r"\${x}.json",
    r"\\${oc.env:HOME}.json",
    "${.json",
    "#1.json",
    "%41.json",
    "*?.json",
    "a:b@c.json",
    "préférences.json",
    "préférences.json",
    "偏好.json",
    "🦋.json",
    "./-m.json",
    "./--help",
    "null.json",
    "1.5",
    "1e3.json",
    "tab\tnewline\n.json",
    "a\\\n.",
]


def value_of(override: str) -> Any:
    """What a configuration holds after `override`, by the parsers of Hydra and OmegaConf alone."""
    parsed = OverridesParser.create().parse_overrides([override])[0]
    return OmegaConf.create({"value": parsed.value()}).value


@pytest.mark.parametrize("name", ODD_NAMES)
@pytest.mark.parametrize("group", rows({group: group for group in REWRITES}, "data"))
def test_composed_path_is_the_path_typed(group: str, name: str) -> None:
    job = compose_jobs(parse([f"{group}={name}", "data.eval_path=null"])).jobs[0]
    assert getattr(load_config(job.config), group).path == name


path_characters = st.text(
    st.one_of(
        st.sampled_from("\\'\"${}()[],=#:@%*?~ \t\n.-+/"),
        st.characters(exclude_characters="\0", exclude_categories=["Cs"]),
    ),
    max_size=12,
)


@given(path_characters)
@example(r"\\\${a}\'${b}\\")
def test_every_file_name_survives(name: str) -> None:
    option, path = parse([f"data=./{name}"]).overrides
    assert option == "data=file"
    assert value_of(path) == f"./{name}"


any_names = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=12)


@given(any_names.filter(lambda name: name != "???"))
def test_names_survive_the_second_parsing_of_a_sweep(name: str) -> None:
    """A job of a sweep is started with the override as Hydra writes it, which is then parsed once more.

    `???` is the word of OmegaConf for a value that is missing.
    """
    override = OverridesParser.create().parse_overrides([f"data.path={override_value(name)}"])
    [[again]] = BasicSweeper.split_arguments(override, max_batch_size=None)[0]
    assert value_of(again) == name


@pytest.mark.parametrize(
    ("typed", "path"),
    [("data='my file.json'", "my file.json"), ('data="a,b.json"', "a,b.json"), (r"data='it\'s.json'", "it's.json")],
)
def test_quotes_that_enclose_a_path_are_taken_off(typed: str, path: str) -> None:
    assert value_of(parse([typed]).overrides[1]) == path


def test_home_is_expanded_only_at_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/ann")
    assert value_of(parse(["data=~/prefs.json"]).overrides[1]) == "/home/ann/prefs.json"
    assert value_of(parse(["data=./~/prefs.json"]).overrides[1]) == "./~/prefs.json"


@pytest.mark.parametrize(
    "override",
    ["data=demo", "model=llama", "data=null", "data=", "data", "+data=x.json", "data.path=x.json", "lambda=0.1",
     "resume=a/b", "model.path=org/name", "optimizer.lr=1e-5", "data@x=y.json", "data=choice(demo,file)"],
)  # fmt: skip
def test_nothing_else_is_rewritten(override: str) -> None:
    assert parse([override]).overrides == [override]


def test_hub_ids_become_paths() -> None:
    assert parse(["model=org/name-1.5"]).overrides == ["model=pretrained", "model.path='org/name-1.5'"]


def test_order_of_overrides_is_kept() -> None:
    assert parse(["data.max_length=5", "data=a.json", "seed=1"]).overrides == [
        "data.max_length=5",
        "data=file",
        "data.path='a.json'",
        "seed=1",
    ]


def sweep(argv: Sequence[str]) -> list[list[str]]:
    parsed = OverridesParser.create().parse_overrides(parse(argv).overrides)
    return [list(job) for job in BasicSweeper.split_arguments(parsed, max_batch_size=None)[0]]


@pytest.mark.parametrize(
    ("typed", "paths"),
    [
        ("data=a.json,b.json", ["a.json", "b.json"]),
        ("data='a,1.json',./b c.json", ["a,1.json", "./b c.json"]),
        ('data="it\'s.json",/x/(2).json', ["it's.json", "/x/(2).json"]),
        ("model=org/a,./b", ["org/a", "./b"]),
    ],
)
def test_sweep_over_files(typed: str, paths: list[str]) -> None:
    jobs = sweep(["-m", typed, "lambda=1"])
    assert [value_of(job[1]) for job in jobs] == paths
    assert all(job[0].split("=")[1] == REWRITES[typed.split("=")[0]] for job in jobs)


@pytest.mark.parametrize(
    ("typed", "paths"),
    [
        ("data=[a.jsonl,b.parquet]", ["a.jsonl", "b.parquet"]),
        ("data=['a,1.jsonl',\"b c.json\"]", ["a,1.jsonl", "b c.json"]),
        ("data=[a.jsonl]", ["a.jsonl"]),
        ("data=[org/name,demo]", ["org/name", "demo"]),
    ],
)
def test_a_list_of_paths(typed: str, paths: list[str]) -> None:
    option, path = parse([typed]).overrides
    assert option == "data=file"
    assert value_of(path) == paths
    assert parse(["-m", typed]).overrides == [option, path]


def test_a_file_whose_name_looks_like_a_list(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "[a.json]").touch()
    assert value_of(parse(["data=[a.json]"]).overrides[1]) == "[a.json]"


def test_patterns_and_stdin_are_paths() -> None:
    for name in ("prefs[0-9].jsonl", "data/*.jsonl", "-"):
        assert value_of(parse([f"data={name}"]).overrides[1]) == name


def test_existing_file_with_a_comma_is_not_split(tmp_path: Path) -> None:
    file = tmp_path / "a.json,b.json"
    file.touch()
    assert [value_of(job[1]) for job in sweep(["-m", f"data={file}"])] == [str(file)]


@pytest.fixture
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Some have the names of options: `tiny` is built in, `mine` an option of the user's own."""
    monkeypatch.chdir(tmp_path)
    for name in ("first", "second", "tiny", "mine", "file", "own/model"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "prefs").touch()
    (tmp_path / "own" / "model" / "mine.yaml").write_text("defaults: [tiny]\n")
    (tmp_path / "run.yaml").write_text("model: first\ndata: prefs\n")


FIRST = ["model=pretrained", "model.path='first'"]


@pytest.mark.usefixtures("folders")
@pytest.mark.parametrize(
    ("typed", "expected"),
    [
        (["model=first"], FIRST),
        (["data=prefs"], ["data=file", "data.path='prefs'"]),
        (["run.yaml"], [*FIRST, "data=file", "data.path='prefs'"]),
        (["-m", "model=first,second"], ["model=pretrained", "model.path='first','second'"]),
        (["model=tiny"], ["model=tiny"]),
        (["model=mine"], ["model=pretrained", "model.path='mine'"]),
        (["model=mine", "--config-dir", "own"], ["model=mine"]),
        (["model=third"], ["model=third"]),  # which Hydra refuses
        (["model=" + "x" * 300], ["model=" + "x" * 300]),
        (answers(["first"]), FIRST),
        (answers(["tiny"]), ["model=tiny"]),
        (answers(["./tiny"]), ["model=pretrained", "model.path='./tiny'"]),
    ],
    ids=lambda value: " ".join(value)[:40],
)
def test_a_plain_word_is_an_option_or_what_has_this_name(typed: list[str], expected: list[str]) -> None:
    assert parse(typed).overrides == expected


@pytest.mark.usefixtures("folders")
def test_one_line_says_that_an_option_is_taken(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """And no line of a process that another `orpo` started, which has said it."""
    arguments = parse(["model=tiny", "data=file", "loss=orpo"])
    say_what_is_hidden(arguments)
    said = "! model=tiny: the option of this name is taken; what has this name here is model=./tiny\n"
    assert capsys.readouterr().err == said
    monkeypatch.setenv("ORPO_PARENT", "1")
    say_what_is_hidden(arguments)
    assert capsys.readouterr().err == ""


def test_a_model_to_compare_with_may_be_an_option_too() -> None:
    names = ("tiny", "llama", "pretrained", "first", "org/name")
    assert [place_of_model(name) for name in names] == [
        "builtin:tiny", "meta-llama/Llama-3.2-1B-Instruct", None, None, None,
    ]  # fmt: skip


def test_sweep_over_names_and_paths_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"data=demo,a\.json: .*names or paths, not both.*\./NAME"):
        parse(["-m", "data=demo,a.json"])
    assert parse(["-m", "data=demo,file"]).overrides == ["data=demo,file"]


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (["seed=1", "-m", "lambda=1"], Arguments(["seed=1", "lambda=1"], multirun=True)),
        (["seed=1", "--cfg", "job", "lambda=1"], Arguments(["seed=1", "lambda=1"], cfg="job")),
        (["seed=1", "-c=all", "--resolve"], Arguments(["seed=1"], cfg="all", resolve=True)),
        (
            ["-cd", "my dir", "seed=1", "-cn", "root"],
            Arguments(["seed=1"], config_dir=Path("my dir"), config_name="root"),
        ),
        (["--config-dir=a=b"], Arguments([], config_dir=Path("a=b"))),
        (["--info", "defaults", "seed=1"], Arguments(["seed=1"], info="defaults")),
        (["seed=1", "-i"], Arguments(["seed=1"], info="all")),
    ],
)
def test_flags_stand_anywhere(argv: list[str], expected: Arguments) -> None:
    assert parse(argv) == expected


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--confg-dir", "x"], "did you mean `--config-dir`"),
        (["--experimental-rerun", "x.pickle"], "unknown flag --experimental-rerun"),
        (["--config-path=x"], "unknown flag --config-path"),
        (["--hydra-help"], "unknown flag --hydra-help"),
        (["--multi"], "unknown flag --multi"),
        (["--config-dir"], "--config-dir: expected one argument"),
        (["--cfg", "seed=1"], "choose from 'job', 'hydra', 'all'"),
        (["--info=x"], "choose from 'all', 'config'"),
        (["-m=1"], "ignored explicit argument"),
    ],
)
def test_wrong_flags(argv: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse(argv)


@given(st.lists(st.text(max_size=20), max_size=4))
def test_any_words_expand_or_are_refused(argv: list[str]) -> None:
    try:
        assert len(parse(argv).overrides) <= 2 * len(argv)
    except ConfigError:
        return
