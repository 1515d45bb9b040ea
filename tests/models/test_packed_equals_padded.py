"""A packed row is computed as padded rows are: every log-probability, loss and gradient, for each architecture.

In float64 the two agree to the last digits, so what is left in fp32 is its rounding. The padded side is transformers'
own attention with its own masks.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
import torch
from architectures import (
    ARCHITECTURES,
    Computed,
    InDouble,
    build,
    by_token,
    difference,
    in_double,
    lora,
    loss_with,
    pairs_of,
)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from orpo_cli.config.keys import builtin_configs
from orpo_cli.config.schema import RunConfig
from orpo_cli.data.collation import LAYOUTS, Batch
from orpo_cli.data.pairs import TokenizedPair
from orpo_cli.models import adapters, shared_prefix
from orpo_cli.models.scorer import Scorer

PRESETS = sorted(path.stem for path in (builtin_configs() / "loss").glob("*.yaml"))
Lengths = list[tuple[int, int, int]]
MIXED: Lengths = [(9, 12, 7), (5, 3, 14), (14, 2, 2)]
ONES: Lengths = [(1, 1, 1)]
SHORT: Lengths = [*ONES, (1, 9, 1), (12, 1, 1), (1, 1, 8)]
LONG: Lengths = [(1000, 3, 9)]
THOUSANDS = ["llama", "mistral, window", "gemma2", "gpt2"]
"""One of each kind of attention and of positions: the gradients of these are compared after a long prompt, too."""

FEW_DAILY = [name if name in THOUSANDS else pytest.param(name, marks=pytest.mark.slow) for name in ARCHITECTURES]
"""All architectures, of which the default tests take one of each kind; `test_in_float64` takes all every time."""

EXACT = 1e-11
"""Tolerance as a share of the largest value. Sums have up to 1,000 terms, each rounded to 1e-16, and two layers pass an
error on ten to a hundredfold; measured 1e-14. A single key seen wrongly is off by 1e-2."""

ROUNDED = 1e-5
"""The same tolerance in fp32, whose rounding, 6e-8, is 5e8 times as large; measured 1e-6 to 5e-6."""


@pytest.fixture
def doubled() -> Iterator[None]:
    with InDouble():
        yield


def assert_same(ours: Computed, theirs: Computed, tolerance: float) -> None:
    assert ours.logps.dtype == theirs.logps.dtype
    assert ours.value == pytest.approx(theirs.value, rel=tolerance)
    assert float((ours.logps - theirs.logps).abs().max()) < tolerance * float(theirs.logps.abs().max())
    assert difference(ours.gradients, theirs.gradients) < tolerance


def assert_layouts_agree(scorer: Scorer, lengths: Lengths, tolerance: float = EXACT, **options: Any) -> None:
    """Compare the layouts with all prompts scored by default, and a gradient in every trained parameter."""
    pairs = pairs_of(lengths, seed=sum(map(sum, lengths)))
    packed, padded = (Computed(scorer, layout, pairs, **options) for layout in ("packed", "padded"))
    trained = {name for name, parameter in scorer.model.named_parameters() if parameter.requires_grad}
    assert set(padded.gradients) == trained
    assert_same(packed, padded, tolerance)


@pytest.mark.usefixtures("doubled")
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_in_float64(name: str) -> None:
    assert_layouts_agree(in_double(build(name)), [*MIXED, *SHORT])


@pytest.mark.usefixtures("doubled")
@pytest.mark.parametrize("name", FEW_DAILY)
def test_a_pair_of_single_tokens(name: str) -> None:
    assert_layouts_agree(in_double(build(name)), ONES)


@pytest.mark.usefixtures("doubled")
@pytest.mark.parametrize("name", THOUSANDS)
def test_a_prompt_of_a_thousand_tokens(name: str) -> None:
    """The prompt has more rows than a block."""
    assert LONG[0][0] > shared_prefix.BLOCK_ROWS
    assert_layouts_agree(in_double(build(name)), LONG)


@pytest.mark.slow
@pytest.mark.usefixtures("doubled")
@pytest.mark.parametrize("name", [name for name in ARCHITECTURES if name not in THOUSANDS])
def test_positions_after_a_prompt_of_a_thousand_tokens(name: str) -> None:
    """Only the log-probabilities are compared, for all other architectures."""
    scorer, pairs = in_double(build(name)), pairs_of(LONG)
    packed, padded = (logps_of(scorer, layout, pairs) for layout in ("packed", "padded"))
    assert float((packed - padded).abs().max()) < EXACT * float(padded.abs().max())


@torch.no_grad()
def logps_of(scorer: Scorer, layout: str, pairs: Sequence[TokenizedPair]) -> Tensor:
    batch: Batch = LAYOUTS[layout](pairs, score_prompts=False)
    with scorer.at_work(layout):
        return by_token(scorer(batch), batch)


@pytest.mark.parametrize("name", FEW_DAILY)
def test_in_fp32_as_near_to_the_truth_as_padded_rows(name: str) -> None:
    """The reference is transformers' default attention; the error against float64 is that of padded rows in fp32."""
    model, pairs = build(name), pairs_of([*MIXED, *SHORT])
    if type(model)._supports_sdpa:
        model.set_attn_implementation("sdpa")
    packed, padded = (Computed(Scorer(model), layout, pairs) for layout in ("packed", "padded"))
    assert packed.logps.dtype == torch.float32
    assert_same(packed, padded, ROUNDED)
    model.set_attn_implementation("eager")
    with InDouble():
        truth = Computed(in_double(model), "padded", pairs)
    farther = difference(packed.gradients, truth.gradients) / difference(padded.gradients, truth.gradients)
    assert farther < 5  # two sums of the same terms in two orders: their errors are of one size, not equal


