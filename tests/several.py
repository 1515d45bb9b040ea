"""Runs that several processes share, each started as a launcher such as torchrun would start it."""

from collections.abc import Mapping, Sequence
from typing import Any

from tiny_runs import Orpo, Running, free_port

Injected = Mapping[int, Sequence[dict[str, Any]]]
"""What is to happen to the processes of a run, by rank."""


def rank_of(rank: int, count: int, port: int) -> dict[str, str]:
    """The variables by which one of several processes finds the others."""
    return {
        "WORLD_SIZE": str(count), "RANK": str(rank), "LOCAL_RANK": str(rank), "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }  # fmt: skip


def start_several(orpo: Orpo, argv: Sequence[str], count: int = 2, injected: Injected | None = None) -> list[Running]:
    """Start `orpo ARGV` in several processes."""
    port = free_port()
    return [
        orpo.start(*argv, environment=rank_of(rank, count, port), injections=(injected or {}).get(rank, ()))
        for rank in range(count)
    ]


def run_several(orpo: Orpo, argv: Sequence[str], count: int = 2) -> str:
    """Run `orpo ARGV` in several processes to the end, and return what the main one says."""
    done = [process.wait() for process in start_several(orpo, argv, count)]
    assert [one.code for one in done] == [0] * count, "\n".join(one.output for one in done)
    return done[0].output
