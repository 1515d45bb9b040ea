"""The table of docs/devices.md that says which training fits on which GPUs is that of the plan."""

import math
import re
import shlex
from pathlib import Path

import pytest
from published_models import planned

from orpo_cli.cli.arguments import parse
from orpo_cli.cli.compose import compose_jobs
from orpo_cli.config.load import load_config

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "devices.md").read_text(encoding="utf-8")
SECTION = PAGE.partition("## What fits where\n")[2].partition("\n## ")[0]
COMMAND = re.findall(r"^    (orpo train .+)$", SECTION, re.MULTILINE)[0]
EIGHT = "trainer.processes=8 trainer.parallel=fsdp"
ADAPTERS = ("qlora", "lora", "none")
MODELS = (
    "meta-llama/Llama-3.2-1B-Instruct", "meta-llama/Llama-3.1-8B-Instruct", "Qwen/Qwen3-32B",
    "meta-llama/Llama-3.3-70B-Instruct",
)  # fmt: skip


def row(model: str, adapter: str, folder: Path) -> str:
    """Return the row of a model: the peak of each process, and on what it fits; quantized weights are not divided."""
    words = shlex.split(COMMAND.replace("MODEL", model).replace("=lora", f"={adapter}"))[2:]
    one, eight = (
        None if more and adapter == "qlora" else
        planned(load_config(compose_jobs(parse([*words, *more.split()])).jobs[0].config), folder / f"{len(more)}")
        for more in ("", EIGHT)
    )  # fmt: skip
    assert one is not None
    fits = [size for size in (24, 80) if one.fits(size)]
    cells = model, adapter, f"{math.ceil(one.peak)} GB", f"{fits[0]} GB" if fits else "no"
    divided = ("", "") if eight is None else (f"{math.ceil(eight.peak)} GB", "yes" if eight.fits(80) else "no")
    return f"| {' | '.join((*cells, *divided))} |"


@pytest.mark.slow
def test_the_table_is_that_of_the_plan(tmp_path: Path) -> None:
    expected = [row(model, adapter, tmp_path / model / adapter) for model in MODELS for adapter in ADAPTERS]
    assert re.findall(r"^\| \S+/\S+ \|.+\|$", SECTION, re.MULTILINE) == expected, "\n".join(expected)
