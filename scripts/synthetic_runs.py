"""Runs on pairs of random tokens, for scripts/bench_step, scripts/profile_step and others: their models and lengths.

Everything is fixed by a seed, so that two processes given the same `Run` see the same pairs in the same order.
"""

import importlib.metadata
import os
import platform
import random
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from orpo_cli import configure
from orpo_cli.config.schema import RunConfig
from orpo_cli.data import plan
from orpo_cli.data.pairs import Lengths, TokenizedPair
from orpo_cli.data.tokens.store import EntryWriter, PairStore, StoredRow, TokenizedFile, record_batch
from orpo_cli.machine.memory import free_memory
from orpo_cli.models.builtin import builtin_model
from orpo_cli.runs.assembly import Assembly
from orpo_cli.training import loop
from orpo_cli.training.events import StepDone
from orpo_cli.training.inputs import Training

MODELS = ("smollm2", "llama4l")
ADAPTERS = ("none", "lora")
SEED = 0


@dataclass(frozen=True)
class LogNormal:
    """Of a number of tokens; what is drawn above `cap` is cut to it."""

    median: float
    sigma: float
    cap: int

    def draw(self, chance: random.Random, least: int) -> int:
        """One number of tokens, at least `least`."""
        return max(least, min(self.cap, round(chance.lognormvariate(0, self.sigma) * self.median)))


LENGTHS = {
    "chat": (LogNormal(82, 0.98, 835), LogNormal(27, 0.92, 270), LogNormal(33, 0.97, 556)),
    "long": (LogNormal(90, 0.9, 400), LogNormal(220, 0.8, 500), LogNormal(190, 0.8, 500)),
}
"""Name -> prompt, chosen, rejected."""

LLAMA_SHAPE = {
    "vocab_size": 128_256,
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "num_hidden_layers": 4,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 64,
}
"""Llama-3.2-1B, cut from 16 layers to 4."""


@dataclass(frozen=True)
class Run:
    """One run of ours, or the pairs of one of TRL's.

    Args:
        model: directory.
        adapter: none or lora.
        lengths: of the pairs, each a list (prompt, chosen, rejected); a whole number of steps.
        bits: those that the frozen layers under an adapter are kept in.
    """

    model: str
    adapter: str
    lengths: list[list[int]]
    pairs_per_step: int = 8
    layout: str = "packed"
    precision: str = "bf16"
    loss: str = "trl"
    device: str = "cpu"
    bits: int | None = None

    @property
    def steps(self) -> int:
        """Optimizer steps."""
        return len(self.lengths) // self.pairs_per_step


def draw_lengths(name: str, pairs: int) -> list[list[int]]:
    """Lengths of so many pairs; a prompt has at least 2 tokens, since the first is never scored."""
    chance = random.Random(SEED)
    return [
        [part.draw(chance, least) for part, least in zip(LENGTHS[name], (2, 1, 1), strict=True)] for _ in range(pairs)
    ]


def random_pairs(lengths: Sequence[Sequence[int]], vocabulary: int) -> list[TokenizedPair]:
    """Pairs of random tokens."""
    generator = torch.Generator().manual_seed(SEED)
    return [
        TokenizedPair(*(torch.randint(0, vocabulary, (length,), generator=generator).tolist() for length in pair))
        for pair in lengths
    ]


def store_of(pairs: Sequence[TokenizedPair], entry: Path) -> PairStore:
    """The pairs as `orpo train` reads them: memory-mapped, from the new directory `entry`."""
    rows = [
        StoredRow(
            line=line,
            pair=0,
            row_class="kept",
            weight=1.0,
            lengths=Lengths(len(pair.prompt_ids), len(pair.chosen_ids), len(pair.rejected_ids)),
            boundary_merged=False,
            identical=False,
            control_tokens=0,
            hashes=(line, line, line),
            ids=pair,
        )
        for line, pair in enumerate(pairs, start=1)
    ]
    with EntryWriter(entry) as writer:
        writer.write(record_batch(rows))
        writer.publish({})
    return PairStore([(TokenizedFile(entry, "pairs.jsonl"), range(len(rows)))])


def write_random_llama(directory: Path, shape: dict[str, int]) -> Path:
    """A Llama of this shape with random weights, in bf16 and with tied embeddings, as Llama-3.2-1B is."""
    config = LlamaConfig(
        **shape,
        tie_word_embeddings=True,
        max_position_embeddings=32_768,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=None,
    )
    torch.manual_seed(SEED)
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(directory)
    return directory


