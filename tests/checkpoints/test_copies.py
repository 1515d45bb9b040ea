"""A checkpoint is of its step, whatever the steps after it do while it is written."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from orpo_cli.checkpoints import copies as module
from orpo_cli.checkpoints.copies import Copies
from orpo_cli.checkpoints.lookup import OPTIMIZER, TrainingState
from orpo_cli.checkpoints.saving import LiveState, Retention, begin_checkpoint
from orpo_cli.files.manifest import MANIFEST

STATE = TrainingState(1, 9, 512, {}, {}, {})


@pytest.fixture
def free(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """`free(1000, peak=500)` sets the free bytes, and how many more than now the process had at its peak."""

    def set_free(count: int, peak: int = 0) -> None:
        monkeypatch.setattr(module, "free_memory", lambda _: count)
        monkeypatch.setattr(module, "used_memory", lambda: 10_000)
        monkeypatch.setattr(module, "peak_memory", lambda _: 10_000 + peak)

    return set_free


class Words:
    def save_pretrained(self, directory: Path) -> None:
        (directory / "tokenizer.json").write_text("{}", encoding="utf-8")


def trained(lora: bool, tied: bool = True) -> tuple[Any, torch.optim.Optimizer]:
    """A model and its optimizer after one step."""
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"num_hidden_layers": 2, "num_attention_heads": 2, "tie_word_embeddings": tied}
    model: Any = LlamaForCausalLM(LlamaConfig(vocab_size=64, hidden_size=16, intermediate_size=32, **sizes))
    if lora:
        model = get_peft_model(model, LoraConfig(target_modules=["q_proj", "v_proj"]))
    optimizer = torch.optim.AdamW([weight for weight in model.parameters() if weight.requires_grad], lr=0.1)
    step(model, optimizer)
    return model, optimizer


def step(model: Any, optimizer: torch.optim.Optimizer) -> None:
    model(torch.arange(8)[None], labels=torch.arange(8)[None]).loss.backward()
    optimizer.step()
    optimizer.zero_grad()


def written(root: Path, model: nn.Module, optimizer: torch.optim.Optimizer, copies: Copies | None) -> dict[str, bytes]:
    """Return the files of a checkpoint that was being written while another step was taken."""
    rest = begin_checkpoint(
        root, model, Words(), LiveState.of(model, [optimizer]), STATE, Retention(1, None), copies=copies
    )
    step(model, optimizer)
    return {path.name: path.read_bytes() for path in rest().iterdir() if path.name not in (MANIFEST, "README.md")}


@pytest.mark.parametrize(("lora", "tied"), [(False, True), (False, False), (True, True)])
@pytest.mark.parametrize("room", [0, 10**9])
def test_a_checkpoint_is_of_its_step(
    lora: bool, tied: bool, room: int, free: Callable[..., None], tmp_path: Path
) -> None:
    """It equals one that is written before the next step begins, with copies or without room for them."""
    free(room)
    expected = written(tmp_path / "at once", *trained(lora, tied), None)
    assert written(tmp_path / "beside", *trained(lora, tied), Copies()) == expected
    directory = tmp_path / "beside/step-000001"
    weights = load_file(directory / ("adapter_model.safetensors" if lora else "model.safetensors"))
    assert len(weights) == (8 if lora else 2 * 9 + 2 + (not tied))
    assert len(load_file(directory / OPTIMIZER)) == 3 * len(weights)


@pytest.mark.parametrize("room", [0, 10**9])
def test_where_there_is_room_nothing_is_written_at_once(room: int, free: Callable[..., None], tmp_path: Path) -> None:
    free(room)
    model, optimizer = trained(lora=False)
    rest = begin_checkpoint(
        tmp_path, model, Words(), LiveState.of(model, [optimizer]), STATE, Retention(1, None), copies=Copies()
    )
    assert len(list(tmp_path.rglob("*.safetensors"))) == (2 if room == 0 else 0)
    rest()
    assert len(list(tmp_path.rglob("*.safetensors"))) == 2


def test_memory_is_taken_once_and_shared_as_the_original_is() -> None:
    one, other = torch.zeros(10), torch.zeros(4, 4).T
    state = {"one": one, "same": one, "part": one[5:], "other": other}
    copies = Copies()
    first = copies.of(state, {"scalar": torch.tensor(3)})
    assert first is not None
    places = {name: copy.data_ptr() for name, copy in first[0].items()}
    assert places["one"] == places["same"] != one.data_ptr()
    assert len(set(places.values())) == 3
    one += 1
    assert first[0]["one"].sum() == 0
    assert first[1]["scalar"] == 3
    again = copies.of(state)
    assert again is not None
    assert {name: copy.data_ptr() for name, copy in again[0].items()} == places
    assert again[0]["one"].sum() == 10


def test_memory_of_what_is_gone_is_given_back(free: Callable[..., None]) -> None:
    """Another shape at the same place is not taken for what was there."""
    free(41)
    copies, memory = Copies(), torch.arange(10.0)
    assert copies.of({"a": memory}) is not None
    (only,) = copies.of({"a": memory.view(2, 5)}) or [{}]
    assert only["a"].tolist() == [[0, 1, 2, 3, 4], [5, 6, 7, 8, 9]]
    assert len(copies._held) == 1


@pytest.mark.parametrize(
    ("bytes_free", "peak", "fits"), [(41, 0, True), (40, 0, False), (141, 100, True), (140, 100, False)]
)
def test_steps_must_have_their_memory(bytes_free: int, peak: int, fits: bool, free: Callable[..., None]) -> None:
    """Forty bytes beside what the process had at its highest and has not now."""
    free(bytes_free, peak)
    assert (Copies().of({"a": torch.zeros(10)}) is not None) is fits


def test_an_allocation_that_fails_is_no_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_memory(*_: Any, **__: Any) -> None:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate")

    copies, tensor = Copies(), torch.zeros(10)
    with monkeypatch.context() as patched:
        patched.setattr(torch, "empty", no_memory)
        assert copies.of({"a": tensor}) is None
    assert copies.of({"a": tensor}) is not None
