"""Estimate the disk space that a run will need, from the shapes in the headers of the model's files."""

import math
import shutil
from pathlib import Path

from safetensors import SafetensorError, safe_open

from orpo_cli.checkpoints.optimizer_state import state_bytes
from orpo_cli.config.adapter import LoraConfig, SavedAdapterConfig
from orpo_cli.config.schema import RunConfig
from orpo_cli.errors import OutputError
from orpo_cli.models.files import ModelFiles

_UNSEEN_TOKENIZER_BYTES = 20_000_000
"""Size of a tokenizer that will be saved in another format than it is stored in: about that of a large one."""


def check_space(config: RunConfig, files: ModelFiles, root: Path, total_steps: int) -> None:
    """Compare the size of the checkpoints in `root` and of the model beside them with the free space.

    Raises:
        OutputError: if there is too little.
    """
    trainer = config.trainer
    written = math.ceil(total_steps / (trainer.save_every or total_steps))
    kept = min(written, trainer.keep_last + (trainer.keep_best is not None) + 1)  # one is written before one goes
    needed = kept * checkpoint_bytes(config, files) + model_bytes(config, files)
    there = sum(path.stat().st_size for path in root.rglob("*") if path.is_file()) if root.is_dir() else 0
    free = shutil.disk_usage(root if root.is_dir() else root.parent).free
    if needed - there > free:
        checkpoints = "1 checkpoint" if kept == 1 else f"{kept} checkpoints"
        raise OutputError(
            f"{root.parent}: {checkpoints} and the model will need {needed - there:,} bytes, {free:,} are free; "
            "lower trainer.keep_last, or choose another output_dir"
        )


def checkpoint_bytes(config: RunConfig, files: ModelFiles) -> int:
    """Estimate the size of a checkpoint: weights or adapter, optimizer state, tokenizer."""
    trained = _adapter_weight_count(config, files) or _weight_count(files.directory)
    return int((4 + state_bytes(config.optimizer.name, 4, saved=True)) * trained) + _text_bytes(files.directory)


def model_bytes(config: RunConfig, files: ModelFiles) -> int:
    """Estimate the size of the trained model."""
    trained = 0 if config.merges else _adapter_weight_count(config, files)
    size = 2 if config.model.save_dtype in ("bf16", "fp16") else 4
    return size * (trained or _weight_count(files.directory)) + _text_bytes(files.directory)


def _text_bytes(model_directory: Path) -> int:
    """Return the size of configuration and tokenizer."""
    texts = [path for path in model_directory.glob("*") if path.suffix in (".json", ".jinja") and path.is_file()]
    unseen = 0 if any(path.name == "tokenizer.json" for path in texts) else _UNSEEN_TOKENIZER_BYTES
    return unseen + sum(path.stat().st_size for path in texts)


def _weight_count(model_directory: Path) -> int:
    return sum(math.prod(shape) for shape in _shapes(model_directory))


def _adapter_weight_count(config: RunConfig, files: ModelFiles) -> int:
    """Return how many weights the adapter has: a saved one, or LoRA on every matrix of the model; 0 without."""
    if isinstance(config.adapter, SavedAdapterConfig):
        return _weight_count(files.adapters[-1])
    if not isinstance(config.adapter, LoraConfig):
        return 0
    return config.adapter.rank * sum(sum(shape[-2:]) for shape in _shapes(files.directory) if len(shape) >= 2)


def _shapes(model_directory: Path) -> list[list[int]]:
    shapes: list[list[int]] = []
    for path in model_directory.glob("*.safetensors"):
        try:
            with safe_open(path, framework="pt") as tensors:
                shapes += [list(tensors.get_slice(name).get_shape()) for name in tensors.keys()]  # noqa: SIM118
        except (OSError, SafetensorError):
            continue  # loading says what is wrong with it
    return shapes
