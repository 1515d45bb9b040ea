"""Choose the device and the precision of a run, and join the processes that share its steps."""

import contextlib
import os
import re
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar, cast

import torch
from torch import Tensor, distributed

from orpo_cli.config.schema import TrainerConfig
from orpo_cli.errors import ConfigError, UnreachableError
from orpo_cli.machine.processes import join_step_of_slurm
from orpo_cli.machine.signals import send_waiting
from orpo_cli.quoting import first_line

T = TypeVar("T")

_PREPARATION = timedelta(days=7)
"""The longest time that the other processes wait while the main one reads and tokenizes the data."""


@dataclass(frozen=True)
class Hardware:
    """The device, the precision and the processes of a run.

    Args:
        device: the device of the model and the batches.
        precision: fp32 or bf16; with bf16 matrix products are computed in bfloat16, sums and losses in fp32.
        rank: the number of this process, 0 to processes - 1.
        processes: the number of processes that share a step.
    """

    device: torch.device
    precision: str
    rank: int
    processes: int

    @property
    def is_main(self) -> bool:
        """Return whether this process writes files and the terminal."""
        return self.rank == 0

    @property
    def dtype(self) -> torch.dtype:
        """Return the dtype in which matrices are multiplied."""
        return torch.bfloat16 if self.precision == "bf16" else torch.float32

    def sum_over_processes(self, values: Tensor) -> Tensor:
        """Return the sum of a tensor over all processes, on each of them."""
        if self.processes == 1:
            return values
        summed = values.clone()
        distributed.all_reduce(summed)
        return summed

    def any_process(self, flag: bool) -> bool:
        """Return whether `flag` is set in any process; all of them must ask at the same point."""
        if self.processes == 1:
            return flag
        return float(self.sum_over_processes(torch.tensor(float(flag), device=self.device))) > 0

    @contextlib.contextmanager
    def main_first(self) -> Iterator[None]:
        """Wrap a block that the main process finishes before the others begin it, so that they find its cache."""
        if self.processes == 1:
            yield
            return
        patient = distributed.new_group(backend="gloo", timeout=_PREPARATION)
        if not self.is_main:
            distributed.barrier(patient)
        yield
        if self.is_main:
            distributed.barrier(patient)

    def gathered(self, values: list[T]) -> list[T]:
        """Return the lists of all processes, one after the other."""
        if self.processes == 1:
            return values
        parts: list[list[T]] = [[]] * self.processes
        distributed.all_gather_object(parts, values)
        return [value for part in parts for value in part]

    def from_main(self, value: T | None) -> T:
        """Return the main process's value in all processes."""
        if self.processes == 1:
            return cast("T", value)
        box = [value]
        distributed.broadcast_object_list(box)
        return cast("T", box[0])


def is_lost_peer(error: BaseException) -> bool:
    """Return whether an error means that another process of the run is gone, or did not answer in time."""
    return isinstance(error, torch.distributed.DistError) or (
        isinstance(error, RuntimeError) and ("gloo" in str(error) or "Connection closed by peer" in str(error))
    )


def lost_peer_reason(error: BaseException) -> str:
    """Return the part of a lost peer's error that is meant for a reader."""
    return re.sub(r"^\[[^\]]*\] *", "", first_line(error)).partition(". This is typically")[0]


def multiplies_bf16(device: str) -> bool:
    """Return whether `cpu`, `cuda` or `mps` multiplies bfloat16 matrices in hardware; emulated, it is slow."""
    if device == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if device == "cpu":
        capabilities = torch.cpu.get_capabilities()
        return any(capabilities.get(name) for name in ("avx512_bf16", "amx_bf16", "bf16"))
    return False


def find_hardware(config: TrainerConfig) -> Hardware:
    """Choose device and precision, and join the other processes if there are any.

    Raises:
        ConfigError: if there is no such device.
        UnreachableError: if the other processes cannot be joined.
    """
    send_waiting()
    join_step_of_slurm()
    _check_available(config.device)
    on_cpu = config.device == "cpu" or (config.device == "auto" and not torch.accelerator.is_available())
    device = torch.device("cpu" if on_cpu else config.device if ":" in config.device else _own_device())
    if device.type == "cuda":
        torch.cuda.set_device(device)
        _compute_repeatably()
    rank, processes = _join(device, config.timeout)
    precision = config.precision
    if precision == "auto":
        precision = "bf16" if multiplies_bf16(device.type) else "fp32"
    return Hardware(device, precision, rank, processes)


def _own_device() -> str:
    """Return the accelerator of this process: of several on a machine, each has one."""
    kind = torch.accelerator.current_accelerator()
    assert kind is not None
    if kind.type != "cuda":
        return kind.type
    return f"cuda:{int(os.environ.get('LOCAL_RANK', '0')) % torch.cuda.device_count()}"  # a launcher may show it one


def _join(device: torch.device, timeout: int) -> tuple[int, int]:
    """Join the other processes of the run; return the number of this one and how many there are.

    Raises:
        UnreachableError: if they do not meet.
    """
    if os.environ.get("WORLD_SIZE", "1") == "1":
        return 0, 1
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    if not distributed.is_initialized():
        try:
            distributed.init_process_group(backend, timeout=timedelta(seconds=timeout))
        except (ValueError, RuntimeError) as error:
            raise UnreachableError(_why_not_joined(str(error), timeout)) from None
    return distributed.get_rank(), distributed.get_world_size()


def leave_processes() -> None:
    """Part from the other processes: threads that still serve them could abort this one as it ends."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def _compute_repeatably() -> None:
    """Choose kernels whose sums do not depend on which thread comes first, as far as torch has them."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    warnings.filterwarnings("ignore", message=".*does not have a deterministic implementation")
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]


def _why_not_joined(reason: str, timeout: int) -> str:
    """Return why the processes did not meet, and what to do about it."""
    world, port = os.environ.get("WORLD_SIZE"), os.environ.get("MASTER_PORT")
    if "EADDRINUSE" in reason:
        return f"port {port} is in use: set MASTER_PORT to a free one, or let trainer.processes=N find one"
    if joined := re.search(r"(\d+)/(\d+) clients joined", reason):
        return f"{joined[1]} of {joined[2]} processes joined within trainer.timeout={timeout} s; start the others too"
    if "timed out" in reason and "connect" in reason:
        at = f"{os.environ.get('MASTER_ADDR')}:{port}"
        return f"no process of rank 0 answers at {at} within trainer.timeout={timeout} s; start it too"
    return f"WORLD_SIZE={world} in the environment: cannot join the processes: {reason.splitlines()[0]}"


def _check_available(device: str) -> None:
    if device.startswith("cuda"):
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if int(device[5:] or 0) >= count:
            raise ConfigError(
                f"trainer.device={device}: this machine has {count} CUDA devices; trainer.device=cpu works anywhere"
            )
    if device == "mps" and not torch.backends.mps.is_available():
        raise ConfigError("trainer.device=mps: not available on this machine; trainer.device=cpu works anywhere")
