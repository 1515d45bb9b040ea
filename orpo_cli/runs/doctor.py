"""Examine the machine, the installation and its surroundings before a run does: each fact with what it means."""

import os
import platform
import shutil
import socket
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path
from urllib.parse import urlsplit

from packaging.requirements import Requirement

from orpo_cli import __version__
from orpo_cli.config.data import CheckConfig
from orpo_cli.config.schema import RunConfig
from orpo_cli.config.tracking import TRACKERS
from orpo_cli.data.progress import OnProgress
from orpo_cli.errors import OrpoError
from orpo_cli.files.cache import cache_directory
from orpo_cli.machine.threads import THREADS, usable_cores

PACKAGE = "orpo-cli"
_NAMED = ("torch", "transformers", "peft", "datasets")
_HUB_SECONDS = 3.0
_FULL, _LORA = {False: 16, True: 18}, {False: 4, True: 2}
"""Whether bf16 is multiplied -> bytes a weight: with its gradient and AdamW's averages; alone under a small adapter."""


@dataclass(frozen=True)
class Fact:
    """Hold one thing that decides whether runs work here, and how.

    Args:
        meaning: what follows from it, or how it is mended where it is a problem.
    """

    name: str
    value: str
    meaning: str
    is_problem: bool = False


def examine(directory: Path, environment: Mapping[str, str] = os.environ) -> Iterator[Fact]:
    """Yield what there is to say of this machine.

    Args:
        directory: where runs would be written.
        environment: the variables of the process.
    """
    yield _versions()
    yield from _devices()
    yield _threads(environment)
    yield _memory()
    yield _room(
        "disk", directory, "for runs below this directory; a checkpoint of full fine-tuning takes 12 bytes a weight"
    )
    cache = cache_directory()
    yield _room(f"cache {cache}", cache, "for built-in models and tokenized files; ORPO_CACHE=DIR moves it")
    yield _hub(environment)
    yield from _extras()
    yield _processes(environment)


def examine_run(run: RunConfig, sought: CheckConfig, on_progress: OnProgress = lambda *_: None) -> Iterator[Fact]:
    """Yield what there is to say of the model and the data of a run, before any weight is loaded."""
    from orpo_cli.machine.hardware import find_hardware
    from orpo_cli.machine.memory import free_memory
    from orpo_cli.runs.check import check
    from orpo_cli.training.footprint import share_of

    try:
        report = check(run, replace(sought, near_duplicates=None), on_progress)
    except OrpoError as error:
        yield Fact("model and data", "cannot be used", str(error), True)
        return
    found, plan = len(report.findings), report.estimate
    findings = f", {found} finding{'s' if found > 1 else ''}" if found else ""
    invalid = f", {report.invalid:,} of them invalid" if report.invalid else ""
    pairs = f"{len(report.data.train):,} pairs to train, {len(report.data.evaluation):,} to evaluate"
    yield Fact("data", f"{report.rows:,} rows{invalid}; {pairs}{findings}", "orpo check shows them", report.invalid > 0)
    if plan is None:
        yield Fact("plan", "no pair is left to train on", "orpo check shows what became of them", True)
        return
    yield Fact("model", f"{report.model}: {plan.parameters:,} weights", f"{plan.trained:,} of them are trained")
    hardware = replace(find_hardware(run.trainer), processes=plan.processes)
    free = share_of(free_memory(hardware.device), hardware)
    each = f" for each of {plan.processes} processes" if plan.processes > 1 else ""
    takes = f"{plan.steps:,} steps, about {plan.memory_bytes / 1e9:.1f} of {free / 1e9:.1f} GB free{each}"
    fits = plan.memory_bytes <= free
    less = "it does not fit: trainer.fit=auto, adapter=lora and a smaller data.max_length take less"
    yield Fact("plan", takes, "it fits; orpo check says how long it takes" if fits else less, not fits)


def _versions() -> Fact:
    named = ", ".join(f"{name} {metadata.version(name)}" for name in _NAMED)
    value = f"orpo {__version__}, Python {platform.python_version()}, {named}"
    wrong = [
        f"{needed.name} {_installed(needed.name) or 'is missing'}: pip install '{needed.name}{needed.specifier}'"
        for needed in _requirements()
        if needed.marker is None and not _is_met(needed)
    ]
    if wrong:
        return Fact("versions", value, "; ".join(wrong), True)
    return Fact("versions", value, "every package is in the range that orpo asks for")


def _requirements() -> Iterator[Requirement]:
    return map(Requirement, metadata.requires(PACKAGE) or [])


