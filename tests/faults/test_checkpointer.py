"""Any order of steps, saves, kills, errors, damage and resumes: what was acknowledged is there and says what it said.

The machine trains a small layer, and knows for each step the bytes that the state must have. A save that is to be
killed or to fail runs in a fork, which really dies.
"""

import contextlib
import gc
import os
import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, Phase, assume, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from safetensors.torch import load_file, save_file
from torch import nn
from warm import inject

from orpo_cli.checkpoints import lookup, saving
from orpo_cli.checkpoints.copies import Copies
from orpo_cli.checkpoints.lookup import OPTIMIZER, TrainingState
from orpo_cli.checkpoints.optimizer_state import load_optimizer_state
from orpo_cli.checkpoints.saving import Retention
from orpo_cli.errors import CheckpointError, WriteError
from orpo_cli.files.directories import remove_leftovers
from orpo_cli.files.manifest import MANIFEST

POINTS = (
    "os.fsync", "os.rename", "os.replace", "os.mkdir", "os.chmod", "os.unlink", "os.rmdir",
    "orpo_cli.checkpoints.saving.save_optimizer_state", "orpo_cli.checkpoints.saving.write_manifest",
    "orpo_cli.checkpoints.saving.verify", "orpo_cli.checkpoints.saving.point",
    "orpo_cli.checkpoints.saving._rotate",
)  # fmt: skip
"""Functions at whose Nth call a save is killed."""

ERRORS = ("os.fsync", "os.rename", "os.replace", "os.mkdir", "os.chmod")
"""Functions that the disk may let fail."""

SURVIVED, FAILED = 0, 74


