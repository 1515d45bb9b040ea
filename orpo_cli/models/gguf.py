"""Have llama.cpp's own converter write a GGUF file."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

from orpo_cli.errors import InputNotFoundError, ModelError

CONVERTER = "convert_hf_to_gguf.py"
PLACE = "LLAMA_CPP"
"""The variable that names the directory of llama.cpp."""

_SOURCE = "https://github.com/ggml-org/llama.cpp"
_MAGIC = b"GGUF"


def find_converter(again: str) -> Path:
    """Return the directory of llama.cpp.

    Args:
        again: the command that needs it.
    Raises:
        InputNotFoundError: if $LLAMA_CPP names none that has the converter; the message has the commands to type.
    """
    named = os.environ.get(PLACE)
    if named and (Path(named).expanduser() / CONVERTER).is_file():
        return Path(named).expanduser().absolute()
    why = f"${PLACE}={named} has no {CONVERTER}" if named else f"${PLACE}, the directory of llama.cpp, is not set"
    raise InputNotFoundError(
        f"format=gguf: {why}; type: pip install sentencepiece && git clone --depth 1 {_SOURCE} && "
        f"{PLACE}=$PWD/llama.cpp {again}"
    )


def convert(llama_cpp: Path, model: Path, to: Path, quant: str) -> None:
    """Write the GGUF file of a model, in a process that sees llama.cpp's own modules and no others of the user's.

    Args:
        llama_cpp: the directory of llama.cpp.
        model: a directory of safetensors, with the tokenizer.
        to: the file.
        quant: the numbers in the file: f16 or q8_0.
    Raises:
        ModelError: if the converter fails, or writes no GGUF file.
    """
    command = [sys.executable, str(llama_cpp / CONVERTER), str(model), "--outfile", str(to), "--outtype", quant]
    environment = os.environ | {"PYTHONPATH": str(llama_cpp / "gguf-py")}
    done = subprocess.run(
        command, capture_output=True, text=True, errors="replace", stdin=subprocess.DEVNULL, env=environment
    )  # fmt: skip
    if done.returncode != 0:
        lines = [line.strip() for line in (done.stdout + done.stderr).splitlines() if line.strip()]
        reason = lines[-1][:300] if lines else "no output"
        missing = re.search(r"No module named '(\w+)", reason)
        advice = f"; pip install {missing[1]}" if missing else ""
        raise ModelError(f"format=gguf: {shlex.join(command)}: ended with {done.returncode}: {reason}{advice}")
    if not to.is_file() or to.open("rb").read(len(_MAGIC)) != _MAGIC:
        raise ModelError(f"format=gguf: {shlex.join(command)}: has written no GGUF file")


def end_token(path: Path) -> int | None:
    """Return the token at which llama.cpp ends an answer, by a GGUF file."""
    from gguf import GGUFReader

    field = GGUFReader(path).fields.get("tokenizer.ggml.eos_token_id")
    return None if field is None else int(field.contents())
