"""What is said of a run before it starts: on the panel, and in run.json."""

import os
import platform
import time
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from orpo_cli import __version__
from orpo_cli.config.adapter import FrozenConfig, LoraConfig, SavedAdapterConfig, bits_of
from orpo_cli.config.optimization import LIBRARIES
from orpo_cli.config.schema import RunConfig
from orpo_cli.data.prepare import PreparedData
from orpo_cli.files.git import commit_of
from orpo_cli.losses.balance import Balancing
from orpo_cli.machine.hardware import Hardware
from orpo_cli.models import adapters
from orpo_cli.models.adapter_files import adapter_in_words
from orpo_cli.models.files import ModelFiles
from orpo_cli.training.footprint import count_parameters
from orpo_cli.training.inputs import Training

_GIT_SECONDS = 2
"""How long a run waits for git, which can be slow on a network's disk."""

_PACKAGES = ("torch", "transformers", "peft", "safetensors", "hydra-core")
_DISTRIBUTIONS = {"optimi": "torch-optimi"}
"""The name under which a module is installed, where that is another one."""


def run_record(config: RunConfig, files: ModelFiles, data: PreparedData, hardware: Hardware) -> dict[str, Any]:
    """Return what run.json says of a run that begins."""
    return {
        "versions": _versions(config),
        "machine": {
            "system": platform.system(),
            "processor": platform.machine(),
            "cores": os.cpu_count(),
            "device": str(hardware.device),
            "threads": torch.get_num_threads(),
        },
        "processes": hardware.processes,
        "model": {
            "path": files.name,
            "base": files.reference,
            "adapters": [str(path) for path in files.adapters],
            "adapter": adapter_text(config, files),
        },
        "precision": hardware.precision,
        "objective": objective_text(config),
        "data_sha256": data.sha256,
        "data_commits": _commits(data.sha256),
        "data_format": data.formats,
        "rows": data.ledger.rows,
        "classes": {f"{split}/{row_class}": count for (split, row_class), count in data.ledger.classes.items()},
        "pairs": {"train": len(data.train), "eval": len(data.evaluation)},
        "notes": data.notes,
    }


def _commits(files: Iterable[str]) -> dict[str, str]:
    """Return the git commit of each folder of data that is in a work tree."""
    ends_at = time.monotonic() + _GIT_SECONDS
    folders = dict.fromkeys(Path(file).parent for file in files if Path(file).is_file())
    asked = ((folder, commit_of(folder, ends_at - time.monotonic())) for folder in folders)
    return {str(folder): commit for folder, commit in asked if commit is not None}


def _versions(config: RunConfig) -> dict[str, str]:
    """Return the versions of orpo, Python and the packages whose change can change a number of this run."""
    of_optimizer = LIBRARIES.get(config.optimizer.name)
    of_base = "bitsandbytes" if bits_of(config.adapter) else None
    extras = [_DISTRIBUTIONS.get(name, name) for name in (of_optimizer, of_base) if name]
    return {"orpo": __version__, "python": platform.python_version()} | {
        name: metadata.version(name) for name in (*_PACKAGES, *extras)
    }


def environment(config: RunConfig, hardware: Hardware) -> dict[str, Any]:
    """Return what besides configuration and data can change the last digits of a run."""
    return {
        **_versions(config),
        "threads": torch.get_num_threads(),
        "instruction set": torch.backends.cpu.get_cpu_capability(),
        "device": hardware.device.type,
        "processes": hardware.processes,
        **({"parallel": config.trainer.parallel} if hardware.processes > 1 else {}),
        "layout": config.trainer.layout,
        "gradient checkpointing": config.trainer.gradient_checkpointing,
    }


def objective_text(config: RunConfig, balancing: Balancing | None = None) -> str:
    """Return the objective in one line, with the load-balancing loss of a mixture of experts."""
    balance = "" if balancing is None else f" + {balancing.coefficient:g} x load-balancing loss of the routers"
    loss = config.loss
    nll = f"nll({loss.nll.replace('_', ' ')}, mean per {loss.nll_average})"
    if loss.preference == "none":
        return f"{loss.name}: {nll}{balance}"
    score = "mean" if loss.length_normalized else "summed"
    smoothing = f", label smoothing {loss.label_smoothing:g}" if loss.label_smoothing else ""
    preference = f"{loss.preference.replace('_', ' ')}({score} log-probabilities{smoothing})"
    return f"{loss.name}: {nll} + {config.lambda_:g} x {preference}{balance}"


def adapter_text(config: RunConfig, files: ModelFiles) -> str:
    """Return which adapter is trained, and what has been merged before it, in one line."""
    if isinstance(config.adapter, SavedAdapterConfig):
        in_bits = f" in {config.adapter.bits} bits" if config.adapter.bits else ""
        further = f"adapter of {files.name} trained further: {adapter_in_words(files.adapters[-1])}"
        return f"{further}; base {files.reference}{in_bits}"
    on_top = f", on top of the merged weights of {files.name}" if files.adapters else ""
    adapter = config.adapter
    what = adapter.in_words if isinstance(adapter, LoraConfig | FrozenConfig) else f"adapter {adapter.name}"
    return f"{what}{on_top}"


def rows_text(data: PreparedData) -> str:
    """Return what became of the rows, in one line; the classes add up to the pairs that the rows hold."""
    classes = data.ledger.classes
    pairs = sum(classes.values())
    held = f" of {pairs:,} pairs" if pairs != data.ledger.rows else ""
    formats = ", ".join(sorted(set(data.formats.values())))
    ended = ", ".join(f"{count:,} {split} {row_class}" for (split, row_class), count in classes.items())
    return f"{data.ledger.rows:,}{held}, format {formats}: {ended}"


def panel_facts(
    training: Training, files: ModelFiles, data: PreparedData, max_length: int, steps_done: int
) -> dict[str, str]:
    """Return the rows of the panel before training, by their names."""
    config, hardware = training.config, training.hardware
    everything, trained = count_parameters(training.scorer)
    resumed = f", resuming after step {steps_done}" if steps_done else ""
    chat = "chat template" if data.uses_chat_template else "plain text"
    return {
        "model": f"{files.name} ({type(adapters.base_of(training.scorer.model)).__name__})",
        "trained": f"{trained:,} of {everything:,} parameters ({trained / everything:.2%}), "
        f"{adapter_text(config, files)}",
        "pairs": f"{len(data.train)} to train, {len(data.evaluation)} to evaluate; {chat}, at most {max_length} tokens",
        "rows": rows_text(data),
        "objective": objective_text(config, training.scoring.balancing),
        "steps": f"{training.total_steps} of {config.trainer.pairs_per_step} pairs{resumed}",
        "optimizer": f"{config.optimizer.name}, lr {config.optimizer.lr:g}, {config.scheduler.name} schedule",
        "device": f"{hardware.device}, {_processes(hardware)}{torch.get_num_threads()} threads, {hardware.precision}, "
        f"layout {training.scoring.layout}, at most {training.budget.training:,} tokens at once",
    }


def _processes(hardware: Hardware) -> str:
    return f"{hardware.processes} processes of " if hardware.processes > 1 else ""