@pytest.fixture(scope="module")
def losses(compose_config: Callable[..., RunConfig]) -> list[RunConfig]:
    return [compose_config(f"loss={preset}") for preset in PRESETS]


@pytest.mark.usefixtures("doubled")
@pytest.mark.parametrize("name", FEW_DAILY)
def test_every_loss_and_its_gradient(name: str, losses: list[RunConfig]) -> None:
    """Prompts are scored only if the preset wants them."""
    scorer = in_double(build(name))
    for config in losses:
        options = {"score_prompts": config.loss.nll == "prompt_and_chosen", "objective_of": loss_with(config)}
        assert_layouts_agree(scorer, [(9, 12, 7), *ONES], **options)


@pytest.mark.parametrize("name", FEW_DAILY)
def test_every_loss_in_fp32(name: str, losses: list[RunConfig]) -> None:
    scorer, pairs = Scorer(build(name)), pairs_of([*MIXED, *SHORT])
    found: dict[str, list[float]] = {}
    for layout, collate in LAYOUTS.items():
        batch = collate(pairs, score_prompts=True)
        with torch.no_grad(), scorer.at_work(layout):
            logps = scorer(batch)
        found[layout] = [float(loss_with(config)(logps, batch)) for config in losses]
    assert found["packed"] == pytest.approx(found["padded"], rel=ROUNDED)


@pytest.mark.usefixtures("doubled")
@pytest.mark.parametrize("name", FEW_DAILY)
def test_with_adapters(name: str) -> None:
    """B of the adapters is random, since the zero it starts from would hide A's gradient."""
    config = lora()
    model: Any = adapters.add_lora(build(name), config, seed=0, base_reference=name)
    for key, parameter in model.named_parameters():
        if "lora_B" in key:
            nn.init.normal_(parameter, std=0.3)
    assert_layouts_agree(in_double(model.eval()), [*MIXED, *SHORT])


@pytest.mark.usefixtures("doubled")
@pytest.mark.parametrize("name", FEW_DAILY)
def test_with_gradient_checkpointing(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second forward pass, in the backward one, is over the packed row too: each layer attends twice."""
    calls = []
    attend = shared_prefix.attention
    monkeypatch.setattr(shared_prefix, "attention", lambda *inputs, **row: (calls.append(1), attend(*inputs, **row))[1])
    model, pairs = build(name), pairs_of(MIXED)
    expected = Computed(in_double(model), "padded", pairs)
    model.train()
    model.gradient_checkpointing_enable({"use_reentrant": False})
    assert_same(Computed(in_double(model), "packed", pairs), expected, EXACT)
    assert len(calls) == 2 * model.config.num_hidden_layers
    assert model.config._attn_implementation == "eager"


any_lengths = st.lists(st.tuples(*[st.integers(1, 24)] * 3), min_size=1, max_size=4)
FIXTURES = [HealthCheck.function_scoped_fixture]


@pytest.mark.parametrize("name", ["mistral, window", pytest.param("llama", marks=pytest.mark.slow)])
@given(lengths=any_lengths)
@settings(max_examples=25, suppress_health_check=FIXTURES)
def test_any_lengths(name: str, lengths: Lengths) -> None:
    with InDouble():
        assert_layouts_agree(in_double(build(name)), lengths)


@pytest.mark.slow
@pytest.mark.parametrize("name", ARCHITECTURES)
@given(lengths=any_lengths)
@settings(max_examples=1, suppress_health_check=FIXTURES)
def test_any_lengths_of_any_architecture(name: str, lengths: Lengths) -> None:
    with InDouble():
        assert_layouts_agree(in_double(build(name)), lengths)
