"""Completion in real shells, and what it offers."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from orpo_cli.cli.commands import COMMANDS
from orpo_cli.cli.completion import _FLAGS
from orpo_cli.cli.help import command_help, keys_of
from orpo_cli.cli.main import main

BIN = str(Path(sys.executable).parent)


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", BIN, prepend=":")
    for name in ("my.yaml", "prefs.json", "outputs/one/config.yaml", ".hidden/x.yaml"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("")
    return tmp_path


def offered(capsys: pytest.CaptureFixture[str], *words: str) -> set[str]:
    assert main(["completion", "--", *words]) == 0
    return set(capsys.readouterr().out.splitlines())


def test_commands(capsys: pytest.CaptureFixture[str]) -> None:
    assert offered(capsys, "") >= COMMANDS.keys()
    assert offered(capsys, "ver") == {"verify"}
    assert offered(capsys, "help", "me") == {"metrics"}
    assert offered(capsys, "completion", "") == {"bash", "zsh", "fish"}


def test_keys_and_options(capsys: pytest.CaptureFixture[str]) -> None:
    assert offered(capsys, "train", "optimizer=m") == {"optimizer=muon"}
    assert offered(capsys, "train", "trainer.early") == {"trainer.early_stop="}
    assert offered(capsys, "train", "+exp") == {"+experiment="}
    assert offered(capsys, "train", "+experiment=mistral_orpo_b") == {"+experiment=mistral_orpo_beta"}
    assert offered(capsys, "train", "--c") == {"--cfg", "--config-dir", "--config-name"}
    assert "check.fail_on=" in offered(capsys, "check", "check.")
    assert {"model=tiny", "model=outputs/"} <= offered(capsys, "check", "model=")
    assert "model=pretrained" not in offered(capsys, "check", "model=")


def test_keys_of_each_command(capsys: pytest.CaptureFixture[str]) -> None:
    """Those of a run's folder come behind it."""
    assert offered(capsys, "train", "sweep") == {"sweep.jobs=", "sweep.trials="}
    assert offered(capsys, "check", "sweep") == set()
    assert {"lambda=", "trainer.eval_max_tokens=", "scores=", "--json"} <= offered(capsys, "evaluate", "")
    assert offered(capsys, "export", "") == {"--help", "outputs/"}
    assert offered(capsys, "export", "outputs/one", "d") == {"dtype=", "dry_run="}
    assert offered(capsys, "resume", "outputs/one", "sweep") == {"sweep.jobs=", "sweep.trials="}
    assert offered(capsys, "resume", "outputs/one", "trainer.ep") == {"trainer.epochs="}
    assert offered(capsys, "resume", "outputs/one", "optimizer.l") == set()
    assert offered(capsys, "chat", "outputs/one", "te") == {"temperature="}
    assert not {"prompt=", "prompts=", "--json", "--multirun"} & offered(capsys, "chat", "outputs/one", "")
    assert {"prompt=", "prompts=", "against=", "--json"} <= offered(capsys, "generate", "outputs/one", "")
    assert offered(capsys, "doctor", "data.eval_f") == {"data.eval_fraction="}
    assert offered(capsys, "init", "") == {"--help", "outputs/"}
    assert offered(capsys, "import", "") == {"--help", "outputs/", "my.yaml"}
    assert offered(capsys, "compare", "a", "--m") == {"--markdown"}


@pytest.mark.parametrize(
    ("word", "expected"),
    [("merge=", "true false"), ("format=", "safetensors gguf"), ("dtype=", "fp32 bf16 fp16"),
     ("checkpoint=", "best last"), ("to=o", "outputs/"), ("trainer.on_spike=", "warn halt"),
     ("loss.nll=", "chosen prompt_and_chosen"),
     ("trainer.gradient_checkpointing=", "true false"), ("against=", "auto none outputs/ prefs.json my.yaml"),
     ("push=", ""), ("lambda=", "")],
)  # fmt: skip
def test_values(word: str, expected: str, capsys: pytest.CaptureFixture[str]) -> None:
    key = word.partition("=")[0]
    assert offered(capsys, "export", "outputs/one", word) == {f"{key}={value}" for value in expected.split()}


def test_what_is_completed_is_known() -> None:
    """Each flag stands in the help of its command, so does each key of a command that lists all of its own."""
    for command, flags in _FLAGS.items():
        assert [flag for flag in flags if flag not in command_help(command)] == []
    for command in ("train", "export"):
        assert [key for key in keys_of(command) if f"  {key} " not in command_help(command)] == []


def test_paths(capsys: pytest.CaptureFixture[str], here: Path) -> None:
    assert offered(capsys, "train", "m") == {"model=", "my.yaml", *offered(capsys, "train", "model.")}
    assert offered(capsys, "train", "lambda=1", "my") == set()
    assert offered(capsys, "train", "data=p") == {"data=prefs.json"}
    assert offered(capsys, "train", "data.eval_path=./p") == {"data.eval_path=./prefs.json"}
    assert offered(capsys, "resume", "out") == {"outputs/"}
    assert offered(capsys, "resume", "outputs/") == {"outputs/one/"}
    assert offered(capsys, "resume", f"{here}/out") == {f"{here}/outputs/"}
    assert offered(capsys, "resume", "nowhere/") == set()


def shell(name: str, code: str) -> list[str]:
    """Run code in a shell, with the script of `orpo completion` loaded."""
    program = shutil.which(name)
    if program is None:
        pytest.skip(f"there is no {name} here")
    script = subprocess.run([f"{BIN}/orpo", "completion", name], capture_output=True, text=True, check=True).stdout
    Path(f"completion.{name}").write_text(script)
    done = subprocess.run([program, "-c", code], capture_output=True, text=True, check=False)
    return done.stdout.split()


@pytest.mark.parametrize(("line", "replies"), [
    ("orpo ver", ["verify"]),
    ("orpo train optimizer=s", ["schedule_free_adamw", "sgd", "stable_adamw"]),  # bash has completed up to the `=`
    ("orpo train data=pre", ["prefs.json"]),
    ("orpo resume outputs/", ["outputs/one/"]),
    ("orpo help ", None),
])  # fmt: skip
def test_bash(line: str, replies: list[str] | None) -> None:
    code = f"""source completion.bash; COMP_LINE='{line}'; COMP_POINT=${{#COMP_LINE}}; _orpo 2> /dev/null
    printf '%s\\n' "${{COMPREPLY[@]}}" """
    found = shell("bash", code)
    assert found == replies if replies else set(found) >= {"train", "metrics"}


@pytest.mark.parametrize(("line", "replies"), [
    ("orpo ver", ["verify"]), ("orpo train optimizer=st", ["optimizer=stable_adamw"]),
    ("orpo resume outputs/", ["outputs/one/"]),
])  # fmt: skip
def test_fish(line: str, replies: list[str]) -> None:
    assert shell("fish", f"source completion.fish; complete -C '{line}'") == replies


@pytest.mark.parametrize(("line", "replies"), [
    ("orpo ver", ["verify"]), ("orpo train optimizer=st", ["optimizer=stable_adamw"]),
    ("orpo resume outputs/", ["outputs/one/"]),
])  # fmt: skip
def test_zsh(line: str, replies: list[str]) -> None:
    """With zsh's words, and its builtins of completion made to print."""
    code = f"""compdef() {{ }}; compadd() {{ print -r -- ${{@[-1]}} }}; source completion.zsh
    words=({line}); CURRENT=${{#words}}; _orpo"""
    assert shell("zsh", code) == replies
