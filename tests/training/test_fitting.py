"""`trainer.fit=auto` takes the first choice that the plan finds room for, and says what it takes."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from orpo_cli.config.schema import RunConfig
from orpo_cli.machine.hardware import Hardware
from orpo_cli.training.fitting import fitted
from orpo_cli.training.footprint import footprint

PLACES = 4096
"""Of the longest pair."""

CHOICES = [("ddp", False), ("fsdp", False), ("ddp", True), ("fsdp", True)]
"""How weights are held, and whether activations are computed twice: from the least work to the least memory."""


@pytest.fixture(scope="module")
def model() -> Any:
    with torch.device("meta"):
        return LlamaForCausalLM(LlamaConfig(hidden_size=1024, num_hidden_layers=8, intermediate_size=4096))


@pytest.fixture
def config(compose_config: Callable[..., RunConfig]) -> RunConfig:
    return compose_config("trainer.fit=auto")


def on(device: str, processes: int = 1) -> Hardware:
    return Hardware(torch.device(device), "bf16", 0, processes)


def chosen(config: RunConfig, model: Any, hardware: Hardware, free: int) -> tuple[str, bool]:
    trainer = fitted(config, model, PLACES, hardware, free)[0].trainer
    return trainer.parallel, trainer.gradient_checkpointing


def least(config: RunConfig, model: Any, hardware: Hardware) -> int:
    """The bytes of a device with room for the weights, and in 7 of 10 of what is left for the rest of the plan."""
    needed = footprint(config, model, hardware)
    return int(needed.weights + (needed.kept + PLACES * needed.per_place) / 0.7)


def with_choice(compose_config: Callable[..., RunConfig], parallel: str, recomputes: bool) -> RunConfig:
    return compose_config(f"trainer.parallel={parallel}", f"trainer.gradient_checkpointing={str(recomputes).lower()}")


def test_each_choice_is_taken_where_none_before_it_fits(
    compose_config: Callable[..., RunConfig], config: RunConfig, model: Any
) -> None:
    """Two GPUs; a thousandth less than what a choice needs lets the next one be taken that needs no more than that."""
    gpus = on("cuda", 2)
    needs = {choice: least(with_choice(compose_config, *choice), model, gpus) for choice in CHOICES}
    for choice in CHOICES:
        for free in (needs[choice] * 1001 // 1000, needs[choice] * 999 // 1000):
            expected = next((other for other in CHOICES if needs[other] <= free), CHOICES[-1])
            assert chosen(config, model, gpus, free) == expected
    assert len({chosen(config, model, gpus, needs[choice] * 1001 // 1000) for choice in CHOICES}) >= 3


def test_one_process_only_computes_twice(config: RunConfig, model: Any) -> None:
    needed = footprint(config, model, on("cuda"))
    taken = needed.weights + needed.kept + PLACES * needed.per_place
    assert fitted(config, model, PLACES, on("cuda"), 10 * taken) == (
        config,
        f"trainer.fit=auto: nothing changes; the longest pair takes about {taken / 1e9:.1f} GB of "
        f"{10 * taken / 1e9:.1f} GB free",
    )
    small, said = fitted(config, model, PLACES, on("cuda"), taken)
    assert (small.trainer.parallel, small.trainer.gradient_checkpointing) == ("ddp", True)
    assert said.startswith("trainer.fit=auto: trainer.gradient_checkpointing=true; the longest pair takes about ")
    assert said.endswith(
        f" of {taken / 1e9:.1f} GB free, and {taken / 1e9:.1f} GB of {taken / 1e9:.1f} GB free without"
    )


def test_processes_of_a_machine_share_its_main_memory(config: RunConfig, model: Any) -> None:
    free = least(config, model, on("cpu", 2)) * 1001 // 1000
    assert chosen(config, model, on("cpu", 2), 2 * free) == ("ddp", False)
    assert chosen(config, model, on("cpu", 2), free) != ("ddp", False)


def test_what_is_set_stays(compose_config: Callable[..., RunConfig], model: Any) -> None:
    config = compose_config("trainer.fit=auto", "trainer.parallel=fsdp", "trainer.gradient_checkpointing=true")
    assert chosen(config, model, on("cuda", 2), 10**14) == ("fsdp", True)


@pytest.mark.parametrize("whole", ["optimizer=adafactor", "adapter=qlora"])
def test_nothing_fits(whole: str, compose_config: Callable[..., RunConfig], model: Any) -> None:
    """Weights are not divided where an optimizer, or their quantization, needs whole ones."""
    config = compose_config("trainer.fit=auto", whole)
    small, said = fitted(config, model, PLACES, on("cuda", 2), 10**6)
    assert (small.trainer.parallel, small.trainer.gradient_checkpointing) == ("ddp", True)
    assert "and even so the longest pair takes about" in said
    assert "adapter=lora" in said
