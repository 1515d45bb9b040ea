"""Ollama Modelfiles: the templates in Go's syntax write what the chat templates of well-known models write."""

import json
import os
import re
import shutil
import subprocess
from importlib.resources import files
from pathlib import Path
from typing import Any

import jinja2
import pytest

from orpo_cli.models.builtin import byte_tokenizer
from orpo_cli.models.loading import TEMPLATES
from orpo_cli.models.ollama import KNOWN, modelfile, recognized

TALK = [
    {"role": "user", "content": "Why is the sky blue?"},
    {"role": "assistant", "content": "Air scatters blue light."},
    {"role": "user", "content": "And at dusk?"},
]
BRIEF = [{"role": "system", "content": "Be brief."}, *TALK]

SMOLLM2 = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are a helpful AI assistant named SmolLM<|im_end|>\n' }}{% endif %}"
    "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
MISTRAL = (
    "{{ bos_token }}{% set ns = namespace(system='') %}{% for m in messages %}"
    "{% if m.role == 'system' %}{% set ns.system = m.content + '\n\n' %}"
    "{% elif m.role == 'user' %}{{ '[INST] ' + ns.system + m.content + '[/INST]' }}{% set ns.system = '' %}"
    "{% else %}{{ ' ' + m.content + '</s>' }}{% endif %}{% endfor %}"
)
PHI_4 = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '<|im_sep|>' + m.content + '<|im_end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant<|im_sep|>' }}{% endif %}"
)


def of_trl(name: str) -> str:
    """The chat template of a model, as TRL has a copy of it."""
    return (files("trl") / "chat_templates" / f"{name}.jinja").read_text(encoding="utf-8")


TEMPLATES_OF = {
    "ChatML": lambda: SMOLLM2,
    "Llama 3": lambda: of_trl("llama3"),
    "Gemma": lambda: of_trl("gemma3"),
    "Phi 3": lambda: of_trl("phi3"),
    "Phi 4": lambda: PHI_4,
    "Mistral": lambda: MISTRAL,
    "Zephyr": lambda: (TEMPLATES / "zephyr.jinja").read_text(encoding="utf-8"),
}


def tokenizer_with(template: str | None) -> Any:
    """A tokenizer with a chat template; as with SmolLM2, ChatML's turns begin with the token that begins a text."""
    tokenizer = byte_tokenizer()
    begin = "<|im_start|>" if template == SMOLLM2 else "<s>"
    tokenizer.add_special_tokens({"bos_token": begin, "eos_token": "</s>"})
    tokenizer.chat_template = template
    return tokenizer


def filled_in(go: str, messages: list[dict[str, str]]) -> str:
    """A conversation in a template of Go, by Jinja: the few words of Go that occur, each in Jinja's."""
    words = {
        '{{ $system := "" }}': "{% set ns = namespace(system='') %}",
        '{{ $system = "" }}': "{% set ns.system = '' %}",
        "{{ $system = .Content }}": "{% set ns.system = m.content %}",
        "{{ if $system }}": "{% if ns.system %}",
        "{{ $system }}": "{{ ns.system }}",
        "{{ range .Messages }}": "{% for m in messages %}",
        "{{ .Content }}": "{{ m.content }}",
    }
    go = re.sub(r'\{\{ if eq \.Role "(\w+)" \}\}', r"{% if m.role == '\1' %}", go)
    go = re.sub(r'\{\{ else if eq \.Role "(\w+)" \}\}', r"{% elif m.role == '\1' %}", go)
    for word, jinja in words.items():
        go = go.replace(word, jinja)
    opened = re.findall(r"\{% (if|for) |(\{\{ end \}\})", go)
    stack = []
    for kind, _ in opened:
        if kind:
            stack.append(kind)
        else:
            go = go.replace("{{ end }}", f"{{% end{stack.pop()} %}}", 1)
    assert not stack
    return jinja2.Environment(keep_trailing_newline=True).from_string(go).render(messages=messages)


