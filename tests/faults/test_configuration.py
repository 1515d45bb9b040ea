"""Rows 40 to 43: names of folders, overrides and YAML that are wrong, hostile or surprising.

More of row 42 stands in tests/cli/test_messages.py, of values outside their limits in tests/config.
"""

import contextlib
import re
import sys
import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from omegaconf import DictConfig
from tiny_runs import digests, write_pairs

from orpo_cli.cli import compose
from orpo_cli.cli.arguments import parse
from orpo_cli.cli.compose import compose_jobs, with_overrides
from orpo_cli.cli.main import main
from orpo_cli.config.config_yaml import portable_yaml, read_saved_config  # fmt: skip
from orpo_cli.config.keys import SECTIONS, section_keys
from orpo_cli.config.load import load_config
from orpo_cli.config.schema import ROOT_KEYS
from orpo_cli.errors import OrpoError
from orpo_cli.quoting import override_value

SECRET = "secret-marker-123"


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory two levels below one whose files nobody may touch."""
    directory = tmp_path / "outside" / "in" / "here"
    directory.mkdir(parents=True)
    (tmp_path / "outside" / "kept.txt").write_text("kept")
    (directory / "full").mkdir()
    (directory / "full" / "kept.txt").write_text("kept")
    (directory / "file").write_text("kept")
    (directory / "dangling").symlink_to(tmp_path / "outside" / "nowhere")
    (directory / "target").mkdir()
    (directory / "link").symlink_to(directory / "target")
    (directory / "link-to-full").symlink_to(directory / "full")
    write_pairs(directory / "prefs.jsonl", 8)
    monkeypatch.chdir(directory)
    monkeypatch.setattr(sys, "argv", ["orpo"])
    monkeypatch.setenv("SECRET", SECRET)
    return directory


ONE_STEP = ("model=tiny", "data=prefs.jsonl", "trainer.max_steps=1", "trainer.sample_tokens=0")

FOLDERS = [
    pytest.param("../..", 73, None, id="40: a folder above, with files in it"),
    pytest.param(".", 73, None, id="40: this folder"),
    pytest.param("''", 2, None, id="40: empty"),
    pytest.param("", 2, None, id="40: nothing"),
    pytest.param("' '", 2, None, id="40: blank"),
    pytest.param("'a\0b'", 2, None, id="40: a NUL"),
    pytest.param("x" * 300, 2, None, id="40: 300 characters"),
    pytest.param("full", 73, None, id="45: a folder of other files"),
    pytest.param("link-to-full", 73, None, id="44: a link to a folder of other files"),
    pytest.param("file", 73, None, id="40: a file"),
    pytest.param("file/run", 73, None, id="40: a folder inside a file"),
    pytest.param("dangling", 73, None, id="44: a link to nothing"),
    pytest.param("/proc/run", 73, None, id="40: where no folder can be made"),
    pytest.param("link", 0, "target", id="44: a link to an empty folder"),
    pytest.param("-rf", 0, "-rf", id="40: what rm takes for a flag"),
    pytest.param("'a\nb'", 0, "a\nb", id="40: a newline"),
    pytest.param("'-rf *; ${x}'", 2, None, id="40: a reference to nothing"),
    pytest.param(r"'\${x} $(id) é'", 0, "${x} $(id) é", id="40: what a shell would run"),
]


@pytest.mark.parametrize(("folder", "code", "made"), FOLDERS)
def test_output_dir(folder: str, code: int, made: str | None, here: Path, capfd: pytest.CaptureFixture[str]) -> None:
    before = digests(here.parent.parent)
    there = set(here.parent.parent.rglob("*"))
    assert main(["train", *ONE_STEP, f"output_dir={folder}"]) == code
    err = capfd.readouterr().err
    assert "Traceback" not in err
    run = None if made is None else here / made
    new = {path for path in set(here.parent.parent.rglob("*")) - there if run is None or run not in path.parents}
    assert new <= {run}
    assert before.items() <= digests(here.parent.parent).items()
    if run is not None:
        assert (run / "model" / "model.safetensors").is_file()
        assert load_config(read_saved_config(run / "config.yaml")).output_dir == str(run.resolve())


TWO_FOLDERS = [
    "output_dir=a hydra.run.dir=b",
    "hydra.run.dir=b output_dir=a resume=auto",
    "++output_dir='a' hydra.run.dir='a/b'",
    "-m seed=1,2 output_dir=a hydra.sweep.dir=b",
    "-m seed=1,2 output_dir=a hydra.run.dir=b",
    "resume=b output_dir=a",
    "resume=b hydra.run.dir=a",
]


@pytest.mark.parametrize("words", TWO_FOLDERS, ids=lambda words: f"40: {words}")
def test_two_folders_for_one_run(words: str, here: Path, capfd: pytest.CaptureFixture[str]) -> None:
    before = set(here.iterdir())
    assert main(["train", *ONE_STEP, *words.split(" ")]) == 2
    [line] = capfd.readouterr().err.splitlines()
    assert {word for word in words.split(" ") if "dir=" in word} <= set(line.replace(":", " ").split())
    assert set(here.iterdir()) == before


@pytest.mark.parametrize(
    "words",
    [
        "output_dir=link hydra.run.dir=./target",
        "output_dir=a hydra.run.dir=${output_dir}",
        "output_dir=a ++resume=auto",
        "output_dir=a resume='auto'",
        "output_dir=a ++resume=null",
    ],
)
def test_one_folder_in_two_ways(words: str, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["train", *ONE_STEP, *words.split(" ")]) == 0, capfd.readouterr().err


SWEEPS_OF_NOTHING = ["lambda=", "lambda= seed=1,2", "lambda=-1,-2", "trainer.max_steps=0 lambda=0.1,0.2",
                     "trainer.keep_best=nll,accuracy trainer.eval_every=null"]  # fmt: skip


@pytest.mark.parametrize("words", SWEEPS_OF_NOTHING, ids=lambda words: f"42: {words}")
def test_sweep_none_of_whose_jobs_is_valid(words: str, here: Path, capfd: pytest.CaptureFixture[str]) -> None:
    before = set(here.iterdir())
    assert main(["train", "-m", *ONE_STEP, "output_dir=new", *words.split(" ")]) == 2
    [line] = capfd.readouterr().err.splitlines()
    assert line.startswith(f"orpo: error: {words.split('=')[0]}=")
    assert set(here.iterdir()) == before


# Each would make the directory MARKER, or read a pickle, where Hydra saw it.
OVERRIDES = [
    *(
        f"+{place}._target_={target}"
        for place in ("x", "data", "trainer.x", "hydra.callbacks.x", "hydra.launcher", "hydra.sweeper")
        for target in ("pandas.read_pickle", "torch.load", "os.system", "builtins.eval", "hydra.utils.get_method")
    ),
    "+_target_=os.mkdir",
    "+x=[{a:{_target_:os.mkdir,path:MARKER}}]",
    "+x={a:[{_target_ : os.mkdir}]}",
    '+x={"_target_":os.mkdir}',
    "++data.x={_partial_:true}",
    "hydra.launcher={_target_:os.mkdir,path:MARKER}",
    "+hydra.callbacks.x={_target_:os.mkdir,path:MARKER}",
    "++hydra={callbacks:{x:{_target_:os.mkdir,path:MARKER}}}",
    "hydra.job_logging={version:1,handlers:{x:{'()':os.mkdir}}}",
    "+hydra.job_logging.handlers.x.class=os.mkdir",
    "hydra/hydra_logging=default",
    "+hydra/job_logging@hydra.job_logging=default",
    "+hydra/sweeper=other",
    "hydra/launcher=ray",
    "hydra.launcher.setup=[touch x]",
    "hydra/launcher=../../x",
    "hydra/output=default",
    "hydra.output_subdir=x",
    "+hydra/callbacks=x",
    "optimizer=../../x",
    "+data@_global_.hydra.callbacks=demo",
    "+data@hydra.callbacks=demo",
    "+hydra.searchpath=[pkg://os]",
    "hydra.searchpath=[/tmp]",
    "hydra.mode=MULTIRUN",
    "hydra.job.chdir=true",
    "+hydra.job.env_set.LD_PRELOAD=x",
    "hydra.job.name=x",
    "hydra.runtime.output_dir=x",
    "hydra.sweeper.params={hydra.job_logging:x}",
    "+hydra.sweeper.params.hydra.job_logging.root.handlers=x",
    "+hydra.sweeper.params.x._target_=os.mkdir",
    "~hydra",
    "~hydra.launcher",
    "~hydra/job_logging",
]  # fmt: skip
WHY_NOT = "never code|cannot be (set|chosen|read)|no (key of a )?launcher|not a path|unknown flag|invalid choice"
FLAGS = ["--config-path=.", "-cp=.", "--experimental-rerun=x", "--hydra-help", "--run", "-s=x", "--shell-completion"]


@pytest.mark.parametrize("command", ["train", pytest.param("check", marks=pytest.mark.slow)])
@pytest.mark.parametrize("word", [*OVERRIDES, *FLAGS], ids=lambda word: f"41: {word}")
def test_override_that_is_code(command: str, word: str, here: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for flags in ([], ["-m"]) if command == "train" else ([],):
        assert main([command, *flags, "data=prefs.jsonl", word.replace("MARKER", str(here / "marker"))]) == 2
        [line] = capfd.readouterr().err.splitlines()
        assert re.search(WHY_NOT, line), line
        assert not (here / "marker").exists()
        assert not (here / "outputs").exists()


RUN_BY_HYDRA = ["callbacks", "a package of callbacks", "a package of logging"]
MARK = "{_target_: os.mkdir, path: MARKER}"
LOGGING = "{version: 1, root: {handlers: [x]}, handlers: {x: {'()': os.mkdir, path: MARKER}}}"
FILES = [
    pytest.param("experiment", f"# @package _global_\nhydra: {{callbacks: {{x: {MARK}}}}}", id="41: callbacks"),
    pytest.param("experiment", f"# @package hydra.callbacks\n{{x: {MARK}}}", id="41: a package of callbacks"),
    pytest.param("experiment", f"# @package hydra.job_logging\n{LOGGING}", id="41: a package of logging"),
    pytest.param("experiment", f"a: [{{b: {MARK}}}]", id="41: a target in a list"),
    pytest.param("hydra/callbacks", f"{{x: {MARK}}}", id="41: an option of hydra"),
    pytest.param("experiment", f"# @package _global_\nhydra: {{launcher: {MARK}}}", id="41: launcher"),
    pytest.param("experiment", f"# @package _global_\nhydra: {{job_logging: {LOGGING}}}", id="41: logging"),
    pytest.param("experiment", "# @package _global_\nhydra: {job: {env_set: {PATH: x}}}", id="41: environment set"),
    pytest.param("experiment", "# @package _global_\nhydra: {searchpath: ['file:///tmp']}", id="41: search path"),
    pytest.param(
        "experiment",
        "# @package _global_\nhydra:\n  mode: MULTIRUN\n  sweeper:\n    params:\n      +hydra.job_logging: "
        "\"{version: 1, root: {handlers: [x]}, handlers: {x: {class: logging.FileHandler, filename: 'MARKER'}}}\"",
        id="41: logging in a sweep",
    ),
    pytest.param(
        "experiment",
        f'# @package _global_\nhydra: {{mode: MULTIRUN, sweeper: {{params: {{+x: "{MARK}"}}}}}}',
        id="41: a target in a sweep",
    ),
    pytest.param("experiment", "defaults: [{override /hydra/launcher: ../../x}]", id="41: launcher outside"),
    pytest.param("experiment", "defaults: [{override /hydra/callbacks: x}]", id="41: callbacks in the defaults list"),
    pytest.param("experiment", "defaults: [{/data@hydra.callbacks: demo}]", id="41: package in the defaults list"),
    pytest.param("experiment", "defaults: ['${oc.env:SECRET}']", id="41: environment in the defaults list"),
    pytest.param("experiment", "defaults: [/etc/passwd/../x]", id="41: a path in the defaults list"),
    pytest.param("optimizer", "name: adamw\nlr: {_target_: torch.load, f: MARKER}", id="41: a target for a number"),
    pytest.param("optimizer", "name: adamw\nlr: ${oc.env:SECRET}", id="41: environment for a number"),
    pytest.param("optimizer", "name: adamw\nx: &a {_target_: os.mkdir}\nlr: {<<: *a}", id="41: a target by merge"),
    pytest.param("optimizer", "lr: !!python/name:os.system ''", id="41: a tag of Python"),
    pytest.param("optimizer", "a: &a [1,1]\nb: &b [*a,*a]\n" + "".join(
        f"c{n}: &c{n} [{', '.join([f'*c{n - 1}' if n else '*b'] * 8)}]\n" for n in range(9)
    ), id="42: aliases, 5 levels and more"),
    pytest.param("optimizer", "lr: 1\n" * 2 , id="43: a key twice"),
]  # fmt: skip


@pytest.mark.timeout(120)  # what is expanded has no end
@pytest.mark.parametrize(("group", "text"), FILES)
def test_yaml_of_others(group: str, text: str, here: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (here / "own" / group).mkdir(parents=True)
    (here / "own" / group / "x.yaml").write_text(text.replace("MARKER", str(here / "marker")))
    chosen = f"{group}=x" if group == "optimizer" else "+experiment=x"
    assert main(["train", "--config-dir", "own", chosen, "data=prefs.jsonl", "output_dir=run"]) == 2
    [line] = capfd.readouterr().err.splitlines()
    assert SECRET not in line
    assert not (here / "marker").exists()
    assert not (here / "run").exists()


@pytest.mark.parametrize(("group", "text"), [row for row in FILES if str(row.id).removeprefix("41: ") in RUN_BY_HYDRA])
def test_hydra_would_not_run_it_either(group: str, text: str, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It composes and nothing more."""
    monkeypatch.setattr(compose, "check_config_dir", lambda *_: None)
    (here / "own" / group).mkdir(parents=True)
    (here / "own" / group / "x.yaml").write_text(text.replace("MARKER", str(here / "marker")))
    assert main(["train", "--config-dir", "own", f"+{group}=x", "data=no.json"]) == 66
    assert not (here / "marker").exists()


