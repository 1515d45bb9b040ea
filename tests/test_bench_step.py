"""scripts/bench_step counts the operations that a step needs and those that TRL spends, and says how far one comes."""

import importlib
import importlib.util
import sys
from collections.abc import Iterator
from dataclasses import replace
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from orpo_cli.data.pairs import Lengths
from orpo_cli.models.builtin import byte_tokenizer

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")  # TRL's own
SCRIPTS = Path(__file__).resolve().parent.parent / "scripts"
TINY = {
    "vocab_size": 300, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8,
}  # fmt: skip
SMOLLM2 = {
    "vocab_size": 49_152, "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30,
    "num_attention_heads": 9, "num_key_value_heads": 3, "head_dim": 64, "tie_word_embeddings": True,
}  # fmt: skip
LENGTHS = [[5, 4, 6], [3, 2, 1], [7, 1, 9], [2, 8, 3]]


sys.path.append(str(SCRIPTS))
runs, step_work, step_tables = map(importlib.import_module, ("synthetic_runs", "step_work", "step_tables"))


@pytest.fixture(scope="module")
def bench() -> Iterator[ModuleType]:
    """The script as a module, which imports TRL."""
    loader = SourceFileLoader("bench_step", str(SCRIPTS / "bench_step"))
    spec = importlib.util.spec_from_loader(loader.name, loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "bench_step", module)
        loader.exec_module(module)
        yield module


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Steps of two pairs with a small model."""
    directory = tmp_path_factory.mktemp("tiny")
    LlamaForCausalLM(LlamaConfig(**TINY, tie_word_embeddings=False)).save_pretrained(directory)
    byte_tokenizer().save_pretrained(directory)
    return runs.Run(str(directory), "none", LENGTHS, pairs_per_step=2, precision="fp32")


def counted(counter: FlopCounterMode) -> tuple[int, int]:
    """Return the FLOPs of products with a weight, and of those between activations, which are batched."""
    by_operator = counter.get_flop_counts()["Global"]
    return by_operator[torch.ops.aten.mm], by_operator[torch.ops.aten.bmm]


@pytest.mark.slow
@pytest.mark.parametrize(("pairs", "name"), [(1, "1"), (2, "2"), (2, "2c")])
def test_what_trl_spends_is_what_it_is_seen_to_do(bench: ModuleType, tiny: Any, pairs: int, name: str) -> None:
    """Where activations are computed twice, torch stops before the last matrix of a layer, which is counted."""
    model = AutoModelForCausalLM.from_pretrained(tiny.model, attn_implementation="eager", dtype=torch.float32)
    tokenized, setting = runs.random_pairs(LENGTHS, TINY["vocab_size"]), bench.Setting(name)
    with FlopCounterMode(display=False) as counter:
        bench._train_trl(model, runs.config_of(tiny), setting, tokenized, len(LENGTHS) // pairs, 0.0)
    work = step_work.trl_work(model, [Lengths(*pair) for pair in LENGTHS], pairs, setting.checkpointing)
    widths = [max(p + max(c, r) for p, c, r in LENGTHS[start : start + pairs]) for start in range(0, 4, pairs)]
    last_matrices = 2 * 32 * 48 * TINY["num_hidden_layers"] * 2 * pairs * sum(widths) * setting.checkpointing
    assert counted(counter) == (work.body + work.head - last_matrices, work.attention)


@pytest.mark.parametrize("loss", ["orpo", "trl"])
@pytest.mark.parametrize("adapter", ["none", "lora"])
def test_what_is_needed_is_what_a_packed_step_does(tiny: Any, tmp_path: Path, loss: str, adapter: str) -> None:
    """No product with a weight is computed twice, or for a place that nobody asks for; attention is counted below.

    Under LoRA the gradient of the first layer's inputs is needed by nobody, and computed by nobody.
    """
    run = replace(tiny, loss=loss, adapter=adapter)
    training = runs.build_training(run, tmp_path)
    with FlopCounterMode(display=False) as counter:
        list(runs.timed_steps(training))
    lengths = [Lengths(*pair) for pair in LENGTHS]
    work = step_work.work_of(training.scorer.model, lengths, training.config)
    hidden, values, rank = 32, 16, 16
    of_first_inputs = 2 * hidden * (hidden + 2 * values + 3 * rank) if adapter == "lora" else 0
    assert counted(counter)[0] == work.body + work.head - of_first_inputs * sum(map(sum, LENGTHS))


def test_attention_is_counted_where_a_place_sees_another(tiny: Any) -> None:
    """A place sees itself, what is before it in its own part, and of the prompt what is before it."""
    model = LlamaForCausalLM(LlamaConfig(**TINY))
    seen = 0
    for prompt, *responses in LENGTHS:
        part = torch.tensor([0] * prompt + [1] * responses[0] + [2] * responses[1])
        place = torch.arange(len(part))
        sees = (place[:, None] >= place) & ((part[:, None] == part) | (part == 0))
        seen += int(sees.sum())
    of_a_product = 2 * TINY["head_dim"] * TINY["num_attention_heads"] * TINY["num_hidden_layers"]
    forward_and_backward = 2 + 4
    work = step_work.work_of(model, [Lengths(*pair) for pair in LENGTHS], runs.config_of(tiny))
    assert work.attention == seen * of_a_product * forward_and_backward


@pytest.mark.parametrize(
    ("lengths", "trained", "gflop", "ratio"),
    [
        ("chat", False, {"orpo": 115.5, "trl": 130.9}, {"orpo": 2.16, "trl": 1.90}),
        ("chat", True, {"orpo": 169.4, "trl": 192.4}, {"orpo": 2.12, "trl": 1.87}),
        ("long", False, {"orpo": 348.0, "trl": 362.6}, {"orpo": 1.68, "trl": 1.61}),
        ("long", True, {"orpo": 505.9, "trl": 527.8}, {"orpo": 1.64, "trl": 1.57}),
    ],
)
def test_the_bound_of_the_built_in_model(
    tiny: Any, lengths: str, trained: bool, gflop: dict[str, float], ratio: dict[str, float]
) -> None:
    """GFLOP of a pair, and TRL's with one pair a micro-batch; counted once before by other means."""
    with torch.device("meta"):
        model = LlamaForCausalLM(LlamaConfig(**SMOLLM2)).requires_grad_(trained)
    pairs = [Lengths(*pair) for pair in runs.draw_lengths(lengths, 400)]
    theirs = step_work.trl_work(model, pairs, 1, checkpointing=False).total
    for loss in ("orpo", "trl"):
        config = runs.config_of(replace(tiny, loss=loss))
        needed = step_work.work_of(model, pairs, config).total
        assert needed / len(pairs) / 1e9 == pytest.approx(gflop[loss], abs=0.06)
        assert theirs / needed == pytest.approx(ratio[loss], abs=0.006)