def filled_in_by_go(given: list[tuple[str, list[dict[str, str]]]]) -> list[str]:
    """Conversations in templates of Go, by Go."""
    program = str(Path(__file__).with_name("fill_in.go"))
    typed = json.dumps([{"template": template, "messages": talk} for template, talk in given])
    alone = os.environ | {"GOPROXY": "off", "GOTOOLCHAIN": "local", "GO111MODULE": "off"}
    done = subprocess.run(["go", "run", program], input=typed, capture_output=True, text=True, env=alone)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("go") is None, reason="Go, by which Ollama fills templates in, is not installed")
def test_go_writes_what_the_chat_templates_write() -> None:
    talks = (TALK, BRIEF, [{"role": "user", "content": "{{ .Role }} <b>\"naïve\"</b> & 'so'\n\n\t%s $x"}])
    expected = {(turns.go, index): turns.written(talk) for turns in KNOWN for index, talk in enumerate(talks)}
    for name, template in TEMPLATES_OF.items():
        tokenizer = tokenizer_with(template())
        turns = next(turns for turns in KNOWN if turns.name == name)
        text = tokenizer.apply_chat_template(BRIEF, tokenize=False, add_generation_prompt=True)
        assert text.removeprefix("<s>") == expected[turns.go, 1]
    written = filled_in_by_go([(go, talks[index]) for go, index in expected])
    assert written == list(expected.values())


@pytest.mark.parametrize("name", TEMPLATES_OF)
def test_a_known_template_writes_the_same_in_go(name: str) -> None:
    tokenizer = tokenizer_with(TEMPLATES_OF[name]())
    found = recognized(tokenizer)
    assert found is not None
    turns, own_system = found
    assert turns.name == name
    assert own_system == ("You are a helpful AI assistant named SmolLM" if name == "ChatML" else None)
    for talk in (BRIEF, TALK if own_system is None else [{"role": "system", "content": own_system}, *TALK]):
        try:
            text = tokenizer.apply_chat_template(talk, tokenize=False, add_generation_prompt=True)
        except jinja2.TemplateError:
            assert name == "Gemma"
            continue
        assert filled_in(turns.go, talk) == text.removeprefix("<s>")


def test_every_known_template_is_tried() -> None:
    assert {turns.name for turns in KNOWN} - set(TEMPLATES_OF) == {"Mistral 7B"}


@pytest.mark.parametrize(
    "template",
    [None, of_trl("llama3_2"), of_trl("glm4moe"), "{{ raise_exception('no') }}", "{{ messages }}", SMOLLM2[:-50]],
)
def test_any_other_template_is_left_to_ollama(template: str | None) -> None:
    tokenizer = tokenizer_with(template)
    assert recognized(tokenizer) is None
    lines = modelfile(".", tokenizer, "</s>").splitlines()
    assert lines[1] == "FROM ."
    assert "TEMPLATE" not in {line.split()[0] for line in lines}
    assert lines[-1] == 'PARAMETER stop "</s>"'


def test_the_modelfile_of_a_known_template() -> None:
    text = modelfile("./model-f16.gguf", tokenizer_with(SMOLLM2), "<|im_end|>")
    assert text == (
        "# ollama create NAME -f Modelfile, in this directory\n"
        "FROM ./model-f16.gguf\n"
        "# the chat template of ChatML\n"
        'TEMPLATE """{{ range .Messages }}{{ if eq .Role "system" }}<|im_start|>system\n{{ .Content }}<|im_end|>\n'
        '{{ else if eq .Role "user" }}<|im_start|>user\n{{ .Content }}<|im_end|>\n'
        '{{ else if eq .Role "assistant" }}<|im_start|>assistant\n{{ .Content }}<|im_end|>\n'
        '{{ end }}{{ end }}<|im_start|>assistant\n"""\n'
        'SYSTEM """You are a helpful AI assistant named SmolLM"""\n'
        'PARAMETER stop "<|im_end|>"\n'
    )
