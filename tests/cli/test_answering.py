"""`orpo generate` and `orpo chat`: what is typed, and what stands on the screen, in a pipe and in JSON."""

import io
import json
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from matrix import rows
from tiny_runs import Arguments, Orpo, change_json

import orpo_cli
from orpo_cli.cli import conversation
from orpo_cli.cli.arguments import parse
from orpo_cli.cli.compose import compose_jobs
from orpo_cli.cli.evaluated_run import generation_config
from orpo_cli.cli.main import main
from orpo_cli.quoting import harmless
from orpo_cli.runs.generate import Conversation, Generated

DRAWN = ("trainer.precision=fp32", "temperature=1", "seed=3", "max_tokens=8")
TURNS = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}, {"role": "user", "content": "c"}]


class Pipe(io.TextIOWrapper):
    """Standard input with some text in it."""

    def __init__(self, text: str, terminal: bool = False) -> None:
        super().__init__(io.BytesIO(text.encode()), encoding="utf-8")
        self.terminal = terminal

    def isatty(self) -> bool:
        return self.terminal


@pytest.fixture(scope="module")
def run(orpo: Orpo, arguments: Arguments, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose model answers otherwise than the one that it began with."""
    folder = tmp_path_factory.mktemp("answers") / "run"
    done = orpo.run(*arguments(folder, "optimizer.lr=1e-2", "trainer.sample_tokens=0"))
    assert done.code == 0, done.output
    return folder


@pytest.fixture
def typed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[str, str]]:
    """`typed("generate", "model=run", stdin="Why?")`: what went to stdout and to stderr."""

    def started(*argv: str, stdin: str = "", terminal: bool = False, code: int = 0) -> tuple[str, str]:
        monkeypatch.setattr(sys, "stdin", Pipe(stdin, terminal))
        capsys.readouterr()
        assert main(argv) == code
        return capsys.readouterr()

    return started


def expected(run: Path, *prompts: Any) -> list[Generated]:
    found = orpo_cli.generate(f"model={run}", *DRAWN, prompts=prompts)
    assert all(one.base and one.tuned and one.base != one.tuned for one in found)
    return found


@pytest.mark.parametrize("way", rows({way: way for way in ("file", "pipe", "dash", "prompts=-")}, "file", "pipe"))
def test_json_is_a_line_for_each_prompt_and_nothing_else(
    way: str, run: Path, tmp_path: Path, typed: Callable[..., tuple[str, str]]
) -> None:
    rows = [{"prompt": "Why?"}, {"messages": TURNS}]
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (tmp_path / "p.jsonl").write_text(text, encoding="utf-8")
    words = {"file": [f"prompts={tmp_path}/p.jsonl"], "pipe": [], "dash": ["-"], "prompts=-": ["prompts=-"]}[way]
    out, err = typed("generate", f"model={run}", *DRAWN, *words, "--json", stdin="" if way == "file" else text)
    lines = [json.loads(line) for line in out.splitlines()]
    assert lines == [
        {"prompt": asked, "base": one.base, "tuned": one.tuned}
        for asked, one in zip(["Why?", TURNS], expected(run, "Why?", TURNS), strict=True)
    ]
    assert err.splitlines()[0] == "loading torch and transformers ..."


def test_plain_lines_where_nobody_looks(run: Path, typed: Callable[..., tuple[str, str]]) -> None:
    out, _ = typed("generate", str(run), *DRAWN, stdin="Why?\nHow?\n")
    assert out == "".join(
        f"prompt: {one.prompt.given}\nbase: {harmless(str(one.base))}\ntuned: {harmless(one.tuned)}\n\n"
        for one in expected(run, "Why?", "How?")
    )
    out, _ = typed("generate", str(run), *DRAWN, "against=none", "prompt=Why?")
    assert out == f"{harmless(expected(run, 'Why?')[0].tuned)}\n"


PROMPTS = ['it\'s "a" ${seed} \\ b\\', "two\nlines=[1,2]", "012", "-", "null", " x ", "_target_: a/b"]


@pytest.mark.parametrize("prompt", rows({prompt: prompt for prompt in PROMPTS}, PROMPTS[0], "-"))
def test_a_prompt_is_taken_as_it_is(prompt: str, run: Path, typed: Callable[..., tuple[str, str]]) -> None:
    out, _ = typed("generate", f"model={run}", *DRAWN, f"prompt={prompt}", "max_tokens=1", "--json")
    assert json.loads(out)["prompt"] == prompt


@pytest.mark.parametrize("width", [80, 120])
def test_side_by_side_on_a_screen(
    width: int, run: Path, typed: Callable[..., tuple[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beside each other where it is wide; every line fits."""
    monkeypatch.setenv("COLUMNS", str(width))
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    out, _ = typed("generate", f"model={run}", *DRAWN, "max_tokens=3", stdin="Why?\nHow?\n")
    lines = [line for line in plain(out).splitlines() if line.strip()]
    assert max(map(len, lines)) <= width
    heads = [line.split()[0] for line in lines]
    assert heads[:3] == (["Why?", "base", "tuned"] if width == 80 else ["prompt", "Why?", "How?"])


def plain(text: str) -> str:
    import re

    return re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", text)


def test_one_prompt_on_a_screen_is_streamed(
    run: Path, typed: Callable[..., tuple[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    out, _ = typed("generate", f"model={run}", *DRAWN, "prompt=Why?")
    (one,) = expected(run, "Why?")
    _, base, tuned = plain(out).replace("tuned\n", "base\n").split("base\n")
    assert [base.strip(), tuned.strip()] == [harmless(str(one.base)), harmless(one.tuned)]
    alone, _ = typed("generate", f"model={run}", *DRAWN, "prompt=Why?", "against=none")
    assert plain(alone).strip() == harmless(one.tuned)


def test_a_run_says_how_it_is_asked(run: Path, tmp_path: Path) -> None:
    """By config.yaml, and by run.json whether the template was used; what is typed wins."""
    shutil.copytree(run, tmp_path, dirs_exist_ok=True)
    config = (run / "config.yaml").read_text(encoding="utf-8")
    assert "fold_system: false" in config
    (tmp_path / "config.yaml").write_text(config.replace("fold_system: false", "fold_system: true"), encoding="utf-8")

    def asked(*words: str) -> tuple[bool, bool | str | None]:
        config, _ = generation_config(compose_jobs(parse([f"model={tmp_path}", *words]), root="generate").jobs[0])
        return config.data.fold_system, config.data.chat_template

    assert asked() == (True, True)
    change_json(tmp_path / "run.json", chat=False)
    assert asked() == (True, False)
    assert asked("data.fold_system=false", "data.chat_template=auto") == (False, "auto")


def test_refusals(run: Path, tmp_path: Path, typed: Callable[..., tuple[str, str]]) -> None:
    model = f"model={run}"
    (tmp_path / "p.jsonl").write_text('{"question": "Why?"}\n', encoding="utf-8")
    for words, code, said in (
        (["generate", model], 2, 'no prompt is given, and standard input is empty: prompt="...", prompts=FILE, or a p'),
        (["generate", "prompt=Why?"], 2, "no model is given: type model=RUN_DIR"),
        (["chat"], 2, "no model is given: type model=RUN_DIR"),
        (["generate", model, "promt=Why?"], 2, "unknown key `promt`: did you mean `prompt`?"),
        (["generate", model, "max_new_tokens=3", "prompt=a"], 2, "unknown key `max_new_tokens`: did you mean `max_tok"),
        (["generate", model, f"prompts={tmp_path}/p.jsonl"], 65, "p.jsonl:1: expected prompt or messages"),
        (["generate", model, f"prompts={tmp_path}/q.jsonl"], 66, "q.jsonl: no such file"),
        (["generate", f"{tmp_path}/nothing", "prompt=a"], 66, "no such directory"),
        (["generate", model, "prompt=a", "-m"], 2, "-m: one model answers"),
        (["chat", str(run), "prompt=a"], 2, "orpo generate takes prompt= and prompts="),
        (["chat", str(run), "resume=x"], 2, "answers are those of model=RUN_DIR"),
    ):
        out, err = typed(*words, code=code)
        assert (out, said in err) == ("", True), err
    _, err = typed("generate", model, terminal=True, code=2)
    assert 'no prompt is given: prompt="..."' in err


def test_the_folder_of_a_sweep_is_not_that_of_a_run(tmp_path: Path, typed: Callable[..., tuple[str, str]]) -> None:
    (tmp_path / "sweep.json").write_text("{}")
    for command in (["chat"], ["export", "to=out"], ["evaluate"], ["train", f"model={tmp_path}"]):
        words = [command[0], *([] if command[0] == "train" else [str(tmp_path)]), *command[1:]]
        assert "of which no run has left its model yet" in typed(*words, code=2)[1]
    for name in ("10", "0", "9"):
        (tmp_path / name / "model").mkdir(parents=True)
    _, err = typed("chat", str(tmp_path), code=2)
    assert (
        f"is a sweep; name one of its runs: {tmp_path}/0, {tmp_path}/9, {tmp_path}/10; orpo compare {tmp_path} " in err
    )


def test_a_chat_through_a_pipe(run: Path, typed: Callable[..., tuple[str, str]]) -> None:
    """Answers to stdout; `/base` answers the same message; `/reset` makes the next message the first again."""
    lines = ["/base", "Why?", "", "/base", "/reset", "/bas", "Why?"]
    out, err = typed("chat", str(run), *DRAWN, stdin="\n".join(lines))
    (one,) = expected(run, "Why?")
    tuned = harmless(one.tuned)
    assert [line.strip() for line in out.splitlines()] == [tuned, f"base: {harmless(str(one.base))}", tuned]
    said = [line for line in err.splitlines() if not line.endswith("...")]
    assert said == [
        f"{run}: type a message; /base, /help, /quit, /reset",
        "! /base answers your last message; there is none yet",
        "the conversation begins anew",
        "! unknown command /bas: did you mean `/base`?",
    ]


def test_a_chat_goes_on_after_a_message_that_is_refused(run: Path, typed: Callable[..., tuple[str, str]]) -> None:
    lines = ["x" * 5000, "Why?", "/help", "/quit", "never read"]
    out, err = typed("chat", f"model={run}", *DRAWN, "against=none", stdin="\n".join(lines))
    assert out.strip() == harmless(expected(run, "Why?")[0].tuned)
    assert "positions for prompt and answer" in err
    assert "/reset   forget what was said" in err
    _, err = typed("chat", f"model={run}", *DRAWN, "against=none", stdin="Why?\n/base\n")
    assert "! nothing says what this model began with; against=MODEL names another" in err


def test_ctrl_c_ends_an_answer_and_not_the_chat() -> None:
    before = signal.getsignal(signal.SIGINT)
    with conversation._interrupts() as interrupts:
        with interrupts.ending_an_answer():
            assert not interrupts.is_asked()
            signal.raise_signal(signal.SIGINT)
            assert interrupts.is_asked()
            with pytest.raises(KeyboardInterrupt):
                signal.raise_signal(signal.SIGINT)
        with interrupts.ending_an_answer():
            assert not interrupts.is_asked()
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before


def test_another_signal_ends_the_chat(
    run: Path, typed: Callable[..., tuple[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Conversation, "say", lambda *_: signal.raise_signal(signal.SIGTERM))
    out, err = typed("chat", str(run), stdin="Why?\nHow?\n", code=143)
    assert (out, "orpo: ended by SIGTERM" in err) == ("", True)


def test_a_second_ctrl_c_drops_the_answer(
    run: Path, typed: Callable[..., tuple[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As while a long prompt is read, when no token comes that the first could end the answer at."""
    say = Conversation.say

    def slow(self: Conversation, text: str, *how: Any) -> str:
        if text == "Slow?":
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)
        return say(self, text, *how)

    monkeypatch.setattr(Conversation, "say", slow)
    out, err = typed("chat", str(run), *DRAWN, stdin="Slow?\nWhy?\n")
    assert out.strip() == harmless(expected(run, "Why?")[0].tuned)
    assert "! stopped; the message is not kept" in err
