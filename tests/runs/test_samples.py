"""Answers to held-out prompts during a run, `trainer.sample_every`: they change nothing, and come again on resume."""

import json
from pathlib import Path

import pytest
import torch
from tiny_runs import Arguments, Orpo, at, gone_back, kill, same_end

import orpo_cli
from orpo_cli.errors import ConfigError
from orpo_cli.models.adapters import add_lora
from orpo_cli.models.builtin import builtin_model
from orpo_cli.models.sampling import answers

UPDATE, ANSWERS = "orpo_cli.training.loop._update", "orpo_cli.training.run.answers"


def steps(folder: Path) -> list[int]:
    """At which prompts were answered, each once for its eight prompts."""
    lines = [json.loads(line) for line in (folder / "samples.jsonl").read_text(encoding="utf-8").splitlines()]
    answered = list(dict.fromkeys(line["step"] for line in lines))
    prompts = [[line["prompt"] for line in lines if line["step"] == step] for step in answered]
    assert prompts == [prompts[0]] * len(answered)
    return answered


@pytest.mark.slow
def test_they_change_no_byte_and_a_resumed_run_has_the_same(
    orpo: Orpo, arguments: Arguments, reference: Path, tmp_path: Path
) -> None:
    """Stopped after step 2, whose answers then come first; killed while it answers after step 4, which is saved."""
    whole, folder, every = tmp_path / "whole", tmp_path / "run", "trainer.sample_every=2"
    assert orpo.run(*arguments(whole, every)).code == 0
    assert same_end(whole, reference)
    assert steps(whole) == [0, 2, 4, 6]
    assert orpo.run(*arguments(folder, every), injections=[at(UPDATE, 2, "SIGTERM")]).code == 143
    assert steps(folder) == [0]
    assert orpo.run("resume", str(folder), injections=[kill(ANSWERS, 2)]).code == -9
    assert steps(folder) == [0, 2]
    assert orpo.run("resume", str(folder)).code == 0
    assert same_end(folder, whole)
    assert (folder / "samples.jsonl").read_bytes() == (whole / "samples.jsonl").read_bytes()


def test_a_run_may_begin_to_answer_when_it_is_resumed(orpo: Orpo, reference: Path, tmp_path: Path) -> None:
    folder = gone_back(reference, tmp_path / "run", 4)
    assert orpo.run("resume", str(folder), "trainer.sample_every=4").code == 0
    assert steps(folder) == [0, 4, 6]
    assert same_end(folder, reference)


def test_every_how_many_steps_needs_answers() -> None:
    with pytest.raises(ConfigError, match=r"trainer\.sample_every=5: has no effect with trainer\.sample_tokens=0"):
        orpo_cli.configure("trainer.sample_every=5", "trainer.sample_tokens=0")


def test_adapters_that_have_not_learned_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """The answers are those of the model with them and of the model without; they stay trainable."""
    from peft.tuners.lora import Linear
    from transformers import AutoModelForCausalLM, AutoTokenizer

    directory = builtin_model("tiny", lambda *_: None)
    base, tokenizer = AutoModelForCausalLM.from_pretrained(directory), AutoTokenizer.from_pretrained(directory)
    lora = orpo_cli.configure("adapter=lora").adapter
    prompts = [("a", [5, 6, 7]), ("b", [8])]
    without = answers(base, tokenizer, prompts, 0, 6, seed=3)
    model = add_lora(base, lora, 0, "tiny")
    calls = []
    forward = Linear.forward
    monkeypatch.setattr(Linear, "forward", lambda self, *x: calls.append(self.disable_adapters) or forward(self, *x))
    assert answers(model, tokenizer, prompts, 0, 6, seed=3) == without
    assert set(calls) == {True}
    factors = {name: weight for name, weight in model.named_parameters() if "lora_" in name}
    assert all(weight.requires_grad for weight in factors.values())
    calls.clear()
    with torch.no_grad():
        next(weight for name, weight in factors.items() if "lora_B" in name)[0, 0] = 1.0
    answers(model, tokenizer, prompts, 0, 6, seed=3)
    assert set(calls) == {False}