ENVIRONMENT = [
    "lambda=${oc.env:SECRET}",
    "lambda=${oc.env:NOTHING,1}",
    "data.path=${oc.env:SECRET}",
    "data=${oc.env:SECRET}",
    "model.path=${oc.env:SECRET}",
    "output_dir=${oc.env:SECRET}",
    "output_dir=x/${oc.env:SECRET}/y",
    "resume=${oc.env:SECRET}",
    "hydra.run.dir=${oc.env:SECRET}",
    "+x=${oc.env:SECRET}",
    "lambda=${oc.decode:${oc.env:SECRET}}",
    "lambda=${oc.decode:'${oc.env:SECRET}'}",
    "model.path=${oc.${data.format}:SECRET} data.format=env",
    "trainer.max_time=${oc.select:nope,${oc.env:SECRET}}",
]


@pytest.mark.parametrize("words", ENVIRONMENT, ids=lambda words: f"41: {words}")
def test_the_environment_is_not_read(words: str, here: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Not into an error, a file, or what `--cfg` prints."""
    before = digests(here)
    assert main(["train", *ONE_STEP, *words.split(" ")]) in (2, 66)
    assert main(["train", *ONE_STEP, *words.split(" "), "--cfg", "job", "--resolve"]) in (0, 2)
    written = capfd.readouterr()
    assert SECRET not in written.out + written.err
    assert "Traceback" not in written.err
    assert digests(here) == before
    assert not (here / SECRET).exists()


SURPRISES = [
    pytest.param("lr: 012", "`012` is 10 in YAML", id="43: an octal number"),
    pytest.param("lr: 1_000", "`1_000` is 1000 in YAML", id="43: an underscore"),
    pytest.param("lr: 12:30:45", "`12:30:45` is 45045 in YAML", id="43: base sixty"),
    pytest.param("name: on", "`on` is true in YAML", id="43: on"),
    pytest.param("name: No", "`No` is false in YAML", id="43: no"),
    pytest.param("betas: [0.9, yes]", "`yes` is true in YAML", id="43: yes in a list"),
    pytest.param("off: 1", "`off` is false in YAML", id="43: off as a key"),
    pytest.param("lr: 1\nlr: 2", "the key `lr` stands twice", id="43: a key twice"),
]


@pytest.mark.parametrize("saved", [False, True], ids=["in --config-dir", "in a run"])
@pytest.mark.parametrize(("text", "message"), SURPRISES)
def test_yaml_that_surprises(
    text: str, message: str, saved: bool, here: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = here / ("run/config.yaml" if saved else "own/optimizer/x.yaml")
    path.parent.mkdir(parents=True)
    path.write_text(text)
    argv = ["resume", "run"] if saved else ["train", "--config-dir", "own", "optimizer=x"]
    assert main(argv) == 2
    assert message in capfd.readouterr().err


@pytest.mark.parametrize(
    "override",
    ["seed=on", "seed=true", "trainer.max_steps=12:30:45", "trainer.max_steps=1.5", "optimizer.lr=on",
     "optimizer.lr=12:30:45", "trainer.max_time=1:30", "data.max_length=1e3",
     "trainer.processes=1000000"],
    ids=lambda override: f"43: {override}",
)  # fmt: skip
def test_typed_keys(override: str, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["train", *ONE_STEP, override]) == 2
    assert override.split("=")[0] in capfd.readouterr().err


@pytest.mark.parametrize(
    "override",
    ["lambda=012", "lambda=-012", "lambda=.5_0", "trainer.max_steps=1_0", "optimizer.lr=1_0.5", "optimizer.lr=1e1_0",
     "optimizer.betas=[0.9,0.9_5]", "optimizer.betas=[0.9,00.95]", "output_dir=2026_11_27", "seed=1_000", "++seed=007"],
    ids=lambda override: f"43: {override}",
)  # fmt: skip
def test_numbers_that_are_read_as_others(override: str, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["train", *ONE_STEP, override]) == 2
    assert "a number is written without leading zeros and underscores" in capfd.readouterr().err


KEYS = [*ROOT_KEYS, *SECTIONS, *(f"{section}.{key}" for section in SECTIONS for key in section_keys(section))]
SIGNS = st.sampled_from(["", "+", "++", "~", "hydra.", "hydra/", "@", ".", "_target_"])
PIECES = st.one_of(
    st.sampled_from(
        ["${", "}", "${oc.env:SECRET}", "${lambda}", "${.x}", "${oc.decode:", "null", "true", "[", "]", "{a:1}", "'",
         '"', "\\", "\\\\${x}", ",", "1e400", "-1", "nan", "012", "choice(1,2)", "glob(*)", "../..", "/", "builtin:",
         "~", "=", "$", "\n", "é", "\x1b[31m"]
    ),
    st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=4),
)  # fmt: skip
WORDS = st.builds(
    lambda sign, key, pieces: f"{sign}{key}={''.join(pieces)}",
    SIGNS,
    st.sampled_from(KEYS),
    st.lists(PIECES, max_size=4),
)


def ends_in_a_message(words: list[str], capfd: pytest.CaptureFixture[str]) -> None:
    """The data is missing, so that no configuration is carried out."""
    code = main(["train", *words, "data.path=no.json", "data.eval_path=null"])
    err = capfd.readouterr().err
    assert code in (2, 66, 73), err
    assert err.startswith("orpo: error: "), err
    assert "Traceback" not in err
    assert SECRET not in err


PROPERTY = settings(suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])


@settings(PROPERTY, max_examples=25)
@given(words=st.lists(WORDS, max_size=3))
def test_any_override_is_valid_or_named(words: list[str], capfd: pytest.CaptureFixture[str]) -> None:
    ends_in_a_message(words, capfd)


@pytest.mark.slow
@pytest.mark.timeout(900)
@settings(PROPERTY, max_examples=250)
@given(words=st.lists(WORDS, max_size=3))
def test_many_overrides_are_valid_or_named(words: list[str], capfd: pytest.CaptureFixture[str]) -> None:
    ends_in_a_message(words, capfd)


@pytest.fixture(scope="module")
def composed() -> DictConfig:
    """`orpo train model=tiny data=./x`, before it is checked."""
    return compose_jobs(parse(["model=tiny", "data=./x"])).jobs[0].config


TEXTS = st.one_of(
    st.sampled_from(
        ["012", "1_000", "12:30:45", "on", "null", "~", "2026-01-31", "1e5", "${x}", "\\${x}", "'", '"', "a: b"]
    ),
    st.text(st.characters(exclude_characters="\0\x85\u2028\u2029", exclude_categories=["Cs"]), min_size=1, max_size=12),
)
"""Without the line breaks that only YAML 1.1 knows."""


@pytest.mark.slow
@settings(PROPERTY, max_examples=40)
@given(text=TEXTS, seed=st.integers(0, 2**32 - 1), lr=st.floats(1e-12, 1e3), lambda_=st.floats(0, 1e9))
def test_saved_and_loaded_again_is_the_same(
    text: str, seed: int, lr: float, lambda_: float, composed: DictConfig, tmp_path: Path
) -> None:
    """Whatever the values: quotes, `${`, numbers in old YAML, words that are true or false."""
    overrides = [f"seed={seed}", f"lambda={lambda_!r}", f"optimizer.lr={lr!r}"]
    overrides += [f"{key}={override_value(text)}" for key in ("model.revision", "data.columns.prompt")]
    cfg = with_overrides(composed, overrides)
    saved = portable_yaml(load_config(cfg), tmp_path)
    (tmp_path / "config.yaml").write_text(saved, encoding="utf-8")
    again = read_saved_config(tmp_path / "config.yaml")
    loaded = load_config(again)
    assert portable_yaml(loaded, tmp_path) == saved
    assert (loaded.seed, loaded.optimizer.lr, loaded.lambda_, loaded.model.revision) == (seed, lr, lambda_, text)


def reads_or_refuses(raw: bytes, folder: Path) -> float:
    """Returns the seconds of the processor that it took."""
    (folder / "config.yaml").write_bytes(raw)
    started = time.process_time()
    with contextlib.suppress(OrpoError):
        load_config(read_saved_config(folder / "config.yaml"))
    return time.process_time() - started


@pytest.fixture(scope="module")
def at_most(composed: DictConfig, tmp_path_factory: pytest.TempPathFactory) -> float:
    """Seconds for any configuration: a hundred times those of a good one."""
    folder = tmp_path_factory.mktemp("good")
    whole = portable_yaml(load_config(composed), folder).encode()
    return 100 * min(reads_or_refuses(whole, folder) for _ in range(3))


NOT_QUITE = st.tuples(st.integers(0, 2000), st.integers(0, 40), st.binary(max_size=6))
"""Where a saved configuration is changed, how many bytes go, and what comes instead."""


@settings(PROPERTY, max_examples=60)
@given(raw=st.binary(max_size=200), change=NOT_QUITE)
def test_any_bytes_as_configuration(
    raw: bytes, change: tuple[int, int, bytes], composed: DictConfig, at_most: float, tmp_path: Path
) -> None:
    assert reads_or_refuses(raw, tmp_path) < at_most
    place, gone, instead = change
    whole = portable_yaml(load_config(composed), tmp_path).encode()
    assert reads_or_refuses(whole[:place] + instead + whole[place + gone :], tmp_path) < at_most


@pytest.mark.slow
@pytest.mark.timeout(900)
@settings(PROPERTY, max_examples=400)
@given(change=NOT_QUITE)
def test_many_bytes_as_configuration(
    change: tuple[int, int, bytes], composed: DictConfig, at_most: float, tmp_path: Path
) -> None:
    place, gone, instead = change
    whole = portable_yaml(load_config(composed), tmp_path).encode()
    assert reads_or_refuses(whole[:place] + instead + whole[place + gone :], tmp_path) < at_most
