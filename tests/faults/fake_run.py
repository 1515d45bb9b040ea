"""A run folder whose checkpoints take milliseconds: real publication of a model of a few numbers."""

from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn

from orpo_cli.checkpoints.lookup import LATEST, TrainingState
from orpo_cli.checkpoints.saving import LiveState, Retention, begin_checkpoint


class _Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(64))

    def save_pretrained(self, directory: Path, state_dict: dict[str, torch.Tensor]) -> None:
        save_file(state_dict, directory / "model.safetensors")


class _Tokenizer:
    def save_pretrained(self, directory: Path) -> None:
        (directory / "tokenizer.json").write_text('{"words": []}', encoding="utf-8")


class FakeRun:
    """Each `save` changes the weights and adds a line to metrics.jsonl first."""

    def __init__(self, folder: Path, keep_last: int = 2, keep_best: str | None = None) -> None:
        self.folder = folder
        self.root = folder / "checkpoints"
        self._retention = Retention(keep_last, keep_best)
        self._model = _Model()
        self._optimizer = torch.optim.AdamW(self._model.parameters(), lr=0.1)
        folder.mkdir(exist_ok=True)

    def save(self, step: int, evaluation: dict[str, float] | None = None) -> Path:
        self._model.weight.sum().backward()
        self._optimizer.step()
        with (self.folder / "metrics.jsonl").open("a", encoding="utf-8") as stream:
            stream.write(f"{step}\n")
        state = TrainingState(step, 100, 512, {"prefs.jsonl": "0" * 64}, {}, {}, evaluation=evaluation)
        rest = begin_checkpoint(
            self.root, self._model, _Tokenizer(), LiveState.of(self._model, [self._optimizer]), state, self._retention,
            [self.folder / "metrics.jsonl"],
        )  # fmt: skip
        return rest()


def newest(folder: Path) -> Path:
    """The checkpoint that LATEST of a run's folder names."""
    root = folder / "checkpoints"
    return root / (root / LATEST).read_text(encoding="utf-8").strip()