def test_the_rate_is_that_of_all_products_together(monkeypatch: pytest.MonkeyPatch) -> None:
    """With every product at 2 FLOP/s, so is the sum, whatever the shapes and how often each is computed."""
    monkeypatch.setattr(
        step_work, "_product_seconds", lambda left, right, times: left.numel() * right.shape[1] * times / 3
    )
    for trained in (False, True):
        model = LlamaForCausalLM(LlamaConfig(**TINY)).requires_grad_(trained)
        assert step_work.product_rate(model, 40, 70, torch.float32) == pytest.approx(2)


def test_what_is_reached_is_the_speed_up_by_the_ratio_of_operations(capsys: pytest.CaptureFixture[str]) -> None:
    """Ours takes 2 s for 8 pairs and 200 FLOPs of 125 FLOP/s, TRL 4 s and 500 FLOPs: 2.00 of 2.50 is 80 %."""
    ours = step_tables.Measured([2.0], 8, 100, 1.5, int(3e9), body=120, head=50, attention=30, rates=(100, 150))
    theirs = step_tables.Measured([4.0], 8, 100, 1.25, int(4e9), body=500)
    sides = {"TRL 1 x 8": step_tables.Side([theirs]), step_tables.LIKE_FOR_LIKE: step_tables.Side([ours])}
    step_tables.print_case(sides, "TRL 1 x 8", None, (1.25, "of a step"))
    row = capsys.readouterr().out.splitlines()[3].split()
    assert row == [
        *step_tables.LIKE_FOR_LIKE.split(),
        "4.000",
        "2.00",
        "2.50",
        "80%",
        "3.00",
        "0.75",
        "2.5e-01",
        "0",
        "80%",
    ]
    (line,) = step_tables.in_markdown("tiny, LoRA", sides, "TRL 1 x 8")
    assert line == "| tiny, LoRA, `loss=trl` | 2.00 | 2.50 | 80% | 3.0 of 4.0 GB | 80% |"
    assert step_tables.in_markdown("tiny, LoRA", sides, None) == []
    assert len(line.split(" | ")) == len(step_tables.MARKDOWN_HEAD.splitlines()[1].split(" | "))
