"""Runs of `orpo` on the two-layer model, started, hurt and compared."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import warm
import xxhash

from orpo_cli.files.manifest import MANIFEST, write_manifest
from orpo_cli.training.events import OF_THE_MACHINE

WARM = warm.__file__
WORDS = ("the", "cat", "dog", "house", "moon", "runs", "sleeps", "eats", "bright", "river", "stone", "under", "green")
Arguments = Callable[..., list[str]]
"""`arguments(folder, "lambda=0.2")`: what to type for a run in a folder; a fixture of `tests/conftest.py`."""

DIFFERS = (*OF_THE_MACHINE, "time")


def pairs(count: int) -> list[dict[str, str]]:
    """Pairs whose lengths and words differ, without a random generator."""
    return [
        {
            "prompt": " ".join(WORDS[(i * 3 + k) % len(WORDS)] for k in range(2 + i % 5)) + f" {i}?",
            "chosen": " ".join(WORDS[(i + k * 2) % len(WORDS)] for k in range(3 + i % 7)),
            "rejected": " ".join(WORDS[(i * 5 + k) % len(WORDS)] for k in range(2 + i % 9)),
        }
        for i in range(count)
    ]


def write_pairs(path: Path, count: int = 24) -> Path:
    path.write_text("".join(json.dumps(pair) + "\n" for pair in pairs(count)), encoding="utf-8")
    return path


def kill(function: str, call: int, after: bool = False, of: str = "") -> dict[str, Any]:
    """SIGKILL at the Nth call of a function; `of`: a regex that an argument matches, other calls are not counted."""
    return {"function": function, "call": call, "effect": "kill after" if after else "kill", "of": of}


def fails(function: str, call: int, error: str, of: str = "") -> dict[str, Any]:
    """The Nth call of a function raises OSError with the named error number; `of` as for `kill`."""
    return {"function": function, "call": call, "effect": error, "of": of}


def at(function: str, call: int, effect: str) -> dict[str, Any]:
    """At the Nth call of a function: a signal (`SIGTERM`), or another effect of `tests/warm.py`."""
    return {"function": function, "call": call, "effect": effect}


@dataclass(frozen=True)
class Done:
    """How an `orpo` ended: its exit code, negative for a signal, and what it wrote to stdout and stderr."""

    code: int
    output: str


@dataclass
class Running:
    """An `orpo` that has been started."""

    pid: int
    _connection: socket.socket
    _output: Path

    def signal(self, number: signal.Signals) -> None:
        os.kill(self.pid, number)

    def said(self) -> str:
        """What it wrote so far."""
        return self._output.read_text(encoding="utf-8", errors="replace")

    def wait(self) -> Done:
        code = int(self._connection.recv(64))
        self._connection.close()
        return Done(code, self.said())

    def wait_stopped(self) -> None:
        """Until SIGSTOP has stopped it."""
        state = Path(f"/proc/{self.pid}/stat")
        self.wait_for(lambda: state.read_text(encoding="utf-8").rpartition(") ")[2].startswith("T"))

    def wait_for(self, happened: Callable[[], bool], seconds: float = 300) -> None:
        """Until something of the run can be seen from outside."""
        ends = time.monotonic() + seconds
        while not happened():
            assert time.monotonic() < ends, self.said()
            time.sleep(0.005)


@dataclass
class Orpo:
    """Starts `orpo` in forks of one warm process; `tests/warm.py`."""

    scratch: Path
    _process: "subprocess.Popen[str]" = field(init=False)
    _started: int = 0

    def __post_init__(self) -> None:
        environment = os.environ | {"ORPO_CACHE": str(self.scratch / "cache")}
        self._process = subprocess.Popen(
            [sys.executable, WARM, self._address], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            env=environment,
        )  # fmt: skip
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == "ready\n"

    @property
    def _address(self) -> str:
        return str(self.scratch / "socket")

    def command(self, arguments: Sequence[str]) -> list[str]:
        return warm.command(self._address, arguments)

    def start(
        self,
        *argv: str,
        injections: Sequence[dict[str, Any]] = (),
        environment: dict[str, str] | None = None,
        limits: dict[str, int] | None = None,
    ) -> Running:
        """Args: limits: by their names in `resource`, as RLIMIT_FSIZE."""
        self._started += 1
        path = self.scratch / f"output-{self._started}.txt"
        how = {"environment": environment or {}, "injections": list(injections), "limits": limits or {}}
        with path.open("wb") as output, Path(os.devnull).open() as nothing:
            descriptors = nothing.fileno(), output.fileno(), output.fileno()
            connection = warm.ask(self._address, list(argv), descriptors, **how)
        return Running(int(connection.recv(64)), connection, path)

    def run(self, *argv: str, **how: Any) -> Done:
        return self.start(*argv, **how).wait()

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(30)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def tiny_model(folder: Path) -> Path:
    """Return a copy of the built-in model, to be changed."""
    from orpo_cli.models.builtin import builtin_model

    return Path(shutil.copytree(builtin_model("tiny", lambda *_: None), folder))


def tiny_mixture(folder: Path, **settings: Any) -> Path:
    """Write a mixture of four experts with random weights, and the tokenizer of the built-in model."""
    import torch
    from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

    sizes = {"num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 16}
    experts = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "initializer_range": 0.1}
    wanted = {"vocab_size": 512, "hidden_size": 32, "router_aux_loss_coef": 0.5} | sizes | experts | settings
    torch.manual_seed(0)
    Qwen3MoeForCausalLM(Qwen3MoeConfig(**wanted)).save_pretrained(tiny_model(folder))
    return folder


def change_json(path: Path, **values: Any) -> None:
    """Set keys of a file that holds an object."""
    path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | values), encoding="utf-8")


def records(folder: Path) -> list[dict[str, Any]]:
    """metrics.jsonl without what differs each time."""
    lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [{key: value for key, value in json.loads(line).items() if key not in DIFFERS} for line in lines]


def digests(directory: Path) -> dict[str, str]:
    """Of every file, by name."""
    return {
        path.relative_to(directory).as_posix(): xxhash.xxh3_128(path.read_bytes()).hexdigest()
        for path in sorted(directory.rglob("*"))
        if path.is_file()
    }


def same_end(folder: Path, reference: Path) -> bool:
    """Whether two runs ended with the same bytes: the model, the last optimizer state, every recorded number."""
    last = max(path.name for path in (reference / "checkpoints").glob("step-*"))
    optimizers = [run / "checkpoints" / last / "optimizer.safetensors" for run in (folder, reference)]
    return (
        digests(folder / "model") == digests(reference / "model")
        and optimizers[0].read_bytes() == optimizers[1].read_bytes()
        and records(folder) == records(reference)
    )


def gone_back(run: Path, folder: Path, step: int) -> Path:
    """A copy of a finished run as it was when its checkpoint of `step` was the newest."""
    shutil.copytree(run, folder)
    shutil.rmtree(folder / "model")
    assert (folder / "checkpoints" / f"step-{step:06d}").is_dir()
    for path in (folder / "checkpoints").glob("step-*"):
        if path.name > f"step-{step:06d}":
            shutil.rmtree(path)
    (folder / "checkpoints" / "LATEST").write_text(f"step-{step:06d}\n", encoding="utf-8")
    return folder


def sign(checkpoint: Path) -> None:
    """Make the manifest fit: whoever changes a checkpoint can write its checksums too."""
    (checkpoint / MANIFEST).unlink()
    write_manifest(checkpoint)
