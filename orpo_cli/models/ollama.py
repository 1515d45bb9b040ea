"""Write an Ollama Modelfile for a model: where its weights are, its chat template, and where an answer ends.

Ollama's templates are Go's. A chat template is known by what it writes: a conversation with signs around each turn.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

MODELFILE = "Modelfile"
_SYSTEM, _ASKED, _ANSWERED, _AGAIN = "PROBE-SYSTEM", "PROBE-ASKED", "PROBE-ANSWERED", "PROBE-AGAIN"
_TALK = [
    {"role": "user", "content": _ASKED},
    {"role": "assistant", "content": _ANSWERED},
    {"role": "user", "content": _AGAIN},
]


@dataclass(frozen=True)
class Turns:
    """The signs of a well-known chat template: what stands before and after the words of each role.

    Args:
        system: those of a system message; None where it stands before the first words of the user, and a blank line.
        answer: what stands before the answer that is asked for.
    """

    name: str
    system: tuple[str, str] | None
    user: tuple[str, str]
    assistant: tuple[str, str]
    answer: str

    def written(self, messages: Sequence[dict[str, str]]) -> str:
        """Return a conversation as the template writes it, the next answer asked for."""
        signs = {"system": self.system or ("", "\n\n"), "user": self.user, "assistant": self.assistant}
        texts, before = [], ""
        for message in messages:
            first, last = signs[message["role"]]
            if message["role"] == "system" and self.system is None:
                before = message["content"] + last
            else:
                texts.append(first + before + message["content"] + last)
                before = ""
        return "".join(texts) + self.answer

    @property
    def go(self) -> str:
        """Return the template in Go's syntax, as Ollama fills it in."""
        (asks, asked), (says, said) = self.user, self.assistant
        if self.system is None:
            head, before = '{{ $system := "" }}', '{{ if $system }}{{ $system }}\n\n{{ $system = "" }}{{ end }}'
            of_system = "{{ $system = .Content }}"
        else:
            head, before, of_system = "", "", f"{self.system[0]}{{{{ .Content }}}}{self.system[1]}"
        return (
            f"{head}{{{{ range .Messages }}}}"
            f'{{{{ if eq .Role "system" }}}}{of_system}'
            f'{{{{ else if eq .Role "user" }}}}{asks}{before}{{{{ .Content }}}}{asked}'
            f'{{{{ else if eq .Role "assistant" }}}}{says}{{{{ .Content }}}}{said}'
            f"{{{{ end }}}}{{{{ end }}}}{self.answer}"
        )


def _alike(name: str, before: str, after: str, end: str) -> Turns:
    """Return turns that all begin with the name of their role, between two signs."""
    signs = {role: (f"{before}{role}{after}", end) for role in ("system", "user", "assistant")}
    return Turns(name, **signs, answer=f"{before}assistant{after}")


KNOWN = (
    _alike("ChatML", "<|im_start|>", "\n", "<|im_end|>\n"),
    _alike("Llama 3", "<|start_header_id|>", "<|end_header_id|>\n\n", "<|eot_id|>"),
    _alike("Phi 3", "<|", "|>\n", "<|end|>\n"),
    _alike("Zephyr", "<|", "|>\n", "</s>\n"),
    _alike("Phi 4", "<|im_start|>", "<|im_sep|>", "<|im_end|>"),
    Turns(
        "Gemma",
        None,
        ("<start_of_turn>user\n", "<end_of_turn>\n"),
        ("<start_of_turn>model\n", "<end_of_turn>\n"),
        "<start_of_turn>model\n",
    ),
    Turns("Mistral", None, ("[INST] ", "[/INST]"), (" ", "</s>"), ""),
    Turns("Mistral 7B", None, (" [INST] ", " [/INST]"), (" ", "</s>"), ""),
)


def recognized(tokenizer: Any) -> tuple[Turns, str | None] | None:
    """Return the well-known template that the chat template of a tokenizer writes as, and its own system message.

    Returns:
        None where it writes something else; no message where it adds none.
    """
    plain, with_system = _written(tokenizer, _TALK), _written(tokenizer, [_system(_SYSTEM), *_TALK])
    for turns in KNOWN if plain is not None else ():
        if with_system not in (None, turns.written([_system(_SYSTEM), *_TALK])):
            continue
        if plain == turns.written(_TALK):
            return turns, None
        before, found, after = turns.written([_system(_SYSTEM), *_TALK]).partition(_SYSTEM)
        if plain is not None and found and plain.startswith(before) and plain.endswith(after) and turns.system:
            return turns, plain[len(before) : len(plain) - len(after)]
    return None


def _system(words: str) -> dict[str, str]:
    return {"role": "system", "content": words}


def _written(tokenizer: Any, messages: Sequence[dict[str, str]]) -> str | None:
    """Return a conversation without the token that begins a text, which Ollama adds; None where it is refused.

    A token that begins each turn, as SmolLM2's does, stays.
    """
    if not tokenizer.chat_template:
        return None
    try:
        text: str = tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=True)
    except Exception:  # a template may fail in any way
        return None
    begin = tokenizer.bos_token or ""
    return text.removeprefix(begin) if text.count(begin) == 1 else text


def modelfile(source: str, tokenizer: Any, end_token: str) -> str:
    """Return the text of a Modelfile.

    Args:
        source: where the weights are, from the Modelfile's directory.
        end_token: the token that ends an answer.
    """
    return "\n".join(_lines(source, tokenizer, end_token)) + "\n"


def _lines(source: str, tokenizer: Any, end_token: str) -> Iterator[str]:
    yield "# ollama create NAME -f Modelfile, in this directory"
    yield f"FROM {source}"
    found = recognized(tokenizer)
    if found is None:
        yield "# no TEMPLATE: orpo does not know this chat template in the syntax of Ollama; write it here by hand"
    else:
        turns, own_system = found
        yield f"# the chat template of {turns.name}"
        yield f'TEMPLATE """{turns.go}"""'
        if own_system is not None:
            yield f'SYSTEM """{own_system}"""'
    yield f'PARAMETER stop "{end_token}"'