class Layer(nn.Linear):
    """What stands for a model and for its tokenizer: it can be saved."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        super().__init__(4, 3)
        self.dropout = nn.Dropout(0.2)

    def save_pretrained(self, directory: Path, state_dict: dict[str, torch.Tensor]) -> None:
        save_file(state_dict, directory / "model.safetensors")
        (directory / "config.json").write_text("{}", encoding="utf-8")


class Tokenizer:
    def save_pretrained(self, directory: Path) -> None:
        (directory / "tokenizer.json").write_text("{}", encoding="utf-8")


def tensors_of(model: nn.Module, optimizer: torch.optim.Optimizer) -> list[torch.Tensor]:
    """Every number of a training."""
    moments = [value for state in optimizer.state.values() for _, value in sorted(state.items())]
    return [*model.state_dict().values(), *moments]


def bytes_of(model: nn.Module, optimizer: torch.optim.Optimizer) -> bytes:
    return b"".join(tensor.detach().numpy().tobytes() for tensor in tensors_of(model, optimizer))


@contextlib.contextmanager
def changed(tensors: list[torch.Tensor]) -> Iterator[None]:
    """A block in which tensors have other numbers."""
    before = [tensor.clone() for tensor in tensors]
    for tensor in tensors:
        tensor += 1
    try:
        yield
    finally:
        for tensor, value in zip(tensors, before, strict=True):
            tensor.copy_(value)


class Checkpointer(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.root = Path(tempfile.mkdtemp()) / "checkpoints"
        self.trajectory: dict[int, bytes] = {}
        self.acknowledged: set[int] = set()
        self.damaged: set[int] = set()
        self.keep_last = 2
        self.best: dict[int, float] = {}
        self.copies = Copies()
        self._begin()

    def teardown(self) -> None:
        shutil.rmtree(self.root.parent)

    def _begin(self) -> None:
        self.step_number, self.model = 0, Layer()
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=0.1)

    @rule()
    def step(self) -> None:
        """A step is a pure function of its number and of the state before it."""
        self.step_number += 1
        torch.manual_seed(self.step_number)
        self.model.dropout(self.model(torch.randn(2, 4))).square().mean().backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        now = bytes_of(self.model, self.optimizer)
        assert self.trajectory.setdefault(self.step_number, now) == now

    def _save(self) -> Path:
        """As a run does, but in this thread: training has gone on to other numbers when they are written."""
        evaluation = {"nll": self.best.setdefault(self.step_number, float(self.step_number * 7 % 5))}
        state = TrainingState(self.step_number, 1000, 64, {}, {}, {}, evaluation=evaluation)
        retention = Retention(self.keep_last, "nll")
        rest = saving.begin_checkpoint(
            self.root, self.model, Tokenizer(), saving.LiveState.of(self.model, [self.optimizer]), state, retention,
            copies=self.copies,
        )  # fmt: skip
        with torch.no_grad(), changed(tensors_of(self.model, self.optimizer)):
            return rest()

    def _may_save(self) -> bool:
        """A run saves after a step it has taken; that step has no whole checkpoint then."""
        return self.step_number > 0 and self.step_number not in self._whole()

    @initialize(keep_last=st.integers(1, 3))
    def keep(self, keep_last: int) -> None:
        self.keep_last = keep_last

    @precondition(_may_save)
    @rule()
    def save(self) -> None:
        assert self._save().name == f"step-{self.step_number:06d}"
        self._acknowledge()

    @precondition(_may_save)
    @rule(point=st.sampled_from(POINTS), call=st.integers(1, 12), after=st.booleans())
    def save_killed(self, point: str, call: int, after: bool) -> None:
        code = self._save_in_a_fork(point, call, "kill after" if after else "kill")
        assert code in (SURVIVED, -9)
        self._acknowledge() if code == SURVIVED else self.resume()

    @precondition(_may_save)
    @rule(point=st.sampled_from(ERRORS), call=st.integers(1, 12), error=st.sampled_from(("EIO", "ENOSPC", "EROFS")))
    def save_failing(self, point: str, call: int, error: str) -> None:
        code = self._save_in_a_fork(point, call, error)
        assert code in (SURVIVED, FAILED)
        if code == SURVIVED:
            self._acknowledge()

    def _acknowledge(self) -> None:
        assert self._pointed_to("LATEST") == self.step_number
        self.acknowledged.add(self.step_number)
        self.damaged.discard(self.step_number)

    def _save_in_a_fork(self, point: str, call: int, effect: str) -> int:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of forks of threaded processes
            pid = os.fork()
        if pid == 0:
            code = 70
            try:
                gc.disable()
                inject(point, call, effect)
                self._save()
                code = SURVIVED
            except WriteError:
                code = FAILED
            finally:
                os._exit(code)
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

    @rule()
    def resume(self) -> None:
        """Another process begins: it knows what is on the disk alone."""
        if self.root.is_dir():
            remove_leftovers(self.root)
            assert not list(self.root.glob(".tmp-*"))
        self._begin()
        if not lookup.list_checkpoints(self.root):
            assert not self.acknowledged
            return
        if not self._whole():
            with pytest.raises(CheckpointError):
                lookup.latest_checkpoint(self.root)
            return
        path, _ = lookup.latest_checkpoint(self.root)
        self.step_number = lookup.read_state(path).step
        assert path.name == f"step-{self.step_number:06d}"
        assert self.step_number == max(self._whole())
        self.model.load_state_dict(load_file(path / "model.safetensors"))
        without = load_optimizer_state(path / OPTIMIZER, self.model, [self.optimizer], self.step_number)
        assert without == []
        assert bytes_of(self.model, self.optimizer) == self.trajectory[self.step_number]

    @precondition(lambda self: len(self._whole()) > 1)
    @rule(data=st.data())
    def corrupt(self, data: st.DataObject) -> None:
        """One file of one checkpoint; another whole one is left."""
        step = data.draw(st.sampled_from(sorted(self._whole())))
        directory = self.root / f"step-{step:06d}"
        path = data.draw(st.sampled_from(sorted(directory.iterdir())))
        content = path.read_bytes()
        place = data.draw(st.integers(0, len(content) - 1))
        damage: Callable[[], Any] = data.draw(
            st.sampled_from(
                [
                    lambda: path.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :]),
                    lambda: path.write_bytes(content[:place]),
                    lambda: path.write_bytes(content[:place] + bytes(len(content) - place)),
                    lambda: path.write_bytes(content + b"x"),
                    path.unlink,
                ]
            )
        )
        damage()
        assume(not path.is_file() or path.read_bytes() != content)
        if path.name == MANIFEST and _is_whole(directory):
            path.write_bytes(content)  # it says the same in other words
            return
        assert not _is_whole(directory)
        self.damaged.add(step)
        self.acknowledged.discard(step)

    def _pointed_to(self, name: str) -> int | None:
        pointer = self.root / name
        return int(pointer.read_text(encoding="utf-8").removeprefix("step-")) if pointer.is_file() else None

    def _whole(self) -> set[int]:
        return {step for step, path in lookup.list_checkpoints(self.root) if _is_whole(path)}

    @invariant()
    def one_is_whole(self) -> None:
        assert not self.acknowledged | self.damaged or self._whole()

    @invariant()
    def acknowledged_ones_are_whole_or_rotated(self) -> None:
        there = {step for step, _ in lookup.list_checkpoints(self.root)}
        for step in self.acknowledged - self._whole():
            assert len([one for one in there if one > step]) >= self.keep_last

    @invariant()
    def nothing_stands_half_in_its_place(self) -> None:
        there = {step for step, _ in lookup.list_checkpoints(self.root)}
        assert there <= self._whole() | self.damaged

    @invariant()
    def pointers_name_what_is_whole(self) -> None:
        latest, best, whole = self._pointed_to("LATEST"), self._pointed_to("BEST"), self._whole()
        assert {latest, best} <= whole | self.damaged | {None}
        if self.acknowledged:
            assert latest is not None
            assert latest in self.damaged or latest >= max(self.acknowledged & whole, default=0)

    @invariant()
    def states_are_of_their_steps(self) -> None:
        for step in self._whole():
            assert lookup.read_state(self.root / f"step-{step:06d}").step == step


def _is_whole(directory: Path) -> bool:
    try:
        lookup.verify(directory)
    except CheckpointError:
        return False
    return True


def test_a_resumed_state_is_not_of_the_file_any_more() -> None:
    run = Checkpointer()
    run.step()
    path = run._save() / "optimizer.safetensors"
    run.resume()
    with path.open("r+b") as file:
        file.write(bytes(path.stat().st_size))
    assert bytes_of(run.model, run.optimizer) == run.trajectory[1]
    run.teardown()


QUIET = [HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large]


class TestCheckpointer(Checkpointer.TestCase):  # type: ignore[name-defined]
    settings = settings(
        max_examples=12, stateful_step_count=25, suppress_health_check=QUIET,
        phases=[Phase.explicit, Phase.reuse, Phase.generate],
    )  # fmt: skip


@pytest.mark.slow
@pytest.mark.timeout(1800)
class TestCheckpointerForLong(Checkpointer.TestCase):  # type: ignore[name-defined]
    settings = settings(
        max_examples=int(os.environ.get("CHECKPOINTER_EXAMPLES", "40")), stateful_step_count=50, deadline=None,
        suppress_health_check=QUIET,
    )  # fmt: skip
