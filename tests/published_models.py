"""The shapes of published models, whose files are not here, and the memory that the plan gives a run of one."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import transformers

from orpo_cli.config.schema import RunConfig
from orpo_cli.machine.hardware import Hardware
from orpo_cli.runs.assembly import Assembly
from orpo_cli.training.footprint import Footprint, count_parameters, fitting_tokens, footprint


def _named(family: str, layers: int, width: int, wide: int, heads: int, shared: int, words: int, **others: Any) -> Any:
    """Return the configuration of a model; `shared` is the number of heads of keys and values."""
    sizes = {"num_hidden_layers": layers, "hidden_size": width, "intermediate_size": wide, "vocab_size": words}
    tokens = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
    kind: Any = getattr(transformers, f"{family}Config")
    return kind(**sizes, num_attention_heads=heads, num_key_value_heads=shared, **tokens, **others)


def _llama3(layers: int, width: int, wide: int, heads: int, **others: Any) -> Any:
    return _named("Llama", layers, width, wide, heads, 8, 128256, **others)


def _qwen3(layers: int, width: int, wide: int, heads: int, tied: bool) -> Any:
    return _named("Qwen3", layers, width, wide, heads, 8, 151936, head_dim=128, tie_word_embeddings=tied)


def _gemma3_4b() -> Any:
    """Return the configuration of a language model with a vision model of SigLIP's shape beside it."""
    text = _named("Gemma3Text", 34, 2560, 10240, 8, 4, 262208, head_dim=256)
    vision = transformers.SiglipVisionConfig(
        num_hidden_layers=27, hidden_size=1152, intermediate_size=4304, num_attention_heads=16, image_size=896,
        patch_size=14, vision_use_head=False,
    )  # fmt: skip
    return transformers.Gemma3Config(text_config=text.to_dict(), vision_config=vision.to_dict())


SHAPES: dict[str, tuple[float, Callable[[], Any]]] = {
    "meta-llama/Llama-3.2-1B-Instruct": (1.24, lambda: _llama3(16, 2048, 8192, 32, tie_word_embeddings=True)),
    "meta-llama/Llama-3.2-3B-Instruct": (3.21, lambda: _llama3(28, 3072, 8192, 24, tie_word_embeddings=True)),
    "meta-llama/Llama-3.1-8B-Instruct": (8.03, lambda: _llama3(32, 4096, 14336, 32)),
    "meta-llama/Llama-3.3-70B-Instruct": (70.6, lambda: _llama3(80, 8192, 28672, 64)),
    "meta-llama/Llama-2-7b-hf": (6.74, lambda: _named("Llama", 32, 4096, 11008, 32, 32, 32000)),
    "mistralai/Mistral-7B-v0.1": (7.24, lambda: _named("Mistral", 32, 4096, 14336, 32, 8, 32000)),
    "mistral-community/Mixtral-8x22B-v0.1": (141, lambda: _named("Mixtral", 56, 6144, 16384, 48, 8, 32000)),
    "microsoft/phi-2": (2.78, lambda: _named("Phi", 32, 2560, 10240, 32, 32, 51200)),
    "microsoft/Phi-4-mini-instruct": (
        3.84, lambda: _named("Phi3", 32, 3072, 8192, 24, 8, 200064, tie_word_embeddings=True)
    ),
    "microsoft/phi-4": (14.7, lambda: _named("Phi3", 40, 5120, 17920, 40, 10, 100352)),
    "Qwen/Qwen3-0.6B": (0.596, lambda: _qwen3(28, 1024, 3072, 16, tied=True)),
    "Qwen/Qwen3-1.7B": (1.72, lambda: _qwen3(28, 2048, 6144, 16, tied=True)),
    "Qwen/Qwen3-4B": (4.02, lambda: _qwen3(36, 2560, 9728, 32, tied=True)),
    "Qwen/Qwen3-8B": (8.19, lambda: _qwen3(36, 4096, 12288, 32, tied=False)),
    "Qwen/Qwen3-14B": (14.8, lambda: _qwen3(40, 5120, 17408, 40, tied=False)),
    "Qwen/Qwen3-32B": (32.8, lambda: _qwen3(64, 5120, 25600, 64, tied=False)),
    "google/gemma-3-1b-it": (1.0, lambda: _named("Gemma3Text", 26, 1152, 6912, 4, 1, 262144, head_dim=256)),
    "google/gemma-3-4b-it": (4.3, _gemma3_4b),
    "HuggingFaceTB/SmolLM3-3B": (
        3.08, lambda: _named("SmolLM3", 36, 2048, 11008, 16, 4, 128256, tie_word_embeddings=True)
    ),
}  # fmt: skip
"""Hub id -> the billions of weights that the hub shows, and the configuration as config.json has it."""


@dataclass(frozen=True)
class Planned:
    """What the plan says of a run on a GPU that multiplies bf16.

    Args:
        billions: the billions of the model's weights, without those of an adapter.
        longest: the places of the longest pair that `data.max_length` admits: two responses with next to no prompt.
    """

    billions: float
    needed: Footprint
    longest: int
    hardware: Hardware

    @property
    def peak(self) -> float:
        """Return the GB at the peak with the longest pair alone in a micro-batch."""
        return self.needed.total(self.longest) / 1e9

    def fits(self, gigabytes: float) -> bool:
        """Return whether the plan puts the longest pair into a micro-batch on a GPU of this size."""
        free = int(gigabytes * 1e9) - self.needed.process - self.needed.weights
        return fitting_tokens(self.needed, free, self.hardware) >= self.longest


def planned(run: RunConfig, folder: Path) -> Planned:
    """Plan a run of a published model, whose config.json is written into `folder`."""
    _, shape = SHAPES[run.model.path]
    shape().save_pretrained(folder)
    here = Assembly(replace(run, model=replace(run.model, path=str(folder))), for_training=False)
    here.hardware = Hardware(torch.device("cuda"), "bf16", 0, 1)
    hardware = replace(here.hardware, processes=run.trainer.processes)
    everything, trained = count_parameters(here.skeleton)
    needed = footprint(run, here.skeleton, hardware)
    frozen = everything - trained
    return Planned((frozen or everything) / 1e9, needed, 2 * run.data.max_length, hardware)