def _installed(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _is_met(needed: Requirement) -> bool:
    found = _installed(needed.name)
    return found is not None and needed.specifier.contains(found, prereleases=True)


def _devices() -> Iterator[Fact]:
    import torch

    from orpo_cli.machine.hardware import multiplies_bf16

    kind = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    if kind == "cuda":
        for number in range(torch.cuda.device_count()):
            found = torch.cuda.get_device_properties(number)
            memory = f"{found.total_memory / 1e9:.0f} GB"
            yield Fact(f"device cuda:{number}", f"{found.name}, {memory}", f"trainer.device=cuda:{number} trains there")
    elif kind == "mps":
        yield Fact(
            "device", "the GPU of this Mac (mps)", "trainer.device=auto trains there; orpo is hardly tried on it"
        )
    elif said := _idle_gpu():
        built = f"this torch ({torch.__version__}) cannot use it; pytorch.org names the build for its driver"
        yield Fact("device", f"the CPU, beside {said}", built, True)
    else:
        yield Fact(
            "device", "the CPU; there is no GPU that torch can use", "trains models of up to about 1 billion weights"
        )
    if multiplies_bf16(kind):
        yield Fact("precision", "bf16", "matrices are multiplied in bfloat16 here, sums and losses are in fp32")
    else:
        yield Fact("precision", "fp32", "bfloat16 is not multiplied in hardware here; emulated it would be slow")


def _idle_gpu() -> str | None:
    """Return the name of an NVIDIA GPU that the driver sees, though torch may not."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return None
    try:
        asked = [tool, "--query-gpu=name", "--format=csv,noheader"]
        names = subprocess.run(asked, capture_output=True, text=True, timeout=10, check=True).stdout.split("\n")
    except (OSError, subprocess.SubprocessError):
        return None
    return names[0].strip() or None


def _threads(environment: Mapping[str, str]) -> Fact:
    cores, chosen = usable_cores(), environment.get(THREADS)
    if chosen:
        return Fact("threads", f"{chosen} of {cores} cores", f"set by {THREADS}; resume with as many for equal bytes")
    return Fact("threads", f"{cores}, one a core", f"{THREADS}=N chooses another number")


def _memory() -> Fact:
    import torch

    from orpo_cli.machine.hardware import multiplies_bf16
    from orpo_cli.machine.memory import free_memory

    device = "cuda" if torch.cuda.is_available() else "cpu"
    free, in_bf16 = free_memory(torch.device(device)), multiplies_bf16(device)
    full, lora = _weights(free / _FULL[in_bf16]), _weights(free / _LORA[in_bf16])
    meaning = (
        f"the weights of about {full} in full fine-tuning with AdamW, or of {lora} under LoRA, less what the tokens of "
        "a micro-batch take; orpo check estimates a run"
    )
    return Fact("memory", f"{free / 1e9:.1f} GB free", meaning)


def _weights(count: float) -> str:
    return f"{count / 1e9:.1f} billion" if count >= 1e9 else f"{count / 1e6:.0f} million"


def _room(name: str, directory: Path, meaning: str) -> Fact:
    """Say how much room there is in a directory that may still have to be made."""
    there = next(path for path in (directory.absolute(), *directory.absolute().parents) if path.is_dir())
    free = f"{shutil.disk_usage(there).free / 1e9:.1f} GB free"
    if not os.access(there, os.W_OK):
        return Fact(name, f"{there}: cannot be written", meaning, True)
    return Fact(name, free, meaning)


def _hub(environment: Mapping[str, str]) -> Fact:
    from huggingface_hub import constants, get_token

    host = urlsplit(constants.ENDPOINT).hostname or constants.ENDPOINT
    if constants.HF_HUB_OFFLINE:
        return Fact("hub", "offline, as HF_HUB_OFFLINE says", "model=ORG/NAME is taken from what was downloaded before")
    port = urlsplit(constants.ENDPOINT).port or (80 if constants.ENDPOINT.startswith("http:") else 443)
    try:
        socket.create_connection((host, port), timeout=_HUB_SECONDS).close()
    except OSError:
        behind = any(environment.get(name) for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"))
        proxy = ", though a proxy may" if behind else ""
        return Fact(
            "hub", f"{host} does not answer{proxy}", "model=DIR, data=FILE and the built-in model do not need it"
        )
    login = "logged in" if get_token() else "not logged in: gated models need `hf auth login`"
    return Fact("hub", f"{host} answers, {login}", "model=ORG/NAME and data=ORG/NAME are downloaded")


_USE = {
    **{name: f"tracker={name}" for name in TRACKERS},
    "bitsandbytes": "adapter=qlora, optimizer=adamw_8bit",
    "schedulefree": "optimizer=schedule_free_adamw",
    "optimi": "optimizer=lion",
    "optuna": "sweep.trials=N",
    "slurm": "hydra/launcher=submitit_slurm",
    "gguf": "orpo export format=gguf, with a converter of llama.cpp",
}


def _extras() -> Iterator[Fact]:
    needed: dict[str, list[Requirement]] = {name: [] for name in _USE}
    for requirement in _requirements():
        for name, parts in needed.items():
            if requirement.marker is not None and requirement.marker.evaluate({"extra": name}):
                parts.append(requirement)
    for name, parts in needed.items():
        if all(map(_is_met, parts)):
            yield Fact(f"extra {name}", "installed", f"{_USE[name]} works")
        else:
            yield Fact(f"extra {name}", "not installed", f"pip install '{PACKAGE}[{name}]' for {_USE[name]}")


def _processes(environment: Mapping[str, str]) -> Fact:
    if size := environment.get("WORLD_SIZE"):
        value = f"process {environment.get('RANK', '?')} of {size}, as a launcher such as torchrun says"
        return Fact("processes", value, "they share the pairs of each step; each holds the whole model")
    if job := environment.get("SLURM_JOB_ID"):
        tasks = environment.get("SLURM_NTASKS", "1")
        meaning = "`srun orpo train ...` shares the steps of one run between its tasks"
        return Fact("processes", f"Slurm job {job} with {tasks} tasks", meaning)
    return Fact(
        "processes", "one, and no launcher", "trainer.processes=N shares a step between N of them on this machine"
    )
