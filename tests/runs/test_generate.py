"""Answers of a run and of the model it began with: each against `generate` of plain transformers, called by hand."""

import json
import math
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_runs import Orpo, change_json
from transformers import AutoModelForCausalLM, AutoTokenizer

import orpo_cli
from orpo_cli.config.generation import GenerationConfig
from orpo_cli.errors import ConfigError, DataError, InputNotFoundError
from orpo_cli.models import loading, sampling
from orpo_cli.runs.assembly import Assembly
from orpo_cli.runs.generate import Conversation

FP32, SHORT = "trainer.precision=fp32", "max_tokens=12"
ASKED = ["cat?", "Why does the bright moon sleep under the house, and the river runs?"]
TALK = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}, {"role": "user", "content": "c"}]
QUESTION = {"role": "user", "content": "c?"}


def by_hand(model: Any, tokenizer: Any, prompt: str | list[dict[str, str]], count: int = 12, **how: Any) -> str:
    """The greedy continuation, one prompt at a time."""
    turns = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
    ids = tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    with torch.no_grad():
        out = model.generate(**ids, do_sample=False, max_new_tokens=count, pad_token_id=0, **how)
    return str(tokenizer.decode(out[0, ids["input_ids"].shape[1] :], skip_special_tokens=True)).strip()


def loaded(directory: Path) -> tuple[Any, Any]:
    return AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32), AutoTokenizer.from_pretrained(
        directory
    )


