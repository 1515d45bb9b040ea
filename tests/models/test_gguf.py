"""Which tools of llama.cpp are found and what they are told; real ones are run in `tests/runs/test_gguf_answers.py`."""

import json
import sys
from pathlib import Path

import pytest

from orpo_cli.errors import InputNotFoundError, ModelError
from orpo_cli.models.gguf import Converter, convert, find_converter

AGAIN = "orpo export run to=out"

CONVERTER = """\
import json, os, pathlib, sys
pathlib.Path("converted.json").write_text(json.dumps([os.environ["PYTHONPATH"], *sys.argv[1:]]))
pathlib.Path(sys.argv[3]).write_bytes(b"GGUF f16")
"""

QUANTIZER = f"""\
#!{sys.executable} -IS
import json, os, pathlib, sys
whole = pathlib.Path(sys.argv[1]).read_bytes()
pathlib.Path("quantized.json").write_text(json.dumps(sys.argv[1:]))
pathlib.Path(sys.argv[2]).write_bytes(whole + b" " + sys.argv[3].encode())
sys.stderr.write("llama_model_quantize_impl: WARNING: 180 of 272 tensor(s) required fallback quantization\\n")
"""


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory of this test's own, and a machine without llama.cpp."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("LLAMA_CPP", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path / "programs"))
    monkeypatch.setattr("orpo_cli.models.gguf._SHIPS_IT", "ships_llama_cpp")
    return tmp_path


def llama_cpp(directory: Path) -> Path:
    directory.mkdir(parents=True)
    (directory / "convert_hf_to_gguf.py").write_text(CONVERTER, encoding="utf-8")
    return directory


def quantizer(directory: Path, body: str = QUANTIZER) -> Path:
    directory.mkdir(parents=True)
    program = directory / "llama-quantize"
    program.write_text(body, encoding="utf-8")
    program.chmod(0o755)
    return program


def test_the_package_that_ships_llama_cpp_is_found(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shipped = llama_cpp(place / "site" / "ships_llama_cpp" / "llama.cpp")
    (shipped.parent / "__init__.py").write_text("raise AssertionError('was imported')", encoding="utf-8")
    monkeypatch.syspath_prepend(place / "site")
    assert find_converter("f16", AGAIN) == Converter(shipped, "f16", None)
    named = llama_cpp(place / "mine")
    monkeypatch.setenv("LLAMA_CPP", "mine")  # what the user names comes first
    assert find_converter("q8_0", AGAIN) == Converter(named, "q8_0", None)


def test_a_built_quantizer_comes_before_one_on_the_path(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    directory = llama_cpp(place / "my llama.cpp")
    monkeypatch.setenv("LLAMA_CPP", str(directory))
    with pytest.raises(InputNotFoundError) as missing:
        find_converter("q4_k_m", AGAIN)
    assert str(missing.value) == (
        f"quant=q4_k_m: llama-quantize of llama.cpp is neither in {directory}/build/bin nor on $PATH; type: "
        f"cmake -S '{directory}' -B '{directory}/build' && "
        f"cmake --build '{directory}/build' --target llama-quantize && LLAMA_CPP='{directory}' {AGAIN}; "
        "quant=q8_0 does without it"
    )
    on_path = quantizer(place / "programs")
    assert find_converter("q4_k_m", AGAIN).quantizer == on_path
    built = quantizer(directory / "build" / "bin")
    assert find_converter("q4_k_m", AGAIN).quantizer == built


def test_an_f16_file_is_quantized_and_goes(place: Path) -> None:
    directory, to = llama_cpp(place / "llama.cpp"), place / "out" / "model-q4_k_m.gguf"
    to.parent.mkdir()
    notes = convert(Converter(directory, "q4_k_m", quantizer(place / "programs")), place / "model", to)
    assert notes == ["180 of 272 tensors have more bits than q4_k_m, which needs rows of a multiple of 256 numbers"]
    whole = str(place / "out" / "f16.gguf")
    converted, quantized = (json.loads(Path(name).read_text("utf-8")) for name in ("converted.json", "quantized.json"))
    assert converted == [str(directory / "gguf-py"), str(place / "model"), "--outfile", whole, "--outtype", "f16"]
    assert quantized == [whole, str(to), "Q4_K_M"]
    assert to.read_bytes() == b"GGUF f16 Q4_K_M"
    assert list(to.parent.iterdir()) == [to]


@pytest.mark.slow
def test_a_quantizer_that_fails_is_quoted(place: Path) -> None:
    fails = quantizer(place / "programs", f"#!{sys.executable} -IS\nimport sys\nsys.exit('main: failed to quantize')")
    with pytest.raises(ModelError, match=r"model.gguf Q6_K: ended with 1: main: failed to quantize"):
        convert(Converter(llama_cpp(place / "llama.cpp"), "q6_k", fails), place / "model", place / "model.gguf")