def model_directory(name: str, scratch: Path) -> Path:
    """The directory of one of MODELS; a random one is written into `scratch`, once, by a process of its own.

    A process that held those weights would look larger for the rest of its life.
    """
    if name == "smollm2":
        return builtin_model("smollm2", lambda *_: None)
    directory = scratch / name
    if not directory.exists():
        write_in_a_process(directory, LLAMA_SHAPE)
    return directory


def write_in_a_process(directory: Path, shape: dict[str, int]) -> Path:
    """`write_random_llama` in another process."""
    program = f"import synthetic_runs as s, pathlib; s.write_random_llama(pathlib.Path({str(directory)!r}), {shape!r})"
    folder = str(Path(__file__).resolve().parent)
    subprocess.run([sys.executable, "-c", program], cwd=folder, check=True, stderr=subprocess.DEVNULL)
    return directory


def config_of(run: Run) -> RunConfig:
    """Compose and check the configuration of a run as `orpo train` does."""
    return configure(
        f"model={run.model}/",
        f"loss={run.loss}",
        f"adapter={run.adapter}",
        *([] if run.bits is None else [f"adapter.bits={run.bits}"]),
        "optimizer=adamw",
        f"trainer.layout={run.layout}",
        f"trainer.precision={run.precision}",
        f"trainer.pairs_per_step={run.pairs_per_step}",
        f"trainer.max_steps={run.steps}",
        f"trainer.device={run.device}",
        f"seed={SEED}",
    )


def build_training(run: Run, scratch: Path) -> Training:
    """Build model, optimizers and data of a run, with the precisions and the budget that `orpo train` would choose."""
    assembly = Assembly(config_of(run))
    vocabulary = assembly.skeleton.get_input_embeddings().num_embeddings
    store = store_of(random_pairs(run.lengths, vocabulary), scratch / "pairs")
    return assembly.training_on(store, store, highest_token_id=0)


def planned_steps(run: Run) -> list[tuple[int, ...]]:
    """The pairs of each step, as the plan takes them."""
    epoch = plan.Epoch.of([len(run.lengths)])
    return [step.pairs for step in plan.steps(epoch, run.pairs_per_step, run.steps, SEED)]


def timed_steps(training: Training) -> Iterator[tuple[float, float]]:
    """Seconds and loss of each step; what the caller does between two steps is in neither."""
    before = time.perf_counter()
    for event in loop.steps(training):
        if isinstance(event, StepDone):
            yield time.perf_counter() - before, event.metrics["loss"]
            before = time.perf_counter()


def forget_peak_memory(device: str = "cpu") -> None:
    """Begin anew with `orpo_cli.machine.memory.peak_memory`, where the system allows it."""
    if device != "cpu":
        torch.cuda.reset_peak_memory_stats(device)
        return
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    except OSError:
        return


def limit_memory() -> None:
    """Let an allocation fail where memory ends, instead of having the system end some process."""
    free = free_memory(torch.device("cpu"))
    if sys.platform.startswith("linux") and free < 2**62:
        resource.setrlimit(resource.RLIMIT_DATA, (free, resource.getrlimit(resource.RLIMIT_DATA)[1]))


def print_machine() -> None:
    """Command, date, machine and versions."""
    cpu = next(
        (line.split(":")[1].strip() for line in _lines_of("/proc/cpuinfo") if line.startswith("model name")),
        platform.processor(),
    )
    memory = free_memory(torch.device("cpu")) / 1e9
    packages = ("torch", "transformers", "peft", "accelerate", "trl")
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in packages)
    command = " ".join([f"scripts/{Path(sys.argv[0]).name}", *sys.argv[1:]])
    print(f"{command}\n{time.strftime('%Y-%m-%d %H:%M')}, {cpu}, {os.cpu_count()} cores, {memory:.0f} GB free")
    print(f"Python {platform.python_version()}, {versions}, {torch.get_num_threads()} threads", flush=True)


def _lines_of(path: str) -> list[str]:
    return Path(path).read_text(encoding="utf-8").splitlines() if Path(path).exists() else []


def mean_lengths(lengths: Sequence[Sequence[int]]) -> str:
    """The means of prompt, chosen and rejected in words."""
    means = [statistics.mean(column) for column in zip(*lengths, strict=True)]
    return "mean tokens: prompt {:.0f}, chosen {:.0f}, rejected {:.0f}".format(*means)