@pytest.fixture(scope="session")
def teach(orpo: Orpo, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """`teach({"cat": "purrs"}, "model=tiny")`: the folder of a run that learns to answer so."""

    def run(answers: dict[str, str], *words: str) -> Path:
        folder = tmp_path_factory.mktemp("taught")
        rows = [{"prompt": f"{word}?", "chosen": answers[word], "rejected": "-"} for word in answers] * 4
        (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        done = orpo.run(
            "train", f"data={folder / 'rows.jsonl'}", f"output_dir={folder / 'run'}", "loss=sft", FP32,
            "trainer.max_steps=40", "optimizer.lr=1e-2", "trainer.sample_tokens=0", *words,
        )  # fmt: skip
        assert done.code == 0, done.output
        return folder / "run"

    return run


@pytest.fixture(scope="session")
def first(teach: Callable[..., Path]) -> Path:
    return teach({"cat": "purrs", "dog": "barks", "moon": "shines"}, "model=tiny")


@pytest.fixture(scope="session")
def second(teach: Callable[..., Path], first: Path) -> Path:
    """Which the first began."""
    return teach({"cat": "sleeps", "dog": "runs", "moon": "sets"}, f"model={first}")


@pytest.fixture(scope="session")
def adapted(teach: Callable[..., Path], first: Path) -> Path:
    """The same with an adapter."""
    answers = {"cat": "sleeps", "dog": "runs", "moon": "sets"}
    return teach(answers, f"model={first}", "adapter=lora", "trainer.max_steps=100")


@pytest.fixture
def models_loaded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the models that were loaded since."""
    names: list[str] = []
    load = loading.load_model
    monkeypatch.setattr(loading, "load_model", lambda files, *how: names.append(files.name) or load(files, *how))
    return names


def test_answers_are_those_of_plain_transformers(first: Path, second: Path, models_loaded: list[str]) -> None:
    """Though they are answered in a batch, the shorter prompt padded: of one prompt, and of a conversation."""
    found = orpo_cli.generate(f"model={second}", FP32, SHORT, prompts=[*ASKED, TALK])
    assert [one.prompt.as_json for one in found] == [*ASKED, TALK]
    tuned, before = loaded(second / "model"), loaded(first / "model")
    for asked, one in zip([*ASKED, TALK], found, strict=True):
        assert one.tuned == by_hand(*tuned, asked)
        assert one.base == by_hand(*before, asked)
    assert (found[0].base, found[0].tuned) == ("purrs", "sleeps")
    assert models_loaded == [str(first), str(second)]


def test_an_adapter_is_switched_off_for_the_answers_of_its_base(
    first: Path, adapted: Path, models_loaded: list[str]
) -> None:
    from peft import PeftModel

    found = orpo_cli.generate(f"model={adapted}", FP32, SHORT, prompts=ASKED)
    assert models_loaded == [str(adapted)]
    model, tokenizer = loaded(first / "model")
    assert [one.base for one in found] == [by_hand(model, tokenizer, asked) for asked in ASKED]
    model = PeftModel.from_pretrained(model, adapted / "model")
    assert [one.tuned for one in found] == [by_hand(model, tokenizer, asked) for asked in ASKED]
    assert (found[0].base, found[0].tuned) == ("purrs", "sleeps")


@pytest.mark.slow
def test_an_adapter_that_was_trained_further_began_with_the_adapter(
    adapted: Path, teach: Callable[..., Path], models_loaded: list[str]
) -> None:
    """Switched off, it would be the model under both."""
    further = teach({"cat": "eats", "dog": "digs", "moon": "rises"}, f"model.path={adapted}", "trainer.max_steps=100")
    (found,) = orpo_cli.generate(f"model={further}", FP32, SHORT, f"prompt={ASKED[0]}")
    assert (found.base, found.tuned) == ("sleeps", "eats")
    assert models_loaded == [str(adapted), str(further)]


def test_an_answer_ends_at_the_token_that_ended_answers_in_training(first: Path) -> None:
    """By hand, and without that token as an end, the model goes on behind it."""
    (found,) = orpo_cli.generate(f"model={first}", FP32, SHORT, "prompt=dog?")
    model, tokenizer = loaded(first / "model")
    end = model.generation_config.eos_token_id
    model.generation_config.eos_token_id = None
    ids = tokenizer.apply_chat_template([{"role": "user", "content": "dog?"}], add_generation_prompt=True)["input_ids"]
    out = model.generate(torch.tensor([ids]), do_sample=False, max_new_tokens=12, pad_token_id=0)
    said = out[0, len(ids) :].tolist()
    assert said.index(end) == len("barks")
    assert tokenizer.decode(said[: said.index(end)]) == found.tuned == "barks"


def test_a_model_ends_its_answers_at_its_own_tokens_too(first: Path, tmp_path: Path) -> None:
    """Here at `k`, which its generation_config.json names."""
    model = Path(shutil.copytree(first / "model", tmp_path / "copy"))
    tokenizer = AutoTokenizer.from_pretrained(model)
    (own,) = tokenizer("k", add_special_tokens=False)["input_ids"]
    change_json(model / "generation_config.json", eos_token_id=[tokenizer.eos_token_id, own])
    (found,) = orpo_cli.generate(f"model={model}", FP32, SHORT, "prompt=dog?")
    assert (found.tuned, found.base) == ("bark", None)
    (cut,) = orpo_cli.generate(f"model={model}", FP32, "max_tokens=2", "prompt=dog?")
    assert cut.tuned == "ba"


@pytest.mark.slow
def test_the_same_seed_draws_the_same_whatever_the_batch(second: Path) -> None:
    def drawn(*words: str, prompts: Sequence[str] = ASKED) -> list[tuple[str | None, str]]:
        found = orpo_cli.generate(f"model={second}", FP32, SHORT, "temperature=2", *words, prompts=prompts)
        return [(one.base, one.tuned) for one in found]

    once = drawn("seed=3")
    assert drawn("seed=3") == drawn("seed=3", "batch_size=1") == once
    assert drawn("seed=3", prompts=ASKED[:1]) == once[:1]
    assert drawn("seed=4") != once
    twice = drawn("seed=3", prompts=[ASKED[0]] * 2)
    assert twice[0] != twice[1], "the same prompt twice is drawn twice"
    greedy = [(one.base, one.tuned) for one in orpo_cli.generate(f"model={second}", FP32, SHORT, prompts=ASKED)]
    assert drawn("top_k=1") == drawn("top_p=1e-6") == greedy != once


def test_tokens_are_drawn_by_their_probabilities() -> None:
    """4000 draws of probabilities .5, .3, .2 and 0: each count is within 4 standard deviations, sqrt(n p (1 - p))."""
    weights, count = torch.tensor([0.5, 0.3, 0.2, 0.0]), 4000
    draws = sampling._Draws(range(count))(torch.empty(0), weights.log().expand(count, -1)).argmax(1)
    for token, p in enumerate(weights.tolist()):
        found = int((draws == token).sum())
        assert abs(found - count * p) <= 4 * math.sqrt(count * p * (1 - p)), token


@pytest.mark.slow
def test_one_model_or_two(first: Path, second: Path, adapted: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Nothing is printed."""

    def answered(*words: str) -> tuple[str | None, str]:
        (found,) = orpo_cli.generate(*words, FP32, SHORT, "prompt=dog?")
        return found.base, found.tuned

    assert answered(f"model={second}", "against=none") == (None, "runs")
    assert answered(f"model={second}", "against=null") == (None, "runs")
    assert answered(f"model={first}", f"against={second}") == ("runs", "barks")
    assert answered(str(second / "model"), f"against={second}") == ("runs", "runs")
    assert answered(str(second / "checkpoints" / "step-000040")) == ("barks", "runs")
    assert answered(str(adapted / "checkpoints" / "step-000100")) == ("barks", "runs")
    assert capfd.readouterr() == ("", "")


def test_a_run_in_plain_text_is_asked_in_plain_text(teach: Callable[..., Path]) -> None:
    """Its prompts have no template, and its answers end at the end-of-sequence token; a conversation is joined."""
    run = teach({"cat": " purrs", "a\n\nb\n\nc": " d"}, "model=tiny", "data.chat_template=false")
    model, tokenizer = loaded(run / "model")
    found = orpo_cli.generate(f"model={run}", FP32, SHORT, "against=null", prompts=["cat?", [*TALK[:2], QUESTION]])
    for text, one in zip(("cat?", "a\n\nb\n\nc?"), found, strict=True):
        ids = torch.tensor([tokenizer(text, add_special_tokens=False)["input_ids"]])
        out = model.generate(ids, do_sample=False, max_new_tokens=12, pad_token_id=0)
        assert one.tuned == tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True).strip()
    assert [one.tuned for one in found] == ["purrs", "d"]
    typed = orpo_cli.generate(f"model={run}", FP32, SHORT, "data.chat_template=true", "against=none", prompts=ASKED)
    assert [one.tuned for one in typed] == [by_hand(model, tokenizer, asked) for asked in ASKED]


def test_an_answer_has_the_room_that_its_prompt_leaves(first: Path, tmp_path: Path) -> None:
    """A model of 64 positions: a prompt of 60 tokens or so, with its template, has the rest; the other is not cut."""
    model = Path(shutil.copytree(first / "model", tmp_path / "model"))
    change_json(model / "config.json", max_position_embeddings=64)
    tokenizer = AutoTokenizer.from_pretrained(model)
    around = len(
        tokenizer.apply_chat_template([{"role": "user", "content": ""}], add_generation_prompt=True)["input_ids"]
    )
    long, plain = "x" * (60 - around), loaded(first / "model")
    found = orpo_cli.generate(f"model={model}", FP32, SHORT, prompts=[long, "y"])
    assert [one.tuned for one in found] == [by_hand(*plain, long, count=4), by_hand(*plain, "y", count=12)]
    with pytest.raises(DataError, match=r"prompt 2: 64 tokens; .* has 64 positions for prompt and answer"):
        orpo_cli.generate(f"model={model}", prompts=["y", "x" * (64 - around)])


def test_refusals_come_before_anything_is_loaded(
    reference: Path, tmp_path: Path, models_loaded: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Assembly, "model_as_it_is", None)
    model = f"model={reference}"
    for words, kind, said in (
        ([model], ConfigError, "no prompt is given"),
        (["prompt=a"], ConfigError, "no model is given"),
        ([model, "prompt=a", "prompts=b.txt"], ConfigError, "no prompts=FILE beside it"),
        ([model, "prompt=a", "temprature=1"], ConfigError, "did you mean `temperature`"),
        ([model, "prompt=a", "temperature=-1"], ConfigError, "temperature=-1.0: expected a number, 0 or more"),
        ([model, "prompt=a", "top_p=0"], ConfigError, "top_p=0.0: expected above 0 and at most 1"),
        ([model, "prompt=a", "top_k=0"], ConfigError, "top_k=0: expected 1 or more"),
        ([model, "prompt=a", "max_tokens=0"], ConfigError, "max_tokens=0: expected 1 or more"),
        ([model, "prompts=nowhere.txt"], InputNotFoundError, "prompts=nowhere.txt: no such file"),
        ([f"model={tmp_path}/none", "prompt=a"], InputNotFoundError, "no such directory"),
    ):
        with pytest.raises(kind, match=said):
            orpo_cli.generate(*words)
    with pytest.raises(DataError, match="its last message is the assistant's"):
        orpo_cli.generate(model, prompts=[TALK[:2]])
    with pytest.raises(DataError, match=r"prompt 2: message 1 \(user\): the chat template leaves its name out"):
        orpo_cli.generate(model, prompts=["a", [TALK[0] | {"name": "Ann"}]])
    assert models_loaded == []


def test_a_run_without_its_model_says_so(reference: Path, tmp_path: Path) -> None:
    for name in ("config.yaml", "run.json"):
        (tmp_path / name).write_bytes((reference / name).read_bytes())
    with pytest.raises(InputNotFoundError, match="this run has not left its model yet: orpo resume"):
        orpo_cli.generate(f"model={tmp_path}", "prompt=a")


@pytest.fixture
def conversation(compose_config: Callable[..., Any], second: Path) -> Conversation:
    config = compose_config(f"model={second}", FP32)
    wanted = GenerationConfig(None, None, "auto", 0.0, 1.0, None, 12, 8)
    return Conversation(config, wanted, lambda *_: None)


def test_a_conversation_asks_with_all_that_was_said(conversation: Conversation, first: Path, second: Path) -> None:
    model, tokenizer = loaded(second / "model")
    pieces: list[str] = []
    said: list[dict[str, str]] = []
    for text in ("cat?", "dog?"):
        answer = conversation.say(text, pieces.append)
        said.append({"role": "user", "content": text})
        assert answer == by_hand(model, tokenizer, said) != ""
        said.append({"role": "assistant", "content": answer})
    assert "".join(pieces).strip().endswith(said[-1]["content"])
    before = conversation.base(lambda *_: None)
    assert before is not None
    assert conversation.say_as(before, pieces.append) == by_hand(*loaded(first / "model"), said[:3])
    assert conversation.base(lambda *_: None) is before
    conversation.reset()
    assert not conversation.has_begun
    assert conversation.say("cat?", pieces.append) == said[1]["content"]


def test_an_answer_that_is_stopped_is_kept_as_far_as_it_came(conversation: Conversation, second: Path) -> None:
    """The question is asked after each token: at the third, three are there."""
    model, tokenizer = loaded(second / "model")
    asked = iter([False, False, True])
    answer = conversation.say("cat?", lambda _: None, lambda: next(asked))
    assert answer == by_hand(model, tokenizer, "cat?", count=3)
    turns = [("user", "cat?"), ("assistant", answer), ("user", "dog?")]
    said = [{"role": role, "content": content} for role, content in turns]
    assert conversation.say("dog?", lambda _: None) == by_hand(model, tokenizer, said)


def test_a_message_that_has_no_room_is_not_kept(conversation: Conversation) -> None:
    once = conversation.say("cat?", lambda _: None)
    conversation.reset()
    with pytest.raises(DataError, match="positions for prompt and answer"):
        conversation.say("x" * 5000, lambda _: None)
    assert not conversation.has_begun
    assert conversation.say("cat?", lambda _: None) == once != ""
